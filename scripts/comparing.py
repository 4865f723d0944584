"""What ``scripts/reproduce`` runs: the plan of each algorithm, pinned in a swarm of emulated
devices and measured, one cell after another.

One swarm serves for all cells of a source; the links' rates are changed while it runs.  The plan
that an algorithm finds is found from what the swarm has measured at that time, and so is what it
promises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.control_groups import usable_cores
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.peer import LOG_SHARE
from edgeshard_p2p.core.plan import Link, Snapshot, Workload
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.emulation import SPARE_CORES
from edgeshard_p2p.faults.local import LocalDevices
from edgeshard_p2p.faults.lone_messages import Trial, check_switched_links
from edgeshard_p2p.faults.scenario import (
    ExpectEntry,
    FaultScenario,
    PeerEntry,
    RequestEntry,
    SwarmEntry,
)
from edgeshard_p2p.faults.swarm import FaultSwarm
from edgeshard_p2p.load.figures import steady_tokens_per_s
from edgeshard_p2p.load.traffic import Load, Served, Traffic
from edgeshard_p2p.model import memo
from edgeshard_p2p.prompts import words
from edgeshard_p2p.reproduction import pool
from edgeshard_p2p.reproduction.cells import (
    THROUGHPUT,
    Cell,
    Found,
    Part,
    Place,
    found_by,
    in_words,
    uses,
)
from edgeshard_p2p.runtime.state import Profile

LEARN_S = 120.0
"""Requests that devices may learn from are put for so long at most."""
REST_S = 20.0
"""A device learns what it takes anyhow from how it rests."""
SETTLE_S = 240.0
SETTLED_WITHIN = 0.35
"""A peer publishes a link's rate again when it moved by more than a quarter of what it was."""
TRUST_S = 90.0
CELL_S = 75.0
"""A cell is not measured once more after it has taken so long."""
SAME_SCALE = 0.01
POLL_S = 2.0
CHECKED_BYTES = (2**11, 2**14)
"""Larger ones would take minutes at the lowest rate; of smaller ones the headers beside them would
take as long."""
_MIB = 2**20

Say = Callable[[str], None]


class Wanted(Struct, frozen=True):
    """How it is measured."""

    model: str
    """Its path."""
    prompt_words: int
    cores: float
    """Of the fastest device."""
    context: int
    repeats: int
    generate: int
    requests: int
    """At once, for throughput."""
    seed: int


class Speeds(Struct, frozen=True):
    """What devices are emulated with."""

    cores: dict[str, float]
    """By device."""
    scale: float
    """By how much slower than the paper's they are."""


