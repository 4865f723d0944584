"""What is measured, in which order, and what is predicted of it."""

from __future__ import annotations

import pytest

from edgeshard_p2p.core.layout import Layout, predict
from edgeshard_p2p.core.pin import parse_pin
from edgeshard_p2p.core.plan import Stage
from edgeshard_p2p.reproduction.cells import (
    ALGORITHMS,
    BUBBLES,
    LATENCY,
    NO_BUBBLES,
    THROUGHPUT,
    Cell,
    Found,
    Place,
    found_by,
    in_words,
    parts_of,
    scenario_of,
    uses,
)
from tests.core.parts import some
from tests.reproduction.paper import swarm

RATES = (1.0, 10.0, 50.0)


def found(
    algorithm: str, mbps: float = 1.0, objective: str = LATENCY, schedule: str = NO_BUBBLES
) -> Found:
    place = Place("agx-1", mbps, objective, algorithm, schedule)
    return found_by(place, swarm(mbps=mbps), 8)


def test_what_matters_most_is_measured_first() -> None:
    parts = parts_of(RATES, ("fast", "slow"), is_full=False)
    assert [(p.source, p.mbps, p.objective, p.schedule) for p in parts] == [
        ("agx-1", 1.0, LATENCY, NO_BUBBLES),
        ("agx-1", 1.0, THROUGHPUT, NO_BUBBLES),
        ("agx-1", 1.0, THROUGHPUT, BUBBLES),
        ("agx-1", 10.0, LATENCY, NO_BUBBLES),
        ("agx-1", 50.0, LATENCY, NO_BUBBLES),
        ("nx", 1.0, LATENCY, NO_BUBBLES),
    ]
    assert [place.algorithm for place in parts[0].places()] == list(ALGORITHMS)


def test_all_of_it_is_each_of_it_everywhere() -> None:
    parts = parts_of(RATES, ("fast", "slow"), is_full=True)
    assert len(parts) == 2 * 3 * 3
    places = [place for part in parts for place in part.places()]
    assert len(places) == len(set(places))


def test_paper_s_table_comes_out_in_its_proportions() -> None:
    """The units of this model are not those of Llama 2, so not to the millisecond."""
    at_1 = {name: some(found(name).predicted) / 2.5 for name in ALGORITHMS}
    assert at_1["edge-solo"] == pytest.approx(140.3, rel=0.01)
    assert at_1["cloud-edge-opt"] == pytest.approx(140.3, rel=0.01)
    assert at_1["cloud-edge-even"] == pytest.approx(218.1, rel=0.1)
    assert at_1["exact"] < at_1["edge-solo"] / 1.85
    assert some(found("cloud-edge-opt", 50.0).predicted) / 2.5 == pytest.approx(47.8, rel=0.1)


def test_plan_of_exact_goes_round_the_slow_link() -> None:
    pin = some(parse_pin(found("exact").pin))
    assert [stage.name for stage in pin.stages] == ["agx-2", "rtx3090"]


def test_plan_that_comes_back_to_a_device_is_predicted_and_not_served() -> None:
    seen = found("paper")
    parts = seen.pin.split(",")
    names = [part.split(":")[0] for part in parts]
    assert len(set(names)) < len(names)
    assert "come back" in seen.why
    assert some(seen.predicted) < some(found("edge-solo").predicted)


def test_what_does_not_fit_says_so() -> None:
    place = Place("nx", 1.0, LATENCY, "edge-solo")
    seen = found_by(place, swarm("nx"), 8)
    assert (seen.pin, seen.predicted) == ("", None)
    assert "nx lacks" in seen.why


def test_latency_is_that_of_the_cost_model() -> None:
    scenario = scenario_of(swarm(), "agx-1", LATENCY)
    assert scenario.order == ("agx-1", "agx-2", "nx", "rtx3090")
    seen = found("even")
    pin = some(parse_pin(seen.pin))
    assert [len(stage.units) for stage in pin.stages] == [8, 8, 8]
    peers = {device.peer.name: device.peer for device in scenario.snapshot.devices}
    stages = tuple(Stage(peers[stage.name], stage.units) for stage in pin.stages)
    layout = Layout((peers["agx-1"],), pin.entry_end, stages, scenario.snapshot.model.n_units)
    assert seen.predicted == predict(scenario.snapshot, layout, 8, 1).latency_us / 1e3


def test_bubbles_are_expected_to_cost() -> None:
    usual = found("exact", objective=THROUGHPUT)
    rounds = found("exact", objective=THROUGHPUT, schedule=BUBBLES)
    assert rounds.pin == usual.pin
    assert some(rounds.predicted) < some(usual.predicted)
    assert usual.rows <= 8


def test_plan_in_words_and_what_it_uses() -> None:
    pin = "agx-1:0-1,agx-2:1-5,rtx3090:5-32"
    assert in_words(pin) == "0-0 agx-1 | 1-4 agx-2 | 5-31 rtx3090"
    assert in_words("") == ""
    assert uses(pin, "agx-1")  # On the way back.
    assert not uses("agx-1:0-32", "agx-1")
    assert not uses("agx-1:0-1,nx:1-2,rtx3090:2-20,agx-2:20-32", "agx-1")
    assert not uses("agx-1:0-1,agx-2:1-20,nx:20-32", "agx-1")


def test_noise_and_error_are_parts_of_the_median() -> None:
    place = Place("agx-1", 1.0, LATENCY, "exact")
    cell = Cell(place, predicted=90.0, measured=(95.0, 100.0, 111.0))
    assert cell.median == 100.0
    assert cell.noise == pytest.approx(0.08)
    assert cell.off_by == pytest.approx(-0.1)
    bare = Cell(place, predicted=90.0)
    assert (bare.median, bare.noise, bare.off_by) == (None, 0.0, None)
