"""A source's requests: passes, tokens, parking, deadlines, ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

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
from edgeshard_p2p.core.ids import RequestId, UnitRange
from edgeshard_p2p.core.messages import (
    CachedUnits,
    CacheReport,
    FrameKind,
    LoggedRows,
    Open,
    Replay,
    RowFlag,
    RowGroupHeader,
    SlotAnswer,
)
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.request import (
    ROLE,
    AskCaches,
    AskSlot,
    Compute,
    Flush,
    OfferFrame,
    Phase,
    ReturnSlot,
    SourceStep,
)
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.source import ATTEMPTS_MAX, CHUNK_ROWS, SourceWork
from edgeshard_p2p.core.work import CacheKey, RowGroup, TensorRef
from tests.core.parts import MODEL, PLAN, SOLO, TIMING, A, B, C, of, request

BEGUN = {A: 1, B: 1, C: 1}
ONE, TWO = request(1), request(2)


class Source:
    """A SourceWork whose entry edge carries as many frames as ``load`` says."""

    def __init__(self) -> None:
        self.may_log = False
        self.travel_s = 0.0
        self.work = SourceWork(
            A, TIMING, lambda _: ([], self.may_log), lambda _: 1000, lambda _: self.travel_s
        )

    def submit(
        self, n_prompt: int = 3, max_tokens: int = 10, stop: frozenset[int] = frozenset()
    ) -> RequestId:
        prompt = tuple(range(100, 100 + n_prompt))
        event = PromptSubmitted("client", prompt, max_tokens, Sampling(), stop)
        return self.work.submit(event, MODEL.digest, 0.0).id

    def phase(self, of_request: RequestId = ONE) -> Phase:
        return self.work.requests[of_request].phase

    def start(self, plan: Plan = PLAN, now: float = 0.0) -> list[SourceStep]:
        return self.work.start(plan, dict(BEGUN), now)

    def grant(self, plan: Plan = PLAN, attempt: int = 1, now: float = 0.0) -> list[SourceStep]:
        return self.ran(self.work.on_slot(SlotAnswer(plan.id, ONE, attempt, "granted"), now))

    def begin(self, plan: Plan = PLAN, attempt: int = 1, now: float = 0.0) -> list[SourceStep]:
        """With nothing left at any stage of earlier attempts."""
        self.start(plan, now)
        for stage in range(len(plan.stages)):
            self.report(stage)
        return self.grant(plan, attempt, now)

    def granted_together(self, n: int, plan: Plan) -> list[SourceStep]:
        """So many requests of one token each, none of them computed yet."""
        steps: list[SourceStep] = []
        for sequence in range(1, n + 1):
            self.submit(1)
            self.work.start(plan, dict(BEGUN), 0.0)
            answer = SlotAnswer(plan.id, request(sequence), 1, "granted")
            steps += self.work.on_slot(answer, 0.0)
        return steps

    def report(self, stage: int, *units: CachedUnits, logs: int = 0) -> list[SourceStep]:
        """The stage has these, and a log of so many positions of what it sent on."""
        log = LoggedRows(PLAN.stages[stage].units.end, 0, logs)
        told = CacheReport(PLAN.id, ONE, stage, units, (log,) if logs else ())
        return self.ran(self.work.on_report(told, 0.0))

    def done(self, steps: Sequence[Any], token: int | None = None) -> list[SourceStep]:
        """The pass among ``steps`` is computed."""
        (run,) = of(RunForward, steps)
        is_solo = run.units.end == SOLO.entry_end
        hidden = None if is_solo else TensorRef(run.job.number, 32 * run.groups[0].rows)
        tokens = (token,) if is_solo else ()
        return self.ran(self.work.on_done(ForwardDone(run.job, 11, hidden, tokens), 0.0))

    def token(
        self, token: int, position: int, attempt: int = 1, plan: Plan = PLAN, now: float = 0.0
    ) -> list[SourceStep]:
        header = RowGroupHeader(0, ONE.sequence, attempt, position, 1, position, 0, 0)
        frame = Frame(FrameKind.TOKENS, (header,), tokens=(token,))
        return self.ran(self.work.on_tokens(plan, frame, now))

    def ran(self, steps: Sequence[Any]) -> list[Any]:
        """With nothing else to compute, so that each of the rows is a pass at once."""
        passes: list[Any] = []
        for step in steps:
            if not isinstance(step, Compute):
                passes.append(step)
            elif (run := self.work.begin([step.rows])) is not None:
                passes.append(run)
        return passes


def source_key(sequence: int) -> CacheKey:
    return CacheKey(request(sequence), ROLE)


def frames(steps: Sequence[Any]) -> list[Frame]:
    return [step.frame for step in of(OfferFrame, steps)]


def kinds(steps: Sequence[Any]) -> list[FrameKind]:
    return [frame.kind for frame in frames(steps)]


def rows_of(steps: Sequence[Any]) -> list[tuple[int, int]]:
    return [(run.groups[0].position, run.groups[0].rows) for run in of(RunForward, steps)]


def end(steps: Sequence[Any]) -> FinishRequest:
    (finish,) = of(FinishRequest, steps)
    return finish


# --- beginning ------------------------------------------------------------------------------


def test_request_waits_for_a_plan_then_asks_then_opens() -> None:
    source = Source()
    source.submit()
    assert source.phase() is Phase.WAITING
    assert source.start(now=2.0) == [AskSlot(PLAN, ONE, 1, 2.0, False)]
    assert source.start(now=3.0) == []
    steps = source.grant(now=3.0)
    key = source.work.requests[ONE].key
    assert steps[0] == OpenCache(key, UnitRange(0, 2), 0)
    assert kinds(steps) == [FrameKind.OPEN]
    (run,) = of(RunForward, steps)
    assert (run.units, run.groups, run.tokens) == (
        UnitRange(0, 2),
        (RowGroup(key, 0, 3),),
        (100, 101, 102),
    )
    assert source.work.running_plans() == (PLAN.id,)


def test_oldest_ask_first() -> None:
    source = Source()
    for _ in range(3):
        source.submit()
    assert [step.request for step in of(AskSlot, source.start())] == [request(k) for k in (1, 2, 3)]


def test_ask_is_repeated_until_it_is_answered() -> None:
    source = Source()
    source.submit()
    source.start()
    assert source.work.next_deadline() == TIMING.ask_repeat_s
    for k in range(1, 5):
        now = k * TIMING.ask_repeat_s
        assert source.work.tick(now, "") == [AskSlot(PLAN, ONE, 1, now, False)]
        assert source.work.on_slot(SlotAnswer(PLAN.id, ONE, 1, "queued"), now) == []


@pytest.mark.parametrize(
    "answer",
    [(PLAN.id, request(9), 1), (PLAN.id, ONE, 2), (PLAN.id, ONE, 0), (SOLO.id, ONE, 1)],
    ids=["request", "later attempt", "earlier attempt", "plan"],
)
def test_grant_for_something_else_begins_nothing(answer: tuple[str, RequestId, int]) -> None:
    source = Source()
    source.submit()
    source.start()
    assert source.work.on_slot(SlotAnswer(*answer, "granted"), 0.0) == []
    assert source.phase() is Phase.ASKING


def test_second_grant_begins_nothing() -> None:
    source = Source()
    source.submit()
    source.begin()
    assert source.grant() == []
    assert source.work.requests[ONE].attempt == 1


def test_stage_that_is_not_ready_for_the_plan_is_asked_again() -> None:
    source = Source()
    source.submit()
    source.start()
    assert source.work.on_slot(SlotAnswer(PLAN.id, ONE, 1, "no_such_plan"), 0.0) == []
    assert source.work.tick(1.0, "") == [AskSlot(PLAN, ONE, 1, 1.0, False)]
    assert "not ready" in source.work.requests[ONE].cause


def test_overload_is_an_end_that_says_so() -> None:
    source = Source()
    source.submit()
    source.start()
    finish = end(source.work.on_slot(SlotAnswer(PLAN.id, ONE, 1, "overloaded", 7000), 0.0))
    assert (finish.finish_reason, finish.retry_ms) == ("error", 7000)
    assert "the waiting queue are full" in finish.error


# --- prefill --------------------------------------------------------------------------------


def test_long_prompt_goes_in_chunks_and_the_last_one_says_so() -> None:
    source = Source()
    source.submit(2 * CHUNK_ROWS + 5)
    steps = source.begin(replace(PLAN, workload=replace(PLAN.workload, context=1024)))
    sent: list[Frame] = []
    passes: list[tuple[int, int]] = []
    while of(RunForward, steps):
        passes += rows_of(steps)
        steps = source.done(steps)
        sent += frames(steps)
    assert passes == [(0, CHUNK_ROWS), (CHUNK_ROWS, CHUNK_ROWS), (2 * CHUNK_ROWS, 5)]
    groups = [frame.groups[0] for frame in sent]
    assert [(g.position, g.rows, g.cached_len) for g in groups] == [(p, n, p) for p, n in passes]
    assert [g.flags for g in groups] == [0, 0, RowFlag.LAST_CHUNK]
    assert len({frame.micro_batch for frame in sent}) == 3


def test_requests_that_wait_together_pass_together() -> None:
    source = Source()
    steps = source.granted_together(3, PLAN)
    rows = [step.rows for step in of(Compute, steps)]
    source.work.cancel(request(1), 0.0)
    run = source.work.begin(rows)
    assert run is not None
    assert [group.key.request for group in run.groups] == [request(2), request(3)]
    assert run.tokens == (100, 100)
    source.work.cancel(request(3), 0.0)
    (frame,) = frames(source.work.on_done(ForwardDone(run.job, 11, TensorRef(1, 64)), 0.0))
    # One tensor, so what belongs to a request that has ended goes along.
    assert [group.sequence for group in frame.groups] == [2, 3]
    assert source.work.begin(rows[:1]) is None


def test_tokens_of_one_pass_go_to_their_requests() -> None:
    source = Source()
    steps = source.granted_together(2, SOLO)
    run = source.work.begin([step.rows for step in of(Compute, steps)])
    assert run is not None
    steps = source.work.on_done(ForwardDone(run.job, 11, None, (7, 8)), 0.0)
    emitted = [(step.request, step.token) for step in of(EmitToken, steps)]
    assert emitted == [(request(1), 7), (request(2), 8)]
    assert [step.rows.tokens for step in of(Compute, steps)] == [(7,), (8,)]


def test_pass_is_back_with_the_first_of_its_tokens() -> None:
    """A row that was lost on its way must not keep others waiting for its pass."""
    source = running()
    other = source.submit()
    source.work.requests[ONE].pass_number = source.work.requests[other].pass_number = 7
    third = source.submit()
    source.work.requests[third].pass_number = 8
    source.token(40, 3)
    assert [source.work.requests[r].pass_number for r in (other, third)] == [None, 8]


def test_failed_pass_of_several_ends_nobody() -> None:
    source = Source()
    steps = source.granted_together(2, SOLO)
    run = source.work.begin([step.rows for step in of(Compute, steps)])
    assert run is not None
    steps = source.work.on_failed(run.job.number, "the kernel says no", 0.0)
    assert of(FinishRequest, steps) == []
    assert {source.phase(request(sequence)) for sequence in (1, 2)} == {Phase.WAITING}


def test_rows_of_a_prompt_travel_alone_to_the_last() -> None:
    source = Source()
    source.submit(CHUNK_ROWS + 1)
    plan = replace(PLAN, workload=replace(PLAN.workload, context=1024))
    source.start(plan)
    one = source.work.requests[ONE]
    left = [one.n_chunks]
    steps: list[Any] = source.work.on_slot(SlotAnswer(plan.id, ONE, 1, "granted"), 0.0)
    left.append(one.n_chunks)
    rows = [step.rows for step in of(Compute, steps)]
    run = source.work.begin(rows)
    assert run is not None
    hidden = TensorRef(1, 32 * CHUNK_ROWS)
    steps = source.work.on_done(ForwardDone(run.job, 11, hidden), 0.5)
    left.append(one.n_chunks)
    rows += [step.rows for step in of(Compute, steps)]
    run = source.work.begin(rows[1:])
    assert run is not None
    source.work.on_done(ForwardDone(run.job, 11, TensorRef(2, 32)), 0.5)
    left.append(one.n_chunks)
    header = RowGroupHeader(0, 1, 1, CHUNK_ROWS + 1, 1, CHUNK_ROWS + 1, 0, 0)
    steps = source.work.on_tokens(plan, Frame(FrameKind.TOKENS, (header,), tokens=(7,)), 1.0)
    rows += [step.rows for step in of(Compute, steps)]
    assert [(row.group.rows, row.is_chunk) for row in rows] == [
        (CHUNK_ROWS, True),
        (1, True),
        (1, False),
    ]
    # What is being computed counts, a row that decodes does not.
    assert [*left, one.n_chunks] == [0, 2, 1, 0, 0]


def test_what_waits_of_a_parked_request_is_computed_first() -> None:
    source = Source()
    source.submit()
    source.start()
    source.work.on_slot(SlotAnswer(PLAN.id, ONE, 1, "granted"), 0.0)
    steps = source.work.park_plan(PLAN.id, "lost", 0.0)
    assert steps[0] == Flush(ONE, 1, PLAN.id)


# --- tokens ---------------------------------------------------------------------------------


def running() -> Source:
    """Prompt of 3 tokens, prefilled; the token of position 3 is awaited."""
    source = Source()
    source.submit()
    source.done(source.begin())
    return source


def test_next_token_is_emitted_and_goes_round_again() -> None:
    source = running()
    steps = source.token(7, position=3)
    assert steps[0] == EmitToken(ONE, 7)
    (run,) = of(RunForward, steps)
    assert (run.groups[0].position, run.tokens) == (3, (7,))
    (frame,) = frames(source.done(steps))
    assert frame.groups[0].flags == RowFlag.LAST_CHUNK


@pytest.mark.parametrize(
    "other", [{"position": 2}, {"position": 4}, {"position": 3, "attempt": 2}, {"plan": SOLO}]
)
def test_token_of_another_position_attempt_or_plan_is_ignored(other: dict[str, Any]) -> None:
    source = running()
    assert source.token(7, **{"position": 3, **other}) == []
    assert source.token(8, position=3)[0] == EmitToken(ONE, 8)


def test_same_token_twice_counts_once() -> None:
    source = running()
    source.token(7, position=3)
    assert source.token(7, position=3) == []
    assert source.work.requests[ONE].generated == [7]


def test_stop_token_ends_and_is_not_emitted() -> None:
    source = Source()
    source.submit(stop=frozenset({5}))
    source.done(source.begin())
    source.done(source.token(7, position=3))
    steps = source.token(5, position=4)
    assert of(EmitToken, steps) == []
    assert (end(steps).finish_reason, end(steps).tokens) == ("stop", (7,))
    assert kinds(steps) == [FrameKind.RELEASE]


def test_length_ends_at_what_was_asked_for() -> None:
    source = Source()
    source.submit(max_tokens=2)
    source.done(source.begin())
    source.done(source.token(7, position=3))
    steps = source.token(8, position=4)
    assert of(EmitToken, steps) == [EmitToken(ONE, 8)]
    assert (end(steps).finish_reason, end(steps).tokens) == ("length", (7, 8))
    assert source.work.requests == {}
    assert source.work.oldest_live == 2


# --- going on from a request that is over ---------------------------------------------------


def answered(n_prompt: int = 40) -> Source:
    """The first request is over, after two tokens: 7 and 8."""
    source = Source()
    source.submit(n_prompt, max_tokens=2)
    source.done(source.begin())
    source.done(source.token(7, position=n_prompt))
    source.token(8, position=n_prompt + 1)
    return source


def asked_on(source: Source, *more: int, n_prompt: int = 40) -> list[SourceStep]:
    """The second one's asks."""
    prompt = (*range(100, 100 + n_prompt), *more)
    source.work.submit(
        PromptSubmitted("client", prompt, 5, Sampling(), frozenset()), MODEL.digest, 1.0
    )
    return source.start(now=1.0)


