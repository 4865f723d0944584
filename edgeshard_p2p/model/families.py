"""Where each family of models keeps its parts: the one place that knows.

A causal language model of transformers is a decoder (embedding, blocks, norm, rotary embedding)
and a head.  The families differ in what these are called, in which blocks look only at a window,
and in little else.  Knows nothing of files and runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeshard_p2p.model.errors import ModelError

HEAD = "lm_head"

ROPE_TYPES = frozenset({"default", "linear", "llama3", "longrope", "yarn"})
"""Rotary frequencies that depend on the position alone; with `dynamic` they depend on the longest
sequence in the batch, so that a row would feel its neighbours."""


@dataclass(frozen=True)
class Family:
    decoder: str
    embedding: str
    norm: str
    blocks: str = "layers"
    positions: str | None = None
    """A table of learned positions, added to the embedding (GPT-2)."""
    window_everywhere: bool = False
    """`sliding_window` holds for all blocks where the config names no type per block."""
    has_fused_block: bool = False
    head_in_file: str = HEAD


FAMILIES = {
    "gemma2": Family("model", "embed_tokens", "norm"),
    "gemma3_text": Family("model", "embed_tokens", "norm"),
    "gpt2": Family("transformer", "wte", "ln_f", blocks="h", positions="wpe"),
    "gpt_neox": Family("gpt_neox", "embed_in", "final_layer_norm", head_in_file="embed_out"),
    "llama": Family("model", "embed_tokens", "norm", has_fused_block=True),
    "mistral": Family(
        "model", "embed_tokens", "norm", window_everywhere=True, has_fused_block=True
    ),
    "phi3": Family("model", "embed_tokens", "norm", window_everywhere=True),
    "qwen2": Family("model", "embed_tokens", "norm", has_fused_block=True),
    "qwen3": Family("model", "embed_tokens", "norm", has_fused_block=True),
}

_MUST_BE_UNSET = (
    "quantization_config",
    "add_cross_attention",
    "use_bidirectional_attention",
    "num_local_experts",
)


def family_of(config: Any) -> Family:
    """The family of a config; what it asks for beyond what we compute is refused by name."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"family {config.model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    for name in _MUST_BE_UNSET:
        if getattr(config, name, None):
            raise ModelError(f"config.json sets {name}, which is not supported; convert the model")
    for rope_type in _rope_types(config):
        if rope_type not in ROPE_TYPES:
            raise ModelError(
                f"rope type {rope_type!r} is not supported; supported: "
                f"{', '.join(sorted(ROPE_TYPES))}"
            )
    for kind in set(getattr(config, "layer_types", None) or ()):
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(f"layer type {kind!r} in config.json is not supported")
    return family


def _rope_types(config: Any) -> list[str]:
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return [entry.get("rope_type", "default") for entry in nested or [rope]]


def max_context(config: Any) -> int:
    """`longrope` changes all frequencies, those of cached keys too, where a sequence outgrows the
    length trained first; we stop there."""
    longest: int = config.max_position_embeddings
    if "longrope" in _rope_types(config):
        return min(longest, config.rope_parameters["original_max_position_embeddings"])
    return longest


def rotary_kind(config: Any, layer: int) -> str | None:
    """Which of several rotary embeddings block ``layer`` uses; None where there is one."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None)
    return kinds[layer] if kinds and isinstance(rope.get(kinds[layer]), dict) else None


def window_of(family: Family, config: Any, layer: int) -> int | None:
    """How many positions back, itself included, a row of block ``layer`` sees; None for all."""
    kinds = getattr(config, "layer_types", None)
    is_windowed = kinds[layer] == "sliding_attention" if kinds else family.window_everywhere
    return getattr(config, "sliding_window", None) if is_windowed else None


def kv_shape(config: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads, and the size of a head."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def decoder_of(family: Family, model: nn.Module) -> nn.Module:
    return model.get_submodule(family.decoder)


def block_prefix(family: Family, layer: int) -> str:
    return f"{family.decoder}.{family.blocks}.{layer}."


def norm_prefix(family: Family) -> str:
    return f"{family.decoder}.{family.norm}."


def embedding_name(family: Family) -> str:
    return f"{family.decoder}.{family.embedding}.weight"


def head_name(family: Family, config: Any) -> str:
    return embedding_name(family) if config.tie_word_embeddings else f"{HEAD}.weight"


def names_in_file(family: Family, name: str) -> tuple[str, ...]:
    """What a file may call the tensor ``name``: as the model does; without the decoder's name,
    as in files of the bare decoder (GPT-2's first ones); or by an older name of the head."""
    head = name.replace(f"{HEAD}.", f"{family.head_in_file}.", 1)
    return name, name.removeprefix(f"{family.decoder}."), head


def positions_name(family: Family) -> str | None:
    return f"{family.decoder}.{family.positions}.weight" if family.positions else None
