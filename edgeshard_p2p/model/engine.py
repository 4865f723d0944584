"""Runs units on rows of many requests: the one owner of weights and KV in a process.

Synchronous, for one compute thread.  Knows nothing of plans, peers or the wire.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.work import CacheKey, RowGroup
from edgeshard_p2p.model import exactness, families
from edgeshard_p2p.model.checkpoint import Checkpoint
from edgeshard_p2p.model.errors import EngineError, ModelError
from edgeshard_p2p.model.fused import FusedBlock, can_fuse
from edgeshard_p2p.model.kv_cache import KvCache
from edgeshard_p2p.model.sampling import sample
from edgeshard_p2p.model.tiles import Numerics, Run, ladder, tiles_of
from edgeshard_p2p.model.units import Block, Embedding, Head, Rotary, load_generic_block
from edgeshard_p2p.model.widths import Widths

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ForwardResult:
    hidden: Tensor | None
    """[rows, hidden size], or None where the units end with the head."""
    tokens: tuple[int | None, ...]
    """One per group where the units end with the head, else empty."""


def use_one_thread() -> None:
    """Call at the start of a process that computes: threads change the order of additions."""
    torch.set_num_threads(1)


class Engine:
    def __init__(self, checkpoint: Checkpoint, dtype: str, tile_rows: int, device: str) -> None:
        if device != "cpu":
            raise ModelError(f"device {device!r} is not supported; supported: cpu")
        self.spec = checkpoint.spec
        self.dtype = dtype
        self._checkpoint = checkpoint
        self._dtype = DTYPES[dtype]
        self._is_fused = can_fuse(checkpoint)
        self._is_tied: bool = checkpoint.config.tie_word_embeddings
        self._embedding: Embedding | None = None
        self._blocks: dict[int, Block] = {}
        self._head: Head | None = None
        heads, kv_heads, head_dim = families.kv_shape(checkpoint.config)
        self._new_cache = partial(KvCache, kv_heads, head_dim, self._dtype)
        self._kv: dict[str, KvCache] = {}
        self._rotary = Rotary(checkpoint, self._dtype, is_signed=self._is_fused)
        self.tile_rows = tile_rows
        self.numerics = Numerics(tile_rows, group=heads // kv_heads)
        self._head_numerics = Numerics(tile_rows)
        self._has_block_widths = self._has_head_widths = tile_rows == 0

    # Weights

    @torch.inference_mode()
    def load(self, unit: int) -> None:
        """Reads the weights of ``unit``; those of one that is held stay."""
        if unit in self.held():
            return
        with self._checkpoint.reading() as read:
            if unit == 0:
                shared = self._head.table if self._head and self._is_tied else None
                self._embedding = Embedding(self._checkpoint, read, self._dtype, shared)
            elif unit == self.spec.head_unit:
                shared = self._embedding.table if self._embedding and self._is_tied else None
                self._head = Head(self._checkpoint, read, self._dtype, shared)
            else:
                load_block = FusedBlock if self._is_fused else load_generic_block
                self._blocks[unit] = load_block(self._checkpoint, read, unit - 1, self._dtype)
        _return_freed_memory()

    def drop(self, units: Iterable[int]) -> None:
        """Forgets weights and KV of ``units``."""
        units = set(units)
        for unit in units:
            self._blocks.pop(unit, None)
        for cache in self._kv.values():
            cache.drop(units)
        if 0 in units:
            self._embedding = None
        if self.spec.head_unit in units:
            self._head = None
        _return_freed_memory()

    def held(self) -> tuple[int, ...]:
        ends = [0] if self._embedding else []
        ends += [self.spec.head_unit] if self._head else []
        return tuple(sorted([*self._blocks, *ends]))

    def weight_bytes(self) -> int:
        ends = [unit for unit in (self._embedding, self._head) if unit is not None]
        tables = {id(unit.table): unit.table.n_bytes for unit in ends}
        blocks = sum(block.n_bytes for block in self._blocks.values())
        return blocks + sum(unit.n_bytes for unit in ends) + sum(tables.values())

    # KV

    def reserve(self, role: str, units: Iterable[int], n_slots: int, context: int) -> None:
        """Reserves KV of one role for exactly the blocks among ``units``: see `KvCache.reserve`.
        Each role has slots of its own."""
        spec = self.spec
        if context > spec.max_context:
            raise EngineError(f"context {context} is longer than the model's {spec.max_context}")
        cache = self._kv.setdefault(role, self._new_cache())
        blocks = {unit for unit in units if spec.is_block(unit)}
        cache.drop(set(cache.blocks()) - blocks)
        cache.reserve(blocks, n_slots, context)
        self._check_widths()

    def unreserve(self, role: str) -> None:
        """Gives up all KV of a role, open or not."""
        self._kv.pop(role, None)

    def reserved_roles(self) -> tuple[str, ...]:
        return tuple(self._kv)

    def kv_bytes(self) -> int:
        return sum(cache.bytes() for cache in self._kv.values())

    def open(self, key: CacheKey) -> None:
        self._cache(key).open(key)

    def rename(self, key: CacheKey, to: CacheKey) -> None:
        self._cache(key).rename(key, to)

    def is_open(self, key: CacheKey) -> bool:
        return key.role in self._kv and self._kv[key.role].is_open(key)

    def release(self, key: CacheKey) -> None:
        """Frees the slot of ``key``; one that is not open stays so."""
        if key.role in self._kv:
            self._kv[key.role].release(key)

    def cached_len(self, key: CacheKey, unit: int) -> int:
        return self._cache(key).cached_len(key, unit)

    def cached(self, key: CacheKey, unit: int) -> Tensor:
        """Keys and values of a block, [2, kv_heads, cached length, head_dim]; a view."""
        return self._cache(key).cached(key, unit)

    def truncate(self, key: CacheKey, unit: int, length: int) -> None:
        self._cache(key).truncate(key, unit, length)

    def _cache(self, key: CacheKey) -> KvCache:
        cache = self._kv.get(key.role)
        if cache is None:
            raise EngineError(f"no KV is reserved for the role {key.role}")
        return cache

    # Work

    @torch.inference_mode()
    def forward(self, units: UnitRange, groups: Sequence[RowGroup], rows: Tensor) -> ForwardResult:
        """Runs ``units`` on ``rows``: token ids [R] where the units start with the embedding,
        else hidden states [R, hidden size]; the groups' rows follow each other."""
        hidden = self._hidden(units, groups, rows)
        if self.spec.head_unit not in units:
            return ForwardResult(hidden, ())
        emitting = [group for group in groups if group.emit is not None]
        logits = iter(self._logits(groups, hidden, emitting))
        return ForwardResult(None, tuple(_draw(group, logits) for group in groups))

    @torch.inference_mode()
    def logits(self, units: UnitRange, groups: Sequence[RowGroup], rows: Tensor) -> Tensor:
        """As `forward` up to the head, but the logits of each group's last row, undrawn."""
        return self._logits(groups, self._hidden(units, groups, rows), groups)

    def exact_widths(self) -> tuple[int, ...]:
        """Tile widths in use in `exact`; none means that each row runs alone, which is slow."""
        return self.numerics.widths

    def widths(self) -> Widths:
        """What has been found out about tile widths, for another engine of this model."""
        return Widths(
            self.numerics.widths if self._has_block_widths else None,
            self._head_numerics.widths if self._has_head_widths else None,
        )

    def use_widths(self, known: Widths) -> None:
        """Spares finding them out again."""
        if known.block is not None and self.tile_rows:
            self.numerics = replace(self.numerics, widths=known.block)
            self._has_block_widths = True
        if known.head is not None and self.tile_rows:
            self._head_numerics = Numerics(self.tile_rows, known.head)
            self._has_head_widths = True

    @torch.inference_mode()
    def _check_widths(self) -> None:
        """Finds out, with the first block and the head, which tile widths are exact here, and
        worth using.

        Not when they are loaded: a device that only loads needs no memory for kernels yet."""
        if self._blocks and not self._has_block_widths:
            widths = self._block_widths(next(iter(self._blocks.values())))
            self.numerics = replace(self.numerics, widths=widths)
            self._has_block_widths = True
        if self._head and not self._has_head_widths:
            rows = exactness.random_rows(self.spec.hidden_size, self._dtype)
            widths = exactness.head_widths(self._head, rows, self.tile_rows)
            head = self._head
            self._head_numerics = Numerics(
                self.tile_rows,
                exactness.worth_using(widths, lambda w: exactness.head_time_s(head, rows[:w])),
            )
            self._has_head_widths = True

    def _block_widths(self, block: Block) -> tuple[int, ...]:
        _, kv_heads, head_dim = families.kv_shape(self._checkpoint.config)
        slot = exactness.scratch_slot(kv_heads, head_dim, self.spec.max_context, self._dtype)
        rows = exactness.random_rows(self.spec.hidden_size, self._dtype)
        widths = exactness.block_widths(block, self._rotary, slot, rows, self.numerics)

        def time_s(width: int) -> float:
            numerics = replace(self.numerics, widths=(width,))
            return exactness.block_time_s(block, self._rotary, slot, rows, numerics)

        return exactness.worth_using(widths, time_s)

    def _hidden(self, units: UnitRange, groups: Sequence[RowGroup], rows: Tensor) -> Tensor:
        blocks = [unit for unit in units if self.spec.is_block(unit)]
        self._check(units, blocks, groups, rows)
        self._check_widths()
        if 0 in units:
            assert self._embedding is not None
            rows = self._embedding.run(rows, torch.tensor(list(_positions(groups))))
        if blocks:
            rows = self._run_blocks(blocks, groups, rows)
        for group in groups:
            for block in blocks:
                self._cache(group.key).extend(group.key, block, group.rows)
        return rows

    def _run_blocks(
        self, blocks: Sequence[int], groups: Sequence[RowGroup], rows: Tensor
    ) -> Tensor:
        cache = self._cache(groups[0].key)
        tiles = tiles_of(
            [Run(cache.slot_of(g.key), g.position, g.rows) for g in groups], self.numerics
        )
        hidden = [tile.take(rows) for tile in tiles]
        for tile in tiles:
            self._rotary.fill(tile)
        for unit in blocks:
            block, slots = self._blocks[unit], cache.slots(unit)
            # Tile after tile: rows of a request find the keys of earlier rows stored.
            hidden = [
                block.run(part, tile, slots) for part, tile in zip(hidden, tiles, strict=True)
            ]
        parts = [part[: tile.rows] for part, tile in zip(hidden, tiles, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _logits(
        self, groups: Sequence[RowGroup], hidden: Tensor, wanted: Sequence[RowGroup]
    ) -> Tensor:
        assert self._head is not None
        ends = dict(zip(map(id, groups), _ends(groups), strict=True))
        rows = hidden[[ends[id(group)] - 1 for group in wanted]]
        parts = []
        for start, stop, width in self._head_numerics.split(len(rows)):
            padded = rows.new_zeros((width, rows.shape[1]))
            padded[: stop - start] = rows[start:stop]
            parts.append(self._head.logits(padded)[: stop - start])
        return torch.cat(parts) if parts else rows.new_zeros((0, self.spec.vocab_size))

    def _check(
        self, units: UnitRange, blocks: Sequence[int], groups: Sequence[RowGroup], rows: Tensor
    ) -> None:
        missing = set(units) - set(self.held())
        if missing:
            raise EngineError(f"units {sorted(missing)} are not loaded")
        if sum(group.rows for group in groups) != len(rows) or any(g.rows < 1 for g in groups):
            raise EngineError(f"{len(rows)} rows came for groups of {[g.rows for g in groups]}")
        if len({group.key for group in groups}) < len(groups):
            raise EngineError("a request has two groups in one pass")
        if len({group.key.role for group in groups}) > 1:
            raise EngineError("a pass mixes the KV of two roles")
        self._check_values(units, rows)
        for group in groups:
            self._check_cached(blocks, group)

    def _check_cached(self, blocks: Sequence[int], group: RowGroup) -> None:
        cache, request = self._cache(group.key), group.key.request
        if group.position + group.rows > cache.context:
            raise EngineError(
                f"request {request} at position {group.position} + {group.rows} rows "
                f"leaves the context of {cache.context}"
            )
        for block in blocks:
            cached = cache.cached_len(group.key, block)
            if cached != group.position:
                raise EngineError(
                    f"request {request} block {block}: rows start at position "
                    f"{group.position}, but {cached} are cached"
                )

    def _check_values(self, units: UnitRange, rows: Tensor) -> None:
        if 0 in units:
            if rows.dtype != torch.int64 or rows.min() < 0 or rows.max() >= self.spec.vocab_size:
                raise EngineError(f"token ids are not int64 below {self.spec.vocab_size}")
        elif rows.dtype != self._dtype or rows.shape[1:] != (self.spec.hidden_size,):
            raise EngineError(
                f"hidden states are {list(rows.shape)} {rows.dtype}, not "
                f"[rows, {self.spec.hidden_size}] {self._dtype}"
            )


def _return_freed_memory() -> None:
    """Gives back what loading freed, such as the parts of a fused matrix: the C library would
    keep it, and it would count as this process's memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def rows_are_exact(engine: Engine) -> bool:
    """Whether all tile widths agree here.  Where not, `exact` holds as well, but runs slower."""
    widths, all_of_them = engine.exact_widths(), tuple(ladder(engine.tile_rows))
    return bool(widths) and widths == all_of_them[-len(widths) :]


def _positions(groups: Sequence[RowGroup]) -> Iterator[int]:
    for group in groups:
        yield from range(group.position, group.position + group.rows)


def _ends(groups: Sequence[RowGroup]) -> list[int]:
    return list(accumulate(group.rows for group in groups))


def _draw(group: RowGroup, logits: Iterator[Tensor]) -> int | None:
    if group.emit is None:
        return None
    return sample(next(logits), group.emit, group.position + group.rows)
