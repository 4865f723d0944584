"""What a peer has cached of a request: KV of its units, and the hidden states that it sent on.

    Slot       what stands there once all that was asked for is computed
    Cached     the same in words for others, and what of it fits another part of the model
    reopened   what an attempt that goes on in the middle wants of it, if that is there

Knows nothing of frames, plans or who decides where a request goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeshard_p2p.core.effects import OpenCache
from edgeshard_p2p.core.ids import NO_UNITS, UnitRange, unit_ranges
from edgeshard_p2p.core.messages import CachedUnits, LoggedRows, Replay
from edgeshard_p2p.core.plan import CHUNK_ROWS
from edgeshard_p2p.core.work import CacheKey, RowGroup


@dataclass(frozen=True, slots=True)
class Cached:
    """KV by unit, and hidden states by the boundary at which they were logged."""

    units: tuple[CachedUnits, ...] = ()
    """In order, without overlap."""
    logs: tuple[LoggedRows, ...] = ()

    def within(self, part: UnitRange) -> Cached:
        """What of it is of use to a run of ``part``."""
        units = tuple(
            CachedUnits(common, run.length)
            for run in self.units
            if (common := _common(run.units, part)) and run.length
        )
        logs = tuple(log for log in self.logs if part.start <= log.unit <= part.end)
        return Cached(units, logs)

    def up_to(self, length: int) -> Cached:
        """Nothing beyond the first ``length`` positions."""
        units = tuple(CachedUnits(run.units, min(run.length, length)) for run in self.units)
        logs = (LoggedRows(log.unit, log.start, min(log.end, length)) for log in self.logs)
        return Cached(units, tuple(log for log in logs if log.start < log.end))

    def only(self, units: set[int]) -> Cached:
        """With no KV but that of ``units``."""
        kept = (
            CachedUnits(common, run.length)
            for run in self.units
            for common in unit_ranges(units & set(run.units))
        )
        return Cached(tuple(kept), self.logs)

    def length(self, unit: int) -> int:
        return next((run.length for run in self.units if unit in run.units), 0)

    def log(self, unit: int) -> LoggedRows | None:
        return next((log for log in self.logs if log.unit == unit), None)


def _common(a: UnitRange, b: UnitRange) -> UnitRange:
    return UnitRange(max(a.start, b.start), min(a.end, b.end))


@dataclass(slots=True)
class Refill:
    """Units that compute known positions again, from hidden states that were logged."""

    units: UnitRange
    stop: int
    """Where the replay ends, here or at a later stage."""
    position: int
    """Of the next row."""
    until: int


@dataclass(slots=True)
class Slot:
    """What the slot of one request holds, once everything that was asked for is computed."""

    units: UnitRange
    length: int = 0
    """Cached positions of all units, those that are refilled aside."""
    refill: Refill | None = None
    is_logged: bool = False
    log_start: int = 0
    log_end: int = 0
    """Positions whose rows are logged after the last unit."""

    @classmethod
    def opened(cls, opening: OpenCache, refill: Refill | None) -> Slot:
        """As the effect leaves it."""
        slot = cls(opening.units, opening.position, refill, opening.is_logged)
        for log in opening.logs:
            if log.unit == opening.units.end:
                slot.log_start, slot.log_end = log.start, log.end
        return slot

    def extend(self, rows: int) -> None:
        """Rows pass that come next."""
        self._log(self.length, rows)
        self.length += rows

    def refilled(self, rows: int) -> None:
        """Rows pass that are computed again."""
        refill = self.refill
        assert refill is not None
        if refill.units.end == self.units.end:
            self._log(refill.position, rows)
        refill.position += rows
        if refill.position == refill.until:
            self.refill = None

    def _log(self, position: int, rows: int) -> None:
        if self.is_logged:
            self.log_start = self.log_start if position == self.log_end else position
            self.log_end = position + rows

    def cached(self) -> Cached:
        logs = [LoggedRows(self.units.end, self.log_start, self.log_end)] if self.is_logged else []
        if self.refill is None:
            return Cached((CachedUnits(self.units, self.length),), tuple(logs))
        again = self.refill.units
        parts = [
            CachedUnits(UnitRange(self.units.start, again.start), self.length),
            CachedUnits(again, self.refill.position),
            CachedUnits(UnitRange(again.end, self.units.end), self.length),
        ]
        return Cached(tuple(part for part in parts if part.units and part.length), tuple(logs))


@dataclass(frozen=True, slots=True)
class Resuming:
    """Where an attempt goes on, for one part of the plan."""

    stage: int
    part: UnitRange
    n_units: int
    position: int
    replays: tuple[Replay, ...] = ()

    @property
    def blocks(self) -> UnitRange:
        """Those units of the part that have KV."""
        return _common(self.part, UnitRange(1, self.n_units - 1))

    def refill(self) -> Refill | None:
        """What of this part computes known positions again."""
        for replay in self.replays:
            again = _common(UnitRange(replay.start, replay.end), self.part)
            if again:
                return Refill(again, replay.end, replay.position, self.position)
        return None

    def read(self) -> list[Replay]:
        """The replays that begin with a log that is held here."""
        return [replay for replay in self.replays if replay.holder == self.stage]

    def passes(self, key: CacheKey, replay: Replay) -> list[tuple[UnitRange, RowGroup]]:
        """Units and rows, chunk by chunk; no units where the rows only go on to the next part."""
        units = UnitRange(replay.start, max(replay.start, min(replay.end, self.part.end)))
        starts = range(replay.position, self.position, CHUNK_ROWS)
        return [
            (units, RowGroup(key, start, min(CHUNK_ROWS, self.position - start)))
            for start in starts
        ]


def reopened(key: CacheKey, held: Cached, at: Resuming) -> OpenCache | None:
    """What makes of ``held`` what this attempt needs; None where something is missing."""
    refill = at.refill()
    again = refill.units if refill is not None else NO_UNITS
    since = refill.position if refill is not None else 0
    if refill is not None and not since < at.position:
        return None
    for unit in at.blocks:
        if held.length(unit) < (since if unit in again else at.position):
            return None
    logs: dict[int, LoggedRows] = {}
    for replay in at.read():
        log = held.log(replay.start)
        if log is None or log.start > replay.position or log.end < at.position:
            return None
        logs[log.unit] = LoggedRows(log.unit, log.start, at.position)
    own, cut = held.log(at.part.end), since if again.end == at.part.end else at.position
    if own is not None and own.unit not in logs and own.start < min(own.end, cut):
        logs[own.unit] = LoggedRows(own.unit, own.start, min(own.end, cut))
    return OpenCache(key, at.part, at.position, again, since, logs=tuple(logs.values()))
