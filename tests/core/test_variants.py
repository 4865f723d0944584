"""The plans next to one that is served."""

from __future__ import annotations

from msgspec.structs import replace

from edgeshard_p2p.core.pin import Pin, parse_pin
from edgeshard_p2p.core.planner import choose
from edgeshard_p2p.core.variants import variants
from tests.core.test_planner import device, swarm


def pin(text: str) -> Pin:
    found = parse_pin(text)
    assert found is not None
    return found


def three(mib: float = 100) -> list[object]:
    return [device("a", mib, is_source=True), device("b", mib), device("c", mib)]


def test_every_boundary_moves_either_way_and_one_stage_goes() -> None:
    made = swarm(three())  # type: ignore[arg-type]
    found = variants(made, pin("a:0-3,b:3-5,c:5-6"))
    assert [(str(one.pin), one.why_not) for one in found] == [
        ("a:0-2,b:2-5,c:5-6", ""),
        ("a:0-4,b:4-5,c:5-6", ""),
        ("a:0-3,b:3-4,c:4-6", ""),
        # One block up would leave c nothing.
        ("a:0-5,c:5-6", ""),
    ]
    for one in found:
        plan = choose(replace(made, pin=one.pin)).plan
        assert plan is not None
        assert [(s.peer.name, s.units) for s in plan.stages] == [
            (s.name, s.units) for s in one.pin.stages
        ]


def test_a_source_keeps_what_is_its_own() -> None:
    made = swarm(three())  # type: ignore[arg-type]
    assert [str(one.pin) for one in variants(made, pin("a:0-2,b:2-6"))] == ["a:0-3,b:3-6", "a:0-6"]


def test_several_sources_do_not_move_their_end() -> None:
    devices = [device("a", 100, is_source=True), device("b", 100, is_source=True)]
    made = swarm([*devices, device("c", 100)])
    found = variants(made, pin("a+b:0-2,a:2-4,c:4-6"))
    assert [str(one.pin) for one in found] == [
        "a+b:0-2,a:2-3,c:3-6",
        "a+b:0-2,a:2-5,c:5-6",
        "a+b:0-2,a:2-6",
    ]
    # No source may take what the only shared stage has.
    assert variants(made, pin("a+b:0-2,a:2-6")) == []


def test_what_memory_does_not_allow_says_so() -> None:
    made = swarm([device("a", 100, is_source=True), device("b", 2.5), device("c", 2.5)])
    found = {str(one.pin): one.why_not for one in variants(made, pin("a:0-2,b:2-4,c:4-6"))}
    assert found["a:0-3,b:3-4,c:4-6"] == ""
    assert found["a:0-2,b:2-5,c:5-6"] == "b lacks 0.5 MiB"
    assert found["a:0-2,b:2-3,c:3-6"] == "c lacks 0.5 MiB"


def test_stage_that_nobody_can_do_without_says_so() -> None:
    made = swarm([device("a", 2.5, is_source=True), device("b", 4.5)])
    fewer = variants(made, pin("a:0-2,b:2-6"))[-1]
    assert (fewer.what, fewer.pin) == ("one stage fewer", None)
    assert fewer.why_not.startswith("without b: a lacks")


def test_nothing_is_next_to_a_source_alone() -> None:
    made = swarm([device("a", 100, is_source=True)])
    assert variants(made, pin("a:0-6")) == []
