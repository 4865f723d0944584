"""A pin: what may be one, that it is followed to the unit, and when it is not."""

from __future__ import annotations

from random import Random

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.pin import Pin, PinnedStage, parse_pin
from edgeshard_p2p.core.plan import Snapshot, snapshot
from edgeshard_p2p.core.planner import choose
from edgeshard_p2p.core.records import DeviceRecord, Setting, UnitTimes
from edgeshard_p2p.core.view import view
from tests.core.parts import MODEL, A, B, C, dead, membership, publish_as, suspect
from tests.core.test_planner import device, link, shape, swarm


def pinned(text: str, made: Snapshot) -> Snapshot:
    return replace(made, pin=parse_pin(text))


def three(mib: float = 100) -> Snapshot:
    return swarm([device("a", mib, is_source=True), device("b", mib, 150), device("c", mib, 200)])


def test_text() -> None:
    stages = (PinnedStage("b-1", UnitRange(2, 4)), PinnedStage("c.d", UnitRange(4, 6)))
    assert parse_pin("a:0-2,b-1:2-4,c.d:4-6") == Pin(("a",), 2, stages)
    assert parse_pin("b+a:0-2,a:2-6") == Pin(("a", "b"), 2, (PinnedStage("a", UnitRange(2, 6)),))
    assert parse_pin("a:0-6") == Pin(("a",), 6, ())


@pytest.mark.parametrize(
    "text",
    ["", "a", "a:0-2,", "a:1-2", "a:0-2,b:3-4", "a:0-2,b:1-4", "a:0-2,b:2-2", "a:0-2,b+c:2-4",
     "a+a:0-2,b:2-4", "a:0-2,b:2--4", "a: 0-2", "-a:0-2", "a:0-2,b:2-9999999", "a:0-2" * 2000],
)  # fmt: skip
def test_what_is_no_pin(text: str) -> None:
    assert parse_pin(text) is None


def test_pin_is_followed_though_another_plan_is_quicker() -> None:
    free = three()
    assert shape(free) == "0-5 a"
    made = pinned("a:0-2,c:2-5,b:5-6", free)
    assert shape(made) == "0-1 a | 2-4 c | 5-5 b"
    assert choose(made).reason == "pinned"
    assert made.id != free.id


def test_same_plan_whatever_the_order_of_the_inputs() -> None:
    made, rng = pinned("a:0-3,c:3-5,b:5-6", three()), Random(1)
    for _ in range(5):
        devices, links = list(made.devices), list(made.links)
        rng.shuffle(devices)
        rng.shuffle(links)
        again = snapshot(made.model, made.workload, devices, links, pin=made.pin)
        assert again.id == made.id
        assert choose(again) == choose(made)


def test_batch_is_what_the_pinned_plan_holds() -> None:
    # Unit 1 MiB; KV of one sequence in one block 256 KiB: two of them fit b beside its units.
    made = swarm(
        [device("a", 100, is_source=True), device("b", 2.6)], kv_width=64 * 2, context=1024, batch=8
    )
    found = choose(pinned("a:0-4,b:4-6", made)).plan
    assert found is not None
    assert found.workload.batch == 2
    found = choose(pinned("a:0-5,b:5-6", made)).plan
    assert found is not None
    assert found.workload.batch == 8


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a:0-2,d:2-6", "d is not ready to be planned"),
        ("b:0-2,a:2-6", "b@1 is no source"),
        ("a:0-2,b:2-5", "it ends at unit 5, the model has 6"),
        ("a:0-2,b:2-7", "it ends at unit 7, the model has 6"),
        ("a:0-1,b:1-6", "a source keeps units 0-1 for its own prompts"),
        ("a:0-2,b:2-4,a:4-6", "a device would be visited twice"),
        ("a:0-2,c:2-6", "c lacks 1.0 MiB"),
        ("a:0-2,b:2-4,c:4-6", "not all of its links are measured"),
    ],
)
def test_what_cannot_be_followed_is_said_and_planned_freely(text: str, why: str) -> None:
    devices = [device("a", 100, is_source=True), device("b", 100), device("c", 3)]
    links = [link(a, b) for a in "abc" for b in "abc" if a != b and (a, b) != ("b", "c")]
    made = swarm(devices, links)
    found = choose(pinned(text, made))
    assert found.reason == f"the pin is not followed: {why}"
    assert found.plan == choose(made).plan


def test_several_sources_keep_the_default_entry() -> None:
    made = swarm([device("a", 100, is_source=True), device("b", 100, is_source=True)])
    assert shape(pinned("b+a:0-2,b:2-6", made)) == "0-1 a+b | 2-5 b"
    assert "several sources keep units 0-1" in choose(pinned("a+b:0-3,b:3-6", made)).reason
    # Who is not named is no source of the plan.
    assert shape(pinned("a:0-4,b:4-6", made)) == "0-3 a | 4-5 b"


TIMES = (UnitTimes(1, 10, 200, 300),)
DEVICE = DeviceRecord(True, 5000, MODEL.digest, True, "", "fp32", "exact", TIMES, TIMES)


def known(pin: str | int, by: PeerId) -> Gossip:
    """What a knows: everyone's device, and a pin."""
    made = Gossip(A, Random(1), 1.0)
    made.take_setting(Setting("model", 1, A, MODEL))
    made.publish(DEVICE, membership())
    publish_as(B, DEVICE, 1, made)
    publish_as(C, DEVICE, 1, made)
    made.take_setting(Setting("pin", 1, by, pin))
    return made


def seen_pin(m: Membership, gossip: Gossip) -> Pin | None:
    made = view(m, gossip, tile_rows=4).snapshot
    assert made is not None
    return made.pin


def test_pin_lapses_with_its_peers_and_with_whoever_set_it() -> None:
    gossip = known("a:0-2,b:2-6", by=C)
    m = membership(B, C)
    assert seen_pin(m, gossip) == parse_pin("a:0-2,b:2-6")
    m.apply(suspect(B), 1.0)
    assert seen_pin(m, gossip) is not None
    m.apply(dead(B), 2.0)
    assert seen_pin(m, gossip) is None
    m = membership(B, C)
    m.apply(dead(C), 2.0)
    assert seen_pin(m, gossip) is None
    # A later life of the same name has set nothing.
    assert seen_pin(membership(B, PeerId("c", 2)), gossip) is None
    # One of a peer of the pin is as good as the earlier one.
    assert seen_pin(membership(PeerId("b", 2), C), gossip) is not None


def test_pin_is_lifted() -> None:
    gossip = known("a:0-2,b:2-6", by=A)
    gossip.take_setting(Setting("pin", 2, B, ""))
    assert seen_pin(membership(B, C), gossip) is None
