"""Pools of more different devices than can be searched: which take part, and a proved bound."""

from __future__ import annotations

from msgspec.structs import replace

from edgeshard_p2p.core.footprint import entry_of, own_bytes, own_units, unit_bytes
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.kinds import n_states
from edgeshard_p2p.core.latency_dp import alike
from edgeshard_p2p.core.plan import Device
from edgeshard_p2p.core.pool import STEPS_PER_US, Floor, Pool, chain_of, fit_of, loads_of
from edgeshard_p2p.core.relaxation import Bound, lower_bound

CANDIDATES_MAX = 12
"""Different devices among which shared stages are placed exactly; the table doubles with each."""
CANDIDATES_AT_NEED = 14
"""As many where memory asks for them: four times the table, about a second."""
STATES_MAX = CANDIDATES_MAX << CANDIDATES_MAX
"""Rows of that table.  Of devices that are alike more can be placed in as many."""


def is_searchable(everyone: Pool) -> bool:
    if len(everyone.shared) <= CANDIDATES_MAX:
        return True
    return n_states(alike(chain_of(everyone), fit_of(everyone, 1))) <= STATES_MAX


def searched(everyone: Pool) -> Pool:
    """All of them where an exact search can be afforded, else those that matter most."""
    able = everyone.shared
    if is_searchable(everyone):
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
    devices = (*pool.sources, *pool.shared, *pool.left_out)
    loads = [loads_of(pool, device) for device in devices]
    dearest = [max(of_unit) for of_unit in zip(*loads, strict=True)]
    own = sum(dearest[unit] for unit in own_units(pool.snapshot))
    at_most = sum(dearest) + (n_sources - 1) * own
    least: int = floor.steps - at_most
    return max(0, least // (STEPS_PER_US * n_sources))


def _reduced(everyone: Pool, ranked: list[Device]) -> list[Device]:
    """The first CANDIDATES_MAX of ``ranked``, of which the smallest are exchanged for the largest
    others, one by one, until together they surely hold the shared units at the wished batch; where
    that does not do, of CANDIDATES_AT_NEED.  Surely: a run leaves less than its largest unit
    unused, taken off for each.
    """
    snapshot, sources = everyone.snapshot, everyone.sources
    batch = snapshot.workload.batch
    sizes = unit_bytes(snapshot, False, batch)[entry_of(snapshot).end :]
    own = own_bytes(snapshot, batch)
    spare = {device.peer: device.budget_bytes - own * (device in sources) for device in ranked}
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
