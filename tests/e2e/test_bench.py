"""`edgeshard bench` told what cannot be: one line, before anything is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.swarm import Machine, free_port


def said(machine: Machine, *arguments: object) -> tuple[int, str]:
    done = machine.edgeshard("bench", *arguments)
    assert "Traceback" not in done.stderr
    return done.exit_code, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--temperature", "nan"), "nan is not in the range 0<=x<=100"),
        (("--requests", "0"), "0 is not in the range"),
        (("--concurrency", "-1"), "-1 is not in the range"),
        (("--generate", "many"), "'many' is not a valid integer"),
        (("--plot", "no-such-directory/x.svg"), "cannot write no-such-directory/x.svg: No such"),
        (("--plot", "x.gif"), "x.gif is neither .png nor .svg"),
        (("--also", "::"), "'::' is not HOST:PORT"),
        (("--flag", "batch=8"), "--flag goes only with --topology"),
        (("--topology", "x.toml", "--peer", ":7911"), "--peer is of a running swarm, not"),
        (("--topology", "no-such.toml"), "no-such.toml: cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_wrong_usage(
    machine: Machine, arguments: tuple[str, ...], why: str
) -> None:
    exit_code, line = said(machine, *arguments)
    assert (exit_code, why in line) == (2, True), line


def test_nobody_there_is_a_failure(machine: Machine) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    exit_code, line = said(machine, "--peer", nowhere)
    assert (exit_code, f"nobody answers at {nowhere}" in line) == (1, True), line


def test_plot_leaves_no_file_where_nothing_was_drawn(machine: Machine, tmp_path: Path) -> None:
    picture = tmp_path / "x.svg"
    said(machine, "--plot", picture, "--peer", f"127.0.0.1:{free_port()}")
    assert not picture.exists()
