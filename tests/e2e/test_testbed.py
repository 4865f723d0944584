"""`scripts/testbed`: emulated devices serve a command, and nothing is left afterwards."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from edgeshard_p2p.faults.janitor import RUN
from edgeshard_p2p.faults.namespaces import why_not
from tests.e2e.conftest import BLOCK_MIB, N_BLOCKS
from tests.e2e.swarm import (
    DEADLINE_S,
    EDGESHARD,
    Ended,
    Machine,
    eventually,
)
from tests.topologies import topology_text

pytestmark = pytest.mark.timeout(300)

TESTBED = (sys.executable, Path(__file__).parents[2] / "scripts" / "testbed.py")
needs_namespaces = pytest.mark.skipif(bool(why_not()), reason=f"emulated devices need {why_not()}")

TWO = topology_text(
    [("amy", "small", 1), ("ben", "small", 1)],
    {"small": f"cores = 0.7\nmemory_gib = {BLOCK_MIB * (N_BLOCKS // 2 + 2) / 1024}"},
    "default_mbps = 50\ndelay_ms = 1",
)


def topology(directory: Path, text: str = TWO) -> Path:
    path = directory / "two.toml"
    path.write_text(text)
    return path


def popen(machine: Machine, command: Sequence[object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*map(str, command)],
        env=machine.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_to_its_end(machine: Machine, command: Sequence[object]) -> Ended:
    with popen(machine, command) as process:
        try:
            stdout, stderr = process.communicate(timeout=2 * DEADLINE_S)
        finally:
            process.kill()
    check_nothing_is_left(process.pid)
    return Ended(process.returncode, stdout, stderr)


def run_testbed(machine: Machine, *arguments: object) -> Ended:
    return run_to_its_end(machine, [*TESTBED, *arguments])


def namespaces_of(pid: int) -> list[str]:
    directory = Path("/run/netns")
    names = os.listdir(directory) if directory.exists() else []
    return [name for name in names if name.startswith(f"edgeshard-{pid}-")]


def groups_of(pid: int) -> list[Path]:
    return list(Path("/sys/fs/cgroup").rglob(f"edgeshard-{pid}-*"))


def check_nothing_is_left(pid: int) -> None:
    assert not namespaces_of(pid)
    assert not groups_of(pid)
    assert not living_of(pid)


@pytest.mark.needs_root
@needs_namespaces
def test_command_asks_the_emulated_swarm_and_has_its_exit_code(
    machine: Machine, tmp_path: Path
) -> None:
    asks = shlex.join([*EDGESHARD, "run", "hello", "--raw", "--max-tokens", "3", "--json"])
    command = ["sh", "-c", f"{asks} && exit 7"]
    done = run_testbed(machine, "--model", machine.model, topology(tmp_path), "--", *command)
    assert done.exit_code == 7, done.stderr
    (told,) = done.objects
    assert (told["finish_reason"], len(told["token_ids"])) == ("length", 3)
    assert "serving: " in done.stderr


@pytest.mark.campaign
@pytest.mark.needs_root
@needs_namespaces
def test_bench_has_devices_of_its_own(machine: Machine, tmp_path: Path) -> None:
    command = ("bench", "--requests", 2, "--prompt", 8, "--generate", 4, "--json")
    emulation = ("--topology", topology(tmp_path), "--model", machine.model)
    done = run_to_its_end(machine, [*EDGESHARD, *command, *emulation])
    assert done.exit_code == 0, done.stderr
    (told,) = done.objects
    assert (told["tokens"], told["failed"], told["errors"]) == (8, 0, [])
    assert told["emulated"]["topology"] == "two"
    assert told["emulated"]["links"] == "a switch between network namespaces"
    assert told["emulated"]["switch"]["frames"] > 0
    assert told["shaped"] == []
    assert set(told["bubbles"]) == {"amy", "ben"}


@pytest.mark.campaign
def test_without_namespaces_peers_shape_their_links(machine: Machine, tmp_path: Path) -> None:
    command = ("bench", "--requests", 2, "--prompt", 8, "--generate", 4, "--json")
    emulation = ("--topology", topology(tmp_path), "--model", machine.model, "--shaper")
    done = run_to_its_end(machine, [*EDGESHARD, *command, *emulation])
    assert done.exit_code == 0, done.stderr
    (told,) = done.objects
    assert (told["tokens"], told["failed"]) == (8, 0)
    assert told["emulated"]["links"] == "a shaper inside each peer"
    assert told["emulated"]["switch"] is None
    assert told["shaped"] == ["amy", "ben"]


def test_shaped_links_are_proved_as_well(machine: Machine, tmp_path: Path) -> None:
    done = run_testbed(machine, "--check", "--shaper", "--json", topology(tmp_path))
    (told,) = done.objects
    assert told["links"] == "a shaper inside each peer"
    assert told["messages"] == 8


@pytest.mark.needs_root
@needs_namespaces
def test_ctrl_c_takes_everything_down(machine: Machine, tmp_path: Path) -> None:
    flags = ("--model", machine.model)
    process = popen(machine, [*TESTBED, *flags, topology(tmp_path), "--", "sleep", "1000"])
    try:
        eventually(lambda: namespaces_of(process.pid), lambda: "no namespace was made")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "testbed: cancelled" in stderr
    check_nothing_is_left(process.pid)


def living_of(pid: int) -> list[str]:
    """What runs in the name of that process's runs."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(RUN, "").startswith(f"edgeshard-{pid}-"):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.needs_root
