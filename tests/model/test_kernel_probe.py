"""Kernels that kill are found in a child, once, and the verdict is kept."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeshard_p2p.model import kernel_probe
from edgeshard_p2p.model.kernel_probe import ISA_CAPS, ISA_VARIABLE, probe


class Children:
    """Stands in for `subprocess.run`: children live only under the limits given."""

    def __init__(self, living: set[str], error: str = "") -> None:
        self.living = living
        self.error = error
        self.tried: list[str] = []

    def __call__(
        self, command: list[str], env: dict[str, str], **_: object
    ) -> subprocess.CompletedProcess[str]:
        cap = env.get(ISA_VARIABLE, "")
        self.tried.append(cap)
        dead = 1 if self.error else -signal.SIGILL
        status = 0 if cap in self.living else dead
        return subprocess.CompletedProcess(command, status, "", self.error)


def children(monkeypatch: pytest.MonkeyPatch, *living: str, error: str = "") -> Children:
    stand_in = Children(set(living), error)
    monkeypatch.setattr(subprocess, "run", stand_in)
    return stand_in


def test_fp32_runs_here_and_the_parent_imports_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from edgeshard_p2p.model.kernel_probe import probe\n"
        "assert probe('fp32', Path(sys.argv[1])).is_usable\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_the_first_limit_that_lives_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = children(monkeypatch, "AVX512_CORE_BF16", "AVX2")
    verdict = probe("bf16", tmp_path)
    assert verdict.is_usable
    assert verdict.environment() == {ISA_VARIABLE: "AVX512_CORE_BF16"}
    assert tried.tried == ["", "AVX512_CORE_FP16", "AVX512_CORE_BF16"]
    assert probe("bf16", tmp_path) == verdict
    assert len(tried.tried) == 3


def test_no_limit_is_set_where_none_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "AVX2")
    children(monkeypatch, "")
    assert probe("bf16", tmp_path).environment() == {}


@pytest.mark.parametrize(
    ("error", "reason"), [("", "killed by signal 4"), ("a\nno kernel\n", "no kernel")]
)
def test_what_dies_under_every_limit_is_unusable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, reason: str
) -> None:
    tried = children(monkeypatch, error=error)
    verdict = probe("bf16", tmp_path)
    assert not verdict.is_usable
    assert verdict.reason == reason
    assert tuple(tried.tried) == ISA_CAPS


def test_another_machine_or_a_broken_file_is_probed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = children(monkeypatch, "")
    probe("fp32", tmp_path)
    monkeypatch.setattr(kernel_probe, "machine", lambda: "other")
    probe("fp32", tmp_path)
    assert len(tried.tried) == 2
    (tmp_path / "kernels-fp32-other.json").write_text("{")
    probe("fp32", tmp_path)
    assert len(tried.tried) == 3
