"""The simulated pipeline against what was computed by hand, and against the closed forms."""

from __future__ import annotations

import sys
from itertools import pairwise, permutations
from pathlib import Path
from random import Random

import pytest

from edgeshard_p2p.cli.plot import PlotError, check_plot, plot
from edgeshard_p2p.cli.simulate import in_json, in_words, simulated
from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.layout import Layout, Leg, decode_legs, predict, prefill_legs
from edgeshard_p2p.core.plan import Device, Link, Snapshot, Stage, snapshot
from edgeshard_p2p.core.scenario import Scenario
from edgeshard_p2p.core.schedule import Order, Schedule, bubble_shares, iteration_of
from edgeshard_p2p.sim.gantt import full_from, gantt
from edgeshard_p2p.sim.pipeline import Group, Report, Span, Spread, groups_of, simulate
from tests.core.parts import MODEL, WORKLOAD, A, B, C

SCHEDULES: tuple[Schedule, ...] = ("bubbles", "no-bubbles")
Legs = tuple[Leg, ...]

DECODE: Legs = (Leg("a", 10), Leg("a->b", 2, 3), Leg("b", 20), Leg("b->a", 1, 4))
"""Alone 40, of which b takes 20."""
PREFILL: Legs = (Leg("a", 30), Leg("a->b", 6, 4), Leg("b", 60))
QUICK: Legs = (Leg("a", 1),)


def _run(
    decode: Legs,
    n: int,
    generate: int,
    schedule: Schedule = "no-bubbles",
    prefill: Legs = QUICK,
    order: Order = "fifo",
) -> Report:
    groups = [Group(1, prefill, decode)] * n
    return simulate(groups, batch=n, generate=generate, schedule=schedule, order=order)


def _random_legs(rng: Random) -> Legs:
    n_stages = rng.randint(1, 9)
    largest = rng.choice((10, 1_000, 50_000))
    return tuple(
        Leg(
            f"r{at}",
            rng.randint(1, largest),
            rng.choice((0, 0, rng.randint(0, largest))),
            beside_us=rng.choice((0, rng.randint(0, largest))),
        )
        for at in range(n_stages)
    )


# By hand.


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_request_alone(schedule: Schedule) -> None:
    report = _run(DECODE, 1, 3, schedule, PREFILL)
    assert (report.ttft_us, report.finish_us, report.total_us) == ((100,), (180,), 180)
    assert report.token_us == Spread(40, 40, 40)
    assert report.tokens_per_s == pytest.approx(3e6 / 180)
    b = report.uses[2]
    assert (b.resource, b.busy_us, b.bubble_share) == ("b", 100, 0.5)
    assert b.busy_share == pytest.approx(100 / 180)
    assert report.trace[:4] == (
        Span("a", 0, 30, 0, "prefill", 0),
        Span("a->b", 30, 36, 0, "prefill", 0),
        Span("b", 40, 100, 0, "prefill", 0),
        Span("a", 100, 110, 0, "decode", 1),
    )


def test_two_with_bubbles() -> None:
    """Prefills are back at 100 and 160; both start at 160, and are back after 40 and 60."""
    report = _run(DECODE, 2, 3, "bubbles", PREFILL)
    assert report.ttft_us == (100, 160)
    assert report.finish_us == (260, 280)
    starts = [(s.start_us, s.micro_batch) for s in report.trace if s.resource == "a"]
    assert starts == [(0, 0), (30, 1), (160, 0), (170, 1), (220, 0), (230, 1)]


def test_two_without_bubbles() -> None:
    """The first decodes at 100 already, and gets behind the other's prompt at b."""
    report = _run(DECODE, 2, 3, "no-bubbles", PREFILL)
    assert report.ttft_us == (100, 160)
    at_b = [(s.start_us, s.micro_batch, s.token) for s in report.trace if s.resource == "b"]
    assert at_b == [(40, 0, 0), (100, 1, 0), (160, 0, 1), (180, 1, 1), (200, 0, 2), (220, 1, 2)]
    assert report.finish_us == (225, 245)


