"""Tile widths that were found once are used again, by another engine and from disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import CONTEXT, opened, shard

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.model import exactness, memo, widths
from edgeshard_p2p.model.engine import Engine
from edgeshard_p2p.model.widths import Widths

BLOCKS, HEAD = UnitRange(1, 3), UnitRange(7, 8)


def test_engine_told_the_widths_does_not_try_them(
    model_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(model_path("llama"))
    assert shard(checkpoint, BLOCKS, tile_rows=2).widths().head is None
    found = Widths(
        shard(checkpoint, BLOCKS, tile_rows=2).widths().block,
        shard(checkpoint, HEAD, tile_rows=2).widths().head,
    )
    assert found.block
    assert found.head
    for check in ("block_widths", "head_widths"):
        monkeypatch.delattr(exactness, check)
    engine = Engine(checkpoint, "fp32", 2, "cpu")
    engine.use_widths(found)
    for unit in (*BLOCKS, *HEAD):
        engine.load(unit)
    engine.reserve("stage", BLOCKS, 1, CONTEXT)
    assert engine.widths() == found
    assert engine.exact_widths() == found.block


def test_fast_has_no_use_for_them(model_path: Callable[[str], Path]) -> None:
    engine = Engine(opened(model_path("llama")), "fp32", 0, "cpu")
    engine.use_widths(Widths((2,), (2,)))
    assert engine.exact_widths() == ()


def test_file_is_of_one_model_dtype_and_tile(tmp_path: Path) -> None:
    file = widths.file_of(tmp_path / "kernels", "a" * 64, "fp32", 2)
    assert widths.read(file) == Widths()
    memo.keep(file, Widths((2, 4), None))
    assert widths.read(file) == Widths((2, 4), None)
    others = [("b" * 64, "fp32", 2), ("a" * 64, "bf16", 2), ("a" * 64, "fp32", 4)]
    assert file not in {widths.file_of(tmp_path / "kernels", *other) for other in others}
    for damaged in (b"", b'{"block":"no"}', b"\xff"):
        file.write_bytes(damaged)
        assert widths.read(file) == Widths()


def test_widths_that_cannot_be_kept_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("in the way")
    memo.keep(widths.file_of(tmp_path / "kernels", "a" * 64, "fp32", 2), Widths((2,), (2,)))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({2: 1.0, 4: 2.0, 8: 3.0}, (2, 4, 8)),
        ({2: 1.4, 4: 1.0, 8: 3.0}, (4, 8)),
        ({2: 1.4, 4: 1.3, 8: 1.2}, (8,)),
        ({2: 1.0, 4: 1.0, 8: 0.5}, (2, 4, 8)),
    ],
)
def test_narrow_tiles_that_take_longer_are_not_used(
    times: dict[int, float], expected: tuple[int, ...]
) -> None:
    assert exactness.worth_using((2, 4, 8), times.__getitem__) == expected
    assert exactness.worth_using((), times.__getitem__) == ()
