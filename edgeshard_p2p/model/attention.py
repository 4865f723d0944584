"""Attention of the rows of a tile, each to its own request's keys and values.

Registered with transformers as the attention of every decoder block, which hands over the rows of
many requests as if they were one sequence; what belongs to whom comes along in keyword arguments.
Knows nothing of blocks, rotary embeddings or weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from edgeshard_p2p.model.tiles import Cut, Tile

ATTENTION_NAME = "edgeshard"


@dataclass(frozen=True)
class View:
    """What the attention of one block needs besides queries, keys and values."""

    tile: Tile
    slots: list[Tensor]
    window: int | None


def store(keys: Tensor, values: Tensor, view: View) -> None:
    """Caches the tile's keys and values, each [width, kv_heads, head_dim]."""
    for part in view.tile.segments:
        slot = view.slots[part.slot]
        span = slice(part.position, part.end_position)
        slot[0, :, span] = keys[part.start : part.stop].transpose(0, 1)
        slot[1, :, span] = values[part.start : part.stop].transpose(0, 1)


def store_pairs(pairs: Tensor, view: View) -> None:
    """As `store`, from one tensor [width, 2, kv_heads, head_dim]: half the calls."""
    for part in view.tile.segments:
        slot = view.slots[part.slot]
        rows = pairs[part.start : part.stop].permute(1, 2, 0, 3)
        slot[:, :, part.position : part.end_position] = rows


def attend(queries: Tensor, view: View, scale: float, softcap: float | None = None) -> Tensor:
    """[width, heads, head_dim] to [width, heads x head_dim]; keys and values are stored."""
    cuts = view.tile.cuts
    if len(cuts) == 1 and cuts[0].index is None:
        return _attend_cut(queries, cuts[0], view, scale, softcap)
    out = queries.new_zeros(queries.shape[0], queries.shape[1] * queries.shape[2])
    for cut in cuts:
        rows = queries if cut.index is None else queries[cut.index]
        done = _attend_cut(rows, cut, view, scale, softcap)
        out[cut.start : cut.stop] = done[: cut.stop - cut.start]
    return out


def _attend_cut(
    queries: Tensor, cut: Cut, view: View, scale: float, softcap: float | None
) -> Tensor:
    width, heads, head_dim = queries.shape
    keys, values = view.slots[cut.slot][:, :, : cut.n_keys]
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    # All query heads that share a key head are rows of one product.
    rows = queries.reshape(width, kv_heads, group, head_dim).permute(1, 0, 2, 3)
    rows = rows.reshape(kv_heads, width * group, head_dim)
    mask = _mask(cut, view.window, group, queries.dtype)
    keys = keys.transpose(1, 2)
    if softcap is None:
        scores = torch.baddbmm(mask, rows, keys, alpha=scale)
    else:
        scores = torch.bmm(rows, keys).mul_(scale / softcap).tanh_().mul_(softcap).add_(mask)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(queries.dtype)
    out = torch.bmm(weights, values).view(kv_heads, width, group, head_dim)
    return out.permute(1, 0, 2, 3).reshape(width, heads * head_dim)


def _mask(cut: Cut, window: int | None, group: int, dtype: torch.dtype) -> Tensor:
    """0 where a row sees a key, else -inf; made once per forward pass and window."""
    mask = cut.masks.get(window)
    if mask is None:
        keys = torch.arange(cut.n_keys)
        positions = cut.positions.repeat_interleave(group)[:, None]
        hidden = keys > positions
        if window is not None:
            hidden |= keys <= positions - window
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
        cut.masks[window] = mask
    return mask


def _interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    view: View,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' signature: [1, heads, width, head_dim] in, [1, width, heads, head_dim] out."""
    store(key[0].transpose(0, 1), value[0].transpose(0, 1), view)
    out = attend(query[0].transpose(0, 1), view, scaling, softcap)
    return out.view(1, out.shape[0], query.shape[1], query.shape[3]), None


AttentionInterface.register(ATTENTION_NAME, _interface)
