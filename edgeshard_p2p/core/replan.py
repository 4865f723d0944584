"""When to plan again: a loss at once, a gain after the snapshot has been quiet for a while.

Planning may take seconds, so it runs outside and its answer comes back; this remembers what was
asked and what was answered.  Knows nothing of what a plan is for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeshard_p2p.core.effects import ComputePlan, Effect
from edgeshard_p2p.core.plan import Choice, Snapshot
from edgeshard_p2p.core.timing import Timing
from edgeshard_p2p.core.view import View


@dataclass(slots=True)
class Replan:
    timing: Timing
    min_members: int = 1
    choice: Choice | None = None
    """The latest answer, whatever the snapshot is now."""
    view: View | None = None
    _asked: Snapshot | None = None
    """What is being planned, or was planned last."""
    _is_computing: bool = False
    _changed_at: float = 0.0

    def waiting_for(self) -> str:
        """Why there is no plan yet, in words; empty when there is one."""
        if self.view is None:
            return "this peer has just started"
        if self.view.snapshot is None:
            return self.view.waiting_for
        n_devices = len(self.view.snapshot.devices)
        if self._is_held_back(self.view.snapshot):
            return f"{n_devices} of at least {self.min_members} members are ready"
        if self.choice is None:
            return "the first plan is being computed"
        return self.choice.reason if self.choice.plan is None else ""

    def current_choice(self) -> Choice | None:
        """The answer, where it is to the present snapshot."""
        snapshot = self.view.snapshot if self.view is not None else None
        if self.choice is None or snapshot is None or self.choice.snapshot_id != snapshot.id:
            return None
        return self.choice

    def found_none(self) -> bool:
        """Whether there was no plan by the latest answer, even where another is being computed."""
        return self.choice is not None and self.choice.plan is None

    def is_infeasible(self) -> bool:
        """Whether the present snapshot is known to have no plan."""
        choice = self.current_choice()
        return choice is not None and choice.plan is None

    def next_deadline(self) -> float | None:
        if self._is_computing or self._pending() is None:
            return None
        return self._changed_at + self.timing.gain_quiet_s

    def on_view(self, view: View, now: float) -> None:
        before = self.view.snapshot if self.view is not None else None
        if view.snapshot == before:
            # What was asked stays the very same: comparing equal ones takes long, each time.
            view = replace(view, snapshot=before)
        else:
            self._changed_at = now
        self.view = view

    def on_choice(self, choice: Choice) -> bool:
        """True when the answer is to the question asked last."""
        if self._asked is None or choice.snapshot_id != self._asked.id:
            return False
        self._is_computing = False
        self.choice = choice
        return True

    def tick(self, now: float) -> list[Effect]:
        snapshot = self._pending()
        if snapshot is None or self._is_computing:
            return []
        if not self._is_loss(snapshot) and now < self._changed_at + self.timing.gain_quiet_s:
            return []
        self._asked, self._is_computing = snapshot, True
        return [ComputePlan(snapshot)]

    def _pending(self) -> Snapshot | None:
        snapshot = self.view.snapshot if self.view is not None else None
        if snapshot is None or snapshot is self._asked or snapshot == self._asked:
            return None
        if self._is_held_back(snapshot):
            return None
        return snapshot

    def _is_held_back(self, snapshot: Snapshot) -> bool:
        return self._asked is None and len(snapshot.devices) < self.min_members

    def _is_loss(self, snapshot: Snapshot) -> bool:
        if self._asked is None:
            return False
        here = {device.peer for device in snapshot.devices}
        return any(device.peer not in here for device in self._asked.devices)
