"""A stage takes the rows that come next, of the current attempt; anything else has a reason."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.cached import Cached
from edgeshard_p2p.core.edges import Due, EdgeKind, EdgeSpec
from edgeshard_p2p.core.effects import DropTensor, OpenCache, ReleaseCache, RunForward
from edgeshard_p2p.core.events import ForwardDone
from edgeshard_p2p.core.flow import Frame
from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.kept import KeptCaches
from edgeshard_p2p.core.messages import (
    FrameKind,
    LoggedRows,
    Open,
    Replay,
    RowFlag,
    RowGroupHeader,
)
from edgeshard_p2p.core.outcome import Outcome, StageRows
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.stage import StageWork
from edgeshard_p2p.core.work import CacheKey, Job, RowGroup, TensorRef
from tests.core.parts import PLAN, A, B, C, D, of, request

IN = Due(EdgeSpec(0, EdgeKind.ENTRY, A, B, 0, 0), 1)
SAMPLING = Sampling(temperature=0.5, seed=3)
TENSOR = TensorRef(1, 96)
TWO_SOURCES = replace(PLAN, sources=(A, D), workload=replace(PLAN.workload, batch=3))
KEY = CacheKey(request(1), "stage", TWO_SOURCES.id)


class Alone(StageWork):
    """A stage with nothing else to compute: what waits is a pass at once."""

    def on_frame(self, due: Due, frame: Frame) -> Outcome:
        outcome = super().on_frame(due, frame)
        for rows in outcome.waits:
            begun = self.begin([rows])
            outcome.effects += begun.effects
            outcome.consumed += begun.consumed
        return outcome


def group(
    position: int = 0, rows: int = 3, attempt: int = 1, sequence: int = 1, **other: Any
) -> RowGroupHeader:
    made = RowGroupHeader(0, sequence, attempt, position, rows, position, 6, 0)
    return replace(made, **other)


def opening(attempt: int = 1, sequence: int = 1, oldest_live: int = 1) -> Frame:
    body = Open(SAMPLING, 0, oldest_live)
    return Frame(FrameKind.OPEN, (group(0, 0, attempt, sequence),), body=body)


def hidden(*groups: RowGroupHeader) -> Frame:
    return Frame(FrameKind.HIDDEN, groups, 7, 100, TENSOR)


def stage_of(index: int, logs: bool = False) -> Alone:
    kept = KeptCaches("stage", lambda: 0)
    return Alone(TWO_SOURCES, index, kept, lambda _: ([], logs))


def opened(index: int = 0, n: int = 1) -> Alone:
    stage = stage_of(index)
    for sequence in range(1, n + 1):
        stage.on_frame(IN, opening(sequence=sequence))
    return stage


def job(outcome: Outcome) -> RunForward:
    (run,) = of(RunForward, outcome.effects)
    return run


def refusals(outcome: Outcome) -> list[tuple[str, str]]:
    return [(str(refusal.request), refusal.reason) for refusal in outcome.refusals]


# --- opening --------------------------------------------------------------------------------


def test_opening_takes_a_cache_and_goes_on_to_the_next_stage() -> None:
    stage = stage_of(0)
    outcome = stage.on_frame(IN, opening())
    assert outcome.effects == [OpenCache(KEY, UnitRange(2, 4), 0)]
    assert outcome.offers == [(EdgeKind.INNER, -1, opening())]
    assert outcome.consumed == [IN]


def test_last_stage_passes_nothing_on() -> None:
    assert stage_of(1).on_frame(IN, opening()).offers == []


def test_later_attempt_starts_anew_and_an_earlier_one_is_stale() -> None:
    stage = opened()
    stage.on_frame(IN, hidden(group()))
    stage.on_frame(IN, opening(attempt=3))
    assert (stage.requests[request(1)].attempt, stage.requests[request(1)].slot.length) == (3, 0)
    outcome = stage.on_frame(IN, opening(attempt=2))
    assert refusals(outcome) == [("a@1#1", "stale_attempt")]
    assert of(OpenCache, outcome.effects) == []


def test_opening_beyond_the_promise_is_refused() -> None:
    stage = opened(n=3)
    outcome = stage.on_frame(IN, opening(sequence=4))
    assert refusals(outcome) == [("a@1#4", "no_slot")]
    assert of(OpenCache, outcome.effects) == []


def test_opening_frees_what_its_source_has_forgotten() -> None:
    stage = opened(n=3)
    outcome = stage.on_frame(IN, opening(sequence=4, oldest_live=3))
    freed = [effect.key.request for effect in of(ReleaseCache, outcome.effects)]
    assert freed == [request(1), request(2)]
    assert list(stage.requests) == [request(3), request(4)]


# --- rows -----------------------------------------------------------------------------------


def test_next_rows_are_computed_and_the_result_goes_on() -> None:
    stage = opened()
    outcome = stage.on_frame(IN, hidden(group(0, 3)))
    run = job(outcome)
    assert run.job == Job(TWO_SOURCES.id, "stage", 1)
    assert (run.units, run.tensors) == (UnitRange(2, 4), (TENSOR,))
    assert (run.groups, run.spans) == ((RowGroup(KEY, 0, 3),), ())
    assert outcome.consumed == []  # Not before it is computed: that is what credit means.
    done = stage.on_done(ForwardDone(run.job, 55, TensorRef(2, 96)))
    ((kind, source, frame),) = done.offers
    assert (kind, source) == (EdgeKind.INNER, -1)
    expected = Frame(FrameKind.HIDDEN, (group(0, 3),), 7, 55, TensorRef(2, 96))
    assert frame == expected
    assert done.consumed == [IN]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (group(3, 2), ""),
        (group(3, 2, attempt=1, cached_len=2), "missing_kv"),
        (group(4, 2), "missing_kv"),
        (group(2, 2), "missing_kv"),
        (group(0, 3), "repeat"),
        (group(1, 1), "repeat"),
        (group(3, 2, attempt=2), "missing_kv"),
        (group(3, 2, attempt=0), "stale_attempt"),
        (group(3, 2, sequence=2), "missing_kv"),
        (group(3, 2, flags=int(RowFlag.REPLAY)), "no_replay_here"),
        (group(3, 2, stop_unit=3), "no_replay_here"),
    ],
    ids=str,
)
def test_only_the_rows_that_come_next_are_taken(rows: RowGroupHeader, reason: str) -> None:
    stage = opened()
    stage.on_frame(IN, hidden(group(0, 3)))
    outcome = stage.on_frame(IN, hidden(rows))
    if reason == "":
        assert job(outcome).groups == (RowGroup(KEY, 3, 2),)
        assert stage.requests[request(1)].slot.length == 5
        return
    assert outcome.effects == [DropTensor(TENSOR)]
    assert outcome.consumed == [IN]
    expected = [] if reason == "repeat" else [(f"a@1#{rows.sequence}", reason)]
    assert refusals(outcome) == expected
    assert stage.requests[request(1)].slot.length == 3


def test_refused_rows_are_left_out_of_the_pass() -> None:
    stage = opened(n=3)
    outcome = stage.on_frame(
        IN, hidden(group(0, 2, sequence=1), group(9, 4, sequence=2), group(0, 3, sequence=3))
    )
    run = job(outcome)
    assert [rows.key.request.sequence for rows in run.groups] == [1, 3]
    assert run.spans == ((0, 2), (6, 3))
    assert refusals(outcome) == [("a@1#2", "missing_kv")]
    done = stage.on_done(ForwardDone(run.job, 1, TensorRef(2, 160)))
    assert [g.sequence for g in done.offers[0][2].groups] == [1, 3]


# --- tokens ---------------------------------------------------------------------------------


def test_last_stage_samples_at_the_last_known_token_only() -> None:
    stage = opened(index=1, n=3)
    last, silent = int(RowFlag.LAST_CHUNK), int(RowFlag.LAST_CHUNK | RowFlag.NO_EMIT)
    run = job(
        stage.on_frame(
            IN,
            hidden(
                group(0, 3, sequence=1),
                group(0, 3, sequence=2, flags=last),
                group(0, 3, sequence=3, flags=silent),
            ),
        )
    )
    assert [rows.emit for rows in run.groups] == [None, SAMPLING, None]
    assert job(opened(index=0).on_frame(IN, hidden(group(flags=last)))).groups[0].emit is None
    done = stage.on_done(ForwardDone(run.job, 5, None, (None, 42, None)))
    ((kind, source, frame),) = done.offers
    assert (kind, source, frame.kind, frame.tokens) == (EdgeKind.RETURN, 0, FrameKind.TOKENS, (42,))
    (token_group,) = frame.groups
    assert (token_group.sequence, token_group.attempt, token_group.position) == (2, 1, 3)


def test_each_source_gets_its_own_tokens() -> None:
    stage = opened(index=1)
    other = group(0, 0, source_index=1)
    stage.on_frame(IN, Frame(FrameKind.OPEN, (other,), body=Open(SAMPLING, 0, 1)))
    last = int(RowFlag.LAST_CHUNK)
    rows = (group(0, 3, flags=last, source_index=1), group(0, 2, flags=last))
    run = job(stage.on_frame(IN, hidden(*rows)))
    done = stage.on_done(ForwardDone(run.job, 6, None, (7, 8)))
    assert [(source, frame.tokens) for _, source, frame in done.offers] == [(0, (8,)), (1, (7,))]
    assert [frame.service_us for _, _, frame in done.offers] == [3, 3]


# --- trouble --------------------------------------------------------------------------------


def test_failed_pass_is_told_to_the_sources() -> None:
    stage = opened()
    run = job(stage.on_frame(IN, hidden(group())))
    outcome = stage.on_failed(run.job.number, "out of memory")
    (refusal,) = outcome.refusals
    assert (refusal.request, refusal.attempt, refusal.stage) == (request(1), 1, 0)
    assert (refusal.reason, refusal.detail) == ("compute_failed", "out of memory")
    assert outcome.consumed == [IN]
    assert not stage.running


def test_frames_lost_with_their_edge_are_told_to_the_sources() -> None:
    stage = opened()
    outcome = stage.on_lost([hidden(group()), Frame(FrameKind.RELEASE, (group(sequence=2),))])
    assert outcome.effects == [DropTensor(TENSOR)]
    assert refusals(outcome) == [("a@1#1", "edge_lost")]


# --- freeing --------------------------------------------------------------------------------


def test_release_frees_here_and_goes_on() -> None:
    stage = opened()
    release = Frame(FrameKind.RELEASE, (group(0, 0),))
    outcome = stage.on_frame(IN, release)
    assert outcome.effects == [ReleaseCache(KEY)]
    assert outcome.offers == [(EdgeKind.INNER, -1, release)]
    assert stage.on_frame(IN, release).effects == []
    assert refusals(stage.on_frame(IN, hidden(group()))) == [("a@1#1", "missing_kv")]


def test_requests_go_with_their_source() -> None:
    stage = opened(n=2)
    other = Frame(FrameKind.OPEN, (group(0, 0, source_index=1),), body=Open(SAMPLING, 0, 1))
    stage.on_frame(IN, other)
    assert len(stage.free_source(A)) == 2
    assert list(stage.requests) == [request(1, D)]
    assert stage.free_source(C) == []
    key = CacheKey(request(1, D), "stage", TWO_SOURCES.id)
    assert stage.keep_all(60.0, {request(1, D)}) == [ReleaseCache(key)]


def test_what_gossip_frees_is_released_along_the_stages() -> None:
    stage = opened(n=3)
    outcome = stage.release_below(A, 3)
    assert [effect.key.request for effect in of(ReleaseCache, outcome.effects)] == [
        request(1),
        request(2),
    ]
    ((kind, _, frame),) = outcome.offers
    assert (kind, frame.kind) == (EdgeKind.INNER, FrameKind.RELEASE)
    assert [(g.sequence, g.attempt) for g in frame.groups] == [(1, 1), (2, 1)]
    assert stage.release_below(A, 3).offers == []
    assert opened(index=1, n=3).release_below(A, 3).offers == []


# --- going on ---------------------------------------------------------------------------------


def resuming(position: int, *replays: Replay, attempt: int = 2) -> Frame:
    body = Open(SAMPLING, position, 1, replays)
    return Frame(FrameKind.OPEN, (group(0, 0, attempt),), body=body)


def replayed(position: int, rows: int, stop: int, attempt: int = 2) -> Frame:
    flags = RowFlag.REPLAY
    return hidden(group(position, rows, attempt, stop_unit=stop, flags=flags))


def test_stage_that_has_everything_goes_on_where_it_was() -> None:
    stage = opened()
    stage.on_frame(IN, hidden(group(rows=5)))
    (cut,) = stage.on_frame(IN, resuming(4)).effects
    assert cut == OpenCache(KEY, UnitRange(2, 4), 4)
    assert job(stage.on_frame(IN, hidden(group(4, 1, 2)))).groups[0].position == 4


def test_stage_that_lacks_something_says_so_and_keeps_what_it_has() -> None:
    stage = opened()
    stage.on_frame(IN, hidden(group(rows=3)))
    outcome = stage.on_frame(IN, resuming(4))
    assert refusals(outcome) == [("a@1#1", "missing_kv")]
    assert stage.cached(request(1), 0).length(2) == 3


def test_replay_fills_a_stage_and_ends_in_it() -> None:
    stage = stage_of(0)
    (opening_,) = stage.on_frame(IN, resuming(4, Replay(-1, 2, 4, 0))).effects
    assert (opening_.replayed, opening_.replay_position) == (UnitRange(2, 4), 0)
    assert refusals(stage.on_frame(IN, hidden(group(4, 1, 2)))) == [("a@1#1", "missing_kv")]
    run = job(stage.on_frame(IN, replayed(0, 4, stop=4)))
    assert run.units == UnitRange(2, 4)
    done = stage.on_done(ForwardDone(run.job, 9, TensorRef(8, 96)))
    assert done.effects == [DropTensor(TensorRef(8, 96))]
    assert done.offers == []
    assert done.consumed == [IN]
    assert job(stage.on_frame(IN, hidden(group(4, 1, 2)))).groups[0].position == 4


def test_replay_goes_through_to_where_it_is_wanted() -> None:
    first, last = stage_of(0), stage_of(1)
    for stage in (first, last):
        stage.on_frame(IN, resuming(4, Replay(-1, 2, 5, 0)))
    run = job(first.on_frame(IN, replayed(0, 4, stop=5)))
    ((kind, _, frame),) = first.on_done(ForwardDone(run.job, 9, TensorRef(8, 96))).offers
    assert (kind, frame.groups[0].flags, frame.groups[0].stop_unit) == (
        EdgeKind.INNER,
        RowFlag.REPLAY,
        5,
    )
    assert job(last.on_frame(IN, frame)).units == UnitRange(4, 5)


def test_stage_replays_from_its_own_log() -> None:
    stage = stage_of(0, logs=True)
    stage.on_frame(IN, opening())
    stage.on_frame(IN, hidden(group(rows=5)))
    outcome = stage.on_frame(IN, resuming(4, Replay(0, 4, 6, 0)))
    cut, run = outcome.effects
    assert cut.logs == (LoggedRows(4, 0, 4),)
    assert run.is_from_log
    assert not run.units
    ((_, _, frame),) = stage.on_done(ForwardDone(run.job, 9, TensorRef(8, 96))).offers
    assert (frame.groups[0].position, frame.groups[0].rows) == (0, 4)
    assert frame.groups[0].flags == RowFlag.REPLAY


def test_what_a_plan_leaves_is_adopted_by_the_next() -> None:
    kept = KeptCaches("stage", lambda: 0)
    before = Alone(TWO_SOURCES, 0, kept, lambda _: ([], False))
    before.on_frame(IN, opening())
    before.on_frame(IN, hidden(group(rows=4)))
    assert before.keep_all(60.0, ()) == []
    next_plan = replace(TWO_SOURCES, entry_end=1)
    after = Alone(next_plan, 0, kept, lambda _: ([], False))
    (adopted,) = after.on_frame(IN, resuming(4)).effects
    assert (adopted.adopts, adopted.key.plan, adopted.position) == (KEY, next_plan.id, 4)
    assert kept.of(request(1)) == Cached()


def released(stage: Alone, flags: int, attempt: int = 1) -> Outcome:
    return stage.on_frame(IN, Frame(FrameKind.RELEASE, (group(0, 0, attempt, flags=flags),)))


def test_another_request_goes_on_from_one_that_is_over() -> None:
    stage = opened()
    stage.on_frame(IN, hidden(group(rows=4)))
    assert released(stage, RowFlag.KEEP).effects == []
    assert (stage.requests, stage.cached(request(1), 0).length(2)) == ({}, 4)
    assert stage.cached(request(2), 1).length(2) == 4
    body = Open(SAMPLING, 3, 2, (), continues=1)
    frame = Frame(FrameKind.OPEN, (group(0, 0, sequence=2),), body=body)
    (adopted,) = stage.on_frame(IN, frame).effects
    assert (adopted.adopts, adopted.key.request, adopted.position) == (KEY, request(2), 3)
    later = Frame(FrameKind.OPEN, (group(0, 0, sequence=3),), body=body)
    assert refusals(stage.on_frame(IN, later)) == [("a@1#3", "missing_kv")]


def test_release_of_an_earlier_attempt_keeps_nothing() -> None:
    stage = opened()
    stage.on_frame(IN, hidden(group(rows=4)))
    stage.on_frame(IN, opening(attempt=2))
    assert released(stage, RowFlag.KEEP).effects == [ReleaseCache(KEY)]


@pytest.mark.parametrize(("position", "rows", "stop"), [(1, 3, 4), (0, 5, 4), (0, 4, 6), (0, 4, 3)])
def test_replay_that_nobody_asked_for_is_refused(position: int, rows: int, stop: int) -> None:
    stage = stage_of(0)
    stage.on_frame(IN, resuming(4, Replay(-1, 2, 4, 0)))
    outcome = stage.on_frame(IN, replayed(position, rows, stop))
    assert refusals(outcome) == [("a@1#1", "no_replay_here")]


def test_failed_pass_leaves_nothing_to_go_on_with() -> None:
    stage = opened()
    run = job(stage.on_frame(IN, hidden(group(rows=3))))
    outcome = stage.on_failed(run.job.number, "no memory")
    assert outcome.effects == [ReleaseCache(KEY)]
    assert stage.cached(request(1), 0) == Cached()


def test_late_failure_refuses_the_attempt_that_went_on_from_it() -> None:
    stage = opened()
    run = job(stage.on_frame(IN, hidden(group(rows=5))))
    stage.on_frame(IN, resuming(4))
    outcome = stage.on_failed(run.job.number, "no memory")
    assert [(told.attempt, told.reason) for told in outcome.refusals] == [(2, "compute_failed")]
    assert stage.requests == {}


# --- passes of several frames ---------------------------------------------------------------


def waiting(stage: StageWork, sequence: int, tensor: TensorRef, position: int = 0) -> StageRows:
    frame = Frame(FrameKind.HIDDEN, (group(position, 1, 1, sequence),), 7, 100, tensor)
    (rows,) = StageWork.on_frame(stage, IN, frame).waits
    return rows


def test_rows_of_several_frames_are_one_pass_and_one_frame() -> None:
    stage, tensors = opened(n=2), (TensorRef(1, 32), TensorRef(2, 32))
    rows = [waiting(stage, sequence, tensors[sequence - 1]) for sequence in (1, 2)]
    outcome = stage.begin(rows)
    run = job(outcome)
    assert run.tensors == tensors
    assert [one.key.request for one in run.groups] == [request(1), request(2)]
    assert (run.spans, outcome.consumed) == ((), [])
    done = stage.on_done(ForwardDone(run.job, 9, TensorRef(3, 64)))
    assert done.consumed == [IN, IN]
    ((_, _, frame),) = done.offers
    assert [one.sequence for one in frame.groups] == [1, 2]


def test_rows_whose_request_has_ended_meanwhile_are_left_out() -> None:
    stage = opened(n=3)
    frame = Frame(
        FrameKind.HIDDEN, (group(0, 1, 1, 1), group(0, 1, 1, 2)), 7, 100, TensorRef(1, 64)
    )
    (pair,) = StageWork.on_frame(stage, IN, frame).waits
    lone, last = waiting(stage, 2, TensorRef(2, 32), position=1), TensorRef(3, 32)
    other = waiting(stage, 3, last)
    stage.free(request(2))
    outcome = stage.begin([lone, pair, other])
    assert of(DropTensor, outcome.effects) == [DropTensor(TensorRef(2, 32))]
    assert outcome.consumed == [IN]
    run = job(outcome)
    assert run.tensors == (TensorRef(1, 64), last)
    assert run.spans == ((0, 1), (2, 1))
    assert [one.key.request for one in run.groups] == [request(1), request(3)]
    stage.free(request(1))
    assert of(RunForward, stage.begin([pair]).effects) == []


def test_what_no_pass_could_take_is_refused_before_it_shares_one() -> None:
    stage, context = opened(n=2), TWO_SOURCES.workload.context
    stage.requests[request(2)].slot.length = context
    twice = hidden(group(0, 1), group(1, 1, cached_len=1))
    outcome = StageWork.on_frame(stage, IN, twice)
    assert refusals(outcome) == [(str(request(1)), "twice_in_a_frame")]
    assert [len(rows.groups) for rows in outcome.waits] == [1]
    beyond = hidden(group(context, 1, 1, 2))
    assert refusals(StageWork.on_frame(stage, IN, beyond)) == [(str(request(2)), "over_context")]