@dataclass
class Swarm:
    """Emulated devices that serve, with prompts coming in at one of them."""

    source: str
    speeds: Speeds
    wanted: Wanted
    swarm: FaultSwarm
    devices: LocalDevices
    say: Say
    links: dict[tuple[str, str], Link]
    known: dict[tuple[Any, ...], Cell] = field(default_factory=dict)
    """What was measured, by all that could make a difference."""
    variants: Iterator[int] = field(default_factory=count)
    """Of prompts: none begins as an earlier one, of which peers may still have something."""
    strangers: list[str] = field(default_factory=list)
    """Links whose rate the swarm still has wrong."""
    measured: dict[str, int] = field(default_factory=dict)
    """Whole-model time of each device as it measured itself, in us."""

    def snapshot(self) -> Snapshot:
        return self.swarm.snapshot(self.source)

    def relink(self, mbps: float) -> None:
        """Other rates, from now on."""
        row_bytes = self.snapshot().model.hidden_bytes("fp32")
        wanted = pool.links(self.source, mbps, row_bytes, self.speeds.scale)
        if wanted != self.links:
            self.devices.relink(wanted)
            self.links, self.strangers = wanted, []

    def settle(self) -> None:
        """Wait until the swarm knows every link's rate: after a change, or a loss."""
        ends_at, pause, told = time.monotonic() + SETTLE_S, threading.Event(), [""]
        while left := pool.unsettled(self.snapshot(), self.links, SETTLED_WITHIN):
            if left != told:
                self.say(f"until peers have measured {', '.join(left)} anew")
                told = left
            if left == self.strangers or time.monotonic() > ends_at:
                break  # It has been waited for.
            pause.wait(POLL_S)
        self.strangers = left

    def trusted(self) -> tuple[Snapshot, str]:
        """What the swarm plans with, once every device goes by what it measured; and who does not
        after a while.  Who was found slow publishes slower figures for a time."""
        ends_at, pause, told = time.monotonic() + TRUST_S, threading.Event(), ""
        while True:
            seen = self.snapshot()
            slow = pool.slower(seen, self.measured)
            if not slow or time.monotonic() > ends_at:
                return seen, slow
            if slow != told:
                self.say(f"  until devices are trusted again: {slow}")
                told = slow
            pause.wait(POLL_S)

    def learn(self, mbps: float) -> None:
        """Requests until every device has learned what a pass takes of it besides its units, which
        plans and predictions go by from then on."""
        place = Place(self.source, mbps, THROUGHPUT, "even")
        found = found_by(place, self.snapshot(), self.wanted.requests)
        if not found.why:
            self.say(f"until devices know what passes take: {in_words(found.pin)}")
            self.swarm.pin_to(found.pin)
            threading.Event().wait(REST_S)
            self.settle()
            ends_at = time.monotonic() + LEARN_S
            while (left := pool.unlearned(self.snapshot())) and time.monotonic() < ends_at:
                if any(one.error for one in self._serve(self.wanted.requests)):
                    break
            if left:
                self.say(f"nothing of what passes take is known of {', '.join(left)}")

    def measure(self, place: Place) -> Cell:
        """Its figures, or why there are none."""
        begun = time.monotonic()
        self.settle()
        snapshot, slow = self.trusted()
        wrong = [f"{link} counts with another rate" for link in self.strangers]
        slow = ", ".join([*([slow] if slow else []), *wrong])
        found = found_by(place, snapshot, self.wanted.requests)
        cell = Cell(place, found.pin, found.predicted, why=found.why, rows=found.rows, slow=slow)
        if found.why:
            return cell
        mbps = place.mbps if uses(found.pin, self.source) else None
        key = (found.pin, place.objective, place.schedule, mbps)
        known = self.known.get(key)
        if known is not None:
            like = known.place.algorithm
            if known.place.mbps != place.mbps:
                like += f" at {known.place.mbps:g} Mbps"
            return replace(cell, measured=known.measured, why=known.why, like=like)
        self.say(f"  {in_words(found.pin)}, {found.predicted:.4g} expected")
        try:
            measured, why = self._measured(place, found)
        except FaultError as error:
            measured, why = (), str(error)
        took_s = round(time.monotonic() - begun, 1)
        cell = replace(cell, measured=measured, why=why, seconds=took_s)
        self.known[key] = cell
        return cell

    def _measured(self, place: Place, found: Found) -> tuple[tuple[float, ...], str]:
        self.swarm.pin_to(found.pin)
        report = self.swarm.report(self.source)
        if not report:
            raise FaultError(f"{self.source} does not answer")
        plan_id = report["plan"]["plan_id"]
        n, at_once, figure = self.wanted.repeats, 1, _ms_per_token
        if place.objective == THROUGHPUT:
            n, at_once, figure = max(1, n - 1), self.wanted.requests, steady_tokens_per_s
        served: list[Served] = []
        figures: list[float] = []
        ends_at = time.monotonic() + CELL_S
        while len(figures) < n and (not figures or time.monotonic() < ends_at):
            of_round = self._serve(at_once)
            served += of_round
            figures.append(figure(of_round))
        why = _why_not(served, plan_id)
        if not why and not all(figures):
            why = "there was no time in which all requests were decoding"
        return tuple(figures), why

    def _serve(self, requests: int) -> list[Served]:
        """All at once."""
        wanted = self.wanted
        prompts = [
            words(wanted.prompt_words, variant) for variant in islice(self.variants, requests)
        ]
        load = Load(tuple(prompts), requests, requests, wanted.generate, seed=wanted.seed)
        address, security = self.devices.address(self.source), self.devices.security
        traffic = Traffic(load, [address], security, lambda: None)
        enter = self.devices.enter
        with ThreadPoolExecutor(1, initializer=enter, initargs=(self.source,)) as thread:
            try:
                return thread.submit(traffic.run).result()
            finally:
                traffic.end()


def _ms_per_token(served: Sequence[Served]) -> float:
    """Of a lone request, after its first token."""
    (one,) = served
    if len(one.token_at) < 2:
        return 0.0
    return round(1e3 * (one.token_at[-1] - one.token_at[0]) / (len(one.token_at) - 1), 3)


def _why_not(served: Sequence[Served], plan_id: str) -> str:
    errors = sorted({one.error for one in served if one.error})
    if errors:
        n_failed = sum(not one.is_whole for one in served)
        return f"{n_failed} of {len(served)} requests failed: {errors[0]}"
    if {one.plan_id for one in served} != {plan_id} or any(one.failovers for one in served):
        return "the swarm changed its plan meanwhile"
    return ""


