"""What became of an answer, out of what was seen: how long until the loss was noticed, until there
was another plan, until tokens came again; and which tokens are not those of an undisturbed run.

Pure.  All times are of one monotonic clock, in seconds; figures are in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise
from math import inf
from statistics import median

INTERRUPTED = "interrupted"
"""How a source's notice begins when an attempt cannot go on."""
GONE = ("dead", "left")


@dataclass(frozen=True, slots=True)
class Fault:
    """A step that was taken."""

    at: float
    do: str
    who: tuple[str, ...]
    lost: tuple[str, ...] = ()
    """Who cannot be reached from then on by those that go on."""
    at_token: int = 0
    how: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One report of one peer, and when it came."""

    at: float
    by: str
    members: dict[str, tuple[str, int]]
    """State and generation, by name."""
    plan_id: str | None
    plan_state: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Something of the answer, and when it came: tokens or a notice."""

    at: float
    n_tokens: int = 0
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """By how much an answer differs from the undisturbed one."""

    lost: int = 0
    doubled: int = 0
    changed: int = 0

    @property
    def is_whole(self) -> bool:
        return not (self.lost or self.doubled or self.changed)


@dataclass(frozen=True, slots=True)
class Times:
    """None: it did not happen."""

    detected_ms: float | None = None
    replanned_ms: float | None = None
    resumed_ms: float | None = None


@dataclass(slots=True)
class Observed:
    """All that was seen of one request."""

    source: str
    pieces: list[Piece] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def times_of(observed: Observed, fault: Fault) -> Times:
    until = _ends_at(observed, fault)
    return Times(
        _after(fault, _detected_at(observed, fault), until),
        _after(fault, _replanned_at(observed, fault), until),
        _after(fault, _resumed_at(observed, fault), until),
    )


def _ends_at(observed: Observed, fault: Fault) -> float:
    """What comes after the same is done to the same peer again is no longer this one's."""
    again = [f.at for f in observed.faults if f.at > fault.at and {*f.lost} & {*fault.lost}]
    return min(again, default=inf)


def worst(times: Sequence[Times]) -> Times:
    """Of several faults, the longest of each."""

    def longest(values: list[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    return Times(
        longest([t.detected_ms for t in times]),
        longest([t.replanned_ms for t in times]),
        longest([t.resumed_ms for t in times]),
    )


def _after(fault: Fault, at: float | None, until: float) -> float | None:
    return None if at is None or at > until else round((at - fault.at) * 1e3, 1)


def _detected_at(observed: Observed, fault: Fault) -> float | None:
    """When somebody who goes on said of each that is lost: dead, left, or in a later life."""
    before = [s for s in observed.seen if s.at < fault.at]
    found: list[float] = []
    for name in fault.lost:
        generation = next((s.members[name][1] for s in reversed(before) if name in s.members), 0)
        times = [
            s.at
            for s in observed.seen
            if s.at >= fault.at and s.by not in fault.lost and _is_gone(s, name, generation)
        ]
        if not times:
            return None
        found.append(min(times))
    return max(found, default=None)


def _is_gone(seen: Seen, name: str, generation: int) -> bool:
    state, now = seen.members.get(name, ("dead", 0))
    return state in GONE or now > generation


def _replanned_at(observed: Observed, fault: Fault) -> float | None:
    """When the source (or, where that is lost, whoever is watched) next served another plan than
    at the fault, or the same one again."""
    by_whom = [s for s in observed.seen if s.by == observed.source]
    if observed.source in fault.lost and fault.do != "partition":
        by_whom = [s for s in observed.seen if s.by not in fault.lost]
    before = [s for s in by_whom if s.at < fault.at and s.plan_state == "active"]
    plan_id, has_ended = before[-1].plan_id if before else None, False
    for seen in by_whom:
        if seen.at < fault.at:
            continue
        if seen.plan_state == "active" and (has_ended or seen.plan_id != plan_id):
            return seen.at
        has_ended |= seen.plan_state != "active"
    return None


def _resumed_at(observed: Observed, fault: Fault) -> float | None:
    """When the first token after the fault came that another attempt has made: one that follows
    a notice of an interruption."""
    is_interrupted = False
    for piece in observed.pieces:
        is_interrupted |= piece.notice.startswith(INTERRUPTED)
        if piece.n_tokens and is_interrupted:
            is_interrupted = False
            if piece.at >= fault.at:
                return piece.at
    return None


def stall_ms(observed: Observed) -> float | None:
    """The longest wait for a token from the first fault on."""
    if not observed.faults:
        return None
    came = [piece.at for piece in observed.pieces if piece.n_tokens]
    gaps = [b - a for a, b in pairwise(came) if b >= observed.faults[0].at]
    return round(max(gaps) * 1e3, 1) if gaps else None


def replay_ms_per_token(times: Times, replayed_tokens: int) -> float | None:
    """From the new plan to the first token on it, for each token that was computed again."""
    if times.resumed_ms is None or times.replanned_ms is None or not replayed_tokens:
        return None
    return round(max(0.0, times.resumed_ms - times.replanned_ms) / replayed_tokens, 2)


def resolution_ms(observed: Observed) -> dict[str, float]:
    """Between two reports of one peer: no figure is finer."""
    gaps: list[float] = []
    for name in {seen.by for seen in observed.seen}:
        times = [seen.at for seen in observed.seen if seen.by == name]
        gaps += [(b - a) * 1e3 for a, b in pairwise(times)]
    if not gaps:
        return {}
    return {"p50": round(median(gaps), 1), "max": round(max(gaps), 1)}


def compare(wanted: Sequence[int], got: Sequence[int]) -> Tokens:
    """``got`` beside the undisturbed ``wanted``.  What stands too much is counted as doubled."""
    lost = doubled = changed = 0
    matcher = SequenceMatcher(None, wanted, got, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            continue
        both = min(b - a, d - c)
        changed += both
        lost += b - a - both
        doubled += d - c - both
    return Tokens(lost, doubled, changed)