def begun_with(source: Source, *cached: int) -> list[SourceStep]:
    """Each stage has so many positions of the first request."""
    for stage, length in enumerate(cached):
        units = (CachedUnits(PLAN.stages[stage].units, length),) if length else ()
        source.work.on_report(CacheReport(PLAN.id, TWO, stage, units), 1.0)
    return source.ran(source.work.on_slot(SlotAnswer(PLAN.id, TWO, 1, "granted"), 1.0))


def test_request_that_is_over_stays_cached_here_and_along_the_stages() -> None:
    source = Source()
    source.submit(max_tokens=1)
    source.done(source.begin())
    steps = source.token(7, position=3)
    assert not of(ReleaseCache, steps)
    (release,) = frames(steps)
    assert (release.kind, release.groups[0].flags) == (FrameKind.RELEASE, RowFlag.KEEP)
    assert source.work.kept.of(ONE).length(1) == 3


def test_next_turn_computes_only_what_is_new() -> None:
    source = answered()
    asks = asked_on(source, 7, 8, 9, 9)
    assert AskCaches(PLAN, TWO, frozenset(), continues=1) in asks
    steps = begun_with(source, 41, 41)
    assert of(OpenCache, steps)[0].adopts == source_key(1)
    (opening,) = [frame for frame in frames(steps) if frame.kind is FrameKind.OPEN]
    assert opening.body == Open(Sampling(), 41, 2, (), 1)
    assert rows_of(steps) == [(41, 3)]
    assert source.work.requests[TWO].cached_tokens == 41


