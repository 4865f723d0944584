"""Which tile widths give a row the bits it gets alone, on this machine and with these weights.

The order in which a kernel adds up depends on shapes, not on values, so random rows tell.  Each
width is compared, at several distances into the context, with rows run alone, in what leaves the
unit and in what it caches.  A width that disagrees is not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from edgeshard_p2p.model.kv_cache import KEY_BLOCK
from edgeshard_p2p.model.tiles import WIDEST_TILE_ROWS, Numerics, Run, ladder, tiles_of
from edgeshard_p2p.model.units import Block, Head, Rotary

HEAD_TILE_ROWS_MAX = 32
"""Rows of a pass that end in a token are few."""

TIMINGS = 5

_REACHES = (1, 5 * KEY_BLOCK, 64 * KEY_BLOCK)
"""Positions up to which the compared rows reach, as far as the context goes."""


def random_rows(hidden_size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((WIDEST_TILE_ROWS, hidden_size), generator=generator).to(dtype)


def scratch_slot(kv_heads: int, head_dim: int, context: int, dtype: torch.dtype) -> Tensor:
    """A slot filled with random keys and values, as if all positions were cached."""
    positions = -(-min(context, _REACHES[-1]) // KEY_BLOCK) * KEY_BLOCK
    generator = torch.Generator().manual_seed(2)
    return torch.randn((2, kv_heads, positions, head_dim), generator=generator).to(dtype)


def block_widths(
    block: Block, rotary: Rotary, slot: Tensor, rows: Tensor, alone: Numerics
) -> tuple[int, ...]:
    """Widths at which ``block`` agrees with itself on single rows; ``slot`` is overwritten."""
    check = _BlockCheck(block, rotary, slot, rows, alone)
    return tuple(width for width in ladder(alone.tile_rows) if check.agrees(width))


class _BlockCheck:
    def __init__(
        self, block: Block, rotary: Rotary, slot: Tensor, rows: Tensor, alone: Numerics
    ) -> None:
        self._block = block
        self._rotary = rotary
        self._slot = slot
        self._rows = rows
        self._alone = alone

    def agrees(self, width: int) -> bool:
        positions = self._slot.shape[2]
        starts = {max(0, min(reach, positions) - width) for reach in _REACHES}
        return width <= positions and all(self._agrees_at(start, width) for start in starts)

    def _agrees_at(self, start: int, width: int) -> bool:
        wide = self._run(0, width, start, (width,))
        cached = self._slot[:, :, start : start + width].clone()
        for row in _sample(width):
            alone = self._run(row, 1, start + row, ())
            is_same_kv = torch.equal(self._slot[:, :, start + row], cached[:, :, row])
            if not is_same_kv or not torch.equal(alone[0], wide[row]):
                return False
        return True

    def _run(self, first: int, rows: int, position: int, widths: tuple[int, ...]) -> Tensor:
        numerics = replace(self._alone, widths=widths)
        (tile,) = tiles_of([Run(0, position, rows)], numerics)
        self._rotary.fill(tile)
        hidden = tile.take(self._rows[first : first + rows])
        return self._block.run(hidden, tile, [self._slot])


def worth_using(widths: tuple[int, ...], time_s: Callable[[int], float]) -> tuple[int, ...]:
    """Without the narrow ones that take longer than the next: there are kernels that are slower
    for fewer rows (fp32 on Zen 3: a block's products 1.4 ms at 2 rows, 1.0 at 4)."""
    while len(widths) > 1 and time_s(widths[0]) > time_s(widths[1]):
        widths = widths[1:]
    return widths


def block_time_s(
    block: Block, rotary: Rotary, slot: Tensor, rows: Tensor, numerics: Numerics
) -> float:
    """Of one row, the others of the tile being padding."""
    slot = slot[:, :, :KEY_BLOCK]
    (tile,) = tiles_of([Run(0, slot.shape[2] - 1, 1)], numerics)
    rotary.fill(tile)
    hidden = tile.take(rows[:1])
    return _shortest_s(lambda: block.run(hidden, tile, [slot]))


def head_time_s(head: Head, rows: Tensor) -> float:
    return _shortest_s(lambda: head.logits(rows))


def _shortest_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(TIMINGS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def head_widths(head: Head, rows: Tensor, tile_rows: int) -> tuple[int, ...]:
    def agrees(width: int) -> bool:
        wide = head.logits(rows[:width])
        return all(torch.equal(alone(row), wide[row]) for row in _sample(width))

    def alone(row: int) -> Tensor:
        tile = rows.new_zeros((tile_rows, rows.shape[1]))
        tile[0] = rows[row]
        return head.logits(tile)[0]

    return tuple(width for width in ladder(tile_rows, HEAD_TILE_ROWS_MAX) if agrees(width))


def _sample(width: int) -> list[int]:
    return sorted({0, 1 % width, width // 3, width // 2, width - 1})
