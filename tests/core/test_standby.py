"""What is wished to be held, before anything is loaded."""

from __future__ import annotations

from edgeshard_p2p.core.effects import ComputePlan
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.plan import Choice, Plan, Snapshot
from edgeshard_p2p.core.planner import choose
from edgeshard_p2p.core.standby import DEVICES_MAX, Standby
from tests.core.parts import A, B
from tests.core.test_planner import device, swarm


def of_three() -> tuple[Snapshot, Plan]:
    """a takes prompts; two of the three hold the model."""
    made = swarm([device("a", 3.6, is_source=True), device("b", 4.6, 150), device("c", 4.6, 200)])
    plan = choose(made).plan
    assert plan is not None
    return made, plan


def questions(standby: Standby, made: Snapshot, plan: Plan) -> list[Choice]:
    """Every question's answer, each given before the next is asked."""
    answers = []
    while effects := standby.follow(made, plan):
        (effect,) = effects
        assert isinstance(effect, ComputePlan)
        assert standby.follow(made, plan) == []
        assert standby.units() is None
        answers.append(choose(effect.snapshot))
        standby.on_choice(answers[-1])
    return answers


def test_it_asks_once_for_the_loss_of_each_other_peer_of_the_plan() -> None:
    made, plan = of_three()
    standby = Standby(A, is_on=True)
    assert standby.units() is None
    answers = questions(standby, made, plan)
    assert len(answers) == len(plan.peers()) - 1
    needed = {
        unit
        for answer in answers
        if answer.plan is not None
        for units in answer.plan.units_of(A)
        for unit in units
    }
    assert needed
    assert set(standby.units() or ()) == needed
    assert standby.follow(made, plan) == []


def test_what_more_plans_need_comes_first() -> None:
    made, plan = of_three()
    standby = Standby(PeerId("c", 1), is_on=True)
    counts: dict[int, int] = {}
    for answer in questions(standby, made, plan):
        for units in answer.plan.units_of(PeerId("c", 1)) if answer.plan is not None else ():
            for unit in units:
                counts[unit] = counts.get(unit, 0) + 1
    assert standby.units() == tuple(sorted(counts, key=lambda unit: (-counts[unit], unit)))


def test_answer_to_a_question_that_nobody_has_any_more_counts_nothing() -> None:
    made, plan = of_three()
    standby = Standby(A, is_on=True)
    (asked,) = standby.follow(made, plan)
    assert isinstance(asked, ComputePlan)
    fewer = swarm([device("a", 100, is_source=True), device("b", 100)])
    alone = choose(fewer).plan
    assert alone is not None
    assert standby.follow(fewer, alone) == []  # One at a time.
    standby.on_choice(Choice("another", None))
    assert standby.units() is None
    standby.on_choice(choose(asked.snapshot))
    questions(standby, fewer, alone)
    assert standby.units() == ()


def test_after_a_failure_nothing_is_wished_until_something_changes() -> None:
    made, plan = of_three()
    standby = Standby(A, is_on=True)
    questions(standby, made, plan)
    standby.on_load_failed()
    assert standby.units() is None
    assert questions(standby, made, plan) == []
    other = swarm([device("a", 100, is_source=True), device("b", 100)])
    alone = choose(other).plan
    assert alone is not None
    questions(standby, other, alone)
    assert standby.units() is not None


def test_it_asks_nothing_where_it_is_off_or_answers_take_long() -> None:
    made, plan = of_three()
    assert Standby(A, is_on=False).follow(made, plan) == []
    many = swarm(
        [device("a", 100, is_source=True), *(device(f"b{n}", 100) for n in range(DEVICES_MAX))]
    )
    assert Standby(A, is_on=True).follow(many, plan) == []
    assert Standby(B, is_on=True).follow(made, plan)
