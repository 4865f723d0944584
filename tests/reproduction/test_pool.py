"""The paper's pool, scaled: ratios are kept, and what its devices hold and do not hold."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.layout import Layout, missing_bytes
from edgeshard_p2p.core.plan import Device, Snapshot, Stage, UnitRange, Workload, snapshot
from edgeshard_p2p.core.records import UnitTimes
from edgeshard_p2p.reproduction import pool
from tests.core.parts import MODEL
from tests.reproduction.paper import SMALL, WORKLOAD, swarm


def test_devices_stand_to_each_other_as_in_the_paper() -> None:
    speeds = {name: pool.cores_of(kind, 0.9) for name, kind in pool.DEVICES.items()}
    assert speeds["rtx3090"] == 0.9
    assert speeds["rtx3090"] / speeds["agx-1"] == pytest.approx(140.34 / 26.07)
    assert speeds["agx-1"] / speeds["nx"] == pytest.approx(198.55 / 173.97)
    assert sum(speeds.values()) < 1.6


def test_shares_are_set_by_what_was_measured() -> None:
    """A device of a sixth of a core that takes half as long again as it should."""
    rtx_us = 80_000
    wanted_us = rtx_us * 140.34 / 26.07
    cores = pool.calibrated(rtx_us, round(1.5 * wanted_us), 0.16, available=2.0)
    assert cores == {"AGX Orin": 0.24, "Orin NX": 0.21}
    less = pool.calibrated(rtx_us, round(1.5 * wanted_us), 0.16, available=0.5)
    assert 2 * less["AGX Orin"] + less["Orin NX"] == pytest.approx(0.5, abs=0.003)
    assert less["AGX Orin"] / less["Orin NX"] == pytest.approx(198.55 / 173.97, rel=0.02)


def test_times_follow_from_the_share() -> None:
    fast = (UnitTimes(1, 60, 2_400, 14_000), UnitTimes(8, 70, 3_900, 18_000))
    slow = pool.slowed(fast, 140.34 / 26.07)
    assert [times.rows for times in slow] == [1, 8]
    assert slow[0] == UnitTimes(1, 323, 12_920, 75_365)


def test_a_hop_takes_as_large_a_part_of_a_token_as_in_the_paper() -> None:
    scale = pool.scale_of(agx_us=351_000)
    assert scale == pytest.approx(351 / 140.34)
    row = SMALL.hidden_bytes("fp32")
    for mbps in pool.RATES_MBPS:
        paper_ms = 16_384 * 8 / mbps / 1e3
        ms = row / pool.bytes_per_s(mbps, row, scale) * 1e3
        assert ms / 351 == pytest.approx(paper_ms / 140.34, rel=1e-3)


def test_only_source_and_cloud_are_far_apart() -> None:
    links = pool.links("nx", 1.0, 2304, 2.5)
    assert len(links) == 12
    slow = {pair for pair, link in links.items() if link.bytes_per_s < 10_000}
    assert slow == {("nx", "rtx3090"), ("rtx3090", "nx")}
    assert {link.delay_us for link in links.values()} == {5250}
    assert {link.per_message_us for link in links.values()} == {0}


@pytest.mark.parametrize(
    ("name", "units", "fits"),
    [
        ("agx-1", UnitRange(0, 32), True),
        ("rtx3090", UnitRange(5, 32), True),
        ("rtx3090", UnitRange(4, 32), False),
        ("nx", UnitRange(15, 32), True),
        ("nx", UnitRange(14, 32), False),
        ("nx", UnitRange(0, 17), True),
        ("nx", UnitRange(0, 32), False),
    ],
)
def test_devices_hold_as_large_a_part_as_in_the_paper(
    name: str, units: UnitRange, fits: bool
) -> None:
    """28 of 32 blocks and the head on the 3090, 17 on the NX."""
    seen = swarm()
    peers = {device.peer.name: device.peer for device in seen.devices}
    source, entry, shared = peers[name], units.end, tuple[Stage, ...]()
    if units.start:
        source, entry, shared = peers["agx-1"], units.start, (Stage(peers[name], units),)
    layout = Layout((source,), entry, shared, SMALL.n_units)
    assert (name not in missing_bytes(seen, layout, WORKLOAD.batch)) is fits


def test_what_holds_every_block_holds_the_whole_of_any_model() -> None:
    workload = Workload("fp32", "exact", 0, context=64, batch=3)
    budget = pool.memory_bytes(pool.AGX, MODEL, workload)
    device = Device(PeerId("a", 1), True, budget, (1,) * MODEL.n_units)
    alone = snapshot(MODEL, workload, [device], [])
    layout = Layout((device.peer,), MODEL.n_units, (), MODEL.n_units)
    assert missing_bytes(alone, layout, 3) == {}


def test_who_is_held_to_be_slow_is_named() -> None:
    seen = swarm()
    measured = pool.whole_us(seen)
    assert measured["rtx3090"] == pytest.approx(26.07e3 * 2.5, rel=0.001)
    assert pool.slower(seen, measured) == ""
    measured["nx"] //= 3
    assert pool.slower(seen, measured) == "nx counts as 3.0 times as slow"


def test_swarm_has_settled_when_it_knows_every_link() -> None:
    wanted = pool.links("agx-1", 1.0, 2304, 2.5)
    seen = swarm()
    known: Snapshot = replace(seen, links=tuple(wanted.values()))
    assert pool.unsettled(known, wanted, 0.25) == []
    quicker = pool.links("agx-1", 5.0, 2304, 2.5)
    assert pool.unsettled(known, quicker, 0.25) == ["agx-1 -> rtx3090", "rtx3090 -> agx-1"]
    slow = [replace(link, delay_us=4 * link.delay_us) for link in known.links[:1]]
    assert pool.unsettled(replace(seen, links=(*slow, *known.links[1:])), wanted, 0.25) == [
        "agx-1 -> agx-2"
    ]
    fewer: Snapshot = replace(seen, links=known.links[1:])
    assert pool.unsettled(fewer, wanted, 0.25) == ["agx-1 -> agx-2"]
