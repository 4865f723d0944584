"""What this peer's operator wants the swarm's settings to be: by flags, which seed what nobody has
set, and by word, which may be for a time only.

A setting with a time to it is lifted by the peer that set it; where that peer is gone, the pin has
lapsed with it.  Knows nothing of what the settings are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeshard_p2p.core.effects import Effect, Log
from edgeshard_p2p.core.events import SettingAsked
from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.records import Setting
from edgeshard_p2p.core.settings import (
    EXPLICIT_CONFLICTS,
    LIFTED,
    SettingValue,
    describe,
    is_same,
    why_at_odds,
)
from edgeshard_p2p.core.view import DEFAULT_BATCH


@dataclass(slots=True)
class Wishes:
    gossip: Gossip
    membership: Membership
    seed_delay_s: float
    flags: Mapping[str, SettingValue]
    started_at: float = 0.0
    _has_seeded: bool = False
    _lapses: dict[str, tuple[float, Setting]] = field(default_factory=dict)
    """What was set here for a time, and when that is over."""

    def next_deadline(self) -> float | None:
        times = [at for at, _ in self._lapses.values()]
        if not self._has_seeded:
            times.append(self.started_at + self.seed_delay_s)
        return min(times, default=None)

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for key, (at, setting) in list(self._lapses.items()):
            if now < at:
                continue
            del self._lapses[key]
            if self.gossip.settings.get(key) == setting:  # Nobody has set it anew.
                effects += self.set(key, LIFTED[key])
        if now >= self.started_at + self.seed_delay_s:
            effects += self.seed()
        return effects

    def seed(self) -> list[Effect]:
        """Set what nobody has set, from this peer's own flags; once."""
        if self._has_seeded:
            return []
        self._has_seeded = True
        unset = [key for key in sorted(self.flags) if key not in self.gossip.settings]
        return [effect for key in unset for effect in self.set(key, self.flags[key])]

    def on_asked(self, event: SettingAsked, now: float) -> list[Effect]:
        effects = self.set(event.key, event.value, event.is_default)
        self._lapses.pop(event.key, None)
        if event.for_s and event.key in LIFTED:
            self._lapses[event.key] = now + event.for_s, self.gossip.settings[event.key]
        return effects

    def why_not(self, key: str, value: SettingValue) -> str:
        """Why that cannot be beside the other settings, in words; empty: it can."""
        others = {other: self.gossip.setting(other) for other in ("batch", "micro_batch", "model")}
        others["batch"] = others["batch"] or DEFAULT_BATCH
        return why_at_odds({**others, key: value})

    def set(self, key: str, value: SettingValue, is_default: bool = False) -> list[Effect]:
        text = f"setting {key} = {describe(value)}"
        return [Log(text), *self.gossip.set(key, value, self.membership, is_default)]

    def conflict(self, setting: Setting, sender: PeerId) -> str:
        """Why this peer's own flag keeps it out of the swarm at ``sender``; empty: it does not."""
        wish = self.flags.get(setting.key)
        if setting.key not in EXPLICIT_CONFLICTS or wish is None or is_same(wish, setting.value):
            return ""
        mine = self.gossip.settings.get(setting.key)
        if mine is not None and (mine.counter, mine.by) > (setting.counter, setting.by):
            return ""  # The other side yields: its seed is the one that loses.
        return (
            f"the swarm at {sender} runs {setting.key} {describe(setting.value)}, this peer was "
            f"given {describe(wish)}; leave --{setting.key} out to take the swarm's"
        )
