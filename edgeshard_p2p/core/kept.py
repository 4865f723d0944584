"""What peers keep of requests that do not run: of those whose plan is gone for a while, so that the
next attempt need not compute it again, and of those that are over for whoever asks on.

What is kept takes slots that are promised to the plans that live; it gives way to whoever needs
one, what is over first.  Knows nothing of attempts or of how a request goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf

from edgeshard_p2p.core.cached import Cached
from edgeshard_p2p.core.effects import Effect, KvPromise, LoadUnits, ReleaseCache
from edgeshard_p2p.core.ids import PeerId, RequestId
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.work import CacheKey

LogRoom = Callable[[Plan], tuple[list[Effect], bool]]
"""For the log of one more request: what makes it, and whether there is room then."""


@dataclass(frozen=True, slots=True)
class Kept:
    key: CacheKey
    cached: Cached
    until: float
    """``inf`` of a request that is over: it stays until its place is needed."""

    @property
    def is_over(self) -> bool:
        return self.until == inf


@dataclass(slots=True)
class KeptCaches:
    """Of one role; at most one of each request, the latest."""

    role: str
    n_open: Callable[[], int]
    """Slots that requests of living plans hold."""
    _kept: dict[RequestId, Kept] = field(default_factory=dict)
    _promise: KvPromise | None = None
    _made_for: tuple[str, str, int] | None = None
    """Model, dtype and tile rows of what is kept and loaded."""

    def of(self, request: RequestId) -> Cached:
        kept = self._kept.get(request)
        return kept.cached if kept is not None else Cached()

    def n_logs(self) -> int:
        return sum(1 for kept in self._kept.values() if kept.cached.logs)

    def next_deadline(self) -> float | None:
        ends = (kept.until for kept in self._kept.values() if not kept.is_over)
        return min(ends, default=None)

    def over(self) -> set[CacheKey]:
        """Of requests that are over."""
        return {kept.key for kept in self._kept.values() if kept.is_over}

    def keep(self, key: CacheKey, cached: Cached, until: float) -> list[Effect]:
        effects = self.drop(key.request)
        self._kept[key.request] = Kept(key, cached, until)
        return effects

    def claim(
        self, key: CacheKey, position: int, of: RequestId
    ) -> tuple[list[Effect], CacheKey | None]:
        """Before ``key`` is opened at ``position``: the other name under which what it goes on
        from, ``of`` itself or of another request, is kept here; or, where it begins anew, a slot
        for it is made free."""
        kept = self._kept.pop(of, None) if position else None
        freed = self.drop(key.request)
        if kept is None:
            return [*freed, *self._make_room()], None
        # A plan may come back under its id, and so may its requests under their names.
        return freed, kept.key if kept.key != key else None

    def drop(self, request: RequestId) -> list[Effect]:
        kept = self._kept.pop(request, None)
        return [ReleaseCache(kept.key)] if kept is not None else []

    def _make_room(self) -> list[Effect]:
        """Before one more slot is taken: what was kept first gives way."""
        n_slots = self._promise.slots if self._promise is not None else 0
        if self._kept and self.n_open() + len(self._kept) >= n_slots:
            return self.drop(self._first_to_go())
        return []

    def _first_to_go(self) -> RequestId:
        over = (request for request, kept in self._kept.items() if kept.is_over)
        return next(over, next(iter(self._kept)))

    def n_spare_logs(self) -> int:
        """Of requests that are over."""
        return len(self._spare_logs())

    def drop_spare_log(self) -> list[Effect]:
        """The first of them, with what else is kept of that request; none: nothing."""
        spare = self._spare_logs()
        return self.drop(spare[0]) if spare else []

    def _spare_logs(self) -> list[RequestId]:
        return [r for r, kept in self._kept.items() if kept.is_over and kept.cached.logs]

    def forget(self, is_gone: Callable[[RequestId], bool]) -> list[Effect]:
        gone = [request for request in self._kept if is_gone(request)]
        return [effect for request in gone for effect in self.drop(request)]

    def forget_source(self, source: PeerId) -> list[Effect]:
        return self.forget(lambda request: request.source == source)

    def forget_below(self, source: PeerId, oldest_live: int) -> list[Effect]:
        """But for what it knows to be over, and may come back to."""
        return self.forget(
            lambda r: r.source == source and r.sequence < oldest_live and not self._kept[r].is_over
        )

    def tick(self, now: float) -> list[Effect]:
        return self.forget(lambda request: self._kept[request].until <= now)

    def on_load(self, load: LoadUnits) -> list[Effect]:
        """Other units and other slots are about to stand here: what does not fit them goes."""
        made_for = (load.model, load.dtype, load.tile_rows)
        is_same_way = self._made_for in (None, made_for)
        promise = next((one for one in load.kv if one.role == self.role), None)
        self._made_for, self._promise = made_for, promise
        if promise is None or not is_same_way:
            return self.forget(lambda _: True)
        units = set(promise.units)
        for request, kept in self._kept.items():
            self._kept[request] = replace(kept, cached=kept.cached.only(units))
        effects = self.forget(lambda request: self._is_too_long(request, promise.context))
        while self._kept and self.n_open() + len(self._kept) > promise.slots:
            effects += self.drop(self._first_to_go())
        return effects

    def _is_too_long(self, request: RequestId, context: int) -> bool:
        return any(run.length > context for run in self._kept[request].cached.units)
