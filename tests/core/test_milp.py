"""The planner against a mixed-integer program, on swarms with far too many plans to list; and the
program itself against a list of all plans, on tiny ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from math import ceil

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.layout import Layout, bytes_on, decode_legs, is_linked, total_us
from edgeshard_p2p.core.plan import Goal, Snapshot, Stage, weight_bytes
from edgeshard_p2p.core.planner import Answer, answer
from edgeshard_p2p.core.pool import LOAD_BYTES_PER_US
from tests.core import planner_oracle as oracle
from tests.core.milp_swarms import large_swarm
from tests.core.planner_milp import STEPS_PER_US, Program, Worth, least_busy, least_cost

PRIVATE_HEADS = [False, True]
N_BLOCKS_OF_SEEDS = 10
N_SEEDS_OF_CAMPAIGN = 200
N_SEEDS = {"latency": 30, "throughput": 30}


@pytest.mark.parametrize("private_head", PRIVATE_HEADS)
@pytest.mark.parametrize("objective", N_SEEDS)
@pytest.mark.parametrize("block", range(N_BLOCKS_OF_SEEDS))
def test_equals_the_program(block: int, objective: str, private_head: bool, campaign: bool) -> None:
    n_seeds = N_SEEDS_OF_CAMPAIGN if campaign else N_SEEDS[objective] // len(PRIVATE_HEADS)
    for seed in range(block, n_seeds, N_BLOCKS_OF_SEEDS):
        made = large_swarm(seed, objective, private_head)
        assert disagreement(made, answer(made)) == "", f"seed {seed}"


def disagreement(made: Snapshot, found: Answer) -> str:
    """In what ``found`` differs from the best plan there is."""
    rows = made.goal.micro_batch or 1
    if found.layout is None:
        return "there is a plan" if least_cost(Program(made, 1, rows)) else ""
    program = Program(made, found.batch, rows)
    worth, limit = program.worth(found.layout), None
    if worth is None:
        return "no plan"
    if made.goal.objective == "throughput":
        # Figures are whole: where none is below it by one, none is below it.
        narrower = least_cost(program, worth.busiest - 1)
        if narrower is not None:
            return f"busiest {worth.busiest}, but it can be {narrower.busiest}"
        limit = worth.busiest
    best = least_cost(program, limit)
    assert best is not None
    if worth.cost != best.cost:
        return f"cost {worth.cost}, but it can be {best.cost}"
    if found.batch < made.workload.batch and least_cost(Program(made, found.batch + 1, rows)):
        return "there is a plan for a larger batch"
    return wrong_promise(made, found, worth)


def wrong_promise(made: Snapshot, found: Answer, worth: Worth) -> str:
    said, n_sources = found.prediction, len(worth.layout.sources)
    assert said is not None
    is_alone = made.goal.objective == "latency"
    promised = said.latency_us if is_alone else said.pipeline_us, said.bottleneck_us
    due = worth.us // n_sources, -(-worth.busiest // n_sources)
    return "" if promised == due else f"promised {promised}, but it is {due}"


def test_large_swarms_cover_what_matters() -> None:
    seen: Counter[str] = Counter()
    for objective, n_seeds in N_SEEDS.items():
        for seed in range(n_seeds):
            made = large_swarm(seed, objective)
            found = answer(made)
            seen.update(traits(made, found))
            if objective == "throughput" and (said := found.prediction) is not None:
                # Else the planner would compare the plan with the one of least latency.
                assert said.iteration_us > said.pipeline_us, f"seed {seed}: pipeline not filled"
    for trait, at_least in AT_LEAST.items():
        assert seen[trait] >= at_least, trait


AT_LEAST = {
    "no plan": 2,
    "one source": 10,
    "several sources": 10,
    "a source is none": 2,
    "a stage on a source": 10,
    "all stages on others": 10,
    "a longer entry": 10,
    "six stages or more": 10,
    "two stages or fewer": 3,
    "several sequences": 15,
    "fewer than wished": 4,
    "several rows": 3,
    "links missing": 8,
    "units held": 8,
    "devices alike": 8,
}


def traits(made: Snapshot, found: Answer) -> Iterator[str]:
    layout, n_devices = found.layout, len(made.devices)
    if layout is None:
        yield "no plan"
        return
    n_willing = sum(device.is_source for device in made.devices)
    on_sources = {stage.peer for stage in layout.stages} & {*layout.sources}
    default_end = len(oracle.entry(made))
    is_one = len(layout.sources) == 1
    yield "one source" if is_one else "several sources"
    yield "a stage on a source" if on_sources else "all stages on others"
    said = {
        "a source is none": len(layout.sources) < n_willing,
        "a longer entry": is_one and layout.entry_end > default_end,
        "six stages or more": len(layout.stages) >= 6,
        "two stages or fewer": len(layout.stages) <= 2,
        "several sequences": found.batch > 1,
        "fewer than wished": found.batch < made.workload.batch,
        "several rows": made.goal.micro_batch > 1,
        "links missing": len(made.links) < n_devices * (n_devices - 1),
        "units held": any(device.held for device in made.devices),
        "devices alike": len({device.unit_us for device in made.devices}) < n_devices,
    }
    yield from (trait for trait, is_so in said.items() if is_so)


@pytest.mark.parametrize(("objective", "seed"), [("latency", 5), ("throughput", 8)])
def test_a_unit_moved_is_noticed(objective: str, seed: int) -> None:
    made = large_swarm(seed, objective)
    found = answer(made)
    assert found.layout is not None
    moved = [replace(found, layout=layout) for layout in with_a_unit_moved(found.layout)]
    said = [disagreement(made, worse) for worse in moved]
    assert all(said)
    assert any(text.startswith(("cost", "busiest")) for text in said)


def with_a_unit_moved(layout: Layout) -> Iterator[Layout]:
    """One unit from a stage to the one before it, or the other way round."""
    for place in range(1, len(layout.stages)):
        before, after = layout.stages[place - 1 : place + 1]
        for cut in (before.units.end - 1, before.units.end + 1):
            pair = (
                Stage(before.peer, UnitRange(before.units.start, cut)),
                Stage(after.peer, UnitRange(cut, after.units.end)),
            )
            stages = (*layout.stages[: place - 1], *pair, *layout.stages[place + 1 :])
            yield replace(layout, stages=stages)


def test_a_plan_that_was_not_found_is_noticed() -> None:
    made = large_swarm(7, "latency")
    roomy = [replace(one, budget_bytes=10 * one.budget_bytes) for one in made.devices]
    made = replace(made, devices=tuple(roomy))
    found = answer(made)
    assert found.batch == made.workload.batch > 1
    assert disagreement(made, found) == ""
    assert disagreement(made, replace(found, layout=None)) == "there is a plan"
    fewer = replace(found, batch=found.batch - 1)
    assert disagreement(made, fewer) == "there is a plan for a larger batch"


# --- the program itself, on tiny swarms -------------------------------------------------------


def test_the_program_equals_the_oracle(campaign: bool) -> None:
    for seed in range(500 if campaign else 60):
        made = oracle.random_swarm(seed)
        found = oracle.best_layout(made)
        if found is None:
            assert least_cost(Program(made, 1)) is None, f"seed {seed}"
            continue
        plan, batch = found
        best = least_cost(Program(made, batch))
        assert best is not None, f"seed {seed}"
        assert best.layout.sources == plan.sources, f"seed {seed}"
        assert best.cost == oracle.cost(made, plan) * len(plan.sources) * STEPS_PER_US
        if batch < made.workload.batch:
            assert least_cost(Program(made, batch + 1)) is None, f"seed {seed}"


@pytest.mark.parametrize("private_head", [False, True])
def test_the_program_equals_a_list_of_all_plans(private_head: bool, campaign: bool) -> None:
    n_with_stages = 0
    for seed in range(500 if campaign else 60):
        rows, made = 1 + 2 * (seed % 2), oracle.random_swarm(seed)
        made = replace(made, goal=Goal(private_head=private_head))
        figures = sorted(all_figures(made, made.workload.batch, rows))
        program = Program(made, made.workload.batch, rows)
        narrow, best = least_busy(program), least_cost(program)
        if not figures:
            assert (narrow, best) == (None, None), f"seed {seed}"
            continue
        assert narrow is not None, f"seed {seed}"
        assert best is not None, f"seed {seed}"
        assert best.cost == min(cost for _, cost in figures), f"seed {seed}"
        cheapest = least_cost(program, narrow.busiest)
        assert cheapest is not None, f"seed {seed}"
        assert (cheapest.busiest, cheapest.cost) == figures[0], f"seed {seed}"
        n_with_stages += len(best.layout.stages) > 0
    assert n_with_stages > 10


def all_figures(made: Snapshot, batch: int, rows: int) -> Iterator[tuple[int, int]]:
    """(busiest resource, cost) of all plans that memory and links allow, as the program counts."""
    for layout in all_layouts(made):
        is_held = all(
            sum(bytes_on(made, layout, device.peer, batch)) <= device.budget_bytes
            for device in made.devices
        )
        if is_held and is_linked(made, layout):
            yield busiest(made, layout, rows), cost(made, layout, rows)


def all_layouts(made: Snapshot) -> Iterator[Layout]:
    n_units, entry_end = made.model.n_units, len(oracle.entry(made))
    tail_start, peers = n_units - made.goal.private_head, [device.peer for device in made.devices]
    own = {*oracle.entry(made), *range(tail_start, n_units)}
    sources = tuple(
        device.peer
        for device in made.devices
        if device.is_source and oracle.bytes_used(made, own, 1) <= device.budget_bytes
    )
    if len(sources) == 1:
        peers.remove(sources[0])
        owns = [(n_units, n_units)]
        for end in range(entry_end, n_units):
            starts = range(end + 1, n_units) if made.goal.private_head else [n_units]
            owns += [(end, start) for start in starts]
    else:
        owns = [(entry_end, tail_start)] if sources else []
    for end, start in owns:
        for stages in oracle.all_stages(peers, end, start):
            yield Layout(sources, end, stages, start)


def busiest(made: Snapshot, layout: Layout, rows: int) -> int:
    busy: Counter[tuple[str, bool]] = Counter()
    for source in layout.sources:
        legs = decode_legs(made, layout, source, rows)
        hops = [place for place, leg in enumerate(legs) if not leg.units]
        comes_back = layout.stages and layout.stages[-1].peer != source
        for place, leg in enumerate(legs):
            busy[leg.resource, bool(comes_back) and place == hops[-1]] += (
                leg.busy_us + leg.beside_us
            )
    return max(busy.values())


def cost(made: Snapshot, layout: Layout, rows: int) -> int:
    us = sum(total_us(decode_legs(made, layout, source, rows)) for source in layout.sources)
    return STEPS_PER_US * us + len(layout.sources) * loading(made, layout)


def loading(made: Snapshot, layout: Layout) -> int:
    steps, model = 0, made.model
    for device in made.devices:
        held = {unit for units in device.held for unit in units}
        stands = {unit for units in layout.units_of(model.n_units, device.peer) for unit in units}
        for unit in stands - held:
            units, is_source = UnitRange(unit, unit + 1), device.peer in layout.sources
            n_bytes = weight_bytes(model, units, made.workload.dtype, is_source)
            steps += ceil(Fraction(n_bytes * STEPS_PER_US, LOAD_BYTES_PER_US))
    return steps
