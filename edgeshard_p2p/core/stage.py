"""One shared stage of one plan: takes frames, has them computed, passes the results on.

A request's rows are taken only for its current attempt and at exactly the position that comes
next; everything else is answered with a reason or is a repeat that changes nothing.  An attempt
may go on where an earlier one was, on this plan or on one that is gone: what it lacks is computed
again, from rows that were logged here or that come in replay frames.
Knows nothing of edges' numbering or of how requests are owned.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf

from edgeshard_p2p.core.cached import Cached, Resuming, Slot, reopened
from edgeshard_p2p.core.edges import Due, EdgeKind
from edgeshard_p2p.core.effects import DropTensor, Effect, ReleaseCache, RunForward
from edgeshard_p2p.core.events import ForwardDone
from edgeshard_p2p.core.flow import Frame, is_replay
from edgeshard_p2p.core.ids import PeerId, RequestId, UnitRange
from edgeshard_p2p.core.kept import KeptCaches, LogRoom
from edgeshard_p2p.core.messages import AttemptRefused, FrameKind, Open, RowFlag, RowGroupHeader
from edgeshard_p2p.core.outcome import Outcome, Running, StageRows, token_frames
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import CacheKey, Job, RowGroup, TensorRef

ROLE = "stage"


@dataclass(slots=True)
class StageRequest:
    attempt: int
    sampling: Sampling
    slot: Slot
    is_decoding: bool = False
    """Its prompt is over."""


@dataclass(slots=True)
class StageWork:
    plan: Plan
    index: int
    kept: KeptCaches
    """Of requests that no plan of this peer runs any more."""
    log_room: LogRoom
    requests: dict[RequestId, StageRequest] = field(default_factory=dict)
    running: dict[int, Running] = field(default_factory=dict)
    job_numbers: Iterator[int] = field(default_factory=lambda: count(1))
    """Shared by all stages of a peer: a plan may come back while passes of its earlier beginning
    are under way, and their results must not be taken for those of new ones."""

    @property
    def units(self) -> UnitRange:
        return self.plan.stages[self.index].units

    @property
    def is_last(self) -> bool:
        return self.index == len(self.plan.stages) - 1

    def n_decoding(self) -> int:
        return sum(1 for request in self.requests.values() if request.is_decoding)

    # --- frames ---------------------------------------------------------------------------

    def on_frame(self, due: Due, frame: Frame) -> Outcome:
        if frame.kind is FrameKind.HIDDEN:
            return self._on_hidden(due, frame)
        outcome = Outcome(consumed=[due])
        if frame.kind is FrameKind.OPEN and frame.body is not None:
            self._on_open(frame, outcome)
        elif frame.kind is FrameKind.RELEASE:
            for group in frame.groups:
                outcome.effects += self._released(group)
        if not self.is_last:
            outcome.offers.append((EdgeKind.INNER, -1, frame))
        return outcome

    def _on_open(self, frame: Frame, outcome: Outcome) -> None:
        assert frame.body is not None
        for group in frame.groups:
            request = self.request_of(group)
            outcome.effects += self.free_below(request.source, frame.body.oldest_live)
            known = self.requests.get(request)
            if known is not None and known.attempt > group.attempt:
                outcome.refusals.append(self._refusal(group, "stale_attempt"))
                continue
            if known is None and len(self.requests) >= self.plan.workload.batch:
                outcome.refusals.append(self._refusal(group, "no_slot"))
                continue
            self._open(group, frame.body, outcome)

    def renewed(self, frame: Frame) -> list[RequestId]:
        """Requests that run here in an earlier attempt than this OPEN begins."""
        known = [(self.requests.get(self.request_of(group)), group) for group in frame.groups]
        return [self.request_of(group) for k, group in known if k and k.attempt < group.attempt]

    def _open(self, group: RowGroupHeader, body: Open, outcome: Outcome) -> None:
        request, key = self.request_of(group), self._key(self.request_of(group))
        at = Resuming(self.index, self.units, self.plan.n_units, body.position, body.replays)
        opening = reopened(key, self.cached(request, body.continues), at)
        if opening is None:
            outcome.refusals.append(self._refusal(group, "missing_kv"))
            return
        adopts = None
        if request not in self.requests:
            before = _before(request, body.continues)
            freed, adopts = self.kept.claim(key, at.position, before)
            outcome.effects += freed
        is_logged = not self.is_last and bool(opening.logs)
        if not self.is_last and not is_logged:
            freed, is_logged = self.log_room(self.plan)
            outcome.effects += freed
        opening = replace(opening, adopts=adopts, is_logged=is_logged)
        outcome.effects.append(opening)
        slot = Slot.opened(opening, at.refill())
        self.requests[request] = StageRequest(group.attempt, body.sampling, slot)
        for replay in at.read():
            for units, rows in at.passes(opening.key, replay):
                self._replay(group, replay.end, units, rows, outcome)

    def _replay(
        self,
        group: RowGroupHeader,
        stop: int,
        units: UnitRange,
        rows: RowGroup,
        outcome: Outcome,
    ) -> None:
        """Rows that were logged here go through ``units``, then on to where they are wanted."""
        header = RowGroupHeader(
            group.source_index,
            group.sequence,
            group.attempt,
            rows.position,
            rows.rows,
            rows.position,
            stop,
            RowFlag.REPLAY,
        )
        if units:
            self.requests[rows.key.request].slot.refilled(rows.rows)
        outcome.waits.append(StageRows((header,), units))

    def _on_hidden(self, due: Due, frame: Frame) -> Outcome:
        assert frame.tensor is not None
        outcome, units = Outcome(), self.units
        if len(frame.groups) == 1 and frame.groups[0].flags & RowFlag.REPLAY:
            units = UnitRange(units.start, min(frame.groups[0].stop_unit, units.end))
        taken: list[RowGroupHeader] = []
        spans: list[tuple[int, int]] = []
        start, seen = 0, set[RequestId]()
        for group in frame.groups:
            reason = self._reason_against(group, len(frame.groups) == 1)
            reason = "twice_in_a_frame" if self.request_of(group) in seen else reason
            seen.add(self.request_of(group))
            if reason == "":
                taken.append(group)
                spans.append((start, group.rows))
                known = self.requests[self.request_of(group)]
                known.is_decoding |= bool(group.flags & RowFlag.LAST_CHUNK)
                slot = known.slot
                slot.refilled(group.rows) if is_replay(group) else slot.extend(group.rows)
            elif reason != "repeat":
                outcome.refusals.append(self._refusal(group, reason))
            start += group.rows
        if not taken:
            outcome.effects.append(DropTensor(frame.tensor))
            outcome.consumed.append(due)
            return outcome
        rows = StageRows(
            tuple(taken), units, tuple(spans), frame.tensor, start, due, frame.micro_batch
        )
        outcome.waits.append(rows)
        return outcome

    def _reason_against(self, group: RowGroupHeader, is_alone: bool) -> str:
        """Empty for rows that come next; ``repeat`` for those that are computed already."""
        known = self.requests.get(self.request_of(group))
        if known is None or group.attempt > known.attempt:
            return "missing_kv"
        if group.attempt < known.attempt:
            return "stale_attempt"
        if is_replay(group) or group.stop_unit < self.units.end:
            return "" if is_alone and self._is_wanted_again(group, known.slot) else "no_replay_here"
        length = known.slot.length
        if group.position + group.rows <= length:
            return "repeat"
        is_next = known.slot.refill is None and group.position == length == group.cached_len
        if is_next and length + group.rows > self.plan.workload.context:
            return "over_context"
        return "" if is_next else "missing_kv"

    def _is_wanted_again(self, group: RowGroupHeader, slot: Slot) -> bool:
        refill = slot.refill
        return (
            refill is not None
            and is_replay(group)
            and (refill.units.start, refill.stop) == (self.units.start, group.stop_unit)
            and group.position == refill.position
            and group.position + group.rows <= refill.until
        )

    # --- passes ---------------------------------------------------------------------------

    def begin(self, taken: Sequence[StageRows]) -> Outcome:
        """One pass of all of these, but for rows of requests that have ended meanwhile."""
        outcome, groups, spans = Outcome(), list[RowGroupHeader](), list[tuple[int, int]]()
        tensors, consumed, start = list[TensorRef](), list[Due](), 0
        for rows in taken:
            live = [k for k, group in enumerate(rows.groups) if self._is_current(group)]
            if not live:
                outcome.effects += [DropTensor(rows.tensor)] if rows.tensor is not None else []
                outcome.consumed += [rows.due] if rows.due is not None else []
                continue
            groups += [rows.groups[k] for k in live]
            spans += [(start + rows.spans[k][0], rows.spans[k][1]) for k in live if rows.spans]
            tensors += [rows.tensor] if rows.tensor is not None else []
            consumed += [rows.due] if rows.due is not None else []
            start += rows.n_rows
        if groups:
            number = next(self.job_numbers)
            self.running[number] = Running(tuple(groups), consumed, taken[0].micro_batch)
            outcome.effects.append(
                RunForward(
                    Job(self.plan.id, ROLE, number),
                    taken[0].units,
                    tuple(self._rows(group) for group in groups),
                    tensors=tuple(tensors),
                    spans=tuple(spans) if sum(n for _, n in spans) < start else (),
                    is_from_log=not tensors,
                )
            )
        return outcome

    def _is_current(self, group: RowGroupHeader) -> bool:
        known = self.requests.get(self.request_of(group))
        return known is not None and known.attempt == group.attempt

    def requests_of(self, rows: StageRows) -> list[RequestId]:
        return [self.request_of(group) for group in rows.groups]

    def _rows(self, group: RowGroupHeader) -> RowGroup:
        request = self.request_of(group)
        wants_token = bool(group.flags & RowFlag.LAST_CHUNK)
        emits = self.is_last and wants_token and not is_replay(group)
        emits = emits and not group.flags & RowFlag.NO_EMIT
        sampling = self.requests[request].sampling if emits else None
        return RowGroup(self._key(request), group.position, group.rows, sampling)

    # --- results --------------------------------------------------------------------------

    def on_done(self, event: ForwardDone) -> Outcome:
        running = self.running.pop(event.job.number, None)
        if running is None:
            return Outcome([DropTensor(event.hidden)] if event.hidden is not None else [])
        outcome = Outcome(consumed=running.consumed)
        stops_here = all(group.stop_unit <= self.units.end for group in running.groups)
        if stops_here and is_replay(running.groups[0]):
            outcome.effects += [DropTensor(event.hidden)] if event.hidden is not None else []
        elif self.is_last:
            outcome.offers += token_frames(running, event)
        else:
            frame = Frame(
                FrameKind.HIDDEN,
                running.groups,
                running.micro_batch,
                event.service_us,
                event.hidden,
            )
            outcome.offers.append((EdgeKind.INNER, -1, frame))
        return outcome

    def on_failed(self, number: int, detail: str) -> Outcome:
        running = self.running.pop(number, None)
        if running is None:
            return Outcome()
        outcome = Outcome(consumed=running.consumed)
        for group in running.groups:
            # A later attempt may have gone on from what these rows were to leave.
            failed = self.fail(self.request_of(group), detail)
            outcome.effects += failed.effects
            outcome.refusals += failed.refusals
        return outcome

    def passes(self) -> dict[int, list[RequestId]]:
        """Whose rows are being computed, by number of the job."""
        return {n: list(map(self.request_of, r.groups)) for n, r in self.running.items()}

    def fail(self, request: RequestId, detail: str) -> Outcome:
        """Nobody knows what is cached of it now."""
        known = self.requests.get(request)
        if known is None:
            return Outcome()
        refusal = AttemptRefused(request, known.attempt, self.index, "compute_failed", detail)
        return Outcome(self.free(request), refusals=[refusal])

    def on_lost(self, frames: list[Frame]) -> Outcome:
        """The edge to the next stage (or back to a source) is lost with these frames on it."""
        outcome = Outcome()
        for frame in frames:
            if frame.tensor is not None:
                outcome.effects.append(DropTensor(frame.tensor))
            for group in frame.groups:
                if frame.kind is not FrameKind.RELEASE:
                    outcome.refusals.append(self._refusal(group, "edge_lost"))
        return outcome

    # --- freeing --------------------------------------------------------------------------

    def _released(self, group: RowGroupHeader) -> list[Effect]:
        request = self.request_of(group)
        known = self.requests.get(request)
        if known is None or known.attempt != group.attempt or not group.flags & RowFlag.KEEP:
            return self.free(request)
        del self.requests[request]
        return self.kept.keep(self._key(request), known.slot.cached(), inf)

    def free(self, request: RequestId) -> list[Effect]:
        if self.requests.pop(request, None) is None:
            return []
        return [ReleaseCache(self._key(request))]

    def free_source(self, source: PeerId) -> list[Effect]:
        """The source is gone, or lives its next life: none of its requests is wanted."""
        gone = [request for request in self.requests if request.source == source]
        return [effect for request in gone for effect in self.free(request)]

    def free_below(self, source: PeerId, oldest_live: int) -> list[Effect]:
        gone = [r for r in self.requests if r.source == source and r.sequence < oldest_live]
        return [effect for request in gone for effect in self.free(request)]

    def release_below(self, source: PeerId, oldest_live: int) -> Outcome:
        """As ``free_below``, passed on: whoever takes a freed slot must find it free at every
        stage, so the release goes ahead of it along the stages."""
        gone = [r for r in self.requests if r.source == source and r.sequence < oldest_live]
        groups = tuple(self._release_group(request) for request in gone)
        outcome = Outcome(effects=self.free_below(source, oldest_live))
        if groups and not self.is_last:
            outcome.offers.append((EdgeKind.INNER, -1, Frame(FrameKind.RELEASE, groups)))
        return outcome

    def _release_group(self, request: RequestId) -> RowGroupHeader:
        index = self.plan.sources.index(request.source)
        attempt = self.requests[request].attempt
        return RowGroupHeader(index, request.sequence, attempt, 0, 0, 0, 0, 0)

    def keep_all(self, until: float, elsewhere: Container[RequestId]) -> list[Effect]:
        """The plan is gone; its requests may go on with what they have here, but for those that
        run ``elsewhere`` already."""
        effects: list[Effect] = []
        for request, known in self.requests.items():
            key = self._key(request)
            if request in elsewhere:
                effects.append(ReleaseCache(key))
            else:
                effects += self.kept.keep(key, known.slot.cached(), until)
        self.requests.clear()
        return effects

    def cached(self, request: RequestId, continues: int) -> Cached:
        """What is here of the request, or of the one that it ``continues``; of this plan or of one
        that is gone."""
        known = self.requests.get(request)
        kept = self.kept.of(_before(request, continues))
        held = known.slot.cached() if known is not None else kept
        return held.within(self.units)

    def _key(self, request: RequestId) -> CacheKey:
        return CacheKey(request, ROLE, self.plan.id)

    def request_of(self, group: RowGroupHeader) -> RequestId:
        return RequestId(self.plan.sources[group.source_index], group.sequence)

    def _refusal(self, group: RowGroupHeader, reason: str, detail: str = "") -> AttemptRefused:
        return AttemptRefused(self.request_of(group), group.attempt, self.index, reason, detail)


def _before(request: RequestId, continues: int) -> RequestId:
    """Whose KV a request goes on from."""
    return RequestId(request.source, continues) if continues else request
