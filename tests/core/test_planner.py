"""The planner against an exhaustive search, and the properties that a leaderless swarm needs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.answers import iteration_us
from edgeshard_p2p.core.footprint import own_bytes
from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import (
    FRAME_OVERHEAD_BYTES,
    Device,
    Goal,
    Link,
    RowTimes,
    Snapshot,
    Workload,
    snapshot,
)
from edgeshard_p2p.core.planner import answer, choose
from edgeshard_p2p.core.pool import LOAD_BYTES_PER_US, pool_of
from edgeshard_p2p.core.solvers import CANDIDATES_MAX
from edgeshard_p2p.sim.comparison import Pair, compared
from tests.core import planner_oracle as oracle

ROOT = Path(__file__).parents[2]
N_BLOCKS_OF_SEEDS = 5
MIB = 2**20


def swarm(
    devices: list[Device],
    links: list[Link] | None = None,
    *,
    n_blocks: int = 4,
    tied_params: int = 0,
    kv_width: int = 0,
    context: int = 1024,
    batch: int = 1,
) -> Snapshot:
    """Units of 1 MiB each in bf16, context 1,024, every pair linked at 10 us unless told."""
    params = MIB // 2
    model = ModelSpec(
        name="tiny",
        digest="0" * 64,
        family="llama",
        hidden_size=64,
        vocab_size=1000,
        max_context=2048,
        embedding_params=params,
        block_params=(params,) * n_blocks,
        head_params=params,
        tied_params=tied_params,
        kv_width=kv_width,
    )
    names = [device.peer.name for device in devices]
    if links is None:
        links = [link(a, b) for a in names for b in names if a != b]
    workload = Workload("bf16", "exact", 16, context=context, batch=batch)
    return snapshot(model, workload, devices, links)


def device(name: str, mib: float, unit_us: int = 100, is_source: bool = False) -> Device:
    return Device(PeerId(name, 1), is_source, int(mib * MIB), (unit_us,) * 6)


def link(a: str, b: str, delay_us: int = 10) -> Link:
    return Link(a, b, delay_us, per_message_us=0, bytes_per_s=10**12)


def shape(made: Snapshot) -> str:
    """The plan without its id: ``0-1 a | 2-5 b``."""
    plan = choose(made).plan
    return str(plan).split(": ")[1].replace("@1", "") if plan else "none"


def seeds_of(block: int, request: pytest.FixtureRequest) -> range:
    """A share of the campaign's seeds."""
    is_campaign = request.config.getoption("--campaign", default=False)
    n_seeds = (5_000 if is_campaign else 200) // N_BLOCKS_OF_SEEDS
    return range(block * n_seeds, (block + 1) * n_seeds)


@pytest.mark.parametrize("private_head", [False, True])
@pytest.mark.parametrize("block", range(N_BLOCKS_OF_SEEDS))
def test_equals_the_exhaustive_search(
    block: int, private_head: bool, request: pytest.FixtureRequest
) -> None:
    for seed in seeds_of(block, request):
        made = replace(oracle.random_swarm(seed), goal=Goal(private_head=private_head))
        found, best = answer(made), oracle.best_layout(made)
        assert (found.layout, found.batch) == (best or (None, 0)), f"seed {seed}"
        if best is not None and found.prediction is not None:
            layout = best[0]
            assert found.prediction.latency_us == oracle.latency(made, layout) // 1, f"seed {seed}"
            loaded = oracle.with_loaded(made, layout)
            assert answer(loaded).layout == layout, f"seed {seed}: not sticky"


@pytest.mark.parametrize("private_head", [False, True])
@pytest.mark.parametrize("block", range(N_BLOCKS_OF_SEEDS))
def test_pipelines_equal_the_exhaustive_search(
    block: int, private_head: bool, request: pytest.FixtureRequest
) -> None:
    for seed in seeds_of(block, request):
        goal = Goal("throughput", micro_batch=1 + seed % 3, private_head=private_head)
        made = replace(oracle.random_swarm(seed), goal=goal)
        found, best = answer(made), oracle.pipelines(made, goal.micro_batch)
        assert (found.layout is None) == (best is None), f"seed {seed}"
        if best is not None and found.prediction is not None:
            narrow, narrow_us, least_us, _ = best
            iteration_us = found.prediction.iteration_us
            assert least_us <= iteration_us <= narrow_us, f"seed {seed}"
            assert found.layout == narrow or iteration_us < narrow_us, f"seed {seed}"
            assert found.bound_us is not None
            assert found.bound_us <= least_us, f"seed {seed}"
            if not any(one.held for one in made.devices) and not made.model.tied_params:
                assert found.bound_us == iteration_us == least_us, f"seed {seed}"


