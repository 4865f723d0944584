"""The search for swarms too large to be searched whole, held against what small ones must give."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core import solvers
from edgeshard_p2p.core.answers import Answer
from edgeshard_p2p.core.plan import Goal, Snapshot
from edgeshard_p2p.core.planner import answer
from edgeshard_p2p.sim.pools import different_devices
from edgeshard_p2p.specs import shipped_spec
from tests.core import planner_oracle as oracle

N_SEEDS = 150
GOALS = (
    Goal(),
    Goal(private_head=True),
    Goal("throughput", micro_batch=1),
    Goal("throughput", micro_batch=1, private_head=True),
)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every swarm counts as too large."""
    monkeypatch.setattr(solvers, "STATES_MAX", 0)


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.objective}-{goal.private_head}")
def test_what_it_finds_can_be_served_and_is_mostly_the_best(goal: Goal) -> None:
    n_found = n_best = n_missed = 0
    for seed in range(N_SEEDS):
        made = replace(oracle.random_swarm(seed), goal=goal)
        found, best = answer(made), oracle.best_layout(made)
        if found.layout is None:
            n_missed += best is not None
            continue
        assert best is not None, f"seed {seed}"
        assert oracle.is_linked(made, found.layout), f"seed {seed}"
        assert oracle.fits(made, found.layout, found.batch), f"seed {seed}"
        assert found.batch <= best[1], f"seed {seed}"
        n_found += 1
        n_best += is_as_good(made, found)
    assert n_found > 50
    assert n_best > 0.9 * n_found
    assert n_missed < 0.1 * n_found


def is_as_good(made: Snapshot, found: Answer) -> bool:
    """Checks the bound as well, which is on plans for at least this batch."""
    assert found.layout is not None
    assert found.bound_us is not None
    assert found.prediction is not None
    if made.goal.objective == "throughput":
        best = oracle.pipelines(made, 1)
        assert best is not None
        if found.batch == best[3]:
            assert found.bound_us <= best[2]
        return found.prediction.iteration_us <= best[2]
    least = oracle.best_layout(made)
    assert least is not None
    if found.batch == least[1]:
        assert found.bound_us <= oracle.latency(made, least[0])
    return oracle.cost(made, found.layout) <= oracle.cost(made, least[0])


@pytest.mark.parametrize(
    ("objective", "batch", "most"), [("latency", 1, 1.1), ("throughput", 64, 2.0)]
)
def test_large_pools_get_a_plan_near_its_bound_and_the_same_one_every_time(
    objective: str, batch: int, most: float
) -> None:
    model = shipped_spec("llama2-70b")
    assert model is not None
    made = different_devices(32, 0, model, Goal(objective, micro_batch=1))
    made = replace(made, workload=replace(made.workload, batch=batch))
    found = answer(made)
    assert found.prediction is not None
    assert found.bound_us is not None
    assert 0 < found.bound_us <= found.prediction.iteration_us < most * found.bound_us
    assert answer(made) == found


def test_pipelines_of_different_devices_are_nearly_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = shipped_spec("llama2-7b")
    assert model is not None
    made = different_devices(6, 0, model, Goal("throughput", micro_batch=1))
    made = replace(made, workload=replace(made.workload, batch=16))
    best = answer(made)
    monkeypatch.setattr(solvers, "STATES_MAX", 0)
    found = answer(made)
    assert found.prediction is not None
    assert best.prediction is not None
    least = best.prediction.bottleneck_us
    assert least <= found.prediction.bottleneck_us < 1.03 * least
