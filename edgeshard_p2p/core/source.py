"""The requests that this peer owns: from the prompt to the last token.

A request runs as a numbered attempt on one plan.  When an attempt cannot go on, for whatever
reason, the request is parked: its tokens are kept, and the next attempt goes on from what is left
of the last one (``recovery``), on the plan that is active then.  A token counts only for (request,
current attempt, next position).
Knows nothing of sockets, stages' insides or how plans are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeshard_p2p.core.admission import RETRY_MS
from edgeshard_p2p.core.effects import (
    DropTensor,
    EmitToken,
    FinishRequest,
    RequestNotice,
    RunForward,
)
from edgeshard_p2p.core.entry import Entry
from edgeshard_p2p.core.events import ForwardDone, PromptSubmitted
from edgeshard_p2p.core.flow import Frame
from edgeshard_p2p.core.ids import PeerId, PlanId, RequestId
from edgeshard_p2p.core.kept import KeptCaches, LogRoom
from edgeshard_p2p.core.messages import CacheReport, SlotAnswer
from edgeshard_p2p.core.plan import CHUNK_ROWS, Plan
from edgeshard_p2p.core.recovery import Resumption
from edgeshard_p2p.core.request import (
    ROLE,
    AskSlot,
    EntryRows,
    Phase,
    Request,
    SourceStep,
    is_back,
    stats_of,
    story,
)
from edgeshard_p2p.core.timing import Timing

REQUESTS_MAX = 64
ATTEMPTS_MAX = 16


@dataclass(slots=True)
class SourceWork:
    me: PeerId
    timing: Timing
    log_room: LogRoom
    row_us: Callable[[PeerId], int]
    """What one more row of a prefill costs in one block of a peer."""
    travel_s: Callable[[Plan], float]
    """What a chunk of a prompt may take on the way along a plan's links."""
    requests: dict[RequestId, Request] = field(default_factory=dict)
    kept: KeptCaches = field(init=False)
    """What parked requests have here."""
    entry: Entry = field(init=False)
    revision: int = 0
    """Rises when a request comes, goes or changes its phase."""
    _sequence: int = 0

    def __post_init__(self) -> None:
        self.kept = KeptCaches(ROLE, self.n_running)
        self.entry = Entry(self.me, self.kept, self.log_room)

    # --- questions ------------------------------------------------------------------------

    @property
    def oldest_live(self) -> int:
        return min((r.sequence for r in self.requests), default=self._sequence + 1)

    def n_logs(self) -> int:
        slots = [r.slot for r in self.requests.values() if r.slot is not None]
        return self.kept.n_logs() + sum(1 for slot in slots if slot.is_logged)

    def running_plans(self) -> tuple[PlanId, ...]:
        """Plans that still run requests of this source, sorted."""
        ids = {r.plan_id for r in self.requests.values() if r.phase is not Phase.WAITING}
        return tuple(sorted(plan_id for plan_id in ids if plan_id is not None))

    def n_running(self, plan: PlanId | None = None) -> int:
        running = [r for r in self.requests.values() if r.phase is Phase.RUNNING]
        return sum(1 for request in running if plan in (None, request.plan_id))

    def _running(self, request_id: RequestId, attempt: int) -> Request | None:
        """The request, if it runs in this very attempt: whatever comes late belongs to nobody."""
        request = self.requests.get(request_id)
        if request is None or request.phase is not Phase.RUNNING or request.attempt != attempt:
            return None
        return request

    def next_deadline(self) -> float | None:
        times = [request.wakes_at(self.timing) for request in self.requests.values()]
        times += [time for time in (self.kept.next_deadline(),) if time is not None]
        return min(times, default=None)

    # --- coming and going -----------------------------------------------------------------

    def submit(self, prompt: PromptSubmitted, model_digest: str, now: float) -> Request:
        self._sequence += 1
        own = RequestId(self.me, self._sequence)
        request = self.requests[own] = Request(own, prompt, now, model_digest, phase_since=now)
        self.revision += 1
        return request

    def start(self, plan: Plan, begun: dict[PeerId, int], now: float) -> list[SourceStep]:
        """Ask for a slot on ``plan`` for every request that waits for a plan, oldest first."""
        steps: list[SourceStep] = []
        waiting = [r for r in self.requests.values() if r.phase is Phase.WAITING]
        for request in sorted(waiting, key=lambda r: r.id):
            if now < request.not_before:
                continue
            if request.model_digest != plan.model_digest:
                text = "the swarm has changed its model"
                steps += self._end(request, "error", text, now)
                continue
            if request.left_on is not None and request.left_on.id != plan.id:
                steps += self.entry.leave(request)
            request.plan, request.begun = plan, begun
            if request.n_known >= plan.workload.context:
                steps += self._end_too_long(request, plan.workload.context, now)
                continue
            request.attempt += 1
            request.is_granted, request.reports = False, {}
            self.entry.look_back(request)
            self._enter(request, Phase.ASKING, now)
            steps += self._ask(request, now)
        return steps

    def _end_too_long(self, request: Request, context: int, now: float) -> list[SourceStep]:
        """Accepted under a longer context than this plan's; one with that may be loading."""
        if request.generated:
            return self._end(request, "length", "", now)
        text = f"the prompt has {request.n_known} tokens, the swarm's context is now {context}"
        return self._end(request, "error", text, now, retry_ms=RETRY_MS)

    def _ask(self, request: Request, now: float) -> list[SourceStep]:
        """For a slot, and for what the stages have of it."""
        plan = request.plan
        assert plan is not None
        request.ask_at = now + self.timing.ask_repeat_s
        waited = now - (request.parked_at or request.created_at)
        steps: list[SourceStep] = []
        if request.asks_caches and plan.stages:
            steps.append(request.ask_caches())
        if not request.is_granted:
            steps.append(
                AskSlot(plan, request.id, request.attempt, waited, bool(request.generated))
            )
        return steps

    def on_slot(self, answer: SlotAnswer, now: float) -> list[SourceStep]:
        request, verdict = self.requests.get(answer.request), answer.verdict
        if request is None or not request.asks_for(answer.plan, answer.attempt):
            return []
        request.retry_ms = answer.retry_ms
        if verdict == "granted":
            if not request.is_granted:
                request.is_granted, request.begin_by = True, now + self.timing.report_wait_s
            return self._begin_when_known(request, now)
        if verdict == "no_such_plan":
            # Asked again in a while; when the plan is retired here, it is parked.
            request.cause = "the plan's first stage is not ready for it"
            return []
        if verdict == "overloaded":
            request.cause = "every slot and the waiting queue are full"
            return self._end(request, "error", request.cause, now, answer.retry_ms)
        request.cause = "every slot of the plan is taken"
        return []

    def on_report(self, report: CacheReport, now: float) -> list[SourceStep]:
        request = self.requests.get(report.request)
        if request is None or not request.asks_for(report.plan, request.attempt):
            return []
        request.reports[report.stage] = report
        return self._begin_when_known(request, now)

    def _begin_when_known(self, request: Request, now: float) -> list[SourceStep]:
        assert request.plan is not None
        are_all_here = not request.asks_caches or len(request.reports) == len(request.plan.stages)
        if not request.is_granted or not (are_all_here or now >= request.begin_by):
            return []
        return self._begin(request, now)

    def _begin(self, request: Request, now: float) -> list[SourceStep]:
        assert request.plan is not None
        request.progress_at, request.travel_s = now, self.travel_s(request.plan)
        found = self.entry.resumption(request, self.row_us)
        self._enter(request, Phase.RUNNING, now)
        steps = self.entry.open(request, found, self.oldest_live)
        if steps is None:
            found = Resumption(0)
            steps = self.entry.open(request, found, self.oldest_live)
        assert steps is not None, "a new prefill needs nothing"
        if request.parked_at is None:
            return steps
        request.replayed_tokens += (n_replayed := found.n_replayed(request.n_known))
        return [RequestNotice(request.id, story(request, found, n_replayed)), *steps]

    # --- the entry pass -------------------------------------------------------------------

    def on_done(self, event: ForwardDone, now: float) -> list[SourceStep]:
        done = self.entry.passes.pop(event.job.number)
        runs = [self._running(rows.request, rows.attempt) for rows in done]
        live = [(k, request) for k, request in enumerate(runs) if request is not None]
        if not live:
            return [DropTensor(event.hidden)] if event.hidden is not None else []
        for _, request in live:
            request.progress_at = now
        if done[0].stop:
            return self.entry.passed(done, event)
        has_stages = bool(done[0].plan.stages)
        steps = self.entry.passed(done, event) if has_stages else []
        for k, request in live:
            request.is_computing = False
            if has_stages or (token := event.tokens[k]) is None:
                steps += self.entry.next_pass(request)
            else:
                steps += self._take(request, token, now)
        return steps

    def begin(self, taken: Sequence[EntryRows]) -> RunForward | None:
        """One pass of those whose attempts still run."""
        if not (live := [rows for rows in taken if self._running(rows.request, rows.attempt)]):
            return None
        run = self.entry.begin(live)
        for rows in (one for one in live if not one.is_chunk):
            self.requests[rows.request].pass_number = run.job.number
        return run

    def note_progress(self, plan: PlanId, now: float) -> None:
        """The plan takes frames: a long prompt is not a stuck one.

        NOTE: they may be anybody's frames, so this renews the patience with a prompt only, and
        only in proportion to its length; else one request could keep a lost one waiting for ever.
        """
        for request in self.requests.values():
            if request.plan_id == plan and request.is_prefilling:
                n_chunks = -(-request.n_known // CHUNK_ROWS)
                ends_at = request.phase_since + n_chunks * request.patience_s(self.timing)
                request.progress_at = max(request.progress_at, min(now, ends_at))

    def on_failed(self, number: int, detail: str, now: float) -> list[SourceStep]:
        text = f"{self.me} (source) could not compute the first layers: {detail}"
        steps: list[SourceStep] = []
        done = self.entry.passes.pop(number)
        for failed in done:
            request = self.requests.get(failed.request)
            if request is None or request.phase is not Phase.RUNNING:
                steps += self.kept.drop(failed.request)
            elif len(done) > 1 or request.attempt != failed.attempt:  # Not, or not yet, its fault.
                steps += self._park(request, text, now, keeps=False)
            else:
                steps += self._end(request, "error", text, now)
        return steps

    # --- tokens ---------------------------------------------------------------------------

    def on_tokens(self, plan: Plan, frame: Frame, now: float) -> list[SourceStep]:
        steps: list[SourceStep] = []
        for group, token in zip(frame.groups, frame.tokens, strict=True):
            request = self._running(RequestId(self.me, group.sequence), group.attempt)
            if request and (request.plan_id, request.n_known) == (plan.id, group.position):
                steps += self._take(request, token, now)
        return steps

    def _take(self, request: Request, token: int, now: float) -> list[SourceStep]:
        request.progress_at = request.last_token_at = now
        request.fruitless = 0
        is_back(request.pass_number, self.requests.values())
        if request.first_token_at is None:
            request.first_token_at = now
        if request.parked_at is not None:
            request.recovery_s += now - request.parked_at
            request.parked_at = None
        if token in request.prompt.stop_ids:
            return self._end(request, "stop", "", now)
        request.generated.append(token)
        steps: list[SourceStep] = [EmitToken(request.id, token)]
        assert request.plan is not None
        is_full = request.n_known >= request.plan.workload.context
        if len(request.generated) >= request.prompt.max_tokens or is_full:
            return [*steps, *self._end(request, "length", "", now)]
        return [*steps, *self.entry.next_pass(request)]

    # --- trouble --------------------------------------------------------------------------

    def on_attempt_refused(
        self, request_id: RequestId, attempt: int, text: str, now: float
    ) -> list[SourceStep]:
        """A stage cannot go on with this attempt; ``text`` names peer, stage and cause."""
        request = self._running(request_id, attempt)
        if request is None:
            return []
        # An attempt that went on from what was there and got nowhere is followed by a new prefill.
        return self._park(request, text, now, keeps=not request.fruitless)

    def park_plan(
        self, plan: PlanId, text: str, now: float, keeps: bool = True
    ) -> list[SourceStep]:
        """The plan cannot serve any more: everything that runs on it waits for the next."""
        hit = [
            request
            for request in self.requests.values()
            if request.plan_id == plan and request.phase is not Phase.WAITING
        ]
        return [step for request in hit for step in self._park(request, text, now, keeps)]

    def park_restarted(
        self, plan: PlanId, begun: dict[PeerId, int], now: float
    ) -> list[SourceStep]:
        """Some peers may have begun the plan anew; ``begun`` is what they say now."""
        steps: list[SourceStep] = []
        for request in list(self.requests.values()):
            if request.plan_id != plan or request.phase is Phase.WAITING:
                continue
            known = request.begun
            changed = [p for p, number in begun.items() if known.get(p, number) != number]
            if changed:
                steps += self._park(request, f"{changed[0]} began the plan anew", now)
        return steps

    def _park(
        self, request: Request, text: str, now: float, keeps: bool = True
    ) -> list[SourceStep]:
        """``keeps``: what this attempt has cached may serve the next one."""
        was_running = request.phase is Phase.RUNNING
        kept_until = now + self.timing.kept_s
        may_keep, entry = was_running and keeps, self.entry
        steps = entry.keep(request, kept_until) if may_keep else entry.let_go(request)
        request.plan, request.cause = None, text
        if not was_running:
            self._enter(request, Phase.WAITING, now, keep_since=True)
            return steps
        if request.failovers + 1 >= ATTEMPTS_MAX:
            return [*steps, *self._end(request, "error", f"gave up after {text}", now)]
        self._enter(request, Phase.WAITING, now)
        request.may_resume, request.lost = keeps, text
        request.not_before = now + self.timing.retry_s * request.fruitless
        request.fruitless += 1
        request.failovers += 1
        if request.parked_at is None:
            request.parked_at = now
        return [*steps, RequestNotice(request.id, f"interrupted: {text}")]

    def _enter(self, request: Request, phase: Phase, now: float, keep_since: bool = False) -> None:
        # Going back and forth between waiting and asking must not renew the deadline.
        if not keep_since and Phase.RUNNING in (phase, request.phase):
            request.phase_since = now
        request.phase = phase
        self.revision += 1

    # --- the end --------------------------------------------------------------------------

    def cancel(self, request_id: RequestId, now: float) -> list[SourceStep]:
        request = self.requests.get(request_id)
        return self._end(request, "cancelled", "", now) if request is not None else []

    def end_all(self, text: str, now: float) -> list[SourceStep]:
        return [s for r in [*self.requests.values()] for s in self._end(r, "error", text, now)]

    def end_waiting(self, text: str, now: float) -> list[SourceStep]:
        """No plan will come: requests that wait for one end with the reason."""
        waiting = [r for r in self.requests.values() if r.phase is Phase.WAITING]
        return [step for request in waiting for step in self._end(request, "error", text, now)]

    def tick(self, now: float, why_no_plan: str) -> list[SourceStep]:
        steps: list[SourceStep] = [*self.kept.tick(now)]
        for request in list(self.requests.values()):
            if request.phase is Phase.ASKING and now >= request.ask_at:
                steps += self._ask(request, now)
            if request.phase is Phase.ASKING and request.is_granted:
                steps += self._begin_when_known(request, now)
            if now >= request.not_before:
                request.not_before = 0.0
            if now < request.ends_at(self.timing):
                continue
            if request.phase is Phase.RUNNING:
                text = f"no token for {self.timing.progress_s:.0f} s on plan {request.plan_id}"
                steps += self._park(request, text, now, keeps=False)
            else:
                is_asking = request.phase is Phase.ASKING
                cause = request.cause or ("no slot came free" if is_asking else why_no_plan)
                waited = f"waited {now - request.phase_since:.0f} s: {cause}"
                steps += self._end(request, "error", waited, now, request.retry_ms * is_asking)
        return steps

    def _end(
        self, request: Request, reason: str, error: str, now: float, retry_ms: int = 0
    ) -> list[SourceStep]:
        is_whole = reason in ("stop", "length") and request.phase is Phase.RUNNING
        steps = self.entry.finish(request) if is_whole else self.entry.let_go(request)
        del self.requests[request.id]
        self.revision += 1
        tokens, stats = tuple(request.generated), stats_of(request)
        return [*steps, FinishRequest(request.id, reason, stats, error, tokens, retry_ms)]
