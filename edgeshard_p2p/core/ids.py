"""Names of things: peers, plans, requests, ranges of units.

Knows nothing of what they are used for.  Everything here is immutable, ordered and travels as
a msgpack array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Annotated

from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
Count = Annotated[int, Meta(ge=0, le=2**48)]
PlanId = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
"""Digest of what is served, 8 bytes as 16 hex digits (see ``plan.Plan.id``)."""

NO_PLAN: PlanId = "0" * 16
"""The plan id of frames that belong to no plan (link probes)."""


class PeerId(Struct, frozen=True, order=True, array_like=True):
    """A peer is its name and its generation, which is one higher at every start."""

    name: Name
    generation: Count

    def __str__(self) -> str:
        return f"{self.name}@{self.generation}"

    @property
    def tag(self) -> bytes:
        """8 bytes that stand for this peer in frame headers, whatever the length of its name."""
        return blake2b(str(self).encode(), digest_size=8).digest()


class RequestId(Struct, frozen=True, order=True, array_like=True):
    """A request belongs to its source for life; the source numbers its own requests."""

    source: PeerId
    sequence: Count

    def __str__(self) -> str:
        return f"{self.source}#{self.sequence}"


class UnitRange(Struct, frozen=True, order=True, array_like=True):
    """Half-open range of units: 0 the embedding, 1..N the blocks, N + 1 norm and head."""

    start: Count
    end: Count

    def __len__(self) -> int:
        return max(0, self.end - self.start)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __contains__(self, unit: int) -> bool:
        return self.start <= unit < self.end

    def __str__(self) -> str:
        return f"{self.start}-{self.end - 1}" if self else "none"


NO_UNITS = UnitRange(0, 0)


def unit_ranges(units: Iterable[int]) -> tuple[UnitRange, ...]:
    """The fewest ranges that cover exactly ``units``, in order."""
    ranges: list[UnitRange] = []
    for unit in sorted(set(units)):
        if ranges and ranges[-1].end == unit:
            ranges[-1] = UnitRange(ranges[-1].start, unit + 1)
        else:
            ranges.append(UnitRange(unit, unit + 1))
    return tuple(ranges)
