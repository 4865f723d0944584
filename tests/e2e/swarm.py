"""Real peers as processes: how the tests start them, ask them, wait for them and end them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.faults.machine import free_ports
from edgeshard_p2p.net.client import Client, NoAnswer
from edgeshard_p2p.net.security import Security, open_security, read_secrets
from edgeshard_p2p.wire.client import Status, StatusReport

T = TypeVar("T")

EDGESHARD = (sys.executable, "-m", "edgeshard_p2p")
DEADLINE_S = 100.0
"""For anything that has to happen at all; says nothing about how fast it is."""
POLL_S = 0.1

_PORTS = free_ports()


def eventually(question: Callable[[], T], describe: Callable[[], str], wait_s: float = 0) -> T:
    """The first answer that is true.  The only way in which these tests wait."""
    ends_at = time.monotonic() + (wait_s or DEADLINE_S)
    pause = threading.Event()
    while not (answer := question()):
        if time.monotonic() > ends_at:
            raise AssertionError(f"it did not happen: {describe()}")
        pause.wait(POLL_S)
    return answer


def free_port() -> int:
    """The first of two neighbouring ports that nobody has."""
    return next(_PORTS)


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What a command with --json printed."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line in which a failed command says why; it must be the only one."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("edgeshard: ")]
        assert len(lines) == 1, f"{len(lines)} complaints in:\n{self.stderr}"
        assert "Traceback" not in self.stderr, self.stderr
        return lines[0].removeprefix("edgeshard: ")


@dataclass(frozen=True)
class Machine:
    """What the processes of a test share: environment, model, and what a peer takes by itself."""

    environment: dict[str, str]
    model: Path
    bare_mib: int
    profiles: Path
    """What the first peer to measure this machine has found: the others need not do it again."""

    def popen(self, *arguments: object, **settings: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*EDGESHARD, *map(str, arguments)],
            env=self.environment,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            **settings,
        )

    def edgeshard(self, *arguments: object) -> Ended:
        """Run a command to its end."""
        pipe = subprocess.PIPE
        process = self.popen(*arguments, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        with killed_at_the_end(process):
            return ended(process)


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for the end of a command; nothing that it started may be left."""
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert not has_left_processes(process), f"{process.args!r} left a process behind"
    return Ended(process.returncode, stdout, stderr)


@contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """With everything that it started and that stayed in its session."""
    try:
        yield
    finally:
        if has_left_processes(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def has_left_processes(process: subprocess.Popen[str]) -> bool:
    """Whether it, or anything that it started, still runs."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Peer:
    name: str
    port: int
    swarm: Swarm
    process: subprocess.Popen[str]
    log_file: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def ask(self, command: str, *arguments: object) -> Ended:
        """A client's command, with --json."""
        return self.swarm.machine.edgeshard(command, *arguments, *self.client_flags(), "--json")

    def client_flags(self) -> list[str]:
        return ["--peer", self.address, *self.swarm.common_flags]

    def run(self, prompt: str, *arguments: object) -> dict[str, Any]:
        done = self.ask("run", prompt, "--raw", *arguments)
        assert done.exit_code == 0, f"{done.stderr}\n{self.swarm.story()}"
        (answer,) = done.objects
        return answer

    def status(self) -> dict[str, Any]:
        """What `edgeshard status` would say, without a process for it; empty without an answer."""
        with suppress(NoAnswer), Client(Address("127.0.0.1", self.port), self.swarm.security) as to:
            to.send(Status())
            answer = next(to.answers(DEADLINE_S))
            assert isinstance(answer, StatusReport), answer
            return answer.report
        return {}

    def interrupt(self) -> int:
        """Ctrl-C, which reaches all that a terminal runs; the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """As a loss of power would."""
        self.process.kill()
        self.process.wait()


@dataclass
class Swarm:
    """Peers that serve the machine's model to each other; all end with the context."""

    machine: Machine
    directory: Path
    name: str = "default"
    secret_file: Path | None = None
    peers: list[Peer] = field(default_factory=list)
    _ends: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def start(
        self, name: str, *flags: object, port: int = 0, layers_mib: int = 0, waits: bool = True
    ) -> Peer:
        """Start a peer that joins those that are here; its life before it is on its own disk."""
        port = port or free_port()
        if layers_mib:
            flags = (*flags, "--memory", f"{self.machine.bare_mib + layers_mib}MiB")
        if "--mdns" not in flags:
            flags = (*flags, "--no-mdns")
            flags += tuple(word for peer in self.peers for word in ("--join", peer.address))
        state_dir = self.directory / name
        knows_the_machine = self.machine.profiles.exists()
        if knows_the_machine:
            shutil.copytree(self.machine.profiles, state_dir / "profiles", dirs_exist_ok=True)
        log_file = self.directory / f"{name}-{len(self.peers)}.log"
        with log_file.open("w") as log:
            process = self.machine.popen(
                *("peer", "--name", name, "--listen", f"127.0.0.1:{port}"),
                *("--state-dir", state_dir, "--model", self.machine.model),
                *self.common_flags,
                *flags,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._ends.enter_context(killed_at_the_end(process))
        peer = Peer(name, port, self, process, log_file)
        self.peers = [other for other in self.peers if other.name != name] + [peer]
        if waits and not knows_the_machine:
            self._wait_for_profile(state_dir / "profiles")
        return peer

    def _wait_for_profile(self, directory: Path) -> None:
        eventually(lambda: list(directory.glob("*.json")), self.story)
        shutil.copytree(directory, self.machine.profiles)

    def __getitem__(self, name: str) -> Peer:
        return next(peer for peer in self.peers if peer.name == name)

    @property
    def common_flags(self) -> list[str]:
        """Of peers and of clients."""
        secret = ["--secret-file", str(self.secret_file)] if self.secret_file else []
        return ["--swarm", self.name, *secret]

    @property
    def security(self) -> Security:
        return open_security(self.name, read_secrets(self.secret_file) if self.secret_file else ())

    def living(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.process.poll() is None]

    def are(self, **states: str) -> bool:
        """Whether every living peer holds these members for that: ``ben="left"``."""
        for peer in self.living():
            report = peer.status()
            seen = {member["name"]: member["state"] for member in report.get("members", [])}
            if not states.items() <= seen.items():
                return False
        return True

    def serving_plan(self, *names: str) -> str:
        """Wait until every living peer has the same plan, active and ready everywhere, and with a
        part for each of ``names``; its id."""
        return eventually(lambda: self._common_plan(set(names)), self.story)

    def _common_plan(self, names: set[str]) -> str:
        reports = [peer.status() for peer in self.living()]
        plans = [report["plan"] for report in reports if report]
        if len(plans) < len(reports) or {plan["state"] for plan in plans} != {"active"}:
            return ""
        stages = [stage for plan in plans for stage in plan["stages"]]
        is_there = {stage["peer"] for stage in stages} >= names
        ids = {plan["plan_id"] for plan in plans}
        is_ready = all(stage["is_ready"] for stage in stages)
        return ids.pop() if is_there and is_ready and len(ids) == 1 else ""

    def is_idle(self) -> bool:
        """Whether nothing is left of any request, on any peer."""
        reports = [peer.status() for peer in self.living()]
        left = [(r["requests"], r["self"]["requests_in_stage"]) for r in reports if r]
        return left == [([], 0)] * len(reports)

    def story(self) -> str:
        """All that the peers have logged, for whoever has to find out."""
        return "\n".join(f"--- {peer.log_file.stem}\n{peer.log}" for peer in self.peers)
