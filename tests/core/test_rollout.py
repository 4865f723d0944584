"""The life of plans at one peer, and of several peers that read each other's records."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.effects import KvPromise, LoadUnits, Log
from edgeshard_p2p.core.ids import PeerId, PlanId, UnitRange
from edgeshard_p2p.core.plan import Plan, Stage
from edgeshard_p2p.core.records import HeldRecord, ReadyPlan
from edgeshard_p2p.core.rollout import Life, Rollout
from tests.core.parts import MODEL, PLAN, SOLO, A, B, C, of

NEXT = replace(PLAN, stages=(Stage(C, UnitRange(2, 6)),))
"""0-1 a | 2-5 c"""
ROOMY, TIGHT = 10**9, 70_000
"""On c the first plan takes 24,384 bytes, the next 65,152, both together 114,304."""


class Peer:
    """A rollout, and what the records of the others say."""

    def __init__(self, me: PeerId = C, budget_bytes: int = ROOMY) -> None:
        self.rollout = Rollout(me, budget_bytes)
        self.held: dict[PeerId, HeldRecord] = {}
        self.gone: set[PeerId] = set()
        self.closed: set[PlanId] = set()

    def held_of(self, peer: PeerId) -> HeldRecord:
        return self.held.get(peer, HeldRecord())

    def reconcile(self) -> list[Log | LoadUnits]:
        return self.rollout.reconcile(
            self.held_of, lambda peer: peer not in self.gone, lambda plan: plan not in self.closed
        )

    def propose(self, plan: Plan) -> list[Log | LoadUnits]:
        self.rollout.propose(plan, MODEL)
        return self.reconcile()

    def others_say(self, **fields: Any) -> list[Log | LoadUnits]:
        for peer in (A, B, C):
            if peer != self.rollout.me:
                self.held[peer] = replace(self.held_of(peer), **fields)
        return self.reconcile()

    def loaded(self, effects: Sequence[Any]) -> list[Log | LoadUnits]:
        (load,) = of(LoadUnits, effects)
        self.rollout.on_loaded(load.load)
        return self.reconcile()

    def life(self, plan: Plan) -> Life | None:
        rolling = self.rollout.plans.get(plan.id)
        return rolling.life if rolling is not None else None

    def activate(self, plan: Plan) -> None:
        self.propose(plan)
        self.loaded(self.others_say(computed=plan.id))
        self.others_say(ready=(ReadyPlan(plan.id, 1),))
        assert self.life(plan) is Life.ACTIVE


# --- one peer -------------------------------------------------------------------------------


def test_plan_is_loaded_once_everyone_has_announced_it() -> None:
    peer = Peer()
    assert of(LoadUnits, peer.propose(PLAN)) == []
    peer.held[A] = HeldRecord(computed=PLAN.id)
    assert of(LoadUnits, peer.reconcile()) == []
    peer.held[B] = HeldRecord(computed=SOLO.id)
    assert of(LoadUnits, peer.reconcile()) == []
    assert peer.life(PLAN) is Life.PROPOSED
    peer.held[B] = HeldRecord(computed=PLAN.id)
    stage = KvPromise("stage", (4, 5), 2, 256)
    assert of(LoadUnits, peer.reconcile()) == [
        LoadUnits(1, MODEL.digest, "fp32", 4, (UnitRange(4, 6),), (stage,))
    ]
    assert peer.life(PLAN) is Life.LOADING
    assert of(LoadUnits, peer.reconcile()) == []


def test_ready_means_loaded_and_edges_answered() -> None:
    peer = Peer()
    peer.closed = {PLAN.id}
    peer.propose(PLAN)
    peer.loaded(peer.others_say(computed=PLAN.id))
    assert peer.life(PLAN) is Life.LOADING
    peer.closed.clear()
    peer.reconcile()
    assert peer.life(PLAN) is Life.READY
    assert peer.rollout.units() == (4, 5)
    peer.closed = {PLAN.id}
    peer.reconcile()
    assert peer.life(PLAN) is Life.LOADING


def test_plan_serves_once_everyone_is_ready() -> None:
    peer = Peer()
    peer.propose(PLAN)
    peer.loaded(peer.others_say(computed=PLAN.id))
    peer.held[A] = replace(peer.held[A], ready=(ReadyPlan(PLAN.id, 3),))
    peer.reconcile()
    assert (peer.life(PLAN), peer.rollout.active) == (Life.READY, None)
    peer.held[B] = replace(peer.held[B], ready=(ReadyPlan(PLAN.id, 1),))
    peer.reconcile()
    assert (peer.life(PLAN), peer.rollout.active_plan()) == (Life.ACTIVE, PLAN)


def test_peer_without_a_part_follows_all_the_same() -> None:
    peer = Peer(PeerId("d", 1))
    peer.activate(PLAN)
    assert peer.rollout.units() == ()


def test_late_word_of_an_earlier_load_is_ignored() -> None:
    peer = Peer()
    peer.activate(PLAN)
    peer.propose(NEXT)
    (load,) = of(LoadUnits, peer.others_say(computed=NEXT.id))
    peer.rollout.on_loaded(load.load - 1)
    assert not peer.rollout.plans[NEXT.id].is_loaded
    assert peer.rollout.on_load_failed(load.load - 1) is False


def test_newer_proposal_takes_the_place_of_one_that_is_loading() -> None:
    peer = Peer()
    peer.propose(PLAN)
    peer.others_say(computed=PLAN.id)
    peer.propose(NEXT)
    assert peer.life(PLAN) is None
    assert peer.rollout.retired == [(PLAN.id, "a newer plan took its place")]
    (load,) = of(LoadUnits, peer.others_say(computed=NEXT.id))
    assert load.units == (UnitRange(2, 6),)  # What both have in common is asked for once more.


def test_old_plan_serves_until_the_new_one_is_ready_then_drains() -> None:
    peer = Peer()
    peer.activate(PLAN)
    peer.propose(NEXT)
    effects = peer.others_say(computed=NEXT.id, active=PLAN.id, running=(PLAN.id,))
    (load,) = of(LoadUnits, effects)
    assert load.units == (UnitRange(2, 6),)
    assert load.kv == (KvPromise("stage", (2, 3, 4, 5), 4, 256),)  # The slots of both add up.
    assert peer.rollout.active == PLAN.id
    peer.loaded(effects)
    peer.others_say(ready=(ReadyPlan(PLAN.id, 1), ReadyPlan(NEXT.id, 2)))
    assert (peer.life(PLAN), peer.life(NEXT)) == (Life.DRAINING, Life.ACTIVE)
    peer.others_say(active=NEXT.id)
    assert peer.life(PLAN) is Life.DRAINING  # Something still runs on it.
    peer.others_say(running=())
    assert peer.life(PLAN) is None


def test_draining_plan_that_is_chosen_again_serves_again() -> None:
    peer = Peer()
    peer.activate(PLAN)
    peer.propose(NEXT)
    peer.loaded(peer.others_say(computed=NEXT.id, running=(PLAN.id,)))
    peer.others_say(ready=(ReadyPlan(PLAN.id, 1), ReadyPlan(NEXT.id, 2)))
    assert peer.life(PLAN) is Life.DRAINING
    peer.propose(PLAN)
    assert (peer.life(PLAN), peer.life(NEXT)) == (Life.ACTIVE, Life.DRAINING)
    assert peer.rollout.plans[PLAN.id].begun == 1  # What ran on it goes on.


def test_plan_with_a_peer_that_is_gone_is_retired_and_its_units_wait_for_the_next() -> None:
    peer = Peer()
    peer.activate(PLAN)
    peer.gone = {B}
    effects = peer.reconcile()
    assert peer.rollout.plans == {}
    assert (peer.rollout.active, peer.rollout.target) == (None, None)
    assert of(LoadUnits, effects) == []
    peer.rollout.propose_none()
    (load,) = of(LoadUnits, peer.reconcile())
    assert (load.units, load.kv) == ((), ())


def test_plan_that_comes_back_begins_anew() -> None:
    peer = Peer()
    peer.activate(PLAN)
    peer.gone = {B}
    peer.reconcile()
    peer.gone.clear()
    effects = peer.propose(PLAN)
    assert peer.rollout.plans[PLAN.id].begun == 2
    assert not peer.rollout.plans[PLAN.id].is_loaded
    assert of(LoadUnits, effects)


def test_no_plan_at_all_leaves_the_one_that_serves() -> None:
    peer = Peer()
    peer.activate(PLAN)
    peer.rollout.propose_none()
    peer.reconcile()
    assert (peer.life(PLAN), peer.rollout.active) == (Life.ACTIVE, PLAN.id)


# --- memory ---------------------------------------------------------------------------------


def test_old_plan_has_to_end_first_where_both_do_not_fit() -> None:
    peer = Peer(budget_bytes=TIGHT)
    peer.activate(PLAN)
    peer.propose(NEXT)
    assert peer.rollout.must_drain(peer.held_of) == ()  # Not before everyone agrees.
    running = {"active": PLAN.id, "running": (PLAN.id,)}
    effects = peer.others_say(computed=NEXT.id, **running)
    assert of(LoadUnits, effects) == []
    assert peer.rollout.must_drain(peer.held_of) == (PLAN.id,)
    effects = peer.others_say(active=None, running=())
    assert peer.life(PLAN) is None
    (load,) = of(LoadUnits, effects)
    assert load.units == (UnitRange(2, 6),)
    assert peer.rollout.must_drain(peer.held_of) == ()


def test_source_lets_go_when_any_peer_asks_for_the_memory() -> None:
    peer = Peer(A)
    peer.activate(PLAN)
    assert not peer.rollout.drains_for_target(peer.held_of)
    peer.propose(NEXT)
    peer.others_say(computed=NEXT.id)
    assert not peer.rollout.drains_for_target(peer.held_of)
    peer.held[C] = replace(peer.held[C], must_drain=(PLAN.id,))
    assert peer.rollout.drains_for_target(peer.held_of)
    peer.held[C] = replace(peer.held[C], must_drain=(SOLO.id,))
    assert not peer.rollout.drains_for_target(peer.held_of)


def test_failed_load_is_not_tried_again_until_it_is_forgiven() -> None:
    peer = Peer()
    peer.propose(PLAN)
    (load,) = of(LoadUnits, peer.others_say(computed=PLAN.id))
    assert peer.rollout.on_load_failed(load.load) is True
    (undo,) = of(LoadUnits, peer.reconcile())
    assert undo.units == ()
    for _ in range(3):
        assert of(LoadUnits, peer.reconcile()) == []
    peer.rollout.forgive_failures()
    (again,) = of(LoadUnits, peer.reconcile())
    assert again.units == (UnitRange(4, 6),)


def test_failed_load_does_not_touch_what_stands() -> None:
    peer = Peer()
    peer.activate(PLAN)
    peer.propose(NEXT)
    (load,) = of(LoadUnits, peer.others_say(computed=NEXT.id))
    peer.rollout.on_load_failed(load.load)
    (undo,) = of(LoadUnits, peer.reconcile())
    assert undo.units == (UnitRange(4, 6),)
    assert peer.life(PLAN) is Life.ACTIVE


# --- several --------------------------------------------------------------------------------


class Peers:
    """The rollouts of a, b and c; each hears of the others late and in any order."""

    def __init__(self, seed: int, budget_bytes: int) -> None:
        self.rng = Random(seed)
        self.peers = {peer: Peer(peer, budget_bytes) for peer in (A, B, C)}
        self.loads: list[tuple[PeerId, int]] = []
        self.running: PlanId | None = None
        """The plan that the source's one request runs on."""

    def record(self, me: PeerId) -> HeldRecord:
        rollout, held_of = self.peers[me].rollout, self.peers[me].held_of
        lives = (Life.READY, Life.ACTIVE, Life.DRAINING)
        ready = [ReadyPlan(p, r.begun) for p, r in rollout.plans.items() if r.life in lives]
        is_serving = not rollout.drains_for_target(held_of)
        active = rollout.active if me == A and is_serving else None
        running = (self.running,) if me == A and self.running is not None else ()
        return HeldRecord(
            computed=rollout.target,
            ready=tuple(ready),
            active=active,
            running=running,
            must_drain=rollout.must_drain(held_of),
        )

    def step(self) -> None:
        me, other = self.rng.choice((A, B, C)), self.rng.choice((A, B, C))
        if me != other:
            self.peers[me].held[other] = self.record(other)
        if self.loads and self.rng.random() < 0.3:
            peer, load = self.loads.pop(self.rng.randrange(len(self.loads)))
            self.peers[peer].rollout.on_loaded(load)
        effects = self.peers[me].reconcile()
        self.loads += [(me, load.load) for load in of(LoadUnits, effects)]
        source = self.peers[A].rollout
        if self.running not in source.plans or self.rng.random() < 0.1:
            self.running = None  # The request ends, or is parked with its plan.
        if self.running is None:
            self.running = self.record(A).active

    def run(self, plan: Plan) -> bool:
        for peer in self.peers.values():
            peer.rollout.propose(plan, MODEL)
        for _ in range(5000):
            self.step()
            rollouts = [peer.rollout for peer in self.peers.values()]
            if all([*r.plans] == [r.active] == [plan.id] for r in rollouts):
                return True
        return False


