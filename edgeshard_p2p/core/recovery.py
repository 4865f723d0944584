"""Where a request goes on after its plan was lost, and what has to be computed again for it.

The request goes on at a position P.  Units that have less than P cached are refilled from the
nearest log above them: hidden states that some living peer has kept of what it sent on.  Where
there is no such log, P is less, in the end 0: a new prefill.  Of all P the cheapest is taken.
Knows nothing of messages' ways or of who is alive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeshard_p2p.core.cached import Cached
from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.messages import Replay

SOURCE = -1
"""The source's own part, before stage 0."""


@dataclass(frozen=True, slots=True)
class Part:
    """One run of the new plan, and what its peer has of the request there."""

    stage: int
    units: UnitRange
    cached: Cached
    row_us: int
    """What one more row costs in one block, in a prefill."""


@dataclass(frozen=True, slots=True)
class Resumption:
    position: int
    replays: tuple[Replay, ...] = ()
    cost_us: int = 0

    def n_replayed(self, n_known: int) -> int:
        """Positions, of those that had been computed, that are computed again somewhere."""
        first = min((replay.position for replay in self.replays), default=self.position)
        return max(0, n_known - 1 - first)


def resumption(parts: Sequence[Part], n_known: int) -> Resumption:
    """The cheapest way to the next token of a request of which ``n_known`` tokens are known; of
    two as cheap the one that goes on further up."""
    last = n_known - 1
    lengths = {run.length for part in parts for run in part.cached.units}
    positions = {0, last, *(length for length in lengths if length < last)}
    ways = (way for position in positions if (way := _way(parts, n_known, position)) is not None)
    return min(ways, key=lambda way: (way.cost_us, -way.position))


def _way(parts: Sequence[Part], n_known: int, position: int) -> Resumption | None:
    replays = _replays(parts, position)
    if replays is None:
        return None
    whole = UnitRange(0, parts[-1].units.end)
    cost_us = (n_known - position) * _row_us(parts, whole)
    for replay in replays:
        again = UnitRange(replay.start, replay.end)
        cost_us += (position - replay.position) * _row_us(parts, again)
    return Resumption(position, replays, cost_us)


def _row_us(parts: Sequence[Part], units: UnitRange) -> int:
    return sum(
        part.row_us * max(0, min(part.units.end, units.end) - max(part.units.start, units.start))
        for part in parts
    )


def _replays(parts: Sequence[Part], position: int) -> tuple[Replay, ...] | None:
    """What has to be refilled for a request to go on at ``position``; None where it cannot be."""
    replays: list[Replay] = []
    for lacking, cached in _lacking(parts, position):
        start, end, since = lacking.start, lacking.end, cached
        while True:
            replay = _from_log(parts, UnitRange(start, end), since, position)
            if replay is None:
                return None
            if not replays or _is_apart(parts, replays[-1], replay):
                break
            # Two refills in one stage, or one from the other's log, are made one.
            before = replays.pop()
            start, since = before.start, min(since, before.position)
        replays.append(replay)
    return tuple(replays)


def _lacking(parts: Sequence[Part], position: int) -> Iterator[tuple[UnitRange, int]]:
    """Runs of blocks with less than ``position`` cached, and the least that any has."""
    head = parts[-1].units.end - 1
    run: tuple[UnitRange, int] | None = None
    for part in parts:
        for unit in part.units:
            length = part.cached.length(unit)
            if unit == 0 or unit == head or length >= position:
                if run is not None:
                    yield run
                    run = None
            elif run is None:
                run = UnitRange(unit, unit + 1), length
            else:
                run = UnitRange(run[0].start, unit + 1), min(run[1], length)
    if run is not None:
        yield run


def _from_log(
    parts: Sequence[Part], lacking: UnitRange, since: int, position: int
) -> Replay | None:
    """From the nearest log above that has all rows."""
    logs = (
        (-log.unit, part.stage)
        for part in parts
        for log in part.cached.logs
        if log.unit <= lacking.start and log.start <= since and log.end >= position
    )
    nearest = min(logs, default=None)
    if nearest is None:
        return None
    return Replay(nearest[1], -nearest[0], lacking.end, since)


def _is_apart(parts: Sequence[Part], before: Replay, after: Replay) -> bool:
    """Whether no stage computes in both, nor logs in one what the other reads."""
    if after.start <= before.end:
        return False
    return not any(before.end - 1 in part.units and after.start in part.units for part in parts)
