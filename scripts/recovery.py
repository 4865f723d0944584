"""What ``scripts/bench recovery`` runs: many faults, one after another, in one swarm.

Three peers on loopback hold the small model in three stages, pinned; any two of them could.  At
token 32 of 64 something happens to the last stage; afterwards everything is put right, and the
next one follows.  A partition needs a swarm of its own, in network namespaces; and so does each
device that gets slow, whose plan is not pinned, since that would keep it: there the answer is
longer, so that there is something left to go faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edgeshard_p2p.faults import figures as fig
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.local import LocalDevices
from edgeshard_p2p.faults.namespaces import why_not
from edgeshard_p2p.faults.scenario import FaultScenario, RequestEntry, read_scenario
from edgeshard_p2p.faults.swarm import FaultSwarm, Outcome
from edgeshard_p2p.faults.telling import replay_of
from edgeshard_p2p.model.library import fetch_demo_model

SCENARIOS = Path(__file__).parent / "faults"
FAULTS = {"kill": 30, "freeze": 30, "rejoin": 10, "partition": 10, "slow": 10}
QUICK = 5
LIMIT_S = 43 * 60
"""No fault begins after this."""

Say = Callable[[str], None]


@dataclass
class Tally:
    """Of one kind of fault."""

    outcomes: list[Outcome] = field(default_factory=list)
    restored_ms: list[float | None] = field(default_factory=list)
    """From the start or the thaw of the lost peer, or the heal of the network, until all serve
    one plan with it; of ``rejoin`` at most, since that begins in the middle of the answer."""

    def figures(self) -> dict[str, Any]:
        times = [outcome.times() for outcome in self.outcomes]
        tokens = [outcome.tokens for outcome in self.outcomes]
        replays = [replay_of(outcome) for outcome in self.outcomes]
        return {
            "faults": len(self.outcomes),
            "detected_ms": _spread(t.detected_ms for t in times),
            "replanned_ms": _spread(t.replanned_ms for t in times),
            "resumed_ms": _spread(t.resumed_ms for t in times),
            "restored_ms": _spread(self.restored_ms),
            "stall_ms": _spread(fig.stall_ms(outcome.observed) for outcome in self.outcomes),
            "replay_ms_per_token": _spread(replays)["p50"],
            "tokens": {
                "lost": sum(t.lost for t in tokens),
                "doubled": sum(t.doubled for t in tokens),
                "changed": sum(t.changed for t in tokens),
            },
            "not_as_expected": sum(bool(outcome.unexpected()) for outcome in self.outcomes),
        }


def _spread(values: Iterable[float | None]) -> dict[str, float | None]:
    """Of those that happened."""
    known = [value for value in values if value is not None]
    if not known:
        return {"p50": None, "max": None}
    return {"p50": round(statistics.median(known), 2), "max": max(known)}


def scenario_of(kind: str) -> FaultScenario:
    """The scenario of that name, for this benchmark's request; what is put right afterwards need
    not be a step."""
    read = read_scenario(SCENARIOS / f"{kind}.toml")
    steps = tuple(step for step in read.steps if step.do != "heal")
    generate = read.request.generate if kind == "slow" else 64
    return replace(read, request=RequestEntry(prompt_tokens=64, generate=generate), steps=steps)


def in_turns(counts: dict[str, int]) -> Iterator[str]:
    """Kinds in such an order that each is as far as the others, wherever it is broken off."""
    turns = [((k + 0.5) / n, kind) for kind, n in counts.items() for k in range(n)]
    return iter([kind for _, kind in sorted(turns)])


def recovery(kinds: tuple[str, ...], is_quick: bool, say: Say) -> tuple[dict[str, Any], bool]:
    """The figures by kind, and whether all faults were done and went as expected."""
    ends_at = time.monotonic() + LIMIT_S
    counts = {kind: QUICK if is_quick else FAULTS[kind] for kind in kinds or FAULTS}
    tallies = {kind: Tally() for kind in counts}
    missing = why_not() if "partition" in counts else ""
    if missing:
        say(f"no partitions: they need {missing}")
    together = {kind: n for kind, n in counts.items() if kind not in ("partition", "slow")}
    cut_off = {} if missing else {k: n for k, n in counts.items() if k == "partition"}
    # Who was slow is held to be for a minute: the next one would not be the same.
    parts = [together, cut_off, *({"slow": 1} for _ in range(counts.get("slow", 0)))]
    model = str(fetch_demo_model(say).path)
    for part in parts:
        try:
            if part and time.monotonic() < ends_at:
                _do_all(part, model, tallies, ends_at, say)
        except FaultError as error:
            say(f"given up: {error}")
    told = {kind: tally.figures() for kind, tally in tallies.items()}
    is_whole = all(len(tallies[kind].outcomes) == n for kind, n in counts.items())
    return told, is_whole and not any(figures["not_as_expected"] for figures in told.values())


def _do_all(
    counts: dict[str, int], model: str, tallies: dict[str, Tally], ends_at: float, say: Say
) -> None:
    scenarios = {kind: scenario_of(kind) for kind in counts}
    first = next(iter(scenarios.values()))
    with LocalDevices(first, model) as devices:
        swarm = FaultSwarm(first, devices, say)
        swarm.open()
        for kind in in_turns(counts):
            if time.monotonic() > ends_at:
                say("out of time")
                return
            outcome = swarm.disturb(scenarios[kind])
            tallies[kind].outcomes.append(outcome)
            times = outcome.times()
            said = "; ".join(outcome.unexpected()) or "as expected"
            say(
                f"{kind} {len(tallies[kind].outcomes)}: detected {times.detected_ms}, re-planned "
                f"{times.replanned_ms}, resumed {times.resumed_ms} ms; {said}"
            )
            restored_ms = swarm.repair()
            tallies[kind].restored_ms.append(restored_ms)
            say(f"as before {restored_ms} ms after it was put right")