def test_no_further_than_the_prompts_are_the_same() -> None:
    source = answered()
    asked_on(source, 9, 9)
    steps = begun_with(source, 41, 41)
    assert of(OpenCache, steps)[0].position == 40
    assert rows_of(steps) == [(40, 2)]


def test_stage_that_has_nothing_left_makes_it_a_new_prefill() -> None:
    source = answered()
    asked_on(source, 7, 9)
    steps = begun_with(source, 41, 0)
    (opening,) = [frame for frame in frames(steps) if frame.kind is FrameKind.OPEN]
    assert opening.body == Open(Sampling(), 0, 2)
    assert rows_of(steps) == [(0, 42)]
    assert source.work.requests[TWO].cached_tokens == 0


def test_one_of_two_that_could_go_on_from_it_does() -> None:
    source = answered()
    asked_on(source, 7, 9)
    asked_on(source, 7, 9)
    begun_with(source, 41, 41)
    for stage, there in enumerate(PLAN.stages):
        told = CacheReport(PLAN.id, request(3), stage, (CachedUnits(there.units, 41),))
        source.work.on_report(told, 1.0)
    steps = source.ran(source.work.on_slot(SlotAnswer(PLAN.id, request(3), 1, "granted"), 1.0))
    assert rows_of(steps) == [(0, 42)]