@pytest.mark.parametrize("budget_bytes", [ROOMY, TIGHT])
@pytest.mark.parametrize("seed", range(10))
def test_everyone_comes_to_the_next_plan_in_whatever_order_they_hear(
    seed: int, budget_bytes: int
) -> None:
    peers = Peers(seed, budget_bytes)
    for plan in (PLAN, NEXT, PLAN, SOLO, NEXT):
        assert peers.run(plan), f"stuck before {plan}"


# --- on standby -----------------------------------------------------------------------------


def standing(budget_bytes: int = ROOMY) -> Peer:
    """c serves its two units, and holds units 0 and 1 beside them."""
    peer = Peer(budget_bytes=budget_bytes)
    peer.activate(PLAN)
    for _ in range(2):
        peer.rollout.hold((0, 1))
        peer.loaded(peer.reconcile())
    assert peer.rollout.standby_units() == (0, 1)
    return peer


def test_one_unit_at_a_time_is_held_beside_those_of_plans() -> None:
    peer = Peer()
    peer.activate(PLAN)
    peer.rollout.hold((0, 1))
    (load,) = of(LoadUnits, peer.reconcile())
    assert load.units == (UnitRange(0, 1), UnitRange(4, 6))
    assert peer.rollout.standby_units() == ()
    peer.rollout.on_loaded(load.load)
    assert (peer.rollout.units(), peer.rollout.standby_units()) == ((4, 5), (0,))
    peer.rollout.hold((0,))
    assert of(LoadUnits, peer.reconcile()) == []
    peer.rollout.hold(())
    (load,) = of(LoadUnits, peer.reconcile())
    assert load.units == (UnitRange(4, 6),)
    # What is to go is not said to be held for a plan meanwhile.
    assert (peer.rollout.units(), peer.rollout.standby_units()) == ((4, 5), (0,))


