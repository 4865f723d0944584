"""The data plane of this peer: flows, stages, admission and its own requests, for all living
plans.

It routes between machines that do not know each other and turns what they want into effects.
Decides nothing itself.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from edgeshard_p2p.core.admission import Admission
from edgeshard_p2p.core.cache_desk import CacheDesk
from edgeshard_p2p.core.compute_desk import ComputeDesk, PassRows
from edgeshard_p2p.core.edges import Due, EdgeKind, EdgeSpec
from edgeshard_p2p.core.effects import DropTensor, Effect, LoadUnits, Send
from edgeshard_p2p.core.events import ForwardDone, ForwardFailed, FrameReceived
from edgeshard_p2p.core.flow import CarryS, Flow, Frame, LostEdge, refuse
from edgeshard_p2p.core.ids import PeerId, PlanId, RequestId
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import (
    AttemptRefused,
    CacheReport,
    EdgeAnswer,
    FrameAck,
    FrameKind,
    FrameRefused,
    SlotAnswer,
)
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.outcome import Outcome
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.request import (
    AskCaches,
    AskSlot,
    Compute,
    Flush,
    OfferFrame,
    ReturnSlot,
    SourceStep,
)
from edgeshard_p2p.core.slot_desk import SlotDesk
from edgeshard_p2p.core.source import SourceWork
from edgeshard_p2p.core.stage import StageWork
from edgeshard_p2p.core.timing import Timing

RETIRED_REMEMBERED = 32


@dataclass(slots=True)
class Serving:
    me: PeerId
    membership: Membership
    timing: Timing
    is_loaded: Callable[[PlanId], bool]
    row_us: Callable[[PeerId], int]
    """What one more row of a prefill costs in one block of a peer."""
    carry_s: CarryS
    travel_s: Callable[[Plan], float]
    """What a chunk of a prompt may take on the way along a plan's links."""
    pass_rows: PassRows
    has_rounds: Callable[[], bool]
    """Whether the schedule is the one with bubbles."""
    log_bytes: int
    """For all logs of hidden states together."""
    flows: dict[PlanId, Flow] = field(default_factory=dict)
    stages: dict[PlanId, StageWork] = field(default_factory=dict)
    slots: SlotDesk = field(init=False)
    source: SourceWork = field(init=False)
    caches: CacheDesk = field(init=False)
    desk: ComputeDesk = field(init=False)
    failed_edges: list[EdgeSpec] = field(default_factory=list)
    """Edges that could not be opened in time, for the caller to publish; it empties this."""
    refused: Counter[str] = field(default_factory=Counter)
    """What arrived and was not taken, by reason."""
    retired: deque[PlanId] = field(default_factory=lambda: deque(maxlen=RETIRED_REMEMBERED))
    _late: dict[int, list[RequestId]] = field(default_factory=dict)
    """Whose rows are still being computed of stages that have ended, by number of the job."""
    _job_numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _epochs: dict[str, int] = field(default_factory=lambda: {"last": 0})

    def __post_init__(self) -> None:
        self.caches = CacheDesk(
            self.me, self.membership, self.stages, self.flows, self.is_loaded, self.log_bytes
        )
        self.source = SourceWork(self.me, self.timing, self._log_room, self.row_us, self.travel_s)
        self.desk = ComputeDesk(
            self.stages, self.flows, self.source, self.pass_rows, self.has_rounds
        )
        self.slots = SlotDesk(
            self.membership, self.is_loaded, self.flows, self.source, self._run, self.refused
        )

    def _log_room(self, plan: Plan) -> tuple[list[Effect], bool]:
        effects, keepers = list[Effect](), (self.caches.kept, self.source.kept)
        n_spare = sum(kept.n_spare_logs() for kept in keepers)
        if not self.caches.may_log(plan, self.source.n_logs() - n_spare):
            return [], False
        while not self.caches.may_log(plan, self.source.n_logs()):
            for kept in keepers:
                effects += kept.drop_spare_log()
        return effects, True

    def revision(self) -> int:
        """Changes with everything here that this peer's records or plans depend on."""
        return self.source.revision + sum(flow.revision for flow in self.flows.values())

    def is_idle(self) -> bool:
        return not self.source.requests and not any(s.requests for s in self.stages.values())

    def next_deadline(self) -> float | None:
        times = [flow.next_deadline() for flow in self.flows.values()]
        times += [self.source.next_deadline(), self.caches.kept.next_deadline()]
        return min((time for time in times if time is not None), default=None)

    # --- plans come and go ----------------------------------------------------------------

    def start_plan(self, plan: Plan, model: ModelSpec) -> None:
        flow = Flow(plan, model, self.me, self.membership, self.timing, self._epochs, self.carry_s)
        flow.refused = self.refused
        self.flows[plan.id] = flow
        for index, stage in enumerate(plan.stages):
            if stage.peer == self.me:
                self.stages[plan.id] = StageWork(
                    plan, index, self.caches.kept, self._log_room, job_numbers=self._job_numbers
                )
        if plan.admitting == self.me:
            self.slots.admissions[plan.id] = Admission(plan.workload.batch)

    def end_plan(self, plan_id: PlanId, why: str, now: float) -> list[Effect]:
        effects = self._run(self.source.park_plan(plan_id, why, now), now)
        effects += self.desk.end_plan(plan_id)
        stage = self.stages.pop(plan_id, None)
        if stage is not None:
            elsewhere = {request for other in self.stages.values() for request in other.requests}
            self._late |= stage.passes()
            effects += stage.keep_all(now + self.timing.kept_s, elsewhere)
        self.slots.admissions.pop(plan_id, None)
        self.retired.append(plan_id)
        return effects + self.flows.pop(plan_id).close()

    def free_source(self, source: PeerId) -> list[Effect]:
        """This source is gone, or lives its next life; its plans are about to be retired, so
        nobody is granted its slots."""
        self.slots.forget_source(source)
        freed = [e for stage in self.stages.values() for e in stage.free_source(source)]
        return freed + self.caches.kept.forget_source(source)

    def free_below(self, source: PeerId, oldest_live: int, now: float) -> list[Effect]:
        effects = self.caches.kept.forget_below(source, oldest_live)
        for plan_id, stage in self.stages.items():
            effects += self._settle(plan_id, stage.release_below(source, oldest_live), now)
        effects += self.slots.forget_below(source, oldest_live, now)
        return effects + self._pump(now)

    def on_load(self, load: LoadUnits) -> list[Effect]:
        """What is kept has to fit what is about to stand here."""
        return self.caches.kept.on_load(load) + self.source.kept.on_load(load)

    def tick(self, now: float, why_no_plan: str) -> list[Effect]:
        effects = self.caches.kept.tick(now)
        for flow in list(self.flows.values()):
            effects += flow.tick(now)
        effects += self._run(self.source.tick(now, why_no_plan), now)
        return effects + self._pump(now)

    # --- frames ---------------------------------------------------------------------------

    def on_frame(self, event: FrameReceived, now: float) -> list[Effect]:
        plan_id = event.header.plan_id
        flow = self.flows.get(plan_id)
        if flow is None:
            reason = "plan_retired" if plan_id in self.retired else "no_such_plan"
        elif event.header.kind is not FrameKind.EDGE and not self.is_loaded(plan_id):
            reason = "not_loaded"
        else:
            # The work goes out before the acknowledgement: somebody waits for its result.
            answers = flow.on_frame(event, now)
            return [*self._pump(now), *self.desk.begin(), *answers]
        self.refused[reason] += 1
        dropped = [DropTensor(event.tensor)] if event.tensor is not None else []
        return [*dropped, *refuse(event.header, reason, self.membership)]

    def _flow_towards(self, sender: PeerId, plan_id: PlanId, edge: int) -> Flow | None:
        """The flow in which this edge leads to ``sender``: nobody else may speak of it."""
        flow = self.flows.get(plan_id)
        out = flow.out.get(edge) if flow is not None else None
        if out is not None and out.spec.receiver == sender:
            return flow
        self.refused["not_their_edge"] += 1
        return None

    def on_answer(self, sender: PeerId, answer: EdgeAnswer, now: float) -> list[Effect]:
        flow = self._flow_towards(sender, answer.plan, answer.edge)
        return flow.on_answer(answer, now) if flow is not None else []

    def on_ack(self, sender: PeerId, ack: FrameAck, now: float) -> list[Effect]:
        flow = self._flow_towards(sender, ack.plan, ack.edge)
        if flow is None:
            return []
        effects = flow.on_ack(ack, now)
        self.source.note_progress(ack.plan, now)
        return effects + self._pump(now)

    def on_refused(self, sender: PeerId, refused: FrameRefused, now: float) -> list[Effect]:
        flow = self._flow_towards(sender, refused.plan, refused.edge)
        return [*flow.on_refused(refused, now), *self._pump(now)] if flow is not None else []

    def _pump(self, now: float) -> list[Effect]:
        """Hand on what has arrived and what was lost, until nothing is left."""
        effects: list[Effect] = []
        busy = True
        while busy:
            busy = False
            for plan_id, flow in list(self.flows.items()):
                while flow.arrived:
                    busy = True
                    due, frame = flow.arrived.popleft()
                    effects += self._take(plan_id, due, frame, now)
                while flow.lost:
                    busy = True
                    effects += self._on_lost(flow, flow.lost.pop(), now)
        return effects

    def _take(self, plan_id: PlanId, due: Due, frame: Frame, now: float) -> list[Effect]:
        flow = self.flows[plan_id]
        if due.spec.kind is EdgeKind.RETURN:
            effects = flow.consumed(due)
            return effects + self._run(self.source.on_tokens(flow.plan, frame, now), now)
        stage, effects = self.stages[plan_id], list[Effect]()
        if frame.kind is FrameKind.OPEN:
            effects += self.desk.before_open(plan_id, stage.renewed(frame))
        effects += self._settle(plan_id, stage.on_frame(due, frame), now)
        if frame.kind is FrameKind.RELEASE:
            released = [(stage.request_of(group), group.attempt) for group in frame.groups]
            effects += self.slots.released(plan_id, released, now)
        return effects

    def _on_lost(self, flow: Flow, lost: LostEdge, now: float) -> list[Effect]:
        if not lost.was_open:
            self.failed_edges.append(lost.spec)
        if lost.spec.kind is not EdgeKind.ENTRY:
            return self._settle(flow.plan.id, self.stages[flow.plan.id].on_lost(lost.frames), now)
        effects: list[Effect] = []
        text = f"stage 1 of {len(flow.plan.stages)} ({lost.spec.receiver}) does not confirm"
        for frame in lost.frames:
            if frame.tensor is not None:
                effects.append(DropTensor(frame.tensor))
            for group in frame.groups if frame.kind is not FrameKind.RELEASE else ():
                request = RequestId(self.me, group.sequence)
                steps = self.source.on_attempt_refused(request, group.attempt, text, now)
                effects += self._run(steps, now)
        return effects

    # --- compute --------------------------------------------------------------------------

    def on_done(self, event: ForwardDone, now: float) -> list[Effect]:
        self.desk.ended(event.job)
        if event.job.role == "entry":
            return self._run(self.source.on_done(event, now), now) + self._pump(now)
        stage = self.stages.get(event.job.plan)
        self._late.pop(event.job.number, None)
        if stage is None:
            return [DropTensor(event.hidden)] if event.hidden is not None else []
        return self._settle(event.job.plan, stage.on_done(event), now) + self._pump(now)

    def on_failed(self, event: ForwardFailed, now: float) -> list[Effect]:
        self.desk.ended(event.job)
        if event.job.role == "entry":
            steps = self.source.on_failed(event.job.number, event.detail, now)
            return self._run(steps, now) + self._pump(now)
        effects = self._on_late_failure(event, now)
        stage = self.stages.get(event.job.plan)
        if stage is not None:
            outcome = stage.on_failed(event.job.number, event.detail)
            effects += self._settle(event.job.plan, outcome, now)
        return effects + self._pump(now)

    def _on_late_failure(self, event: ForwardFailed, now: float) -> list[Effect]:
        """What was kept of these requests, or adopted since, is not what it was taken for."""
        effects: list[Effect] = []
        for request in self._late.pop(event.job.number, ()):
            effects += self.caches.kept.drop(request)
            for plan_id, stage in self.stages.items():
                effects += self._settle(plan_id, stage.fail(request, event.detail), now)
        return effects

    def _settle(self, plan_id: PlanId, outcome: Outcome, now: float) -> list[Effect]:
        """Turn what a stage wants into effects."""
        flow, effects = self.flows[plan_id], list(outcome.effects)
        index = self.stages[plan_id].index
        for kind, source_index, frame in outcome.offers:
            leads_to = index + 1 if kind is EdgeKind.INNER else index
            effects += flow.offer(flow.find(kind, leads_to, source_index), frame, now)
        for refusal in outcome.refusals:
            self.refused[refusal.reason] += 1
            effects += self._tell_source(flow.plan, refusal, now)
        for due in outcome.consumed:
            effects += flow.consumed(due)
        for rows in outcome.waits:
            self.desk.put_stage(self.stages[plan_id], rows)
        return effects

    def _tell_source(self, plan: Plan, refusal: AttemptRefused, now: float) -> list[Effect]:
        if refusal.request.source == self.me:
            return self.on_attempt_refused(self.me, refusal, now)
        address = self.membership.address_of(refusal.request.source)
        return [Send(address, refusal)] if address is not None else []

    def on_attempt_refused(
        self, sender: PeerId, refusal: AttemptRefused, now: float
    ) -> list[Effect]:
        if refusal.reason == "stale_attempt":
            return []
        request = self.source.requests.get(refusal.request)
        stages = request.plan.stages if request is not None and request.plan is not None else ()
        if refusal.stage >= len(stages) or stages[refusal.stage].peer != sender:
            self.refused["not_theirs_to_say"] += 1
            return []
        detail = f": {refusal.detail}" if refusal.detail else ""
        text = f"stage {refusal.stage + 1} ({sender}) refused: {refusal.reason}{detail}"
        steps = self.source.on_attempt_refused(refusal.request, refusal.attempt, text, now)
        return self._run(steps, now)

    def on_slot_answer(self, sender: PeerId, answer: SlotAnswer, now: float) -> list[Effect]:
        return self.slots.on_answer(sender, answer, now) + self._pump(now)

    # --- this peer's own requests ---------------------------------------------------------

    def run(self, steps: list[SourceStep], now: float) -> list[Effect]:
        """Perform what the source wants, and whatever follows from it here."""
        return self._run(steps, now) + self._pump(now)

    def _run(self, steps: list[SourceStep], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for step in steps:
            if isinstance(step, AskSlot):
                effects += self.slots.ask(step, now)
            elif isinstance(step, AskCaches):
                effects += self._ask_caches(step, now)
            elif isinstance(step, OfferFrame):
                effects += self._offer(step, now)
            elif isinstance(step, ReturnSlot):
                effects += self.slots.give_back(step, now)
            elif isinstance(step, Compute):
                self.desk.put_entry(step.rows)
            elif isinstance(step, Flush):
                effects += self.desk.flush_entry(step)
            else:
                effects.append(step)
        return effects

    def _offer(self, step: OfferFrame, now: float) -> list[Effect]:
        flow = self.flows.get(step.plan.id)
        if flow is None:
            return [DropTensor(step.frame.tensor)] if step.frame.tensor is not None else []
        return flow.offer(flow.onward(self.me, 0), step.frame, now)

    def _ask_caches(self, step: AskCaches, now: float) -> list[Effect]:
        effects, own = self.caches.ask(step)
        return effects + (self.on_cache_report(self.me, own, now) if own is not None else [])

    def on_cache_report(self, sender: PeerId, report: CacheReport, now: float) -> list[Effect]:
        flow = self.flows.get(report.plan)
        stages = flow.plan.stages if flow is not None else ()
        if report.stage >= len(stages) or stages[report.stage].peer != sender:
            return []
        return self._run(self.source.on_report(report, now), now)
