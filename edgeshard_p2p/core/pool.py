"""Who may take part, and the planner's costs and limits of it: a snapshot as integers.

Costs are those of ``latency_dp``; memory is weights and the KV of the promised batch and context.
Knows nothing of how the best chain is found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable
from functools import cached_property
from itertools import accumulate

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.bottleneck import Busy
from edgeshard_p2p.core.footprint import (
    entry_of,
    last_ends,
    own_bytes,
    own_units,
    unit_bytes,
    unit_weights,
)
from edgeshard_p2p.core.kinds import Kinds, kinds_of
from edgeshard_p2p.core.latency_dp import UNREACHABLE, Chain, Fit
from edgeshard_p2p.core.plan import CHUNK_ROWS, Device, Goal, Link, Snapshot, chunks_of

LOAD_BYTES_PER_US = 500_000
"""How many bytes still to be loaded weigh as much as one microsecond of every token.

A new plan must win 1 us per token for each 0.5 MB that it loads anew.  At a loading speed of v
bytes/s it then has earned its loading time back after LOAD_BYTES_PER_US * 1e6 / v tokens at the
latest: 1,000 tokens at 500 MB/s, 5,000 at 100 MB/s.
"""

STEPS_PER_US = 64
"""Costs are counted in steps of 1/64 us; the loading of a unit is rounded up to a whole one."""


class Pool(Struct, frozen=True, dict=True):
    """Who takes part: the devices by role, in the order that decides ties, and their links."""

    snapshot: Snapshot
    sources: tuple[Device, ...]
    shared: tuple[Device, ...]
    """Those that may hold a shared stage."""
    links: dict[tuple[str, str], Link]

    @property
    def device_rank(self) -> int:
        """Of plans that cost the same the one with fewer devices wins, then the one with fewer
        stages: each run adds 1, and this as well on a device that is no source."""
        return len(self.shared) + 1

    @cached_property
    def ranks(self) -> int:
        """Costs are counted in units of this, so that all ranks of a plan stay below one step."""
        return self.device_rank * (self.device_rank + 1)

    @cached_property
    def kinds(self) -> Kinds:
        """The shared devices, those together that could change places in any plan."""
        owns = [
            (
                _own_of(self, device),
                device.budget_bytes,
                tuple(sorted(self._both_ways(device, source) for source in self.sources)),
            )
            for device in self.shared
        ]
        return kinds_of(owns, [[self._one_way(a, b) for b in self.shared] for a in self.shared])

    def without_rests(self) -> Pool:
        """Of several micro-batches that are on their way, none finds a device at rest."""
        sources, shared = (
            tuple(replace(device, rested_us=0) for device in devices)
            for devices in (self.sources, self.shared)
        )
        return replace(self, sources=sources, shared=shared)

    def _one_way(self, a: Device, b: Device) -> tuple[int, ...]:
        link = self.links.get((a.peer.name, b.peer.name))
        return () if link is None else (link.delay_us, link.per_message_us, link.bytes_per_s)

    def _both_ways(self, a: Device, b: Device) -> tuple[tuple[int, ...], ...]:
        return (self._one_way(a, b), self._one_way(b, a)) if a != b else ()

    @cached_property
    def prices(self) -> dict[bool, list[int]]:
        """Of loading each unit on a source or another device, in steps, for a token of each."""
        n_sources = len(self.sources)
        return {
            is_source: [
                n_sources * -(-n_bytes * STEPS_PER_US // LOAD_BYTES_PER_US)
                for n_bytes in unit_weights(self.snapshot, is_source)
            ]
            for is_source in (False, True)
        }

    @property
    def notes(self) -> list[str]:
        """What the operator should know about who takes part."""
        return [
            f"{device.peer} cannot hold a source's part and is no source"
            for device in sorted(self.snapshot.devices, key=lambda device: device.peer)
            if device.is_source and device not in self.sources
        ]


def pool_of(snapshot: Snapshot, devices: list[Device], sources: list[Device]) -> Pool:
    """All that could take part."""
    smallest = {
        is_source: min(unit_bytes(snapshot, is_source, 1)[entry_of(snapshot).end :])
        + own_bytes(snapshot, 1) * is_source
        for is_source in (False, True)
    }
    free = [device for device in devices if len(sources) > 1 or device not in sources]
    able = [device for device in free if device.budget_bytes >= smallest[device in sources]]
    links = {(link.a, link.b): link for link in snapshot.links}
    return Pool(snapshot, tuple(sources), tuple(able), links)


def chain_of(pool: Pool, rows: int = 1, n: int = 1) -> Chain:
    """Costs of one of ``n`` micro-batches of ``rows`` rows, in steps times ``ranks``, summed over
    the sources instead of averaged: what every source's token passes counts once for each, bytes
    to load likewise.
    """
    if n > 1:
        pool = pool.without_rests()
    n_sources, goal = len(pool.sources), pool.snapshot.goal
    rank = [1 + pool.device_rank * (d not in pool.sources) for d in pool.shared]
    entries = [_unit_costs(pool, source, 1, rows) for source in pool.sources]
    entry = _prefix_sums(map(sum, zip(*entries, strict=True)))
    finish = [UNREACHABLE] * len(entry)
    for end in last_ends(pool.snapshot, n_sources):
        finish[end] = entry[-1] - entry[end]
    # Alone; with others a source has its pass with what comes back.
    alone = [*entry[:-1], entry[-1] + pool.ranks * sum(_arrived(pool, s) for s in pool.sources)]
    back = _hop if goal.private_head else _return
    enter = [_sum(_hop(pool, source, d, rows) for source in pool.sources) for d in pool.shared]
    leave = [_sum(back(pool, d, source, rows) for source in pool.sources) for d in pool.shared]
    hops = [[_sum([_hop(pool, a, b, rows)] * n_sources) for b in pool.shared] for a in pool.shared]
    units = {_own_of(pool, device): device for device in pool.shared}
    costs = {own: _prefix_sums(_unit_costs(pool, d, n_sources, rows)) for own, d in units.items()}
    return Chain(
        entry=tuple(alone),
        units=tuple(costs[_own_of(pool, device)] for device in pool.shared),
        enter=_ranked(pool, enter, rank),
        hop=tuple(_ranked(pool, hop, rank) for hop in hops),
        leave=_ranked(pool, leave, [0] * len(leave)),
        finish=tuple(finish),
    )


def _own_of(pool: Pool, device: Device) -> Hashable:
    """All that the costs and the limits of a device's runs depend on."""
    times = (device.unit_us, device.decode, device.prefill, device.pass_us, device.rested_us)
    return device in pool.sources, times, device.held


