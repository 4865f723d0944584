"""One thread for torch, so that the loop never waits for a layer; results come back as calls on
the loop, in the order of the work."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

Outcome = Callable[[T], None]


class Compute:
    """``errors`` are the exceptions that come back as results; any other is handed to
    ``on_bug`` and nothing runs after it."""

    def __init__(
        self,
        errors: tuple[type[Exception], ...],
        on_bug: Callable[[BaseException], None],
    ) -> None:
        self._errors = errors
        self._on_bug = on_bug
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.busy_s = 0.0
        """How long the thread has worked so far."""
        self.n_turns = 0
        """Beginnings and ends of work so far: odd while there is some."""
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    def submit(
        self,
        work: Callable[[], T],
        on_done: Callable[[T], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        def act() -> None:
            try:
                result = work()
            except self._errors as error:
                self._call(on_error, error)
            else:
                self._call(on_done, result)

        self._work.put(act)

    def close(self) -> None:
        self._work.put(None)

    def call(self, function: Callable[[T], None], value: T) -> None:
        """From the compute thread: have the loop call ``function(value)``."""
        self._call(function, value)

    def _call(self, function: Callable[[T], None], value: T) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, value)

    def _run(self) -> None:
        is_done = False
        try:
            while (act := self._work.get()) is not None:
                begun = time.monotonic()
                self.n_turns += 1
                act()
                self.n_turns += 1
                self.busy_s += time.monotonic() - begun
            is_done = True
        finally:
            bug = sys.exc_info()[1]
            if not is_done and bug is not None:
                self._call(self._on_bug, bug)
