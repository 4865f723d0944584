"""A model whose hidden state is a hash chain.

The state of a row after a unit is a hash of the state before it, the unit, and everything cached
at that unit for the positions up to it.  So a unit left out, applied twice, out of order, or on a
wrong cache shows in the token, which is the hash of the last state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from edgeshard_p2p.core.effects import KvPromise, LoadUnits, OpenCache, ReleaseCache, RunForward
from edgeshard_p2p.core.ids import PeerId, RequestId, UnitRange
from edgeshard_p2p.core.work import CacheKey, RowGroup

State = bytes
VOCABULARY = 50_000


def _hash(*parts: object) -> State:
    return blake2b(repr(parts).encode(), digest_size=8).digest()


def token_of(state: State) -> int:
    return int.from_bytes(state, "big") % VOCABULARY


def oracle(prompt: Sequence[int], n_units: int, n_tokens: int) -> list[int]:
    """What one undisturbed peer would answer."""
    model = HashModel(n_units)
    model.held = set(range(n_units))
    key = CacheKey(RequestId(PeerId("oracle", 0), 0), "oracle")
    model.caches = {(key, unit): [] for unit in range(n_units)}
    known, tokens = list(prompt), list[int]()
    rows = known
    while len(tokens) < n_tokens:
        start = len(known) - len(rows)
        states = model.run(UnitRange(0, n_units), key, start, [_hash(t) for t in rows])
        tokens.append(token_of(states[-1]))
        known.append(tokens[-1])
        rows = known[-1:]
    return tokens


@dataclass(slots=True)
class HashModel:
    """One peer's part of the model.  Wrong use is an assertion: the core must not ask for it."""

    n_units: int
    held: set[int] = field(default_factory=set)
    promised: dict[str, KvPromise] = field(default_factory=dict)
    caches: dict[tuple[CacheKey, int], list[State]] = field(default_factory=dict)

    def load(self, effect: LoadUnits) -> None:
        self.held = {unit for units in effect.units for unit in units}
        kept = {(role.role, u) for role in effect.kv for u in role.units}
        self.caches = {
            (key, unit): cache
            for (key, unit), cache in self.caches.items()
            if (key.role, unit) in kept
        }

    def open(self, effect: OpenCache) -> None:
        for unit in effect.units:
            cache = self.caches.setdefault((effect.key, unit), [])
            del cache[effect.position :]

    def release(self, effect: ReleaseCache) -> None:
        for key in [key for key in self.caches if key[0] == effect.key]:
            del self.caches[key]

    def n_cached(self) -> int:
        """Requests whose KV is held, in each role."""
        return len({key for key, _ in self.caches})

    def forward(
        self, effect: RunForward, states: list[State]
    ) -> tuple[list[State], list[int | None]]:
        """The rows after the units, and the token of each group that asks for one."""
        out: list[State] = []
        tokens: list[int | None] = []
        spans = effect.spans or _spans(effect.groups)
        for group, (start, rows) in zip(effect.groups, spans, strict=True):
            after = self.run(effect.units, group.key, group.position, states[start : start + rows])
            out += after
            tokens.append(token_of(after[-1]) if group.emit is not None else None)
        return out, tokens

    def run(
        self, units: UnitRange, key: CacheKey, position: int, states: list[State]
    ) -> list[State]:
        for unit in units:
            assert unit in self.held, f"unit {unit} computed but not held"
            cache = self.caches[key, unit]
            assert len(cache) == position, f"{key} unit {unit}: {len(cache)} != {position}"
            after = []
            for state in states:
                cache.append(state)
                after.append(_hash(state, unit, tuple(cache)))
            states = after
        return states


def embed(tokens: Sequence[int]) -> list[State]:
    return [_hash(token) for token in tokens]


def _spans(groups: Sequence[RowGroup]) -> list[tuple[int, int]]:
    spans, start = [], 0
    for group in groups:
        spans.append((start, group.rows))
        start += group.rows
    return spans
