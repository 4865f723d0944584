"""What a plan is compared with: the paper's algorithms and the splits that it beats.

Each takes a scenario of one source (of several the first in the file) and says what it finds, or
why that cannot be.  Memory and prediction are judged by the same rules as for ``exact``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from msgspec.structs import replace

from edgeshard_p2p.core.answers import Answer, in_units, iteration_us
from edgeshard_p2p.core.footprint import entry_of, unit_bytes
from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.layout import Layout, is_linked, links_of, missing_bytes, predict
from edgeshard_p2p.core.plan import Device, Framing, Snapshot, Stage
from edgeshard_p2p.core.planner import answer
from edgeshard_p2p.core.pool import row_bytes
from edgeshard_p2p.core.scenario import Scenario
from edgeshard_p2p.core.throughput import micro_batches


class NoCloud(Exception):
    """The algorithm needs a cloud, and the scenario names none."""


def plan_by(algorithm: str, scenario: Scenario) -> Answer:
    """Raises NoCloud."""
    if algorithm == "exact":
        return answer(scenario.snapshot)
    alone = _of_one_source(scenario)
    if alone is None:
        return Answer(None, reason="no source: no device takes prompts")
    found = _BASELINES[algorithm](alone)
    notes = [found.reason] if found.reason else []
    n_sources = sum(device.is_source for device in scenario.snapshot.devices)
    if n_sources > 1:
        notes.append(f"of {n_sources} sources only {alone.order[0]} takes prompts in it")
    if _lacks_head(alone.snapshot, found):
        notes.append(f"{algorithm} knows no private head: this plan has none")
    return replace(found, reason="; ".join(notes))


def _lacks_head(snapshot: Snapshot, found: Answer) -> bool:
    layout = found.layout
    return (
        snapshot.goal.private_head
        and layout is not None
        and layout.runs(snapshot.model.n_units, layout.sources[0])[-1].peer != layout.sources[0]
    )


def _of_one_source(scenario: Scenario) -> Scenario | None:
    devices = {device.peer.name: device for device in scenario.snapshot.devices}
    first = next((name for name in scenario.order if devices[name].is_source), None)
    if first is None:
        return None
    alone = tuple(
        replace(device, is_source=device.peer.name == first) for device in scenario.snapshot.devices
    )
    order = (first, *(name for name in scenario.order if name != first))
    return replace(scenario, snapshot=replace(scenario.snapshot, devices=alone), order=order)


def _edge_solo(scenario: Scenario) -> Answer:
    return _judged(scenario.snapshot, _in_a_row(scenario, [scenario.order[0]]))


def _cloud_edge_even(scenario: Scenario) -> Answer:
    return _judged(scenario.snapshot, _in_a_row(scenario, [scenario.order[0], _cloud(scenario)]))


def _even(scenario: Scenario) -> Answer:
    n_units = scenario.snapshot.model.n_units
    return _judged(scenario.snapshot, _in_a_row(scenario, list(scenario.order)[:n_units]))


def _cloud_edge_opt(scenario: Scenario) -> Answer:
    pair = {scenario.order[0], _cloud(scenario)}
    devices = [device for device in scenario.snapshot.devices if device.peer.name in pair]
    return answer(replace(scenario.snapshot, devices=tuple(devices)))


def _cloud(scenario: Scenario) -> str:
    if scenario.cloud is None:
        raise NoCloud(scenario.no_cloud)
    if scenario.cloud == scenario.order[0]:
        raise NoCloud(f"{scenario.cloud} is the cloud and the source at once")
    return scenario.cloud


def _in_a_row(scenario: Scenario, names: list[str]) -> Layout:
    """As many units on each as on the others, the first ones taking what is left over."""
    peers = {device.peer.name: device.peer for device in scenario.snapshot.devices}
    n_units = scenario.snapshot.model.n_units
    share, more = divmod(n_units, len(names))
    counts = [share + (place < more) for place in range(len(names))]
    owners = [peers[name] for name, count in zip(names, counts, strict=True) for _ in range(count)]
    return _layout_of(owners)


def _layout_of(owners: list[PeerId]) -> Layout:
    """From who runs each unit, in order; the first one is the source."""
    runs: list[Stage] = []
    for unit, owner in enumerate(owners):
        if runs and runs[-1].peer == owner:
            runs[-1] = Stage(owner, UnitRange(runs[-1].units.start, unit + 1))
        else:
            runs.append(Stage(owner, UnitRange(unit, unit + 1)))
    return Layout((owners[0],), runs[0].units.end, tuple(runs[1:]), len(owners))


def _judged(snapshot: Snapshot, layout: Layout, reason: str = "") -> Answer:
    """A layout under the rules on memory and links that hold for every plan."""
    wish = snapshot.workload.batch
    batch = bisect_right(
        range(1, wish + 1), False, key=lambda batch: bool(missing_bytes(snapshot, layout, batch))
    )
    if not batch:
        missing = missing_bytes(snapshot, layout, 1)
        lacks = ", ".join(f"{name} lacks {in_units(missing[name])}" for name in sorted(missing))
        return Answer(None, reason=lacks, missing_bytes=sum(missing.values()))
    if not is_linked(snapshot, layout):
        return Answer(None, reason="no link between two devices that follow each other")
    goal = snapshot.goal
    sizes = [1]
    if goal.objective == "throughput":
        sizes = [min(batch, goal.micro_batch)] if goal.micro_batch else micro_batches(batch)
    predictions = [predict(snapshot, layout, batch, rows) for rows in sizes]
    found = [Answer(layout, batch, prediction, reason) for prediction in predictions]
    return min(found, key=iteration_us)


def _paper(scenario: Scenario) -> Answer:
    if scenario.snapshot.goal.objective == "latency":
        return _algorithm_1(scenario)
    return _algorithm_2(scenario)


def _algorithm_1(scenario: Scenario) -> Answer:
    """EdgeShard, algorithm 1 (arXiv 2405.14371, section IV), as printed.

    Each cell (unit, device) keeps the best way there and the memory which that way has left.  A
    way that is dearer but leaves more is forgotten, so this is a heuristic; and it may come back
    to a device.  Of ways that cost the same the device that comes first in the file is kept.
    """
    snapshot = scenario.snapshot
    by_name = {device.peer.name: device for device in snapshot.devices}
    devices = [by_name[name] for name in scenario.order]
    sizes = {is_source: unit_bytes(snapshot, is_source, 1) for is_source in (False, True)}
    start = _Way(0, [], {device.peer.name: device.budget_bytes for device in devices})
    first = start
    for unit in entry_of(snapshot):
        first = first.on(devices[0], sizes[True][unit], devices[0].unit_us[unit])
    if first.left[devices[0].peer.name] < 0:
        return _judged(snapshot, _in_a_row(scenario, [scenario.order[0]]))
    ways: dict[str, _Way] = {devices[0].peer.name: first}
    hop = _hop_us(snapshot, row_bytes(snapshot))
    for unit in range(entry_of(snapshot).end, snapshot.model.n_units):
        ways = _next_ways(ways, devices, unit, sizes, hop)
    back = _hop_us(snapshot, snapshot.framing.token_bytes)
    ends = [
        (way.cost_us + us, place)
        for place, device in enumerate(devices)
        if (way := ways.get(device.peer.name)) is not None
        and (us := back(device.peer.name, devices[0].peer.name)) is not None
    ]
    if not ends:
        return Answer(None, reason="algorithm 1 finds no way that fits the memory and the links")
    return _judged(snapshot, _layout_of(ways[devices[min(ends)[1]].peer.name].owners))


class _Way:
    """One cell of algorithm 1: a way to some unit, what it costs and what memory it leaves."""

    def __init__(self, cost_us: int, owners: list[PeerId], left: dict[str, int]) -> None:
        self.cost_us, self.owners, self.left = cost_us, owners, left

    def on(self, device: Device, n_bytes: int, us: int) -> _Way:
        left = {**self.left, device.peer.name: self.left[device.peer.name] - n_bytes}
        return _Way(self.cost_us + us, [*self.owners, device.peer], left)


Hop = Callable[[str, str], int | None]


def _hop_us(snapshot: Snapshot, n_bytes: int) -> Hop:
    links = links_of(snapshot)

    def hop(a: str, b: str) -> int | None:
        link = links.get((a, b))
        return 0 if a == b else None if link is None else link.cost_us(n_bytes)

    return hop


def _next_ways(
    ways: dict[str, _Way],
    devices: list[Device],
    unit: int,
    sizes: dict[bool, list[int]],
    hop: Hop,
) -> dict[str, _Way]:
    following: dict[str, _Way] = {}
    for device in devices:
        name, n_bytes = device.peer.name, sizes[device.is_source][unit]
        options = [
            (way.cost_us + us, place)
            for place, before in enumerate(devices)
            if (way := ways.get(before.peer.name)) is not None
            and way.left[name] >= n_bytes
            and (us := hop(before.peer.name, name)) is not None
        ]
        if options:
            cost_us, place = min(options)
            best = ways[devices[place].peer.name]
            following[name] = best.on(device, n_bytes, device.unit_us[unit])
            following[name].cost_us = cost_us + device.unit_us[unit]
    return following


def _algorithm_2(scenario: Scenario) -> Answer:
    """EdgeShard, algorithm 2: the least busy bottleneck, leaving out what the paper leaves out (the
    way back, time per message, delays, what a pass takes besides its units, KV memory).

    NOTE: the printed recursion runs over all sets of devices.  It finds the least bottleneck of
    its model, and so does ``exact`` when it is given that model, in a fraction of the time; among
    plans of the same bottleneck ours takes the one of least latency.
    """
    snapshot = scenario.snapshot
    links = tuple(replace(link, per_message_us=0, delay_us=0) for link in snapshot.links)
    devices = tuple(replace(device, pass_us=0, rested_us=0) for device in snapshot.devices)
    model = replace(snapshot.model, kv_width=0)
    framing = Framing(snapshot.framing.row_bytes, 0)
    rows = snapshot.goal.micro_batch or 1
    goal = replace(snapshot.goal, micro_batch=rows, private_head=False)
    # Enough to fill any pipeline: more micro-batches than it could have devices and links.
    batch = rows * 2 * (snapshot.model.n_units + 1)
    simpler = replace(
        snapshot,
        model=model,
        devices=devices,
        links=links,
        framing=framing,
        goal=goal,
        workload=replace(snapshot.workload, batch=batch),
    )
    found = answer(simpler)
    return found if found.layout is None else _judged(snapshot, found.layout, found.reason)


_BASELINES: dict[str, Callable[[Scenario], Answer]] = {
    "paper": _paper,
    "edge-solo": _edge_solo,
    "cloud-edge-even": _cloud_edge_even,
    "cloud-edge-opt": _cloud_edge_opt,
    "even": _even,
}
