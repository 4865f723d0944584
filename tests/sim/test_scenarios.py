"""Stories of a small swarm, each told once: who comes, what breaks, what its user sees."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from edgeshard_p2p.core import entry
from edgeshard_p2p.core.effects import RunForward
from edgeshard_p2p.core.events import ForwardDone, ForwardFailed, PassesTimed
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import MemberState
from edgeshard_p2p.core.records import Failure, FailuresRecord
from edgeshard_p2p.core.request import Phase
from edgeshard_p2p.core.schedule import SCHEDULES, Schedule, iteration_us
from edgeshard_p2p.sim.compute import small_model
from edgeshard_p2p.sim.device import SimPeer
from edgeshard_p2p.sim.network import Pace
from edgeshard_p2p.sim.request import SimRequest
from edgeshard_p2p.sim.simulator import Simulator
from tests.sim.swarms import (
    EVERYTHING,
    HALF,
    answer,
    belief,
    core,
    settle,
    swarm_of,
)

PROMPT = (3, 1, 4, 1, 5)
LONG = 60
"""Tokens: an answer that is still under way when something happens to it."""


def stage_peers(swarm: Simulator, name: str = "a") -> list[str]:
    plan = core(swarm, name).planning.rollout.active_plan()
    assert plan is not None
    return [stage.peer.name for stage in plan.stages]


def promised(swarm: Simulator) -> int:
    """Requests that the plan holds at once."""
    plan = core(swarm, "a").planning.rollout.active_plan()
    return plan.workload.batch if plan is not None else 0


def only_stage(swarm: Simulator, source: str) -> str:
    """A peer with a shared stage that is not ``source``."""
    return next(name for name in stage_peers(swarm) if name != source)


def serves_with(swarm: Simulator, only: str) -> bool:
    """Whether the source serves and this peer has the only shared stage."""
    plan = core(swarm, "a").planning.rollout.active_plan()
    return plan is not None and [stage.peer.name for stage in plan.stages] == [only]


def submit_and_watch(swarm: Simulator, source: str, n_tokens: int = 3) -> SimRequest:
    """A long answer, of which the first tokens have come."""
    request = swarm.submit(source, PROMPT, LONG)
    assert swarm.run_until(lambda: len(request.tokens) >= n_tokens, 30.0), f"{request}"
    return request


# --- together -----------------------------------------------------------------------------------


def test_three_peers_converge_and_every_source_answers() -> None:
    swarm = swarm_of("abc")
    plan = settle(swarm)
    assert plan is not None
    assert len(stage_peers(swarm)) == 3
    for name in "abc":
        request = swarm.submit(name, PROMPT, 8)
        assert answer(swarm, request) == request.oracle.tokens(8)
        assert request.finished is not None
        assert request.finished.stats.plan_id == plan
        assert (request.finished.stats.failovers, request.finished.finish_reason) == (0, "length")


def test_lone_peer_that_holds_everything_answers() -> None:
    swarm = swarm_of("a", EVERYTHING)
    assert settle(swarm) is not None
    assert stage_peers(swarm) == []
    answer(swarm, swarm.submit("a", PROMPT, 8))


def test_requests_beyond_the_promise_wait_their_turn() -> None:
    swarm = swarm_of("abc")
    settle(swarm)
    requests = [swarm.submit(name, PROMPT, 10) for name in "abc" * 6]
    for request in requests:
        answer(swarm, request)
    plan = core(swarm, "a").planning.rollout.active_plan()
    assert plan is not None
    assert plan.workload.batch < len(requests)


ROUNDS = 20
"""Rows of different sources meet now and then only: in every third round or so."""


def watch_passes(monkeypatch: pytest.MonkeyPatch, role: str) -> list[list[tuple[str, int]]]:
    """Of every pass in that role from now on: (request, rows) of its groups."""
    passes: list[list[tuple[str, int]]] = []
    forward = SimPeer.forward

    def watched(self: SimPeer, effect: RunForward) -> ForwardDone | ForwardFailed:
        if effect.job.role == role:
            passes.append([(str(group.key.request), group.rows) for group in effect.groups])
        return forward(self, effect)

    monkeypatch.setattr(SimPeer, "forward", watched)
    return passes


@pytest.mark.parametrize(("role", "sources"), [("entry", "aaaa"), ("stage", "acdacd")])
def test_requests_share_passes(role: str, sources: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = Simulator(12)
    for name in "abcd":
        budget_bytes = EVERYTHING if name == "b" else EVERYTHING // 10**4
        swarm.add(name, budget_bytes, is_source=name != "b")
    for name in "abcd":
        swarm.start(name, join=("a",) if name != "a" else ())
    swarm.set("a", "batch", len(sources))
    assert swarm.run_until(lambda: promised(swarm) == len(sources), 30.0)
    settle(swarm)
    assert stage_peers(swarm) == ["b"]
    for source in sorted(set(sources)):  # Each knows by now that all are ready.
        answer(swarm, swarm.submit(source, PROMPT, 1))
    passes = watch_passes(monkeypatch, role)
    for _ in range(ROUNDS if role == "stage" else 1):
        requests = [swarm.submit(source, PROMPT, LONG) for source in sources]
        for request in requests:
            assert answer(swarm, request) == request.oracle.tokens(LONG)
    shared = [one for one in passes if len(one) > 1]
    assert shared
    assert all(rows == 1 for one in shared for _, rows in one)
    if role == "stage":
        assert any(len({request.split("#")[0] for request, _ in one}) > 1 for one in shared)


def test_long_prompt_takes_turns_with_a_running_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "CHUNK_ROWS", 8)
    swarm = swarm_of("a", EVERYTHING)
    settle(swarm)
    stream = submit_and_watch(swarm, "a")
    passes = watch_passes(monkeypatch, "entry")
    prompts = [swarm.submit("a", tuple(range(60)), 1) for _ in range(2)]
    for request in prompts:
        answer(swarm, request)
    kinds = ["chunk" if one[0][1] > 1 else "rows" for one in passes]
    assert kinds.count("chunk") >= 14
    assert not any(pair == ("chunk", "chunk") for pair in pairwise(kinds))
    assert answer(swarm, stream) == stream.oracle.tokens(LONG)


def test_requests_that_began_apart_come_to_share_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where two could be under way beside each other, but each costs as much as a full one."""
    swarm = swarm_of_two_stages({"batch": 6, "micro_batch": 2})
    streams = []
    for _ in range(6):
        streams.append(swarm.submit("a", PROMPT, LONG))
        swarm.run(swarm.now + 0.0045)
    assert swarm.run_until(lambda: all(len(s.tokens) > 20 for s in streams), 30.0)
    passes = watch_passes(monkeypatch, "entry")
    assert swarm.run_until(lambda: all(len(s.tokens) > 40 for s in streams), 30.0)
    assert {len(one) for one in passes} == {2}
    for stream in streams:
        assert answer(swarm, stream) == stream.oracle.tokens(LONG)


