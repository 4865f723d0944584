"""Control groups: how much of the machine the system lets a process have, in both versions.

    version 1    a tree for each controller: GROUPS/cpu, GROUPS/memory
    version 2    one tree; a group has the controllers that its parent hands on, and a parent that
                 hands any on has no process itself, unless it is the root

What is read here is what a process may have; what is made here are groups of our own, for those
that are to have less.  Knows nothing of what runs in them.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self/cgroup")
PROCS = "cgroup.procs"
CPU, MEMORY = "cpu", "memory"
PERIOD_US = 10_000
"""Short: with 100 ms, one token would wait for most of a period and the next for none.  Shorter
does nothing more: the system looks every 4 ms at most for who has had its slice."""
QUOTA_US_MIN = 1_000
SHARES, WEIGHT = 2**16, 10_000
"""Of 1,024 and of 100 that others have: what is emulated gets what its quota is, whoever else is
busy on this machine."""
REMOVE_TRIES, REMOVE_PAUSE_S = 100, 0.02
"""A process that was killed is in its group until it has been taken apart."""


class GroupError(Exception):
    """The machine's: why there is no such group, or limit, in one line."""


# --- what this process may have ---------------------------------------------------------------


def cores_allowed(groups: Path = GROUPS, process: Path = PROCESS) -> float:
    """Of processors, by the quotas of its groups and of those above; without any: infinite."""
    return min([math.inf, *_values(CPU, groups, process)])


def usable_cores(groups: Path = GROUPS, process: Path = PROCESS) -> float:
    """How many processors this process may use at most: it may be kept to some of the machine's,
    or to a share of their time."""
    # NOTE: only Linux says which processors a process is kept to.
    kept_to = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return min(len(kept_to) or os.cpu_count() or 1, cores_allowed(groups, process))


def memory_left(groups: Path = GROUPS, process: Path = PROCESS) -> float:
    """Bytes until the first limit of its groups and of those above; infinite without any.  What
    is there of files counts as free: the system gives that up first."""
    return min([math.inf, *_values(MEMORY, groups, process)])


def _values(controller: str, groups: Path, process: Path) -> Iterator[float]:
    """What each group of this process's allows, of those that allow less than everything."""
    for is_v1, base, own in _own(controller, groups, process):
        for group in (own, *own.parents):
            if group.is_relative_to(base):
                with suppress(OSError, ValueError):
                    yield _READERS[controller, is_v1](group)


def _own(controller: str, groups: Path, process: Path) -> Iterator[tuple[bool, Path, Path]]:
    """Whether it is version 1, the root of that tree, and the process's group in it."""
    with suppress(OSError, ValueError):
        for line in process.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            is_v1 = controller in controllers.split(",")
            if is_v1 or not controllers:
                base = groups / controller if is_v1 else groups
                yield is_v1, base, base / path.lstrip("/")


def _cores_of_v1(group: Path) -> float:
    quota_us = int((group / "cpu.cfs_quota_us").read_text())
    if quota_us <= 0:  # -1: no limit.
        return math.inf
    return quota_us / int((group / "cpu.cfs_period_us").read_text())


def _cores_of_v2(group: Path) -> float:
    quota_us, period_us = (group / "cpu.max").read_text().split()
    return math.inf if quota_us == "max" else int(quota_us) / int(period_us)


def _left_of_v1(group: Path) -> float:
    limit = int((group / "memory.limit_in_bytes").read_text())
    return limit - _number((group / "memory.stat").read_text(), "total_rss")


def _left_of_v2(group: Path) -> float:
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return math.inf
    return int(limit) - _number((group / "memory.stat").read_text(), "anon")


_READERS = {
    (CPU, True): _cores_of_v1,
    (CPU, False): _cores_of_v2,
    (MEMORY, True): _left_of_v1,
    (MEMORY, False): _left_of_v2,
}


def _number(text: str, key: str) -> int:
    """Of a file with a key and a number on each line; 0 where it is not in it."""
    pairs = (line.split() for line in text.splitlines())
    return next((int(pair[1]) for pair in pairs if pair and pair[0] == key), 0)


# --- groups of our own ------------------------------------------------------------------------


