"""`scripts/reproduce`: the report from lines that are there, and what cannot be, in one line.  What
it measures takes emulated devices minutes, and is in no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeshard_p2p.reproduction.lines import write
from tests.e2e.swarm import DEADLINE_S, Ended
from tests.reproduction.test_report import CELLS, RUN

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.py"


def reproduce(out: Path, *arguments: str) -> Ended:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        # Nothing is fetched, whatever comes of it.
        env=os.environ | {"EDGESHARD_CACHE": str(out / "no-cache"), "PIP_NO_INDEX": "1"},
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_report_is_made_from_lines_and_nothing_else(tmp_path: Path) -> None:
    lines = tmp_path / "reproduce.jsonl"
    cut_short = write(CELLS[0])[:20]
    lines.write_text("".join(write(line) + "\n" for line in (RUN, *CELLS)) + cut_short)
    done = reproduce(tmp_path, "--report", "--json")
    assert done.exit_code == 0, done.stderr
    (told,) = done.objects
    assert told["gains"] == {
        "agx-1 1 Mbps latency": 2.2,
        "agx-1 1 Mbps throughput": 2.0,
    }
    assert told["without_figure"] == 1
    report = (tmp_path / "reproduce.md").read_text()
    assert "| exact | 150 \\| 160 ±6.2 % |" in report
    assert "<svg" in (tmp_path / "reproduce-agx-1.svg").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "reproduce-agx-1.svg",
        "reproduce.jsonl",
        "reproduce.md",
    ]
    assert json.loads(lines.read_text().splitlines()[0])["kind"] == "run"


@pytest.mark.parametrize(
    ("lines", "arguments", "exit_code", "why"),
    [
        (None, ["--report"], 1, "reproduce.jsonl: No such file or directory"),
        ("no line\n", ["--report"], 1, "reproduce.jsonl: line 1 is no line of a run"),
        ("", ["--report"], 1, "no line says how the run was begun"),
        (None, ["--quick", "--full"], 2, "not both possible"),
        (None, ["--source", "nobody"], 2, "'nobody' is not one of"),
        (None, ["--mbps", "0"], 2, "0.0 is not in the range"),
        (None, ["--model", "/no/such/model"], 1, "/no/such/model"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    tmp_path: Path, lines: str | None, arguments: list[str], exit_code: int, why: str
) -> None:
    out = tmp_path / "results"
    if lines is not None:
        out.mkdir()
        (out / "reproduce.jsonl").write_text(lines)
    done = reproduce(out, *arguments)
    assert done.exit_code == exit_code, done.stderr
    assert why in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
