"""What control groups allow, in both of their versions; and what it is worth to have rested."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeshard_p2p.model import cpu_quota
from edgeshard_p2p.model.cpu_quota import WHOLE, cpu_share, rested_us


def v1(tmp_path: Path, group: str, quota_us: int, period_us: int = 20_000) -> None:
    directory = tmp_path / "cpu" / group
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cpu.cfs_quota_us").write_text(f"{quota_us}\n")
    (directory / "cpu.cfs_period_us").write_text(f"{period_us}\n")


def v2(tmp_path: Path, group: str, text: str) -> None:
    (tmp_path / group).mkdir(parents=True, exist_ok=True)
    (tmp_path / group / "cpu.max").write_text(text)


def told(tmp_path: Path, text: str) -> float:
    (tmp_path / "told").write_text(text)
    return cpu_share(tmp_path, tmp_path / "told")


@pytest.mark.parametrize(("quota_us", "expected"), [(8000, 0.4), (-1, WHOLE), (40_000, WHOLE)])
def test_first_version(tmp_path: Path, quota_us: int, expected: float) -> None:
    v1(tmp_path, "device", quota_us)
    assert told(tmp_path, "3:memory:/other\n1:cpu,cpuacct:/device\n0::/\n") == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("50000 100000\n", 0.5), ("max 100000\n", WHOLE), ("broken", WHOLE)]
)
def test_second_version(tmp_path: Path, text: str, expected: float) -> None:
    v2(tmp_path, "a/b", text)
    assert told(tmp_path, "0::/a/b\n") == expected


def test_the_tightest_on_the_way_up_counts(tmp_path: Path) -> None:
    v2(tmp_path, "a", "30000 100000")
    v2(tmp_path, "a/b", "90000 100000")
    v2(tmp_path, "c", "10000 100000")  # Somebody else's.
    assert told(tmp_path, "0::/a/b\n") == 0.3


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_share(tmp_path, tmp_path / "none") == WHOLE
    assert told(tmp_path, "1:cpu:/gone\nnonsense\n") == WHOLE


class Sliced:
    """The clocks of a thread that gets a slice of a core at the beginning of each period, all of
    which it works, and keeps nothing of what it has slept through.  In microseconds."""

    STEP_US = 100

    def __init__(self, period_us: int, slice_us: int) -> None:
        self.period_us, self.slice_us = period_us, slice_us
        self.now = self.worked = self.left = 0
        self.period = -1

    def monotonic(self) -> float:
        return self.now / 1e6

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e6)

    def thread_time(self) -> float:
        if self.left <= 0 and self.period == self.now // self.period_us:
            self.now = (self.period + 1) * self.period_us
        if self.period != self.now // self.period_us:
            self.period, self.left = self.now // self.period_us, self.slice_us
        self.left -= self.STEP_US
        self.worked += self.STEP_US
        self.now += self.STEP_US
        return self.worked / 1e6


@pytest.mark.parametrize(("period_us", "share"), [(10_000, 0.2), (20_000, 0.2), (10_000, 0.8)])
def test_who_has_rested_finds_a_slice(
    monkeypatch: pytest.MonkeyPatch, period_us: int, share: float
) -> None:
    monkeypatch.setattr(cpu_quota, "time", Sliced(period_us, round(share * period_us)))
    assert rested_us(share) == pytest.approx((1 - share) * period_us, rel=0.3)


def test_who_is_only_slower_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_quota, "time", Sliced(200, 100))
    assert rested_us(0.5) <= 200


def test_with_a_whole_core_there_is_nothing_to_measure() -> None:
    assert rested_us(WHOLE) == 0
