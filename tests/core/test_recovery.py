"""Where a request goes on, and what is computed again for it."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from edgeshard_p2p.core.cached import Cached, Resuming, reopened
from edgeshard_p2p.core.ids import RequestId, UnitRange
from edgeshard_p2p.core.messages import CachedUnits, LoggedRows, Replay
from edgeshard_p2p.core.recovery import SOURCE, Part, Resumption, resumption
from edgeshard_p2p.core.work import CacheKey
from tests.core.parts import A

KEY = CacheKey(RequestId(A, 1), "stage")
N_KNOWN = 10


def part(stage: int, start: int, end: int, cached: int = 0, logged: int = 0) -> Part:
    units = UnitRange(start, end)
    runs = (CachedUnits(units, cached),) if cached else ()
    logs = (LoggedRows(end, 0, logged),) if logged else ()
    return Part(stage, units, Cached(runs, logs), 1000)


def test_everything_is_there() -> None:
    parts = [part(SOURCE, 0, 2, 9), part(0, 2, 4, 9), part(1, 4, 6, 10)]
    assert resumption(parts, N_KNOWN) == Resumption(9, (), 6000)


def test_lost_stage_is_filled_from_the_log_above_it() -> None:
    parts = [part(SOURCE, 0, 2, 9, 9), part(0, 2, 4, 9, 9), part(1, 4, 6), part(2, 6, 8, 9)]
    found = resumption(parts, N_KNOWN)
    assert (found.position, found.replays) == (9, (Replay(0, 4, 6, 0),))
    assert found.n_replayed(N_KNOWN) == 9


def test_without_that_log_units_above_are_computed_again_as_well() -> None:
    parts = [part(SOURCE, 0, 2, 9, 9), part(0, 2, 4, 9), part(1, 4, 6), part(2, 6, 8, 9)]
    assert resumption(parts, N_KNOWN).replays == (Replay(SOURCE, 2, 6, 0),)


def test_units_that_moved_are_filled_from_the_log_in_the_middle_of_their_stage() -> None:
    """Stage 0 had [2, 4) and takes over a part of what is lost."""
    kept = Cached((CachedUnits(UnitRange(2, 4), 9),), (LoggedRows(4, 0, 9),))
    parts = [
        part(SOURCE, 0, 2, 9, 9),
        Part(0, UnitRange(2, 5), kept, 1000),
        Part(1, UnitRange(5, 8), Cached((CachedUnits(UnitRange(6, 8), 9),)), 1000),
    ]
    assert resumption(parts, N_KNOWN).replays == (Replay(0, 4, 6, 0),)


def test_two_lost_stages_apart_are_filled_each_from_its_own_log() -> None:
    parts = [
        part(SOURCE, 0, 2, 9, 9),
        part(0, 2, 4),
        part(1, 4, 6, 9, 9),
        part(2, 6, 8),
        part(3, 8, 10, 9),
    ]
    assert resumption(parts, N_KNOWN).replays == (Replay(SOURCE, 2, 4, 0), Replay(1, 6, 8, 0))


def test_prompt_that_was_half_way_goes_on_where_it_is_cheapest() -> None:
    """The last stage is behind the others: it is filled up, rather than all cut back to it."""
    parts = [part(SOURCE, 0, 2, 8, 8), part(0, 2, 12, 8, 8), part(1, 12, 14, 4)]
    found = resumption(parts, 100)
    assert (found.position, found.replays) == (8, (Replay(0, 12, 13, 4),))


def test_where_nothing_is_left_the_prompt_is_prefilled_again() -> None:
    parts = [part(SOURCE, 0, 2, 9), part(0, 2, 4, 9), part(1, 4, 6)]
    assert resumption(parts, N_KNOWN) == Resumption(0, (), 60_000)


def test_log_that_begins_too_late_is_none() -> None:
    late = Cached((CachedUnits(UnitRange(2, 4), 9),), (LoggedRows(4, 3, 9),))
    parts = [part(SOURCE, 0, 2, 9), Part(0, UnitRange(2, 4), late, 1000), part(1, 4, 6)]
    assert resumption(parts, N_KNOWN).position == 0


def random_parts(rng: Random) -> list[Part]:
    """Cuts, cached lengths and logs as they may be after any history."""
    n_units = rng.randint(4, 12)
    cuts = sorted(rng.sample(range(1, n_units), rng.randint(0, min(4, n_units - 1))))
    parts = []
    for stage, (start, end) in enumerate(zip([0, *cuts], [*cuts, n_units], strict=True), SOURCE):
        inner = sorted(rng.sample(range(start, end + 1), min(2, end - start)))
        bounds = [start, *inner, end]
        runs = [
            CachedUnits(UnitRange(a, b), rng.choice((0, 3, 8, 9, 12)))
            for a, b in pairwise(bounds)
            if a < b
        ]
        logs = [
            LoggedRows(unit, rng.choice((0, 0, 2)), rng.choice((4, 9, 12)))
            for unit in rng.sample(range(start, end + 1), rng.randint(0, 2))
        ]
        kept = Cached(tuple(run for run in runs if run.length), tuple(logs))
        parts.append(Part(stage, UnitRange(start, end), kept, rng.choice((1, 1000))))
    return parts


@pytest.mark.parametrize("seed", range(300))
def test_whatever_is_left_every_part_has_what_its_attempt_needs(seed: int) -> None:
    """Each peer can open as it is told, each lacking unit is filled once, and rows come to a stage
    by one replay only."""
    rng = Random(seed)
    parts = random_parts(rng)
    found = resumption(parts, N_KNOWN)
    n_units, replays = parts[-1].units.end, found.replays
    assert 0 <= found.position < N_KNOWN
    for one in parts:
        at = Resuming(one.stage, one.units, n_units, found.position, replays)
        assert reopened(KEY, one.cached, at) is not None, f"{one}, {found}"
        ranges = [UnitRange(replay.start, replay.end) for replay in replays]
        assert sum(1 for again in ranges if set(again) & set(one.units)) <= 1
        for unit in at.blocks:
            is_filled = any(unit in again for again in ranges)
            assert is_filled or one.cached.length(unit) >= found.position
    for replay in replays:
        holder = parts[replay.holder + 1]
        assert holder.units.start <= replay.start <= holder.units.end
        assert replay.position < found.position
    assert found.cost_us <= N_KNOWN * sum(one.row_us * len(one.units) for one in parts)


def test_part_that_lacks_something_does_not_open() -> None:
    held = Cached((CachedUnits(UnitRange(2, 4), 5),), (LoggedRows(4, 0, 5),))

    def opens(position: int, *replays: Replay) -> bool:
        at = Resuming(0, UnitRange(2, 4), 8, position, replays)
        return reopened(KEY, held, at) is not None

    assert opens(5)
    assert not opens(6)
    assert opens(6, Replay(SOURCE, 2, 4, 5))
    assert not opens(7, Replay(SOURCE, 2, 4, 6))
    assert opens(5, Replay(0, 4, 6, 0))
    assert not opens(6, Replay(0, 4, 6, 0))
    assert not opens(5, Replay(SOURCE, 2, 4, 5))
