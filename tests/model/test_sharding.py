"""Sharded greedy output is transformers' own, for every family and every cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from tiny import (
    CONFIGS,
    N_BLOCKS,
    PROMPT,
    Chain,
    opened,
    request,
    save_model,
    shard,
    transformers_greedy,
)
from transformers import AutoModelForCausalLM

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import RowGroup
from edgeshard_p2p.model.fused import can_fuse
from edgeshard_p2p.model.tiles import EXACT_TILE_ROWS

PathOf = Callable[[str], Path]
N_UNITS = N_BLOCKS + 2
CUTS = [cuts for n in range(3) for cuts in combinations(range(1, N_UNITS), n)]


@pytest.mark.parametrize("family", CONFIGS)
def test_every_cut_gives_transformers_tokens(model_path: PathOf, family: str) -> None:
    expected = transformers_greedy(model_path(family), PROMPT, 8)
    checkpoint = opened(model_path(family))
    assert len(CUTS) == 1 + 7 + 21
    assert len(set(expected)) > 2
    for cuts in CUTS:
        assert Chain(checkpoint, cuts).generate(PROMPT, 8) == expected, f"cut at {cuts}"


@pytest.mark.parametrize("family", CONFIGS)
def test_exact_gives_transformers_tokens(model_path: PathOf, family: str) -> None:
    expected = transformers_greedy(model_path(family), PROMPT, 40)
    chain = Chain(opened(model_path(family)), (3,), tile_rows=EXACT_TILE_ROWS)
    assert chain.generate(PROMPT, 40, chunk=16) == expected


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "long_factor": [3.0] * 8, "short_factor": [1.3] * 8}


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("llama", {"rope_type": "linear", "factor": 3.0}),
        ("llama", YARN),
        ("llama", LLAMA3),
        ("gpt_neox", {"rope_type": "linear", "factor": 3.0}),
    ],
)
def test_scaled_rotary_embeddings(tmp_path: Path, family: str, rope: dict[str, object]) -> None:
    path = save_model(tmp_path, family, rope_parameters={"rope_theta": 10_000.0, **rope})
    expected = transformers_greedy(path, PROMPT, 30)
    assert Chain(opened(path), (3,), tile_rows=EXACT_TILE_ROWS).generate(PROMPT, 30) == expected


def test_longrope_is_served_up_to_the_length_trained_first(tmp_path: Path) -> None:
    path = save_model(
        tmp_path,
        "phi3",
        rope_parameters={"rope_theta": 10_000.0, **LONGROPE},
        original_max_position_embeddings=200,
    )
    checkpoint = opened(path)
    assert checkpoint.spec.max_context == 200
    expected = transformers_greedy(path, PROMPT, 30)
    assert Chain(checkpoint, (3,), tile_rows=EXACT_TILE_ROWS).generate(PROMPT, 30) == expected


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_transformers_logits(model_path: PathOf, family: str) -> None:
    """Tokens alone would not show a missing cap on the logits, which keeps their order."""
    model = AutoModelForCausalLM.from_pretrained(model_path(family), dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1]
    engine = shard(opened(model_path(family)), UnitRange(0, N_UNITS), tile_rows=EXACT_TILE_ROWS)
    engine.open(request(0))
    group = RowGroup(request(0), 0, len(PROMPT))
    logits = engine.logits(UnitRange(0, N_UNITS), [group], torch.tensor(PROMPT))
    torch.testing.assert_close(logits[0], expected, rtol=1e-3, atol=1e-3)


def test_who_samples_does_not_matter(model_path: PathOf) -> None:
    checkpoint = opened(model_path("qwen2"))
    sampling = Sampling(temperature=0.9, top_p=0.9, seed=77)
    whole = Chain(checkpoint, (), tile_rows=EXACT_TILE_ROWS).generate(PROMPT, 24, sampling)
    other = Sampling(temperature=0.9, top_p=0.9, seed=78)
    assert whole != Chain(checkpoint, (), tile_rows=EXACT_TILE_ROWS).generate(PROMPT, 24, other)
    for cuts in ((1,), (4,), (7,), (2, 7)):
        chain = Chain(checkpoint, cuts, tile_rows=EXACT_TILE_ROWS)
        assert chain.generate(PROMPT, 24, sampling) == whole


@pytest.mark.parametrize("family", CONFIGS)
def test_units_weigh_what_the_spec_says(model_path: PathOf, family: str) -> None:
    checkpoint = opened(model_path(family))
    spec = checkpoint.spec
    for unit in range(spec.n_units):
        engine = shard(checkpoint, UnitRange(unit, unit + 1))
        assert engine.weight_bytes() == spec.unit_params(unit) * 4
        engine.drop([unit])
        assert engine.weight_bytes() == 0
    whole = shard(checkpoint, UnitRange(0, spec.n_units))
    params = sum(spec.unit_params(unit) for unit in range(spec.n_units)) - spec.tied_params
    assert whole.weight_bytes() == params * 4


@pytest.mark.parametrize("order", [(0, 7), (7, 0)])
def test_a_tied_head_is_held_once_whoever_comes_first(
    model_path: PathOf, order: tuple[int, ...]
) -> None:
    checkpoint = opened(model_path("qwen3"))
    expected = transformers_greedy(model_path("qwen3"), PROMPT, 8)
    chain = Chain(checkpoint, ())
    engine, _ = chain.parts[0]
    whole = engine.weight_bytes()
    engine.drop(order)
    for unit in order:
        engine.load(unit)
    assert engine.weight_bytes() == whole
    assert chain.generate(PROMPT, 8) == expected
    engine.drop([7])
    assert engine.weight_bytes() == whole - checkpoint.spec.head_params * 4 + (
        checkpoint.spec.tied_params * 4
    )


def test_llama_like_families_are_fused(model_path: PathOf) -> None:
    fused = {family for family in CONFIGS if can_fuse(opened(model_path(family)))}
    assert fused == {"llama", "mistral", "qwen2", "qwen3"}
