"""What ``scripts/bench overload`` runs: ten times as many users as there is room for, all the time.

Two peers on loopback hold the small model.  Each request draws its tokens with one of a few seeds,
and its answer has to be the one that was given when nobody else was there; who is refused comes
again when told.  Meanwhile the peers' memory is watched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psutil

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
from edgeshard_p2p.load.figures import figures
from edgeshard_p2p.load.traffic import Load, Served, Traffic
from edgeshard_p2p.model.library import fetch_demo_model

NAMES, PIN = ("amy", "ben"), "amy:0-15,ben:15-32"
BATCH, TIMES = 8, 10
PROMPT, GENERATE, CONTEXT = 32, 32, 128
SEEDS = 16
TEMPERATURE = 1.0
REQUESTS_MAX = 1_000_000
AT_CAPACITY_SHARE = 0.1
"""Of the time of the overload, for the same without one; at least AT_CAPACITY_S."""
AT_CAPACITY_S = 20.0
SEEN_THROUGH_S = 300.0
"""For what was begun when the time is over; what is not answered by then has failed."""
WATCH_S, TELL_S, IDLE_S = 1.0, 30.0, 90.0
WARM_SHARE, GROWTH_MAX = 0.2, 0.02
"""Memory is flat: after a first part of the time, the most of what follows in its second half is
not above the most in its first by more than so much."""
LATER_MAX = 2.0
"""Times as long between two tokens (p99) as without the overload."""

Say = Callable[[str], None]
Answers = dict[int, list[int]]
"""Token ids by seed."""


@dataclass
class Memory:
    """What processes hold, and those that they started, over time."""

    pids: dict[str, int]
    samples: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    """Seconds, and bytes by name."""

    def watched(self) -> AbstractContextManager[None]:
        begun = time.monotonic()

        def watch() -> None:
            now = {name: resident_bytes(pid) for name, pid in self.pids.items()}
            self.samples.append((time.monotonic() - begun, now))

        return again_and_again(WATCH_S, watch)

    def told(self) -> dict[str, dict[str, float]]:
        return {name: self._told(name) for name in self.pids}

    def _told(self, name: str) -> dict[str, float]:
        of_peer = [seen[name] for _, seen in self.samples]
        warm = of_peer[int(len(of_peer) * WARM_SHARE) :]
        half = len(warm) // 2
        before, after = max(warm[:half], default=0), max(warm[half:], default=0)
        return {
            "first_mib": round(of_peer[0] / 2**20, 1) if of_peer else 0.0,
            "max_mib": round(max(of_peer, default=0) / 2**20, 1),
            "growth": round(after / before - 1, 4) if before else 0.0,
        }


def resident_bytes(pid: int) -> int:
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
    return total


@dataclass
class Swarm:
    swarm: FaultSwarm
    devices: LocalDevices
    say: Say

    def put(self, concurrency: int, requests: int, for_s: float = 0.0) -> list[Served]:
        """So many at once, until all are answered or, unless that is 0, for so long."""
        load = Load((self.swarm.prompt,), requests, concurrency, GENERATE, TEMPERATURE, seeds=SEEDS)
        traffic = Traffic(
            load, [self.devices.address(NAMES[0])], self.devices.security, lambda: None
        )
        ends = {for_s: traffic.close, for_s + SEEN_THROUGH_S: traffic.end} if for_s else {}
        timers = [threading.Timer(after_s, act) for after_s, act in ends.items()]
        for timer in timers:
            timer.start()
        try:
            return traffic.run()
        finally:
            for timer in timers:
                timer.cancel()

    def lone_answers(self) -> Answers:
        served = self.put(1, SEEDS)
        failed = [one.error for one in served if not one.is_whole]
        if failed:
            raise FaultError(f"an undisturbed run ends early: {failed[0]}")
        return {one.index: one.token_ids for one in served}


@contextmanager
def opened(say: Say) -> Iterator[Swarm]:
    flags = ["--context", str(CONTEXT), "--batch", str(BATCH), "--objective", "throughput"]
    scenario = FaultScenario(
        "overload",
        "",
        SwarmEntry(flags=flags, pin=PIN),
        tuple(PeerEntry(name, source=name == NAMES[0]) for name in NAMES),
        RequestEntry(prompt_tokens=PROMPT, generate=1),
        (),
        ExpectEntry(),
    )
    with LocalDevices(scenario, str(fetch_demo_model(say).path)) as devices:
        swarm = FaultSwarm(scenario, devices, say)
        swarm.open()
        yield Swarm(swarm, devices, say)


def overload(minutes: float, say: Say) -> tuple[dict[str, Any], bool]:
    """The figures, and whether all was as it should be."""
    for_s = 60 * minutes
    with opened(say) as swarm:
        say(f"{SEEDS} answers, one after another")
        answers = swarm.lone_answers()
        say(f"{BATCH} at once, which there is room for")
        calm = swarm.put(BATCH, REQUESTS_MAX, max(AT_CAPACITY_S, AT_CAPACITY_SHARE * for_s))
        memory = Memory({name: swarm.devices.pid(name) for name in NAMES})
        say(f"{TIMES * BATCH} at once for {minutes:g} min")
        with memory.watched(), telling(memory, for_s, say):
            served = swarm.put(TIMES * BATCH, REQUESTS_MAX, for_s)
        left_over, ended = swarm.swarm.left_over(IDLE_S), swarm.devices.why_ended()
    calm_told, told = told_of(calm, answers), told_of(served, answers)
    of_memory = memory.told()
    later = told["inter_token_ms"]["p99"] / max(1e-3, calm_told["inter_token_ms"]["p99"])
    wrong = [
        *(f"{told[kind]} {kind}" for kind in ("failed", "changed", "failovers") if told[kind]),
        *([] if told["refusals"] else ["nobody was refused"]),
        *([f"{left_over} requests left over"] if left_over else []),
        *([ended] if ended else []),
        *(f"memory of {n} grows" for n, one in of_memory.items() if one["growth"] > GROWTH_MAX),
        *([f"{later:.1f} times as long between two tokens"] if later > LATER_MAX else []),
    ]
    figures_told = {
        "minutes": minutes,
        "batch": BATCH,
        "clients": TIMES * BATCH,
        "overload": told,
        "at_capacity": calm_told,
        "inter_token_p99_ratio": round(later, 2),
        "memory": of_memory,
        "wrong": wrong,
    }
    return figures_told, not wrong


def telling(memory: Memory, for_s: float, say: Say) -> AbstractContextManager[None]:
    """Progress."""

    def tell() -> None:
        at_s, held = memory.samples[-1] if memory.samples else (0.0, {})
        mib = ", ".join(f"{name} {n / 2**20:.0f} MiB" for name, n in held.items())
        is_done = at_s > for_s
        what = "what was begun is seen through" if is_done else f"{at_s:.0f} of {for_s:.0f} s"
        say(f"{what}: {mib}")

    return again_and_again(TELL_S, tell)


@contextmanager
def again_and_again(pause_s: float, act: Callable[[], None]) -> Iterator[None]:
    """Beside what is done meanwhile."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(pause_s):
            act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def told_of(served: Sequence[Served], answers: Answers) -> dict[str, Any]:
    seen = figures(served)
    whole = [one for one in served if one.is_whole]
    return {
        "requests": seen.requests,
        "failed": seen.failed,
        "refusals": seen.refusals,
        "failovers": seen.failovers,
        "changed": sum(one.token_ids != answers[one.index % SEEDS] for one in whole),
        "tokens_per_s": seen.tokens_per_s,
        "ttft_ms": msgspec.to_builtins(seen.ttft_ms),
        "inter_token_ms": msgspec.to_builtins(seen.inter_token_ms),
        "errors": sorted({one.error for one in served if one.error})[:3],
    }
