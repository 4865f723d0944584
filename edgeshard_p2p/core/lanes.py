"""Rows that wait for this peer to compute them, and which go next.

They wait here and not with the compute thread: what has come by the time that a pass begins is
computed together (continuous batching).  Single rows and chunks (of prompts, and replays) take
turns, so rows that are here wait for one chunk at most.
Knows nothing of what the rows are, but that those of one request keep their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from edgeshard_p2p.core.ids import PeerId, PlanId, RequestId

T = TypeVar("T")

IN_FLIGHT_MAX = 2
"""Passes with the compute thread: the one that runs, and one that follows it without a gap."""

Lane = tuple[str, PlanId]
"""Role and plan: only rows of one lane can share a pass."""


@dataclass(frozen=True, slots=True)
class Waiting(Generic[T]):
    lane: Lane
    requests: frozenset[RequestId]
    n_rows: int
    is_chunk: bool
    """Computed by itself."""
    work: T
    number: int = 0
    """In the order of arrival."""

    @property
    def keys(self) -> set[tuple[Lane, RequestId]]:
        """In a lane the items of one request keep their order."""
        return {(self.lane, request) for request in self.requests}


@dataclass(slots=True)
class Lanes(Generic[T]):
    """All that waits on a peer, and which passes are with the compute thread."""

    _waiting: list[Waiting[T]] = field(default_factory=list)
    """In the order of arrival."""
    _in_chunks: Counter[tuple[Lane, RequestId]] = field(default_factory=Counter)
    """How many chunks of a request wait in a lane."""
    _in_flight: dict[tuple[str, int], bool] = field(default_factory=dict)
    """By role and number of the job: whether it is a chunk."""
    _was_chunk: bool = False
    _n_put: int = 0
    _chunk_at: int = 0
    """What had arrived when the last chunk was taken: rows of that time go before the next one."""

    def put(
        self, lane: Lane, work: T, requests: Iterable[RequestId], n_rows: int, is_chunk: bool
    ) -> None:
        whose = frozenset(requests)
        # A prompt's last chunk may be a single row; it does not overtake those before it.
        is_chunk = is_chunk or any((lane, request) in self._in_chunks for request in whose)
        self._n_put += 1
        waiting = Waiting(lane, whose, n_rows, is_chunk, work, self._n_put)
        self._waiting.append(waiting)
        if is_chunk:
            self._in_chunks.update(waiting.keys)

    def take(
        self, rows_max: Callable[[Lane], int], takes_chunk: Callable[[Lane], bool]
    ) -> list[Waiting[T]]:
        """What is computed together next; nothing while enough is with the compute thread.
        ``takes_chunk``: whether there is room for one where it goes next.  ``rows_max``: how many
        single rows a pass of a lane takes at most; 0: none now."""
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            return []
        chunk = self._next_chunk(takes_chunk) if not any(self._in_flight.values()) else None
        first, n_max = self._first_row(rows_max)
        is_owed = first is not None and (self._was_chunk or first.number <= self._chunk_at)
        if chunk is not None and not is_owed:
            self._was_chunk, self._chunk_at = True, self._n_put
            return self._out([chunk])
        if first is None:
            return []
        together = self._together(first, n_max)
        if self._in_flight and sum(w.n_rows for w in together) < n_max:
            return []  # It may grow until the one before it ends.
        self._was_chunk = False
        return self._out(together)

    def _first_row(self, rows_max: Callable[[Lane], int]) -> tuple[Waiting[T] | None, int]:
        most: dict[Lane, int] = {}
        for waiting in self._waiting:
            if not waiting.is_chunk:
                if waiting.lane not in most:
                    most[waiting.lane] = rows_max(waiting.lane)
                if most[waiting.lane]:
                    return waiting, most[waiting.lane]
        return None, 0

    def _next_chunk(self, takes_chunk: Callable[[Lane], bool]) -> Waiting[T] | None:
        """The first, but for those that an earlier item of their own request waits before."""
        seen: set[tuple[Lane, RequestId]] = set()
        for waiting in self._waiting:
            is_first = not waiting.keys & seen
            if waiting.is_chunk and is_first and takes_chunk(waiting.lane):
                return waiting
            seen |= waiting.keys
        return None

    def n_chunks(self, lane: Lane, source: PeerId) -> int:
        """Of that source's requests."""
        chunks = (w for w in self._waiting if w.is_chunk and w.lane == lane)
        return sum(1 for chunk in chunks if any(r.source == source for r in chunk.requests))

    def _together(self, first: Waiting[T], rows_max: int) -> list[Waiting[T]]:
        """Those that came next in the same lane, whole, as many as fit; a pass has no more than one
        item of a request."""
        taken: list[Waiting[T]] = []
        seen: set[RequestId] = set()
        n_rows = 0
        for waiting in self._waiting:
            if waiting.is_chunk or waiting.lane != first.lane:
                continue
            is_first, seen = not waiting.requests & seen, seen | waiting.requests
            if not is_first:
                continue
            n_rows += waiting.n_rows
            if taken and n_rows > rows_max:
                break
            taken.append(waiting)
        return taken

    def take_lane(self, lane: Lane) -> list[Waiting[T]]:
        return self._out([w for w in self._waiting if w.lane == lane])

    def take_of(self, lane: Lane, requests: Iterable[RequestId]) -> list[Waiting[T]]:
        """What waits of these requests, with what it shares items with and must not overtake."""
        taken: list[Waiting[T]] = []
        whose = set(requests)
        for waiting in reversed(self._waiting):
            if waiting.lane == lane and waiting.requests & whose:
                whose |= waiting.requests
                taken.append(waiting)
        return self._out(taken[::-1])

    def _out(self, taken: list[Waiting[T]]) -> list[Waiting[T]]:
        gone = {id(waiting) for waiting in taken}
        self._waiting = [w for w in self._waiting if id(w) not in gone]
        for waiting in taken:
            if waiting.is_chunk:
                self._in_chunks.subtract(waiting.keys)
        self._in_chunks = +self._in_chunks
        return taken

    def begun(self, role: str, number: int, is_chunk: bool) -> None:
        self._in_flight[role, number] = is_chunk

    def ended(self, role: str, number: int) -> None:
        self._in_flight.pop((role, number), None)
