"""What ``scripts/demo`` runs: gets the small model, starts three peers, asks them, stops them.

Each peer is given so little memory that no two of them could hold the model.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgeshard_p2p.model.library import DEMO_NAME, cache_dir, fetch_demo_model

NAMES = ("dev-a", "dev-b", "dev-c")
LAYERS_MIB = 440
"""For layers on each peer: the 30 blocks with their KV and the head need three such."""
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 15.0
PROMPT = "Explain in two sentences why the sky is blue."

EDGESHARD = (sys.executable, "-m", "edgeshard_p2p")


def say(text: str) -> None:
    click.secho(text, bold=True, err=True)


@click.command()
@click.argument("prompt", default=PROMPT)
@click.option("--max-tokens", default=96, show_default=True)
@click.option("--port", default=7911, show_default=True, help="First of six ports.")
def main(prompt: str, max_tokens: int, port: int) -> None:
    """Ask PROMPT of three peers on this machine."""
    say("1/4 the model")
    fetch_demo_model(lambda line: click.echo(f"  {line}", err=True))
    directory = cache_dir() / "demo"
    directory.mkdir(parents=True, exist_ok=True)
    ports = free_ports(port)
    memory_mib = bare_mib(directory) + LAYERS_MIB
    say(f"2/4 three peers, each with {memory_mib} MiB in all, {LAYERS_MIB} MiB of it for layers")
    with peers(directory, ports, memory_mib) as processes:
        address = f"127.0.0.1:{ports[0]}"
        wait_until_active(address, processes)
        say("3/4 what the swarm knows now (edgeshard status)")
        subprocess.run([*EDGESHARD, "status", "--peer", address, "--swarm", "demo"], check=True)
        say(f"4/4 edgeshard run {prompt!r}")
        run = ["run", prompt, "--peer", address, "--swarm", "demo", "--max-tokens", str(max_tokens)]
        asked = subprocess.run([*EDGESHARD, *run], check=False)
        say("stopping the peers")
    sys.exit(asked.returncode)


def free_ports(first: int) -> list[int]:
    """Three pairs of free ports, from ``first`` on."""
    found: list[int] = []
    for port in range(first, first + 200, 2):
        if is_free(port) and is_free(port + 1):
            found.append(port)
        if len(found) == len(NAMES):
            return found
    raise click.ClickException(f"no six free ports from {first} on; choose others with --port")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def bare_mib(directory: Path) -> int:
    """What a peer needs before any layer, here: it says so when it is given too little."""
    known = directory / "bare_mib"
    if known.exists() and known.stat().st_mtime > Path(sys.prefix, "pyvenv.cfg").stat().st_mtime:
        return int(known.read_text())
    say("    (how much memory a peer takes by itself on this machine, once)")
    command = [*EDGESHARD, "peer", "--memory", "1MiB", "--model", DEMO_NAME]
    command += ["--state-dir", str(directory / "probe")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    match = re.search(r"needs (\d+) MiB", said)
    if match is None:
        raise click.ClickException(f"a peer does not start here:\n{said}")
    known.write_text(match[1])
    return int(match[1])


@contextlib.contextmanager
def peers(
    directory: Path, ports: list[int], memory_mib: int
) -> Iterator[list[subprocess.Popen[str]]]:
    """Three peers that tell their story, stopped whatever happens."""
    started: list[subprocess.Popen[str]] = []
    try:
        for name, port in zip(NAMES, ports, strict=True):
            command = [*EDGESHARD, "peer", "--name", name, "--listen", f"127.0.0.1:{port}"]
            command += ["--model", DEMO_NAME, "--memory", f"{memory_mib}MiB", "--swarm", "demo"]
            command += ["--min-members", str(len(NAMES)), "--state-dir", str(directory / name)]
            for other in ports:
                command += ["--join", f"127.0.0.1:{other}"] if other != port else []
            click.echo(f"  edgeshard peer {' '.join(command[4:])}", err=True)
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            threading.Thread(target=tell, args=(name, process), daemon=True).start()
            started.append(process)
        yield started
    finally:
        stop(started)


def tell(name: str, process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        click.echo(f"  {name} | {line}", nl=False, err=True)


def stop(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_active(address: str, processes: list[subprocess.Popen[str]]) -> None:
    ends_at = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < ends_at:
        if any(process.poll() is not None for process in processes):
            raise click.ClickException("a peer ended; see its last line above")
        report = status(address)
        if report and report["plan"]["state"] == "active":
            return
        time.sleep(0.5)
    raise click.ClickException(f"no active plan after {READY_TIMEOUT_S:.0f} s")


def status(address: str) -> dict[str, Any]:
    command = [*EDGESHARD, "status", "--peer", address, "--swarm", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


if __name__ == "__main__":
    main()