def _sum(steps: Iterable[int]) -> int:
    return min(UNREACHABLE, sum(steps))


def _ranked(pool: Pool, steps: list[int], ranks: list[int]) -> tuple[int, ...]:
    pairs = zip(steps, ranks, strict=True)
    return tuple(min(UNREACHABLE, step * pool.ranks + rank) for step, rank in pairs)


def _unit_costs(pool: Pool, device: Device, share: int, rows: int) -> list[int]:
    """Cost of each unit: its time for ``share`` of the sources, and its loading."""
    goal, ranks = pool.snapshot.goal, pool.ranks
    prefill_us = device.prefill_us(_prompt(goal))
    times = zip(device.decode_us(rows), prefill_us, loads_of(pool, device), strict=True)
    return [
        (share * _steps(goal, decode, prefill) + load) * ranks for decode, prefill, load in times
    ]


def loads_of(pool: Pool, device: Device) -> list[int]:
    """Price of loading each unit, in steps, for a token of each source."""
    prices = list(pool.prices[device in pool.sources])
    for units in device.held:
        for unit in range(units.start, min(units.end, len(prices))):
            prices[unit] = 0
    return prices


def dearest_load(pool: Pool) -> int:
    """The most that the loading of any plan costs."""
    devices = (*pool.sources, *pool.shared)
    loads = [loads_of(pool, device) for device in devices]
    dearest: list[int] = [max(of_unit) for of_unit in zip(*loads, strict=True)]
    own = sum(dearest[unit] for unit in own_units(pool.snapshot))
    return (sum(dearest) + (len(pool.sources) - 1) * own) * pool.ranks


def in_us(pool: Pool, cost: int) -> int:
    """Microseconds for a token, mean over the sources; ranks fall away."""
    return cost // (pool.ranks * STEPS_PER_US * len(pool.sources))


def cost_of(pool: Pool, us: int) -> int:
    """Of which, or of more, no plan takes less than ``us`` for a token, however little it loads."""
    return us * pool.ranks * STEPS_PER_US * len(pool.sources) + dearest_load(pool)


def _hop(pool: Pool, a: Device, b: Device, rows: int) -> int:
    """Of hidden states, and what ``b`` does with them besides computing: of a decoded token, and
    its part of the prompt's."""
    if a.peer == b.peer:
        return _arrived(pool, b)
    link, snapshot = pool.links.get((a.peer.name, b.peer.name)), pool.snapshot
    if link is None:
        return UNREACHABLE
    row, prompt = row_bytes(snapshot), _prompt(snapshot.goal)
    whole, rest = divmod(prompt, CHUNK_ROWS)
    prefill_us = whole * link.occupancy_us(CHUNK_ROWS * row)
    prefill_us += link.occupancy_us(rest * row) if rest else 0
    prefill_us += link.delay_us if prompt else 0
    return _arrived(pool, b, (link.cost_us(rows * row), prefill_us))


def _return(pool: Pool, a: Device, b: Device, rows: int) -> int:
    """Of token ids, and what ``b`` does besides computing: of a decoded one, and its part of the
    one that the prompt gives."""
    if a.peer == b.peer:
        return _arrived(pool, b)
    link, goal = pool.links.get((a.peer.name, b.peer.name)), pool.snapshot.goal
    if link is None:
        return UNREACHABLE
    token_bytes = pool.snapshot.framing.token_bytes
    first_us = link.cost_us(token_bytes) if _prompt(goal) else 0
    return _arrived(pool, b, (link.cost_us(rows * token_bytes), first_us))


