"""How many rows a pass takes: with so many requests that decode, what the cost model expects most
tokens per second of.

Few rows to a pass and each stage has something to do while others work; many, and a pass costs less
for each.  Which is better follows from what was measured of the plan's devices and links.
Knows nothing of which rows wait where.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.ids import PlanId
from edgeshard_p2p.core.layout import Layout, is_linked, latency_us, loads
from edgeshard_p2p.core.plan import Plan, Snapshot
from edgeshard_p2p.core.schedule import Schedule, iteration_us


class PassSize(Struct, frozen=True):
    rows: int
    iteration_us: int
    """From one token of a request to its next, all passes in flight (no-bubbles)."""


def round_us(plan: Plan, rows: int, n_requests: int, snapshot: Snapshot, schedule: Schedule) -> int:
    """From one token of each of ``n_requests`` to their next, in passes of so many rows."""
    layout, n = _layout(plan, snapshot), -(-n_requests // rows)
    return iteration_us(schedule, *_costs_us(snapshot, layout, rows, n), n)


def _layout(plan: Plan, snapshot: Snapshot) -> Layout:
    return Layout(plan.sources, plan.entry_end, plan.stages, snapshot.model.n_units)


def _costs_us(snapshot: Snapshot, layout: Layout, rows: int, n: int) -> tuple[int, Fraction]:
    """What one of ``n`` passes takes, and for how long it occupies the busiest resource."""
    return latency_us(snapshot, layout, rows, n), max(loads(snapshot, layout, rows).values())


@dataclass(slots=True)
class PassSizes:
    _snapshot: Snapshot | None = None
    _sizes: dict[tuple[PlanId, int], PassSize | None] = field(default_factory=dict)
    _costs: dict[tuple[PlanId, int, bool], tuple[int, Fraction]] = field(default_factory=dict)

    def of(self, plan: Plan, n_requests: int, snapshot: Snapshot | None) -> PassSize | None:
        """None where ``snapshot`` does not say what the plan costs."""
        if snapshot is not self._snapshot and snapshot != self._snapshot:
            self._sizes.clear()
            self._costs.clear()
        self._snapshot = snapshot
        key = (plan.id, n_requests)
        if key not in self._sizes:
            self._sizes[key] = self._best(plan, n_requests)
        return self._sizes[key]

    def rows(self, plan: Plan, n_requests: int, n_chunks: int, snapshot: Snapshot | None) -> int:
        """Of a pass of ``n_requests`` that decode, while ``n_chunks`` of prompts have still to set
        out.  With one for the source and each stage, no gap is left that more passes would fill."""
        size = self.of(plan, n_requests, snapshot)
        if size is None or snapshot is None:
            return n_requests
        has_gaps = n_chunks <= len(plan.stages) or not plan.stages
        return size.rows if has_gaps or snapshot.goal.micro_batch else n_requests

    def _best(self, plan: Plan, n_requests: int) -> PassSize | None:
        snapshot = self._snapshot
        if snapshot is None or not n_requests:
            return None
        peers = plan.peers()
        devices = tuple(device for device in snapshot.devices if device.peer in peers)
        snapshot = replace(snapshot, devices=devices)  # Others cost nothing but time here.
        layout = _layout(plan, snapshot)
        is_of_model = plan.model_digest == snapshot.model.digest
        is_whole = plan.n_units == snapshot.model.n_units and len(devices) == len(peers)
        if not is_of_model or not is_whole or not is_linked(snapshot, layout):
            return None
        wish = snapshot.goal.micro_batch
        sizes = {-(-n_requests // n) for n in range(1, n_requests + 1)}
        found = [
            PassSize(rows, self._iteration_us(plan, layout, snapshot, rows, n_requests))
            for rows in ([min(wish, n_requests)] if wish else sizes)
        ]
        # Of what is as good the most rows: each pass costs something that is not always known.
        return min(found, key=lambda size: (size.iteration_us, -size.rows))

    def _iteration_us(
        self, plan: Plan, layout: Layout, snapshot: Snapshot, rows: int, n_requests: int
    ) -> int:
        n = -(-n_requests // rows)
        key = (plan.id, rows, n == 1)
        if key not in self._costs:
            self._costs[key] = _costs_us(snapshot, layout, rows, n)
        return iteration_us("no-bubbles", *self._costs[key], n)
