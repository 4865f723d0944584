"""The planner's process: the same choice as here, and no life of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import msgspec
import psutil
import pytest
import uvloop

from edgeshard_p2p.core.plan import Choice
from edgeshard_p2p.core.planner import choose
from edgeshard_p2p.runtime.plan_worker import LENGTH_BYTES, PlanWorker
from tests.core.planner_oracle import random_swarm
from tests.runtime.waiting import until, until_async

SWARMS = [random_swarm(seed) for seed in range(20)]
COMMAND = [sys.executable, "-m", "edgeshard_p2p.runtime.plan_worker"]


def test_it_chooses_as_choose_does_in_order() -> None:
    async def main() -> None:
        choices: list[Choice] = []
        worker = PlanWorker(choices.append)
        await worker.open()
        run = asyncio.create_task(worker.run())
        try:
            for swarm in SWARMS:
                worker.ask(swarm)
            await until_async(lambda: len(choices) == len(SWARMS), "all choices")
        finally:
            run.cancel()
            await worker.close()
        assert choices == [choose(swarm) for swarm in SWARMS]

    uvloop.run(main())


def test_closing_ends_it_whatever_it_does() -> None:
    async def main() -> int:
        worker = PlanWorker(lambda choice: None)
        await worker.open()
        assert worker._process is not None
        pid = worker._process.pid
        os.kill(pid, signal.SIGSTOP)
        worker.ask(SWARMS[0])
        await worker.close()
        return pid

    assert not psutil.pid_exists(uvloop.run(main()))


def test_it_ends_with_its_input() -> None:
    worker = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        out, _ = worker.communicate(b"", timeout=60)
    finally:
        worker.kill()
    assert (worker.returncode, out) == (0, b"")


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_it_ends_without_a_word_when_its_parent_is_gone(cut: int) -> None:
    """While it planned, or in the middle of a message."""
    data = msgspec.msgpack.encode(SWARMS[0])
    message = len(data).to_bytes(LENGTH_BYTES, "big") + data
    reader, writer = os.pipe()
    worker = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE)
    try:
        os.close(writer)
        os.close(reader)
        _, said = worker.communicate(message[: len(message) - cut], timeout=60)
    finally:
        worker.kill()
    assert said == b""


def test_it_does_not_outlive_a_killed_parent() -> None:
    script = (
        "import asyncio\n"
        "from edgeshard_p2p.runtime.plan_worker import PlanWorker\n"
        "async def main():\n"
        "    worker = PlanWorker(print)\n"
        "    await worker.open()\n"
        "    print(worker._process.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
    finally:
        parent.kill()
        parent.communicate()
    until(lambda: not _runs(worker), "the worker's end")


def test_an_interrupt_of_the_whole_group_is_not_meant_for_it() -> None:
    async def main() -> None:
        choices: list[Choice] = []
        worker = PlanWorker(choices.append)
        await worker.open()
        run = asyncio.create_task(worker.run())
        try:
            worker.ask(SWARMS[0])
            await until_async(lambda: choices, "the first choice")
            assert worker._process is not None
            worker._process.send_signal(signal.SIGINT)
            worker.ask(SWARMS[1])
            await until_async(lambda: len(choices) == 2, "the second choice")
        finally:
            run.cancel()
            await worker.close()

    uvloop.run(main())


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
