"""Making a process slower, and letting it go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from edgeshard_p2p.faults.throttle import SHARES, Throttle, _Quota, _StopAndGo, throttle


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("make", [throttle, _StopAndGo])
def test_process_goes_on_when_its_throttle_ends(
    make: type[_StopAndGo], busy: subprocess.Popen[bytes]
) -> None:
    slowed: Throttle = make(busy.pid, 4)
    assert slowed.how
    slowed.end()
    assert psutil.Process(busy.pid).status() != psutil.STATUS_STOPPED


@pytest.mark.needs_root
def test_quota_is_had_whoever_else_is_busy(busy: subprocess.Popen[bytes]) -> None:
    try:
        slowed = _Quota(busy.pid, 4)
    except OSError as error:
        pytest.skip(f"a quota needs root and version 1 of control groups: {error}")
    told = {name: (slowed._own / name).read_text().strip() for name in ("cpu.shares", "tasks")}
    slowed.end()
    assert told == {"cpu.shares": str(SHARES), "tasks": str(busy.pid)}
    assert not slowed._own.exists()


def test_process_that_is_gone_can_be_let_go(busy: subprocess.Popen[bytes]) -> None:
    slowed = throttle(busy.pid, 4)
    busy.kill()
    busy.wait()
    slowed.end()
