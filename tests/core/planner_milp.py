"""The planner's problem as a mixed-integer program, for swarms with too many plans to list.

Written from the definition of a plan, on purpose unlike the planner: a plan is a set of choices
(what the sources keep, who runs what, which links are taken), each of which is made or not, linear
constraints say which sets are plans, and HiGHS finds the best one.  Memory is no constraint: a
choice that a device cannot hold does not exist, so it is exact.  Shares no code with the planner
but the types, what ``core.plan`` defines of bytes and times, and one constant.

All figures are summed over the sources instead of averaged, and costs are in steps of 1/64 us:
so all of them are whole numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, permutations
from typing import Any

import highspy
from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.layout import Layout
from edgeshard_p2p.core.plan import Snapshot, Stage, entry_units, kv_bytes, weight_bytes
from edgeshard_p2p.core.pool import LOAD_BYTES_PER_US

STEPS_PER_US = 64
"""The loading of a unit is rounded up to a whole step."""

TOLERANCE = 0.01
OPTIONS = {
    "output_flag": False,
    "threads": 1,
    "presolve": "off",  # These programs are solved in a fifth of the time without.
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 0.5,  # All figures are whole.
    "mip_feasibility_tolerance": 1e-9,
}


class Own(Struct, frozen=True):
    """Every source keeps ``[0, entry_end)`` and ``[tail_start, n_units)``."""

    entry_end: int
    tail_start: int


class Enter(Struct, frozen=True):
    """The first shared run is on ``device``, from ``unit`` on."""

    device: str
    unit: int


class Run(Struct, frozen=True):
    """``device`` runs ``[start, end)`` for all sources."""

    device: str
    start: int
    end: int


class Hop(Struct, frozen=True):
    """A run of ``a`` ends at ``unit``, one of ``b`` goes on."""

    a: str
    b: str
    unit: int


class Leave(Struct, frozen=True):
    """The last shared run is on ``device``, up to ``unit``."""

    device: str
    unit: int


Choice = Own | Enter | Run | Hop | Leave
Key = tuple[Any, ...]
Rows = dict[Choice, dict[Key, int]]


class Column(Struct, frozen=True):
    """What follows from a choice."""

    rows: dict[Key, int]
    """Its coefficients in the constraints, which ``_bounds`` knows by the same keys."""
    us: int
    """Time that a token takes longer."""
    busy: dict[Key, int]
    """Time for which resources are occupied; what goes back to the sources counts apart."""
    loading: int = 0
    """Steps."""

    @property
    def cost(self) -> int:
        return self.us * STEPS_PER_US + self.loading


class Worth(Struct, frozen=True):
    """A plan and what it takes."""

    layout: Layout
    us: int
    cost: int
    busiest: int


class Program:
    """Everything that a plan for ``batch`` sequences can choose, for micro-batches of ``rows``."""

    def __init__(self, swarm: Snapshot, batch: int, rows: int = 1) -> None:
        model, workload = swarm.model, swarm.workload
        self.swarm, self.batch, self.rows, self.n_units = swarm, batch, rows, model.n_units
        is_crowded = swarm.goal.objective == "throughput" and batch > rows
        self.devices = {
            device.peer.name: replace(device, rested_us=0) if is_crowded else device
            for device in swarm.devices
        }
        self.links = {(link.a, link.b): link for link in swarm.links}
        self.unit_us = {name: device.decode_us(rows) for name, device in self.devices.items()}
        row_bytes = model.hidden_bytes(workload.dtype) + swarm.framing.row_bytes
        is_row_back = swarm.goal.private_head
        self.bytes_on = rows * row_bytes
        self.bytes_back = rows * (row_bytes if is_row_back else swarm.framing.token_bytes)
        default_end = entry_units(model, workload.first_layer).end
        self.least = Own(default_end, self.n_units - swarm.goal.private_head)
        least_bytes = _of_own(self.least, self._unit_bytes(True, 1))
        self.sources = [
            name
            for name, device in self.devices.items()
            if device.is_source and least_bytes <= device.budget_bytes
        ]
        self.unit_bytes = {
            is_source: self._unit_bytes(is_source, batch) for is_source in (False, True)
        }
        self.loading = {name: self._unit_loading(name) for name in self.devices}
        self.columns = dict(self._columns()) if self.sources else {}

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(self.devices[name].peer for name in self.sources)

    # --- plans and the choices they make ------------------------------------------------------

    def worth(self, layout: Layout) -> Worth | None:
        """None where ``layout`` is no plan, or needs memory or links that are not there."""
        made = list(_made(layout))
        if layout.sources != self.peers or not all(choice in self.columns for choice in made):
            return None
        columns = [self.columns[choice] for choice in made]
        rows = _sums(column.rows for column in columns)
        if not all(low <= rows[key] <= high for key in rows for low, high in [_bounds(key, 0)]):
            return None
        us, cost = sum(column.us for column in columns), sum(column.cost for column in columns)
        return Worth(layout, us, cost, max(_sums(column.busy for column in columns).values()))

    def layout(self, made: Iterable[Choice]) -> Layout:
        runs, own = [], self.least
        for choice in made:
            if isinstance(choice, Run):
                runs.append((choice.start, choice.end, choice.device))
            elif isinstance(choice, Own):
                own = choice
        stages = [Stage(self.devices[r[2]].peer, UnitRange(*r[:2])) for r in sorted(runs)]
        return Layout(self.peers, own.entry_end, tuple(stages), own.tail_start)

    def within(self, limit: int | None) -> Iterator[tuple[Choice, Column]]:
        """The choices that alone occupy nothing for longer than ``limit``."""
        for choice, column in self.columns.items():
            if limit is None or max(column.busy.values(), default=0) <= limit:
                yield choice, column

    # --- what there is to choose --------------------------------------------------------------

    def _columns(self) -> Iterator[tuple[Choice, Column]]:
        least_budget = min(self.devices[name].budget_bytes for name in self.sources)
        sizes = self.unit_bytes[True]
        owns = [own for own in self._owns() if _of_own(own, sizes) <= least_budget]
        if not owns:
            return
        yield from ((own, self._own(own)) for own in owns)
        starts = sorted({own.entry_end for own in owns})
        ends = sorted({own.tail_start for own in owns})
        free = [n for n in self.devices if len(self.sources) > 1 or n not in self.sources]
        for name in free:
            yield from self._enter(name, starts)
            yield from self._runs(name, range(starts[0], ends[-1] + 1))
            yield from self._leave(name, ends)
        for a, b in permutations(free, 2):
            yield from self._hops(a, b, range(starts[0] + 1, ends[-1]))

    def _owns(self) -> Iterator[Own]:
        if len(self.sources) > 1:
            yield self.least
            return
        yield Own(self.n_units, self.n_units)
        for end in range(self.least.entry_end, self.least.tail_start):
            first_start = end + 1 if self.swarm.goal.private_head else self.n_units
            yield from (Own(end, start) for start in range(first_start, self.least.tail_start + 1))

    def _own(self, own: Own) -> Column:
        rows: dict[Key, int] = {("sources",): 1}
        if own.entry_end < own.tail_start:
            rows |= {("first", own.entry_end): -1, ("last", own.tail_start): -1}
        busy, us, loading = {}, 0, 0
        for name in self.sources:
            own_us = _of_own(own, self.unit_us[name])
            busy[name,] = self.devices[name].pass_us + own_us
            is_alone = own.entry_end == own.tail_start
            us += own_us + is_alone * self.devices[name].pass_us
            loading += _of_own(own, self.loading[name])
        return Column(rows, us, busy, loading)

    def _enter(self, name: str, units: list[int]) -> Iterator[tuple[Choice, Column]]:
        pairs = [(source, name) for source in self.sources]
        choices: Rows = {Enter(name, u): {("first", u): 1, ("start", name, u): -1} for u in units}
        return self._passing(choices, pairs, self.bytes_on, "on")

    def _leave(self, name: str, units: list[int]) -> Iterator[tuple[Choice, Column]]:
        pairs = [(name, source) for source in self.sources]
        choices: Rows = {Leave(name, u): {("last", u): 1, ("end", name, u): -1} for u in units}
        return self._passing(choices, pairs, self.bytes_back, "back")

    def _hops(self, a: str, b: str, units: range) -> Iterator[tuple[Choice, Column]]:
        choices: Rows = {Hop(a, b, u): {("end", a, u): -1, ("start", b, u): -1} for u in units}
        return self._passing(choices, [(a, b)] * len(self.sources), self.bytes_on, "on")

    def _passing(
        self, choices: Rows, pairs: list[tuple[str, str]], n_bytes: int, way: str
    ) -> Iterator[tuple[Choice, Column]]:
        """Choices that mean a message between each of ``pairs``; none where a link is missing."""
        if not all(a == b or (a, b) in self.links for a, b in pairs):
            return
        us, busy = 0, Counter[Key]()
        for a, b in pairs:
            device = self.devices[b]
            if a == b:
                us += device.pass_us
                continue
            us += max(0, self.links[a, b].cost_us(n_bytes) + device.pass_us - device.rested_us)
            busy[a, b, way] += self.links[a, b].occupancy_us(n_bytes)
        for choice, rows in choices.items():
            yield choice, Column(rows, us, dict(busy))

    def _runs(self, name: str, places: range) -> Iterator[tuple[Choice, Column]]:
        is_source, unit_us, loading = name in self.sources, self.unit_us[name], self.loading[name]
        sizes, spare = self.unit_bytes[is_source], self.devices[name].budget_bytes
        spare -= _of_own(self.least, sizes) if is_source else 0
        pass_us = self.devices[name].pass_us
        for start in places:
            for end in range(start + 1, places.stop):
                if sum(sizes[start:end]) > spare:
                    break
                rows = {("device", name): 1, ("start", name, start): 1, ("end", name, end): 1}
                us = len(self.sources) * sum(unit_us[start:end])
                busy = {(name,): us + len(self.sources) * pass_us}
                column = Column(rows, us, busy, sum(loading[start:end]))
                yield Run(name, start, end), column

    # --- units --------------------------------------------------------------------------------

    def _unit_bytes(self, is_source: bool, batch: int) -> list[int]:
        """Memory of each unit on a device.  A tied head matrix is free where the embedding is."""
        model, workload = self.swarm.model, self.swarm.workload
        units = [UnitRange(unit, unit + 1) for unit in range(model.n_units)]
        return [
            weight_bytes(model, unit, workload.dtype, is_source)
            + kv_bytes(model, unit, workload, batch)
            for unit in units
        ]

    def _unit_loading(self, name: str) -> list[int]:
        """Price of loading each unit, for a token of each source."""
        held = {unit for units in self.devices[name].held for unit in units}
        weights = self._unit_bytes(name in self.sources, 0)
        prices = [-(-n_bytes * STEPS_PER_US // LOAD_BYTES_PER_US) for n_bytes in weights]
        return [
            0 if unit in held else len(self.sources) * price for unit, price in enumerate(prices)
        ]


def _of_own(own: Own, unit_figures: Sequence[int]) -> int:
    return sum(unit_figures[: own.entry_end]) + sum(unit_figures[own.tail_start :])


def _made(layout: Layout) -> Iterator[Choice]:
    yield Own(layout.entry_end, layout.tail_start)
    runs = [Run(stage.peer.name, stage.units.start, stage.units.end) for stage in layout.stages]
    if runs:
        yield Enter(runs[0].device, runs[0].start)
        yield from runs
        yield from (Hop(a.device, b.device, a.end) for a, b in pairwise(runs))
        yield Leave(runs[-1].device, runs[-1].end)


def _sums(parts: Iterable[dict[Key, int]]) -> Counter[Key]:
    total = Counter[Key]()
    for part in parts:
        total.update(part)
    return total


def _bounds(key: Key, limit: int) -> tuple[float, float]:
    """The sources keep one part, a device has one run at most, no resource is busy for longer than
    ``limit``; and whatever ends somewhere goes on from there."""
    bounds = {"sources": (1, 1), "device": (0, 1), "busy": (-highspy.kHighsInf, limit)}
    return bounds.get(key[0], (0, 0))


# --- the best plans ---------------------------------------------------------------------------


def least_cost(program: Program, limit: int | None = None) -> Worth | None:
    """The plan of least cost, or one of them, whose busiest resource is not above ``limit``; None
    where there is none."""
    matrix = _Matrix(limit or 0)
    for choice, column in program.within(limit):
        busy = {} if limit is None else _busy(column.busy)
        matrix.add(choice, column.rows | busy, column.cost)
    return _best(program, matrix, "cost")


def least_busy(program: Program) -> Worth | None:
    """The plan whose busiest resource is least busy, or one of them.  Where a plan is known, it is
    much quicker to ask ``least_cost`` for one below it."""
    matrix, resources = _Matrix(0), set()
    for choice, column in program.columns.items():
        matrix.add(choice, column.rows | _busy(column.busy), 0)
        resources |= column.busy.keys()
    matrix.add(None, _busy(dict.fromkeys(resources, -1)), 1)
    return _best(program, matrix, "busiest")


def _busy(busy: dict[Key, int]) -> dict[Key, int]:
    return {("busy", *resource): us for resource, us in busy.items()}


class _Matrix:
    """Columns as HiGHS takes them.  The one of no choice is the time of the busiest resource."""

    def __init__(self, limit: int) -> None:
        self.choices: list[Choice | None] = []
        self.costs: list[float] = []
        self.starts: list[int] = []
        self.places: list[int] = []
        self.values: list[float] = []
        self.lower: list[float] = []
        self.upper: list[float] = []
        self.numbers: dict[Key, int] = {}
        self._limit = limit

    def add(self, choice: Choice | None, rows: dict[Key, int], cost: int) -> None:
        self.choices.append(choice)
        self.costs.append(cost)
        self.starts.append(len(self.places))
        for key, value in rows.items():
            if key not in self.numbers:
                self.numbers[key] = len(self.numbers)
                lower, upper = _bounds(key, self._limit)
                self.lower.append(lower)
                self.upper.append(upper)
            self.places.append(self.numbers[key])
            self.values.append(value)

    def run(self) -> highspy.Highs:
        n_columns, n_rows, n_entries = len(self.costs), len(self.lower), len(self.places)
        most = [highspy.kHighsInf if choice is None else 1.0 for choice in self.choices]
        # Where runs are whole, so are the ways between them.
        is_whole = [int(one is None or isinstance(one, Own | Run)) for one in self.choices]
        solver = highspy.Highs()
        for name, value in OPTIONS.items():
            solver.setOptionValue(name, value)
        solver.passModel(
            n_columns,
            n_rows,
            n_entries,
            highspy.MatrixFormat.kColwise.value,
            highspy.ObjSense.kMinimize.value,
            0.0,
            self.costs,
            [0.0] * n_columns,
            most,
            self.lower,
            self.upper,
            self.starts,
            self.places,
            self.values,
            is_whole,
        )
        solver.run()
        return solver


def _best(program: Program, matrix: _Matrix, figure: str) -> Worth | None:
    if ("sources",) not in matrix.numbers:
        return None
    solver = matrix.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return None
    assert status == highspy.HighsModelStatus.kOptimal, status
    pairs = zip(matrix.choices, solver.getSolution().col_value, strict=True)
    found = program.worth(program.layout(one for one, value in pairs if one and value > 0.5))
    assert found is not None, "a solution, but no plan"
    objective = solver.getInfo().objective_function_value
    assert abs(objective - getattr(found, figure)) < TOLERANCE, "a plan, but not the solution"
    return found
