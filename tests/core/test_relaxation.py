"""The bound for more devices than can be searched: never above what a plan costs, and near."""

from __future__ import annotations

import statistics

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core import large, pool
from edgeshard_p2p.core.plan import Goal
from edgeshard_p2p.core.planner import answer, choose
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
        everyone = pool.everyone_of(made, list(made.devices), sources)
        fit = pool.fit_of(everyone, batch)
        bound = lower_bound(pool.chain_of(everyone), fit)
        assert bound is not None
        steps = oracle.cost(made, best) * 64 * len(best.sources)
        assert steps.denominator == 1
        assert bound.cost < (steps + 1) * everyone.ranks, f"seed {seed}"
        near.append(bound.cost / (int(steps) * everyone.ranks or 1))
    assert len(near) > 50
    assert statistics.median(near) > 0.98


def test_what_is_searched_in_part_has_a_bound_and_the_same_plan_every_time() -> None:
    model = shipped_spec("llama2-7b")
    assert model is not None
    for seed in range(3):
        made = different_devices(16, seed, model, Goal())
        found = answer(made)
        assert found.prediction is not None
        assert found.bound_us is not None
        assert found.reason.startswith("shared stages planned over")
        assert 0 < found.bound_us <= found.prediction.latency_us < 1.1 * found.bound_us
        assert choose(made) == choose(made)


def test_the_bound_holds_for_the_best_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shipped_spec("llama2-7b")
    assert model is not None
    made = different_devices(13, 0, model, Goal())
    monkeypatch.setattr(large, "CANDIDATES_MAX", 6)
    monkeypatch.setattr(large, "STATES_MAX", 0)
    bound_us = answer(made).bound_us
    monkeypatch.undo()
    best = answer(made)
    assert best.prediction is not None
    assert best.bound_us == best.prediction.latency_us
    assert bound_us is not None
    assert 0 < bound_us <= best.prediction.latency_us
