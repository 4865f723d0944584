"""A source's own first units: what its requests pass before the first stage.

Opens an attempt here and along the stages, computes the known tokens chunk by chunk as the entry
edge takes them, reads its log for stages that have to compute known positions again, and frees
what an attempt holds.  Knows nothing of why an attempt begins or ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from edgeshard_p2p.core.cached import Cached, Resuming, Slot, reopened
from edgeshard_p2p.core.effects import DropTensor, ReleaseCache, RunForward
from edgeshard_p2p.core.ended import EndedRequests
from edgeshard_p2p.core.events import ForwardDone
from edgeshard_p2p.core.flow import Frame
from edgeshard_p2p.core.ids import PeerId, RequestId, UnitRange
from edgeshard_p2p.core.kept import KeptCaches, LogRoom
from edgeshard_p2p.core.messages import FrameKind, Open, RowFlag, RowGroupHeader
from edgeshard_p2p.core.plan import CHUNK_ROWS, Plan
from edgeshard_p2p.core.recovery import SOURCE, Part, Resumption, resumption
from edgeshard_p2p.core.request import (
    ROLE,
    Compute,
    EntryRows,
    Flush,
    OfferFrame,
    Phase,
    Request,
    ReturnSlot,
    SourceStep,
)
from edgeshard_p2p.core.work import Job, RowGroup


@dataclass(slots=True)
class Entry:
    me: PeerId
    kept: KeptCaches
    """Of requests that are parked, or over."""
    log_room: LogRoom
    passes: dict[int, tuple[EntryRows, ...]] = field(default_factory=dict)
    """By job number."""
    ended: EndedRequests = field(init=False)
    _jobs: int = 0
    _micro_batches: int = 0

    def __post_init__(self) -> None:
        self.ended = EndedRequests(self.kept)

    def look_back(self, request: Request) -> None:
        """Whether one that is over has left something for this one to begin with."""
        is_new = not request.failovers
        request.continues = self.ended.longest(request.known) if is_new else None

    def resumption(self, request: Request, row_us: Callable[[PeerId], int]) -> Resumption:
        """Where to go on, from what this peer and the stages have; ``row_us`` is what one more
        row of a prefill costs in one block of a peer."""
        plan = request.plan
        assert plan is not None
        held = self._held(request)
        if not request.asks_caches or (request.continues is not None and not held.units):
            return Resumption(0)
        parts = [Part(SOURCE, plan.entry, held.within(plan.entry), row_us(self.me))]
        in_common = request.continues.length if request.continues else request.n_known
        for index, stage in enumerate(plan.stages):
            report = request.reports.get(index)
            there = Cached(report.cached, report.logs) if report is not None else Cached()
            there = there.up_to(in_common)
            parts.append(Part(index, stage.units, there.within(stage.units), row_us(stage.peer)))
        return resumption(parts, request.n_known)

    def _held(self, request: Request) -> Cached:
        """Here, to go on from; of a request that was over only what the two have in common."""
        held = self.kept.of(request.goes_on_from)
        return held.up_to(request.continues.length) if request.continues is not None else held

    def open(
        self, request: Request, resumption: Resumption, oldest_live: int
    ) -> list[SourceStep] | None:
        """Begin the attempt where ``resumption`` says; None where what that needs is not here."""
        plan = request.plan
        assert plan is not None
        position, replays = resumption.position, resumption.replays
        at = Resuming(SOURCE, plan.entry, plan.n_units, position, replays)
        opening = reopened(request.key, self._held(request).within(plan.entry), at)
        if opening is None:
            return None
        freed, adopts = self.kept.claim(request.key, position, request.goes_on_from)
        is_logged = bool(plan.stages) and bool(opening.logs)
        if plan.stages and not is_logged:
            more, is_logged = self.log_room(plan)
            freed += more
        continues = request.continues.request.sequence if request.continues and position else 0
        request.cached_tokens = position if continues else min(request.cached_tokens, position)
        request.continues = None
        opening = replace(opening, adopts=adopts, is_logged=is_logged)
        request.slot = Slot.opened(opening, at.refill())
        steps: list[SourceStep] = [*freed, opening]
        if plan.stages:
            body = Open(request.prompt.sampling, position, oldest_live, replays, continues)
            group = self._group(plan, request.id, request.attempt)
            steps.append(OfferFrame(plan, Frame(FrameKind.OPEN, (group,), body=body)))
        for replay in at.read():
            for units, rows in at.passes(opening.key, replay):
                steps.append(self._replay(request, replay.end, units, rows))
        return [*steps, *self.next_pass(request)]

    def _replay(self, request: Request, stop: int, units: UnitRange, rows: RowGroup) -> Compute:
        assert request.slot is not None
        assert request.plan is not None
        if units:
            request.slot.refilled(rows.rows)
        return Compute(
            EntryRows(
                request.plan,
                request.id,
                request.attempt,
                units,
                rows,
                flags=RowFlag.REPLAY,
                stop=stop,
            )
        )

    def next_pass(self, request: Request) -> list[SourceStep]:
        """Embedding and first layers for the next known tokens, when there are some."""
        plan, slot = request.plan, request.slot
        assert plan is not None
        assert slot is not None
        start = slot.length
        rows = min(CHUNK_ROWS, request.n_known - start)
        if rows == 0 or request.is_computing:
            return []
        slot.extend(rows)
        request.is_computing = True
        is_last = slot.length == request.n_known
        sampling = request.prompt.sampling if is_last and not plan.stages else None
        group = RowGroup(request.key, start, rows, sampling)
        tokens = request.tokens(start, start + rows)
        flags = RowFlag.LAST_CHUNK if is_last else 0
        return [
            Compute(
                EntryRows(
                    plan,
                    request.id,
                    request.attempt,
                    plan.entry,
                    group,
                    tokens,
                    flags,
                    is_chunk=rows > 1 or request.is_prefilling,
                )
            )
        ]

    def begin(self, taken: Sequence[EntryRows]) -> RunForward:
        """One pass of all of these, which are of one plan."""
        self._jobs += 1
        self.passes[self._jobs] = tuple(taken)
        first = taken[0]
        return RunForward(
            Job(first.plan.id, ROLE, self._jobs),
            first.units,
            tuple(rows.group for rows in taken),
            tuple(token for rows in taken for token in rows.tokens),
            is_from_log=not first.tokens,
        )

    def passed(self, taken: Sequence[EntryRows], event: ForwardDone) -> list[SourceStep]:
        """The rows of a pass go on to the first stage.  Those of requests that have ended meanwhile
        go along: they are one tensor, and the stage knows them."""
        plan, stop = taken[0].plan, taken[0].stop
        if stop and stop <= plan.entry.end:
            return [DropTensor(event.hidden)] if event.hidden is not None else []
        self._micro_batches += 1
        groups = tuple(
            self._group(
                plan,
                rows.request,
                rows.attempt,
                rows.group.position,
                rows.group.rows,
                rows.flags,
                rows.stop,
            )
            for rows in taken
        )
        frame = Frame(FrameKind.HIDDEN, groups, self._micro_batches, event.service_us, event.hidden)
        return [OfferFrame(plan, frame)]

    # --- freeing --------------------------------------------------------------------------

    def keep(self, request: Request, until: float) -> list[SourceStep]:
        """The attempt is over; what it has, here and along the stages, may serve the next one."""
        assert request.slot is not None
        cached, request.slot = request.slot.cached(), None
        request.is_computing, request.pass_number = False, None
        request.left_on = request.plan
        return [
            Flush(request.id, request.attempt, request.plan_id),
            *self.kept.keep(request.key, cached, until),
        ]

    def let_go(self, request: Request) -> list[SourceStep]:
        """Free what this attempt holds, here and along the stages, and what earlier ones left."""
        plan, steps = request.plan, list[SourceStep]()
        request.is_computing, request.pass_number, request.slot = False, None, None
        if request.phase is Phase.RUNNING:
            steps, request.left_on = [ReleaseCache(request.key)], plan
        elif request.phase is Phase.ASKING and plan is not None:
            steps.append(ReturnSlot(plan, request.id, request.attempt))
        return [*steps, *self.kept.drop(request.id), *self.leave(request)]

    def finish(self, request: Request) -> list[SourceStep]:
        """It has all its tokens, so all of its rows are computed.  What is cached of it stays where
        it is, here and along the stages, as long as nobody needs the place."""
        assert request.slot is not None
        cached, request.slot, request.left_on = request.slot.cached(), None, request.plan
        kept = self.kept.keep(request.key, cached, inf)
        self.ended.add(request.id, request.known)
        return [*kept, *self.leave(request, RowFlag.KEEP)]

    def leave(self, request: Request, flags: int = 0) -> list[SourceStep]:
        """Free what is left of it along the stages of the plan that it last ran on."""
        plan, request.left_on = request.left_on, None
        if plan is None:
            return []
        if not plan.stages:
            return [ReturnSlot(plan, request.id, request.attempt)]
        group = self._group(plan, request.id, request.attempt, flags=flags)
        return [OfferFrame(plan, Frame(FrameKind.RELEASE, (group,)))]

    def _group(
        self,
        plan: Plan,
        request: RequestId,
        attempt: int,
        position: int = 0,
        rows: int = 0,
        flags: int = 0,
        stop: int = 0,
    ) -> RowGroupHeader:
        index, stop = plan.sources.index(self.me), stop or plan.n_units
        return RowGroupHeader(
            index, request.sequence, attempt, position, rows, position, stop, flags
        )
