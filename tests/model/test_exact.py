"""In `exact` a row's bits do not depend on its company, on chunks, or on being run again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import CONFIGS, CONTEXT, opened, request, save_model
from torch import Tensor

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import RowGroup
from edgeshard_p2p.model import exactness
from edgeshard_p2p.model.checkpoint import Checkpoint
from edgeshard_p2p.model.engine import Engine, rows_are_exact
from edgeshard_p2p.model.tiles import EXACT_TILE_ROWS

PathOf = Callable[[str], Path]
IDS = [(31 * i * i + 17 * i) % 299 for i in range(150)]


class Lab:
    """One engine with all units, which runs rows and shows what they left behind."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: str, tile_rows: int = EXACT_TILE_ROWS
    ) -> None:
        self.units = UnitRange(0, checkpoint.spec.n_units)
        self.blocks = range(1, checkpoint.spec.head_unit)
        self.engine = Engine(checkpoint, dtype, tile_rows, "cpu")
        for unit in self.units:
            self.engine.load(unit)
        self.engine.reserve("stage", self.units, 4, CONTEXT)

    def run(self, *parts: tuple[int, int, int]) -> Tensor:
        """(sequence, from, to) of IDS each, in one pass; the logits of each last row."""
        groups = [RowGroup(request(s), start, stop - start) for s, start, stop in parts]
        ids = [(IDS[i] + 13 * s) % 299 for s, start, stop in parts for i in range(start, stop)]
        for sequence, start, _ in parts:
            if start == 0:
                self.engine.open(request(sequence))
        logits = self.engine.logits(self.units, groups, torch.tensor(ids))
        for group in groups:
            for block in self.blocks:
                assert self.engine.cached_len(request(group.key.request.sequence), block) == (
                    group.position + group.rows
                )
        return logits

    def kv(self, sequence: int) -> list[Tensor]:
        return [self.engine.cached(request(sequence), block).clone() for block in self.blocks]


def lone(lab: Lab, length: int = 100) -> tuple[Tensor, list[Tensor]]:
    """Sequence 0 alone, every row by itself: what all else is compared with."""
    logits = torch.cat([lab.run((0, i, i + 1)) for i in range(length)])
    result = logits, lab.kv(0)
    lab.engine.release(request(0))
    return result


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", CONFIGS)
def test_bits_do_not_depend_on_chunks_or_company(
    model_path: PathOf, family: str, dtype: str
) -> None:
    lab = Lab(opened(model_path(family)), dtype)
    logits, kv = lone(lab)
    assert torch.isfinite(logits).all()

    for chunks in ((100,), (1, 62, 37), (64, 36), (7, 20, 33, 40)):
        start = 0
        for chunk in chunks:
            last = lab.run((0, start, start + chunk))
            start += chunk
            assert torch.equal(last[0], logits[start - 1]), chunks
        assert same(lab.kv(0), kv), chunks
        lab.engine.release(request(0))

    lab.run((1, 0, 5), (2, 0, 70))
    lab.run((1, 5, 6), (0, 0, 41), (2, 70, 71))
    lab.run((2, 71, 90), (3, 0, 3), (0, 41, 58))
    for i in range(58, 100):
        mixed = lab.run((3, 3 + i - 58, 4 + i - 58), (0, i, i + 1), (1, 6 + i - 58, 7 + i - 58))
        assert torch.equal(mixed[1], logits[i])
    assert same(lab.kv(0), kv)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_bits_are_the_same_when_run_again(model_path: PathOf, dtype: str) -> None:
    lab = Lab(opened(model_path("llama")), dtype)
    logits, kv = lone(lab)
    lab.run((0, 0, 100))
    for block in lab.blocks:
        lab.engine.truncate(request(0), block, 23)
    assert torch.equal(lab.run((0, 23, 100))[0], logits[-1])
    assert same(lab.kv(0), kv)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_wide_tiles_are_only_a_shortcut(
    model_path: PathOf, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine where no two widths agree runs row by row, and gets the same bits."""
    checkpoint = opened(model_path("qwen3"))
    wide = Lab(checkpoint, dtype)
    logits = wide.run((0, 0, 100), (1, 0, 9))
    monkeypatch.setattr(exactness, "block_widths", lambda *_: ())
    monkeypatch.setattr(exactness, "head_widths", lambda *_: ())
    alone = Lab(checkpoint, dtype)
    assert not rows_are_exact(alone.engine)
    assert torch.equal(alone.run((0, 0, 100), (1, 0, 9)), logits)
    assert same(alone.kv(0), wide.kv(0))


@pytest.mark.parametrize(
    "overrides", [{"intermediate_size": 91}, {"hidden_size": 56, "head_dim": 14}]
)
def test_odd_sizes_are_exact_too(tmp_path: Path, overrides: dict[str, int]) -> None:
    """Where a row ends within a vector, its last elements may take another path."""
    path = save_model(tmp_path, "llama", num_hidden_layers=2, **overrides)
    lab = Lab(opened(path), "fp32")
    logits, kv = lone(lab)
    assert torch.equal(lab.run((0, 0, 100))[0], logits[-1])
    assert same(lab.kv(0), kv)


def test_the_check_refuses_widths_that_disagree(model_path: PathOf) -> None:
    checkpoint = opened(model_path("llama"))
    engine = Engine(checkpoint, "fp32", EXACT_TILE_ROWS, "cpu")
    engine.load(1)
    engine.reserve("stage", [1], 1, CONTEXT)
    assert rows_are_exact(engine)
    real = exactness.block_widths

    class Disagreeing:
        """One bit off in the last row of tiles of eight."""

        n_bytes = 0

        def run(self, hidden: Tensor, tile: object, slots: list[Tensor]) -> Tensor:
            out = hidden * 2
            if len(out) == 8:
                out[-1, 3] = torch.nextafter(out[-1, 3], torch.tensor(torch.inf))
            return out

    class NoRotary:
        def fill(self, tile: object) -> None: ...

    slot = exactness.scratch_slot(2, 16, 256, torch.float32)
    rows = exactness.random_rows(64, torch.float32)
    widths = real(Disagreeing(), NoRotary(), slot, rows, engine.numerics)  # type: ignore[arg-type]
    assert widths == (2, 4, 16, 32, 64, 128)


def test_seeded_sampling_is_the_same_in_company(model_path: PathOf) -> None:
    lab = Lab(opened(model_path("llama")), "fp32")
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=3)

    def draw(*sequences: int) -> int | None:
        groups = [RowGroup(request(s), 0, 20, sampling) for s in sequences]
        for s in sequences:
            lab.engine.open(request(s))
        ids = [(i + 50 * s) % 299 for s in sequences for i in range(20)]
        tokens = lab.engine.forward(lab.units, groups, torch.tensor(ids)).tokens
        for s in sequences:
            lab.engine.release(request(s))
        return tokens[sequences.index(1)]

    assert draw(1) == draw(1, 2) == draw(0, 1, 2, 3) == draw(3, 1)