@pytest.mark.parametrize("goal", [Goal(), Goal("throughput", micro_batch=2)])
def test_devices_that_are_alike_are_counted_and_nothing_is_lost(goal: Goal) -> None:
    n_alike = 0
    for seed in range(200):
        made = replace(oracle.with_twins(oracle.random_swarm(seed), seed), goal=goal)
        found, best = answer(made), oracle.best_layout(made)
        assert (found.layout is None) == (best is None), f"seed {seed}"
        if best is None or found.prediction is None:
            continue
        n_alike += any(len(kind) > 1 for kind in kinds_in(made))
        if goal.objective == "latency":
            assert (found.layout, found.batch) == best, f"seed {seed}"
        else:
            pipelines = oracle.pipelines(made, goal.micro_batch)
            assert pipelines is not None
            assert pipelines[2] <= found.prediction.iteration_us <= pipelines[1], f"seed {seed}"
    assert n_alike > 20


def kinds_in(made: Snapshot) -> list[list[int]]:
    sources = [one for one in made.devices if one.is_source]
    able = [one for one in sources if one.budget_bytes >= own_bytes(made, 1)]
    return pool_of(made, list(made.devices), able).kinds


def test_random_swarms_cover_what_matters() -> None:
    plans = [(made, choose(made).plan) for made in map(oracle.random_swarm, range(400))]
    chosen = [(made, plan) for made, plan in plans if plan is not None]
    assert 100 < len(chosen) < 350
    assert sum(1 for _, plan in chosen if len(plan.sources) > 1) > 50
    assert sum(1 for _, plan in chosen if len(plan.stages) > 1) > 50
    assert sum(1 for made, plan in chosen if plan.workload.batch < made.workload.batch) > 20
    assert sum(1 for _, plan in chosen if len(plan.sources) == 1 and plan.entry_end > 2) > 20
    assert sum(1 for _, plan in chosen if {s.peer for s in plan.stages} & {*plan.sources}) > 20


def test_random_swarms_cover_private_heads() -> None:
    goal = Goal(private_head=True)
    swarms = [replace(oracle.random_swarm(seed), goal=goal) for seed in range(400)]
    layouts = [(made, answer(made).layout) for made in swarms]
    tails = [
        (made.model.n_units - layout.tail_start, len(layout.sources))
        for made, layout in layouts
        if layout is not None and layout.stages
    ]
    assert sum(1 for n_units, n_sources in tails if n_sources > 1) > 30
    assert sum(1 for n_units, n_sources in tails if n_units > 1) > 15


def test_missing_bytes_is_a_lower_bound() -> None:
    n_short = 0
    for seed in range(1_000):
        made = oracle.random_swarm(seed)
        choice = choose(made)
        if choice.missing_bytes < 2:
            continue
        n_short += 1
        for lucky in made.devices:
            more = replace(lucky, budget_bytes=lucky.budget_bytes + choice.missing_bytes - 1)
            devices = [more if one == lucky else one for one in made.devices]
            assert (
                choose(snapshot(made.model, made.workload, devices, list(made.links))).plan is None
            )
    assert n_short > 50


def swarms_of_all_goals(n_seeds: int) -> list[Snapshot]:
    return [
        replace(oracle.random_swarm(seed), goal=Goal(objective, private_head=private_head))
        for seed in range(n_seeds)
        for objective in ("latency", "throughput")
        for private_head in (False, True)
    ]


def test_input_order_does_not_matter() -> None:
    rng = random.Random(1)
    for made in swarms_of_all_goals(50):
        devices, links = list(made.devices), list(made.links)
        rng.shuffle(devices)
        rng.shuffle(links)
        again = snapshot(made.model, made.workload, devices, links, made.goal)
        assert again.id == made.id
        assert answer(again) == answer(made)
        unsorted = replace(made, devices=tuple(devices), links=tuple(links))
        assert answer(unsorted) == answer(made)


