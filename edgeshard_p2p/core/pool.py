"""Who may take part, and the planner's costs and limits of it: a snapshot as integers.

Costs are those of ``latency_dp``; memory is weights and the KV of the promised batch and context.
Knows nothing of how the best chain is found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.latency_dp import UNREACHABLE, Chain, Fit, kinds_of, n_states
from edgeshard_p2p.core.narrowest import Busy
from edgeshard_p2p.core.plan import (
    Device,
    Goal,
    Link,
    Snapshot,
    chunks_of,
    entry_units,
    kv_bytes,
    weight_bytes,
)
from edgeshard_p2p.core.relaxation import Bound, lower_bound

LOAD_BYTES_PER_US = 500_000
"""How many bytes still to be loaded weigh as much as one microsecond of every token.

A new plan must win 1 us per token for each 0.5 MB that it loads anew.  At a loading speed of v
bytes/s it then has earned its loading time back after LOAD_BYTES_PER_US * 1e6 / v tokens at the
latest: 1,000 tokens at 500 MB/s, 5,000 at 100 MB/s.
"""

CANDIDATES_MAX = 12
"""Different devices among which shared stages are placed exactly; the table doubles with each."""
CANDIDATES_AT_NEED = 14
"""As many where memory asks for them: four times the table, about a second."""
STATES_MAX = CANDIDATES_MAX << CANDIDATES_MAX
"""Rows of that table.  Of devices that are alike more can be placed in as many."""

_STEPS_PER_US = 64
"""Costs are counted in steps of 1/64 us; the loading of a unit is rounded up to a whole one."""


class Floor(Struct, frozen=True):
    """What no plan for ``batch`` sequences, or for more, can cost less than."""

    batch: int
    steps: int


class Pool(Struct, frozen=True):
    """Who takes part: the devices by role, in the order that decides ties, and their links."""

    snapshot: Snapshot
    sources: tuple[Device, ...]
    shared: tuple[Device, ...]
    """Those that may hold a shared stage."""
    links: dict[tuple[str, str], Link]
    left_out: tuple[Device, ...] = ()
    """Those that might, but are not searched."""
    floor: Floor | None = None
    """Of all plans, with those left out; None where nothing is left out, or nothing is known."""

    @property
    def device_rank(self) -> int:
        """Of plans that cost the same the one with fewer devices wins, then the one with fewer
        stages: each run adds 1, and this as well on a device that is no source."""
        return len(self.shared) + 1

    @property
    def ranks(self) -> int:
        """Costs are counted in units of this, so that all ranks of a plan stay below one step."""
        return self.device_rank * (self.device_rank + 1)

    @property
    def notes(self) -> list[str]:
        """What the operator should know about who takes part."""
        notes = [
            f"{device.peer} cannot hold a source's part and is no source"
            for device in sorted(self.snapshot.devices, key=lambda device: device.peer)
            if device.is_source and device not in self.sources
        ]
        if self.left_out:
            n_all = len(self.shared) + len(self.left_out)
            notes.append(f"shared stages planned over {len(self.shared)} of {n_all} devices")
        return notes


def everyone_of(snapshot: Snapshot, devices: list[Device], sources: list[Device]) -> Pool:
    """All that could take part."""
    free = [device for device in devices if len(sources) > 1 or device not in sources]
    able = [device for device in free if _holds_some_unit(snapshot, device, device in sources)]
    links = {(link.a, link.b): link for link in snapshot.links}
    return Pool(snapshot, tuple(sources), tuple(able), links)


def searched(everyone: Pool) -> Pool:
    """All of them where an exact search can be afforded, else those that matter most."""
    able = everyone.shared
    if (
        len(able) <= CANDIDATES_MAX
        or n_states(kinds_of(chain_of(everyone), fit_of(everyone, 1))) <= STATES_MAX
    ):
        return everyone
    found = _bounded(everyone)
    visits = found[1].visits if found else (0,) * len(able)
    ranks = {
        device: (-n, sum(device.unit_us), device.peer)
        for device, n in zip(able, visits, strict=True)
    }
    shared = _reduced(everyone, sorted(able, key=ranks.__getitem__))
    left_out = tuple(device for device in able if device not in shared)
    floor = found[0] if found else None
    return replace(everyone, shared=tuple(shared), left_out=left_out, floor=floor)


def _bounded(everyone: Pool) -> tuple[Floor, Bound] | None:
    """For the wished batch, or where that cannot be for one sequence; none for ``throughput``,
    whose plans are not those of least cost."""
    if everyone.snapshot.goal.objective != "latency":
        return None
    for batch in sorted({everyone.snapshot.workload.batch, 1}, reverse=True):
        if (found := _bounded_at(everyone, batch)) is not None:
            return found
    return None


def _bounded_at(everyone: Pool, batch: int) -> tuple[Floor, Bound] | None:
    bound = lower_bound(chain_of(everyone), fit_of(everyone, batch))
    # A cost is less than one step above its steps, by its ranks.
    return (Floor(batch, bound.cost // everyone.ranks - 1), bound) if bound else None


def floor_us(pool: Pool, batch: int) -> int | None:
    """What no plan for ``batch`` sequences takes less than, microseconds for one token (or, with an
    expected prompt and answer, for one token with its part of the prefill).

    The bound is on time and loading together; the most that loading could be is taken off.
    """
    floor = pool.floor
    if floor is not None and floor.batch > batch:
        everyone = replace(pool, shared=(*pool.shared, *pool.left_out))
        found = _bounded_at(everyone, batch)
        floor = found[0] if found else None
    if floor is None:
        return None
    n_sources = len(pool.sources)
    devices, entry_end = (*pool.sources, *pool.shared, *pool.left_out), entry_of(pool.snapshot).end
    loads = [_loads(pool, device) for device in devices]
    dearest = [max(of_unit) for of_unit in zip(*loads, strict=True)]
    at_most = n_sources * sum(dearest[:entry_end]) + sum(dearest[entry_end:])
    least: int = floor.steps - at_most
    return max(0, least // (_STEPS_PER_US * n_sources))


def _holds_some_unit(snapshot: Snapshot, device: Device, is_source: bool) -> bool:
    smallest = min(unit_bytes(snapshot, is_source, 1)[entry_of(snapshot).end :])
    return spare_bytes(snapshot, device, is_source, 1) >= smallest


def _reduced(everyone: Pool, ranked: list[Device]) -> list[Device]:
    """The first CANDIDATES_MAX of ``ranked``, of which the smallest are exchanged for the largest
    others, one by one, until together they surely hold the shared units at the wished batch; where
    that does not do, of CANDIDATES_AT_NEED.  Surely: a run leaves less than its largest unit
    unused, taken off for each.
    """
    snapshot, sources = everyone.snapshot, everyone.sources
    batch = snapshot.workload.batch
    sizes = unit_bytes(snapshot, False, batch)[entry_of(snapshot).end :]
    spare = {
        device.peer: spare_bytes(snapshot, device, device in sources, batch) for device in ranked
    }
    kept: list[Device] = []
    for n_kept in (CANDIDATES_MAX, min(CANDIDATES_AT_NEED, len(ranked))):
        wanted = sum(sizes) + n_kept * max(sizes)
        kept = _exchanged(ranked[:n_kept], ranked[n_kept:], spare, wanted)
        if sum(spare[device.peer] for device in kept) >= wanted:
            break
    return sorted(kept, key=lambda device: device.peer)


def _exchanged(
    kept: list[Device], others: list[Device], spare: dict[PeerId, int], wanted: int
) -> list[Device]:
    for larger in sorted(others, key=lambda device: (-spare[device.peer], device.peer)):
        smallest = min(kept, key=lambda device: (spare[device.peer], device.peer))
        enough = sum(spare[device.peer] for device in kept) >= wanted
        if enough or spare[larger.peer] <= spare[smallest.peer]:
            break
        kept[kept.index(smallest)] = larger
    return kept


def entry_of(snapshot: Snapshot) -> UnitRange:
    return entry_units(snapshot.model, snapshot.workload.first_layer)


def unit_bytes(snapshot: Snapshot, is_source: bool, batch: int) -> list[int]:
    """Memory of each unit on a device.  A source holds the embedding, so a tied head is free of
    its matrix there: sizes are per unit and add up whatever else the device runs."""
    model, workload = snapshot.model, snapshot.workload
    units = [UnitRange(unit, unit + 1) for unit in range(model.n_units)]
    return [
        weight_bytes(model, unit, workload.dtype, is_source)
        + kv_bytes(model, unit, workload, batch)
        for unit in units
    ]


def spare_bytes(snapshot: Snapshot, device: Device, is_source: bool, batch: int) -> int:
    """What the budget leaves for a shared stage; below 0 where the entry does not fit."""
    if not is_source:
        return device.budget_bytes
    return device.budget_bytes - sum(unit_bytes(snapshot, True, batch)[: entry_of(snapshot).end])


def chain_of(pool: Pool, rows: int = 1) -> Chain:
    """Costs of a micro-batch of ``rows`` rows, in steps times ``ranks``, summed over the sources
    instead of averaged: what every source's token passes counts once for each, bytes to load
    likewise.
    """
    n_sources = len(pool.sources)
    rank = [1 + pool.device_rank * (d not in pool.sources) for d in pool.shared]
    entries = [_unit_costs(pool, source, 1, rows) for source in pool.sources]
    enter = [_sum(_hop(pool, source, d, rows) for source in pool.sources) for d in pool.shared]
    leave = [_sum(_return(pool, d, source, rows) for source in pool.sources) for d in pool.shared]
    hops = [[_sum([_hop(pool, a, b, rows)] * n_sources) for b in pool.shared] for a in pool.shared]
    return Chain(
        entry=_prefix_sums(map(sum, zip(*entries, strict=True))),
        units=tuple(_prefix_sums(_unit_costs(pool, d, n_sources, rows)) for d in pool.shared),
        enter=_ranked(pool, enter, rank),
        hop=tuple(_ranked(pool, hop, rank) for hop in hops),
        leave=_ranked(pool, leave, [0] * len(leave)),
    )


def _sum(steps: Iterable[int]) -> int:
    return min(UNREACHABLE, sum(steps))


def _ranked(pool: Pool, steps: list[int], ranks: list[int]) -> tuple[int, ...]:
    pairs = zip(steps, ranks, strict=True)
    return tuple(min(UNREACHABLE, step * pool.ranks + rank) for step, rank in pairs)


def _unit_costs(pool: Pool, device: Device, share: int, rows: int) -> list[int]:
    """Cost of each unit: its time for ``share`` of the sources, and its loading."""
    goal, prefill_us = pool.snapshot.goal, device.prefill_us(_prompt(pool.snapshot.goal))
    times = zip(device.decode_us(rows), prefill_us, _loads(pool, device), strict=True)
    return [
        (share * _steps(goal, decode, prefill) + load) * pool.ranks
        for decode, prefill, load in times
    ]


def _loads(pool: Pool, device: Device) -> list[int]:
    """Price of loading each unit, in steps, for a token of each source."""
    model, dtype = pool.snapshot.model, pool.snapshot.workload.dtype
    prices = []
    for unit in range(model.n_units):
        is_held = any(unit in units for units in device.held)
        size = weight_bytes(model, UnitRange(unit, unit + 1), dtype, device in pool.sources)
        price = 0 if is_held else -(-size * _STEPS_PER_US // LOAD_BYTES_PER_US)
        prices.append(price * len(pool.sources))
    return prices


def _hop(pool: Pool, a: Device, b: Device, rows: int) -> int:
    """Of hidden states: of a decoded token, and its part of the prompt's."""
    if a.peer == b.peer:
        return 0
    link, snapshot = pool.links.get((a.peer.name, b.peer.name)), pool.snapshot
    if link is None:
        return UNREACHABLE
    row, prompt = row_bytes(snapshot), _prompt(snapshot.goal)
    prefill_us = sum(link.occupancy_us(n * row) for n in chunks_of(prompt))
    prefill_us += link.delay_us if prompt else 0
    return _steps(snapshot.goal, link.cost_us(rows * row), prefill_us)


