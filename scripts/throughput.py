"""What ``scripts/bench throughput`` runs: what more devices give when there is more to do.

Emulated devices: peers on loopback, each with a CPU quota from its start.  So many devices serve so
many requests of 64 tokens in and 64 out, all put at once, and are compared with one such device, in
turn with it; of four stages also with what the slowest of them, measured before and after, would
give if it never waited; and without bubbles with what the same plan gives with them.  Then two
devices that have a core each: a lone request under either objective, and how late their loops are.
On a machine that should be idle; one that others use too is at times a third slower, which is why
those ratios are of several pairs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.layout import Layout, loads
from edgeshard_p2p.core.pass_sizes import PassSizes
from edgeshard_p2p.core.pin import Pin, PinnedStage
from edgeshard_p2p.core.plan import Plan, Snapshot, Stage
from edgeshard_p2p.core.schedule import SCHEDULES
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.janitor import RUN, janitor
from edgeshard_p2p.faults.local import LocalDevices
from edgeshard_p2p.faults.scenario import (
    ExpectEntry,
    FaultScenario,
    PeerEntry,
    RequestEntry,
    SwarmEntry,
)
from edgeshard_p2p.faults.swarm import FaultSwarm
from edgeshard_p2p.faults.throttle import Part
from edgeshard_p2p.load.bench import Bench, Wish
from edgeshard_p2p.load.watch import expected, served_plan
from edgeshard_p2p.model.library import fetch_demo_model
from edgeshard_p2p.reports import as_pin
from edgeshard_p2p.reproduction import pool

PROMPT, GENERATE, CONTEXT = 64, 64, 256
PER_DEVICE = 8
"""Requests."""
SETTINGS = ((2, 0.8, 1.8), (4, 0.4, 3.2))
"""Devices, cores of each, and how many times as much as one of them they are to give."""
N_STAGES, EFFICIENCY = 4, 0.92
"""Of the setting with so many devices: what the pipeline gives at least, of what its slowest stage
alone would."""
PAIRS = 3
"""How often one device and several are measured, in turn; the pair that counts has the middle
ratio."""
GENERATE_IN_ROUNDS, ROUNDS_WITHIN = 32, 0.1
"""No-bubbles against bubbles: tokens of an answer, and how far from the closed form it may be."""
ROUNDS_SATURATED = 3
"""How often as many requests as run at once, so that loops are watched for a minute."""
LAG_P99_MS = 20.0
LONE_PAIRS, LONE_REQUESTS, LONE_SHARE = 5, 2, 0.05
"""A lone request under one objective and the other, in turn: how often, how many each time, and by
how much throughput may be slower."""
SET_S = 30.0
REST_S, LEARN_LOADS = 12.0, 3
"""Devices learn what passes take besides from a rest, and a load or a few after it."""

SCRATCH = "edgeshard-bench-"

Say = Callable[[str], None]


@dataclass
class Devices:
    """A swarm of equal devices, the first of which is asked."""

    swarm: FaultSwarm
    devices: LocalDevices
    names: tuple[str, ...]
    say: Say

    def measure(self, at_once: int, rounds: int = 1, generate: int = GENERATE) -> dict[str, Any]:
        stages = self.report()["plan"]["stages"]
        words = " | ".join(f"{s['start']}-{s['end'] - 1} {s['peer']}" for s in stages)
        self.say(f"{rounds * at_once} requests, {at_once} at once, on {words}")
        bench = Bench([self.devices.address(self.names[0])], self.devices.security)
        wish = Wish(rounds * at_once, at_once, PROMPT, generate)
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
            "ms_per_token": told["ms_per_token"],
            "bubbles": told["bubbles"],
        }

    def loop_lag(self) -> dict[str, dict[str, float]]:
        """Milliseconds, of each peer: of the last minute."""
        reports = {name: self.swarm.report(name) for name in self.names}
        return {name: report["loop"]["lag_ms"] for name, report in reports.items() if report}

    def pass_ms(self) -> dict[str, float]:
        """What a pass takes of each device besides its units, as far as it was learned."""
        known = self.swarm.snapshot(self.names[0]).devices
        return {device.peer.name: round(device.pass_us / 1e3, 2) for device in known}

    def report(self) -> dict[str, Any]:
        report = self.swarm.report(self.names[0])
        if not report:
            raise FaultError(f"{self.names[0]} does not answer")
        return report

    def pin_all(self, n_requests: int) -> None:
        """The best plan of those in which every device has a part, in the order of names."""
        snapshot = self.swarm.snapshot(self.names[0])
        self.swarm.pin_to(str(best_of_all(snapshot, self.names, n_requests)))

    def learn(self, at_once: int) -> None:
        """Serve with every device until all know what passes take, and then by what they know."""
        self.pin_all(at_once)
        threading.Event().wait(REST_S)
        for _ in range(LEARN_LOADS):
            self.measure(at_once)
            if not pool.unlearned(self.swarm.snapshot(self.names[0])):
                break
        self.pin_all(at_once)

    def closed_form(self, at_once: int) -> float:
        """How many times as much no-bubbles gives as bubbles, in the plan that serves."""
        snapshot = self.swarm.snapshot(self.names[0])
        plan = served_plan(self.report(), snapshot)
        by = [expected(plan, snapshot, at_once, s) for s in SCHEDULES] if plan is not None else []
        known = [one.tokens_per_s for one in by if one is not None]
        if len(known) < len(SCHEDULES):
            raise FaultError("nobody knows what the plan costs: links are still being measured")
        return known[0] / known[1]

    def pin_uneven(self) -> None:
        """The last device has half of all units, the one before it half of the rest."""
        first, *others = self.names
        n_units = self.swarm.snapshot(first).model.n_units
        ends = [n_units * 2**k // 2 ** len(others) for k in range(len(self.names))]
        parts = zip(others, pairwise(ends), strict=True)
        stages = tuple(PinnedStage(name, UnitRange(*part)) for name, part in parts)
        self.swarm.pin_to(str(Pin((first,), ends[0], stages)))

    def set_objective(self, objective: str) -> None:
        """Of the whole swarm, once every peer serves by it."""
        self.swarm.set(self.names[0], "objective", objective)

        def is_so() -> bool:
            plans = [report["plan"] for report in map(self.swarm.report, self.names) if report]
            found = {(plan.get("objective"), plan["state"]) for plan in plans}
            return len(plans) == len(self.names) and found == {(objective, "active")}

        self.swarm.wait(is_so, SET_S, f"every peer serves for {objective}")

    def stage_times_us(self, rows: int, cores: float) -> list[int]:
        """Of a pass of so many rows, for each part of the plan: measured by a process of its own
        that may use as much as a device, while the devices have nothing to do."""
        model, times = fetch_demo_model(self.say).path, []
        for part in self.report()["plan"]["stages"]:
            units = f"{part['start']}-{part['end'] - 1}"
            self.say(f"what {rows} rows take in units {units} alone")
            times.append(stage_us(model, part["start"], part["end"], rows, cores))
        return times


def stage_us(model: Path, start: int, end: int, rows: int, cores: float) -> int:
    numbers = (start, end, rows, PROMPT, GENERATE)
    command = [sys.executable, str(Path(__file__).with_name("stage_time.py")), str(model)]
    with (
        TemporaryDirectory(prefix=SCRATCH) as scratch,
        janitor(Path(scratch)) as run,
        Part(f"{run}-stage", None, None) as part,
    ):
        process = subprocess.Popen(
            [*part.command(), *command, *map(str, numbers)],
            env=os.environ | {RUN: run},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for who measures, and this is killed then.
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            try:
                if process.stdout.readline().strip() != "ready":
                    raise FaultError(f"units {start}-{end - 1} cannot be measured by themselves")
                part.slow(process.pid, 1 / cores)
                process.stdin.write("\n")
                process.stdin.flush()
                told = process.stdout.readline()
                if not told:
                    raise FaultError(f"units {start}-{end - 1} were given up being measured")
                return int(told)
            finally:
                process.kill()


def best_of_all(snapshot: Snapshot, names: Sequence[str], n_requests: int) -> Pin:
    peers = {device.peer.name: device.peer for device in snapshot.devices}
    source, *others = (peers[name] for name in names)
    n_units, sizes = snapshot.model.n_units, PassSizes()
    found: list[tuple[int, list[Fraction], Plan]] = []
    for cuts in combinations(range(2, n_units), len(others)):
        ends = (*cuts[1:], n_units)
        stages = [Stage(p, UnitRange(a, b)) for p, a, b in zip(others, cuts, ends, strict=True)]
        digest, workload = snapshot.model.digest, snapshot.workload
        plan = Plan(digest, workload, (source,), cuts[0], tuple(stages))
        size = sizes.of(plan, n_requests, snapshot)
        if size is not None:
            layout = Layout(plan.sources, plan.entry_end, plan.stages, n_units)
            busy = sorted(loads(snapshot, layout, size.rows).values(), reverse=True)
            found.append((size.iteration_us, busy, plan))
    if not found:
        raise FaultError("no plan with all devices: links are still being measured")
    # Of what is as good the one whose second slowest part is quickest, and so on: times move.
    *_, plan = min(found, key=lambda one: one[:2])
    shared = tuple(PinnedStage(stage.peer.name, stage.units) for stage in plan.stages)
    return Pin((source.name,), plan.entry_end, shared)


@contextmanager
def devices(
    n: int, cores: float | None, batch: int, say: Say, profiles: Path | None = None
) -> Iterator[Devices]:
    """``profiles``: where others find what was measured of these, as all are alike."""
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
    model = str(fetch_demo_model(say).path)
    with LocalDevices(scenario, model, profiles=profiles) as local:
        swarm = FaultSwarm(scenario, local, say)
        swarm.open()
        yield Devices(swarm, local, names, say)


def throughput(say: Say) -> tuple[dict[str, Any], bool]:
    """The figures, and whether they are what they should be."""
    told, is_met = {}, True
    for n, cores, wanted in SETTINGS:
        found, is_so = against_one(n, cores, wanted, say)
        told[f"{n} of {cores:g} core"] = found
        is_met = is_met and is_so
    told["lone"], is_so = lone(say)
    return told, is_met and is_so


def against_one(n: int, cores: float, wanted: float, say: Say) -> tuple[dict[str, Any], bool]:
    at_once = n * PER_DEVICE
    with ExitStack() as stack:
        profiles = Path(stack.enter_context(TemporaryDirectory(prefix=SCRATCH)))
        one = stack.enter_context(devices(1, cores, at_once, say, profiles))
        many = stack.enter_context(devices(n, cores, at_once, say, profiles))
        advised = many.report()["plan"]
        n_advised = len({stage["peer"] for stage in advised["stages"]})
        unpinned = many.measure(at_once)
        many.learn(at_once)
        rows = many.report()["plan"]["micro_batch"]
        times_us = many.stage_times_us(rows, cores) if n == N_STAGES else []
        pairs = [in_turn(one, many, at_once, number % 2 == 1) for number in range(PAIRS)]
        if times_us:
            again_us = many.stage_times_us(rows, cores)
            times_us = [round(sum(both) / 2) for both in zip(times_us, again_us, strict=True)]
        many.measure(at_once, ROUNDS_SATURATED)
        lag, besides = many.loop_lag(), many.pass_ms()
        alone_all = one.measure(at_once)
        rounds = [in_rounds(many, at_once)]
        if n == N_STAGES:
            many.pin_uneven()
            rounds.append(in_rounds(many, at_once))
    pairs.sort(key=ratio_of)
    alone, together = pairs[PAIRS // 2]
    ratio = ratio_of((alone, together))
    is_met = ratio >= wanted and all(told["is_met"] for told in rounds)
    told = {
        "ratio": round(ratio, 2),
        "ratios": [round(ratio_of(pair), 2) for pair in pairs],
        "wanted": wanted,
        "all": together,
        "one": alone,
        "one_same_load": alone_all,
        "same_load_ratio": round(together["tokens_per_s"] / alone_all["tokens_per_s"], 2),
        "advised": {"devices": n_advised, **unpinned},
        "loop_lag_ms": lag,
        "pass_besides_ms": besides,
        "no_bubbles_over_bubbles": rounds,
    }
    if times_us:
        told["pipeline"] = efficiency(rows, at_once, times_us, together)
        is_met = is_met and told["pipeline"]["efficiency"] >= EFFICIENCY
    return told, is_met


Pair = tuple[dict[str, Any], dict[str, Any]]
"""What one device gives with its share of the requests, and what all give."""


def in_turn(one: Devices, many: Devices, at_once: int, is_all_first: bool) -> Pair:
    if is_all_first:
        together = many.measure(at_once)
        return one.measure(PER_DEVICE), together
    return one.measure(PER_DEVICE), many.measure(at_once)


def ratio_of(pair: Pair) -> float:
    alone, together = pair
    return float(together["tokens_per_s"] / alone["tokens_per_s"])


def in_rounds(many: Devices, at_once: int) -> dict[str, Any]:
    """No-bubbles against bubbles, which is measured before and after it: the paper's closed form
    says by how much it is better."""
    closed_form, found = many.closed_form(at_once), []
    for schedule in ("bubbles", "no-bubbles", "bubbles"):
        many.say(f"schedule {schedule}")
        many.swarm.set(many.names[0], "schedule", schedule)
        found.append(many.measure(at_once, generate=GENERATE_IN_ROUNDS))
    many.swarm.set(many.names[0], "schedule", "no-bubbles")
    before, without, after = (one["steady_tokens_per_s"] for one in found)
    if not before or not after:
        raise FaultError("there was no time in which all requests were decoding")
    ratio = without / statistics.mean((before, after))
    return {
        "plan": found[1]["plan"],
        "rows": found[1]["rows_per_pass"],
        "tokens_per_s": {"bubbles": [before, after], "no-bubbles": without},
        "ratio": round(ratio, 3),
        "closed_form": round(closed_form, 3),
        "wanted": ROUNDS_WITHIN,
        "is_met": ratio >= 1 and abs(ratio / closed_form - 1) <= ROUNDS_WITHIN,
    }


def efficiency(
    rows: int, n_requests: int, times_us: list[int], together: dict[str, Any]
) -> dict[str, Any]:
    """Tokens per second against what the slowest stage alone would give.  Of the time in which all
    requests decode; what prompts, and the last answers by themselves, take is beside it."""
    most = rows * 1e6 / max(times_us)
    return {
        "micro_batches": -(-n_requests // rows),
        "rows": rows,
        "stage_ms": [round(time / 1e3, 2) for time in times_us],
        "slowest_stage_tokens_per_s": round(most, 1),
        "efficiency": round(together["steady_tokens_per_s"] / most, 3),
        "wanted": EFFICIENCY,
        "with_prompts_and_ends": round(together["tokens_per_s"] / most, 3),
    }


def lone(say: Say) -> tuple[dict[str, Any], bool]:
    """Two devices that have a core each, under one plan."""
    paces: dict[str, list[float]] = {"latency": [], "throughput": []}
    plans = set()
    with devices(2, None, 2 * PER_DEVICE, say) as two:
        two.pin_all(2 * PER_DEVICE)
        for number in range(LONE_PAIRS):
            for objective in sorted(paces, reverse=number % 2 == 1):
                two.set_objective(objective)
                plans.add(two.report()["plan"]["plan_id"])
                found = two.measure(1, LONE_REQUESTS)
                paces[objective].append(found["ms_per_token"]["p50"])
        two.set_objective("throughput")
        two.measure(2 * PER_DEVICE, ROUNDS_SATURATED)
        lag = two.loop_lag()
    medians = {objective: statistics.median(of_it) for objective, of_it in paces.items()}
    slower = medians["throughput"] / medians["latency"] - 1
    worst_ms = max(one["p99"] for one in lag.values())
    told = {
        "ms_per_token": {objective: round(value, 2) for objective, value in medians.items()},
        "throughput_slower_by": round(slower, 3),
        "wanted": LONE_SHARE,
        "plans": len(plans),
        "loop_lag_ms": lag,
        "loop_lag_p99_wanted": LAG_P99_MS,
    }
    return told, slower <= LONE_SHARE and len(plans) == 1 and worst_ms <= LAG_P99_MS
