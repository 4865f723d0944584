"""What a pass takes of this process besides its units: the processor time of all that the process
does, less that of forward passes, less what it takes anyhow while it computes nothing.

Where the process may use more than one processor nobody waits for that, and nothing is told.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from edgeshard_p2p.control_groups import usable_cores

STRETCH_S = 2.0
PASSES_MIN = 48
"""A stretch goes on until it has so many ..."""
STRETCH_MAX_S = 60.0
"""... unless they take longer than this: then it counts for nothing."""
IDLE_STRETCHES = 30
"""Of which the least counts: links are measured and plans are made in others."""


class Mark(Struct, frozen=True):
    """How things stand, at the end of a pass or while there is none."""

    at: float
    n_passes: int
    process_s: float
    """Processor time of all threads so far."""
    forward_s: float
    """Of that, in forward passes."""


class BesideClock:
    """``tell`` is called on the loop after each stretch, with microseconds for a pass; ``n_turns``:
    how often the compute thread has begun or ended something."""

    def __init__(
        self,
        tell: Callable[[int], None],
        n_turns: Callable[[], int],
        cores: Callable[[], float] = usable_cores,
    ) -> None:
        self._tell, self._n_turns, self._cores = tell, n_turns, cores
        self._n_turns_begun = n_turns()
        self._begun = self.last = Mark(time.monotonic(), 0, time.process_time(), 0.0)
        """As things stood at the end of the last pass."""
        self._idle: deque[float] = deque(maxlen=IDLE_STRETCHES)
        """Processor time per second while the compute thread had nothing to do."""

    def passed(self, forward_s: float) -> None:
        """From the compute thread: a pass took so much of it."""
        last, at, process_s = self.last, time.monotonic(), time.process_time()
        self.last = Mark(at, last.n_passes + 1, process_s, last.forward_s + forward_s)

    async def run(self) -> None:
        """For as long as the loop does."""
        while True:
            await asyncio.sleep(STRETCH_S)
            self.look(self.last, time.monotonic(), time.process_time())

    def look(self, last: Mark, now: float, process_s: float) -> None:
        begun, n_turns = self._begun, self._n_turns()
        n_passes, took_s = last.n_passes - begun.n_passes, last.at - begun.at
        if not n_passes:
            if n_turns == self._n_turns_begun and n_turns % 2 == 0:
                self._idle.append((process_s - begun.process_s) / (now - begun.at))
            self._begun = Mark(now, last.n_passes, process_s, last.forward_s)
        elif n_passes >= PASSES_MIN and took_s >= STRETCH_S:
            spent_s = (last.process_s - begun.process_s) - (last.forward_s - begun.forward_s)
            spent_s -= took_s * min(self._idle, default=0.0)
            self._begun = last
            if (cores := self._cores()) <= 1:
                self._tell(max(0, round(1e6 * spent_s / n_passes / cores)))
        elif now - begun.at > STRETCH_MAX_S:
            self._begun = last
        self._n_turns_begun = n_turns
