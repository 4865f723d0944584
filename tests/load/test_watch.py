"""What peers say of themselves before and after, and what was to be expected of them."""

from __future__ import annotations

from typing import Any

import pytest

from edgeshard_p2p.core.plan import Device, Link, Snapshot, snapshot
from edgeshard_p2p.load.watch import Expected, bubbles, expected, served_plan
from tests.core.parts import MODEL, PLAN, SOLO, WORKLOAD, A, B, C


def told(*parts: tuple[int, str, int, int]) -> dict[str, Any]:
    keys = ("stage", "peer", "start", "end")
    return {"plan": {"stages": [dict(zip(keys, part, strict=True)) for part in parts]}}


SERVED = told((0, "a", 0, 2), (1, "b", 2, 4), (2, "c", 4, 6))


def swarm() -> Snapshot:
    devices = [Device(peer, True, 10**9, (1000,) * MODEL.n_units) for peer in (A, B, C)]
    links = [Link(a, b, 0, 0, 10**12) for a in "abc" for b in "abc" if a != b]
    return snapshot(MODEL, WORKLOAD, devices, links)


def test_the_plan_of_a_report() -> None:
    assert served_plan(SERVED, swarm()) == PLAN
    assert served_plan(told((0, "a", 0, 6)), swarm()) == SOLO
    assert served_plan(told((0, "x", 0, 6)), swarm()) is None
    assert served_plan(told(), swarm()) is None


def test_promise_is_the_cost_models() -> None:
    # Each pass of a row takes 2 ms on each of three devices; links cost a microsecond.
    assert expected(PLAN, swarm(), 3, "no-bubbles") == Expected(
        3, 1, pytest.approx(6.0, abs=0.01), 499.75
    )
    assert expected(SOLO, swarm(), 3, "no-bubbles") == Expected(3, 3, 18.0, 166.667)
    # In rounds a pass takes 6 ms, and the others of its round 2 ms more each.
    assert expected(PLAN, swarm(), 3, "bubbles") == Expected(
        3, 1, pytest.approx(10.0, abs=0.01), pytest.approx(300.0, abs=0.5)
    )
    assert expected(PLAN, snapshot(MODEL, WORKLOAD, [], []), 3, "no-bubbles") is None


def test_idle_time_of_who_was_there_all_the_time() -> None:
    def report(busy_us: int, generation: int = 1) -> dict[str, Any]:
        return {"compute": {"busy_us": busy_us}, "self": {"generation": generation}}

    before = {"a": report(0), "b": report(5_000_000), "c": report(0), "d": report(0)}
    after = {"a": report(2_500_000), "b": report(15_100_000), "c": report(9, generation=2)}
    assert bubbles(before, after, 10.0) == {"a": 0.75, "b": 0.0}
    assert bubbles(before, after, 0.0) == {}
