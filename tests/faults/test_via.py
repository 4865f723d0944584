"""Devices reached by a command: here a shell takes the place of ssh."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.scenario import read_scenario
from edgeshard_p2p.faults.via import RemoteDevices, parse_via
from edgeshard_p2p.net.security import open_security

LISTEN = """
import socket, sys
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen()
print(s.getsockname()[1], flush=True)
while True: s.accept()
"""


@pytest.fixture
def listener() -> Iterator[tuple[psutil.Process, int]]:
    process = subprocess.Popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    assert process.stdout is not None
    yield psutil.Process(process.pid), int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


def devices(directory: Path, port: int, via: str = "sh -c '{command}' {host}") -> RemoteDevices:
    path = directory / "x.toml"
    cut = "partition = 'touch cut'\nheal = 'rm cut'\n".replace("cut'", f"{directory}/cut'")
    start = f"start = 'touch {directory}/started'\n"
    address = f"address = '127.0.0.1:{port}'\n"
    path.write_text("[[peer]]\nname = 'a'\nsource = true\n" + address + cut + start)
    return RemoteDevices(read_scenario(path), parse_via(via), open_security("x", ()))


def is_stopped(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_STOPPED)


def wait_until_stopped(process: psutil.Process) -> None:
    """One that runs on another core hears of SIGSTOP a moment after it was sent."""
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_what_is_frozen_or_slowed_goes_on_at_the_end(
    tmp_path: Path, listener: tuple[psutil.Process, int]
) -> None:
    process, port = listener
    with devices(tmp_path, port) as remote:
        remote.freeze("a")
        wait_until_stopped(process)
        remote.thaw("a")
        assert not is_stopped(process)
        assert remote.slow("a", 4)
        remote.restore("a")
        assert not is_stopped(process)
        remote.partition(["a"])
        assert (tmp_path / "cut").exists()
        remote.freeze("a")
    assert not is_stopped(process)
    assert not (tmp_path / "cut").exists()
    remote.kill("a")
    process.wait(20)
    with pytest.raises(FaultError, match=f"on 127.0.0.1: no process listens on port {port}"):
        remote.kill("a")


def test_command_that_fails_is_named(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(FaultError, match="cannot be run: No such file"):
        devices(tmp_path, port, "no-such-program {host} {command}").leave("a")


@pytest.mark.parametrize("template", ["ssh {host}", "sh {command}", "'"])
def test_via_needs_to_say_where_and_what(template: str) -> None:
    with pytest.raises(FaultError) as caught:
        parse_via(template)
    assert caught.value.exit_code == 2