@needs_namespaces
def test_everything_goes_even_where_the_testbed_is_killed(machine: Machine, tmp_path: Path) -> None:
    flags = ("--model", machine.model)
    process = popen(machine, [*TESTBED, *flags, topology(tmp_path), "--", "sleep", "1000"])
    try:
        eventually(lambda: living_of(process.pid), lambda: "no peer was started")
    finally:
        process.kill()
        process.communicate()
    eventually(lambda: not living_of(process.pid), lambda: f"{living_of(process.pid)} still run")
    eventually(lambda: not namespaces_of(process.pid), lambda: f"{namespaces_of(process.pid)}")
    eventually(lambda: not groups_of(process.pid), lambda: f"{groups_of(process.pid)} are left")


@pytest.mark.parametrize(
    ("text", "arguments", "exit_code", "why"),
    [
        (TWO, [], 2, "give a command after the topology, or --check"),
        (
            TWO.replace('sources = ["amy"]', 'sources = ["zoe"]'),
            ["--", "true"],
            2,
            'no device "zoe"',
        ),
        (TWO.replace("cores = 0.7\n", ""), ["--", "true"], 2, "class.small.cores: expected"),
        (TWO.replace("cores = 0.7", "cores = 400"), ["--", "true"], 1, "are missing"),
        (TWO, ["--flag", "batch", "--", "true"], 2, "--flag 'batch' is not FLAG=VALUE"),
        (
            TWO,
            ["--flag", "micro-batch=-1", "--", "true"],
            2,
            "--flag 'micro-batch=-1': --micro-batch -1 is not possible",
        ),
        (TWO, ["--flag", "nosuch=1", "--", "true"], 2, "'nosuch=1': unknown key 'nosuch'"),
        (TWO.replace("delay_ms = 1", "delay_ms = nan"), ["--", "true"], 2, "link.delay_ms"),
        (
            TWO.replace('"ben"', '"ben"\ncount = 9'),
            ["--check"],
            1,
            "10 devices are too many to emulate",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    machine: Machine, tmp_path: Path, text: str, arguments: list[str], exit_code: int, why: str
) -> None:
    flags = ["--model", machine.model]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    flags += arguments[:split]
    done = run_testbed(machine, *flags, topology(tmp_path, text), *arguments[split:])
    assert done.exit_code == exit_code, done.stderr
    assert why in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
