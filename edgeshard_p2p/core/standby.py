"""Layers of the plan that would follow the loss of a peer, held before it is lost.

For each other peer of the plan that is served: what would be served without it.  What of that
falls to this peer and is not here yet is loaded in idle time, one unit at a time, as far as memory
allows; what more of these plans need comes first.  A plan that is really made waits for none of
it, and gets the room.
Knows nothing of how plans are found or units are loaded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from edgeshard_p2p.core.effects import ComputePlan, Effect
from edgeshard_p2p.core.ids import PeerId, PlanId
from edgeshard_p2p.core.plan import Choice, Plan, Snapshot, without

DEVICES_MAX = 12
"""In larger swarms one question may take the planner seconds, and a loss would wait for that."""


@dataclass(slots=True)
class Standby:
    me: PeerId
    is_on: bool
    """The operator's wish."""
    _of: tuple[PlanId, tuple[PeerId, ...]] | None = None
    """What this is about: the plan, and who is there.  Not every new figure of a link, which would
    have units loaded and dropped all the time."""
    _left: list[Snapshot] = field(default_factory=list)
    """What is to be planned yet."""
    _asked: str | None = None
    """The snapshot that is being planned."""
    _is_void: bool = False
    """It is about something else by now."""
    _needed: Counter[int] = field(default_factory=Counter)
    """By unit, in how many of the plans it is this peer's."""
    _has_failed: bool = False

    def follow(self, snapshot: Snapshot, plan: Plan) -> list[Effect]:
        """``plan`` is what is served under ``snapshot``, and there is time."""
        if not self.is_on or len(snapshot.devices) > DEVICES_MAX:
            return []
        of = plan.id, tuple(device.peer for device in snapshot.devices)
        if of != self._of:
            self._of, self._is_void, self._has_failed = of, self._asked is not None, False
            others = [peer.name for peer in plan.peers() if peer != self.me]
            self._left = [without(snapshot, name) for name in reversed(others)]
            self._needed = Counter()
        if self._asked is not None or not self._left:
            return []
        asked = self._left.pop()
        self._asked = asked.id
        return [ComputePlan(asked)]

    def on_choice(self, choice: Choice) -> None:
        if choice.snapshot_id != self._asked:
            return
        is_void, self._asked, self._is_void = self._is_void, None, False
        if choice.plan is not None and not is_void:
            self._needed.update({u for units in choice.plan.units_of(self.me) for u in units})

    def on_load_failed(self) -> None:
        """A unit could not be loaded: nothing more is, as long as all stays as it is."""
        self._has_failed = True

    def units(self) -> tuple[int, ...] | None:
        """In the order in which to hold them; None: as it is, until all is planned."""
        is_open = self._of is None or self._left or self._asked is not None
        if is_open or self._has_failed:
            return None
        return tuple(sorted(self._needed, key=lambda unit: (-self._needed[unit], unit)))
