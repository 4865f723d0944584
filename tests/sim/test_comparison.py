"""``exact`` beside the paper on a small part of the pools of ``scripts/bench paper``."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.answers import Answer
from edgeshard_p2p.core.footprint import needed_bytes, offered_bytes
from edgeshard_p2p.core.layout import missing_bytes, predict
from edgeshard_p2p.sim.comparison import MEMORY, Pair, compared, random_pool, tally

N_SEEDS = {"latency": 80, "throughput": 20}


def pairs_of(objective: str, memory: str) -> list[Pair]:
    return [
        compared(random_pool(seed, objective, MEMORY[memory])) for seed in range(N_SEEDS[objective])
    ]


@pytest.mark.parametrize("memory", MEMORY)
def test_of_least_latency_only_a_plan_that_revisits_can_beat_exact(memory: str) -> None:
    pairs = pairs_of("latency", memory)
    told = tally(pairs)
    assert told["no_revisits"]["pools"] > 0
    assert told["no_revisits"]["paper_better"]["pools"] == 0
    assert told["revisits"]["pools"] > 0
    assert all(pair.revisits for pair in pairs if pair.exact.layout is None and pair.paper.layout)


@pytest.mark.parametrize("memory", MEMORY)
def test_of_throughput_the_paper_revisits_nothing_and_is_never_better(memory: str) -> None:
    pairs = pairs_of("throughput", memory)
    told = tally(pairs)
    assert told["paper_alone"] == told["revisits"]["pools"] == 0
    assert told["no_revisits"]["pools"] > 0
    assert told["no_revisits"]["paper_better"]["pools"] == 0
    for pair in pairs:
        if pair.is_of_two:
            assert pair.exact.batch == pair.paper.batch


def test_what_revisits_is_judged_by_the_same_rules() -> None:
    pools = [random_pool(seed, "latency", MEMORY["tight"]) for seed in range(20)]
    judged = [(pool, pair.paper) for pool in pools if (pair := compared(pool)).revisits]
    assert judged
    for pool, paper in judged:
        assert paper.layout is not None
        assert paper.prediction == predict(pool, paper.layout, 1, 1)
        assert missing_bytes(pool, paper.layout, 1) == {}


def test_pools_of_one_seed_differ_in_memory_alone() -> None:
    tight, slack = (random_pool(3, "throughput", times) for times in MEMORY.values())
    assert (tight.model, tight.workload, tight.links) == (slack.model, slack.workload, slack.links)
    for pool, times in zip((tight, slack), MEMORY.values(), strict=True):
        needed = needed_bytes(pool, 1, pool.workload.batch)
        assert offered_bytes(pool) == pytest.approx(times * needed, rel=1e-6)
    assert {random_pool(seed, "latency", 1.1).model.n_units for seed in range(23)} == {
        *range(12, 35)
    }


def test_the_tally_tells_who_is_better_by_how_much() -> None:
    best, none = compared(random_pool(0, "latency", MEMORY["slack"])).exact, Answer(None)
    assert best.prediction is not None
    longer = 5 * best.prediction.iteration_us // 4
    worse = replace(best, prediction=replace(best.prediction, iteration_us=longer))
    told = tally(
        [Pair(worse, best), Pair(best, worse), Pair(best, best), Pair(none, best),
         Pair(best, none), Pair(none, none)]
    )  # fmt: skip
    assert (told["pools"], told["exact_alone"], told["paper_alone"], told["neither"]) == (
        6,
        1,
        1,
        1,
    )
    spread = {"pools": 1, "median_percent": 25.0, "most_percent": 25.0}
    assert told["no_revisits"] == {"pools": 3, "paper_better": spread, "exact_better": spread}
