"""What the cost model counts of a pass besides its units, once for each run and each chunk; and
what is gained where a device has rested."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.footprint import own_bytes
from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.layout import (
    Layout,
    decode_legs,
    latency_us,
    loads,
    predict,
    prefill_legs,
    ttft_us,
)
from edgeshard_p2p.core.plan import CHUNK_ROWS, Device, Goal, Link, Snapshot, Stage, snapshot
from edgeshard_p2p.core.planner import answer
from tests.core.parts import MODEL, WORKLOAD

A, B, C = (PeerId(name, 1) for name in "abc")
BESIDE = {A: 100, B: 2_000, C: 30_000}
RESTED = {A: 50, B: 1_500, C: 90_000}
WAY_US = 500
N = MODEL.n_units


def swarm(n_sources: int = 1, beside: bool = True) -> Snapshot:
    devices = [
        Device(peer, place < n_sources, 10**9, (1_000,) * N, pass_us=us if beside else 0)
        for place, (peer, us) in enumerate(BESIDE.items())
    ]
    links = [Link(a.name, b.name, WAY_US, 0, 2**48) for a, b in permutations((A, B, C), 2)]
    return snapshot(MODEL, WORKLOAD, devices, links)


def chain(sources: tuple[PeerId, ...], tail_start: int = N) -> Layout:
    stages = (Stage(B, UnitRange(2, 3)), Stage(C, UnitRange(3, tail_start)))
    return Layout(sources, 2, stages, tail_start)


def rested(n_sources: int = 1) -> Snapshot:
    whole = swarm(n_sources)
    devices = tuple(replace(d, rested_us=RESTED[d.peer]) for d in whole.devices)
    return replace(whole, devices=devices)


@pytest.mark.parametrize(("tail_start", "of_source"), [(N, [100]), (N - 1, [0, 100])])
def test_each_stage_takes_a_pass_and_the_source_one(tail_start: int, of_source: list[int]) -> None:
    layout = chain((A,), tail_start)
    legs = [leg for leg in decode_legs(swarm(), layout, A, 1) if leg.units]
    assert [leg.beside_us for leg in legs if leg.resource == "a"] == of_source
    assert [leg.beside_us for leg in legs if leg.resource != "a"] == [2_000, 30_000]
    assert legs[2].busy_us == 1_000 * (tail_start - 3)


def test_it_holds_up_what_is_passed() -> None:
    whole, bare = swarm(), swarm(beside=False)
    layout = chain((A,))
    assert latency_us(whole, layout) - latency_us(bare, layout) == 32_100
    assert ttft_us(whole, layout, 300) - ttft_us(bare, layout, 300) == 3 * 32_100


def test_who_is_alone_has_a_pass_and_no_rest() -> None:
    layout = Layout((A,), N, (), N)
    assert latency_us(rested(), layout) == N * 1_000 + 100


@pytest.mark.parametrize("tail_start", [N, N - 1])
def test_who_has_rested_is_done_sooner(tail_start: int) -> None:
    """At most by what the way to it and the rest of the pass take."""
    layout = chain((A,), tail_start)
    gained = latency_us(swarm(), layout) - latency_us(rested(), layout)
    occupancy_us = 1  # at least, of any message
    assert gained == 50 + 1_500 + 30_000 + WAY_US + occupancy_us
    gained = ttft_us(swarm(), layout, 300) - ttft_us(rested(), layout, 300)
    assert gained == 50 + 1_500 + 90_000


def test_among_several_nobody_has_rested() -> None:
    layout = chain((A,))
    assert latency_us(rested(), layout, n=2) == latency_us(swarm(), layout)
    said = predict(rested(), layout, 2, 1)
    assert said.pipeline_us == latency_us(swarm(), layout)
    assert said.latency_us == latency_us(rested(), layout) < said.pipeline_us
    alone = predict(rested(), layout, 2, 2)  # All in one pass.
    assert alone.pipeline_us == latency_us(rested(), layout, rows=2)


def test_who_goes_on_by_itself_has_not_rested() -> None:
    layout = Layout((A, B), 2, (Stage(C, UnitRange(2, 4)), Stage(B, UnitRange(4, N))), N)
    whole = rested(2)
    ahead = {
        source.name: [leg.ahead_us for leg in decode_legs(whole, layout, source, 1) if leg.units]
        for source in (A, B)
    }
    to_c = 30_000 + WAY_US + 1
    assert ahead == {"a": [50, to_c, 1_500], "b": [0, to_c, 1_500]}


def test_each_chunk_of_a_prompt_is_a_pass() -> None:
    legs = prefill_legs(swarm(), chain((A,)), A, 2 * CHUNK_ROWS + 1)
    assert [leg.beside_us for leg in legs if leg.units] == [300, 6_000, 90_000]


def test_it_does_not_grow_with_rows() -> None:
    of = {rows: loads(swarm(), chain((A,)), rows)["c"] for rows in (1, 4)}
    assert of[4] - of[1] == 3 * (N - 3) * 1_000


def test_a_source_that_holds_a_stage_has_passes_of_both() -> None:
    layout = chain((A, B))
    whole, bare = loads(swarm(2), layout, 1), loads(swarm(2, False), layout, 1)
    more = {name: whole[name] - bare[name] for name in "abc"}
    assert more == {"a": Fraction(100, 2), "b": Fraction(2_000, 2) + 2_000, "c": 30_000}


def test_throughput_avoids_who_is_occupied_besides() -> None:
    """C computes quicker, and less often.  A lone token finds it at rest."""
    a, b, c = swarm().devices
    devices = (
        replace(a, budget_bytes=own_bytes(swarm(), WORKLOAD.batch)),
        replace(b, unit_us=(1_500,) * N, pass_us=0),
        replace(c, unit_us=(1_000,) * N, rested_us=RESTED[C]),
    )
    chosen = {}
    for objective in ("latency", "throughput"):
        goal = Goal(objective, micro_batch=1 if objective == "throughput" else 0)
        found = answer(replace(swarm(), devices=devices, goal=goal))
        assert found.layout is not None
        chosen[objective] = {stage.peer for stage in found.layout.stages}
    assert chosen["latency"] == {C}
    assert C not in chosen["throughput"]
