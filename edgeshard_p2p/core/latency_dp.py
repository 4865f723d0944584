"""The cheapest chain of runs: which device runs which units, at most one run per device.

    sources --enter--> run --hop--> run --hop--> ... run --leave--> sources
    [0, e0)            [e0, e1)     [e1, e2)         [.., n)

Exact, after EdgeShard (arXiv 2405.14371, section IV) with the set of used devices in the state,
so that no device is visited twice and memory is exact.  Costs are integers that only add up, and
``UNREACHABLE`` stands for what cannot be.  Knows nothing of models, bytes or microseconds: the
planner turns those into costs and ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

UNREACHABLE = 1 << 128
"""More than any real cost; it stays unreachable whatever is added."""

Placement = tuple[int, list[tuple[int, int]]]
"""The end of the entry, then (device, end of its run) in order."""

Rows = dict[tuple[int, int], list[int]]
"""By (bit set of used devices, last device): by units done, the least cost of the rest."""


class Chain(Struct, frozen=True):
    """Costs of one problem.  Devices are indices, in the order that decides ties."""

    entry: tuple[int, ...]
    """By end of the entry: what running ``[0, end)`` at the sources costs."""
    units: tuple[tuple[int, ...], ...]
    """By device, by n: what running units ``[0, n)`` costs (prefix sums)."""
    enter: tuple[int, ...]
    hop: tuple[tuple[int, ...], ...]
    leave: tuple[int, ...]

    @property
    def n_units(self) -> int:
        return len(self.entry) - 1

    def fully_linked(self) -> Chain:
        """The same devices, as if every pair of them had a link."""
        free = (0,) * len(self.units)
        return replace(self, enter=free, hop=(free,) * len(self.units), leave=free)


class Fit(Struct, frozen=True):
    """What the memory of sources and devices allows."""

    entry_ends: range
    ends: tuple[tuple[int, ...], ...]
    """By device, by start: the farthest end of a run; not past the start where none fits."""


def is_feasible(chain: Chain, fit: Fit) -> bool:
    """Whether any chain reaches the last unit and comes back.

    Forward over the same states as ``cheapest``, but a bit per number of units done instead of
    a cost: several times faster, and it stops at the first chain.
    """
    if chain.n_units in fit.entry_ends:
        return True
    begin = sum(1 << end for end in fit.entry_ends)
    spans = [_spans(ends) for ends in fit.ends]
    reached: dict[tuple[int, int], int] = {}
    for used in range(1 << len(spans)):
        for device in _outside(used, len(spans)):
            done = _extended(_arriving(chain, reached, begin, used, device), spans[device])
            if done >> chain.n_units and chain.leave[device] < UNREACHABLE:
                return True
            reached[used | 1 << device, device] = done
    return False


def cheapest(chain: Chain, fit: Fit) -> Placement | None:
    """The placement of least cost; among equals the smallest end of the entry, then the smallest
    sequence of (device, end).

    Backward, so that the table holds the cost of the rest; the placement is then read off it
    forward, always taking the first move that keeps the least cost.  That makes the tie rule
    hold without comparing paths.  O(2^M M^2 N) for M devices and N units.
    """
    rows = _rest_costs(chain, fit)
    first = [
        _run_costs(chain.units[device], fit.ends[device], rows[1 << device, device])
        for device in range(len(chain.units))
    ]
    options = [(chain.entry[end] + _start_cost(chain, first, end), end) for end in fit.entry_ends]
    cost, entry_end = min(options, default=(UNREACHABLE, 0))
    if cost >= UNREACHABLE:
        return None
    return entry_end, _followed(chain, fit, rows, entry_end, cost - chain.entry[entry_end])


def _outside(used: int, n_devices: int) -> Iterator[int]:
    return (device for device in range(n_devices) if not used >> device & 1)


def _inside(used: int, n_devices: int) -> Iterator[int]:
    return (device for device in range(n_devices) if used >> device & 1)


def _spans(ends: Sequence[int]) -> list[int]:
    """By start, the bits of all ends that a run from there may have."""
    return [(2 << end) - (2 << start) if end > start else 0 for start, end in enumerate(ends)]


def _arriving(
    chain: Chain, reached: dict[tuple[int, int], int], begin: int, used: int, device: int
) -> int:
    """Bits of the units done when the hidden states reach ``device`` after ``used``."""
    if not used:
        return begin if chain.enter[device] < UNREACHABLE else 0
    arriving = 0
    for last in _inside(used, len(chain.units)):
        if chain.hop[last][device] < UNREACHABLE:
            arriving |= reached[used, last]
    return arriving


def _extended(starts: int, spans: list[int]) -> int:
    done = 0
    while starts:
        lowest = starts & -starts
        done |= spans[lowest.bit_length() - 1]
        starts ^= lowest
    return done


def _rest_costs(chain: Chain, fit: Fit) -> Rows:
    """Supersets first: what comes after a run uses only devices that are still free."""
    n_devices = len(chain.units)
    rows: Rows = {}
    for used in range((1 << n_devices) - 1, 0, -1):
        runs = {
            device: _run_costs(
                chain.units[device], fit.ends[device], rows[used | 1 << device, device]
            )
            for device in _outside(used, n_devices)
        }
        for last in _inside(used, n_devices):
            rows[used, last] = _hop_costs(chain, last, runs)
    return rows


def _run_costs(units: Sequence[int], ends: Sequence[int], rest: list[int]) -> list[int]:
    """By start, the least cost of a run from there and of all that follows it.

    ``window`` holds the ends that a run may still have, best first: moving the start back adds
    one end and, where memory is full, drops the farthest ones.
    """
    totals = [run + after for run, after in zip(units, rest, strict=True)]
    costs = [UNREACHABLE] * len(totals)
    window: deque[int] = deque()
    for start in range(len(totals) - 2, -1, -1):
        total = totals[start + 1]
        while window and totals[window[-1]] >= total:
            window.pop()
        window.append(start + 1)
        while window and window[0] > ends[start]:
            window.popleft()
        if window:
            costs[start] = totals[window[0]] - units[start]
    return costs


def _hop_costs(chain: Chain, last: int, runs: dict[int, list[int]]) -> list[int]:
    """By units done at ``last``, the least cost of hopping on, or at the end of returning."""
    rows = [
        [hop + cost for cost in costs]
        for device, costs in runs.items()
        if (hop := chain.hop[last][device]) < UNREACHABLE
    ]
    rows.append([UNREACHABLE] * chain.n_units + [chain.leave[last]])
    return list(map(min, *rows)) if len(rows) > 1 else rows[0]


def _start_cost(chain: Chain, first: list[list[int]], entry_end: int) -> int:
    if entry_end == chain.n_units:
        return 0
    options = (enter + costs[entry_end] for enter, costs in zip(chain.enter, first, strict=True))
    return min(options, default=UNREACHABLE)


def _followed(chain: Chain, fit: Fit, rows: Rows, done: int, cost: int) -> list[tuple[int, int]]:
    """The runs from ``done`` on whose cost is exactly ``cost``, the smallest sequence of them."""
    runs: list[tuple[int, int]] = []
    used, hops = 0, chain.enter
    while done < chain.n_units:
        device, done, cost = _next_run(chain, fit, rows, used, hops, done, cost)
        runs.append((device, done))
        used, hops = used | 1 << device, chain.hop[device]
    return runs


def _next_run(
    chain: Chain, fit: Fit, rows: Rows, used: int, hops: Sequence[int], done: int, cost: int
) -> tuple[int, int, int]:
    """(device, end, cost of the rest) of the first run that keeps ``cost``."""
    for device in _outside(used, len(chain.units)):
        units, rest = chain.units[device], rows[used | 1 << device, device]
        spent = hops[device] - units[done]
        for end in range(done + 1, fit.ends[device][done] + 1):
            if spent + units[end] + rest[end] == cost:
                return device, end, rest[end]
    raise AssertionError("the table holds a cost that no run has")
