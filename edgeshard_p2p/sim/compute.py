"""A model whose hidden state is a hash chain.

The state of a row after a unit is a hash of the state before it, the unit, and everything cached
at that unit for the positions up to it.  So a unit left out, applied twice, out of order, or on a
wrong cache shows in the token, which is a hash of the last state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from edgeshard_p2p.core.effects import KvPromise, LoadUnits, OpenCache, ReleaseCache, RunForward
from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.work import CacheKey

State = bytes
VOCABULARY = 50_000


def _hash(*parts: bytes) -> State:
    return blake2b(b"".join(parts), digest_size=8).digest()


def embed(tokens: Sequence[int]) -> list[State]:
    return [_hash(token.to_bytes(8, "big")) for token in tokens]


def token_of(state: State) -> int:
    return int.from_bytes(state, "big") % VOCABULARY


def small_model(n_blocks: int = 4, name: str = "hash-chain") -> ModelSpec:
    return ModelSpec(
        name=name,
        digest=name.encode().hex().ljust(64, "0")[:64],
        family="hash",
        hidden_size=2,
        vocab_size=VOCABULARY,
        max_context=256,
        embedding_params=1000,
        block_params=(1000,) * n_blocks,
        head_params=1000,
        tied_params=0,
        kv_width=8,
    )


def has_kv(unit: int, n_units: int) -> bool:
    return 0 < unit < n_units - 1


@dataclass(slots=True)
class UnitCache:
    """What one unit has seen of one request: per position, a hash of everything up to it.  The
    embedding and the head see one row at a time."""

    has_kv: bool
    seen: list[State] = field(default_factory=list)

    def apply(self, unit: int, state: State) -> State:
        if not self.has_kv:
            return _hash(state, unit.to_bytes(2, "big"))
        before = self.seen[-1] if self.seen else b""
        self.seen.append(_hash(before, state))
        return _hash(state, unit.to_bytes(2, "big"), self.seen[-1])


class Oracle:
    """What one undisturbed peer answers to a prompt."""

    def __init__(self, prompt: Sequence[int], n_units: int) -> None:
        self._units = [UnitCache(has_kv(unit, n_units)) for unit in range(n_units)]
        self._tokens: list[int] = []
        self._rows = list(prompt)

    def tokens(self, n: int) -> list[int]:
        while len(self._tokens) < n:
            states = embed(self._rows)
            for unit, cache in enumerate(self._units):
                states = [cache.apply(unit, state) for state in states]
            self._tokens.append(token_of(states[-1]))
            self._rows = self._tokens[-1:]
        return self._tokens[:n]


@dataclass(slots=True)
class RowLog:
    """States that left the units of one request, from position ``start`` on."""

    start: int
    states: list[State]

    @property
    def end(self) -> int:
        return self.start + len(self.states)


@dataclass(slots=True)
class HashModel:
    """One peer's part of the model, with KV slots as the engine has them.  Wrong use is an
    assertion: the core must not ask for it."""

    n_units: int
    held: set[int] = field(default_factory=set)
    promised: dict[str, KvPromise] = field(default_factory=dict)
    caches: dict[CacheKey, dict[int, UnitCache]] = field(default_factory=dict)
    logs: dict[CacheKey, dict[int, RowLog]] = field(default_factory=dict)
    """By the unit that would have come next."""
    logs_at: dict[CacheKey, int] = field(default_factory=dict)
    """Where a request's rows are logged, if they are."""
    spoilt: set[CacheKey] = field(default_factory=set)
    """Requests of which a pass failed here: later passes of the same attempt must fail too."""

    def load(self, effect: LoadUnits) -> None:
        self.held = {unit for units in effect.units for unit in units}
        self.promised = {promise.role: promise for promise in effect.kv}
        for key, by_unit in list(self.caches.items()):
            promise = self.promised.get(key.role)
            if promise is None:
                self._forget(key)
            else:
                self.caches[key] = {u: c for u, c in by_unit.items() if u in promise.units}
        for role in self.promised:
            self._check_slots(role)

    def open(self, effect: OpenCache) -> None:
        key = effect.key
        if effect.adopts is not None:
            assert key not in self.caches, f"{key} is open, and adopts {effect.adopts}"
            if effect.adopts in self.spoilt:
                self.spoilt.add(key)
            self.caches[key] = self.caches.pop(effect.adopts, {})
            self.logs[key] = self.logs.pop(effect.adopts, {})
            self._forget(effect.adopts)
        if not effect.position:
            self.spoilt.discard(key)
        before, self.caches[key] = self.caches.get(key, {}), {}
        for unit in effect.units:
            position = effect.replay_position if unit in effect.replayed else effect.position
            cache = before.get(unit, UnitCache(has_kv(unit, self.n_units)))
            del cache.seen[position:]
            self.caches[key][unit] = cache
        logs = self.logs.get(key, {})
        self.logs[key] = {
            log.unit: RowLog(log.start, logs[log.unit].states[: log.end - log.start])
            for log in effect.logs
            if log.unit in logs
        }
        self.logs_at.pop(key, None)
        if effect.is_logged:
            self.logs_at[key] = effect.units.end
        self._check_slots(key.role)

    def _check_slots(self, role: str) -> None:
        assert role in self.promised, f"no KV is reserved for role {role}"
        n_open = sum(1 for key in self.caches if key.role == role)
        n_slots = self.promised[role].slots
        assert n_open <= n_slots, f"{n_open} requests open as {role}, {n_slots} slots"

    def release(self, effect: ReleaseCache) -> None:
        self._forget(effect.key)

    def _forget(self, key: CacheKey) -> None:
        for by_key in (self.caches, self.logs, self.logs_at):
            by_key.pop(key, None)
        self.spoilt.discard(key)

    def spoil(self, effect: RunForward) -> None:
        """This pass fails, and leaves the caches of its requests behind the core's idea."""
        self.spoilt |= {group.key for group in effect.groups}

    def is_spoilt(self, effect: RunForward) -> bool:
        return any(group.key in self.spoilt for group in effect.groups)

    def n_cached(self) -> int:
        """Requests whose KV is held, in each role."""
        return len(self.caches)

    def forward(
        self, effect: RunForward, states: list[State]
    ) -> tuple[list[State], list[int | None]]:
        """The rows after the units, and the token of each group that asks for one."""
        if effect.is_from_log:
            states = self._logged(effect)
        out: list[State] = []
        tokens: list[int | None] = []
        for group, (start, rows) in zip(effect.groups, _spans(effect), strict=True):
            after = self._run(effect.units, group.key, group.position, states[start : start + rows])
            out += after
            if effect.units and self.logs_at.get(group.key) == effect.units.end:
                self._log(group.key, effect.units.end, group.position, after)
            tokens.append(token_of(after[-1]) if group.emit is not None else None)
        return out, tokens

    def _logged(self, effect: RunForward) -> list[State]:
        (group,) = effect.groups
        log = self.logs.get(group.key, {}).get(effect.units.start, RowLog(0, []))
        states = log.states[max(0, group.position - log.start) :][: group.rows]
        is_complete = group.position >= log.start and len(states) == group.rows
        assert is_complete, f"{group.key}: {group.position} + {group.rows} of {log} are not logged"
        return states

    def _log(self, key: CacheKey, unit: int, position: int, states: list[State]) -> None:
        log = self.logs[key].get(unit)
        if log is None or log.end != position:
            log = self.logs[key][unit] = RowLog(position, [])
        log.states += states

    def _run(
        self, units: UnitRange, key: CacheKey, position: int, states: list[State]
    ) -> list[State]:
        assert key in self.caches, f"{key} is not open"
        context = self.promised[key.role].context
        for unit in units:
            assert unit in self.held, f"unit {unit} computed but not held"
            cache = self.caches[key][unit]
            n_seen = len(cache.seen)
            is_next = n_seen == position or not cache.has_kv
            assert is_next, f"{key} unit {unit}: {n_seen} cached, not {position}"
            assert position + len(states) <= context, f"{key} runs over its context of {context}"
            states = [cache.apply(unit, state) for state in states]
        return states


def _spans(effect: RunForward) -> tuple[tuple[int, int], ...]:
    if effect.spans:
        return effect.spans
    spans, start = [], 0
    for group in effect.groups:
        spans.append((start, group.rows))
        start += group.rows
    return tuple(spans)
