"""``--standby``: what would be needed after a loss is here before it."""

from __future__ import annotations

from functools import partial

import pytest

from edgeshard_p2p.core.peer import CoreConfig
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.sim import device
from edgeshard_p2p.sim.faults import run_seed
from edgeshard_p2p.sim.simulator import Simulator
from tests.sim.swarms import HALF, answer, core, settle
from tests.sim.test_scenarios import LONG, PROMPT, submit_and_watch


def swarm_with(names: str, budget_bytes: int, standby: bool = True) -> Simulator:
    swarm = Simulator(7)
    for name in names:
        swarm.add(name, budget_bytes, is_source=name == "a")
    for name in names:
        swarm.start(name, join=("a",) if name != "a" else (), standby=standby)
    assert settle(swarm) is not None
    return swarm


def plan_of(swarm: Simulator, name: str = "a") -> Plan:
    plan = core(swarm, name).planning.rollout.active_plan()
    assert plan is not None
    return plan


def held(swarm: Simulator, name: str) -> set[int]:
    rollout = core(swarm, name).planning.rollout
    return {*rollout.units(), *rollout.standby_units()}


def units_of(swarm: Simulator, name: str) -> set[int]:
    plan = plan_of(swarm)
    return {u for units in plan.units_of(core(swarm, name).me) for u in units}


def victim_of(swarm: Simulator) -> str:
    return next(stage.peer.name for stage in plan_of(swarm).stages if stage.peer.name != "a")


def loads_after_loss(swarm: Simulator) -> int:
    """Units that the next plan still had to wait for, on all peers together."""
    victim = victim_of(swarm)
    before = {name: held(swarm, name) for name in swarm.peers if name != victim}
    swarm.crash(victim)
    assert settle(swarm) is not None
    return sum(len(units_of(swarm, name) - before[name]) for name in before)


def test_the_next_plan_is_here_before_the_loss() -> None:
    assert loads_after_loss(swarm_with("abcd", HALF, standby=False)) > 0
    swarm = swarm_with("abcd", HALF)
    swarm.run(swarm.now + 20.0)
    plan = plan_of(swarm)
    assert any(held(swarm, name) > units_of(swarm, name) for name in "abcd")
    assert loads_after_loss(swarm) == 0
    assert plan_of(swarm).id != plan.id
    answer(swarm, swarm.submit("a", PROMPT, 8))


def test_it_comes_to_rest_and_the_plan_stays() -> None:
    swarm = swarm_with("abcd", HALF)
    plan = plan_of(swarm).id
    swarm.run(swarm.now + 10.0)
    loads = {name: core(swarm, name).planning.rollout._loads for name in "abcd"}
    swarm.run(swarm.now + 20.0)  # Links are measured anew after that.
    assert {name: core(swarm, name).planning.rollout._loads for name in "abcd"} == loads
    assert plan_of(swarm).id == plan
    published = {u for r in core(swarm, "a").planning.held_of(core(swarm, "b").me).units for u in r}
    assert published == units_of(swarm, "b")


@pytest.mark.parametrize("seeds", [range(10), range(10, 20)], ids=str)
def test_faults_do_no_more_harm_with_it(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory, among the rest, is checked after every event."""
    monkeypatch.setattr(device, "CoreConfig", partial(CoreConfig, standby=True))
    for seed in seeds:
        run_seed(seed)


def test_nothing_is_loaded_while_a_request_runs() -> None:
    swarm = swarm_with("abcd", HALF, standby=False)
    request = submit_and_watch(swarm, "a")
    for name in "abcd":
        core(swarm, name).planning.standby.is_on = True
    busy = {name: held(swarm, name) for name in "abcd"}
    stages = {stage.peer.name for stage in plan_of(swarm).stages} | {"a"}
    while request.finished is None:
        swarm.run(swarm.now + 0.02)
        if request.finished is None:
            assert {n: held(swarm, n) for n in stages} == {n: busy[n] for n in stages}
    assert len(request.tokens) == LONG
    swarm.run(swarm.now + 20.0)
    assert any(held(swarm, name) > busy[name] for name in "abcd")


def test_unit_that_cannot_be_loaded_keeps_nobody_out() -> None:
    swarm = swarm_with("abcd", HALF, standby=False)
    plan = plan_of(swarm).id
    for name in "abcd":
        swarm.peers[name].loads_to_fail = 1
        core(swarm, name).planning.standby.is_on = True
    swarm.run(swarm.now + 30.0)
    assert plan_of(swarm).id == plan
    assert not [f for n in "abcd" for f in core(swarm, n).planning._failures]
    answer(swarm, swarm.submit("a", PROMPT, 8))
