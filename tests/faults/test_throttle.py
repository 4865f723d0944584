"""Keeping a process to its part of the machine, and letting it go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgeshard_p2p.control_groups import MEMORY, Groups
from edgeshard_p2p.faults import throttle
from edgeshard_p2p.faults.throttle import QUOTA, TURNS, Part

MIB = 2**20


class NoGroups(Groups):
    """A machine where none can be made."""

    def __init__(self, name: str) -> None:
        super().__init__(name, Path("/no/such/groups"), Path("/no/such/process"))


@pytest.fixture
def without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "Groups", NoGroups)


def started(part: Part, script: str = "while True: pass") -> subprocess.Popen[bytes]:
    return subprocess.Popen([*part.command(), sys.executable, "-c", script])


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process
    process.kill()
    process.wait()


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    return bool(psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)


def test_process_is_stopped_in_turns_where_there_are_no_groups(
    without_groups: None, busy: subprocess.Popen[bytes]
) -> None:
    with Part("x", 0.5, 64 * MIB) as part:
        assert part.command() == []
        assert part.why_memory_free == "no control group can be made here"
        part.begin(busy.pid)
        assert part.slow(busy.pid, 4) == TURNS
        part.restore(busy.pid)
        part.let_go()
        assert not is_stopped(busy)
        part.slow(busy.pid, 4)
    assert not is_stopped(busy)


def test_process_that_is_gone_can_be_let_go(
    without_groups: None, busy: subprocess.Popen[bytes]
) -> None:
    with Part("x", 0.5, None) as part:
        part.begin(busy.pid)
        busy.kill()
        busy.wait()
        part.end()


@pytest.fixture
def real() -> Iterator[Part]:
    with Groups("edgeshard-tests-look") as groups:
        if not groups.has(MEMORY):
            pytest.skip(f"limits of memory need control groups: {groups.why_not}")
    with Part("edgeshard-tests", 0.5, 64 * MIB) as part:
        yield part


@pytest.mark.needs_root
def test_process_that_takes_more_memory_than_it_may_is_ended(real: Part) -> None:
    assert real.why_memory_free == ""
    assert started(real, f"bytearray({16 * MIB})").wait() == 0
    assert real.why_killed() == ""
    assert started(real, f"bytearray({256 * MIB})").wait() == -9
    assert real.why_killed() == "it went beyond its 64 MiB, and the system ended it"


@pytest.mark.needs_root
def test_quota_is_in_force_from_the_first_moment_and_goes_with_the_part(real: Part) -> None:
    script = "from edgeshard_p2p.model.cpu_quota import cpu_share; print(cpu_share())"
    command = [*real.command(), sys.executable, "-c", script]

    def share() -> float:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert share() == 0.5
    assert real.slow(0, 2) == QUOTA
    assert share() == 0.25
    real.end()
    assert share() == 0.5


@pytest.mark.needs_root
def test_what_still_runs_in_a_part_ends_with_it() -> None:
    with Part("edgeshard-tests", 0.5, None) as part:
        if not part.command():
            pytest.skip("no control group can be made here")
        script = "print(flush=True)\nwhile True: pass"
        command = [*part.command(), sys.executable, "-c", script]
        left = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert left.stdout is not None
        assert left.stdout.readline() == b"\n"
    assert left.wait() == -9
    left.stdout.close()
