"""Keys and values by (request, block), in slots that are reserved before they are promised.

A slot is one tensor [2, kv_heads, context, head_dim] per block: 0 the keys, 1 the values.

      slot 0   k k k k k . . . . .    . is always zero, so that whatever a kernel reads beyond
      slot 1   k k . . . . . . . .    the cached length is finite and multiplies to nothing
      slot 2   . . . . . . . . . .    (free)

Blocks of one request may be cached to different lengths: blocks come and go while it lives.
Knows nothing of plans, nor of who may open a request.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from edgeshard_p2p.core.plan import KV_POSITIONS
from edgeshard_p2p.core.work import CacheKey
from edgeshard_p2p.model.errors import KvError

KEY_BLOCK = KV_POSITIONS
"""Attention reads keys in whole blocks of this many positions, so slots end on one."""


class KvCache:
    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self._kv_heads = kv_heads
        self._head_dim = head_dim
        self._dtype = dtype
        self._context = 0
        self._n_slots = 0
        self._slots: dict[int, list[Tensor]] = {}
        self._slot_of: dict[CacheKey, int] = {}
        self._lengths: dict[CacheKey, dict[int, int]] = {}

    @property
    def context(self) -> int:
        return self._context

    def blocks(self) -> tuple[int, ...]:
        return tuple(self._slots)

    def is_open(self, request: CacheKey) -> bool:
        return request in self._slot_of

    def reserve(self, blocks: Iterable[int], n_slots: int, context: int) -> None:
        """Adds ``blocks``, and gives every block held ``n_slots`` slots of ``context`` positions;
        what is cached stays.  Raises KvError, changing nothing, if open requests do not fit."""
        if len(self._slot_of) > n_slots:
            raise KvError(f"{len(self._slot_of)} requests are open, {n_slots} slots are too few")
        longest = max((max(held.values(), default=0) for held in self._lengths.values()), default=0)
        if longest > context:
            raise KvError(f"{longest} positions are cached, a context of {context} is too short")
        used = sorted(self._slot_of.values())
        free = [slot for slot in range(self._n_slots) if slot not in set(used)]
        order = [*used, *free][:n_slots]
        self._context = context
        for block in sorted({*self._slots, *blocks}):
            old = self._slots.pop(block, None)
            kept = [] if old is None else [self._resized(old[slot]) for slot in order]
            self._slots[block] = kept + [self._new_slot() for _ in range(n_slots - len(kept))]
        self._slot_of = {request: used.index(slot) for request, slot in self._slot_of.items()}
        self._n_slots = n_slots

    def _new_slot(self) -> Tensor:
        # NOTE: torch.zeros may leave the pages to be found when they are first written, long
        # after the memory was promised; zero_ touches them now.
        positions = -(-self._context // KEY_BLOCK) * KEY_BLOCK
        shape = (2, self._kv_heads, positions, self._head_dim)
        return torch.empty(shape, dtype=self._dtype).zero_()

    def _resized(self, slot: Tensor) -> Tensor:
        positions = -(-self._context // KEY_BLOCK) * KEY_BLOCK
        if slot.shape[2] == positions:
            return slot
        new = self._new_slot()
        n = min(positions, slot.shape[2])
        new[:, :, :n] = slot[:, :, :n]
        return new

    def open(self, request: CacheKey) -> None:
        if request in self._slot_of:
            raise KvError(f"request {request} is open already")
        used = set(self._slot_of.values())
        slot = next((slot for slot in range(self._n_slots) if slot not in used), None)
        if slot is None:
            raise KvError(f"no slot for request {request}: all {self._n_slots} are taken")
        self._slot_of[request] = slot
        self._lengths[request] = {}

    def rename(self, request: CacheKey, to: CacheKey) -> None:
        """What is cached of ``request`` goes on under another name."""
        if to in self._slot_of:
            raise KvError(f"request {to} is open already")
        slot = self.slot_of(request)
        del self._slot_of[request]
        self._slot_of[to], self._lengths[to] = slot, self._lengths.pop(request)

    def release(self, request: CacheKey) -> None:
        """Frees the slot of ``request``; one that is not open stays so."""
        for block in list(self._lengths.get(request, ())):
            self.truncate(request, block, 0)
        self._slot_of.pop(request, None)
        self._lengths.pop(request, None)

    def slot_of(self, request: CacheKey) -> int:
        slot = self._slot_of.get(request)
        if slot is None:
            raise KvError(f"request {request} is not open")
        return slot

    def slots(self, block: int) -> list[Tensor]:
        held = self._slots.get(block)
        if held is None:
            raise KvError(f"no KV is reserved for block {block}")
        return held

    def cached_len(self, request: CacheKey, block: int) -> int:
        self.slot_of(request)
        return self._lengths[request].get(block, 0)

    def cached(self, request: CacheKey, block: int) -> Tensor:
        """What is cached, [2, kv_heads, cached length, head_dim]; a view."""
        length = self.cached_len(request, block)
        return self.slots(block)[self.slot_of(request)][:, :, :length]

    def truncate(self, request: CacheKey, block: int, length: int) -> None:
        """Forgets what is cached from ``length`` on."""
        cached = self.cached_len(request, block)
        if length < cached:
            self.slots(block)[self.slot_of(request)][:, :, length:cached].zero_()
            self._lengths[request][block] = length

    def extend(self, request: CacheKey, block: int, rows: int) -> None:
        self._lengths[request][block] = self.cached_len(request, block) + rows

    def drop(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._slots.pop(block, None)
            for lengths in self._lengths.values():
                lengths.pop(block, None)

    def bytes(self) -> int:
        return sum(
            slot.numel() * slot.element_size() for slots in self._slots.values() for slot in slots
        )
