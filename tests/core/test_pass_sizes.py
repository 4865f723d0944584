"""How many rows go into a pass: what costs least by the measured figures."""

from __future__ import annotations

from msgspec.structs import replace

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.layout import Layout, predict
from edgeshard_p2p.core.pass_sizes import PassSizes
from edgeshard_p2p.core.plan import (
    Device,
    Goal,
    Link,
    Plan,
    RowTimes,
    Snapshot,
    Stage,
    snapshot,
)
from tests.core.parts import MODEL, WORKLOAD, A, B, C

PLAN = Plan(MODEL.digest, WORKLOAD, (A,), 2, (Stage(B, UnitRange(2, 6)),))
ALONE = Plan(MODEL.digest, WORKLOAD, (A,), 6, ())


def swarm(us_of_rows: dict[int, int], goal: Goal | None = None, delay_us: int = 0) -> Snapshot:
    """Three devices of which each unit takes so long for so many rows."""
    one, *more = [RowTimes(rows, (us,) * MODEL.n_units) for rows, us in us_of_rows.items()]
    devices = [Device(p, True, 10**9, one.unit_us, decode=tuple(more)) for p in (A, B, C)]
    links = [
        Link(a.name, b.name, delay_us, 1, 10**9) for a in (A, B, C) for b in (A, B, C) if a != b
    ]
    return snapshot(MODEL, WORKLOAD, devices, links, goal or Goal())


DEAR_PASSES = swarm({1: 1000, 16: 1000})
DEAR_ROWS = swarm({1: 1000, 16: 16_000})


def rows(plan: Plan, n_requests: int, seen: Snapshot | None) -> int | None:
    size = PassSizes().of(plan, n_requests, seen)
    return size.rows if size is not None else None


def test_one_device_takes_all_at_once() -> None:
    assert rows(ALONE, 8, DEAR_PASSES) == 8
    assert rows(ALONE, 8, DEAR_ROWS) == 8  # As good as one by one, in fewer passes.


def test_a_pipeline_takes_so_few_that_each_stage_has_something_to_do() -> None:
    even = replace(PLAN, entry_end=3, stages=(Stage(B, UnitRange(3, 6)),))
    assert rows(even, 8, DEAR_ROWS) == 2  # 4 each would fill it but for the time on links.
    assert rows(even, 8, DEAR_PASSES) == 4  # 8 in one take as long as 4 in each of two.
    assert rows(even, 1, DEAR_ROWS) == 1


def test_long_delays_want_more_in_flight() -> None:
    even = replace(PLAN, entry_end=3, stages=(Stage(B, UnitRange(3, 6)),))
    far = swarm({1: 1000, 16: 16_000}, delay_us=40_000)
    assert (rows(even, 16, DEAR_ROWS), rows(even, 16, far)) == (4, 1)


def test_no_size_is_better_by_the_cost_model() -> None:
    seen = swarm({1: 900, 2: 1000, 4: 1800, 8: 3000, 16: 5600}, delay_us=2000)
    layout = Layout((A,), 2, PLAN.stages, MODEL.n_units)
    for n_requests in range(1, 20):
        found = PassSizes().of(PLAN, n_requests, seen)
        assert found is not None
        others = [predict(seen, layout, n_requests, n) for n in range(1, n_requests + 1)]
        assert found.iteration_us == min(other.iteration_us for other in others)
        assert predict(seen, layout, n_requests, found.rows).iteration_us == found.iteration_us


def test_size_that_was_set_is_taken() -> None:
    seen = swarm({1: 1000, 16: 1000}, Goal(micro_batch=3))
    assert (rows(PLAN, 8, seen), rows(PLAN, 2, seen)) == (3, 2)


def test_chunks_for_all_leave_no_gaps_to_fill() -> None:
    stages = (Stage(B, UnitRange(2, 4)), Stage(C, UnitRange(4, 6)))
    three, sizes = replace(PLAN, stages=stages), PassSizes()
    few = sizes.rows(three, 8, 0, DEAR_ROWS)
    assert few < 8
    assert [sizes.rows(three, 8, n_chunks, DEAR_ROWS) for n_chunks in (1, 2, 3, 9)] == [
        few,
        few,
        8,
        8,
    ]
    wished = swarm({1: 1000, 16: 16_000}, Goal(micro_batch=3))
    assert sizes.rows(three, 8, 9, wished) == 3
    dear = swarm({1: 1000, 8: 1000, 16: 32_000})
    alone = rows(ALONE, 16, dear)
    assert alone == 8
    assert sizes.rows(ALONE, 16, 9, dear) == alone  # It has no stages that would wait.
    assert sizes.rows(three, 8, 0, None) == 8


def test_nothing_is_known_of_a_plan_that_the_snapshot_does_not_cover() -> None:
    assert rows(PLAN, 8, None) is None
    assert rows(PLAN, 0, DEAR_ROWS) is None
    gone = replace(DEAR_ROWS, devices=DEAR_ROWS.devices[:1])
    assert rows(PLAN, 8, gone) is None
    assert rows(PLAN, 8, replace(DEAR_ROWS, links=())) is None
    assert rows(replace(PLAN, stages=(Stage(B, UnitRange(2, 4)),)), 8, DEAR_ROWS) is None


def test_new_figures_count() -> None:
    sizes = PassSizes()
    even = replace(PLAN, entry_end=3, stages=(Stage(B, UnitRange(3, 6)),))
    far = swarm({1: 1000, 16: 16_000}, delay_us=40_000)
    found = [sizes.of(even, 16, seen) for seen in (DEAR_ROWS, far, DEAR_ROWS)]
    assert [size.rows for size in found if size] == [4, 1, 4]
