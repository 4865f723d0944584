"""The bound for more devices than can be searched: never above what a plan costs, and near."""

from __future__ import annotations

import statistics

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core import pool, solvers
from edgeshard_p2p.core.latency_dp import UNREACHABLE, Problem
from edgeshard_p2p.core.plan import Goal
from edgeshard_p2p.core.planner import answer
from edgeshard_p2p.core.relaxation import lower_bound
from edgeshard_p2p.sim.pools import different_devices
from edgeshard_p2p.specs import shipped_spec
from tests.core import planner_oracle as oracle


def test_no_plan_of_small_swarms_is_below_the_bound() -> None:
    near = []
    for seed in range(200):
        made = replace(oracle.random_swarm(seed), goal=Goal(private_head=seed % 2 == 1))
        found = oracle.best_layout(made)
        if found is None or not found[0].stages:
            continue
        best, batch = found
        sources = [device for device in made.devices if device.peer in best.sources]
        everyone = pool.pool_of(made, list(made.devices), sources)
        kinds = [[device] for device in range(len(everyone.shared))]
        chain, fit = pool.chain_of(everyone), pool.fit_of(everyone, batch)
        bound = lower_bound(Problem.of(chain, fit, kinds), UNREACHABLE >> 4)
        steps = oracle.cost(made, best) * 64 * len(best.sources)
        assert steps.denominator == 1
        assert bound < (steps + 1) * everyone.ranks, f"seed {seed}"
        near.append(bound / (int(steps) * everyone.ranks or 1))
    assert len(near) > 50
    assert statistics.median(near) > 0.98


def test_the_bound_holds_for_the_best_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shipped_spec("llama2-7b")
    assert model is not None
    made = different_devices(13, 0, model, Goal())
    monkeypatch.setattr(solvers, "STATES_MAX", 0)
    bound_us = answer(made).bound_us
    monkeypatch.undo()
    best = answer(made)
    assert best.prediction is not None
    assert best.bound_us == best.prediction.latency_us
    assert bound_us is not None
    assert 0 < bound_us <= best.prediction.latency_us
