"""The decisions of a pipeline that several micro-batches are in at once, and its closed forms.

Two questions are decided here: when a micro-batch may start its next token (``Pace``), and which of
those that wait a device or a link takes next (``Server``).  Events go in, decisions come out; who
asks has the clock, moves the micro-batches and knows what they hold.  Nothing here knows how long
anything takes; the closed forms are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Literal

from msgspec import Struct

from edgeshard_p2p.core.layout import Leg, total_us

Schedule = Literal["bubbles", "no-bubbles"]
SCHEDULES: tuple[Schedule, ...] = ("no-bubbles", "bubbles")
"""``bubbles``: all micro-batches of an iteration come back before any starts the next one.
``no-bubbles``: each starts its next token the moment its own last one is back."""


def schedule_of(setting: object) -> Schedule:
    """By the swarm's setting, which nobody need have made."""
    return "bubbles" if setting == "bubbles" else "no-bubbles"


Order = Literal["fifo", "lowest-id"]
"""``lowest-id`` is what not to do: who has a low number runs ahead, and when it has finished too
few are left to fill the pipeline."""


@dataclass(slots=True)
class Pace:
    """When a micro-batch may start.  Its prefill is the first thing that it starts.

    Tell everything that happens at one moment before asking for ``starts``: what comes back
    together starts together.
    """

    schedule: Schedule
    waiting: set[int] = field(default_factory=set)
    out: set[int] = field(default_factory=set)
    """Started, and not back yet."""

    def joined(self, micro_batch: int) -> None:
        self.waiting.add(micro_batch)

    def back(self, micro_batch: int) -> None:
        """Its token is back, and it wants another."""
        self.left(micro_batch)
        self.waiting.add(micro_batch)

    def left(self, micro_batch: int) -> None:
        """Its token is back, and was the last."""
        self.out.remove(micro_batch)

    def starts(self) -> list[int]:
        """Those that start now, by number."""
        if self.schedule == "bubbles" and self.out:
            return []
        starting = sorted(self.waiting)
        self.out |= self.waiting
        self.waiting.clear()
        return starting


class Ticket(Struct, frozen=True, order=True):
    """A place in a queue.  In the order of its fields: first come, first served, and of those that
    come together the lowest number."""

    arrived: int
    """Any count that grows with time."""
    micro_batch: int
    row: int = 0
    """Of a micro-batch that comes in pieces, as prompts do: which."""


@dataclass(slots=True)
class Server:
    """A device or one direction of a link: takes one at a time, and never one instead of another
    that it has begun."""

    order: Order = "fifo"
    serving: Ticket | None = None
    waiting: list[Ticket] = field(default_factory=list)

    def arrive(self, ticket: Ticket) -> None:
        self.waiting.append(ticket)

    def begin(self) -> Ticket | None:
        """What it takes up now; None while it is busy, or nobody waits."""
        if self.serving is not None or not self.waiting:
            return None
        self.serving = min(self.waiting, key=self._rank)
        self.waiting.remove(self.serving)
        return self.serving

    def end(self) -> None:
        """What it served has gone on."""
        self.serving = None

    def _rank(self, ticket: Ticket) -> tuple[int, int, int]:
        by_number = (ticket.micro_batch, ticket.row)
        return (ticket.arrived, *by_number) if self.order == "fifo" else (*by_number, 0)


def loads_us(legs: Sequence[Leg]) -> dict[str, int]:
    """How long one pass occupies each device and link, in the order in which it comes to them."""
    loads: dict[str, int] = {}
    for leg in legs:
        loads[leg.resource] = loads.get(leg.resource, 0) + leg.busy_us + leg.beside_us
    return loads


def iteration_us(
    schedule: Schedule, pipeline_us: int, bottleneck_us: int | Fraction, n: int
) -> int:
    """Time of one token of each of ``n`` micro-batches in steady state (arXiv 2405.14371).

    ``pipeline_us``: what one takes alone, delays included; ``bottleneck_us``: how long it occupies
    the busiest device or link.  Exact where each leg has a resource of its own; where a pass comes
    back to one, ``bubbles`` is an estimate, and ``no-bubbles`` a bound that nothing beats.  A
    fraction is what several sources have on average.
    """
    if schedule == "bubbles":
        return ceil(pipeline_us + (n - 1) * bottleneck_us)
    return ceil(max(pipeline_us, n * bottleneck_us))


def iteration_of(schedule: Schedule, legs: Sequence[Leg], n: int) -> int:
    """``iteration_us`` of micro-batches that all pass the same legs."""
    return iteration_us(schedule, total_us(legs, n), max(loads_us(legs).values()), n)


def bubble_shares(schedule: Schedule, legs: Sequence[Leg], n: int) -> dict[str, Fraction]:
    """The part of an iteration for which each device and link has nothing to do."""
    whole = iteration_of(schedule, legs, n)
    loads = loads_us(legs).items()
    return {name: 1 - Fraction(n * us, whole) if whole else Fraction(0) for name, us in loads}
