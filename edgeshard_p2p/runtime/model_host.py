"""What the compute thread does: open, measure, load, run.  Synchronous; one thread calls it.

Knows nothing of events, sockets or plans.

NOTE: importing this takes seconds, most of them for transformers; ``runtime.peer`` does it late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from edgeshard_p2p.core.effects import LoadUnits, OpenCache, ReleaseCache, RunForward
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.records import UnitTimes
from edgeshard_p2p.model import known_specs, library, memo, profiler, widths
from edgeshard_p2p.model.checkpoint import Checkpoint, open_checkpoint
from edgeshard_p2p.model.cpu_quota import cpu_share, rested_us
from edgeshard_p2p.model.engine import Engine, rows_are_exact, use_one_thread
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.hidden_log import HiddenLogs
from edgeshard_p2p.runtime.state import Profile
from edgeshard_p2p.runtime.tensors import Computed, Passed

PROGRESS_PERIOD_S = 2.0
MEASURED_CONTEXT = 1024
"""Long enough for the largest chunk that is measured."""

Progress = Callable[[str], None]


class ModelHost:
    def __init__(self, device: str, unusable: dict[str, str]) -> None:
        """``unusable``: dtypes whose kernels die on this machine, and how."""
        self._device = device
        self._unusable = unusable
        self._checkpoints: dict[str, Checkpoint] = {}
        """Models that were opened, by digest; a model weighs nothing until it is loaded."""
        self._engine: Engine | None = None
        self._made_for: tuple[str, str, int] | None = None
        """Model, dtype and tile rows of the engine."""
        self._logs = HiddenLogs()
        use_one_thread()

    def open(self, path: Path, digest: str, name: str) -> ModelSpec:
        """Open it, or find it open.  Raises ModelError."""
        if digest not in self._checkpoints:
            checkpoint = open_checkpoint(path, digest, name)
            known_specs.keep(checkpoint.spec)
            self._checkpoints[digest] = checkpoint
        return self._checkpoints[digest].spec

    def _opened(self, digest: str) -> Checkpoint:
        """Raises ModelError where opening it has failed, which has been said."""
        if digest not in self._checkpoints:
            raise ModelError("the model is not open")
        return self._checkpoints[digest]

    def measure(self, digest: str, dtype: str, tile_rows: int, progress: Progress) -> Profile:
        """Times of this device's units, through an engine of their own."""
        if dtype in self._unusable:
            raise ModelError(f"this machine cannot compute in {dtype}: {self._unusable[dtype]}")
        engine = Engine(self._opened(digest), dtype, tile_rows, self._device)
        context = min(MEASURED_CONTEXT, engine.spec.max_context)
        measured = profiler.measure(engine, context, progress)
        memo.keep(_widths_file(digest, dtype, tile_rows), engine.widths())
        return Profile(_times(measured.decode), _times(measured.prefill), rested_us(cpu_share()))

    def load(self, effect: LoadUnits, progress: Progress) -> None:
        if not effect.units:
            self._engine = self._made_for = None
            self._logs = HiddenLogs()
            return
        made_for = (effect.model, effect.dtype, effect.tile_rows)
        if self._engine is None or self._made_for != made_for:
            checkpoint = self._opened(effect.model)
            self._engine = Engine(checkpoint, effect.dtype, effect.tile_rows, self._device)
            self._engine.use_widths(widths.read(_widths_file(*made_for)))
            self._made_for = made_for
            self._logs = HiddenLogs()
        engine = self._engine
        known = engine.widths()
        wanted = {unit for units in effect.units for unit in units}
        engine.drop(set(engine.held()) - wanted)
        missing = sorted(wanted - set(engine.held()))
        told_at = time.monotonic()
        for done, unit in enumerate(missing):
            if time.monotonic() - told_at >= PROGRESS_PERIOD_S:
                told_at = time.monotonic()
                progress(f"loading: {done} of {len(missing)} units are here")
            engine.load(unit)
        for role in set(engine.reserved_roles()) - {promise.role for promise in effect.kv}:
            engine.unreserve(role)
        for p in effect.kv:
            engine.reserve(p.role, p.units, p.slots, p.context)
        if engine.widths() != known:
            memo.keep(_widths_file(*made_for), engine.widths())
        has_blocks = any(engine.spec.is_block(unit) for unit in wanted)
        if effect.tile_rows and has_blocks and not rows_are_exact(engine):
            progress("exact numerics: some row counts give other bits here, so passes are smaller")

    def open_cache(self, effect: OpenCache) -> None:
        engine = self._engine
        assert engine is not None
        if effect.adopts is not None:
            engine.rename(effect.adopts, effect.key)
        self._logs.open(effect)
        if not engine.is_open(effect.key):
            engine.open(effect.key)
            return
        for unit in effect.units:
            if engine.spec.is_block(unit):
                is_replayed = unit in effect.replayed
                position = effect.replay_position if is_replayed else effect.position
                engine.truncate(effect.key, unit, position)

    def release_cache(self, effect: ReleaseCache) -> None:
        self._logs.drop(effect.key)
        if self._engine is not None:
            self._engine.release(effect.key)

    def forward(self, effect: RunForward, given: Sequence[Tensor]) -> Passed:
        """``given``: hidden states, each [rows, hidden size]; none where they are logged here, or
        where the units start with the embedding."""
        assert self._engine is not None
        started_ns = time.perf_counter_ns()
        if effect.is_from_log:
            (group,) = effect.groups
            rows = self._logs.rows(group.key, effect.units.start, group.position, group.rows)
        elif not given:
            rows = torch.tensor(effect.tokens)
        else:
            rows = torch.cat(list(given)) if len(given) > 1 else given[0]
        if effect.spans:
            rows = torch.cat([rows[start : start + n] for start, n in effect.spans])
        if not effect.units:
            return Passed(Computed.of(rows), (), (time.perf_counter_ns() - started_ns) // 1000)
        result = self._engine.forward(effect.units, effect.groups, rows)
        hidden = Computed.of(result.hidden) if result.hidden is not None else None
        if result.hidden is not None:
            self._log(effect, result.hidden)
        service_us = (time.perf_counter_ns() - started_ns) // 1000
        return Passed(hidden, result.tokens, service_us)

    def _log(self, effect: RunForward, hidden: Tensor) -> None:
        first = 0
        for group in effect.groups:
            rows = hidden[first : first + group.rows]
            self._logs.append(group.key, effect.units.end, group.position, rows)
            first += group.rows


def _widths_file(digest: str, dtype: str, tile_rows: int) -> Path:
    return widths.file_of(library.cache_dir() / "kernels", digest, dtype, tile_rows)


def _times(rows: tuple[profiler.Times, ...]) -> tuple[UnitTimes, ...]:
    return msgspec.convert(rows, tuple[UnitTimes, ...])
