"""Peers as processes of this machine, on loopback or each in a network namespace of its own, where
wanted with links as slow as those of devices that are elsewhere.

Everything that is started here ends with the context, whatever happens.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.plan import BYTES_PER_MBIT, Link
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.janitor import RUN, janitor
from edgeshard_p2p.faults.machine import EDGESHARD, ONE_THREAD, bare_mib, free_ports
from edgeshard_p2p.faults.namespaces import Bridged, Switched
from edgeshard_p2p.faults.scenario import BOTH, FaultScenario, PeerEntry
from edgeshard_p2p.faults.shapes import Shapes
from edgeshard_p2p.faults.throttle import LIMIT, Part
from edgeshard_p2p.net.security import open_security, read_secrets

T = TypeVar("T")

SWARM = "faults"
PROFILE_TIMEOUT_S = 180.0
"""Of one core's time, at least: who has a tenth of that may take ten times as long."""
END_TIMEOUT_S = 4.0
POLL_S = 0.1
_MIB = 2**20
NAMESPACE_PORT = 7911
SWITCH = "a switch between network namespaces"
SHAPER = "a shaper inside each peer"


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    log: Path
    part: Part

    def signal(self, number: int) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def kill(self) -> None:
        """With what it started, in the session that it was given."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def last_word(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class LocalDevices:
    """``model``: a name or path that a peer takes; ``logs``: where the peers' logs are kept, else
    they go with everything else; ``links``: what each ordered pair of peers is joined by;
    ``profiles``: where it is kept for others what was measured of devices, else likewise;
    ``is_shaped``: the peers emulate their links themselves."""

    def __init__(
        self,
        scenario: FaultScenario,
        model: str,
        logs: Path | None = None,
        links: Mapping[tuple[str, str], Link] | None = None,
        profiles: Path | None = None,
        is_shaped: bool = False,
    ) -> None:
        self._scenario, self._model, self._logs, self._links = scenario, model, logs, links
        self._now = dict(links or {})
        self._entries = {peer.name: peer for peer in scenario.peers}
        self._processes: dict[str, _Process] = {}
        self._past: list[_Process] = []
        self._parts: dict[str, Part] = {}
        self._ports: dict[str, int] = {}
        self._namespaces: Bridged | Switched | None = None
        self._shapes: Shapes | None = None
        self._secret_file: Path | None = None
        self._directory, self._run = Path(), ""
        self._profiles = profiles
        """What the first peer to measure this machine has found, by the cores that it may use: the
        others need not do it."""
        self._ends = ExitStack()
        if links is not None:
            self.network = SHAPER if is_shaped else SWITCH
        else:
            self.network = "namespaces" if scenario.wants_namespaces else "loopback"
        self.security = open_security(SWARM, ())

    def __enter__(self) -> LocalDevices:
        with self._ends:
            self._open()
            self._ends = self._ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _open(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="edgeshard-faults-")
        self._directory = Path(self._ends.enter_context(scratch))
        self._run = self._ends.enter_context(janitor(self._directory))
        self._profiles = self._profiles or self._directory / "profiles"
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
        if self.network in (SWITCH, "namespaces"):
            self._open_namespaces()
        else:
            self._ports = dict(zip(self._entries, free_ports(), strict=False))
        if self.network == SHAPER:
            addresses = {name: self.address(name) for name in self._entries}
            self._shapes = Shapes(self._directory / "shapes", addresses, self._links or {})
        for name, entry in self._entries.items():
            memory_bytes = self._memory_bytes(entry) if entry.cores is not None else None
            part = Part(f"{self._run}-{name}", entry.cores, memory_bytes)
            self._parts[name] = self._ends.enter_context(part)
        self._ends.callback(self._end_all)
        for name in self._entries:
            self.start(name)
            if not self._profiles_of(name).exists():
                self._wait_for_profile(name)

    def _open_namespaces(self) -> None:
        if self._links is not None:
            self._namespaces = Switched(self._run, self._entries, self._links)
        else:
            self._namespaces = Bridged(self._run, self._entries)
        self._ends.callback(self._namespaces.close)
        self._secret_file = self._directory / "swarm.secret"
        self._secret_file.touch(mode=0o600)
        self._secret_file.write_text(secrets.token_urlsafe(32) + "\n")
        self.security = open_security(SWARM, read_secrets(self._secret_file))

    def _state_dir(self, name: str) -> Path:
        return self._directory / "devices" / name

    def _profiles_of(self, name: str) -> Path:
        assert self._profiles is not None, "the context is open"
        return self._profiles / str(self._entries[name].cores)

    def _wait_for_profile(self, name: str) -> None:
        directory = self._state_dir(name) / "profiles"
        timeout_s = PROFILE_TIMEOUT_S / min(1.0, self._entries[name].cores or 1.0)
        ends_at = time.monotonic() + timeout_s
        pause = threading.Event()
        while not list(directory.glob("*.json")):
            if self.why_ended():
                raise FaultError(self.why_ended())
            if time.monotonic() > ends_at:
                raise FaultError(f"{name} has not measured itself in {timeout_s:.0f} s")
            pause.wait(POLL_S)
        shutil.copytree(directory, self._profiles_of(name))

    def _end_all(self) -> None:
        processes = [*self._past, *self._processes.values()]
        for process in processes:
            process.part.let_go()
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        ends_at = time.monotonic() + END_TIMEOUT_S
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, ends_at - time.monotonic()))
            process.kill()

    # --- where they are -------------------------------------------------------------------

    def address(self, name: str) -> Address:
        if self._namespaces is not None:
            return Address(self._namespaces.host(name), NAMESPACE_PORT)
        return Address("127.0.0.1", self._ports[name])

    def enter(self, name: str) -> None:
        if self._namespaces is not None:
            self._namespaces.enter(name)

    def inside(self, name: str) -> AbstractContextManager[None]:
        """The calling thread is where that peer can be reached, and what it starts meanwhile."""
        return self._namespaces.inside(name) if self._namespaces is not None else nullcontext()

    def reach(self, name: str, work: Callable[[], T]) -> T:
        if self._namespaces is None:
            return work()
        with ThreadPoolExecutor(1, initializer=self.enter, initargs=(name,)) as thread:
            return thread.submit(work).result()

    @property
    def switched(self) -> dict[str, Any]:
        """What the links' switch did, once all has ended; empty where there is none."""
        return self._namespaces.said if isinstance(self._namespaces, Switched) else {}

    def command(self, name: str) -> list[str]:
        """What to put before a command for it to run where that peer is."""
        return self._namespaces.command(name) if self._namespaces is not None else []

    def environment(self, name: str) -> dict[str, str]:
        """For commands of edgeshard's to ask that peer."""
        secret = {"EDGESHARD_SECRET_FILE": str(self._secret_file)} if self._secret_file else {}
        where = {"EDGESHARD_PEER": str(self.address(name)), "EDGESHARD_SWARM": SWARM}
        return {**where, **secret, RUN: self._run}

    def pid(self, name: str) -> int:
        return self._living(name).popen.pid

    def why_ended(self) -> str:
        for name, process in self._processes.items():
            if process.popen.poll() is not None:
                why = process.part.why_killed() or process.last_word()
                return f"{name} has ended: {why}"
        return ""

    def limits(self) -> dict[str, str]:
        """How what the devices may have of this machine is kept to."""
        parts = list(self._parts.values())
        why_free = next((part.why_memory_free for part in parts if part.why_memory_free), "")
        is_limited = any(part.has_memory_limit for part in parts)
        return {
            "links": self.network,
            "cores": ", ".join(sorted({part.how_slowed for part in parts})),
            "memory": f"only told, {why_free}" if why_free else LIMIT if is_limited else "no limit",
        }

    # --- what is done to them -------------------------------------------------------------

    def start(self, name: str) -> None:
        if name in self._processes and self._processes[name].popen.poll() is None:
            raise FaultError(f"{name} is running already")
        entry, state_dir = self._entries[name], self._state_dir(name)
        if self._profiles_of(name).exists():
            shutil.copytree(self._profiles_of(name), state_dir / "profiles", dirs_exist_ok=True)
        log = (self._logs or self._directory) / f"{name}.log"
        part = self._parts[name]
        command = [
            *part.command(),
            *self.command(name),
            *EDGESHARD,
            "peer",
            *self._flags(entry),
            "--state-dir",
            str(state_dir),
        ]
        with log.open("ab") as out:
            popen = subprocess.Popen(
                command,
                env=os.environ | ONE_THREAD | {RUN: self._run},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._processes[name] = _Process(popen, log, part)
        part.begin(popen.pid)

    def _memory_bytes(self, entry: PeerEntry) -> int | None:
        """All that its process may use."""
        layers_mib = entry.layers_mib or self._scenario.swarm.layers_mib
        return None if layers_mib is None else (bare_mib(self._model) + layers_mib) * _MIB

    def _flags(self, entry: PeerEntry) -> list[str]:
        swarm = self._scenario.swarm
        flags = ["--name", entry.name, "--listen", str(self.address(entry.name))]
        flags += ["--model", self._model, "--swarm", SWARM, "--no-mdns"]
        flags += ["--source" if entry.source else "--no-source"]
        flags += ["--min-members", str(len(self._entries))]
        for other in self._entries:
            flags += ["--join", str(self.address(other))] if other != entry.name else []
        if self._shapes is not None:
            flags += ["--shape", str(self._shapes.file(entry.name))]
        if self._secret_file is not None:
            flags += ["--secret-file", str(self._secret_file)]
        memory_bytes = self._memory_bytes(entry)
        flags += ["--memory", str(memory_bytes)] if memory_bytes is not None else []
        return [*flags, *swarm.flags, *entry.flags]

    def kill(self, name: str) -> None:
        self._end(name, signal.SIGKILL)

    def leave(self, name: str) -> None:
        self._end(name, signal.SIGINT)

    def stop(self, name: str) -> None:
        self._end(name, signal.SIGTERM)

    def _end(self, name: str, number: int) -> None:
        process = self._living(name)
        process.signal(number)
        del self._processes[name]
        self._past.append(process)
        process.part.end()

    def freeze(self, name: str) -> None:
        process = self._living(name)
        process.part.let_go()
        process.signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        process = self._living(name)
        process.signal(signal.SIGCONT)
        process.part.begin(process.popen.pid)

    def slow(self, name: str, by: float) -> str:
        process = self._living(name)
        return process.part.slow(process.popen.pid, by)

    def restore(self, name: str) -> None:
        process = self._living(name)
        process.part.restore(process.popen.pid)

    def _living(self, name: str) -> _Process:
        process = self._processes.get(name)
        if process is None or process.popen.poll() is not None:
            raise FaultError(f"{name} does not run")
        return process

    def _wires(self) -> Bridged | Switched | Shapes:
        wires = self._shapes or self._namespaces
        assert wires is not None, "a scenario with a partition wants namespaces"
        return wires

    def partition(self, names: Iterable[str], way: str = BOTH) -> None:
        self._wires().partition(names, way)

    def link(self, a: str, b: str, mbps: float | None, delay_ms: float | None) -> None:
        assert self._links is not None, "a scenario with links wants a topology"
        changed = {}
        for pair in ((a, b), (b, a)):
            if pair not in self._now:
                raise FaultError(f"{a} and {b} are not linked in this topology")
            old = self._now[pair]
            rate = old.bytes_per_s if mbps is None else max(1, round(mbps * BYTES_PER_MBIT))
            delay_us = old.delay_us if delay_ms is None else round(delay_ms * 1e3)
            changed[pair] = replace(old, bytes_per_s=rate, delay_us=delay_us)
        self.relink(changed)

    def relink(self, links: Mapping[tuple[str, str], Link]) -> None:
        """Other rates and delays from now on, of links that were given."""
        wires = self._wires()
        assert not isinstance(wires, Bridged), "these peers were given no links"
        wires.relink(links)
        self._now |= links

    def heal(self) -> None:
        self._wires().heal()
        if self._links is not None:
            self.relink(self._links)
