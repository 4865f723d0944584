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

LOOK_S = 2.0
PASSES_MIN = 48
"""A stretch of passes has so many; where there was none between two looks, it begins anew."""
LATE_S = 2 * LOOK_S
"""A look that comes so late tells nothing of rests: the process may have been stopped."""
IDLE_MIN, IDLE_MAX = 5, 30
"""Looks at a process that rests, before anything is told, and those that are remembered.  The least
of them counts: links are measured and plans are made in others."""


class Mark(Struct, frozen=True):
    """How things stand, at the end of a pass or while there is none."""

    at: float
    n_passes: int
    process_s: float
    """Processor time of all threads so far."""
    forward_s: float
    """Of that, in forward passes."""


class BesideClock:
    """``tell`` is called on the loop after each stretch, with microseconds for a pass, at least 1;
    ``n_turns``: how often the compute thread has begun or ended something; ``cores``: what the
    process may use as the device's other figures were measured.  Where it comes to have less, all
    of them grow alike."""

    def __init__(
        self, tell: Callable[[int], None], n_turns: Callable[[], int], cores: float
    ) -> None:
        self._tell, self._n_turns, self._cores = tell, n_turns, cores
        self.last = Mark(time.monotonic(), 0, time.process_time(), 0.0)
        """As things stood at the end of the last pass."""
        self._begun: Mark | None = self.last
        """Where the stretch of passes begins; None: at the first look after a pass."""
        self._looked = self.last
        """The moment of the last look."""
        self._n_turns_looked = n_turns()
        self._idle: deque[float] = deque(maxlen=IDLE_MAX)
        """Processor time per second while the compute thread had nothing to do."""

    def passed(self, forward_s: float) -> None:
        """From the compute thread: a pass took so much of it."""
        last, at, process_s = self.last, time.monotonic(), time.process_time()
        self.last = Mark(at, last.n_passes + 1, process_s, last.forward_s + forward_s)

    async def run(self) -> None:
        """For as long as the loop does."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look(self.last, time.monotonic(), time.process_time())

    def look(self, last: Mark, now: float, process_s: float) -> None:
        looked, n_turns_looked = self._looked, self._n_turns_looked
        self._looked = Mark(now, last.n_passes, process_s, last.forward_s)
        self._n_turns_looked = n_turns = self._n_turns()
        if last.n_passes == looked.n_passes:
            # What a pass that goes on has taken so far cannot be told from the rest.
            self._begun = self._looked if n_turns % 2 == 0 else None
            if n_turns == n_turns_looked and n_turns % 2 == 0 and now - looked.at < LATE_S:
                self._idle.append((process_s - looked.process_s) / (now - looked.at))
        elif self._begun is None:
            self._begun = last
        elif last.n_passes - self._begun.n_passes >= PASSES_MIN:
            begun, self._begun = self._begun, last
            if len(self._idle) >= IDLE_MIN and self._cores <= 1:
                self._tell(self._pass_us(begun, last))

    def _pass_us(self, begun: Mark, last: Mark) -> int:
        spent_s = (last.process_s - begun.process_s) - (last.forward_s - begun.forward_s)
        spent_s -= min(self._idle) * (last.at - begun.at)
        return max(1, round(1e6 * spent_s / (last.n_passes - begun.n_passes) / self._cores))
