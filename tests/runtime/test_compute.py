"""One thread computes; results and expected errors come back to the loop, bugs reach on_bug."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import uvloop

from edgeshard_p2p.runtime.compute import Compute
from tests.runtime.waiting import until_async


class Expected(Exception):
    pass


def _raising(error: BaseException) -> Callable[[], Any]:
    def work() -> None:
        raise error

    return work


def test_results_come_back_on_the_loop_in_order() -> None:
    async def main() -> None:
        results: list[int] = []
        threads: set[int] = set()
        compute = Compute((Expected,), lambda bug: None)

        def work(i: int) -> int:
            threads.add(threading.get_ident())
            return i

        def on_done(i: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            results.append(i)

        for i in range(100):
            compute.submit(partial(work, i), on_done, lambda error: None)
        await until_async(lambda: len(results) == 100, "all results")
        assert results == list(range(100))
        assert len(threads) == 1
        assert threading.main_thread().ident not in threads
        compute.close()

    uvloop.run(main())


def test_errors_come_back_and_work_goes_on() -> None:
    async def main() -> None:
        bugs: list[BaseException] = []
        seen: list[object] = []
        compute = Compute((Expected, MemoryError), bugs.append)
        for error in (Expected("first"), MemoryError("second")):
            compute.submit(_raising(error), seen.append, seen.append)
        compute.submit(lambda: "third", seen.append, seen.append)
        await until_async(lambda: len(seen) == 3, "all outcomes")
        assert [str(outcome) for outcome in seen] == ["first", "second", "third"]
        assert not bugs
        compute.close()

    uvloop.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_reaches_on_bug_and_nothing_runs_after_it() -> None:
    async def main() -> None:
        bugs: list[BaseException] = []
        seen: list[object] = []
        compute = Compute((Expected,), bugs.append)
        compute.submit(_raising(ZeroDivisionError("a bug")), seen.append, seen.append)
        compute.submit(lambda: "after", seen.append, seen.append)
        await until_async(lambda: bugs, "the bug")
        await until_async(lambda: not compute._thread.is_alive(), "the thread's end")
        assert (str(bugs[0]), seen) == ("a bug", [])

    uvloop.run(main())


def test_the_loop_goes_on_while_work_blocks() -> None:
    async def main() -> None:
        entered, release, seen = threading.Event(), threading.Event(), list[str]()
        compute = Compute((Expected,), lambda bug: None)

        def work() -> str:
            entered.set()
            assert release.wait(60)
            return "done"

        compute.submit(work, seen.append, lambda error: None)
        await until_async(entered.is_set, "the work's beginning")
        for _ in range(100):
            await asyncio.sleep(0)
        assert not seen
        release.set()
        await until_async(lambda: seen == ["done"], "the result")
        compute.close()
        await until_async(lambda: not compute._thread.is_alive(), "the thread's end")

    uvloop.run(main())


def test_what_ends_after_the_loop_is_lost_quietly() -> None:
    entered, release = threading.Event(), threading.Event()

    async def main() -> threading.Thread:
        compute = Compute((Expected,), lambda bug: None)

        def work() -> None:
            entered.set()
            assert release.wait(60)

        compute.submit(work, lambda _: None, lambda error: None)
        compute.close()
        await until_async(entered.is_set, "the work's beginning")
        return compute._thread

    thread = uvloop.run(main())
    release.set()
    thread.join(60)
    assert not thread.is_alive()
