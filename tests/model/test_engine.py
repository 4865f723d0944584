"""The engine's bookkeeping, its two kinds of block, its profile, its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import PROMPT, Chain, opened, request, save_model, shard

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import RowGroup
from edgeshard_p2p.model import engine as engine_module
from edgeshard_p2p.model.engine import Engine
from edgeshard_p2p.model.errors import EngineError
from edgeshard_p2p.model.profiler import DECODE_ROWS, measure

PathOf = Callable[[str], Path]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tile_rows", [0, 2])
def test_fused_equals_generic(
    model_path: PathOf, family: str, tile_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(model_path(family))
    blocks = UnitRange(1, checkpoint.spec.head_unit)
    groups = [RowGroup(request(0), 0, 40), RowGroup(request(1), 0, 3)]
    hidden = torch.randn(43, 64, generator=torch.Generator().manual_seed(0))
    results, tokens = [], []
    for is_fused in (True, False):
        monkeypatch.setattr(engine_module, "can_fuse", lambda _, is_fused=is_fused: is_fused)
        engine = shard(checkpoint, blocks, tile_rows=tile_rows)
        for group in groups:
            engine.open(group.key)
        result = engine.forward(blocks, groups, hidden).hidden
        assert result is not None
        results.append(result)
        tokens.append(Chain(checkpoint, (3,), tile_rows=tile_rows).generate(PROMPT, 30))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    assert tokens[0] == tokens[1]


def test_parts_of_a_stage_may_run_by_themselves(model_path: PathOf) -> None:
    checkpoint = opened(model_path("llama"))
    engine = shard(checkpoint, UnitRange(0, 8))
    ids = torch.tensor(PROMPT)
    for sequence in (0, 1):
        engine.open(request(sequence))
    group = RowGroup(request(0), 0, len(PROMPT), Sampling())
    whole = engine.forward(UnitRange(0, 8), [group], ids).tokens
    other = RowGroup(request(1), 0, len(PROMPT), Sampling())
    hidden = engine.forward(UnitRange(0, 3), [other], ids).hidden
    assert hidden is not None
    assert hidden.is_contiguous()
    assert [engine.cached_len(request(1), unit) for unit in (1, 2, 3)] == [37, 37, 0]
    assert engine.forward(UnitRange(3, 8), [other], hidden).tokens == whole


def test_a_dropped_block_is_refilled_from_hidden_states(model_path: PathOf) -> None:
    checkpoint = opened(model_path("llama"))
    engine = shard(checkpoint, UnitRange(2, 5), tile_rows=2)
    engine.open(request(0))
    hidden = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    engine.forward(UnitRange(2, 5), [RowGroup(request(0), 0, 20)], hidden)
    lost = engine.cached(request(0), 3).clone()
    into_3 = engine_output(engine, UnitRange(2, 3), hidden)
    engine.drop([3])
    assert engine.held() == (2, 4)
    engine.load(3)
    engine.reserve("stage", [2, 3, 4], 4, 192)
    engine.forward(UnitRange(3, 4), [RowGroup(request(0), 0, 20)], into_3)
    assert torch.equal(engine.cached(request(0), 3), lost)
    assert engine.cached_len(request(0), 4) == 20


def engine_output(engine: Engine, units: UnitRange, hidden: torch.Tensor) -> torch.Tensor:
    engine.open(request(9))
    result = engine.forward(units, [RowGroup(request(9), 0, len(hidden))], hidden).hidden
    engine.release(request(9))
    assert result is not None
    return result


def test_wrong_bookkeeping_is_named(model_path: PathOf) -> None:
    engine = shard(opened(model_path("llama")), UnitRange(1, 4))
    engine.open(request(0))
    hidden = torch.zeros(5, 64)
    units = UnitRange(1, 4)
    engine.forward(UnitRange(1, 3), [RowGroup(request(0), 0, 5)], hidden)
    with pytest.raises(EngineError, match=r"tester@1#0 block 1: .* position 0, but 5 are cached"):
        engine.forward(units, [RowGroup(request(0), 0, 5)], hidden)
    with pytest.raises(EngineError, match=r"tester@1#0 block 3: .* position 5, but 0 are cached"):
        engine.forward(units, [RowGroup(request(0), 5, 5)], hidden)
    with pytest.raises(EngineError, match=r"units \[4\] are not loaded"):
        engine.forward(UnitRange(1, 5), [RowGroup(request(0), 5, 5)], hidden)
    with pytest.raises(EngineError, match=r"5 rows came for groups of \[4\]"):
        engine.forward(UnitRange(1, 3), [RowGroup(request(0), 5, 4)], hidden)
    with pytest.raises(EngineError, match=r"leaves the context of 192"):
        engine.forward(UnitRange(1, 3), [RowGroup(request(0), 190, 5)], hidden)
    with pytest.raises(EngineError, match=r"context 300 is longer than the model's 256"):
        engine.reserve("stage", [1], 1, 300)
    with pytest.raises(EngineError, match=r"two groups in one pass"):
        engine.forward(UnitRange(1, 3), [RowGroup(request(0), 5, 1)] * 2, hidden[:2])
    with pytest.raises(EngineError, match=r"hidden states are \[5, 64\] torch.bfloat16"):
        engine.forward(UnitRange(1, 3), [RowGroup(request(0), 5, 5)], hidden.bfloat16())
    assert engine.cached_len(request(0), 2) == 5
    assert engine.cached_len(request(0), 3) == 0


@pytest.mark.parametrize("token", [-1, 300])
def test_tokens_outside_the_vocabulary_are_refused(model_path: PathOf, token: int) -> None:
    engine = shard(opened(model_path("qwen3")), UnitRange(0, 8))
    engine.open(request(0))
    with pytest.raises(EngineError, match="token ids are not int64 below 300"):
        engine.forward(UnitRange(0, 8), [RowGroup(request(0), 0, 1)], torch.tensor([token]))


def test_tokens_come_only_where_they_are_asked_for(model_path: PathOf) -> None:
    checkpoint = opened(model_path("llama"))
    chain = Chain(checkpoint, ())
    for sequence in (0, 1, 2):
        chain.open(sequence)
    groups = [
        RowGroup(request(0), 0, 3),
        RowGroup(request(1), 0, 2, Sampling()),
        RowGroup(request(2), 0, 4),
    ]
    tokens = chain.step(groups, PROMPT[:9])
    assert tokens[0] is None
    assert tokens[2] is None
    assert tokens[1] is not None
    silent = RowGroup(request(0), 3, 2)
    assert chain.step([silent], PROMPT[:2]) == (None,)


def test_a_profile_has_every_size_and_leaves_nothing(model_path: PathOf) -> None:
    said: list[str] = []
    engine = Engine(opened(model_path("gemma3_text")), "fp32", 2, "cpu")
    profile = measure(engine, 100, said.append)
    assert tuple(row[0] for row in profile.decode) == DECODE_ROWS
    assert tuple(row[0] for row in profile.prefill) == (32, 100)
    assert all(time > 0 for row in (*profile.decode, *profile.prefill) for time in row)
    assert engine.held() == ()
    assert (engine.weight_bytes(), engine.kv_bytes()) == (0, 0)
    assert len(said) == 3


_LOAD = """
import json, sys
from pathlib import Path
from edgeshard_p2p.model.checkpoint import open_checkpoint
from edgeshard_p2p.model.engine import Engine, use_one_thread

def resident():
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024

use_one_thread()
checkpoint = open_checkpoint(Path(sys.argv[1]), "0" * 64, "wide")
engine = Engine(checkpoint, "fp32", 2, "cpu")
before = resident()
for unit in range(int(sys.argv[2]), int(sys.argv[3])):
    engine.load(unit)
print(json.dumps({"tensors": engine.weight_bytes(), "grown": resident() - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stage_holds_its_own_weights_and_no_more(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    path = save_model(tmp_path, "llama", vocab_size=2000, **sizes)
    spec = opened(path).spec
    whole = sum(spec.unit_params(unit) for unit in range(spec.n_units)) * 4
    held = []
    for start, end in ((0, 5), (5, 9), (9, 14)):
        command = [sys.executable, "-c", _LOAD, str(path), str(start), str(end)]
        child = subprocess.run(command, capture_output=True, text=True, check=True)
        held.append(json.loads(child.stdout))
    for measured in ("tensors", "grown"):
        shares = [stage[measured] / whole for stage in held]
        assert shares[1] <= 0.35, (measured, shares)
        assert max(shares) <= 0.55, (measured, shares)
        assert min(shares) > 0.2, (measured, shares)
