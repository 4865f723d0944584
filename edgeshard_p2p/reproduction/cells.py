"""The cells of the comparison: what is measured, in which order, and what is predicted of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.answers import Answer
from edgeshard_p2p.core.baselines import plan_by
from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.layout import Layout, latency_us
from edgeshard_p2p.core.pass_sizes import PassSizes, round_us
from edgeshard_p2p.core.pin import Pin, PinnedStage, parse_pin
from edgeshard_p2p.core.plan import Plan, Snapshot
from edgeshard_p2p.core.scenario import Scenario
from edgeshard_p2p.core.schedule import Schedule
from edgeshard_p2p.reproduction.pool import CLOUD, DEVICES, SOURCES

ALGORITHMS = ("edge-solo", "cloud-edge-even", "cloud-edge-opt", "even", "paper", "exact")
BASELINES = ALGORITHMS[:3]
"""Those of the paper that ``exact`` is to be better than by as much as the paper's is."""
LATENCY, THROUGHPUT = "latency", "throughput"
NO_BUBBLES: Schedule = "no-bubbles"
BUBBLES: Schedule = "bubbles"


class Place(Struct, frozen=True):
    """Where a cell stands."""

    source: str
    mbps: float
    """Of the paper's, between source and cloud."""
    objective: str
    algorithm: str
    schedule: Schedule = NO_BUBBLES

    def __str__(self) -> str:
        what = "ms/token" if self.objective == LATENCY else f"tokens/s, {self.schedule}"
        return f"source {self.source}, {self.mbps:g} Mbps, {what}, {self.algorithm}"


class Cell(Struct, frozen=True, tag="cell", tag_field="kind"):
    """``predicted`` and ``measured`` are ms/token for latency, else tokens per second."""

    place: Place
    plan: str = ""
    """As a pin; empty where the algorithm finds none."""
    predicted: float | None = None
    measured: tuple[float, ...] = ()
    """One figure for each time that it was measured."""
    why: str = ""
    """Why there is no figure, or none that counts."""
    like: str = ""
    """Whose figures these are, where the same plan was measured before."""
    rows: int = 1
    """Of a pass, for throughput."""
    slow: str = ""
    """What the plan and the prediction went by, where it was not what had been measured."""
    seconds: float = 0.0

    @property
    def median(self) -> float | None:
        return statistics.median(self.measured) if self.measured else None

    @property
    def noise(self) -> float:
        """Half of what the repeats differ by, as a part of their median."""
        middle = self.median
        return (max(self.measured) - min(self.measured)) / 2 / middle if middle else 0.0

    @property
    def off_by(self) -> float | None:
        """How far the prediction is from what was measured, as a part of that."""
        middle = self.median
        return self.predicted / middle - 1 if middle and self.predicted is not None else None


class Part(Struct, frozen=True):
    """Cells of one swarm that are measured after each other."""

    source: str
    mbps: float
    objective: str
    schedule: Schedule = NO_BUBBLES
    algorithms: tuple[str, ...] = ALGORITHMS

    def places(self) -> Iterator[Place]:
        for algorithm in self.algorithms:
            yield Place(self.source, self.mbps, self.objective, algorithm, self.schedule)


def parts_of(rates: Sequence[float], sources: Sequence[str], is_full: bool) -> list[Part]:
    """What matters most first.  ``sources``: keys of SOURCES.  Unless ``is_full`` only the first
    one is swept over all ``rates`` and asked for throughput, that at the first rate alone."""
    found = []
    for place, source in enumerate(sources):
        for mbps in rates if is_full or not place else rates[:1]:
            name = SOURCES[source]
            found.append(Part(name, mbps, LATENCY))
            if is_full or (not place and mbps == rates[0]):
                found.append(Part(name, mbps, THROUGHPUT))
                both = ("even", "exact")
                found.append(Part(name, mbps, THROUGHPUT, BUBBLES, both))
    return found


def scenario_of(snapshot: Snapshot, source: str, objective: str) -> Scenario:
    """What algorithms are compared for, from what the swarm measured: nothing is held yet, and
    nothing pinned."""
    devices = tuple(replace(device, held=()) for device in snapshot.devices)
    goal = replace(snapshot.goal, objective=objective)
    bare = replace(snapshot, devices=devices, goal=goal, pin=None)
    return Scenario(bare, (source, *(name for name in DEVICES if name != source)), CLOUD)


class Found(Struct, frozen=True):
    """What an algorithm finds, and what the cost model expects of it."""

    pin: str = ""
    predicted: float | None = None
    rows: int = 1
    why: str = ""
    """Why it cannot be served, or is not there."""


def found_by(place: Place, snapshot: Snapshot, n_requests: int) -> Found:
    """``n_requests``: in flight at once, for throughput."""
    scenario = scenario_of(snapshot, place.source, place.objective)
    answer = plan_by(place.algorithm, scenario)
    layout = answer.layout
    if layout is None:
        return Found(why=answer.reason)
    pin = str(_pin_of(layout))
    if place.objective == LATENCY:
        predicted, rows = latency_us(scenario.snapshot, layout) / 1e3, 1
    else:
        predicted, rows = _tokens_per_s(place, scenario.snapshot, answer, layout, n_requests)
    why = "a token would come back to a device it has left, which no peer serves"
    return Found(pin, round(predicted, 3), rows, why if layout.revisits else "")


def _tokens_per_s(
    place: Place, snapshot: Snapshot, answer: Answer, layout: Layout, n_requests: int
) -> tuple[float, int]:
    n_at_once = min(n_requests, answer.batch)
    workload = replace(snapshot.workload, batch=answer.batch)
    plan = Plan(snapshot.model.digest, workload, layout.sources, layout.entry_end, layout.stages)
    size = PassSizes().of(plan, n_at_once, snapshot)
    assert size is not None, "the algorithm has planned with all of it"
    took_us = round_us(plan, size.rows, n_at_once, snapshot, place.schedule)
    return n_at_once * 1e6 / took_us, size.rows


def _pin_of(layout: Layout) -> Pin:
    stages = tuple(PinnedStage(stage.peer.name, stage.units) for stage in layout.stages)
    return Pin(tuple(source.name for source in layout.sources), layout.entry_end, stages)


def in_words(pin: str) -> str:
    """``0-0 agx-1 | 1-4 agx-2 | 5-31 rtx3090``; what is no pin as it is."""
    parsed = parse_pin(pin)
    if parsed is None:
        return pin
    entry = PinnedStage("+".join(parsed.sources), UnitRange(0, parsed.entry_end))
    return " | ".join(f"{part.units} {part.name}" for part in (entry, *parsed.stages))


def uses(pin: str, source: str) -> bool:
    """Whether a plan sends anything between source and cloud."""
    parsed = parse_pin(pin)
    if parsed is None:
        return True
    stops = [source, *(stage.name for stage in parsed.stages), source]
    return any({a, b} == {source, CLOUD} for a, b in pairwise(stops))