@pytest.mark.parametrize("n_prompt", [12, 20])
def test_little_in_common_is_left_to_whose_it_is(n_prompt: int) -> None:
    source = answered()
    asks = asked_on(source, 7, n_prompt=n_prompt)
    assert of(AskCaches, asks) == []


def test_attempt_after_one_that_failed_goes_on_from_its_own() -> None:
    source = answered()
    asked_on(source, 7, 8, 9)
    begun_with(source, 41, 41)
    source.work.on_attempt_refused(TWO, 1, "stage 1 (b@1) refused: missing_kv", 2.0)
    assert AskCaches(PLAN, TWO, frozenset()) in source.start(now=3.0)


def test_context_ends_the_request_too() -> None:
    source = Source()
    source.submit(n_prompt=3, max_tokens=100)
    plan = replace(PLAN, workload=replace(PLAN.workload, context=5))
    source.done(source.begin(plan))
    source.done(source.token(7, position=3, plan=plan))
    assert end(source.token(8, position=4, plan=plan)).finish_reason == "length"


def test_plan_without_stages_runs_here_alone() -> None:
    source = Source()
    source.submit(max_tokens=2)
    steps = source.begin(SOLO)
    assert frames(steps) == []
    (run,) = of(RunForward, steps)
    assert run.groups[0].emit == Sampling()
    steps = source.done(source.done(steps, token=7), token=8)
    assert (end(steps).finish_reason, end(steps).tokens) == ("length", (7, 8))
    assert of(ReturnSlot, steps) == [ReturnSlot(SOLO, ONE, 1)]