@pytest.mark.parametrize(("settings", "sizes"), [({}, {8}), ({"micro_batch": 4}, {4})])
def test_rows_set_out_together_while_prompts_keep_the_stages_busy(
    settings: dict[str, int | str], sizes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two passes of four fill both stages when all decode.  A wish for passes of a size is
    kept to."""
    for module in ("entry", "request"):
        monkeypatch.setattr(f"edgeshard_p2p.core.{module}.CHUNK_ROWS", 8)
    swarm = swarm_of_two_stages({"batch": 10, **settings}, row_us=1000)
    streams = [swarm.submit("a", PROMPT, 150) for _ in range(8)]
    assert swarm.run_until(lambda: all(len(s.tokens) >= 10 for s in streams), 30.0)
    passes = watch_passes(monkeypatch, "entry")

    def sizes_of_passes() -> set[int]:
        """Of rows that decode, from a while after now on."""
        swarm.run(swarm.now + 0.2)
        passes.clear()
        swarm.run(swarm.now + 0.3)
        assert not any(stream.finished for stream in streams)
        return {len(one) for one in passes if one[0][1] == 1}

    assert sizes_of_passes() == {4}
    prompts = [swarm.submit("a", tuple(range(90)), 1) for _ in range(2)]
    assert sizes_of_passes() == sizes
    assert not any(prompt.finished for prompt in prompts)
    assert swarm.run_until(lambda: all(prompt.finished for prompt in prompts), 30.0)
    assert sizes_of_passes() == {4}
    for asked in [*streams, *prompts]:
        assert answer(swarm, asked) == asked.oracle.tokens(asked.max_tokens)


def swarm_of_two_stages(settings: dict[str, int | str], row_us: int = 0) -> Simulator:
    """a takes prompts and 3 ms for each pass, b the rest of each, and as long."""
    swarm = Simulator(7)
    for name in "ab":
        swarm.add(name, EVERYTHING, is_source=name == "a", row_us=row_us)
        swarm.start(name, join=("a",) if name != "a" else ())
    for key, value in settings.items():
        swarm.set("a", key, value)
    swarm.set("a", "pin", "a:0-3,b:3-6")
    n = settings["batch"]
    assert swarm.run_until(lambda: promised(swarm) == n and stage_peers(swarm) == ["b"], 30.0)
    settle(swarm)
    return swarm


def test_what_passes_take_besides_comes_to_be_in_every_plan() -> None:
    swarm = swarm_of_two_stages({"batch": 2})
    core = swarm.peers["b"].core
    assert core is not None
    for _ in range(3):
        core.handle(PassesTimed(9_000), swarm.now)
    swarm.run(swarm.now + 3.0)
    for name in "ab":
        view = swarm.peers[name].core.planning.replan.view
        assert {d.peer.name: d.pass_us for d in view.snapshot.devices} == {"a": 0, "b": 9_000}


def us_per_token(swarm: Simulator, streams: list[SimRequest]) -> float:
    """Of each, over 30 tokens."""
    assert swarm.run_until(lambda: all(len(s.tokens) >= 10 for s in streams), 30.0)
    begun, n_begun = swarm.now, sum(len(s.tokens) for s in streams)
    assert swarm.run_until(lambda: all(len(s.tokens) >= 40 for s in streams), 30.0)
    n_tokens = sum(len(s.tokens) for s in streams) - n_begun
    return (swarm.now - begun) * 1e6 * len(streams) / n_tokens


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_takes_what_its_closed_form_says(schedule: Schedule) -> None:
    """Three micro-batches on two devices of 3 ms each, by real cores."""
    swarm = swarm_of_two_stages({"batch": 6, "micro_batch": 2, "schedule": schedule})
    alone_us = us_per_token(swarm, [stream := swarm.submit("a", PROMPT, LONG)])
    answer(swarm, stream)
    streams = [swarm.submit("a", PROMPT, LONG) for _ in range(6)]
    expected_us = iteration_us(schedule, round(alone_us), 3000, 3)
    assert us_per_token(swarm, streams) == pytest.approx(expected_us, rel=0.1)
    for stream in streams:
        assert answer(swarm, stream) == stream.oracle.tokens(LONG)


def longest_pause(swarm: Simulator, stream: SimRequest, is_over: Callable[[], bool]) -> float:
    """Seconds between two tokens of a stream until then."""
    n_tokens, since, longest_s = len(stream.tokens), swarm.now, 0.0
    while not is_over():
        swarm.run(swarm.now + 0.0002)
        if len(stream.tokens) > n_tokens:
            longest_s = max(longest_s, swarm.now - since)
            n_tokens, since = len(stream.tokens), swarm.now
    assert stream.finished is None
    return longest_s


def test_prompts_hold_up_a_running_stream_by_one_chunk_at_each_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A chunk takes as long as a row here."""
    monkeypatch.setattr(entry, "CHUNK_ROWS", 8)
    swarm = swarm_of("abc")
    settle(swarm)
    stream = submit_and_watch(swarm, "a")
    alone_s = longest_pause(swarm, stream, lambda: len(stream.tokens) >= 10)
    prompts = [swarm.submit(name, tuple(range(60)), 1) for name in "abc"]
    together_s = longest_pause(swarm, stream, lambda: all(request.finished for request in prompts))
    assert alone_s < together_s <= 2 * alone_s
    assert answer(swarm, stream) == stream.oracle.tokens(LONG)


def test_stop_token_ends_the_answer_before_it() -> None:
    swarm = swarm_of("abc")
    settle(swarm)
    fourth = swarm.submit("a", PROMPT, 1).oracle.tokens(4)[-1]
    request = swarm.submit("a", PROMPT, LONG, stop_ids=frozenset({fourth}))
    assert len(answer(swarm, request)) == 3
    assert request.finished is not None
    assert request.finished.finish_reason == "stop"


def test_peer_that_is_no_source_names_one() -> None:
    swarm = Simulator(7)
    swarm.add("a")
    swarm.add("b", is_source=False)
    swarm.start("a")
    swarm.start("b", join=("a",))
    settle(swarm)
    request = swarm.submit("b", PROMPT, 3)
    assert request.rejected == "b@1 is not a source; ask a at a:7911"


def test_swarm_goes_round_a_peer_whose_loading_hangs() -> None:
    swarm = Simulator(7)
    swarm.add("a", EVERYTHING, block_us=10_000)
    swarm.add("b", EVERYTHING, block_us=500)
    swarm.peers["b"].load_takes_s = 200.0
    swarm.start("a")
    swarm.start("b", join=("a",), wishes={})
    loads = core(swarm, "b").planning.rollout
    assert swarm.run_until(lambda: loads.target is not None and not loads.units(), 20.0)
    assert [stage.peer.name for stage in loads.plans[loads.target].plan.stages] == ["b"]
    swarm.run(swarm.now + 30.0)
    answer(swarm, swarm.submit("a", PROMPT, 8))
    assert stage_peers(swarm) == []
    b = core(swarm, "b").me
    said = FailuresRecord((Failure("cannot_load", b, None, "loading took too long"),))
    assert core(swarm, "a").gossip.of(b, FailuresRecord) == said


def test_pinned_plan_is_served_until_a_peer_of_it_is_lost() -> None:
    swarm = swarm_of("abcd")
    settle(swarm)
    swarm.set("a", "pin", "a:0-2,d:2-3,c:3-5,b:5-6")
    settle(swarm)
    assert stage_peers(swarm) == ["d", "c", "b"]
    request = submit_and_watch(swarm, "a")
    swarm.crash("c")
    answer(swarm, request)
    settle(swarm)
    assert "c" not in stage_peers(swarm)
    swarm.restart("c")
    settle(swarm)
    assert stage_peers(swarm) == ["d", "c", "b"]
    swarm.set("b", "pin", "")
    settle(swarm)
    swarm.set("b", "pin", "d:0-2,b:2-4,c:4-6")
    settle(swarm)
    assert stage_peers(swarm, "b") == ["b", "c"]
    answer(swarm, swarm.submit("d", PROMPT, 8))


# --- losses -------------------------------------------------------------------------------------


def lose(swarm: Simulator, how: str, name: str) -> None:
    {"crash": swarm.crash, "leave": swarm.leave, "freeze": swarm.freeze}[how](name)


@pytest.mark.parametrize("how", ["crash", "leave", "freeze"])
def test_request_outlives_a_stage(how: str) -> None:
    """Every token is checked against an undisturbed run when it comes."""
    swarm = swarm_of("abcd")
    settle(swarm)
    request = submit_and_watch(swarm, "a")
    lose(swarm, how, only_stage(swarm, "a"))
    assert len(answer(swarm, request)) == LONG
    assert request.finished is not None
    stats = request.finished.stats
    assert stats.failovers >= 1
    assert stats.replayed_tokens >= len(PROMPT) + 2
    assert stats.recovery_ms > 0


def test_request_outlives_two_losses_and_a_return() -> None:
    swarm = swarm_of("abcde")
    settle(swarm)
    request = submit_and_watch(swarm, "a")
    lost = only_stage(swarm, "a")
    swarm.crash(lost)
    assert swarm.run_until(lambda: len(request.tokens) >= 20, 60.0)
    swarm.restart(lost)
    swarm.crash(next(name for name in "bcde" if name != lost))
    assert len(answer(swarm, request)) == LONG


def test_departure_is_known_at_once_a_crash_within_a_second() -> None:
    swarm = swarm_of("abc", EVERYTHING)
    settle(swarm)
    swarm.leave("b")
    swarm.run(swarm.now + 0.1)
    assert belief(swarm, "a", "b") is MemberState.LEFT
    swarm.crash("c")
    swarm.run(swarm.now + 0.1)
    assert belief(swarm, "a", "c") is MemberState.SUSPECT
    assert swarm.run_until(lambda: belief(swarm, "a", "c") is MemberState.DEAD, 1.0)


def test_crash_that_ends_no_connection_is_found_by_probing() -> None:
    swarm = swarm_of("abc", EVERYTHING)
    settle(swarm)
    swarm.network.partition("c", "ab")
    swarm.crash("c")
    swarm.run(swarm.now + 0.1)
    assert belief(swarm, "a", "c") is MemberState.ALIVE
    assert swarm.run_until(lambda: belief(swarm, "a", "c") is MemberState.DEAD, 10.0)


def test_slow_link_is_measured_as_one() -> None:
    swarm = Simulator(7)
    for name in "ab":
        swarm.add(name, EVERYTHING)
    swarm.network.slow_down("a", "b", Pace(delay_s=0.1, bytes_per_s=2e5))
    swarm.start("a")
    swarm.start("b", join=("a",))
    settle(swarm)
    (there,), (back,) = (core(swarm, name).links.figures() for name in "ab")
    # Half of a round trip, of which one way is slow; the payload goes that way from a only.
    assert 50_000 <= there.delay_us < 53_000
    assert 50_000 <= back.delay_us < 53_000
    assert there.bytes_per_s < 2.1e5 < back.bytes_per_s
    swarm.network.calm()
    assert swarm.network.slow == {}


def test_firewall_that_rejects_one_peer_makes_nobody_suspect() -> None:
    swarm = swarm_of("abc", EVERYTHING)
    settle(swarm)
    swarm.reject("a", "b")
    swarm.run(swarm.now + 30.0)
    assert not [line for line in swarm.log if "SUSPECT" in line]
    assert core(swarm, "a").membership.silent() == ("b",)


def test_frozen_stage_is_found_in_time_in_a_crowd() -> None:
    """Those who serve together look after each other: in a large swarm the probing of everybody
    in turn would take longer."""
    names = "abcdefghijkl"
    for pause_s in (0.0, 0.3):
        swarm = swarm_of(names[:3])
        settle(swarm)
        for name in names[3:]:
            swarm.add(name, 1_000, is_source=False)
            swarm.start(name, join=("a",))
        settle(swarm)
        swarm.run(swarm.now + pause_s)
        lost = only_stage(swarm, "a")
        swarm.freeze(lost)
        swarm.run(swarm.now + 4.0)
        assert {belief(swarm, name, lost) for name in "abc" if name != lost} == {MemberState.DEAD}


def test_plan_goes_round_a_device_that_has_become_slow_and_comes_back_to_it() -> None:
    swarm = Simulator(7)
    swarm.add("a", HALF, block_us=20_000)
    for name, block_us in (("b", 10_000), ("c", 13_000)):
        swarm.add(name, EVERYTHING, is_source=False, block_us=block_us)
    for name in "abc":
        swarm.start(name, join=("a",) if name != "a" else ())
    settle(swarm)
    assert stage_peers(swarm) == ["b"]
    request = swarm.submit("a", PROMPT, 200)
    assert swarm.run_until(lambda: len(request.tokens) >= 3, 30.0)
    swarm.peers["b"].block_us *= 3
    assert swarm.run_until(lambda: serves_with(swarm, "c"), 20.0)
    assert len(answer(swarm, request)) == 200
    swarm.peers["b"].block_us //= 3
    assert swarm.run_until(lambda: serves_with(swarm, "b"), 90.0)


def test_frozen_peer_is_found_and_refutes_its_death() -> None:
    swarm = swarm_of("abc", EVERYTHING)
    settle(swarm)
    swarm.freeze("b")
    assert swarm.run_until(lambda: belief(swarm, "a", "b") is MemberState.SUSPECT, 10.0)
    assert swarm.run_until(lambda: belief(swarm, "a", "b") is MemberState.DEAD, 10.0)
    swarm.run(swarm.now + 5.0)
    assert core(swarm, "b").membership.incarnation == 0
    swarm.thaw("b")
    settle(swarm)
    assert belief(swarm, "a", "b") is MemberState.ALIVE
    assert core(swarm, "b").membership.incarnation >= 1
    assert core(swarm, "b").me == PeerId("b", 1)


def test_peer_that_is_frozen_for_a_moment_stays() -> None:
    swarm = swarm_of("abc", EVERYTHING)
    settle(swarm)
    swarm.freeze("b")
    assert swarm.run_until(lambda: belief(swarm, "a", "b") is MemberState.SUSPECT, 10.0)
    swarm.thaw("b")
    swarm.run(swarm.now + 10.0)
    assert not [line for line in swarm.log if "DEAD" in line]
    assert belief(swarm, "a", "b") is MemberState.ALIVE


def test_returning_peer_replaces_its_old_self() -> None:
    swarm = swarm_of("abc", EVERYTHING)
    settle(swarm)
    swarm.restart("b")
    settle(swarm)
    assert core(swarm, "a").membership.members["b"].peer == PeerId("b", 2)
    answer(swarm, swarm.submit("b", PROMPT, 3))


def test_peer_that_lost_its_disk_takes_a_later_life() -> None:
    swarm = swarm_of("abc", EVERYTHING)
    swarm.restart("b")
    settle(swarm)
    swarm.crash("b")
    swarm.peers["b"].lose_disk(swarm.rng)
    swarm.start("b", join=("a",))
    settle(swarm)
    assert core(swarm, "b").me.generation >= 3
    assert core(swarm, "a").membership.members["b"].peer == core(swarm, "b").me


# --- the network --------------------------------------------------------------------------------


def test_halves_that_can_hold_the_model_each_serve_and_meet_again() -> None:
    swarm = swarm_of("abcd", EVERYTHING)
    before = settle(swarm)
    swarm.network.partition("ab", "cd")
    assert swarm.run_until(lambda: len(core(swarm, "a").membership.present()) == 1, 20.0)
    for name in "abcd":
        answer(swarm, swarm.submit(name, PROMPT, 3))
    in_halves = {core(swarm, name).planning.rollout.active for name in "abcd"}
    assert len(in_halves) == 2
    assert before not in in_halves
    swarm.network.repair()
    assert settle(swarm) is not None
    assert all(len(core(swarm, name).membership.present()) == 3 for name in "abcd")
    answer(swarm, swarm.submit("d", PROMPT, 3))


def test_two_that_hold_each_other_dead_meet_without_a_storm() -> None:
    swarm = swarm_of("ab", EVERYTHING)
    settle(swarm)
    swarm.network.partition("a", "b")
    swarm.run(swarm.now + 15.0)
    assert belief(swarm, "a", "b") is belief(swarm, "b", "a") is MemberState.DEAD
    swarm.network.repair()
    n_before = swarm.n_events
    assert swarm.run_until(
        lambda: belief(swarm, "a", "b") is belief(swarm, "b", "a") is MemberState.ALIVE, 11.0
    )
    assert swarm.n_events - n_before < 60


def test_half_that_cannot_hold_the_model_says_what_is_missing() -> None:
    swarm = swarm_of("abc", 45_000)
    settle(swarm)
    swarm.network.partition("ab", "c")
    assert swarm.run_until(lambda: core(swarm, "c").planning.is_hopeless(), 20.0)
    refused = swarm.submit("c", PROMPT, 3).rejected
    assert refused is not None
    assert refused.startswith("the swarm cannot serve: the model needs ")
    swarm.network.repair()
    assert settle(swarm) is not None
    answer(swarm, swarm.submit("c", PROMPT, 3))


def test_request_waits_out_a_partition() -> None:
    """Its source is cut off while it runs; it goes on when the swarm is whole again."""
    swarm = swarm_of("abc")
    settle(swarm)
    request = submit_and_watch(swarm, "a")
    swarm.network.partition("a", "bc")
    swarm.run(swarm.now + 2.0)
    swarm.network.repair()
    assert len(answer(swarm, request)) == LONG


@pytest.mark.parametrize("is_long", [False, True], ids=["for a moment", "for long"])
def test_request_ends_where_no_plan_is_possible_for_a_while(is_long: bool) -> None:
    swarm = swarm_of("abc", 45_000)
    settle(swarm)
    request = submit_and_watch(swarm, "a")
    swarm.network.partition("a", "bc")
    assert swarm.run_until(lambda: core(swarm, "a").planning.is_hopeless(), 20.0)
    swarm.run(swarm.now + core(swarm, "a").config.timing.hopeless_s * (1.5 if is_long else 0.1))
    swarm.network.repair()
    if not is_long:
        assert len(answer(swarm, request)) == LONG
        return
    assert request.finished is not None
    assert request.finished.error.startswith("the swarm cannot serve: the model needs ")


def test_peer_that_is_heard_by_others_only_is_named() -> None:
    swarm = swarm_of("abc", EVERYTHING)
    settle(swarm)
    swarm.network.partition("a", "b")
    silent = core(swarm, "a").membership.silent
    assert swarm.run_until(lambda: silent() == ("b",), 30.0)
    assert belief(swarm, "a", "b") is MemberState.ALIVE


# --- who does not come in -----------------------------------------------------------------------


def test_second_device_of_a_name_is_refused_by_name() -> None:
    swarm = swarm_of("ab", EVERYTHING)
    settle(swarm)
    swarm.add("b", EVERYTHING, host="other")
    swarm.start("other", join=("a",))
    swarm.run(swarm.now + 2.0)
    stopped = swarm.peers["other"].stopped
    assert stopped is not None
    assert stopped.exit_code == 2
    assert "the name b belongs to the peer at b:7911" in stopped.text
    assert core(swarm, "a").membership.members["b"].address.host == "b"


def test_peer_that_was_given_another_model_is_refused_by_both_names() -> None:
    swarm = swarm_of("ab", EVERYTHING)
    settle(swarm)
    other = small_model(4, "other")
    swarm.add("c", EVERYTHING, models=(other,))
    swarm.start("c", join=("a",))
    swarm.run(swarm.now + 5.0)
    stopped = swarm.peers["c"].stopped
    assert stopped is not None
    assert stopped.exit_code == 2
    assert "hash-chain" in stopped.text
    assert "other" in stopped.text


def test_peer_without_the_files_is_a_member_that_is_not_planned() -> None:
    swarm = swarm_of("ab", EVERYTHING)
    swarm.add("c", EVERYTHING, models=())
    swarm.start("c", join=("a",))
    assert settle(swarm) is not None
    plan = core(swarm, "c").planning.rollout.active_plan()
    assert plan is not None
    assert PeerId("c", 1) not in plan.peers()
    view = core(swarm, "a").planning.replan.view
    assert view is not None
    assert "is not here" in view.excluded["c"]
    assert swarm.submit("c", PROMPT, 3).rejected is not None


# --- memory -------------------------------------------------------------------------------------


def test_too_little_memory_says_how_much_is_missing() -> None:
    """Two sources with room for their first layers only; the rest, with KV for one request of
    three blocks, takes 40,576 bytes; a sixteenth of what a peer has is for logs."""
    swarm = swarm_of("ab", 20_000)
    assert settle(swarm) is None
    first = swarm.submit("a", PROMPT, 3)
    assert first.rejected is not None
    assert "needs 34.6 KiB more memory than the 2 devices offer" in first.rejected
    swarm.add("c", 43_282, is_source=False)
    swarm.start("c", join=("a",))
    assert settle(swarm) is not None
    answer(swarm, swarm.submit("a", PROMPT, 3))


def test_plan_that_does_not_fit_beside_the_old_one_waits_for_it_to_drain() -> None:
    swarm = Simulator(7)
    for name in "ab":
        swarm.add(name, 110_000, block_us=10_000)
        swarm.start(name, join=("a",) if name == "b" else ())
    before = settle(swarm)
    running = submit_and_watch(swarm, "a")
    swarm.set("a", "first_layer", "embedding")
    proposed = swarm.run_until(lambda: core(swarm, "a").planning.rollout.target != before, 5.0)
    assert proposed
    swarm.run(swarm.now + 0.1)
    assert running.finished is None
    late = swarm.submit("b", PROMPT, 3)
    assert len(answer(swarm, running)) == LONG
    assert late.tokens == []
    answer(swarm, late)
    after = settle(swarm)
    assert running.finished is not None
    assert late.finished is not None
    assert (running.finished.stats.plan_id, running.finished.stats.failovers) == (before, 0)
    assert late.finished.stats.plan_id == after != before
    assert any("ACTIVE -> RETIRED: drained" in line for line in swarm.log)


# --- one seed, one story ------------------------------------------------------------------------


def _record_of_a_busy_run() -> list[str]:
    swarm = swarm_of("abcd", seed=11)
    swarm.record = []
    settle(swarm)
    swarm.network.loss = 0.05
    submit_and_watch(swarm, "a")
    swarm.crash(only_stage(swarm, "a"))
    swarm.run(swarm.now + 10.0)
    return swarm.record


def test_same_seed_gives_the_same_events() -> None:
    first = _record_of_a_busy_run()
    assert len(first) > 1_000
    assert first == _record_of_a_busy_run()


def test_a_loss_among_four_requests_of_two_sources_with_others_waiting() -> None:
    """Four run and two wait; the next plan holds two, so two are parked until there is room."""
    swarm = Simulator(7)
    swarm.network.jitter_s = 0.0  # A frame that is overtaken comes half a second later.
    for name in "ab":
        swarm.add(name, 70_000)
    swarm.add("c", EVERYTHING, is_source=False, block_us=500)
    for name in "abc":
        swarm.start(name, join=("a",) if name != "a" else ())
    settle(swarm)
    assert stage_peers(swarm) == ["c"]
    requests = [swarm.submit(source, PROMPT, LONG) for source in "ababab"]
    assert swarm.run_until(lambda: len([r for r in requests if len(r.tokens) >= 3]) == 4, 30.0)
    assert {r.at for r in requests if r.tokens} == {"a", "b"}
    assert [r.tokens for r in requests].count([]) == 2
    swarm.crash("c")
    parked = set()

    def is_over() -> bool:
        for source in "ab":
            for request in core(swarm, source).serving.source.requests.values():
                if request.phase is Phase.ASKING and request.generated:
                    parked.add(request.id)
        return all(request.finished is not None for request in requests)

    assert swarm.run_until(is_over, 60.0)
    plan = core(swarm, "a").planning.rollout.active_plan()
    assert plan is not None
    assert plan.workload.batch == 2
    assert len(parked) >= 2
    for request in requests:
        assert answer(swarm, request) == request.oracle.tokens(LONG)
