"""Making a process slower: a CPU quota where root may set one, else stopping it in turns.

Knows nothing of what the process is.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

PERIOD_S = 0.02
"""Short: with 100 ms, one token would wait for most of a period and the next for none."""
SHARES = 2**16
"""Of 1,024 that others have: it gets what its quota is, whoever else is busy on this machine."""
_CPU = Path("/sys/fs/cgroup/cpu")


class Throttle(Protocol):
    how: str

    def end(self) -> None: ...


def throttle(pid: int, by: float) -> Throttle:
    """Let ``pid`` have one core's time / ``by``, until ``end``."""
    if (_CPU / "cpu.cfs_quota_us").exists() or (_CPU / "cgroup.procs").exists():
        with suppress(OSError):
            return _Quota(pid, by)
    return _StopAndGo(pid, by)


class _Quota:
    how = "a cgroup's CPU quota"

    def __init__(self, pid: int, by: float) -> None:
        self._pid, self._home = pid, _CPU / _cgroup_of(pid).lstrip("/")
        self._own = self._home / f"edgeshard-{os.getpid()}-{pid}"
        self._own.mkdir()
        try:
            period_us = int(PERIOD_S * 1e6)
            (self._own / "cpu.cfs_period_us").write_text(str(period_us))
            (self._own / "cpu.cfs_quota_us").write_text(str(max(1_000, int(period_us / by))))
            (self._own / "cpu.shares").write_text(str(SHARES))
            self._move(self._own)
        except OSError:
            self.end()
            raise

    def _move(self, to: Path) -> None:
        for pid in _family(self._pid):
            with suppress(ProcessLookupError):
                (to / "cgroup.procs").write_text(str(pid))

    def end(self) -> None:
        for line in (self._own / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (self._home / "cgroup.procs").write_text(line)
        self._own.rmdir()


def _cgroup_of(pid: int) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return path
    return "/"


def _family(pid: int) -> list[int]:
    with suppress(psutil.Error):
        return [pid, *(child.pid for child in psutil.Process(pid).children())]
    return []


class _StopAndGo:
    how = "stopping and continuing it"

    def __init__(self, pid: int, by: float) -> None:
        self._pid, self._by = pid, by
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._turns, daemon=True)
        self._thread.start()

    def _turns(self) -> None:
        goes_s = PERIOD_S / self._by
        with suppress(ProcessLookupError):
            while not self._is_over.wait(goes_s):
                os.kill(self._pid, signal.SIGSTOP)
                self._is_over.wait(PERIOD_S - goes_s)
                os.kill(self._pid, signal.SIGCONT)

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)
