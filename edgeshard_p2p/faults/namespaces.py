"""A network namespace for each peer, and what joins them.  Needs root and ip(8); ends with the
context.

    Bridged     hub: br0 -- v0, v1, ...      each v is one end of a veth, the other is eth0 of a
                     br1 -- (those cut off)  peer's own: as fast as the machine
    Switched    a process (`switch`) that passes frames between a TAP in each, at the rate and with
                the delay of each pair
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from edgeshard_p2p.core.plan import BYTES_PER_MBIT, Link
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.janitor import RUN
from edgeshard_p2p.faults.scenario import BOTH, OUT
from edgeshard_p2p.faults.switch import CLONE_NEWNET, INTERFACE, TUN, address_of

_TIMEOUT_S = 20
JUMBO_MBPS = 100
"""From this rate on frames are larger, or the switch could not keep up."""
MTU, JUMBO_MTU = 1500, 9000


class NamespaceError(FaultError):
    """The machine's: why no namespaces can be made here, in one line."""


def why_not() -> str:
    """What is missing for namespaces; empty where nothing is."""
    if not Path("/proc/self/ns/net").exists():
        return "network namespaces, which only Linux has"
    if os.geteuid() != 0:
        return "root"
    if not shutil.which("ip"):
        return "the ip command (package iproute2)"
    return "" if shutil.which("nsenter") else "the nsenter command (package util-linux)"


class Namespaces(ABC):
    """Named after a run (``janitor``), so that runs cannot meet."""

    def __init__(self, run: str, names: Iterable[str]) -> None:
        missing = why_not()
        if missing:
            raise NamespaceError(f"devices with a network of their own need {missing}")
        self._run = run
        self._index = {name: index for index, name in enumerate(names)}
        self._names = {name: f"{run}-{index}" for name, index in self._index.items()}
        self._made: list[str] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            self._make()
            undo.pop_all()

    @abstractmethod
    def _make(self) -> None:
        """The namespaces, with an interface in each that reaches the others."""

    @abstractmethod
    def partition(self, names: Iterable[str], way: str = BOTH) -> None:
        """``names`` reach each other and nobody else; with a ``way`` nothing of theirs gets out, or
        nothing in to them."""

    @abstractmethod
    def heal(self) -> None: ...

    def _add(self, namespace: str) -> None:
        # Noted first: an interruption may come at any moment.
        self._made.append(namespace)
        _ip("netns", "add", namespace)

    def _address(self, name: str) -> None:
        own = self._names[name]
        _ip("-n", own, "addr", "add", f"{self.host(name)}/24", "dev", INTERFACE)
        _ip("-n", own, "link", "set", INTERFACE, "up")
        _ip("-n", own, "link", "set", "lo", "up")

    def host(self, name: str) -> str:
        return f"10.77.0.{self._index[name] + 1}"

    def command(self, name: str) -> list[str]:
        """What to put before a command for it to run there, under its own pid.

        NOTE: `ip netns exec` would hide the control groups from it, and so what it may use."""
        return ["nsenter", f"--net={_file_of(self._names[name])}", "--"]

    def enter(self, name: str) -> None:
        """Move the calling thread there, and whatever threads it starts from now on."""
        with open(_file_of(self._names[name])) as namespace:
            _enter(namespace.fileno(), f"the namespace of {name}")

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """The calling thread is there, and whatever threads it starts meanwhile."""
        with open("/proc/thread-self/ns/net") as outside:
            self.enter(name)
            try:
                yield
            finally:
                _enter(outside.fileno(), "the network it came from")

    def close(self) -> None:
        failures = []
        while self._made:
            namespace = self._made.pop()
            if not Path(_file_of(namespace)).exists():
                continue
            try:
                _ip("netns", "del", namespace)
            except NamespaceError as error:
                failures.append(error)
        if failures:
            raise failures[0]


class Bridged(Namespaces):
    def _make(self) -> None:
        self._hub = f"{self._run}-hub"
        self._add(self._hub)
        for bridge in ("br0", "br1"):
            _ip("-n", self._hub, "link", "add", bridge, "type", "bridge")
            _ip("-n", self._hub, "link", "set", bridge, "up")
        for name, index in self._index.items():
            own, port = self._names[name], f"v{index}"
            self._add(own)
            veth = ("type", "veth", "peer", "name", INTERFACE, "netns", own)
            _ip("-n", self._hub, "link", "add", port, *veth)
            _ip("-n", self._hub, "link", "set", port, "master", "br0", "up")
            self._address(name)

    def partition(self, names: Iterable[str], way: str = BOTH) -> None:
        assert way == BOTH, "a bridge cuts both ways"
        for name in names:
            _ip("-n", self._hub, "link", "set", f"v{self._index[name]}", "master", "br1")

    def heal(self) -> None:
        for index in self._index.values():
            _ip("-n", self._hub, "link", "set", f"v{index}", "master", "br0")