def _return(pool: Pool, a: Device, b: Device, rows: int) -> int:
    """Of token ids: of a decoded one, and its part of the one that the prompt gives."""
    if a.peer == b.peer:
        return 0
    link, goal = pool.links.get((a.peer.name, b.peer.name)), pool.snapshot.goal
    if link is None:
        return UNREACHABLE
    token_bytes = pool.snapshot.framing.token_bytes
    first_us = link.cost_us(token_bytes) if _prompt(goal) else 0
    return _steps(goal, link.cost_us(rows * token_bytes), first_us)


def _prompt(goal: Goal) -> int:
    """Tokens of the prompt that count: those of the expected one, where its answer is known too."""
    return goal.prompt if goal.objective == "latency" and goal.generate else 0


def _steps(goal: Goal, decode_us: int, prefill_us: int) -> int:
    """Of one decoded token with its part of the prefill, which is rounded up to a whole step."""
    return decode_us * _STEPS_PER_US - (-prefill_us * _STEPS_PER_US // max(1, goal.generate))


def row_bytes(snapshot: Snapshot) -> int:
    """What one row of hidden states takes on a link."""
    return snapshot.model.hidden_bytes(snapshot.workload.dtype) + snapshot.framing.row_bytes


def busy_of(pool: Pool, rows: int) -> Busy:
    """How long one micro-batch of ``rows`` rows occupies what it passes."""
    sources, n_sources = pool.sources, len(pool.sources)
    entries = [_prefix_sums(source.decode_us(rows)) for source in sources]
    row, token = rows * row_bytes(pool.snapshot), rows * pool.snapshot.framing.token_bytes
    entry_end, both = entry_of(pool.snapshot).end, dict(zip(sources, entries, strict=True))

    def occupied(a: Device, b: Device, n_bytes: int) -> int:
        link = pool.links.get((a.peer.name, b.peer.name))
        return 0 if a.peer == b.peer or link is None else link.occupancy_us(n_bytes)

    return Busy(
        entry=tuple(map(max, zip(*entries, strict=True))),
        units=tuple(
            _prefix_sums(n_sources * us for us in device.decode_us(rows)) for device in pool.shared
        ),
        own=tuple(both[d][entry_end] if d in both else 0 for d in pool.shared),
        enter=tuple(max(occupied(s, d, row) for s in sources) for d in pool.shared),
        hop=tuple(tuple(n_sources * occupied(a, b, row) for b in pool.shared) for a in pool.shared),
        leave=tuple(max(occupied(d, s, token) for s in sources) for d in pool.shared),
    )


def _prefix_sums(costs: Iterable[int]) -> tuple[int, ...]:
    return tuple(accumulate(costs, initial=0))


def fit_of(pool: Pool, batch: int) -> Fit:
    snapshot, entry_end = pool.snapshot, entry_of(pool.snapshot).end
    sizes = {role: _prefix_sums(unit_bytes(snapshot, role, batch)) for role in (False, True)}
    spare = [spare_bytes(snapshot, source, True, batch) for source in pool.sources]
    if len(pool.sources) > 1:
        longest = entry_end if min(spare) >= 0 else 0
    else:
        longest = bisect_right(sizes[True], pool.sources[0].budget_bytes) - 1
    ends = []
    for device in pool.shared:
        is_source = device in pool.sources
        free, done = spare_bytes(snapshot, device, is_source, batch), sizes[is_source]
        ends.append(tuple(bisect_right(done, start + free) - 1 for start in done))
    return Fit(range(entry_end, longest + 1), tuple(ends))


def needed_bytes(snapshot: Snapshot, n_sources: int, batch: int) -> int:
    """The least that any plan takes: an entry for each source, everything else once."""
    sizes, entry_end = unit_bytes(snapshot, True, batch), entry_of(snapshot).end
    return n_sources * sum(sizes[:entry_end]) + sum(sizes[entry_end:])


def offered_bytes(snapshot: Snapshot) -> int:
    return sum(device.budget_bytes for device in snapshot.devices)
