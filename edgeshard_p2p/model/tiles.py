"""How the rows of a forward pass are cut into tiles, so that their bits do not depend on company.

A kernel may add up in another order when it is given another number of rows.  In `exact` the bits
of a row are *defined*: those it gets alone, as the first row of a tile of ``tile_rows`` rows.
Wider tiles are used only in widths that were seen, on this machine and these weights, to give the
same bits (`exactness`); with none of them each row runs alone, slow and still right.

The keys that a row reads are padded to a multiple of KEY_BLOCK that follows from the row's own
position; rows of a chunk that need different lengths are cut apart:

    chunk of 100 rows at position 50 (KEY_BLOCK 64)
    rows  50..63 -> 64 keys | rows 64..127 -> 128 keys | rows 128..149 -> 192 keys

In `fast` tiles are as wide as there are rows, up to the same limit, and a tile's rows of one
request are one cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from edgeshard_p2p.model.kv_cache import KEY_BLOCK

EXACT_TILE_ROWS = 2
"""Measured on Zen 5 (AVX-512, one core): of products with packed weights a single row differs
where the row is long (1536 in fp32, 4864 in bf16); 2 to 512 rows agreed at every shape tried.  A
second row costs little: the 120 products of a SmolLM2-135M token in fp32 take 12.0 ms at 1 row,
12.5 at 2, 13.4 at 4, 17.0 at 8."""

QUERY_ROWS = 4
"""MKL's batched products (attention) agreed from 4 rows on.  A row of a product is one query head;
heads that share a key head are in one product."""

WIDEST_TILE_ROWS = 128
"""Time per row of a product is level from 64 rows on."""

TILE_COST_ROWS = 16
"""What a tile costs besides its rows, in rows: it reads all weights, however few they are for.  The
products of a SmolLM2-135M block, packed, in fp32 (Zen 5, one core): 0.66 ms at 2 rows, 0.67 at 4,
0.83 at 8, 1.05 at 16, 1.51 at 32, so rather more than 16; cuts of attention go by it too, and read
no weights."""


@dataclass(frozen=True)
class Numerics:
    tile_rows: int
    """0 in `fast`."""
    widths: tuple[int, ...] = ()
    """Tiles that agree with a row alone and are worth using, ascending."""
    group: int = 1
    """Query heads to a key head."""

    @property
    def is_exact(self) -> bool:
        return self.tile_rows > 0

    def split(self, rows: int) -> tuple[tuple[int, int, int], ...]:
        """(first row, end, width of the tile) for ``rows`` rows that may share tiles."""
        return _split(rows, self)

    def query_rows(self, width: int) -> int:
        """The width of a cut in a tile of ``width``."""
        return max(width, -(-QUERY_ROWS // self.group))


def ladder(tile_rows: int, widest: int = WIDEST_TILE_ROWS) -> Iterator[int]:
    width = tile_rows
    while width <= widest:
        yield width
        width *= 2


@lru_cache(maxsize=4096)
def _split(rows: int, numerics: Numerics) -> tuple[tuple[int, int, int], ...]:
    if not numerics.is_exact:
        starts = range(0, rows, WIDEST_TILE_ROWS)
        stops = [min(start + WIDEST_TILE_ROWS, rows) for start in starts]
        return tuple((i, j, j - i) for i, j in zip(starts, stops, strict=True))
    if not numerics.widths:
        return tuple((row, row + 1, numerics.tile_rows) for row in range(rows))
    pieces = []
    start = 0
    while start < rows:
        width = _cheapest(rows - start, numerics.widths)[1]
        pieces.append((start, min(start + width, rows), width))
        start += width
    return tuple(pieces)


@lru_cache(maxsize=4096)
def _cheapest(rest: int, widths: tuple[int, ...]) -> tuple[int, int]:
    """What tiles for ``rest`` rows cost, in rows, and the width of the first and widest of them.
    A few rows more have a tile of their own only where that is cheaper than a wider one.  As each
    width divides the next, the widest is right wherever it is filled."""
    if rest <= 0:
        return 0, 0
    if rest >= widths[-1]:
        return widths[-1] + TILE_COST_ROWS + _cheapest(rest - widths[-1], widths)[0], widths[-1]
    costs = ((w + TILE_COST_ROWS + _cheapest(rest - w, widths)[0], w) for w in widths)
    return min(costs, key=lambda cost: (cost[0], -cost[1]))


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one request: ``rows`` rows from ``position`` on, cached in ``slot``."""

    slot: int
    position: int
    rows: int