def test_pass_within_the_prompt_draws_no_token() -> None:
    source = Source()
    source.submit(CHUNK_ROWS + 1)
    solo = replace(SOLO, workload=replace(SOLO.workload, context=1024))
    steps = source.begin(solo)
    assert of(RunForward, steps)[0].groups[0].emit is None
    steps = source.done(steps)
    assert of(EmitToken, steps) == []
    assert rows_of(steps) == [(CHUNK_ROWS, 1)]


# --- trouble --------------------------------------------------------------------------------


def test_refused_attempt_is_parked_and_prefilled_again_with_what_is_known() -> None:
    """Where nothing is left of it."""
    source = running()
    source.done(source.token(7, position=3))
    steps = source.work.on_attempt_refused(ONE, 1, "stage 1 (b@1) refused: missing_kv", 1.0)
    assert not of(ReleaseCache, steps)
    assert [notice.text for notice in of(RequestNotice, steps)] == [
        "interrupted: stage 1 (b@1) refused: missing_kv"
    ]
    assert source.phase() is Phase.WAITING
    assert source.work.running_plans() == ()
    asks = source.start(now=4.0)
    # Waiting since it was parked; running before.
    assert asks == [AskCaches(PLAN, ONE, frozenset()), AskSlot(PLAN, ONE, 2, 3.0, True)]
    assert source.grant(attempt=2, now=4.0) == []
    assert source.report(1) == []
    steps = source.report(0)
    assert rows_of(steps) == [(0, 4)]
    assert of(OpenCache, steps)[0].position == 0
    assert of(RunForward, steps)[0].tokens == (100, 101, 102, 7)
    (frame,) = frames(source.done(steps))
    assert frame.groups[0].attempt == 2
    assert source.token(8, position=4, attempt=1) == []
    assert source.token(8, position=4, attempt=2, now=6.0)[0] == EmitToken(ONE, 8)


def test_recovery_is_accounted_for() -> None:
    source = running()
    source.done(source.token(7, position=3))
    source.work.on_attempt_refused(ONE, 1, "x", 1.0)
    source.done(source.begin(attempt=2, now=2.0))
    source.token(8, position=4, attempt=2, now=4.5)
    stats = end(source.work.cancel(ONE, 5.0)).stats
    assert (stats.failovers, stats.replayed_tokens, stats.recovery_ms) == (1, 3, 3500.0)
    assert (stats.prompt_tokens, stats.generated_tokens) == (3, 2)


def test_refusal_of_another_attempt_is_ignored() -> None:
    source = running()
    assert source.work.on_attempt_refused(ONE, 0, "x", 0.0) == []
    assert source.work.on_attempt_refused(ONE, 2, "x", 0.0) == []
    assert source.work.on_attempt_refused(request(9), 1, "x", 0.0) == []
    source.work.on_attempt_refused(ONE, 1, "x", 0.0)
    assert source.work.on_attempt_refused(ONE, 1, "x", 0.0) == []
    assert source.work.requests[ONE].failovers == 1


def test_plan_that_ends_parks_what_runs_or_asks_on_it() -> None:
    source = Source()
    source.submit()
    source.submit()
    source.begin()
    steps = source.work.park_plan(PLAN.id, "gone", 1.0)
    assert of(ReturnSlot, steps) == [ReturnSlot(PLAN, request(2), 1)]
    assert {source.phase(request(k)) for k in (1, 2)} == {Phase.WAITING}
    assert source.work.park_plan(PLAN.id, "gone", 1.0) == []


