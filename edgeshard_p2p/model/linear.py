"""Matrix products with weights that do not change: oneDNN's packed layout where there is one.

Packed weights are read about twice as fast at one row as plain ones are by the default kernel
(SmolLM2-135M, fp32, Zen 5: 12 ms against 23 ms for the 120 products of a token), and the bits of
a row are the same for every count of rows from 2 on, up to 512, at every shape tried.  Nothing
here relies on that: see `tiles`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TABLE_ROWS = 1024
"""Rows of one packed piece of a table: 0.15 ms to look one row up, 4 us a piece to multiply."""


def has_packed(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs and multiplies weights of this dtype here."""
    if not torch._C._has_mkldnn:
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


def _pack(weight: Tensor) -> Tensor:
    if has_packed(weight.dtype):
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        return packed
    return weight.clone()


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.is_mkldnn:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


class Linear(nn.Module):
    """`nn.Linear` without gradients over packed weights; ``weight`` is [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._weight = _pack(weight)
        self._bias = None if bias is None else bias.clone()
        self.n_bytes = n_bytes([weight, *([] if bias is None else [bias])])

    def forward(self, x: Tensor) -> Tensor:
        return _multiply(x, self._weight, self._bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual`` + the product, in one kernel where there is one."""
        if self._weight.is_mkldnn:
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._weight, self._bias, "add"
            )
            return out
        return residual + F.linear(x, self._weight, self._bias)


class Table:
    """A matrix that is looked up by row (embedding) or multiplied with (head), or both.

    Where embedding and head are tied and on one device, it is held once.  Packed, in pieces: a
    look-up unpacks the row's piece, which costs less than multiplying with a plain matrix would.
    """

    def __init__(self, weight: Tensor) -> None:
        self._plain: Tensor | None = weight.clone()
        self._pieces: list[Tensor] = []
        self.n_bytes = n_bytes([weight])

    def pack(self) -> None:
        """Makes it ready to be multiplied with."""
        if self._plain is not None:
            self._pieces = [_pack(piece) for piece in torch.split(self._plain, TABLE_ROWS)]
            self._plain = None

    def rows(self, ids: Tensor) -> Tensor:
        if self._plain is not None:
            return F.embedding(ids, self._plain)
        wanted = ids.tolist()
        pieces = {piece: _dense(self._pieces[piece]) for piece in {i // TABLE_ROWS for i in wanted}}
        return torch.stack([pieces[i // TABLE_ROWS][i % TABLE_ROWS] for i in wanted])

    def multiply(self, x: Tensor) -> Tensor:
        """``x`` times the transpose: [rows, vocabulary]."""
        return torch.cat([_multiply(x, piece, None) for piece in self._pieces], dim=1)


def _dense(piece: Tensor) -> Tensor:
    return piece.to_dense() if piece.is_mkldnn else piece


def n_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
