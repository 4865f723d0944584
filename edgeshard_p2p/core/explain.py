"""Why a plan is as it is: each device without it, with another like it, and with more memory
or better links.  Every statement is the difference of two answers of the same planner."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.answers import Answer, objective_us
from edgeshard_p2p.core.plan import Device, Goal, Link
from edgeshard_p2p.core.planner import answer
from edgeshard_p2p.core.scenario import Scenario
from edgeshard_p2p.core.whatif import changed, with_twins

PLENTY_BYTES = 2**47


class Reading(Struct, frozen=True):
    peer: str
    is_used: bool
    bound_by: str
    """What keeps it from doing more for the plan: ``memory``, ``link`` or ``time``."""
    without: Answer
    twice: Answer
    """With another one, of the same memory, times and links."""


def readings(scenario: Scenario, found: Answer) -> Iterator[Reading]:
    """One for each device in the order of the file."""
    used = {peer.name for peer in found.layout.peers()} if found.layout else set()
    twins = with_twins(scenario)
    for name in scenario.order:
        yield Reading(
            peer=name,
            is_used=name in used,
            bound_by=_bound_by(scenario, found, name),
            without=answer(changed(scenario, f"drop={name}").snapshot),
            twice=answer(changed(twins, f"add={name}").snapshot),
        )


def _bound_by(scenario: Scenario, found: Answer, name: str) -> str:
    if _is_better(_with_plenty(scenario, name), found):
        return "memory"
    return "link" if _is_better(_with_free_links(scenario, name), found) else "time"


def _is_better(scenario: Scenario, found: Answer) -> bool:
    other = answer(scenario.snapshot)
    if other.prediction is None:
        return False
    goal = scenario.snapshot.goal
    return found.prediction is None or _measure(goal, other) < _measure(goal, found)


def _measure(goal: Goal, found: Answer) -> Fraction:
    """What the plans are to be good at: time for a token, whoever else is in flight."""
    share = found.batch if goal.objective == "throughput" else 1
    return objective_us(goal, found) / share


def _with_plenty(scenario: Scenario, name: str) -> Scenario:
    def larger(device: Device) -> Device:
        is_meant = device.peer.name == name
        return replace(device, budget_bytes=PLENTY_BYTES) if is_meant else device

    devices = tuple(map(larger, scenario.snapshot.devices))
    return replace(scenario, snapshot=replace(scenario.snapshot, devices=devices))


def _with_free_links(scenario: Scenario, name: str) -> Scenario:
    def quicker(link: Link) -> Link:
        is_meant = name in (link.a, link.b)
        return Link(link.a, link.b, 0, 0, 2**48) if is_meant else link

    links = tuple(map(quicker, scenario.snapshot.links))
    return replace(scenario, snapshot=replace(scenario.snapshot, links=links))
