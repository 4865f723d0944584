"""What ``scripts/bench throughput`` runs: what more devices give when there is more to do.

Emulated devices: peers on loopback, each with a CPU quota from its start.  So many devices serve so
many requests of 64 tokens in and 64 out, all put at once, and are compared with one such device.
Each figure is of one run, on a machine that should be idle; from run to run they differ by a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from msgspec.structs import replace

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.pass_sizes import PassSizes
from edgeshard_p2p.core.pin import Pin, PinnedStage
from edgeshard_p2p.core.plan import Plan, Snapshot, Stage
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.local import LocalDevices
from edgeshard_p2p.faults.scenario import (
    ExpectEntry,
    FaultScenario,
    PeerEntry,
    RequestEntry,
    SwarmEntry,
)
from edgeshard_p2p.faults.swarm import FaultSwarm
from edgeshard_p2p.load.bench import Bench, Wish
from edgeshard_p2p.model.library import fetch_demo_model
from edgeshard_p2p.reports import as_pin
from edgeshard_p2p.wire.client import SwarmView, View

PROMPT, GENERATE, CONTEXT = 64, 64, 256
PER_DEVICE = 8
"""Requests."""
SETTINGS = ((2, 0.8, 1.8), (4, 0.4, 3.2))
"""Devices, cores of each, and how many times as much as one of them they are to give."""
ASK_S = 10.0

Say = Callable[[str], None]


@dataclass
class Devices:
    """A swarm of equal devices, the first of which is asked."""

    swarm: FaultSwarm
    devices: LocalDevices
    names: tuple[str, ...]
    say: Say

    def measure(self, n_requests: int) -> dict[str, Any]:
        stages = self.report()["plan"]["stages"]
        words = " | ".join(f"{s['start']}-{s['end'] - 1} {s['peer']}" for s in stages)
        self.say(f"{n_requests} requests at once on {words}")
        bench = Bench([self.devices.address(self.names[0])], self.devices.security)
        wish = Wish(n_requests, n_requests, PROMPT, GENERATE)
        measured, _ = bench.run(wish, lambda _: None, lambda: None)
        if measured.errors:
            raise FaultError(f"not all were served: {measured.errors[0]}")
        told = measured.told()
        return {
            "plan": str(as_pin(self.report()["plan"])),
            "tokens_per_s": told["tokens_per_s"],
            "steady_tokens_per_s": told["steady_tokens_per_s"],
            "predicted_tokens_per_s": told["predicted"] and told["predicted"]["tokens_per_s"],
            "rows_per_pass": told["predicted"] and told["predicted"]["rows_per_pass"],
            "ttft_ms": told["ttft_ms"],
            "inter_token_ms": told["inter_token_ms"],
            "bubbles": told["bubbles"],
        }

    def report(self) -> dict[str, Any]:
        report = self.swarm.report(self.names[0])
        if not report:
            raise FaultError(f"{self.names[0]} does not answer")
        return report

    def snapshot(self) -> Snapshot:
        seen = self.swarm.ask(self.names[0], View(), ASK_S)
        if not isinstance(seen, SwarmView) or seen.snapshot is None:
            raise FaultError(f"{self.names[0]} does not say what it plans with")
        return seen.snapshot

    def pin_all(self, n_requests: int) -> None:
        """The best plan of those in which every device has a part, in the order of names."""
        pin = best_of_all(self.snapshot(), self.names, n_requests)
        scenario = self.swarm.scenario
        self.swarm.scenario = replace(scenario, swarm=replace(scenario.swarm, pin=str(pin)))
        self.swarm.pin()


def best_of_all(snapshot: Snapshot, names: Sequence[str], n_requests: int) -> Pin:
    peers = {device.peer.name: device.peer for device in snapshot.devices}
    source, *others = (peers[name] for name in names)
    n_units, sizes = snapshot.model.n_units, PassSizes()
    found: list[tuple[int, Plan]] = []
    for cuts in combinations(range(2, n_units), len(others)):
        ends = (*cuts[1:], n_units)
        stages = [Stage(p, UnitRange(a, b)) for p, a, b in zip(others, cuts, ends, strict=True)]
        digest, workload = snapshot.model.digest, snapshot.workload
        plan = Plan(digest, workload, (source,), cuts[0], tuple(stages))
        size = sizes.of(plan, n_requests, snapshot)
        if size is not None:
            found.append((size.iteration_us, plan))
    if not found:
        raise FaultError("no plan with all devices: links are still being measured")
    _, plan = min(found, key=lambda pair: pair[0])
    shared = tuple(PinnedStage(stage.peer.name, stage.units) for stage in plan.stages)
    return Pin((source.name,), plan.entry_end, shared)


@contextmanager
def devices(n: int, cores: float, batch: int, say: Say) -> Iterator[Devices]:
    names = tuple(f"dev-{index}" for index in range(1, n + 1))
    flags = ["--context", str(CONTEXT), "--batch", str(batch), "--objective", "throughput"]
    scenario = FaultScenario(
        "throughput",
        "",
        SwarmEntry(flags=flags),
        tuple(PeerEntry(name, source=name == names[0], cores=cores) for name in names),
        RequestEntry(prompt_tokens=PROMPT, generate=1),
        (),
        ExpectEntry(),
    )
    with LocalDevices(scenario, str(fetch_demo_model(say).path)) as local:
        swarm = FaultSwarm(scenario, local, say)
        swarm.open()
        yield Devices(swarm, local, names, say)


def throughput(say: Say) -> tuple[dict[str, Any], bool]:
    """The figures, and whether they are what they should be."""
    told, is_met = {}, True
    for n, cores, wanted in SETTINGS:
        with devices(1, cores, n * PER_DEVICE, say) as one:
            alone = one.measure(PER_DEVICE)
            alone_all = one.measure(n * PER_DEVICE)
        with devices(n, cores, n * PER_DEVICE, say) as many:
            advised = many.report()["plan"]
            n_advised = len({stage["peer"] for stage in advised["stages"]})
            unpinned = many.measure(n * PER_DEVICE)
            many.pin_all(n * PER_DEVICE)
            together = many.measure(n * PER_DEVICE)
        ratio = together["tokens_per_s"] / alone["tokens_per_s"]
        is_met = is_met and ratio >= wanted
        told[f"{n} of {cores:g} core"] = {
            "ratio": round(ratio, 2),
            "wanted": wanted,
            "all": together,
            "one": alone,
            "one_same_load": alone_all,
            "same_load_ratio": round(together["tokens_per_s"] / alone_all["tokens_per_s"], 2),
            "advised": {"devices": n_advised, **unpinned},
        }
    return told, is_met
