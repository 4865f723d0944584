"""What peers plan with, as a scenario: its order, what could be added, and what is refused."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.baselines import NoCloud, plan_by
from edgeshard_p2p.core.explain import readings
from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.live import LiveError, live_scenario
from edgeshard_p2p.core.plan import Device, Link, RowTimes, Snapshot, snapshot
from edgeshard_p2p.core.planner import Answer, answer
from edgeshard_p2p.core.scenario import Scenario
from edgeshard_p2p.core.whatif import WhatIfError, changed
from tests.core.parts import MODEL, WORKLOAD, A, B, C, some

SLOW, QUICK = (10, 9_000, 9_000, 9_000, 9_000, 9_000), (10, 10, 10, 10, 10, 10)
ENTRY, PLENTY = 40_000, 10**6
"""Bytes: for the two units of a source and little more; for everything."""


def swarm(*devices: Device, links: tuple[Link, ...] = ()) -> Snapshot:
    return snapshot(MODEL, WORKLOAD, devices, links)


def both_ways(a: str, b: str, bytes_per_s: int, delay_us: int = 50) -> tuple[Link, Link]:
    return Link(a, b, delay_us, 10, bytes_per_s), Link(b, a, delay_us, 10, bytes_per_s)


THREE = swarm(
    Device(A, False, PLENTY, SLOW),
    Device(B, True, ENTRY, SLOW, held=(UnitRange(0, 2),)),
    Device(C, False, ENTRY, QUICK),
    links=(
        *both_ways("a", "b", 10**6),
        *both_ways("a", "c", 10**6),
        *both_ways("b", "c", 10**7, delay_us=20),
    ),
)
"""The only source is b; c is quick and has too little memory for all that is left."""


def links_of(scenario: Scenario) -> dict[tuple[str, str], Link]:
    return {(link.a, link.b): link for link in scenario.snapshot.links}


def latency_us(found: Answer) -> int:
    return some(found.prediction).latency_us


def test_sources_come_first_and_the_snapshot_is_as_it_was() -> None:
    scenario = live_scenario(THREE, {"d": "it is measuring itself"})
    assert scenario.order == ("b", "a", "c")
    assert scenario.snapshot is THREE
    assert scenario.excluded == {"d": "it is measuring itself"}
    assert (scenario.cloud, scenario.notes) == (None, ())


@pytest.mark.parametrize("algorithm", ["cloud-edge-even", "cloud-edge-opt"])
def test_there_is_no_cloud_in_it(algorithm: str) -> None:
    with pytest.raises(NoCloud, match="a running swarm names no cloud"):
        plan_by(algorithm, live_scenario(THREE, {}))


def test_another_one_like_a_peer_has_its_links_and_helps() -> None:
    scenario = live_scenario(THREE, {})
    after = changed(scenario, "add=c")
    twin = after.snapshot.devices[-1]
    assert (twin.peer, twin.budget_bytes, twin.unit_us) == (PeerId("c.new-1", 1), ENTRY, QUICK)
    links = links_of(after)
    assert links["b", "c.new-1"] == replace(links["b", "c"], b="c.new-1")
    assert links["c.new-1", "a"] == replace(links["c", "a"], a="c.new-1")
    # Between the two the quickest that c has: the one with b.
    assert links["c", "c.new-1"] == Link("c", "c.new-1", 20, 10, 10**7)
    assert links["c.new-1", "c"] == Link("c.new-1", "c", 20, 10, 10**7)
    assert latency_us(answer(after.snapshot)) < latency_us(answer(THREE))
    assert answer(changed(after, "drop=c.new-1").snapshot) == answer(THREE)


def test_a_twin_of_a_source_takes_no_prompts_and_holds_nothing() -> None:
    twin = changed(live_scenario(THREE, {}), "add=b").snapshot.devices[2]
    assert (twin.peer.name, twin.is_source, twin.held) == ("b.new-1", False, ())


def test_added_ones_are_linked_with_each_other() -> None:
    scenario = live_scenario(THREE, {})
    for kind in ("c", "c", "a"):
        scenario = changed(scenario, f"add={kind}")
    links = links_of(scenario)
    names = scenario.order
    assert names == ("b", "a", "c", "c.new-1", "c.new-2", "a.new-1")
    assert set(links) == {(a, b) for a in names for b in names if a != b}
    assert links["c.new-1", "c.new-2"].bytes_per_s == 10**7
    assert links["a.new-1", "c.new-2"].bytes_per_s == 10**6


def test_a_peer_whose_name_is_like_that_of_a_twin_keeps_its_own_links() -> None:
    namesake = PeerId("a.new-1", 1)
    seen = swarm(
        Device(A, True, PLENTY, SLOW),
        Device(namesake, False, PLENTY, QUICK),
        Device(B, False, PLENTY, QUICK),
        links=(*both_ways("a", "a.new-1", 10**3), *both_ways("a", "b", 10**6)),
    )
    after = changed(live_scenario(seen, {}), "add=a")
    links = links_of(after)
    assert after.order[-1] == "a.new-2"
    assert links["a.new-2", "a.new-1"].bytes_per_s == 10**3
    assert links["a.new-2", "a"].bytes_per_s == 10**6
    again = changed(live_scenario(seen, {}), "add=b")
    assert ("b.new-1", "a.new-1") not in links_of(again)


def test_what_is_added_to_a_peer_alone_has_no_link_and_that_is_said() -> None:
    after = changed(live_scenario(swarm(Device(A, True, PLENTY, SLOW)), {}), "add=a")
    assert after.snapshot.links == ()
    assert after.notes == ("no link of a.new-1 with another device is known",)


def test_what_an_explanation_says_of_another_one_is_what_adding_it_gives() -> None:
    scenario = live_scenario(THREE, {})
    read = readings(scenario, answer(THREE))
    assert [one.peer for one in read] == ["b", "a", "c"]
    for one in read:
        assert one.twice == answer(changed(scenario, f"add={one.peer}").snapshot)


def test_in_another_dtype_nothing_is_held() -> None:
    scenario = live_scenario(THREE, {})
    halved = changed(scenario, "dtype=bf16")
    assert all(device.held == () for device in halved.snapshot.devices)
    assert halved.snapshot.workload.dtype == "bf16"
    assert changed(scenario, "dtype=fp32").snapshot == THREE


def test_who_is_not_there_cannot_be_added() -> None:
    with pytest.raises(WhatIfError, match="no 'd' to add; there are a, b, c"):
        changed(live_scenario(THREE, {}), "add=d")


SHORT = (10, 200)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (replace(THREE, devices=(*THREE.devices, replace(THREE.devices[0], peer=PeerId("a", 2)))),
         "a peer stands twice in it"),
        (replace(THREE, links=(*THREE.links, replace(THREE.links[0], delay_us=1))),
         "a link stands twice in it"),
        (swarm(Device(A, True, PLENTY, SHORT)), "a@1 has not one time for each unit of tiny"),
        (swarm(Device(A, True, PLENTY, SLOW, decode=(RowTimes(2, SHORT),))), "a@1 has not one"),
        (swarm(Device(A, True, PLENTY, SLOW, prefill=(RowTimes(8, SHORT),))), "a@1 has not one"),
    ],
    ids=["peer", "link", "times", "decode", "prefill"],
)  # fmt: skip
def test_what_does_not_hold_together_is_refused(seen: Snapshot, why: str) -> None:
    with pytest.raises(LiveError, match=why):
        live_scenario(seen, {})
