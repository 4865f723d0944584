"""The requests that this peer owns: from the prompt to the last token.

A request runs as a numbered attempt on one plan.  When an attempt cannot go on, for whatever
reason, the request is parked: its tokens are kept, and the next attempt prefills them again on
the plan that is active then.  A token counts only for (request, current attempt, next position).
Knows nothing of sockets, stages' insides or how plans are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edgeshard_p2p.core.effects import (
    DropTensor,
    EmitToken,
    FinishRequest,
    OpenCache,
    ReleaseCache,
    RequestNotice,
    RunForward,
)
from edgeshard_p2p.core.events import ForwardDone, PromptSubmitted
from edgeshard_p2p.core.flow import Frame
from edgeshard_p2p.core.ids import PeerId, PlanId, RequestId
from edgeshard_p2p.core.messages import FrameKind, Open, RowFlag, RowGroupHeader
from edgeshard_p2p.core.plan import CHUNK_ROWS, Plan
from edgeshard_p2p.core.request import (
    ROLE,
    AskSlot,
    OfferFrame,
    Phase,
    Request,
    ReturnSlot,
    SourceStep,
    stats_of,
)
from edgeshard_p2p.core.timing import Timing
from edgeshard_p2p.core.work import Job, RowGroup

CHUNKS_AHEAD = 4
"""Prefill frames that may wait on the entry edge before the next chunk is computed."""
REQUESTS_MAX = 64
ATTEMPTS_MAX = 16


@dataclass(slots=True)
class SourceWork:
    me: PeerId
    timing: Timing
    entry_load: Callable[[Plan], int]
    """Frames that wait on the entry edge of a plan."""
    requests: dict[RequestId, Request] = field(default_factory=dict)
    jobs: dict[int, tuple[RequestId, int, int]] = field(default_factory=dict)
    """By job number: request, attempt, rows."""
    revision: int = 0
    """Rises when a request comes, goes or changes its phase."""
    _sequence: int = 0
    _jobs: int = 0
    _micro_batches: int = 0

    # --- questions ------------------------------------------------------------------------

    @property
    def oldest_live(self) -> int:
        return min((r.sequence for r in self.requests), default=self._sequence + 1)

    def running_plans(self) -> tuple[PlanId, ...]:
        """Plans that still run requests of this source, sorted."""
        ids = {r.plan_id for r in self.requests.values() if r.phase is not Phase.WAITING}
        return tuple(sorted(plan_id for plan_id in ids if plan_id is not None))

    def _running(self, request_id: RequestId, attempt: int) -> Request | None:
        """The request, if it runs in this very attempt: whatever comes late belongs to nobody."""
        request = self.requests.get(request_id)
        if request is None or request.phase is not Phase.RUNNING or request.attempt != attempt:
            return None
        return request

    def next_deadline(self) -> float | None:
        return min((self._wakes_at(r) for r in self.requests.values()), default=None)

    def _wakes_at(self, request: Request) -> float:
        if request.phase is Phase.ASKING:
            return min(self._ends_at(request), request.ask_at)
        if request.phase is Phase.WAITING and request.not_before:
            return request.not_before
        return self._ends_at(request)

    def _ends_at(self, request: Request) -> float:
        """When what it waits for is given up."""
        if request.phase is Phase.RUNNING:
            return request.progress_at + self.timing.progress_s
        return request.phase_since + self.timing.request_wait_s

    # --- coming and going -----------------------------------------------------------------

    def submit(self, prompt: PromptSubmitted, model_digest: str, now: float) -> Request:
        self._sequence += 1
        request = Request(
            RequestId(self.me, self._sequence), prompt, now, model_digest, phase_since=now
        )
        self.requests[request.id] = request
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
            request.plan, request.begun = plan, begun
            if request.n_known >= plan.workload.context:
                steps += self._end_too_long(request, now)
                continue
            request.attempt += 1
            self._enter(request, Phase.ASKING, now)
            steps.append(self._ask(request, now))
        return steps

    def _end_too_long(self, request: Request, now: float) -> list[SourceStep]:
        """It was accepted under a longer context than the swarm has now."""
        assert request.plan is not None
        if request.generated:
            return self._end(request, "length", "", now)
        context = request.plan.workload.context
        text = f"the prompt has {request.n_known} tokens, the swarm's context is now {context}"
        return self._end(request, "error", text, now)

    def _ask(self, request: Request, now: float) -> AskSlot:
        assert request.plan is not None
        request.ask_at = now + self.timing.ask_repeat_s
        waited_s = now - (request.parked_at or request.created_at)
        is_running = bool(request.generated)
        return AskSlot(request.plan, request.id, request.attempt, waited_s, is_running)

    def on_slot(
        self, request_id: RequestId, attempt: int, plan: PlanId, verdict: str, now: float
    ) -> list[SourceStep]:
        request = self.requests.get(request_id)
        if request is None or not request.asks_for(plan, attempt):
            return []
        if verdict == "granted":
            return self._begin(request, now)
        if verdict == "no_such_plan":
            # Asked again in a while; when the plan is retired here, it is parked.
            request.cause = "the plan's first stage is not ready for it"
            return []
        if verdict == "overloaded":
            request.cause = "every slot and the waiting queue are full"
            return self._end(request, "error", request.cause + "; try again later", now)
        request.cause = "every slot of the plan is taken"
        return []

    def _begin(self, request: Request, now: float) -> list[SourceStep]:
        plan = request.plan
        assert plan is not None
        request.computed = 0
        request.progress_at = now
        self._enter(request, Phase.RUNNING, now)
        if request.parked_at is not None:
            request.replayed_tokens += request.n_known
        opening = Open(request.prompt.sampling, 0, self.oldest_live)
        steps: list[SourceStep] = [OpenCache(request.key, plan.entry, 0)]
        if plan.stages:
            group = self._group(request, 0, 0, 0)
            steps.append(OfferFrame(plan, Frame(FrameKind.OPEN, (group,), body=opening)))
        return [*steps, *self._next_pass(request)]

    # --- the entry pass -------------------------------------------------------------------

    def _next_pass(self, request: Request) -> list[SourceStep]:
        """Embedding and first layers for the next known tokens, when there are some and the
        entry edge can take more."""
        plan = request.plan
        assert plan is not None
        rows = min(CHUNK_ROWS, request.n_known - request.computed)
        if rows == 0 or request.is_computing or self.entry_load(plan) >= CHUNKS_AHEAD:
            return []
        start, request.computed = request.computed, request.computed + rows
        request.is_computing = True
        self._jobs += 1
        self.jobs[self._jobs] = (request.id, request.attempt, rows)
        emits = not plan.stages and request.computed == request.n_known
        sampling = request.prompt.sampling if emits else None
        group = RowGroup(request.key, start, rows, sampling)
        tokens = request.known[start : start + rows]
        return [RunForward(Job(plan.id, ROLE, self._jobs), plan.entry, (group,), tokens)]

    def on_done(self, event: ForwardDone, now: float) -> list[SourceStep]:
        request_id, attempt, rows = self.jobs.pop(event.job.number)
        request = self._running(request_id, attempt)
        if request is None or request.plan is None:
            return [DropTensor(event.hidden)] if event.hidden is not None else []
        request.is_computing = False
        request.progress_at = now
        if not request.plan.stages:
            token = event.tokens[0]
            if token is None:
                return self._next_pass(request)
            return self._take(request, token, now)
        self._micro_batches += 1
        start = request.computed - rows
        group = self._group(request, start, rows, self._flags(request))
        frame = Frame(
            FrameKind.HIDDEN, (group,), self._micro_batches, event.service_us, event.hidden
        )
        return [OfferFrame(request.plan, frame), *self._next_pass(request)]

    def note_progress(self, plan: PlanId, now: float) -> None:
        """The plan takes frames: a long prompt is not a stuck one.

        NOTE: they may be anybody's frames, so this renews the patience with a prompt only, and
        only in proportion to its length; else one request could keep a lost one waiting for ever.
        """
        for request in self.requests.values():
            if request.plan_id == plan and request.is_prefilling:
                n_chunks = -(-request.n_known // CHUNK_ROWS)
                ends_at = request.phase_since + n_chunks * self.timing.progress_s
                request.progress_at = max(request.progress_at, min(now, ends_at))

    def resume_passes(self) -> list[SourceStep]:
        """The entry edge took something: go on with prompts that waited for it."""
        running = [r for r in self.requests.values() if r.phase is Phase.RUNNING]
        return [step for request in running for step in self._next_pass(request)]

    def on_failed(self, number: int, detail: str, now: float) -> list[SourceStep]:
        request_id, attempt, _ = self.jobs.pop(number)
        request = self._running(request_id, attempt)
        if request is None:
            return []
        text = f"{self.me} (source) could not compute the first layers: {detail}"
        return self._end(request, "error", text, now)

    def _flags(self, request: Request) -> int:
        return RowFlag.LAST_CHUNK if request.computed == request.n_known else 0

    def _group(self, request: Request, position: int, rows: int, flags: int) -> RowGroupHeader:
        assert request.plan is not None
        n_units = request.plan.stages[-1].units.end
        index = request.plan.sources.index(self.me)
        return RowGroupHeader(
            index, request.id.sequence, request.attempt, position, rows, position, n_units, flags
        )

    # --- tokens ---------------------------------------------------------------------------

    def on_tokens(self, plan: Plan, frame: Frame, now: float) -> list[SourceStep]:
        steps: list[SourceStep] = []
        for group, token in zip(frame.groups, frame.tokens, strict=True):
            request = self.requests.get(RequestId(self.me, group.sequence))
            if request is None or request.plan_id != plan.id or request.phase is not Phase.RUNNING:
                continue
            if group.attempt == request.attempt and group.position == request.n_known:
                steps += self._take(request, token, now)
        return steps

    def _take(self, request: Request, token: int, now: float) -> list[SourceStep]:
        request.progress_at = request.last_token_at = now
        request.fruitless = 0
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
        return [*steps, *self._next_pass(request)]

    # --- trouble --------------------------------------------------------------------------

    def on_attempt_refused(
        self, request_id: RequestId, attempt: int, text: str, now: float
    ) -> list[SourceStep]:
        """A stage cannot go on with this attempt; ``text`` names peer, stage and cause."""
        request = self._running(request_id, attempt)
        return self._park(request, text, now) if request is not None else []

    def park_plan(self, plan: PlanId, text: str, now: float) -> list[SourceStep]:
        """The plan cannot serve any more: everything that runs on it waits for the next."""
        hit = [
            request
            for request in self.requests.values()
            if request.plan_id == plan and request.phase is not Phase.WAITING
        ]
        return [step for request in hit for step in self._park(request, text, now)]

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

    def _park(self, request: Request, text: str, now: float) -> list[SourceStep]:
        steps = self._let_go(request)
        was_running = request.phase is Phase.RUNNING
        request.plan, request.cause = None, text
        if not was_running:
            self._enter(request, Phase.WAITING, now, keep_since=True)
            return steps
        if request.failovers + 1 >= ATTEMPTS_MAX:
            return [*steps, *self._end(request, "error", f"gave up after {text}", now)]
        self._enter(request, Phase.WAITING, now)
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

    def _let_go(self, request: Request) -> list[SourceStep]:
        """Free what this attempt holds, here and along the stages."""
        plan = request.plan
        if plan is None:
            return []
        request.is_computing = False
        if request.phase is Phase.ASKING:
            return [ReturnSlot(plan, request.id, request.attempt)]
        if request.phase is not Phase.RUNNING:
            return []
        steps: list[SourceStep] = [ReleaseCache(request.key)]
        if not plan.stages:
            return [*steps, ReturnSlot(plan, request.id, request.attempt)]
        group = self._group(request, 0, 0, 0)
        return [*steps, OfferFrame(plan, Frame(FrameKind.RELEASE, (group,)))]

    # --- the end --------------------------------------------------------------------------

    def cancel(self, request_id: RequestId, now: float) -> list[SourceStep]:
        request = self.requests.get(request_id)
        return self._end(request, "cancelled", "", now) if request is not None else []

    def end_all(self, text: str, now: float) -> list[SourceStep]:
        live = list(self.requests.values())
        return [step for request in live for step in self._end(request, "error", text, now)]

    def end_waiting(self, text: str, now: float) -> list[SourceStep]:
        """No plan will come: requests that wait for one end with the reason."""
        waiting = [r for r in self.requests.values() if r.phase is Phase.WAITING]
        return [step for request in waiting for step in self._end(request, "error", text, now)]

    def tick(self, now: float, why_no_plan: str) -> list[SourceStep]:
        steps: list[SourceStep] = []
        for request in list(self.requests.values()):
            if request.phase is Phase.ASKING and now >= request.ask_at:
                steps.append(self._ask(request, now))
            if now >= request.not_before:
                request.not_before = 0.0
            if now < self._ends_at(request):
                continue
            if request.phase is Phase.RUNNING:
                text = f"no token for {self.timing.progress_s:.0f} s on plan {request.plan_id}"
                steps += self._park(request, text, now)
            else:
                is_asking = request.phase is Phase.ASKING
                cause = request.cause or ("no slot came free" if is_asking else why_no_plan)
                waited = f"waited {self.timing.request_wait_s:.0f} s: {cause}"
                steps += self._end(request, "error", waited, now)
        return steps

    def _end(self, request: Request, reason: str, error: str, now: float) -> list[SourceStep]:
        steps = self._let_go(request)
        del self.requests[request.id]
        self.revision += 1
        stats = stats_of(request)
        tokens = tuple(request.generated)
        return [*steps, FinishRequest(request.id, reason, stats, error, tokens)]
