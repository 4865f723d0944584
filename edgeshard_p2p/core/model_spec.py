"""A model in numbers: what each unit weighs and what travels between units.

Units: 0 is the embedding, 1..N the blocks, N + 1 the final norm and the head.
Knows nothing of tensors or files.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from edgeshard_p2p.core.ids import Count

DTYPE_BYTES = {"fp32": 4, "bf16": 2}
"""What peers compute in."""
PLANNED_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4}
"""Bits per weight of what can be planned.  Weights quantised to 8 and 4 bits are computed with,
cached and sent as 16 bits."""

DtypeName = Annotated[str, Meta(pattern=r"^(fp32|bf16|fp16|int8|int4)\Z")]


def weight_bytes_of(params: int, dtype: str) -> int:
    return -(-params * PLANNED_BITS[dtype] // 8)


def activation_bytes(dtype: str) -> int:
    """Bytes of one element of hidden states, keys and values."""
    return max(2, PLANNED_BITS[dtype] // 8)


class ModelSpec(Struct, frozen=True):
    """Parameters are counts of elements; bytes follow from the dtype of the swarm."""

    name: Annotated[str, Meta(max_length=200)]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """Manifest digest: SHA-256 over the names and SHA-256 of the model's files."""
    family: Annotated[str, Meta(max_length=40)]
    hidden_size: Annotated[int, Meta(ge=1, le=2**20)]
    vocab_size: Annotated[int, Meta(ge=1, le=2**24)]
    max_context: Annotated[int, Meta(ge=1, le=2**24)]
    embedding_params: Count
    block_params: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=1024)]
    head_params: Count
    """Final norm and head matrix, the matrix counted even where it is tied."""
    tied_params: Count
    """The part of ``head_params`` that is the embedding's own matrix; 0 where not tied."""
    kv_width: Count
    """Elements of K and V together that one token adds in one block."""

    @property
    def n_blocks(self) -> int:
        return len(self.block_params)

    @property
    def n_units(self) -> int:
        return len(self.block_params) + 2

    @property
    def head_unit(self) -> int:
        return len(self.block_params) + 1

    def unit_params(self, unit: int) -> int:
        if unit == 0:
            return self.embedding_params
        if unit == self.head_unit:
            return self.head_params
        return self.block_params[unit - 1]

    def is_block(self, unit: int) -> bool:
        return 0 < unit < self.head_unit

    def kv_bytes_per_token(self, dtype: str) -> int:
        """KV bytes that one token adds in one block."""
        return self.kv_width * activation_bytes(dtype)

    def hidden_bytes(self, dtype: str) -> int:
        """Bytes of one row of hidden states on the wire."""
        return self.hidden_size * activation_bytes(dtype)
