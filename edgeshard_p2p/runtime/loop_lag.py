"""How late the loop is: a timer of its own that goes off again and again, and by how much too late.

Whatever keeps the loop from its turn shows here: a callback that takes long, the interpreter lock,
a CPU quota, a process that stood still.  Probes, frames and tokens waited for as long.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from math import ceil

PERIOD_S = 0.1
WINDOW_S = 60.0
N_MAX = round(WINDOW_S / PERIOD_S)
SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


class LoopLag:
    """Of the last minute."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque(maxlen=N_MAX)

    async def run(self) -> None:
        """For as long as the loop does."""
        while True:
            due = time.monotonic() + PERIOD_S
            await asyncio.sleep(PERIOD_S)
            self.note(time.monotonic() - due)

    def note(self, late_s: float) -> None:
        """One that was so late.  Those that would have been due meanwhile count as well, each by
        what was left: else one long stop among many short ones would hide in the percentiles."""
        n_due = min(N_MAX, 1 + int(max(0.0, late_s) / PERIOD_S))
        self._late_s.extend(max(0.0, late_s - k * PERIOD_S) for k in range(n_due))

    def told(self) -> dict[str, float]:
        """Milliseconds."""
        ordered = sorted(self._late_s) or [0.0]
        ranks = {name: ceil(len(ordered) * share) for name, share in SHARES.items()}
        return {name: round(1e3 * ordered[rank - 1], 1) for name, rank in ranks.items()}