def peers_of(
    wanted: Wanted, source: str, spec: ModelSpec, cores: dict[str, float]
) -> tuple[PeerEntry, ...]:
    workload = Workload(
        "fp32", "exact", 0, wanted.context, wanted.requests, first_layer="embedding"
    )
    peers = []
    for name, kind in pool.DEVICES.items():
        planned = pool.memory_bytes(kind, spec, workload)
        # The peer keeps a part of it for logs.
        layers_mib = -(-planned * LOG_SHARE // (LOG_SHARE - 1) // _MIB)
        peers.append(PeerEntry(name, name == source, layers_mib, cores=cores.get(name)))
    return tuple(peers)


def scenario_of(wanted: Wanted, peers: tuple[PeerEntry, ...]) -> FaultScenario:
    flags = ["--first-layer", "embedding", "--dtype", "fp32", "--numerics", "exact"]
    flags += ["--context", str(wanted.context), "--batch", str(wanted.requests)]
    swarm = SwarmEntry(flags=flags)
    return FaultScenario("reproduce", "", swarm, peers, RequestEntry(generate=1), (), ExpectEntry())


def speeds_of(wanted: Wanted, spec: ModelSpec, profiles: Path, say: Say) -> Speeds:
    """The fastest device and one with the share that the AGX Orin should have measure themselves.
    A small share gives less than its part, so shares are set by what was measured; by what the
    second one said, and its share, all but the fastest go."""
    cloud, first = pool.CLOUD, next(iter(pool.DEVICES))
    nominal = round(pool.cores_of(pool.AGX, wanted.cores), 3)
    rtx_us = _whole_us(wanted, cloud, wanted.cores, spec, profiles, say)
    agx_us = _whole_us(wanted, first, nominal, spec, profiles, say)
    available = usable_cores() - SPARE_CORES - wanted.cores
    cores = pool.calibrated(rtx_us, agx_us, nominal, available)
    for share in cores.values():
        _derive(profiles, nominal, share)
    by_name = {name: cores.get(kind.name, wanted.cores) for name, kind in pool.DEVICES.items()}
    return Speeds(by_name, pool.scale_of(round(agx_us * nominal / by_name[first])))


def _whole_us(
    wanted: Wanted, name: str, cores: float, spec: ModelSpec, profiles: Path, say: Say
) -> int:
    like = peers_of(wanted, name, spec, {name: cores})
    roomy = max(peer.layers_mib or 0 for peer in like)
    alone = PeerEntry(name, True, roomy, cores=cores)
    scenario = scenario_of(wanted, (alone,))
    say(f"{name} measures itself, with {cores:g} of a core")
    with LocalDevices(scenario, wanted.model, profiles=profiles) as devices:
        swarm = FaultSwarm(scenario, devices, lambda _: None)
        swarm.wait_until_serving()
        return pool.whole_us(swarm.snapshot(name))[name]


def _derive(profiles: Path, known: float, share: float) -> None:
    """What a device of that share finds as what it has measured, from what one of ``known`` did."""
    (file,) = (profiles / str(known)).glob(f"*-{known:.3g}.json")
    measured = memo.read(file, Profile)
    if measured is None:
        raise FaultError(f"what a device with {known:g} of a core measured is not in {file}")
    by = known / share
    memo.write(
        profiles / str(share) / f"{file.stem.removesuffix(f'{known:.3g}')}{share:.3g}.json",
        Profile(
            pool.slowed(measured.decode, by),
            pool.slowed(measured.prefill, by),
            measured.rested_us,
        ),
    )


def checked(links: dict[tuple[str, str], Link], say: Say) -> list[Trial]:
    """Lone messages over every link, before any figure counts."""
    trials, _ = check_switched_links(list(pool.DEVICES), links, say, CHECKED_BYTES)
    return trials


def _check_times(swarm: Swarm) -> None:
    """A run that goes on may find what another one's devices have measured, or nothing."""
    scale = pool.scale_of(swarm.measured[pool.SOURCES["fast"]])
    if abs(scale / swarm.speeds.scale - 1) > SAME_SCALE:
        raise FaultError("devices' times are not those that the run was begun with: begin anew")


@contextmanager
def serving(
    wanted: Wanted,
    source: str,
    mbps: float,
    speeds: Speeds,
    spec: ModelSpec,
    profiles: Path,
    logs: Path | None,
    say: Say,
) -> Iterator[Swarm]:
    links = pool.links(source, mbps, spec.hidden_bytes("fp32"), speeds.scale)
    scenario = scenario_of(wanted, peers_of(wanted, source, spec, speeds.cores))
    with LocalDevices(scenario, wanted.model, logs, links, profiles) as devices:
        swarm = FaultSwarm(scenario, devices, say)
        swarm.wait_until_serving()
        serving = Swarm(source, speeds, wanted, swarm, devices, say, links)
        serving.measured = pool.whole_us(serving.snapshot())
        _check_times(serving)
        serving.learn(mbps)
        yield serving


def cells_of(
    swarm: Swarm, part: Part, is_done: Callable[[Place], bool], is_late: Callable[[], bool]
) -> Iterator[Cell]:
    left = [place for place in part.places() if not is_done(place)]
    if not left or is_late():
        return
    swarm.relink(part.mbps)
    swarm.swarm.set(swarm.source, "schedule", part.schedule)
    for place in left:
        if is_late():
            return
        swarm.say(str(place))
        yield swarm.measure(place)