def _arrived(pool: Pool, device: Device, way: tuple[int, int] | None = None) -> int:
    """What a token takes besides units, and its part of the prompt: ``way`` to the device over a
    link, which finds it at rest, and the rest of the pass."""
    goal, rested_us = pool.snapshot.goal, device.rested_us if way else 0
    decode_us, prefill_us = way or (0, 0)
    prefill_us += len(chunks_of(_prompt(goal))) * device.pass_us
    return _steps(
        goal,
        max(0, decode_us + device.pass_us - rested_us),
        max(0, prefill_us - rested_us),
    )


def _prompt(goal: Goal) -> int:
    """Tokens of the prompt that count: those of the expected one, where its answer is known too."""
    return goal.prompt if goal.objective == "latency" and goal.generate else 0


def _steps(goal: Goal, decode_us: int, prefill_us: int) -> int:
    """Of one decoded token with its part of the prefill, which is rounded up to a whole step."""
    return decode_us * STEPS_PER_US - (-prefill_us * STEPS_PER_US // max(1, goal.generate))


def row_bytes(snapshot: Snapshot) -> int:
    """What one row of hidden states takes on a link."""
    return snapshot.model.hidden_bytes(snapshot.workload.dtype) + snapshot.framing.row_bytes


def busy_of(pool: Pool, rows: int) -> Busy:
    """How long one micro-batch of ``rows`` rows occupies what it passes."""
    sources, n_sources = pool.sources, len(pool.sources)
    row, token = rows * row_bytes(pool.snapshot), rows * pool.snapshot.framing.token_bytes
    back = row if pool.snapshot.goal.private_head else token
    entry, tail = _sources_busy(pool, rows)

    def besides(device: Device) -> int:
        own_us = _own_us(pool, device, rows) if device in sources else 0
        return own_us + n_sources * device.pass_us

    def occupied(a: Device, b: Device, n_bytes: int) -> int:
        link = pool.links.get((a.peer.name, b.peer.name))
        return 0 if a.peer == b.peer or link is None else link.occupancy_us(n_bytes)

    return Busy(
        entry=entry,
        tail=tail,
        units=tuple(
            _prefix_sums(n_sources * us for us in device.decode_us(rows)) for device in pool.shared
        ),
        own=tuple(map(besides, pool.shared)),
        enter=tuple(max(occupied(s, d, row) for s in sources) for d in pool.shared),
        hop=tuple(tuple(n_sources * occupied(a, b, row) for b in pool.shared) for a in pool.shared),
        leave=tuple(max(occupied(d, s, back) for s in sources) for d in pool.shared),
    )


def _sources_busy(pool: Pool, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """By end of the entry and by end of the last run, what is the busiest source's own.  Where
    there are several, all of it is fixed, and stands with the entry."""
    n_units = pool.snapshot.model.n_units
    if len(pool.sources) > 1:
        own = max(_own_us(pool, source, rows) for source in pool.sources)
        return (own,) * (n_units + 1), (0,) * (n_units + 1)
    source = pool.sources[0]
    first_us, *others_us = source.decode_us(rows)
    entry = _prefix_sums([first_us + source.pass_us, *others_us])
    return entry, tuple(entry[-1] - done for done in entry)


def _own_us(pool: Pool, source: Device, rows: int) -> int:
    times = source.decode_us(rows)
    return source.pass_us + sum(times[unit] for unit in own_units(pool.snapshot))


def _prefix_sums(costs: Iterable[int]) -> tuple[int, ...]:
    return tuple(accumulate(costs, initial=0))


def fit_of(pool: Pool, batch: int) -> Fit:
    snapshot, entry_end = pool.snapshot, entry_of(pool.snapshot).end
    done = {role: _prefix_sums(unit_bytes(snapshot, role, batch)) for role in (False, True)}
    own = own_bytes(snapshot, batch)
    if len(pool.sources) > 1:
        fits = all(source.budget_bytes >= own for source in pool.sources)
        longest = [entry_end if fits else entry_end - 1] * len(done[True])
        if fits and len(own_units(snapshot)) == snapshot.model.n_units:
            longest[-1] = snapshot.model.n_units  # Nothing is left to be shared.
    else:
        free, sizes = pool.sources[0].budget_bytes - done[True][-1], done[True]
        longest = [min(end, bisect_right(sizes, size + free) - 1) for end, size in enumerate(sizes)]
    ends = []
    for device in pool.shared:
        is_source = device in pool.sources
        spare, sizes = device.budget_bytes - own * is_source, done[is_source]
        ends.append(tuple(bisect_right(sizes, size + spare) - 1 for size in sizes))
    return Fit(entry_end, tuple(longest), tuple(ends))
