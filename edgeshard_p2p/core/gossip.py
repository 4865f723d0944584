"""Owned records and shared settings, spread by push and repaired by anti-entropy.

A digest lists what its sender has (van Renesse et al. 2008, "Efficient Reconciliation and Flow
Control for Anti-Entropy Protocols"); the answer carries what is newer.  Versions are kept per owner
and kind, so a push of one record never hides another.  Where they are many, a digest of the list
goes first: what a quiet swarm says does not grow with it.
Knows nothing of what the records mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from edgeshard_p2p.core.effects import Effect, Send
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import Delta, Digest, OwnerVersion
from edgeshard_p2p.core.plan import digest as digest_of
from edgeshard_p2p.core.records import Record, RecordValue, Setting
from edgeshard_p2p.core.settings import SettingValue, is_valid

RECORDS_PER_DELTA = 128
VERSIONS_AT_ONCE = 64
"""Up to so many are listed unasked: some 1.5 KB, and a difference is mended a round trip sooner."""
COUNTER_MAX = 2**40
"""A setting's counter counts decisions; one beyond this was made up."""


@dataclass(slots=True)
class Gossip:
    me: PeerId
    rng: Random
    period_s: float
    records: dict[PeerId, dict[type[RecordValue], Record]] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    revision: int = 0
    """Rises with every change of what is known here."""
    _version: int = 0
    _next_at: float | None = None
    _summary: tuple[int, str] = (-1, "")
    """The digest of all versions, and the revision that it is of."""

    # --- questions ------------------------------------------------------------------------

    def of(self, owner: PeerId, kind: type[RecordValue]) -> RecordValue | None:
        record = self.records.get(owner, {}).get(kind)
        return record.value if record is not None else None

    def setting(self, key: str) -> SettingValue | None:
        entry = self.settings.get(key)
        return entry.value if entry is not None else None

    def all_settings(self) -> tuple[Setting, ...]:
        return tuple(self.settings[key] for key in sorted(self.settings))

    # --- writing --------------------------------------------------------------------------

    def publish(self, value: RecordValue, membership: Membership) -> list[Effect]:
        """Make ``value`` this peer's record of its kind; nothing happens when it already is."""
        if self.of(self.me, type(value)) == value:
            return []
        self._version += 1
        record = Record(self.me, self._version, value)
        self.records.setdefault(self.me, {})[type(value)] = record
        self.revision += 1
        return self._push(Delta((record,), ()), membership)

    def set(
        self, key: str, value: SettingValue, membership: Membership, is_default: bool = False
    ) -> list[Effect]:
        """With ``is_default`` the value yields to anything that anyone has set or sets."""
        counter = self.settings[key].counter if key in self.settings else 0
        setting = Setting(key, 0 if is_default else counter + 1, self.me, value)
        if is_default and key in self.settings:
            return []
        self.settings[key] = setting
        self.revision += 1
        return self._push(Delta((), (setting,)), membership)

    def forget_own_settings(self) -> None:
        """What this peer seeded before it met anybody."""
        for key in [key for key, setting in self.settings.items() if setting.by == self.me]:
            del self.settings[key]
            self.revision += 1

    def _push(self, delta: Delta, membership: Membership) -> list[Effect]:
        return [Send(member.address, delta) for member in membership.first_to_tell()]

    # --- hearing --------------------------------------------------------------------------

    def on_digest(self, sender: PeerId, digest: Digest, membership: Membership) -> list[Effect]:
        address = membership.address_of(sender)
        if address is None:
            return []
        if digest.versions_digest:
            is_same = digest.versions_digest == self._versions_digest()
            if is_same and digest.settings_digest == self._settings_digest():
                return []
            return [Send(address, self._digest(wants_reply=True))]
        theirs = {(v.owner, v.kind): v.version for v in digest.versions}
        newer = [
            record
            for record in self._all_records()
            if record.version > theirs.get((record.owner, _kind_of(record.value)), 0)
        ]
        settings_differ = digest.settings_digest != self._settings_digest()
        effects: list[Effect] = []
        if newer or settings_differ:
            settings = self.all_settings() if settings_differ else ()
            effects.append(Send(address, Delta(tuple(newer[:RECORDS_PER_DELTA]), settings)))
        if digest.wants_reply and (settings_differ or self._lacks(theirs)):
            effects.append(Send(address, self._digest(wants_reply=False)))
        return effects

    def on_delta(self, delta: Delta, membership: Membership) -> None:
        for record in delta.records:
            self._take_record(record, membership)
        for setting in delta.settings:
            self.take_setting(setting)

    def _take_record(self, record: Record, membership: Membership) -> None:
        """Anyone may carry a record; it counts when its owner's life is one that is known."""
        if record.owner == self.me or membership.address_of(record.owner) is None:
            return
        kinds = self.records.setdefault(record.owner, {})
        known = kinds.get(type(record.value))
        if known is None or record.version > known.version:
            kinds[type(record.value)] = record
            self.revision += 1

    def take_setting(self, setting: Setting) -> None:
        if not is_valid(setting.key, setting.value) or setting.counter > COUNTER_MAX:
            return
        known = self.settings.get(setting.key)
        if known is None or (setting.counter, setting.by) > (known.counter, known.by):
            self.settings[setting.key] = setting
            self.revision += 1

    def forget_except(self, peers: Iterable[PeerId]) -> None:
        """Drop the records of lives that are over."""
        keep = {*peers, self.me}
        for owner in [owner for owner in self.records if owner not in keep]:
            del self.records[owner]
            self.revision += 1

    # --- time -----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        return self._next_at

    def tick(self, membership: Membership, now: float) -> list[Effect]:
        if self._next_at is not None and now < self._next_at:
            return []
        self._next_at = now + self.period_s
        present = membership.present()
        if not present:
            return []
        to = self.rng.choice(present).address
        if sum(map(len, self.records.values())) <= VERSIONS_AT_ONCE:
            return [Send(to, self._digest(wants_reply=True))]
        return [Send(to, Digest((), self._settings_digest(), True, self._versions_digest()))]

    # --- digests --------------------------------------------------------------------------

    def _all_records(self) -> list[Record]:
        kinds = [self.records[owner] for owner in sorted(self.records)]
        found = [record for by_kind in kinds for record in by_kind.values()]
        return sorted(found, key=lambda record: (record.owner, record.version))

    def _lacks(self, theirs: dict[tuple[PeerId, int], int]) -> bool:
        ours = {(r.owner, _kind_of(r.value)): r.version for r in self._all_records()}
        return any(version > ours.get(key, 0) for key, version in theirs.items())

    def _digest(self, wants_reply: bool) -> Digest:
        return Digest(self._versions(), self._settings_digest(), wants_reply)

    def _versions(self) -> tuple[OwnerVersion, ...]:
        records = self._all_records()
        return tuple(OwnerVersion(r.owner, _kind_of(r.value), r.version) for r in records)

    def _versions_digest(self) -> str:
        if self._summary[0] != self.revision:
            self._summary = (self.revision, digest_of(self._versions()))
        return self._summary[1]

    def _settings_digest(self) -> str:
        return digest_of(self.all_settings())


def _kind_of(value: RecordValue) -> int:
    tag = value.__struct_config__.tag
    assert isinstance(tag, int)
    return tag