class Groups:
    """Of one device: for its processors' time and for its memory, which are one in version 2.
    ``why_not``: why there are none; empty: there are.  A context manager, that removes them."""

    def __init__(self, name: str, groups: Path = GROUPS, process: Path = PROCESS) -> None:
        self._of: dict[str, Path] = {}
        self._is_v1: dict[str, bool] = {}
        self.why_not = ""
        with ExitStack() as undo:
            undo.callback(self.remove)
            try:
                self._make(name, groups, process)
            except OSError:
                self.remove()
            self._try()
            undo.pop_all()

    def __enter__(self) -> Groups:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _make(self, name: str, groups: Path, process: Path) -> None:
        wanted, above = [], []
        for controller in (CPU, MEMORY):
            for is_v1, base, own in _own(controller, groups, process):
                if not is_v1:
                    above = [g for g in (own, *own.parents) if g.is_relative_to(base)]
                elif (own / PROCS).exists():
                    self._add(controller, own / name, is_v1=True)
            if controller not in self._of:
                wanted.append(controller)
        # A process is in one group of version 2 only: best in one that has all that is wanted.
        for controllers in (wanted, wanted[:1], wanted[1:]):
            for parent in above if controllers else []:
                if all(_hands_on(parent, controller) for controller in controllers):
                    for controller in controllers:
                        self._add(controller, parent / name, is_v1=False)
                    return

    def _add(self, controller: str, path: Path, is_v1: bool) -> None:
        # Noted first: an interruption may come at any moment.
        self._of[controller], self._is_v1[controller] = path, is_v1
        path.mkdir(exist_ok=True)

    def _try(self) -> None:
        """Whether a process may be put there shows when one is."""
        if not self._of:
            self.why_not = "no control group can be made here"
            return
        tried = subprocess.run([*self.command(), "true"], capture_output=True, check=False)
        if tried.returncode:
            self.remove()
            self.why_not = "no process may be put into a control group here"

    def has(self, controller: str) -> bool:
        return controller in self._of

    @property
    def _paths(self) -> list[Path]:
        return list(dict.fromkeys(self._of.values()))

    def command(self) -> list[str]:
        """What to put before a command for it to run in here, from its first page on and under
        its own pid."""
        if not self._of:
            return []
        joins = [f"echo $$ > {shlex.quote(str(path / PROCS))} && " for path in self._paths]
        return ["sh", "-c", "".join([*joins, 'exec "$@"']), "sh"]

    def limit_cores(self, cores: float | None) -> None:
        """To so much of the processors' time; None: to all of it.  Raises GroupError."""
        # The system has a least quota, so a small part takes a longer period.
        period_us = max(PERIOD_US, math.ceil(QUOTA_US_MIN / cores)) if cores else PERIOD_US
        quota_us = None if cores is None else round(period_us * cores)
        if self._is_v1.get(CPU):
            files = {
                "cpu.cfs_period_us": str(period_us),
                "cpu.cfs_quota_us": str(-1 if quota_us is None else quota_us),
                "cpu.shares": str(SHARES),
            }
        else:
            quota = "max" if quota_us is None else str(quota_us)
            files = {"cpu.max": f"{quota} {period_us}", "cpu.weight": str(WEIGHT)}
        self._write(CPU, files)

    def limit_memory(self, n_bytes: int) -> None:
        """Whoever goes beyond it is ended by the system.  Raises GroupError."""
        is_v1 = self._is_v1.get(MEMORY)
        self._write(MEMORY, {"memory.limit_in_bytes" if is_v1 else "memory.max": str(n_bytes)})
        # Swapping would let a device have more, and slowly.  Not every system counts it.
        no_swap = ("memory.memsw.limit_in_bytes", n_bytes) if is_v1 else ("memory.swap.max", 0)
        with suppress(GroupError):
            self._write(MEMORY, {no_swap[0]: str(no_swap[1])})

    def _write(self, controller: str, files: dict[str, str]) -> None:
        if controller not in self._of:
            raise GroupError(self.why_not or f"no control group for {controller} here")
        for name, text in files.items():
            try:
                (self._of[controller] / name).write_text(text)
            except OSError as error:
                raise GroupError(f"{self._of[controller] / name}: {error.strerror}") from None

    def n_killed(self) -> int:
        """How many processes the system has ended because there was no more memory."""
        name = "memory.oom_control" if self._is_v1.get(MEMORY) else "memory.events"
        with suppress(OSError, KeyError):
            return _number((self._of[MEMORY] / name).read_text(), "oom_kill")
        return 0

    def remove(self) -> None:
        """With whatever still runs in them.  Raises GroupError."""
        paths = self._paths
        self._of.clear()
        _remove_all(paths)


def remove_named(prefix: str, groups: Path = GROUPS) -> None:
    """Groups of that name that nobody is left to remove.  Raises GroupError."""
    _remove_all([path for path in sorted(groups.rglob(f"{prefix}*")) if path.is_dir()])


def _remove_all(paths: list[Path]) -> None:
    """One that cannot be removed keeps no other."""
    errors = list[GroupError]()
    for path in paths:
        try:
            _remove(path)
        except GroupError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _remove(path: Path) -> None:
    for _ in range(REMOVE_TRIES):
        if _is_removed(path):
            return
        threading.Event().wait(REMOVE_PAUSE_S)
    raise GroupError(f"control group {path} cannot be removed: it is still in use")


def _hands_on(parent: Path, controller: str) -> bool:
    """Whether groups below ``parent`` have that controller, from now on: it stays so, as somebody
    else may have come to rely on it."""
    handed_on = parent / "cgroup.subtree_control"
    with suppress(OSError):
        if not os.access(parent / PROCS, os.W_OK):
            return False  # Nobody could be moved between its groups.
        if controller not in handed_on.read_text().split():
            # Refused where processes are, but for the root.
            handed_on.write_text(f"+{controller}")
        return controller in handed_on.read_text().split()
    return False


def _is_removed(path: Path) -> bool:
    try:
        for pid in (path / PROCS).read_text().split():
            # 0: one of a container outside of this one, as which no process can be named.
            with suppress(ProcessLookupError):
                if int(pid):
                    os.kill(int(pid), signal.SIGKILL)
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