def test_plan_that_a_peer_began_anew_parks_what_relied_on_the_old_beginning() -> None:
    source = running()
    assert source.work.park_restarted(PLAN.id, BEGUN, 0.0) == []
    assert source.work.park_restarted(PLAN.id, {A: 1}, 0.0) == []  # The others say nothing now.
    source.work.park_restarted(PLAN.id, {**BEGUN, C: 2}, 0.0)
    assert source.phase() is Phase.WAITING


@pytest.mark.parametrize("has_new_plan", [False, True], ids=["waiting", "asking"])
@pytest.mark.parametrize("plan", [PLAN, SOLO], ids=["stages", "solo"])
def test_pass_of_an_attempt_that_is_over_comes_to_nothing(plan: Plan, has_new_plan: bool) -> None:
    source = Source()
    source.submit(2 * CHUNK_ROWS)
    plan = replace(plan, workload=replace(plan.workload, context=1024))
    steps = source.begin(plan)
    source.work.on_attempt_refused(ONE, 1, "x", 0.0)
    if has_new_plan:
        source.start(plan)
    late = source.done(steps, token=5)
    assert late == ([] if plan.stages == () else [DropTensor(TensorRef(1, 32 * CHUNK_ROWS))])
    assert source.work.requests[ONE].generated == []
    assert source.work.entry.passes == {}


@pytest.mark.parametrize("has_new_plan", [False, True], ids=["waiting", "asking"])
def test_failure_of_a_pass_that_is_over_ends_nothing(has_new_plan: bool) -> None:
    source = Source()
    source.submit()
    (run,) = of(RunForward, source.begin())
    source.work.on_attempt_refused(ONE, 1, "x", 0.0)
    if has_new_plan:
        source.start()
    # Nobody knows what is cached now: it does not serve the next attempt.
    key = source.work.requests[ONE].key
    assert source.work.on_failed(run.job.number, "out of memory", 0.0) == [ReleaseCache(key)]
    assert ONE in source.work.requests


def test_late_failure_sets_back_the_attempt_that_went_on_from_it() -> None:
    source = Source()
    source.submit()
    (run,) = of(RunForward, source.begin())
    source.work.on_attempt_refused(ONE, 1, "x", 0.0)
    assert of(OpenCache, source.begin(attempt=2, now=1.0))
    source.work.on_failed(run.job.number, "out of memory", 2.0)
    assert source.phase() is Phase.WAITING
    source.start(now=9.0)
    assert of(OpenCache, source.grant(attempt=3, now=9.0))[0].position == 0


def test_failure_of_the_first_layers_names_this_peer() -> None:
    source = Source()
    source.submit()
    (run,) = of(RunForward, source.begin())
    finish = end(source.work.on_failed(run.job.number, "out of memory", 0.0))
    assert finish.error == "a@1 (source) could not compute the first layers: out of memory"


def test_prompt_on_slow_links_is_given_the_time_that_its_chunks_take() -> None:
    source = Source()
    source.travel_s = 50.0
    source.submit()
    source.begin()
    source.work.tick(TIMING.progress_s + 49.0, "")
    assert source.phase() is Phase.RUNNING
    source.work.tick(TIMING.progress_s + 50.0, "")
    assert source.phase() is Phase.WAITING


def test_request_that_keeps_failing_ends() -> None:
    source = Source()
    source.submit()
    for attempt in range(1, ATTEMPTS_MAX):
        source.work.requests[ONE].not_before = 0.0  # The pause between attempts is over.
        source.begin(attempt=attempt)
        assert not of(FinishRequest, source.work.on_attempt_refused(ONE, attempt, "x", 0.0))
    source.work.requests[ONE].not_before = 0.0
    source.begin(attempt=ATTEMPTS_MAX)
    finish = end(source.work.on_attempt_refused(ONE, ATTEMPTS_MAX, "stage 1 says no", 0.0))
    assert finish.error == "gave up after stage 1 says no"


# --- deadlines and ends ---------------------------------------------------------------------


def test_wait_for_a_plan_ends_with_the_reason() -> None:
    source = Source()
    source.submit()
    assert source.work.next_deadline() == TIMING.request_wait_s
    assert source.work.tick(TIMING.request_wait_s - 0.1, "no model") == []
    finish = end(source.work.tick(TIMING.request_wait_s, "no model"))
    assert (finish.finish_reason, finish.error) == ("error", "waited 60 s: no model")


def test_going_back_and_forth_does_not_renew_the_wait() -> None:
    source = Source()
    source.submit()
    now = 0.0
    while ONE in source.work.requests:
        source.start(now=now)
        source.work.park_plan(PLAN.id, "gone", now)
        now += 0.9
        source.work.tick(now, "")
        assert now <= TIMING.request_wait_s + 1


