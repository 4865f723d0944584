"""How much of a core's time the system lets this process have: containers and emulated devices get
their share in slices, between which they stand still.

What is shorter than a slice shows nothing of that, however often it is timed.
"""

from __future__ import annotations

from pathlib import Path

from edgeshard_p2p.control_groups import GROUPS, PROCESS, cores_allowed

WHOLE = 1.0


def cpu_share(groups: Path = GROUPS, process: Path = PROCESS) -> float:
    """Of one core; WHOLE where no control group, its own or one above, allows less."""
    return min(WHOLE, cores_allowed(groups, process))
