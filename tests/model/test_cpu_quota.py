"""What control groups allow, in both of their versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeshard_p2p.model.cpu_quota import WHOLE, cpu_share


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
