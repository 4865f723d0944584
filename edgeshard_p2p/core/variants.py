"""Plans next to one that is served: what a swarm that serves it can be checked with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from msgspec import Struct

from edgeshard_p2p.core.answers import iteration_us
from edgeshard_p2p.core.footprint import entry_of
from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.pin import Pin, PinnedStage
from edgeshard_p2p.core.pinned import pinned_answer
from edgeshard_p2p.core.plan import Snapshot


class Variant(Struct, frozen=True):
    what: str
    pin: Pin | None
    """None: there is none."""
    why_not: str = ""
    """Why the swarm cannot serve it; empty: it can."""


def variants(snapshot: Snapshot, served: Pin) -> list[Variant]:
    """Each boundary of ``served`` moved by one block either way, where that leaves everybody what
    it must have, and the best plan of one stage fewer.  Those that do not fit are among them, and
    say why."""
    found = []
    for what, pin in _moved(snapshot, served):
        answer = pinned_answer(snapshot, pin)
        found.append(Variant(what, pin, answer.reason if answer.layout is None else ""))
    fewer = _one_fewer(snapshot, served)
    return [*found, fewer] if fewer is not None else found


def _moved(snapshot: Snapshot, served: Pin) -> Iterator[tuple[str, Pin]]:
    """A boundary is where one device's units end and the next one's begin."""
    ends, names = _ends(served), _names(served)
    is_fixed = len(served.sources) > 1  # Several sources keep the least, and no more.
    for place in range(len(ends) - 1):
        for step, way in ((-1, "down"), (1, "up")):
            moved = [*ends[:place], ends[place] + step, *ends[place + 1 :]]
            if place == 0 and (is_fixed or moved[0] < entry_of(snapshot).end):
                continue
            if any(a >= b for a, b in pairwise(moved)):
                continue
            what = f"{names[place]} | {names[place + 1]} one block {way}, to {moved[place]}"
            yield what, _pin(served, moved)


def _one_fewer(snapshot: Snapshot, served: Pin) -> Variant | None:
    """Some stage's units go to the one before it or to the one after."""
    found: list[tuple[int, str, Pin]] = []
    why_not = ""
    for place, stage in enumerate(served.stages):
        for pin in _without(served, place):
            answer = pinned_answer(snapshot, pin)
            if answer.layout is None:
                why_not = why_not or f"without {stage.name}: {answer.reason}"
            else:
                found.append((iteration_us(answer), stage.name, pin))
    if found:
        _, name, pin = min(found, key=lambda one: one[:2])
        return Variant(f"one stage fewer, without {name}", pin)
    return Variant("one stage fewer", None, why_not) if why_not else None


def _without(served: Pin, place: int) -> Iterator[Pin]:
    """Its units to the part before it, and to the stage after it, where there is one."""
    ends = _ends(served)
    stages = [stage for at, stage in enumerate(served.stages) if at != place]
    like = Pin(served.sources, served.entry_end, tuple(stages))
    if place > 0 or len(served.sources) == 1:
        yield _pin(like, [*ends[:place], *ends[place + 1 :]])
    if place + 1 < len(served.stages):
        yield _pin(like, [*ends[: place + 1], *ends[place + 2 :]])


def _ends(pin: Pin) -> list[int]:
    return [pin.entry_end, *(stage.units.end for stage in pin.stages)]


def _names(pin: Pin) -> list[str]:
    return ["+".join(pin.sources), *(stage.name for stage in pin.stages)]


def _pin(like: Pin, ends: list[int]) -> Pin:
    """The devices of ``like``, with other ends."""
    stages = tuple(
        PinnedStage(stage.name, UnitRange(start, end))
        for stage, (start, end) in zip(like.stages, pairwise(ends), strict=True)
    )
    return Pin(like.sources, ends[0], stages)