@dataclass(frozen=True)
class Segment:
    """The part of a run that lies in one tile."""

    slot: int
    start: int
    stop: int
    position: int

    @property
    def end_position(self) -> int:
        return self.position + self.stop - self.start


@dataclass(frozen=True)
class Cut:
    """Rows of a segment that attend together: they read the same number of keys."""

    slot: int
    start: int
    stop: int
    n_keys: int
    positions: Tensor
    """Of the query rows, padded to the width of the cut."""
    index: Tensor | None
    """Rows of the tile to take as queries, the last repeated as padding; None: all as they are."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """By window, [width x query heads to a key head, n_keys]; filled by `attention`."""


@dataclass(frozen=True)
class Tile:
    start: int
    stop: int
    width: int
    positions: Tensor
    segments: tuple[Segment, ...]
    cuts: tuple[Cut, ...]
    rotary: dict[str | None, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def take(self, rows: Tensor) -> Tensor:
        """This tile's part of all ``rows``, padded with zeros to its width."""
        part = rows[self.start : self.stop]
        if self.rows == self.width:
            return part
        padded = rows.new_zeros((self.width, *rows.shape[1:]))
        padded[: self.rows] = part
        return padded


def tiles_of(runs: Sequence[Run], numerics: Numerics) -> list[Tile]:
    total = sum(run.rows for run in runs)
    return [_tile(runs, piece, numerics) for piece in numerics.split(total)]


def _tile(runs: Sequence[Run], piece: tuple[int, int, int], numerics: Numerics) -> Tile:
    start, stop, width = piece
    segments = tuple(_segments(runs, start, stop))
    positions = [p for s in segments for p in range(s.position, s.end_position)]
    positions += [positions[-1]] * (width - len(positions))
    cuts = tuple(cut for segment in segments for cut in _cuts(segment, width, numerics))
    return Tile(start, stop, width, torch.tensor(positions), segments, cuts)


def _segments(runs: Sequence[Run], start: int, stop: int) -> Iterator[Segment]:
    offset = 0
    for run in runs:
        first, last = max(start, offset), min(stop, offset + run.rows)
        if first < last:
            position = run.position + first - offset
            yield Segment(run.slot, first - start, last - start, position)
        offset += run.rows


def _cuts(segment: Segment, tile_width: int, numerics: Numerics) -> Iterator[Cut]:
    if not numerics.is_exact:
        yield _cut(segment, 0, segment.stop - segment.start, 0, tile_width)
        return
    row = 0
    while segment.position + row < segment.end_position:
        position = segment.position + row
        end = min(segment.end_position, (position // KEY_BLOCK + 1) * KEY_BLOCK)
        for first, last, width in numerics.split(end - position):
            width = numerics.query_rows(width)
            yield _cut(segment, row + first, row + last, width, tile_width)
        row += end - position


def _cut(segment: Segment, first: int, last: int, width: int, tile_width: int) -> Cut:
    """Rows ``first`` to ``last`` of a segment; a ``width`` of 0 is as many as there are."""
    rows, width = last - first, width or last - first
    start = segment.start + first
    padding = [rows - 1] * (width - rows)
    order = [*range(rows), *padding]
    position = segment.position + first
    n_keys = -(-(position + rows) // KEY_BLOCK) * KEY_BLOCK
    is_whole = start == 0 and width == tile_width
    return Cut(
        segment.slot,
        start,
        start + rows,
        n_keys,
        torch.tensor([position + row for row in order]),
        None if is_whole else torch.tensor([start + row for row in order]),
    )
