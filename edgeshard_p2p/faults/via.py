"""Peers that run on devices of their own, each reached by a command: ssh, for instance.

Starts and ends no peer but by a step that says so; what it slowed, froze or cut off it puts right
at its end.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterable
from typing import TypeVar

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.scenario import BOTH, FaultScenario
from edgeshard_p2p.faults.throttle import PERIOD_S
from edgeshard_p2p.net.security import Security

T = TypeVar("T")

COMMAND_TIMEOUT_S = 30.0
HOST, COMMAND = "{host}", "{command}"

_FIND = (
    'pid=$({{ ss -Hltnp "sport = :{port}" | sed -n "s/.*pid=\\([0-9]*\\).*/\\1/p"; '
    "lsof -t -iTCP:{port} -sTCP:LISTEN; }} 2>/dev/null | head -n 1); "
    '[ -n "$pid" ] || {{ echo no process listens on port {port} >&2; exit 1; }}; '
)
"""The peer, by its port: ss(8) on Linux, lsof(8) elsewhere."""
_SLOW = (
    "nohup sh -c 'while kill -STOP $0 && sleep {stops_s:.4f} && kill -CONT $0; "
    "do sleep {goes_s:.4f}; done' $pid >/dev/null 2>&1 & echo $! > {pid_file}"
)
_RESTORE = "kill $(cat {pid_file}); rm -f {pid_file}; kill -CONT $pid"


def parse_via(template: str) -> list[str]:
    """The words of a --via.  Raises FaultError."""
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise FaultError(f"--via {template!r} is not a command: {error}", 2) from None
    joined = " ".join(words)
    if HOST not in joined or COMMAND not in joined:
        raise FaultError(
            "--via needs {host} and {command} in it, as in: --via 'ssh {host} {command}'", 2
        )
    return words


class RemoteDevices:
    network = "devices"

    def __init__(self, scenario: FaultScenario, via: list[str], security: Security) -> None:
        self._entries = {peer.name: peer for peer in scenario.peers}
        self._via = via
        self.security = security
        self._frozen: set[str] = set()
        self._slowed: set[str] = set()
        self._cut_off: set[str] = set()

    def __enter__(self) -> RemoteDevices:
        return self

    def __exit__(self, *_: object) -> None:
        undo: list[Callable[[], None]] = []
        undo += [lambda name=name: self.restore(name) for name in sorted(self._slowed)]  # type: ignore[misc]
        undo += [lambda name=name: self.thaw(name) for name in sorted(self._frozen)]  # type: ignore[misc]
        undo += [self.heal] if self._cut_off else []
        failures = []
        for step in undo:
            try:
                step()
            except FaultError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    # --- where they are -------------------------------------------------------------------

    def address(self, name: str) -> Address:
        return self._entries[name].place

    def enter(self, name: str) -> None:
        pass

    def reach(self, name: str, work: Callable[[], T]) -> T:
        return work()

    def why_ended(self) -> str:
        return ""

    # --- what is done to them -------------------------------------------------------------

    def _run(self, name: str, command: str) -> None:
        host = self._entries[name].host or self.address(name).host
        words = [word.replace(HOST, host).replace(COMMAND, command) for word in self._via]
        try:
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FaultError(f"{words[0]}: no end after {COMMAND_TIMEOUT_S:.0f} s") from None
        except OSError as error:
            raise FaultError(f"{words[0]} cannot be run: {error.strerror}") from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise FaultError(f"on {host}: {said[-1]}")

    def _to_peer(self, name: str, command: str) -> None:
        """With the peer's process as ``$pid``."""
        self._run(name, _FIND.format(port=self.address(name).port) + command)

    def start(self, name: str) -> None:
        command = shlex.quote(self._entries[name].start)
        self._run(name, f"nohup sh -c {command} >/dev/null 2>&1 </dev/null &")

    def kill(self, name: str) -> None:
        self._to_peer(name, "kill -KILL $pid")

    def leave(self, name: str) -> None:
        self._to_peer(name, "kill -INT $pid")

    def stop(self, name: str) -> None:
        self._to_peer(name, "kill -TERM $pid")

    def freeze(self, name: str) -> None:
        self._frozen.add(name)
        self._to_peer(name, "kill -STOP $pid")

    def thaw(self, name: str) -> None:
        self._to_peer(name, "kill -CONT $pid")
        self._frozen.discard(name)

    def slow(self, name: str, by: float) -> str:
        goes_s = PERIOD_S / by
        self._slowed.add(name)
        turns = _SLOW.format(
            stops_s=PERIOD_S - goes_s, goes_s=goes_s, pid_file=self._pid_file(name)
        )
        self._to_peer(name, turns)
        return "stopping and continuing it"

    def restore(self, name: str) -> None:
        self._to_peer(name, _RESTORE.format(pid_file=self._pid_file(name)))
        self._slowed.discard(name)

    def _pid_file(self, name: str) -> str:
        return f"$HOME/.edgeshard-slow-{self.address(name).port}"

    def partition(self, names: Iterable[str], way: str = BOTH) -> None:
        assert way == BOTH, "only links that are emulated are cut one way"
        for name in names:
            self._cut_off.add(name)
            self._run(name, self._entries[name].partition)

    def link(self, a: str, b: str, mbps: float | None, delay_ms: float | None) -> None:
        raise FaultError(f"the link between {a} and {b} is not emulated")

    def heal(self) -> None:
        for name in sorted(self._cut_off):
            self._run(name, self._entries[name].heal)
            self._cut_off.discard(name)