def test_wait_for_a_slot_ends_and_withdraws_the_ask() -> None:
    source = Source()
    source.submit()
    source.start()
    source.work.on_slot(SlotAnswer(PLAN.id, ONE, 1, "queued"), 0.0)
    steps = source.work.tick(TIMING.request_wait_s, "")
    assert of(ReturnSlot, steps) == [ReturnSlot(PLAN, ONE, 1)]
    assert end(steps).error == "waited 60 s: every slot of the plan is taken"


def test_an_answer_that_has_begun_waits_for_others_to_end() -> None:
    source = running()
    source.token(7, position=3)
    source.work.park_plan(PLAN.id, "gone", 0.0)
    later = replace(PLAN, workload=replace(PLAN.workload, context=1024))
    source.start(later)
    source.work.on_slot(SlotAnswer(later.id, ONE, 2, "queued"), 0.0)
    now = 0.0
    while now + 1.0 < TIMING.begun_wait_s:
        now += 1.0
        assert not of(FinishRequest, source.work.tick(now, ""))
    finish = end(source.work.tick(TIMING.begun_wait_s, ""))
    assert finish.error == "waited 600 s: every slot of the plan is taken"
    assert finish.tokens == (7,)


def test_attempt_without_progress_is_given_up_and_tried_again() -> None:
    source = running()
    assert source.work.next_deadline() == TIMING.progress_s
    steps = source.work.tick(TIMING.progress_s, "")
    assert kinds(steps) == [FrameKind.RELEASE]
    assert source.phase() is Phase.WAITING
    assert f"on plan {PLAN.id}" in source.work.requests[ONE].cause


def test_frames_of_others_do_not_keep_a_lost_request_waiting() -> None:
    source = running()
    source.token(7, position=3, now=1.0)
    for now in range(2, 31):
        source.work.note_progress(PLAN.id, float(now))
        assert source.phase() is Phase.RUNNING
    source.work.tick(1.0 + TIMING.progress_s, "")
    assert source.phase() is Phase.WAITING


def test_long_prompt_may_take_longer_while_its_plan_takes_frames() -> None:
    long = replace(PLAN, workload=replace(PLAN.workload, context=1024))
    source = Source()
    source.submit(3 * CHUNK_ROWS)
    source.done(source.begin(long))
    for k in range(1, 200):
        source.work.note_progress(long.id, float(k))
    assert source.work.next_deadline() == 3 * TIMING.progress_s + TIMING.progress_s
    source = Source()
    source.submit(3 * CHUNK_ROWS)
    source.done(source.begin(long))
    source.work.note_progress(SOLO.id, 20.0)
    assert source.work.next_deadline() == TIMING.progress_s


def test_ask_after_a_withdrawn_one_is_another() -> None:
    source = Source()
    source.submit()
    source.start()
    withdrawn = of(ReturnSlot, source.work.park_plan(PLAN.id, "gone", 0.0))
    assert withdrawn == [ReturnSlot(PLAN, ONE, 1)]
    (ask,) = source.start()
    assert isinstance(ask, AskSlot)
    assert ask.attempt == 2
    assert source.grant(attempt=1) == []
    assert source.grant(attempt=2) != []


def test_swarm_that_cannot_serve_ends_those_that_wait() -> None:
    source = Source()
    source.submit()
    source.begin()
    source.submit()
    assert end(source.work.end_waiting("too little memory", 0.0)).request == request(2)
    assert list(source.work.requests) == [ONE]


@pytest.mark.parametrize("state", ["waiting", "asking", "running"])
def test_cancelled_request_gives_back_what_it_has(state: str) -> None:
    source = Source()
    source.submit()
    if state != "waiting":
        source.start()
    if state == "running":
        source.grant()
    steps = source.work.cancel(ONE, 0.0)
    assert end(steps).finish_reason == "cancelled"
    assert len(of(ReturnSlot, steps)) == (state == "asking")
    assert kinds(steps) == ([FrameKind.RELEASE] if state == "running" else [])
    assert source.work.cancel(ONE, 0.0) == []


def test_leaving_ends_everything() -> None:
    source = Source()
    for _ in range(3):
        source.submit()
    source.begin()
    ends = of(FinishRequest, source.work.end_all("a@1 is leaving", 0.0))
    assert [(finish.request, finish.error) for finish in ends] == [
        (request(k), "a@1 is leaving") for k in (1, 2, 3)
    ]


def test_tokens_of_one_model_are_not_put_to_another() -> None:
    source = Source()
    source.submit()
    finish = end(source.start(replace(PLAN, model_digest="1" * 64)))
    assert finish.error == "the swarm has changed its model"


