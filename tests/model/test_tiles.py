"""Rows are cut so that each is computed once, at a width that its own place decides."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from edgeshard_p2p.model.kv_cache import KEY_BLOCK
from edgeshard_p2p.model.tiles import (
    QUERY_ROWS,
    TILE_COST_ROWS,
    WIDEST_TILE_ROWS,
    Numerics,
    Run,
    ladder,
    tiles_of,
)

EXACT = Numerics(2, tuple(ladder(2)))
ALONE = Numerics(2)
FAST = Numerics(0)
RUNS = [Run(3, 50, 100), Run(0, 7, 1), Run(1, 0, 130), Run(2, 63, 1), Run(4, 64, 6)]


@pytest.mark.parametrize("numerics", [EXACT, ALONE, FAST, Numerics(2, (2, 16)), Numerics(4, (8,))])
def test_every_row_is_in_one_tile_one_segment_one_cut(numerics: Numerics) -> None:
    expected = [(run.slot, run.position + i) for run in RUNS for i in range(run.rows)]
    tiles = tiles_of(RUNS, numerics)
    stored = [
        (segment.slot, position)
        for tile in tiles
        for segment in tile.segments
        for position in range(segment.position, segment.end_position)
    ]
    assert stored == expected
    attended = [
        (cut.slot, position)
        for tile in tiles
        for cut in tile.cuts
        for position in cut.positions[: cut.stop - cut.start].tolist()
    ]
    assert attended == expected
    assert [p for tile in tiles for p in tile.positions[: tile.rows].tolist()] == [
        position for _, position in expected
    ]


@pytest.mark.parametrize("numerics", [EXACT, ALONE])
def test_exact_reads_as_many_keys_as_the_row_alone_would(numerics: Numerics) -> None:
    for tile in tiles_of(RUNS, numerics):
        for cut in tile.cuts:
            rows = cut.positions.tolist()
            assert {(position // KEY_BLOCK + 1) * KEY_BLOCK for position in rows} == {cut.n_keys}


@pytest.mark.parametrize("numerics", [EXACT, ALONE])
def test_exact_uses_only_widths_that_agree(numerics: Numerics) -> None:
    widths = numerics.widths or (numerics.tile_rows,)
    for rows in range(1, 300):
        pieces = numerics.split(rows)
        assert {width for _, _, width in pieces} <= set(widths)
        assert sum(stop - start for start, stop, _ in pieces) == rows
        assert all(stop - start <= width for start, stop, width in pieces)
        if not numerics.widths:
            assert all(stop - start == 1 for start, stop, _ in pieces)


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_queries_of_a_cut_are_never_too_few(group: int) -> None:
    numerics = Numerics(2, tuple(ladder(2)), group)
    for tile in tiles_of(RUNS, numerics):
        for cut in tile.cuts:
            assert len(cut.positions) * group >= QUERY_ROWS
            assert (cut.index is None) == (cut.start == 0 and len(cut.positions) == tile.width)


def test_tiles_are_as_cheap_as_any() -> None:
    def cost(widths: tuple[int, ...]) -> int:
        return sum(width + TILE_COST_ROWS for width in widths)

    for rows in range(1, 71):
        chosen = tuple(width for _, _, width in EXACT.split(rows))
        assert chosen == tuple(sorted(chosen, reverse=True))
        others = (
            widths
            for n in range(1, 4)
            for widths in combinations_with_replacement(EXACT.widths, n)
            if sum(widths) >= rows
        )
        assert cost(chosen) == min(map(cost, others)), rows


@pytest.mark.parametrize(
    ("rows", "widths"),
    [(1, (2,)), (5, (8,)), (9, (16,)), (13, (16,)), (33, (32, 2)), (66, (64, 2)), (130, (128, 2))],
)
def test_rows_share_a_reading_of_the_weights(rows: int, widths: tuple[int, ...]) -> None:
    assert tuple(width for _, _, width in EXACT.split(rows)) == widths


def test_fast_tiles_are_as_wide_as_there_are_rows() -> None:
    assert FAST.split(300) == ((0, 128, 128), (128, 256, 128), (256, 300, 44))
    assert max(EXACT.widths) == WIDEST_TILE_ROWS