def test_prompts_of_a_micro_batch_pass_one_by_one_and_decode_together() -> None:
    report = simulate([Group(3, (Leg("a", 10),), (Leg("a", 4, 1),))], batch=3, generate=2)
    assert report.ttft_us == (10, 20, 30)
    assert report.finish_us == (35, 35, 35)
    assert report.token_us == Spread(15, 15, 25)
    assert report.n_micro_batches == 1


def test_first_tokens_alone_have_nothing_between_them() -> None:
    report = simulate([Group(2, (Leg("a", 10),), (Leg("a", 4),))], batch=2, generate=1)
    assert report.ttft_us == report.finish_us == (10, 20)
    assert (report.token_us, report.iteration_us, report.total_us) == (Spread(), None, 20)
    assert report.uses[0].bubble_share is None


@pytest.mark.parametrize("n", range(1, 13))
def test_closed_forms_are_exact_by_hand(n: int) -> None:
    assert _run(DECODE, n, 60, "bubbles").iteration_us == 40 + (n - 1) * 20
    assert _run(DECODE, n, 60, "no-bubbles").iteration_us == max(40, n * 20)


# The closed forms, on whatever comes.


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steady_state_is_the_closed_form(schedule: Schedule, campaign: bool) -> None:
    rng = Random(2405)
    for _ in range(600 if campaign else 50):
        legs, n = _random_legs(rng), rng.randint(1, 12)
        report = _run(legs, n, 120, schedule, prefill=(Leg("r0", rng.randint(1, 20_000)),))
        assert report.iteration_us == pytest.approx(iteration_of(schedule, legs, n), rel=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bubbles_of_each_stage_are_those_of_the_closed_form(schedule: Schedule) -> None:
    rng = Random(14371)
    for _ in range(10):
        legs, n = _random_legs(rng), rng.randint(1, 12)
        report = _run(legs, n, 300, schedule, prefill=legs)
        shares = bubble_shares(schedule, legs, n)
        for use in report.uses:
            expected = float(shares[use.resource])
            assert use.bubble_share == pytest.approx(expected, abs=0.03)


def test_fewer_bubbles_where_nobody_waits_for_the_others() -> None:
    legs = tuple(Leg(f"r{at}", 10) for at in range(4))
    with_bubbles, without = (_run(legs, 4, 100, schedule) for schedule in SCHEDULES)
    assert without.tokens_per_s > 1.7 * with_bubbles.tokens_per_s


@pytest.mark.parametrize("shared", [("a", "b", "a"), ("a", "b", "c", "b"), ("a", "a")])
def test_passing_a_device_twice_is_never_quicker_than_its_load(shared: tuple[str, ...]) -> None:
    legs = tuple(Leg(name, 10 + at) for at, name in enumerate(shared))
    report = _run(legs, 6, 200)
    assert report.iteration_us is not None
    assert report.iteration_us >= iteration_of("no-bubbles", legs, 6) * 0.999


@pytest.mark.parametrize("n", [5, 6, 7, 9])
def test_fifo_reaches_the_closed_form_and_lowest_id_first_does_not(n: int) -> None:
    """Four stages: the four of the lowest numbers keep the others out until they are through;
    then those are too few."""
    legs = tuple(Leg(f"r{at}", 10) for at in range(4))
    generate = 200
    ideal_us = generate * iteration_of("no-bubbles", legs, n)
    fifo = _run(legs, n, generate, prefill=legs)
    lowest = _run(legs, n, generate, prefill=legs, order="lowest-id")
    assert fifo.total_us == pytest.approx(ideal_us, rel=0.01)
    assert lowest.total_us > 1.1 * ideal_us


def test_fifo_never_loses_to_lowest_id_first(campaign: bool) -> None:
    rng = Random(1)
    for _ in range(600 if campaign else 30):
        legs, n = _random_legs(rng), rng.randint(1, 12)
        fifo = _run(legs, n, 60, prefill=legs)
        lowest = _run(legs, n, 60, prefill=legs, order="lowest-id")
        assert fifo.total_us <= lowest.total_us


# What must hold of every run.


def _random_groups(rng: Random) -> tuple[list[Group], int]:
    """Devices and links are shared as it comes; some legs take no time."""
    names = "abcd"[: rng.randint(1, 4)]

    def legs(largest: int) -> Legs:
        n = rng.randint(1, 6)
        return tuple(
            Leg(rng.choice(names), rng.randint(0, largest), rng.choice((0, 7))) for _ in range(n)
        )

    kinds = [Group(rng.randint(1, 4), legs(90), legs(20)) for _ in range(3)]
    return [rng.choice(kinds) for _ in range(rng.randint(1, 20))], rng.randint(4, 12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_request_is_served_in_its_order_within_the_promise(schedule: Schedule) -> None:
    rng = Random(7)
    for _ in range(100):
        groups, batch = _random_groups(rng)
        generate = rng.randint(1, 5)
        report = simulate(groups, batch=batch, generate=generate, schedule=schedule)
        assert report == simulate(groups, batch=batch, generate=generate, schedule=schedule)
        _check_one_at_a_time(report)
        _check_all_work_is_done(report, groups, generate)
        _check_slots(report, groups, batch)


def _check_one_at_a_time(report: Report) -> None:
    assert list(report.trace) == sorted(report.trace, key=lambda span: span.start_us)
    for use in report.uses:
        spans = [span for span in report.trace if span.resource == use.resource]
        assert all(a.end_us <= b.start_us for a, b in pairwise(spans))
        assert sum(span.end_us - span.start_us for span in spans) == use.busy_us


def _check_all_work_is_done(report: Report, groups: list[Group], generate: int) -> None:
    expected = sum(
        group.rows * sum(leg.busy_us for leg in group.prefill)
        + (generate - 1) * sum(leg.busy_us for leg in group.decode)
        for group in groups
    )
    assert sum(use.busy_us for use in report.uses) == expected
    assert len(report.ttft_us) == len(report.finish_us) == sum(group.rows for group in groups)
    assert all(a <= b for a, b in zip(report.ttft_us, report.finish_us, strict=True))
    assert max(report.finish_us) == report.total_us


def _check_slots(report: Report, groups: list[Group], batch: int) -> None:
    ends, at = [], 0
    for group in groups:
        ends.append(max(report.finish_us[at : at + group.rows]))
        at += group.rows
    begins: dict[int, int] = {}
    for span in report.trace:
        begins.setdefault(span.micro_batch, span.start_us)
    for now in begins.values():
        live = [n for n, begin in begins.items() if begin <= now < ends[n]]
        assert sum(groups[n].rows for n in live) <= batch


def test_requests_beyond_the_slots_wait_in_their_order() -> None:
    group = Group(2, (Leg("a", 10),), (Leg("a", 5, 5),))
    report = simulate([group] * 3, batch=3, generate=2)
    assert report.ttft_us == (10, 20, 40, 50, 70, 80)
    assert report.finish_us == (30, 30, 60, 60, 90, 90)
    assert report.n_micro_batches == 1


def test_with_bubbles_the_next_requests_join_the_next_iteration() -> None:
    """The short one frees its slot at 20, while the long one is out until 40."""
    short = Group(1, (Leg("a", 10),), (Leg("b", 10),))
    long_ = Group(1, (Leg("c", 10),), (Leg("d", 30),))
    report = simulate([short, long_, short], batch=2, generate=2, schedule="bubbles")
    assert report.finish_us == (20, 40, 60)
    assert report.ttft_us == (10, 10, 50)


@pytest.mark.parametrize(("groups", "batch", "generate"), [(1, 1, 5), (1, 2, 0), (0, 2, 5)])
def test_what_could_never_end_is_refused(groups: int, batch: int, generate: int) -> None:
    with pytest.raises(ValueError, match="slots"):
        simulate([Group(2, DECODE, DECODE)] * groups, batch=batch, generate=generate)


# From layouts.

PIPELINE = (Stage(B, UnitRange(2, 4)), Stage(C, UnitRange(4, 6)))


def _snapshot() -> Snapshot:
    devices = [
        Device(peer, peer != C, 10**6, tuple(us + unit for unit in range(6)))
        for peer, us in ((A, 300), (B, 400), (C, 700))
    ]
    links = [Link(a, b, 150, 20, 10**7) for a, b in permutations("abc", 2)]
    return snapshot(MODEL, WORKLOAD, devices, links)


def _sources(seed: int, n: int = 12) -> list[str]:
    layout = Layout((A, B), 2, (Stage(C, UnitRange(2, 6)),), 6)
    groups = groups_of(_snapshot(), layout, requests=n, prompt=9, batch=4, micro_batch=1, seed=seed)
    return [group.source for group in groups]


def test_groups_pass_the_legs_of_their_layout() -> None:
    known, layout = _snapshot(), Layout((A,), 2, PIPELINE, 6)
    groups = groups_of(known, layout, requests=11, prompt=9, batch=5, micro_batch=2)
    assert [group.rows for group in groups] == [2, 2, 1, 2, 2, 1, 1]
    assert {group.source for group in groups} == {"a"}
    assert groups[0].prefill == tuple(prefill_legs(known, layout, A, 9))
    assert groups[0].decode == tuple(decode_legs(known, layout, A, 2))
    assert groups[2].decode == tuple(decode_legs(known, layout, A, 1))


def test_sources_take_turns_in_an_order_from_the_seed() -> None:
    for seed in range(5):
        dealt = _sources(seed)
        assert dealt == _sources(seed)
        assert all(set(dealt[at : at + 2]) == {"a", "b"} for at in range(0, 12, 2))
    assert len({tuple(_sources(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("batch", "micro_batch"), [(1, 1), (2, 1), (8, 1), (8, 2), (12, 3)])
def test_simulation_of_a_layout_agrees_with_its_closed_form(
    schedule: Schedule, batch: int, micro_batch: int
) -> None:
    scenario, layout = Scenario(_snapshot(), ("a", "b", "c")), Layout((A,), 2, PIPELINE, 6)
    result = simulated(
        scenario,
        layout,
        batch,
        micro_batch,
        requests=batch,
        prompt=20,
        generate=96,
        schedule=schedule,
        seed=0,
    )
    assert result.difference_percent == pytest.approx(0, abs=1)
    predicted = predict(scenario.snapshot, layout, batch, micro_batch)
    assert result.report.n_micro_batches == predicted.n_micro_batches
    if schedule == "no-bubbles":
        assert result.closed_form_us == predicted.iteration_us


def test_the_closed_form_is_of_the_sources_that_are_in_flight() -> None:
    scenario, layout = Scenario(_snapshot(), ("a", "b", "c")), Layout((A, B), 2, PIPELINE, 6)
    alone = [
        simulated(
            scenario, layout, 1, 1,
            requests=2, prompt=20, generate=96, schedule="no-bubbles", seed=seed,
        )
        for seed in range(6)
    ]  # fmt: skip
    assert len({one.closed_form_us for one in alone}) == 2
    assert all(one.difference_percent == pytest.approx(0, abs=1) for one in alone)


# Pictures and words.


def test_gantt_of_two_with_bubbles() -> None:
    trace = _run(DECODE, 2, 3, "bubbles", PREFILL).trace
    assert gantt(trace, width=61).splitlines() == [
        "a    aaaaaabbbbbb....................AABB........AABB........",
        "a->b ......aa....bb....................A.B.........A.B.......",
        "b    ........aaaaaaaaaaaabbbbbbbbbbbb...AAAABBBB....AAAABBBB.",
        "b->a .......................................A...B.......A...B",
        "0.0 to 0.3 ms, a cell is 0.005 ms",
        "A, B, ...: micro-batches at a token; a, b, ...: at a prompt; . idle",
    ]


def test_gantt_from_the_first_decode_without_bubbles() -> None:
    """Letters of prompts among those of tokens, until the first micro-batch is three tokens on."""
    trace = _run(DECODE, 3, 9, "no-bubbles", PREFILL).trace
    assert gantt(trace, width=80, first=1).splitlines() == [
        "a    AAA............BBB............CCC...AAA..BBB..CCC..AAA..BBB..CCC..A",
        "a->b ..A..............B..............C.....AA...BB...CC...AA...BB...CC..",
        "b    bbbbbbbbbbbbbbbcccccccccccccccAAAAABBBBBCCCCCAAAAABBBBBCCCCCAAAAABB",
        "b->a ...................................A....B....C....A....B....C....A.",
        "0.1 to 0.4 ms, a cell is 0.004 ms",
        "A, B, ...: micro-batches at a token; a, b, ...: at a prompt; . idle",
    ]


def test_gantt_from_when_all_are_through_with_their_prompts() -> None:
    trace = _run(DECODE, 3, 9, "no-bubbles", PREFILL).trace
    assert full_from(trace, 3) == 2
    assert gantt(trace, width=65, first=2, iterations=2).splitlines() == [
        "a    AAAAA.....BBBBB.....CCCCC.....AAAAA.....BBBBB.....CCCCC.....",
        "a->b .....A.........B.........C.........A.........B.........C....",
        "b    BBBBBBBBCCCCCCCCCCAAAAAAAAAABBBBBBBBBBCCCCCCCCCCAAAAAAAAAABB",
        "b->a .......B.........C.........A.........B.........C.........A..",
        "0.2 to 0.4 ms, a cell is 0.002 ms",
        "A, B, ...: micro-batches at a token; a, b, ...: at a prompt; . idle",
    ]


def test_without_a_full_iteration_the_first_decode_is_shown() -> None:
    assert full_from(_run(DECODE, 3, 2, "no-bubbles", PREFILL).trace, 3) == 1
    assert full_from((), 3) == 1


def test_gantt_without_a_trace_is_empty() -> None:
    assert gantt(()) == ""
    assert gantt(_run(DECODE, 2, 1).trace, first=1) == ""


@pytest.mark.parametrize("width", [20, 61, 100, 140])
def test_gantt_keeps_to_its_width(width: int) -> None:
    chart = gantt(_run(DECODE, 40, 9).trace, width)
    lines = chart.splitlines()[:-2]
    assert len(lines) == 4
    assert all(len(line) <= width for line in lines)


def _two_in_turns() -> str:
    scenario, layout = Scenario(_snapshot(), ("a", "b", "c")), Layout((A,), 2, PIPELINE, 6)
    result = simulated(
        scenario,
        layout,
        2,
        1,
        requests=2,
        prompt=1,
        generate=40,
        schedule="bubbles",
        seed=0,
    )
    told = in_json(result, "picture")
    assert told["closed_form_ms"] == result.closed_form_us / 1e3
    assert told["gantt"] == "picture"
    assert [row["resource"] for row in told["resources"]] == ["a", "a->b", "b", "b->c", "c", "c->a"]
    return in_words(result)


def test_report_in_words() -> None:
    assert _two_in_turns().splitlines() == [
        "2 requests in 0.191 s, bubbles, 2 micro-batches of at most 1 in flight",
        "  first token  p50 3.37 ms",
        "  token        mean 4.78 ms, p50 4.78 ms, p99 4.78 ms",
        "  throughput   418.50 tokens/s",
        "  iteration    4.78 ms simulated, closed form 4.78 ms, +0.00 %",
        "resource     busy   bubbles (while decoding)",
        "a          25.2 %    74.8 %",
        "a->b        1.5 %    98.5 %",
        "b          33.7 %    66.3 %",
        "b->c        1.5 %    98.5 %",
        "c          59.0 %    41.0 %",
        "c->a        1.4 %    98.6 %",
    ]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_is_the_same_for_the_same_run(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        plot(_run(DECODE, 3, 5, prefill=PREFILL).trace, file, "three")
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert first.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_plot_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlotError, match=r"neither \.png nor \.svg"):
        check_plot(tmp_path / "a.pdf")
    trace = _run(DECODE, 1, 2).trace
    with pytest.raises(PlotError, match="cannot write"):
        plot(trace, tmp_path / "nowhere" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match=r"pip install 'edgeshard_p2p\[plot\]'"):
        check_plot(tmp_path / "a.png")
