"""``exact`` beside the paper's algorithms on random pools: how often, and by how much, either is
better.  What both find is judged by ``core.layout.predict`` alone.

EdgeShard's algorithm 1 may come back to a device, which no peer serves and ``exact`` never does;
such plans are counted apart.  Its algorithm 2 uses each device once.
"""

from __future__ import annotations

import statistics
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.answers import Answer, iteration_us
from edgeshard_p2p.core.baselines import plan_by
from edgeshard_p2p.core.plan import Goal, Snapshot
from edgeshard_p2p.core.planner import answer
from edgeshard_p2p.core.scenario import Scenario
from edgeshard_p2p.sim.pools import different_devices, with_memory
from edgeshard_p2p.specs import shipped_spec

MEMORY = {"tight": 1.1, "slack": 3.0}
"""How many times a pool holds the model and its KV."""

_PIPELINE_BATCH, _PIPELINE_CONTEXT = 16, 128
"""The paper's 32 tokens of prompt and 96 of answer."""


class Pair(Struct, frozen=True):
    """What both found for one snapshot."""

    paper: Answer
    exact: Answer
    """For as many sequences as the paper's plan holds."""
    is_smaller: bool = False
    """The paper's plan holds fewer sequences than some other plan would."""

    @property
    def is_of_two(self) -> bool:
        return self.paper.layout is not None and self.exact.layout is not None

    @property
    def revisits(self) -> bool:
        return self.paper.layout is not None and self.paper.layout.revisits


def random_pool(seed: int, objective: str, times: float) -> Snapshot:
    """4 to 8 devices, all different, and 12 to 34 units of Llama 2 7B.  Of one seed devices and
    links are the same whatever ``times``; throughput is one row at a time."""
    whole = shipped_spec("llama2-7b")
    assert whole is not None
    n_devices, n_units = 4 + seed % 5, 12 + 7 * seed % 23
    model = replace(whole, block_params=whole.block_params[: n_units - 2])
    if objective == "latency":
        return with_memory(different_devices(n_devices, seed, model, Goal()), times)
    made = different_devices(n_devices, seed, model, Goal(objective, micro_batch=1))
    workload = replace(made.workload, batch=_PIPELINE_BATCH, context=_PIPELINE_CONTEXT)
    return with_memory(replace(made, workload=workload), times)


def compared(snapshot: Snapshot) -> Pair:
    """For a snapshot with one source.  ``exact`` plans for the most sequences that any plan holds;
    where the paper's plan holds fewer, ``exact`` is asked for as many."""
    order = sorted(snapshot.devices, key=lambda device: (not device.is_source, device.peer))
    paper = plan_by("paper", Scenario(snapshot, tuple(device.peer.name for device in order)))
    exact = answer(snapshot)
    if paper.layout is None or not paper.batch < exact.batch:
        return Pair(paper, exact)
    workload = replace(snapshot.workload, batch=paper.batch)
    return Pair(paper, answer(replace(snapshot, workload=workload)), is_smaller=True)


def tally(pairs: list[Pair]) -> dict[str, Any]:
    found = [(pair.paper.layout is not None, pair.exact.layout is not None) for pair in pairs]
    both = [pair for pair in pairs if pair.is_of_two]
    return {
        "pools": len(pairs),
        "neither": found.count((False, False)),
        "exact_alone": found.count((False, True)),
        "paper_alone": found.count((True, False)),
        "paper_holds_fewer": sum(pair.is_smaller for pair in both),
        "revisits": _sides([pair for pair in both if pair.revisits]),
        "no_revisits": _sides([pair for pair in both if not pair.revisits]),
    }


def _sides(pairs: list[Pair]) -> dict[str, Any]:
    """How often each is better, and by how many percent the other's time between two tokens of a
    sequence is longer."""
    times = [(iteration_us(pair.paper), iteration_us(pair.exact)) for pair in pairs]
    return {
        "pools": len(pairs),
        "paper_better": _spread([exact / paper - 1 for paper, exact in times if paper < exact]),
        "exact_better": _spread([paper / exact - 1 for paper, exact in times if exact < paper]),
    }


def _spread(shares: list[float]) -> dict[str, Any]:
    if not shares:
        return {"pools": 0}
    return {
        "pools": len(shares),
        "median_percent": round(100 * statistics.median(shares), 2),
        "most_percent": round(100 * max(shares), 2),
    }
