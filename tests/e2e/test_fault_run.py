"""`edgeshard fault run`: a fault is done, its report says what became of it, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from edgeshard_p2p.faults.namespaces import why_not
from tests.e2e.conftest import BLOCK_MIB
from tests.e2e.swarm import Machine, ended, eventually, killed_at_the_end
from tests.topologies import topology_text

KILL = f"""
[swarm]
layers_mib = {BLOCK_MIB * 5}
flags = ["--batch", "2"]
pin = "amy:0-3,ben:3-5,cat:5-8"

[[peer]]
name = "amy"
source = true

[[peer]]
name = "ben"

[[peer]]
name = "cat"

[request]
prompt_tokens = 64
generate = 64

[[step]]
at = {{ token = 32 }}
do = "kill"
who = "stage 2"

[expect]
failovers_min = 1
"""


RUN_TIMEOUT_S = 250


def scenario(directory: Path, text: str) -> Path:
    path = directory / "lost.toml"
    path.write_text(text)
    return path


@pytest.mark.campaign
@pytest.mark.timeout(300)
def test_stage_is_killed_at_token_32(machine: Machine, tmp_path: Path) -> None:
    command = ("fault", "run", scenario(tmp_path, KILL), "--json", "--model", machine.model)
    pipe = subprocess.PIPE
    process = machine.popen(*command, stdout=pipe, stderr=pipe)
    with killed_at_the_end(process):
        stdout, stderr = process.communicate(timeout=RUN_TIMEOUT_S)
    assert process.returncode == 0, stderr
    told = json.loads(stdout)
    assert told["tokens"] == {"lost": 0, "doubled": 0, "changed": 0}
    assert (told["answer"], told["generated_tokens"], told["left_over"]) == ("whole", 64, 0)
    assert told["failovers"] >= 1
    assert told["replayed_tokens"] >= 32
    (step,) = told["steps"]
    assert step["who"] == ["cat"]
    assert step["at_token"] >= 32
    times = [told["detected_ms"], told["replanned_ms"], told["resumed_ms"]]
    assert times == sorted(times), "noticed, then planned for, then got over"


def test_ctrl_c_ends_all_that_was_started(machine: Machine, tmp_path: Path) -> None:
    command = ("fault", "run", scenario(tmp_path, KILL), "--model", machine.model)
    logs = tmp_path / "logs"
    pipe = subprocess.PIPE
    process = machine.popen(*command, "--logs", logs, stdout=pipe, stderr=pipe)
    with killed_at_the_end(process):
        eventually(lambda: "listens on" in _text(logs / "amy.log"), lambda: f"{process.args!r}")
        os.killpg(process.pid, signal.SIGINT)
        done = ended(process)
    assert (done.exit_code, done.complaint) == (1, "cancelled")
    # That its peers are gone, each in a session of its own, is looked at when all tests are over.


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize(
    ("text", "flags", "complaint"),
    [
        (KILL.replace('"stage 2"', '"dan"'), (), 'no peer "dan" in this file'),
        (KILL.replace('"kill"', '"maim"'), (), "step[0].do: expected one of kill"),
        (KILL, ("--via", "ssh {host} {command}"), "have no address"),
        (KILL.replace('name = "amy"', 'name = "amy"\naddress = "h"'), (), "for every peer"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    machine: Machine, tmp_path: Path, text: str, flags: tuple[str, ...], complaint: str
) -> None:
    done = machine.edgeshard("fault", "run", scenario(tmp_path, text), *flags)
    assert done.exit_code == 2
    assert complaint in done.complaint


@pytest.mark.needs_root
@pytest.mark.skipif(bool(why_not()), reason=f"network namespaces need {why_not()}")
def test_namespaces_are_gone_afterwards(machine: Machine, tmp_path: Path) -> None:
    text = KILL.replace("[swarm]", "[swarm]\nnamespaces = true").replace("--batch", "--no-such")
    command = ("fault", "run", scenario(tmp_path, text), "--model", machine.model)
    pipe = subprocess.PIPE
    process = machine.popen(*command, stdout=pipe, stderr=pipe)
    with killed_at_the_end(process):
        done = ended(process)
    assert done.exit_code == 1
    assert "amy has ended" in done.complaint
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert f"edgeshard-{process.pid}-" not in names.stdout


EMULATED = """
[swarm]
topology = "three.toml"
flags = ["--batch", "2"]
pin = "amy:0-3,ben:3-5,cat:5-8"

[[step]]
at = { token = 8 }
do = "link"
who = ["source", "stage 1"]
mbps = 5
delay_ms = 10

[[step]]
at = { token = 24 }
do = "partition"
who = "stage 2"
way = "out"

[expect]
failovers_min = 1
"""

THREE = topology_text(
    [("amy", "small", 1), ("ben", "small", 1), ("cat", "small", 1)],
    {"small": f"cores = 0.5\nmemory_gib = {BLOCK_MIB * 5 / 1024}"},
    "default_mbps = 50\ndelay_ms = 1",
)


@pytest.mark.campaign
@pytest.mark.timeout(400)
@pytest.mark.parametrize("flags", [(), ("--shaper",)])
def test_emulated_device_is_cut_off_one_way(
    machine: Machine, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    (tmp_path / "three.toml").write_text(THREE)
    path = scenario(tmp_path, EMULATED)
    pipe = subprocess.PIPE
    command = ("fault", "run", path, "--json", "--model", machine.model, *flags)
    process = machine.popen(*command, stdout=pipe, stderr=pipe)
    with killed_at_the_end(process):
        stdout, stderr = process.communicate(timeout=350)
    assert process.returncode == 0, stderr
    told = json.loads(stdout)
    assert told["tokens"] == {"lost": 0, "doubled": 0, "changed": 0}
    assert [step["do"] for step in told["steps"]] == ["link", "partition"]
    assert told["failovers"] >= 1
    assert told["emulated"]["links"] == told["network"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (EMULATED.replace('"three.toml"', '"none.toml"'), "none.toml: cannot be read: No such"),
        (EMULATED.replace('who = "stage 2"', 'who = "zoe"'), 'no peer "zoe" in this file'),
        (EMULATED + '[[peer]]\nname = "dan"\n', "peer: expected none"),
    ],
)
def test_what_cannot_be_done_to_emulated_devices(
    machine: Machine, tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "three.toml").write_text(THREE)
    done = machine.edgeshard("fault", "run", scenario(tmp_path, text))
    assert done.exit_code == 2
    assert complaint in done.complaint


def test_more_devices_than_the_machine_has_room_for(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "three.toml").write_text(THREE.replace("cores = 0.5", "cores = 500"))
    done = machine.edgeshard("fault", "run", scenario(tmp_path, EMULATED))
    assert done.exit_code == 1
    assert "are missing" in done.complaint


@pytest.mark.skipif(not why_not(), reason="nothing is missing for network namespaces here")
def test_partition_names_what_is_missing(machine: Machine, tmp_path: Path) -> None:
    path = scenario(tmp_path, KILL.replace('"kill"', '"partition"'))
    done = machine.edgeshard("fault", "run", path, "--model", machine.model)
    assert done.exit_code == 1
    assert done.complaint == f"devices with a network of their own need {why_not()}"
