"""Tiny random models of every family, and shards of them run as peers would."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers

from edgeshard_p2p.core.ids import PeerId, RequestId, UnitRange
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import CacheKey, RowGroup
from edgeshard_p2p.model.checkpoint import Checkpoint, open_checkpoint
from edgeshard_p2p.model.engine import Engine

N_BLOCKS = 6
CONTEXT = 192
GREEDY = Sampling()
PROMPT = [(7 * i * i + 3 * i + 11) % 299 for i in range(37)]

_LLAMA: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
_GEMMA = {**_LLAMA, "head_dim": 32, "sliding_window": 24, "query_pre_attn_scalar": 20}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "attention_bias": True, "tie_word_embeddings": False},
    "mistral": {**_LLAMA, "sliding_window": 24, "tie_word_embeddings": False},
    "qwen2": {
        **_LLAMA,
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 3,
        "tie_word_embeddings": True,
    },
    "qwen3": {**_LLAMA, "head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
    "gemma3_text": {
        **_GEMMA,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    },
    "phi3": {**_LLAMA, "sliding_window": 24, "tie_word_embeddings": False},
    "gpt2": {
        "vocab_size": 300,
        "n_embd": 64,
        "n_layer": N_BLOCKS,
        "n_head": 4,
        "n_positions": 256,
    },
    "gpt_neox": {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": N_BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "rotary_pct": 0.5,
        "tie_word_embeddings": False,
    },
}


def save_model(path: Path, family: str, **overrides: Any) -> Path:
    """A random model whose logits are far apart and whose every tensor matters."""
    settings = {**CONFIGS[family], **overrides}
    config = transformers.AutoConfig.for_model(family, initializer_range=0.2, **settings)
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # A large embedding that is also the head says each token again and again.
        model.get_input_embeddings().weight.mul_(0.2)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases, which start as ones and zeros
                scale = 0.05 if name.endswith("bias") else 0.2
                parameter.add_(torch.randn_like(parameter) * scale)
    model.save_pretrained(path, safe_serialization=True)
    return path


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(path, "0" * 64, "tiny")


def transformers_greedy(path: Path, prompt: list[int], n_tokens: int) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=n_tokens, do_sample=False, pad_token_id=0
    )
    return list(out[0, len(prompt) :].tolist())


def request(sequence: int) -> CacheKey:
    return CacheKey(RequestId(PeerId("tester", 1), sequence), "stage")


def ranges(n_units: int, *cuts: int) -> list[UnitRange]:
    edges = [0, *cuts, n_units]
    return [UnitRange(a, b) for a, b in pairwise(edges)]


def shard(
    checkpoint: Checkpoint, units: UnitRange, dtype: str = "fp32", tile_rows: int = 0
) -> Engine:
    engine = Engine(checkpoint, dtype, tile_rows, "cpu")
    for unit in units:
        engine.load(unit)
    engine.reserve("stage", units, 4, CONTEXT)
    return engine


class Chain:
    """Shards that pass hidden states on, the last one drawing tokens."""

    def __init__(
        self, checkpoint: Checkpoint, cuts: Sequence[int], dtype: str = "fp32", tile_rows: int = 0
    ) -> None:
        self.parts = [
            (shard(checkpoint, units, dtype, tile_rows), units)
            for units in ranges(checkpoint.spec.n_units, *cuts)
        ]

    def open(self, sequence: int) -> None:
        for engine, _ in self.parts:
            engine.open(request(sequence))

    def step(self, groups: list[RowGroup], ids: list[int]) -> tuple[int | None, ...]:
        rows = torch.tensor(ids)
        for engine, units in self.parts:
            result = engine.forward(units, groups, rows)
            if result.hidden is not None:
                rows = result.hidden
        return result.tokens

    def generate(
        self, prompt: list[int], n_tokens: int, sampling: Sampling = GREEDY, chunk: int = 1000
    ) -> list[int]:
        self.open(1)
        for start in range(0, len(prompt), chunk):
            token = self._next(start, prompt[start : start + chunk], sampling)
        tokens = [token]
        for position in range(len(prompt), len(prompt) + n_tokens - 1):
            tokens.append(self._next(position, [tokens[-1]], sampling))
        return tokens

    def _next(self, position: int, ids: list[int], sampling: Sampling) -> int:
        (token,) = self.step([RowGroup(request(1), position, len(ids), sampling)], ids)
        assert token is not None
        return token