def test_plan_waits_for_nothing_that_only_might_be_needed() -> None:
    peer = Peer()
    peer.activate(PLAN)
    peer.rollout.hold((0, 3))
    (unfinished,) = of(LoadUnits, peer.reconcile())
    peer.gone.add(B)
    peer.propose(NEXT)
    (load,) = of(LoadUnits, peer.others_say(computed=NEXT.id))
    assert load.units == (UnitRange(2, 6),)
    assert not peer.rollout.on_load_failed(unfinished.load)
    peer.rollout.on_loaded(load.load)
    assert (peer.rollout.units(), peer.rollout.standby_units()) == ((2, 3, 4, 5), ())


def test_plan_gets_the_room_of_what_is_on_standby() -> None:
    # The next plan takes 65,152 bytes; a unit in fp32 4,000, of which one more fits.
    peer = standing(budget_bytes=71_000)
    peer.gone.add(B)
    peer.propose(NEXT)
    (load,) = of(LoadUnits, peer.others_say(computed=NEXT.id))
    assert load.units == (UnitRange(0, 1), UnitRange(2, 6))
    assert (peer.rollout.units(), peer.rollout.standby_units()) == ((4, 5), (0, 1))
    peer.rollout.on_loaded(load.load)
    assert (peer.rollout.units(), peer.rollout.standby_units()) == ((2, 3, 4, 5), (0,))


