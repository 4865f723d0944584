"""How late the loop is, from what its timer saw."""

from __future__ import annotations

import asyncio
import time

from edgeshard_p2p.runtime.loop_lag import N_MAX, PERIOD_S, LoopLag


def test_nothing_is_late_before_the_first_time() -> None:
    assert LoopLag().told() == {"p50": 0.0, "p99": 0.0, "max": 0.0}


def test_one_of_a_hundred_shows_in_the_maximum_only() -> None:
    lag = LoopLag()
    for _ in range(99):
        lag.note(0.001)
    lag.note(0.04)
    assert lag.told() == {"p50": 1.0, "p99": 1.0, "max": 40.0}


def test_a_timer_that_goes_off_early_is_not_late() -> None:
    lag = LoopLag()
    lag.note(-0.001)
    assert lag.told()["max"] == 0.0


def test_a_stop_counts_for_all_that_it_kept_waiting() -> None:
    lag = LoopLag()
    for _ in range(80):
        lag.note(0.0)
    lag.note(20.5 * PERIOD_S)  # 21 of 101 were late.
    assert lag.told()["max"] == round(20.5 * PERIOD_S * 1e3, 1)
    assert lag.told()["p99"] > 19 * PERIOD_S * 1e3


def test_only_the_last_minute_counts_however_long_a_stop_was() -> None:
    lag = LoopLag()
    lag.note(1e6)
    assert lag.told()["p50"] > 0
    for _ in range(N_MAX):
        lag.note(0.0)
    assert lag.told()["max"] == 0.0


def test_a_callback_that_blocks_the_loop_is_seen() -> None:
    async def blocked() -> dict[str, float]:
        lag = LoopLag()
        task = asyncio.create_task(lag.run())
        await asyncio.sleep(PERIOD_S / 2)
        ends_at = time.monotonic() + 3 * PERIOD_S
        while time.monotonic() < ends_at:
            pass
        await asyncio.sleep(PERIOD_S / 2)
        task.cancel()
        return lag.told()

    assert asyncio.run(blocked())["max"] >= 2 * PERIOD_S * 1e3
