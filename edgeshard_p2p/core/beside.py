"""What a pass takes of this device besides its units: frames, acknowledgements, tokens to clients.

It shows only where computing has to wait for it, with a processor or less for all of the process,
and only while it serves, so it is learned then.
Knows nothing of how it is timed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from edgeshard_p2p.core.effects import Effect, Log, SavePassTime

STRETCHES, STRETCHES_MIN = 5, 3
"""What is learned is the second lowest of so many stretches: prompts, requests that begin and end,
and whatever else happens meanwhile only add to what passes take."""
MOVED_BY = 3
"""It is told again once it has moved by more than a third: each time may bring another plan."""
LEAST_US = 500
"""Nor where it moved by less: no plan depends on that."""


@dataclass(slots=True)
class Beside:
    us: int = 0
    """As told to others; 0: nothing is known yet."""
    _stretches: deque[int] = field(default_factory=lambda: deque(maxlen=STRETCHES))

    def on_timed(self, us: int) -> list[Effect]:
        """What each pass of the latest stretch took."""
        self._stretches.append(us)
        if len(self._stretches) < STRETCHES_MIN:
            return []
        learned = sorted(self._stretches)[1]
        moved = abs(learned - self.us)
        if self.us and (moved < LEAST_US or moved * MOVED_BY <= self.us):
            return []
        self.us = learned
        text = f"a pass takes {learned / 1e3:.1f} ms of this device besides its units"
        return [Log(text), SavePassTime(learned)]
