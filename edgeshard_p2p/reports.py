"""What a peer's status report says of the plan that is served.  Pure."""

from __future__ import annotations

from typing import Any

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.pin import Pin, PinnedStage


def is_ready(plan: dict[str, Any]) -> bool:
    """Whether it serves, and every stage says that it is ready."""
    return plan["state"] == "active" and all(stage["is_ready"] for stage in plan["stages"])


def as_pin(plan: dict[str, Any]) -> Pin:
    """The pin that would have the same served; there has to be a plan."""
    stages = plan["stages"]
    sources = [stage for stage in stages if stage["stage"] == 0]
    shared = [stage for stage in stages if stage["stage"] > 0]
    pinned = (PinnedStage(s["peer"], UnitRange(s["start"], s["end"])) for s in shared)
    return Pin(tuple(sorted(s["peer"] for s in sources)), sources[0]["end"], tuple(pinned))