class Switched(Namespaces):
    """``links``: one for each ordered pair of names that is to reach each other; what a message
    takes beside its bytes (``per_message_us``) is not a matter of frames, and left out."""

    def __init__(
        self, run: str, names: Iterable[str], links: Mapping[tuple[str, str], Link]
    ) -> None:
        if not Path(TUN).exists():
            raise NamespaceError(f"devices with links of their own need {TUN}")
        self.links = dict(links)
        self._run = run
        self._cut_off: set[str] = set()
        self._one_way: set[tuple[str, str]] = set()
        self._switch: subprocess.Popen[str] | None = None
        self.said: dict[str, Any] = {}
        """What the switch did, once it has ended."""
        super().__init__(run, names)

    def _make(self) -> None:
        for own in self._names.values():
            self._add(own)
        self._start_switch()
        mtu = JUMBO_MTU if self._fastest_mbps() > JUMBO_MBPS else MTU
        for name, index in self._index.items():
            own = self._names[name]
            _ip("-n", own, "link", "set", INTERFACE, "address", address_of(index))
            _ip("-n", own, "link", "set", INTERFACE, "mtu", str(mtu))
            self._address(name)
            # A connection keeps its window while it is idle, as one of a steady stream would.
            _run([*self.command(name), "sysctl", "-qw", "net.ipv4.tcp_slow_start_after_idle=0"])

    def _fastest_mbps(self) -> float:
        rates = [link.bytes_per_s / BYTES_PER_MBIT for link in self.links.values()]
        return max(rates, default=0.0)

    def _start_switch(self) -> None:
        wiring = {
            "namespaces": [_file_of(own) for own in self._names.values()],
            "lanes": self._lanes(self.links),
        }
        self._switch = subprocess.Popen(
            [sys.executable, "-m", "edgeshard_p2p.faults.switch", json.dumps(wiring)],
            env=os.environ | {RUN: self._run},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        said = self._read()
        if "ready" not in said:
            raise NamespaceError(said.get("error") or "the switch does not start")

    def _lanes(self, links: Mapping[tuple[str, str], Link]) -> list[list[float]]:
        return [
            [self._index[a], self._index[b], link.bytes_per_s, link.delay_us / 1e6]
            for (a, b), link in links.items()
        ]

    def relink(self, links: Mapping[tuple[str, str], Link]) -> None:
        """Other rates and delays from now on, for pairs that are linked."""
        self.links |= links
        self._order({"lanes": self._lanes(links)})

    def _read(self) -> dict[str, Any]:
        assert self._switch is not None
        assert self._switch.stdout is not None
        line = self._switch.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {}
        return said

    def partition(self, names: Iterable[str], way: str = BOTH) -> None:
        inside = set(names)
        outside = self._index.keys() - inside
        if way == BOTH:
            self._cut_off |= inside
        elif way == OUT:
            self._one_way |= {(a, b) for a in inside for b in outside}
        else:
            self._one_way |= {(b, a) for a in inside for b in outside}
        self._tell()

    def heal(self) -> None:
        self._cut_off.clear()
        self._one_way.clear()
        self._tell()

    def _tell(self) -> None:
        one_way = sorted((self._index[a], self._index[b]) for a, b in self._one_way)
        ports = sorted(self._index[name] for name in self._cut_off)
        self._order({"cut_off": ports, "one_way": one_way})

    def _order(self, order: dict[str, Any]) -> None:
        assert self._switch is not None
        assert self._switch.stdin is not None
        self._switch.stdin.write(json.dumps(order) + "\n")
        self._switch.stdin.flush()

    def close(self) -> None:
        if self._switch is not None:
            self._switch.send_signal(signal.SIGCONT)
            with suppress(subprocess.TimeoutExpired):
                said, _ = self._switch.communicate(timeout=_TIMEOUT_S)
                self.said = json.loads(said) if said else {}
            self._switch.kill()  # It has said its last word.
            self._switch.wait()
            self._switch = None
        super().close()


def _enter(namespace: int, what: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        error = os.strerror(ctypes.get_errno())
        raise NamespaceError(f"a thread cannot enter {what}: {error}")


def _file_of(namespace: str) -> str:
    return f"/run/netns/{namespace}"


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NamespaceError(f"{' '.join(command)} failed: {said[0]}")