def test_hash_seed_does_not_matter() -> None:
    program = (
        "from edgeshard_p2p.core.planner import answer, choose\n"
        "from tests.core.test_planner import swarms_of_all_goals\n"
        "for made in swarms_of_all_goals(15): print(made.id, choose(made), answer(made))"
    )

    def run(hash_seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, env=env, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    outputs = {run(hash_seed) for hash_seed in ("0", "1", "4242")}
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == 60


def test_names_matter_only_by_their_order() -> None:
    for made in swarms_of_all_goals(50):
        names = {one.peer.name: f"q-{one.peer.name}.lan" for one in made.devices}
        devices = [
            replace(one, peer=PeerId(names[one.peer.name], one.peer.generation))
            for one in made.devices
        ]
        links = [replace(one, a=names[one.a], b=names[one.b]) for one in made.links]
        layout = answer(made).layout
        renamed = answer(snapshot(made.model, made.workload, devices, links, made.goal)).layout
        assert (layout is None) == (renamed is None)
        if layout is not None and renamed is not None:
            stages = [replace(one, peer=to(names, one.peer)) for one in layout.stages]
            sources = [to(names, source) for source in layout.sources]
            assert renamed == replace(layout, sources=tuple(sources), stages=tuple(stages))


def to(names: dict[str, str], peer: PeerId) -> PeerId:
    return PeerId(names[peer.name], peer.generation)


def test_with_a_private_head_the_source_ends_what_it_began() -> None:
    devices = [device("a", 4, 100, True), device("b", 9, 10)]
    made = replace(swarm(devices, [link("a", "b", 5), link("b", "a", 7)]), goal=Goal())
    assert answer(made).layout is not None
    assert shape(made) == "0-1 a | 2-5 b"
    private = answer(replace(made, goal=Goal(private_head=True)))
    assert private.layout is not None
    assert private.prediction is not None
    assert (private.layout.entry_end, private.layout.tail_start) == (2, 5)
    # Two units and the head on "a", three on "b", and a row of hidden states each way.
    assert private.prediction.latency_us == 3 * 100 + 3 * 10 + (5 + 1) + (7 + 1)


def test_entry_and_tail_share_the_memory_of_their_source() -> None:
    # "a" is the quick one and would run three units from the front or three from the back.
    devices = [device("a", 4, 10, True), device("b", 9, 100)]
    private = answer(replace(swarm(devices), goal=Goal(private_head=True)))
    assert private.layout is not None
    assert (private.layout.entry_end, private.layout.tail_start) == (2, 4)


def test_a_single_source_that_holds_the_model_needs_nobody() -> None:
    made = swarm([device("a", 6, is_source=True), device("b", 9)])
    assert shape(made) == "0-5 a"
    assert choose(made).latency_us == 600


def test_a_slow_link_is_relayed_round() -> None:
    devices = [device("edge", 9, 100, True), device("near", 9, 100), device("cloud", 9, 1)]
    pairs = [("edge", "near"), ("near", "edge"), ("near", "cloud"), ("cloud", "near")]
    links = [link(a, b) for a, b in pairs]
    links += [link("edge", "cloud", 9_000), link("cloud", "edge", 50)]
    assert shape(swarm(devices, links)) == "0-1 edge | 2-2 near | 3-5 cloud"


def test_latency_is_the_mean_over_the_sources() -> None:
    devices = [device("a", 2, 100, True), device("b", 2, 200, True), device("c", 4, 10)]
    choice = choose(swarm(devices))
    hop_us = 10 + 1
    assert choice.latency_us == ((200 + 400) + 2 * (4 * 10 + 2 * hop_us)) // 2


def test_a_source_may_hold_a_shared_stage_beside_its_entry() -> None:
    made = swarm([device("a", 6, is_source=True), device("b", 2, is_source=True)])
    assert shape(made) == "0-1 a+b | 2-5 a"


def test_what_is_held_beyond_the_model_takes_no_time_to_count() -> None:
    held = (UnitRange(3, 2**40),)
    made = swarm([device("a", 2, is_source=True), replace(device("b", 9), held=held)])
    assert shape(made) == "0-1 a | 2-5 b"


def test_a_prompt_is_prefilled_on_every_stage_also_where_the_last_one_is_the_sources_own() -> None:
    made = swarm([device("a", 6, 100, True), device("b", 2, 100, True)])
    made = replace(made, goal=Goal(prompt=10, generate=1))
    found = answer(made)
    assert shape(made) == "0-1 a+b | 2-5 a"
    assert found.prediction is not None
    # Ten rows in six units; of b's prompt they cross over to "a", and a token comes back.
    assert found.prediction.ttft_us == (6_000 + 6_000 + 11 + 11) // 2


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    made = swarm([device("a", 9, is_source=True)])
    found = answer(replace(made, goal=Goal(prompt=1_000, generate=25)))
    assert found.reason == "prompt and answer are longer than the context of 1024"


def test_a_tied_head_costs_nothing_beside_the_embedding() -> None:
    devices = [device("a", 5, is_source=True), device("b", 2, is_source=True)]
    assert shape(swarm(devices)) == "none"
    assert shape(swarm(devices, tied_params=MIB // 2)) == "0-1 a+b | 2-5 a"


def test_of_equal_plans_the_one_with_fewer_devices_wins() -> None:
    # Going over to "a" costs two hops there and two back, 44 us; staying at "y" one each, 22 us,
    # and 11 us more of computing for each of the two sources.
    everything = (UnitRange(0, 6),)
    outsider = Device(PeerId("a", 1), False, 9 * MIB, (0, 0, 0, 0, 0, 0), everything)
    source = Device(PeerId("y", 1), True, 9 * MIB, (0, 0, 11, 0, 0, 0), everything)
    other = Device(PeerId("z", 1), True, 2 * MIB, (0, 0, 99, 0, 0, 0), everything)
    assert choose(swarm([outsider, source, other])).latency_us == 22
    assert shape(swarm([outsider, source, other])) == "0-1 y+z | 2-5 y"
    slower = replace(source, unit_us=(0, 0, 12, 0, 0, 0))
    assert shape(swarm([outsider, slower, other])) == "0-1 y+z | 2-5 a"


def test_the_batch_shrinks_to_what_fits() -> None:
    # One sequence takes 1 MiB in each block: 6 units and 4 blocks in 18 MiB hold a batch of 3.
    devices = [device("a", 10, is_source=True), device("b", 9)]
    wide = swarm(devices, kv_width=512, batch=16)
    plan = choose(wide).plan
    assert plan is not None
    assert plan.workload.batch == 3
    assert plan.workload.context == 1024
    plan = choose(swarm(devices, kv_width=512, batch=2)).plan
    assert plan is not None
    assert plan.workload.batch == 2


def test_the_batch_is_bounded_by_every_source() -> None:
    # The entry has one block, so a sequence takes 1 MiB beside the entry's 2.
    tight = replace(device("a", 5, is_source=True), budget_bytes=5 * MIB - 1)
    devices = [tight, device("b", 99, is_source=True)]
    plan = choose(swarm(devices, kv_width=512, batch=16)).plan
    assert plan is not None
    assert plan.workload.batch == 2


def test_a_gain_smaller_than_its_loading_moves_nothing() -> None:
    slow, fast = device("b", 4, 100), device("c", 4, 99)
    held = replace(slow, held=(UnitRange(2, 6),))
    source = replace(device("a", 2, is_source=True), held=(UnitRange(0, 2),))
    assert shape(swarm([source, slow, fast])) == "0-1 a | 2-5 c"
    assert shape(swarm([source, held, fast])) == "0-1 a | 2-5 b"
    gain_us = 4 * MIB // LOAD_BYTES_PER_US // 4 + 1
    assert shape(swarm([source, held, device("c", 4, 100 - gain_us)])) == "0-1 a | 2-5 c"


def test_a_tied_head_is_not_loaded_beside_the_embedding() -> None:
    # Going over to "b" for the head costs 22 us of hops; loading a whole head weighs 2 us.
    source = Device(PeerId("a", 1), True, 9 * MIB, (0, 0, 0, 0, 0, 21), (UnitRange(0, 5),))
    other = Device(PeerId("b", 1), False, 9 * MIB, (9, 9, 9, 9, 9, 0), (UnitRange(0, 6),))
    assert shape(swarm([source, other], tied_params=MIB // 2)) == "0-5 a"
    assert shape(swarm([source, other])) == "0-4 a | 5-5 b"


def test_a_source_too_small_for_its_part_is_none() -> None:
    small, large = device("a", 1, is_source=True), device("b", 6, is_source=True)
    choice = choose(swarm([small, large]))
    assert choice.plan is not None
    assert choice.plan.sources == (PeerId("b", 1),)
    assert choice.reason == "a@1 cannot hold a source's part and is no source"


def test_a_source_too_small_for_its_part_may_still_hold_a_stage() -> None:
    choice = swarm([device("a", 1, is_source=True), device("b", 5, is_source=True)])
    assert shape(choice) == "0-4 b | 5-5 a"


@pytest.mark.parametrize(
    ("made", "reason", "missing_bytes"),
    [
        (swarm([]), "no source: no device of the swarm takes prompts", 0),
        (swarm([device("a", 9)]), "no source: no device of the swarm takes prompts", 0),
        (
            swarm([device("a", 9, is_source=True)], context=2049),
            "context 2049 exceeds the model's 2048",
            0,
        ),
        (
            swarm([device("a", 2, is_source=True), device("b", 2.5)]),
            "the model needs 1.5 MiB more memory than the 2 devices offer"
            " (have 4.5 MiB, need 6.0 MiB at context 1024)",
            3 * MIB // 2,
        ),
        (
            swarm([device("a", 1.5, is_source=True), device("b", 9)]),
            "no source can hold units 0-1, which a source keeps for its own prompts:"
            " the largest lacks 0.5 MiB at context 1024",
            MIB // 2,
        ),
        (
            swarm([device("a", 1.5, is_source=True), device("b", 1)]),
            "no source can hold units 0-1, which a source keeps for its own prompts:"
            " the largest lacks 0.5 MiB at context 1024",
            7 * MIB // 2,
        ),
        (
            swarm([device("a", 2.5, is_source=True), device("b", 3.5), device("c", 0.5, 1, True)]),
            "no cut into one run per device fits the 3 devices' memory"
            " (have 6.5 MiB, need 6.0 MiB at context 1024);"
            " c@1 cannot hold a source's part and is no source",
            1,
        ),
        (
            swarm([device("a", 2, is_source=True), device("b", 9)], [link("b", "a")]),
            "no measured link from a@1 to a device that could take the next stage",
            0,
        ),
        (
            swarm([device("a", 2, is_source=True), device("b", 9)], [link("a", "b")]),
            "no measured link back to a@1 from a device that could end the model",
            0,
        ),
        (
            swarm(
                [device("a", 2, is_source=True), device("b", 2), device("c", 2)],
                [link("a", "b"), link("c", "a"), link("c", "b")],
            ),
            "the links measured so far join too few devices to hold the model",
            0,
        ),
    ],
)
def test_says_why_there_is_no_plan(made: Snapshot, reason: str, missing_bytes: int) -> None:
    choice = choose(made)
    assert choice.plan is None
    assert (choice.reason, choice.missing_bytes) == (reason, missing_bytes)


def test_large_swarms_are_searched_in_part_and_say_so() -> None:
    source, n_others = device("source", 2, is_source=True), CANDIDATES_MAX + 4
    others = [device(f"p{i:02}", 4, 100 + i) for i in range(n_others)]
    choice = choose(swarm([source, *others]))
    assert choice.reason == f"{n_others} devices are too many different ones to search all plans"
    assert shape(swarm([source, *others])) == "0-1 source | 2-5 p00"


def test_large_swarms_take_in_the_largest_where_memory_is_needed() -> None:
    source = device("source", 2, is_source=True)
    fast = [device(f"p{i:02}", 1, 100 + i) for i in range(CANDIDATES_MAX)]
    slow = [device("large", 99, 900), device("medium", 20, 900)]
    plan = choose(with_blocks(swarm([source, *fast, *slow]), 24)).plan
    assert plan is not None
    names = {peer.name for peer in plan.peers()}
    assert names == {"source", "large", *(one.peer.name for one in fast)}


def with_blocks(made: Snapshot, n_blocks: int) -> Snapshot:
    blocks = (MIB // 2,) * n_blocks
    devices = [replace(one, unit_us=one.unit_us[:1] * (n_blocks + 2)) for one in made.devices]
    return replace(made, model=replace(made.model, block_params=blocks), devices=tuple(devices))


def test_a_device_must_have_one_time_per_unit() -> None:
    made = swarm([device("a", 9, is_source=True)], n_blocks=5)
    with pytest.raises(AssertionError, match="one time per unit"):
        choose(made)


def test_frames_are_counted_with_their_overhead() -> None:
    narrow = [Link(a, b, 0, 0, 10**6) for a, b in ("ab", "ba")]
    made = swarm([device("a", 2, 0, True), device("b", 4, 0)], narrow)
    assert choose(made).latency_us == (64 * 2 + FRAME_OVERHEAD_BYTES) + FRAME_OVERHEAD_BYTES


def test_devices_that_are_alike_are_placed_together_beyond_the_limit() -> None:
    source, n_others = device("source", 2, is_source=True), CANDIDATES_MAX + 8
    choice = choose(with_blocks(swarm([source, *alike(n_others)]), n_others))
    assert choice.reason == ""
    assert choice.plan is not None
    assert len(choice.plan.stages) == n_others


def alike(n_devices: int) -> list[Device]:
    return [device(f"p{i:02}", 1, 100) for i in range(n_devices)]


def test_the_expected_prompt_counts_with_the_expected_answer() -> None:
    # "c" is slow at decoding and quick at prompts, "b" the other way round.
    prefill = (RowTimes(128, (1_000,) * 6),)
    devices = [device("a", 2, is_source=True), device("b", 9, 50)]
    devices.append(replace(device("c", 9, 100), prefill=prefill))
    made = swarm(devices, context=2048)
    assert shape(made) == "0-1 a | 2-5 b"
    long = replace(made, goal=Goal(prompt=1024, generate=8))
    assert shape(long) == "0-1 a | 2-5 c"
    assert shape(replace(made, goal=Goal(prompt=64, generate=1024))) == "0-1 a | 2-5 b"


def beside_the_paper(seed: int, goal: Goal) -> Pair | None:
    """For a random swarm of one source that holds nothing yet; None for another one."""
    made = oracle.random_swarm(seed)
    if sum(device.is_source for device in made.devices) != 1:
        return None
    batch = 1 if goal.objective == "latency" else made.workload.batch
    return compared(
        replace(
            made,
            devices=tuple(replace(one, held=()) for one in made.devices),
            workload=replace(made.workload, batch=batch),
            goal=goal,
        )
    )


@pytest.mark.parametrize("goal", [Goal(), Goal("throughput", micro_batch=1)])
def test_exact_is_never_worse_than_the_paper_where_that_revisits_no_device(goal: Goal) -> None:
    n_compared = n_better = n_back = 0
    for seed in range(400):
        pair = beside_the_paper(seed, goal)
        if pair is None or pair.paper.prediction is None:
            continue
        if pair.revisits:
            n_back += 1
            continue
        n_compared += 1
        assert pair.exact.prediction is not None, f"seed {seed}"
        found, papers = iteration_us(pair.exact), iteration_us(pair.paper)
        # Bytes of a tied head weigh in the cost of exact, a few microseconds at most.
        assert found <= papers + 4, f"seed {seed}"
        n_better += found < papers
    assert n_compared > 30
    assert n_better > 0
    assert (n_back > 0) == (goal.objective == "latency")


def test_figures_beyond_what_can_be_added_up_are_refused_and_no_error() -> None:
    made = swarm([device("a", 2, is_source=True), device("b", 9, 2**53)])
    assert answer(made).reason == "the times or links are too slow to be planned with"


def test_a_long_answer_of_a_slow_device_can_be_planned() -> None:
    made = swarm([device("a", 2, 10**9, True), device("b", 9, 10**9)], context=2**17)
    made = replace(made, model=replace(made.model, max_context=2**17))
    assert shape(replace(made, goal=Goal(prompt=1024, generate=2**16))) == "0-1 a | 2-5 b"


def test_where_not_all_was_searched_memory_is_not_blamed_for_sure() -> None:
    source, n_others = device("source", 2, is_source=True), CANDIDATES_MAX + 4
    others = [device(f"p{i:02}", 1.5, 100 + i) for i in range(n_others)]
    choice = choose(with_blocks(swarm([source, *others]), n_others + 2))
    assert choice.plan is None
    assert choice.reason.startswith("found no cut into one run per device that fits")
    assert choice.missing_bytes == 0
