"""The block of llama-like families in few calls: llama, mistral, qwen2, qwen3.

The same arithmetic as transformers' decoder layer, with the query, key and value matrices as one
and the gate and up matrices as one.  At one row a call costs about as much as the work in it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeshard_p2p.model import families
from edgeshard_p2p.model.attention import View, attend, store_pairs
from edgeshard_p2p.model.checkpoint import Checkpoint, Reader
from edgeshard_p2p.model.linear import Linear, n_bytes
from edgeshard_p2p.model.tiles import Tile


def can_fuse(checkpoint: Checkpoint) -> bool:
    config = checkpoint.config
    return (
        checkpoint.family.has_fused_block
        and config.hidden_act == "silu"
        and not getattr(config, "mlp_bias", False)
        and families.rotary_kind(config, 0) is None
    )


class FusedBlock:
    def __init__(
        self, checkpoint: Checkpoint, read: Reader, layer: int, dtype: torch.dtype
    ) -> None:
        config = checkpoint.config
        self._heads, self._kv_heads, self._head_dim = families.kv_shape(config)
        self._window = families.window_of(checkpoint.family, config, layer)
        self._scale = self._head_dim**-0.5
        self._eps: float = config.rms_norm_eps
        part = _Part(checkpoint, read, families.block_prefix(checkpoint.family, layer), dtype)
        self._input_norm = part.tensor("input_layernorm.weight")
        self._mlp_norm = part.tensor("post_attention_layernorm.weight")
        self._query_norm = part.optional("self_attn.q_norm.weight")
        self._key_norm = part.optional("self_attn.k_norm.weight")
        self._qkv = part.linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self._out = part.linear("self_attn.o_proj")
        self._gate_up = part.linear("mlp.gate_proj", "mlp.up_proj")
        self._down = part.linear("mlp.down_proj")
        self._inner: int = config.intermediate_size
        norms = (self._input_norm, self._mlp_norm, self._query_norm, self._key_norm)
        self.n_bytes = n_bytes(norm for norm in norms if norm is not None) + sum(
            linear.n_bytes for linear in (self._qkv, self._out, self._gate_up, self._down)
        )

    def run(self, hidden: Tensor, tile: Tile, slots: list[Tensor]) -> Tensor:
        view = View(tile, slots, self._window)
        heads = self._qkv(self._norm(hidden, self._input_norm)).view(
            hidden.shape[0], self._heads + 2 * self._kv_heads, self._head_dim
        )
        self._rotate(heads, tile)
        pairs = heads[:, self._heads :].view(-1, 2, self._kv_heads, self._head_dim)
        store_pairs(pairs, view)
        attended = attend(heads[:, : self._heads], view, self._scale)
        hidden = self._out.add_to(hidden, attended)
        both = self._gate_up(self._norm(hidden, self._mlp_norm))
        inner = F.silu(both[:, : self._inner]).mul_(both[:, self._inner :])
        return self._down.add_to(hidden, inner)

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(rows, weight.shape, weight, self._eps)

    def _rotate(self, heads: Tensor, tile: Tile) -> None:
        """Norms (qwen3) and rotates queries and keys in place."""
        n_rotated = self._heads + self._kv_heads
        if self._query_norm is not None and self._key_norm is not None:
            queries, keys = heads[:, : self._heads], heads[:, self._heads : n_rotated]
            queries.copy_(self._norm(queries, self._query_norm))
            keys.copy_(self._norm(keys, self._key_norm))
        cos, signed_sin = tile.rotary[None]
        rotated = heads[:, :n_rotated]
        swapped = rotated.roll(self._head_dim // 2, -1).mul_(signed_sin[:, None])
        rotated.mul_(cos[:, None]).add_(swapped)


class _Part:
    """Reads the tensors below one prefix, as private copies."""

    def __init__(
        self, checkpoint: Checkpoint, read: Reader, prefix: str, dtype: torch.dtype
    ) -> None:
        self._names = frozenset(checkpoint.names())
        self._read = read
        self._prefix = prefix
        self._dtype = dtype

    def tensor(self, name: str) -> Tensor:
        return self._read(f"{self._prefix}{name}").to(self._dtype, copy=True)

    def optional(self, name: str) -> Tensor | None:
        return self.tensor(name) if f"{self._prefix}{name}" in self._names else None

    def linear(self, *names: str) -> Linear:
        """One matrix from several that take the same input."""
        weights = [self._read(f"{self._prefix}{name}.weight").to(self._dtype) for name in names]
        biases = [self.optional(f"{name}.bias") for name in names]
        present = [bias for bias in biases if bias is not None]
        # qwen2 has them for q, k and v alike, llama for all or none.
        bias = torch.cat(present) if len(present) == len(names) else None
        return Linear(weights[0] if len(weights) == 1 else torch.cat(weights), bias)
