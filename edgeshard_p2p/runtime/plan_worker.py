"""The planner in a process of its own: planning may take seconds and must not hold the loop.

Runs as ``python -m edgeshard_p2p.runtime.plan_worker``: snapshots come in on stdin, choices
go out on stdout, each as a length and msgpack.  It ends when stdin does, so it never outlives its
peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from edgeshard_p2p.core.plan import Choice, Snapshot

log = logging.getLogger("edgeshard")

LENGTH_BYTES = 4
LIVES = 4


class PlannerError(Exception):
    """The planner process does not stay alive."""


class PlanWorker:
    """The parent's side: snapshots in, choices out, in order."""

    def __init__(self, on_choice: Callable[[Choice], None]) -> None:
        self._on_choice = on_choice
        self._decoder = msgspec.msgpack.Decoder(Choice)
        self._process: asyncio.subprocess.Process | None = None
        self._asked: deque[Snapshot] = deque()
        """What is not answered yet."""

    async def open(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __spec__.name,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # A terminal's Ctrl-C reaches the whole group, also while it still imports.
            start_new_session=True,
        )

    def ask(self, snapshot: Snapshot) -> None:
        self._asked.append(snapshot)
        self._write(snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(_framed(msgspec.msgpack.encode(snapshot)))

    async def run(self) -> None:
        """Hand choices on.  A worker that dies (for want of memory, say) is started again; one
        that keeps dying is an error."""
        for _ in range(LIVES):
            try:
                await self._read()
            except asyncio.IncompleteReadError:
                log.error("the planner process ended; starting another")
            await self.open()
            for snapshot in self._asked:
                self._write(snapshot)
        raise PlannerError(f"the planner process ended {LIVES} times")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        stdout = self._process.stdout
        while True:
            length = await stdout.readexactly(LENGTH_BYTES)
            data = await stdout.readexactly(int.from_bytes(length, "big"))
            self._asked.popleft()
            self._on_choice(self._decoder.decode(data))

    async def close(self) -> None:
        """Whatever it is planning, nobody waits for it."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def _unframed(stream: BinaryIO) -> bytes | None:
    """One message; None at the end, which may come in the middle of one."""
    length = stream.read(LENGTH_BYTES)
    n_bytes = int.from_bytes(length, "big")
    data = stream.read(n_bytes)
    return data if len(length) == LENGTH_BYTES and len(data) == n_bytes else None


def main() -> None:
    # NOTE: a terminal's Ctrl-C reaches the whole group; the peer decides when this ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A peer that is killed while this plans takes the pipe with it: that is an end, not an error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    decoder = msgspec.msgpack.Decoder(Snapshot)
    while (data := _unframed(sys.stdin.buffer)) is not None:
        sys.stdout.buffer.write(_framed(_answer(decoder.decode(data))))
        sys.stdout.buffer.flush()


def _answer(snapshot: Snapshot) -> bytes:
    """The choice; or, where gossiped figures are beyond what can be planned, that there is none:
    everybody plans the same snapshot, and it must not end everybody."""
    from edgeshard_p2p.core.planner import choose

    try:
        return msgspec.msgpack.encode(choose(snapshot))
    except (AssertionError, MemoryError, OverflowError) as error:
        reason = f"the planner gave up: {type(error).__name__} {error}"
        return msgspec.msgpack.encode(Choice(snapshot.id, None, reason=reason))


if __name__ == "__main__":
    main()