def test_nothing_is_on_standby_in_another_dtype() -> None:
    """Nobody can tell yet what of that would be needed."""
    peer = standing()
    other = replace(PLAN, workload=replace(PLAN.workload, dtype="bf16"))
    peer.propose(other)
    assert of(LoadUnits, peer.others_say(computed=other.id, active=PLAN.id)) == []
    assert peer.rollout.must_drain(peer.held_of) == (PLAN.id,)
    (load,) = of(LoadUnits, peer.others_say(active=None))
    assert (load.dtype, load.units) == ("bf16", (UnitRange(4, 6),))


@pytest.mark.parametrize("batch", range(1, 7))  # Different ids, in either order of PLAN's.
def test_part_stays_as_it_is_computed_though_the_next_plan_is_another_way(batch: int) -> None:
    """The next plan has no part here, so both may stand at once."""
    peer = Peer()
    peer.activate(PLAN)
    workload = replace(PLAN.workload, dtype="bf16", batch=batch)
    elsewhere = replace(PLAN, workload=workload, stages=(Stage(B, UnitRange(2, 6)),))
    loads = of(LoadUnits, peer.propose(elsewhere))
    loads += of(LoadUnits, peer.others_say(computed=elsewhere.id))
    assert peer.rollout.plans[elsewhere.id].is_asked
    assert all((load.dtype, load.units) == ("fp32", (UnitRange(4, 6),)) for load in loads)
