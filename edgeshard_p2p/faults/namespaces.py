"""A network namespace for each peer, joined by two bridges in one of their own: those whose ports
are on the other bridge are cut off.  Needs root and ip(8); ends with the context.

    hub: br0 -- v0, v1, ...        each v is one end of a veth, the other is eth0 of a peer's own
         br1 -- (those cut off)
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

CLONE_NEWNET = 0x40000000
_TIMEOUT_S = 20


class NamespaceError(Exception):
    """The machine's: why no namespaces can be made here, in one line."""


def why_not() -> str:
    """What is missing for namespaces; empty where nothing is."""
    if not Path("/proc/self/ns/net").exists():
        return "network namespaces, which only Linux has"
    if os.geteuid() != 0:
        return "root"
    return "" if shutil.which("ip") else "the ip command (package iproute2)"


class Namespaces:
    """Named after this process, so that runs cannot meet."""

    def __init__(self, names: Iterable[str]) -> None:
        missing = why_not()
        if missing:
            raise NamespaceError(f"a partition needs {missing}")
        prefix = f"edgeshard-{os.getpid()}"
        self._hub = f"{prefix}-hub"
        self._index = {name: index for index, name in enumerate(names)}
        self._names = {name: f"{prefix}-{index}" for name, index in self._index.items()}
        self._made: list[str] = []
        try:
            self._make()
        except NamespaceError:
            self.close()
            raise

    def _make(self) -> None:
        self._add(self._hub)
        for bridge in ("br0", "br1"):
            _ip("-n", self._hub, "link", "add", bridge, "type", "bridge")
            _ip("-n", self._hub, "link", "set", bridge, "up")
        for name, index in self._index.items():
            own, port = self._names[name], f"v{index}"
            self._add(own)
            veth = ("type", "veth", "peer", "name", "eth0", "netns", own)
            _ip("-n", self._hub, "link", "add", port, *veth)
            _ip("-n", self._hub, "link", "set", port, "master", "br0", "up")
            _ip("-n", own, "addr", "add", f"{self.host(name)}/24", "dev", "eth0")
            _ip("-n", own, "link", "set", "eth0", "up")
            _ip("-n", own, "link", "set", "lo", "up")

    def _add(self, namespace: str) -> None:
        _ip("netns", "add", namespace)
        self._made.append(namespace)

    def host(self, name: str) -> str:
        return f"10.77.0.{self._index[name] + 1}"

    def command(self, name: str) -> list[str]:
        """What to put before a command for it to run there, under its own pid."""
        return ["ip", "netns", "exec", self._names[name]]

    def enter(self, name: str) -> None:
        """Move the calling thread there, and whatever threads it starts from now on."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self._names[name]}") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                error = os.strerror(ctypes.get_errno())
                raise NamespaceError(f"cannot enter the namespace of {name}: {error}")

    def partition(self, names: Iterable[str]) -> None:
        """``names`` reach each other and nobody else."""
        for name in names:
            _ip("-n", self._hub, "link", "set", f"v{self._index[name]}", "master", "br1")

    def heal(self) -> None:
        for index in self._index.values():
            _ip("-n", self._hub, "link", "set", f"v{index}", "master", "br0")

    def close(self) -> None:
        failures = []
        while self._made:
            try:
                _ip("netns", "del", self._made.pop())
            except NamespaceError as error:
                failures.append(error)
        if failures:
            raise failures[0]


def _ip(*arguments: str) -> None:
    command = ["ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NamespaceError(f"{' '.join(command)} failed: {said[0]}")
