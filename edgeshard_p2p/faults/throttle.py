"""Keeping a process to a part of this machine: by control groups where they may be had, else by
stopping it in turns.

Knows nothing of what the process is.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack, suppress

from edgeshard_p2p.control_groups import CPU, GroupError, Groups
from edgeshard_p2p.faults.devices import FaultError

PERIOD_S = 0.02
"""Of stopping and continuing: signals come late by tenths of a millisecond."""
QUOTA, TURNS = "a control group's quota", "stopping and continuing it"
LIMIT = "a control group's limit"
_MIB = 2**20


class Part:
    """Of this machine, for one device whose processes may come and go: ``cores`` of its
    processors' time and ``memory_bytes``, where they are given.  ``name``: of its control groups,
    which no other part has.  A context manager, at whose end what still runs in it is ended."""

    def __init__(self, name: str, cores: float | None, memory_bytes: int | None) -> None:
        self._cores, self._memory_bytes = cores, memory_bytes
        self._cores_now = cores
        self._n_killed = 0
        """By the system, before the process that is there now."""
        self._turns: _StopAndGo | None = None
        with ExitStack() as undo:
            self._groups = undo.enter_context(Groups(name))
            self.why_memory_free = self._limit_memory()
            """Why its memory is not limited; empty: it is, or need not be."""
            self._by_quota = self._groups.has(CPU) and self._has_quota(cores)
            undo.pop_all()

    def _limit_memory(self) -> str:
        if self._memory_bytes is not None:
            try:
                self._groups.limit_memory(self._memory_bytes)
            except GroupError as error:
                return str(error)
        return ""

    def _has_quota(self, cores: float | None) -> bool:
        try:
            self._groups.limit_cores(cores)
        except GroupError:
            return False
        return True

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        try:
            self._groups.remove()
        except GroupError as error:
            raise FaultError(str(error)) from None

    @property
    def has_memory_limit(self) -> bool:
        return self._memory_bytes is not None and not self.why_memory_free

    @property
    def how_slowed(self) -> str:
        return QUOTA if self._by_quota else TURNS

    def command(self) -> list[str]:
        """What to put before a command that is to have no more than this."""
        return self._groups.command()

    def begin(self, pid: int) -> None:
        """A process has been started by that command, or goes on after ``let_go``."""
        self._n_killed = self._groups.n_killed()
        self._give(pid, self._cores_now)

    def slow(self, pid: int, by: float) -> str:
        """How it was done."""
        self._give(pid, (self._cores or 1) / by)
        return self.how_slowed

    def restore(self, pid: int) -> None:
        self._give(pid, self._cores)

    def _give(self, pid: int, cores: float | None) -> None:
        self.let_go()
        self._cores_now = cores
        self._by_quota = self._by_quota and self._has_quota(cores)
        if not self._by_quota and cores is not None and cores < 1:
            self._turns = _StopAndGo(pid, 1 / cores)

    def let_go(self) -> None:
        """No more signals to the process: it is to stand still, or its number may be somebody
        else's soon."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.end()

    def end(self) -> None:
        """Of the process that was begun; the next one begins as the first did."""
        self.let_go()
        self._cores_now = self._cores
        if self._by_quota:
            self._has_quota(self._cores)

    def why_killed(self) -> str:
        """Empty where the system has not ended anything in here."""
        if self._groups.n_killed() <= self._n_killed:
            return ""
        mib = (self._memory_bytes or 0) // _MIB
        return f"it went beyond its {mib} MiB, and the system ended it"


class _StopAndGo:
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
