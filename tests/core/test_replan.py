"""When to plan: a loss at once, a gain after quiet; and which answers count."""

from __future__ import annotations

from msgspec.structs import replace

from edgeshard_p2p.core.effects import ComputePlan
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.plan import Choice, Device, Snapshot, snapshot
from edgeshard_p2p.core.replan import Replan
from edgeshard_p2p.core.view import View
from tests.core.parts import MODEL, PLAN, TIMING, WORKLOAD, A, B, C

QUIET_S = TIMING.gain_quiet_s


def of_devices(*peers: PeerId, unit_us: int = 100) -> Snapshot:
    devices = [Device(peer, True, 10**6, (unit_us,) * MODEL.n_units) for peer in peers]
    return snapshot(MODEL, WORKLOAD, devices, [])


def answered(peers: tuple[PeerId, ...] = (A, B), now: float = 0.0) -> Replan:
    """A first plan of these was asked for and has come."""
    replan = Replan(TIMING)
    replan.on_view(View(of_devices(*peers)), now)
    assert replan.tick(now + QUIET_S)
    assert replan.on_choice(Choice(of_devices(*peers).id, PLAN))
    return replan


def test_first_plan_waits_for_quiet() -> None:
    replan = Replan(TIMING)
    replan.on_view(View(of_devices(A)), 5.0)
    assert replan.next_deadline() == 5.0 + QUIET_S
    assert replan.tick(5.0 + QUIET_S - 0.01) == []
    assert replan.tick(5.0 + QUIET_S) == [ComputePlan(of_devices(A))]
    assert replan.tick(9.0) == []
    assert replan.next_deadline() is None


def test_every_change_starts_the_quiet_time_anew() -> None:
    replan = Replan(TIMING)
    for k in range(5):
        replan.on_view(View(of_devices(A, unit_us=100 + k)), k * 0.9 * QUIET_S)
        assert replan.tick(k * 0.9 * QUIET_S) == []
    replan.on_view(View(of_devices(A, unit_us=104)), 100.0)  # Nothing new.
    assert replan.tick(100.0) == [ComputePlan(of_devices(A, unit_us=104))]


def test_gain_waits_and_loss_does_not() -> None:
    replan = answered((A, B))
    replan.on_view(View(of_devices(A, B, C)), 10.0)
    assert replan.tick(10.0) == []
    replan.on_view(View(of_devices(A)), 10.1)
    assert replan.tick(10.1) == [ComputePlan(of_devices(A))]


def test_next_life_of_a_device_is_a_loss_of_the_one_before() -> None:
    replan = answered((A, B))
    reborn = of_devices(A, PeerId("b", 2))
    replan.on_view(View(reborn), 10.0)
    assert replan.tick(10.0) == [ComputePlan(reborn)]


def test_one_plan_is_computed_at_a_time_and_a_late_answer_is_ignored() -> None:
    replan = answered((A, B))
    replan.on_view(View(of_devices(A)), 10.0)
    replan.tick(10.0)
    replan.on_view(View(of_devices(B)), 10.1)
    assert replan.tick(10.1) == []
    assert replan.on_choice(Choice(of_devices(A, B).id, PLAN)) is False
    assert replan.tick(10.2) == []
    assert replan.on_choice(Choice(of_devices(A).id, PLAN)) is True
    assert replan.tick(10.3) == [ComputePlan(of_devices(B))]


def test_snapshot_that_was_planned_is_not_planned_again() -> None:
    replan = answered((A, B))
    replan.on_view(View(None, "nobody"), 10.0)
    replan.on_view(View(of_devices(A, B)), 11.0)
    assert replan.tick(100.0) == []
    assert replan.current_choice() == Choice(of_devices(A, B).id, PLAN)


def test_choice_is_current_only_for_the_present_snapshot() -> None:
    replan = answered((A, B))
    assert replan.current_choice() is not None
    replan.on_view(View(of_devices(A)), 10.0)
    assert replan.current_choice() is None
    replan.on_view(View(None, "nobody"), 10.0)
    assert replan.current_choice() is None


def test_infeasible_is_what_the_planner_says_of_the_present() -> None:
    replan = answered((A, B))
    assert not replan.is_infeasible()
    replan.on_view(View(of_devices(A)), 10.0)
    replan.tick(10.0)
    none = Choice(of_devices(A).id, None, reason="too little memory")
    assert replan.on_choice(none)
    assert replan.is_infeasible()
    assert replan.waiting_for() == "too little memory"
    replan.on_view(View(of_devices(A, B)), 20.0)
    assert not replan.is_infeasible()


def test_lone_peer_is_held_back_but_not_once_it_has_planned() -> None:
    replan = Replan(TIMING, min_members=3)
    replan.on_view(View(of_devices(A, B)), 0.0)
    assert replan.tick(100.0) == []
    assert replan.next_deadline() is None
    assert replan.waiting_for() == "2 of at least 3 members are ready"
    replan.on_view(View(of_devices(A, B, C)), 100.0)
    assert replan.tick(101.0)
    replan.on_choice(Choice(of_devices(A, B, C).id, PLAN))
    replan.on_view(View(of_devices(A)), 200.0)
    assert replan.tick(200.0) == [ComputePlan(of_devices(A))]


def test_what_is_waited_for_in_words() -> None:
    replan = Replan(TIMING)
    assert replan.waiting_for() == "this peer has just started"
    replan.on_view(View(None, "nobody has named a model"), 0.0)
    assert replan.waiting_for() == "nobody has named a model"
    replan.on_view(View(of_devices(A)), 0.0)
    assert replan.waiting_for() == "the first plan is being computed"
    assert answered().waiting_for() == ""


def test_word_of_nothing_new_costs_nothing() -> None:
    replan = answered((A, B))
    same = replace(of_devices(A, B))
    for k in range(3):
        replan.on_view(View(same), 10.0 + k)
        assert replan.tick(100.0) == []
