"""How much of a core's time the system lets this process have: containers and emulated devices get
their share in slices, between which they stand still.

What is shorter than a slice shows nothing of that, however often it is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

WHOLE = 1.0


def cpu_share(
    groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")
) -> float:
    """Of one core; WHOLE where no control group, its own or one above, allows less."""
    return min([WHOLE, *_shares(groups, process)])


def _shares(groups: Path, process: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        for line in process.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            is_v1 = "cpu" in controllers.split(",")
            if is_v1 or not controllers:
                base = groups / "cpu" if is_v1 else groups
                own = base / path.lstrip("/")
                for group in (own, *own.parents):
                    if group.is_relative_to(base):
                        yield from _of_v1(group) if is_v1 else _of_v2(group)


def _of_v1(group: Path) -> Iterator[float]:
    with suppress(OSError):
        quota_us = int((group / "cpu.cfs_quota_us").read_text())
        if quota_us > 0:  # -1: no limit.
            yield quota_us / int((group / "cpu.cfs_period_us").read_text())


def _of_v2(group: Path) -> Iterator[float]:
    with suppress(OSError):
        quota_us, period_us = (group / "cpu.max").read_text().split()
        if quota_us != "max":
            yield int(quota_us) / int(period_us)
