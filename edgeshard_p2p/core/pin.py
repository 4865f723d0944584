"""A pin: the plan that an operator has decided on, by names, in place of the one that costs least.

    amy:0-10,ben:10-21,cat:21-32        amy+ben:0-2,ben:2-16,amy:16-32

First the sources with what each runs for its own prompts, then the shared stages in order; ranges
of units are half-open and leave none out.  Knows nothing of who is there, nor of the model.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

from edgeshard_p2p.core.ids import Count, Name, UnitRange

PARTS_MAX = 64
PIN_CHARS_MAX = 4_096

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_PART = re.compile(rf"({_NAME}(?:\+{_NAME})*):(\d{{1,6}})-(\d{{1,6}})")


class PinnedStage(Struct, frozen=True, array_like=True):
    name: Name
    units: UnitRange


class Pin(Struct, frozen=True, array_like=True):
    """An input of the plan, so a pinned plan, too, is computed by everyone."""

    sources: Annotated[tuple[Name, ...], Meta(min_length=1)]
    entry_end: Count
    stages: tuple[PinnedStage, ...]

    def __str__(self) -> str:
        """What ``parse_pin`` reads."""
        parts = [f"{'+'.join(self.sources)}:0-{self.entry_end}"]
        parts += [f"{s.name}:{s.units.start}-{s.units.end}" for s in self.stages]
        return ",".join(parts)

    @property
    def end(self) -> int:
        """The first unit that nobody has."""
        return self.stages[-1].units.end if self.stages else self.entry_end

    def names(self) -> tuple[Name, ...]:
        return tuple(sorted({*self.sources, *(stage.name for stage in self.stages)}))


def parse_pin(text: str) -> Pin | None:
    """None for what is no pin; whether it can be served is the planner's question."""
    if len(text) > PIN_CHARS_MAX:
        return None
    parts = [_PART.fullmatch(part) for part in text.split(",", PARTS_MAX)]
    found = [(m[1].split("+"), UnitRange(int(m[2]), int(m[3]))) for m in parts if m is not None]
    if len(found) < len(parts) or len(parts) > PARTS_MAX:
        return None
    (sources, entry), *shared = found
    ends = [0, *(units.end for _, units in found)]
    is_whole = all(units and units.start == at for (_, units), at in zip(found, ends, strict=False))
    if not is_whole or any(len(names) > 1 for names, _ in shared):
        return None
    if len(set(sources)) < len(sources):
        return None
    stages = tuple(PinnedStage(names[0], units) for names, units in shared)
    return Pin(tuple(sorted(sources)), entry.end, stages)
