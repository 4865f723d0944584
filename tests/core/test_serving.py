"""The data plane of one peer: refusals, plans beside each other, slots, freed sources."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.edges import CHUNKS_AHEAD, EdgeKind, edges_of
from edgeshard_p2p.core.effects import (
    DropTensor,
    Effect,
    OpenCache,
    ReleaseCache,
    RunForward,
    Send,
    SendFrame,
)
from edgeshard_p2p.core.events import ForwardDone, ForwardFailed, FrameReceived, PromptSubmitted
from edgeshard_p2p.core.flow import DTYPE_CODES
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import (
    AttemptRefused,
    EdgeAnswer,
    FrameAck,
    FrameHeader,
    FrameKind,
    FrameRefused,
    Open,
    RowGroupHeader,
    SlotAnswer,
    SlotAsk,
    SlotReturn,
)
from edgeshard_p2p.core.plan import CHUNK_ROWS, Plan
from edgeshard_p2p.core.request import Phase
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.serving import Serving
from edgeshard_p2p.core.work import TensorRef
from tests.core.parts import MODEL, TIMING, A, B, C, D, membership, of, request, sent
from tests.core.parts import PLAN as ONE_SOURCE

PLAN = replace(ONE_SOURCE, sources=(A, D))
OTHER = replace(PLAN, workload=replace(PLAN.workload, batch=1))
"""The same stages, under another plan id."""
TENSOR = TensorRef(1, 96)


class Stage:
    """Peer b, the first stage; plans are loaded as they are started, unless told otherwise."""

    def __init__(self, *plans: Plan) -> None:
        self.loaded = {plan.id for plan in plans}
        members = membership(A, C, D, me=B)
        self.serving = Serving(
            B,
            members,
            TIMING,
            lambda plan_id: plan_id in self.loaded,
            lambda _: 1000,
            lambda *_: 0.0,
            lambda _: 0.0,
            lambda _, n_requests: n_requests,
            lambda: False,
            10**9,
        )
        for plan in plans:
            self.serving.start_plan(plan, MODEL)
            self.receive(plan, FrameKind.EDGE, 0)

    def receive(
        self, plan: Plan, kind: FrameKind, sequence: int, attempt: int = 1, n: int = 1
    ) -> list[Effect]:
        (entry,) = [e for e in edges_of(plan) if e.kind is EdgeKind.ENTRY and e.sender == A]
        rows = 3 if kind is FrameKind.HIDDEN else 0
        groups = (RowGroupHeader(0, n, attempt, 0, rows, 0, 6, 0),)
        header = FrameHeader(
            version=1,
            kind=kind,
            sender=A.tag,
            plan=bytes.fromhex(plan.id),
            edge=entry.index,
            epoch=7,
            sequence=sequence,
            acked=0,
            micro_batch=1,
            service_us=0,
            numerics=4,
            dtype=DTYPE_CODES["fp32"] if rows else 0,
            shape=(3, MODEL.hidden_size) if rows else (),
            groups=groups if kind is not FrameKind.EDGE else (),
        )
        body = Open(Sampling(), 0, 1) if kind is FrameKind.OPEN else None
        return self.serving.on_frame(FrameReceived(header, TENSOR if rows else None, (), body), 0.0)

    def ask(
        self, plan: Plan, sequence: int = 1, attempt: int = 1, source: PeerId = A
    ) -> list[tuple[str, str]]:
        """(who is told, what) after this ask."""
        ask = SlotAsk(plan.id, request(sequence, source), attempt, 0, False)
        effects = self.serving.slots.on_ask(source, ask, 0.0)
        return [(to, answer.verdict) for to, answer in sent(effects, SlotAnswer)]


def reasons(effects: list[Effect]) -> list[tuple[str, str]]:
    return [(to, refused.reason) for to, refused in sent(effects, FrameRefused)]


# --- frames that nobody here can take -------------------------------------------------------


def test_frame_of_a_plan_that_is_not_here_is_refused_with_the_reason() -> None:
    stage = Stage(PLAN)
    effects = stage.receive(OTHER, FrameKind.HIDDEN, 1)
    assert effects[0] == DropTensor(TENSOR)
    assert reasons(effects) == [("a", "no_such_plan")]
    stage.serving.end_plan(PLAN.id, "over", 0.0)
    assert reasons(stage.receive(PLAN, FrameKind.HIDDEN, 1)) == [("a", "plan_retired")]


def test_frame_of_a_plan_that_is_not_loaded_is_never_computed() -> None:
    stage = Stage(PLAN)
    stage.loaded.clear()
    effects = stage.receive(PLAN, FrameKind.OPEN, 1) + stage.receive(PLAN, FrameKind.HIDDEN, 2)
    assert reasons(effects) == [("a", "not_loaded"), ("a", "not_loaded")]
    assert of(RunForward, effects) == []


def test_edge_is_answered_before_anything_is_loaded() -> None:
    stage = Stage(PLAN)
    stage.loaded.clear()
    assert of(Send, stage.receive(PLAN, FrameKind.EDGE, 0))


def test_work_goes_out_before_the_acknowledgement() -> None:
    stage = Stage(PLAN)
    stage.receive(PLAN, FrameKind.OPEN, 1)
    effects = stage.receive(PLAN, FrameKind.HIDDEN, 2)
    order = [type(e) for e in effects if isinstance(e, RunForward | Send)]
    assert order == [RunForward, Send]
    assert [ack.acked for _, ack in sent(effects, FrameAck)] == [2]


# --- two plans beside each other ------------------------------------------------------------


def test_end_of_one_plan_leaves_what_runs_on_another() -> None:
    """A request that was parked on one plan may run on the next before this peer has heard that
    the first is over."""
    stage = Stage(PLAN, OTHER)
    (first,) = of(OpenCache, stage.receive(PLAN, FrameKind.OPEN, 1))
    (second,) = of(OpenCache, stage.receive(OTHER, FrameKind.OPEN, 1, attempt=2))
    assert first.key != second.key
    released = of(ReleaseCache, stage.serving.end_plan(PLAN.id, "over", 0.0))
    assert [effect.key for effect in released] == [first.key]


def test_late_release_on_one_plan_leaves_what_runs_on_another() -> None:
    stage = Stage(PLAN, OTHER)
    stage.receive(PLAN, FrameKind.OPEN, 1)
    (second,) = of(OpenCache, stage.receive(OTHER, FrameKind.OPEN, 1, attempt=2))
    released = of(ReleaseCache, stage.receive(PLAN, FrameKind.RELEASE, 2))
    assert second.key not in [effect.key for effect in released]
    (run,) = of(RunForward, stage.receive(OTHER, FrameKind.HIDDEN, 2, attempt=2))
    assert run.groups[0].key == second.key


# --- slots ----------------------------------------------------------------------------------


def test_slot_goes_to_the_next_once_the_release_is_here() -> None:
    stage = Stage(OTHER)
    assert stage.ask(OTHER, 1) == [("a", "granted")]
    assert stage.ask(OTHER, 1, source=D) == [("d", "queued")]
    stage.receive(OTHER, FrameKind.OPEN, 1)
    effects = stage.receive(OTHER, FrameKind.RELEASE, 2)
    assert of(ReleaseCache, effects)
    assert [(to, answer.verdict) for to, answer in sent(effects, SlotAnswer)] == [("d", "granted")]


def test_release_that_an_ask_overtook_does_not_free_its_slot() -> None:
    stage = Stage(OTHER)
    stage.ask(OTHER, 1, attempt=1)
    stage.receive(OTHER, FrameKind.OPEN, 1)
    stage.ask(OTHER, 1, source=D)
    assert stage.ask(OTHER, 1, attempt=2) == [("a", "granted")]
    assert sent(stage.receive(OTHER, FrameKind.RELEASE, 2), SlotAnswer) == []


def test_withdrawn_ask_frees_the_slot() -> None:
    stage = Stage(OTHER)
    stage.ask(OTHER, 1)
    stage.ask(OTHER, 1, source=D)
    effects = stage.serving.slots.on_return(A, SlotReturn(OTHER.id, request(1), 1), 0.0)
    assert [to for to, _ in sent(effects, SlotAnswer)] == ["d"]


def test_nobody_asks_for_another_nor_on_a_plan_that_is_not_its_own() -> None:
    stage = Stage(PLAN)
    ask = SlotAsk(PLAN.id, request(1, A), 1, 0, False)
    assert stage.serving.slots.on_ask(D, ask, 0.0) == []
    assert stage.serving.slots.on_ask(PeerId("x", 1), ask, 0.0) == []
    assert stage.ask(PLAN, source=C) == []


def test_only_the_receiver_speaks_of_an_edge() -> None:
    stage = Stage(PLAN)
    (inner,) = [e for e in edges_of(PLAN) if e.kind is EdgeKind.INNER]
    (opening,) = of(SendFrame, stage.serving.flows[PLAN.id].open_edges(0.0))
    epoch = opening.header.epoch
    flow = stage.serving.flows[PLAN.id]
    answer = EdgeAnswer(PLAN.id, inner.index, epoch)
    stage.serving.on_answer(D, answer, 0.0)
    assert not flow.all_open()
    stage.serving.on_answer(C, answer, 0.0)
    edge = flow.out[inner.index]
    stage.receive(PLAN, FrameKind.OPEN, 1)  # Goes on to c, as the first frame of the edge.
    ack = FrameAck(PLAN.id, inner.index, epoch, 1, 9)
    stage.serving.on_ack(D, ack, 0.0)
    assert edge.next_deadline() == TIMING.resend_s
    refused = FrameRefused(PLAN.id, inner.index, epoch, 1, "plan_retired")
    assert stage.serving.on_refused(D, refused, 0.0) == []
    stage.serving.on_ack(C, ack, 0.0)
    assert edge.next_deadline() is None


def test_results_of_an_earlier_beginning_of_a_plan_are_not_taken_for_new_ones() -> None:
    stage = Stage(PLAN)
    stage.receive(PLAN, FrameKind.OPEN, 1)
    (old,) = of(RunForward, stage.receive(PLAN, FrameKind.HIDDEN, 2))
    stage.serving.end_plan(PLAN.id, "over", 0.0)
    stage.serving.start_plan(PLAN, MODEL)
    stage.receive(PLAN, FrameKind.EDGE, 0)
    stage.receive(PLAN, FrameKind.OPEN, 1)
    assert not of(RunForward, stage.receive(PLAN, FrameKind.HIDDEN, 2))  # One chunk at a time.
    late = TensorRef(7, 96)
    assert stage.serving.on_done(ForwardDone(old.job, 1, late), 0.0) == [DropTensor(late)]
    (new,) = of(RunForward, stage.serving.desk.begin())
    assert new.job.number in stage.serving.stages[PLAN.id].running


def test_pass_that_fails_after_its_plan_leaves_nothing_to_go_on_with() -> None:
    stage = Stage(PLAN)
    stage.receive(PLAN, FrameKind.OPEN, 1)
    (run,) = of(RunForward, stage.receive(PLAN, FrameKind.HIDDEN, 2))
    stage.serving.end_plan(PLAN.id, "over", 0.0)
    assert stage.serving.caches.kept.of(request(1)).units
    effects = stage.serving.on_failed(ForwardFailed(run.job, "out of memory"), 0.0)
    assert len(of(ReleaseCache, effects)) == 1
    assert not stage.serving.caches.kept.of(request(1)).units


def test_what_was_adopted_from_a_pass_that_fails_is_refused() -> None:
    stage = Stage(PLAN, OTHER)
    stage.receive(PLAN, FrameKind.OPEN, 1)
    (run,) = of(RunForward, stage.receive(PLAN, FrameKind.HIDDEN, 2))
    stage.serving.end_plan(PLAN.id, "over", 0.0)
    stage.receive(OTHER, FrameKind.OPEN, 1, attempt=2)
    effects = stage.serving.on_failed(ForwardFailed(run.job, "out of memory"), 0.0)
    refusals = [refusal for _, refusal in sent(effects, AttemptRefused)]
    assert [(r.attempt, r.reason) for r in refusals] == [(2, "compute_failed")]
    assert not stage.serving.stages[OTHER.id].requests


@pytest.mark.parametrize("plan", [PLAN, OTHER])
def test_no_slot_of_a_plan_that_is_not_here_or_not_loaded(plan: Plan) -> None:
    stage = Stage(PLAN)
    stage.loaded.clear()
    assert stage.ask(plan) == [("a", "no_such_plan")]


def test_dead_source_frees_all_that_it_held() -> None:
    stage = Stage(PLAN)
    stage.ask(PLAN, 1)
    stage.receive(PLAN, FrameKind.OPEN, 1)
    assert len(of(ReleaseCache, stage.serving.free_source(A))) == 1
    admission = stage.serving.slots.admissions[PLAN.id]
    assert (admission.granted, admission.queue) == ({}, {})


def test_what_a_source_has_forgotten_is_freed_and_its_slot_given_on() -> None:
    stage = Stage(OTHER)
    stage.ask(OTHER, 1)
    stage.receive(OTHER, FrameKind.OPEN, 1)
    stage.ask(OTHER, 1, source=D)
    effects = stage.serving.free_below(A, 2, 0.0)
    assert of(ReleaseCache, effects)
    assert [to for to, _ in sent(effects, SlotAnswer)] == ["d"]


def test_nobody_gives_back_the_slot_of_another() -> None:
    stage = Stage(OTHER)
    stage.ask(OTHER, 1)
    stage.ask(OTHER, 1, source=D)
    assert stage.serving.slots.on_return(D, SlotReturn(OTHER.id, request(1), 1), 0.0) == []
    assert stage.serving.refused == {"not_theirs_to_say": 1}


def test_only_the_admitting_stage_answers_an_ask_and_only_a_stage_refuses_its_rows() -> None:
    stage = Stage(PLAN)
    for sender in (C, D, PeerId("x", 1)):
        stage.serving.on_slot_answer(sender, SlotAnswer(PLAN.id, request(1, B), 1, "granted"), 0.0)
        refusal = AttemptRefused(request(1, B), 1, 0, "missing_kv")
        assert stage.serving.on_attempt_refused(sender, refusal, 0.0) == []
    assert stage.serving.refused == {"not_theirs_to_say": 6}


# --- what waits to be computed ----------------------------------------------------------------


class Source:
    """Peer a, with requests of its own on a plan whose stages are elsewhere."""

    def __init__(self, plan: Plan = ONE_SOURCE) -> None:
        self.plan = plan
        self.serving = Serving(
            A,
            membership(B, C),
            TIMING,
            lambda _: True,
            lambda _: 1000,
            lambda *_: 0.0,
            lambda _: 0.0,
            lambda _, n_requests: n_requests,
            lambda: False,
            10**9,
        )
        self.serving.start_plan(plan, MODEL)

    def submit(self, n_prompt: int) -> None:
        prompt = tuple(range(n_prompt))
        event = PromptSubmitted("client", prompt, 9, Sampling(), frozenset())
        self.serving.source.submit(event, MODEL.digest, 0.0)
        self.serving.run(self.serving.source.start(self.plan, {A: 1, B: 1, C: 1}, 0.0), 0.0)

    def grant(self, sequence: int) -> list[RunForward]:
        answer = SlotAnswer(self.plan.id, request(sequence), 1, "granted")
        effects = self.serving.on_slot_answer(B, answer, 0.0)
        return of(RunForward, [*effects, *self.serving.desk.begin()])


def test_row_of_a_cancelled_request_does_not_outlive_its_plan() -> None:
    source = Source()
    source.serving.flows[ONE_SOURCE.id].open_edges(0.0)
    for n_prompt in (1, 1):
        source.submit(n_prompt)
    (run,) = source.grant(1)
    assert source.grant(2) == []
    source.serving.run(source.serving.source.cancel(request(2), 0.0), 0.0)
    source.serving.end_plan(ONE_SOURCE.id, "stage 2 is lost", 0.0)
    source.serving.on_done(ForwardDone(run.job, 1, TensorRef(1, 32)), 0.0)
    assert source.serving.desk.begin() == []


def test_slot_on_an_edge_that_is_lost_parks_the_request_at_once() -> None:
    source = Source()
    source.submit(3)
    source.grant(1)
    assert not source.serving.flows[ONE_SOURCE.id].lost
    assert source.serving.source.requests[request(1)].phase is Phase.WAITING


def test_new_attempt_waits_for_its_own_rows_only() -> None:
    plan = replace(PLAN, workload=replace(PLAN.workload, batch=3))
    stage = Stage(plan)
    for n in (1, 2, 3):
        stage.receive(plan, FrameKind.OPEN, n, n=n)
    (first,) = of(RunForward, stage.receive(plan, FrameKind.HIDDEN, 4, n=1))
    assert first.groups[0].key.request == request(1)
    for n in (2, 3):
        assert of(RunForward, stage.receive(plan, FrameKind.HIDDEN, 3 + n, n=n)) == []
    again = stage.receive(plan, FrameKind.OPEN, 7, attempt=2, n=3)
    order = [type(e) for e in again if isinstance(e, RunForward | OpenCache)]
    assert order == [RunForward, OpenCache]
    (run,) = of(RunForward, again)
    assert [group.key.request for group in run.groups] == [request(3)]


def test_prompts_take_turns_with_what_the_next_stage_has_computed() -> None:
    """Of several prompts: never more chunks ahead than keep the next stage busy."""
    plan = replace(ONE_SOURCE, workload=replace(ONE_SOURCE.workload, context=4096))
    source = Source(plan)
    flow = source.serving.flows[plan.id]
    (opening,) = of(SendFrame, flow.open_edges(0.0))
    spec = flow.onward(A, 0)
    source.serving.on_answer(B, EdgeAnswer(plan.id, spec.index, opening.header.epoch), 0.0)
    runs: list[RunForward] = []
    for sequence in (1, 2, 3):
        source.submit(3 * CHUNK_ROWS)
        runs += source.grant(sequence)
    n_done = 0
    for n_computed in range(4):
        while runs:
            run, n_done = runs.pop(), n_done + 1
            done = ForwardDone(run.job, 1, TensorRef(n_done, 8 * CHUNK_ROWS))
            runs += of(RunForward, source.serving.on_done(done, 0.0))
            runs += of(RunForward, source.serving.desk.begin())
        assert n_done == CHUNKS_AHEAD + n_computed
        assert flow.chunks_ahead(spec) == CHUNKS_AHEAD
        # Three openings went ahead of the chunks.
        told = (3 + n_done, 11 + n_done, n_computed + 1)
        source.serving.on_ack(B, FrameAck(plan.id, spec.index, opening.header.epoch, *told), 0.0)
        runs += of(RunForward, source.serving.desk.begin())