def test_request_longer_than_the_new_context_ends_when_its_turn_comes() -> None:
    short = replace(PLAN, workload=replace(PLAN.workload, context=4))
    source = Source()
    source.submit(n_prompt=9)
    finish = end(source.start(short))
    assert "has 9 tokens, the swarm's context is now 4" in finish.error
    assert finish.retry_ms  # A plan with a longer one may be on its way.
    source = running()
    source.token(7, position=3)
    source.work.park_plan(PLAN.id, "gone", 0.0)
    finish = end(source.start(short))
    assert (finish.finish_reason, finish.tokens) == ("length", (7,))


# --- going on ---------------------------------------------------------------------------------


def interrupted(has_logs: bool) -> Source:
    """Three tokens of prompt and two of answer, when the plan's second stage is lost."""
    source = Source()
    source.may_log = has_logs
    source.submit()
    source.done(source.begin())
    source.done(source.token(7, position=3))
    source.done(source.token(8, position=4))
    assert source.phase() is Phase.RUNNING
    source.work.park_plan(PLAN.id, "stage 2 of 2: c lost", 1.0)
    return source


def opening(steps: Sequence[Any]) -> Open:
    (frame,) = [frame for frame in frames(steps) if frame.kind is FrameKind.OPEN]
    assert frame.body is not None
    return frame.body


def test_only_what_was_lost_is_computed_again() -> None:
    source = interrupted(has_logs=True)
    source.start(now=2.0)
    source.grant(attempt=2, now=2.0)
    source.report(0, CachedUnits(UnitRange(2, 4), 5), logs=5)
    steps = source.report(1)
    body = opening(steps)
    assert (body.position, body.replays) == (4, (Replay(0, 4, 5, 0),))
    assert rows_of(steps) == [(4, 1)]
    (story,) = of(RequestNotice, steps)
    assert story.text == "recovering stage 2 of 2: c lost, replaying 4 tokens on c"


def test_source_reads_its_own_log_for_the_first_stage() -> None:
    source = interrupted(has_logs=True)
    source.start(now=2.0)
    source.grant(attempt=2, now=2.0)
    source.report(0)
    steps = source.report(1, CachedUnits(UnitRange(4, 6), 4))
    assert opening(steps).replays == (Replay(-1, 2, 4, 0),)
    replay, last = of(RunForward, steps)
    assert replay.is_from_log
    assert not replay.units
    assert (replay.groups[0].position, replay.groups[0].rows) == (0, 4)
    hidden = TensorRef(7, 128)
    sent = source.work.on_done(ForwardDone(replay.job, 1, hidden), 2.0)
    (group,) = frames(sent)[0].groups
    assert (group.flags, group.stop_unit, group.position, group.rows) == (RowFlag.REPLAY, 4, 0, 4)
    assert not last.is_from_log


def test_without_a_log_the_known_tokens_are_prefilled_again() -> None:
    source = interrupted(has_logs=False)
    source.start(now=2.0)
    source.grant(attempt=2, now=2.0)
    source.report(0, CachedUnits(UnitRange(2, 4), 5))
    steps = source.report(1)
    assert (opening(steps).position, opening(steps).replays) == (0, ())
    assert rows_of(steps) == [(0, 5)]
    (story,) = of(RequestNotice, steps)
    assert story.text == "recovering stage 2 of 2: c lost, prefilling 4 tokens again"


def test_stage_that_does_not_report_is_not_waited_for() -> None:
    source = interrupted(has_logs=True)
    source.start(now=2.0)
    source.grant(attempt=2, now=2.0)
    source.report(0, CachedUnits(UnitRange(2, 4), 5), logs=5)
    due = 2.0 + TIMING.report_wait_s
    assert source.work.next_deadline() == due
    assert opening(source.work.tick(due, "")).replays == (Replay(0, 4, 5, 0),)


def test_attempt_that_went_on_and_got_nowhere_is_followed_by_a_new_prefill() -> None:
    source = interrupted(has_logs=True)
    source.start(now=2.0)
    source.grant(attempt=2, now=2.0)
    source.report(0, CachedUnits(UnitRange(2, 4), 5), logs=5)
    source.report(1)
    steps = source.work.on_attempt_refused(ONE, 2, "stage 2 (c@1) refused: missing_kv", 2.5)
    assert kinds(steps) == [FrameKind.RELEASE]
    source.work.requests[ONE].not_before = 0.0
    assert source.start(now=9.0) == [AskSlot(PLAN, ONE, 3, 8.0, True)]
    assert opening(source.grant(attempt=3, now=9.0)).position == 0


def test_what_is_left_along_the_stages_is_freed_at_the_end() -> None:
    source = interrupted(has_logs=True)
    steps = source.work.cancel(ONE, 2.0)
    assert kinds(steps) == [FrameKind.RELEASE]
    assert of(ReleaseCache, steps)
    assert source.work.kept.n_logs() == 0
