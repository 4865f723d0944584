"""How much of a core's time the system lets this process have: containers and emulated devices get
their share in slices, between which they stand still.

What is shorter than a slice shows nothing of that, however often it is timed.  And who has rested
finds a slice: ``rested_us`` says what that is worth.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from edgeshard_p2p.control_groups import GROUPS, PROCESS, cores_allowed

WHOLE = 1.0
BURSTS = 15
BURST_S, REST_S = 0.06, 0.04
"""How long a burst takes at least, at the share, and the rest before it: several slices each ..."""
SPREAD_S = 0.02
"""... and up to so much more, so that bursts begin and end anywhere in a slice or between two."""
SPREADS = (0.7549, 0.5698)
"""Multiples of the pair are spread evenly over the unit square (Roberts' R2 sequence)."""


def cpu_share(groups: Path = GROUPS, process: Path = PROCESS) -> float:
    """Of one core; WHOLE where no control group, its own or one above, allows less."""
    return min(WHOLE, cores_allowed(groups, process))


def rested_us(share: float) -> int:
    """By how much sooner than ``share`` of a core lets it, what this thread begins after a rest is
    done: the median of some bursts, microseconds; 0 where it has all of a core.  Takes 1.5 s."""
    if share == WHOLE:
        return 0
    return max(0, round(1e6 * statistics.median(_gained_s(k, share) for k in range(BURSTS))))


def _gained_s(k: int, share: float) -> float:
    rest_s, burst_s = (SPREAD_S * (k * spread % 1) for spread in SPREADS)
    time.sleep(REST_S + rest_s)
    burst_s += BURST_S
    begun, ends_at = time.monotonic(), time.thread_time() + share * burst_s
    while time.thread_time() < ends_at:
        pass
    return burst_s - (time.monotonic() - begun)
