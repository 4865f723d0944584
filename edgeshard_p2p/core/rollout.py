"""The life of plans on this peer, without anybody in charge.

    proposed -> loading -> ready -> active -> draining -> retired

Each peer moves its own part and reads the others' held records:
  loading   every peer of the plan has announced the same plan id;
  ready     its weights, KV and edges stand here;
  active    every peer of the plan says ready; sources start requests on it;
  draining  another plan is active; what runs may end (a plan chosen again is active again);
  retired   no source starts or runs requests on it; its units go.
A plan with a dead peer is retired at once.  Where old and new do not fit into memory together the
old one has to end first: the peer says so in its record, and the sources let go.

Everything is recomputed from the records after each event, so it does not matter in which order
they come.  Knows nothing of how units are loaded or frames are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from edgeshard_p2p.core.effects import KvPromise, LoadUnits, Log
from edgeshard_p2p.core.ids import PeerId, PlanId, unit_ranges
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import Plan, kv_bytes, weight_bytes
from edgeshard_p2p.core.records import HeldRecord

HeldOf = Callable[[PeerId], HeldRecord]


class Life(Enum):
    PROPOSED = "proposed"
    LOADING = "loading"
    READY = "ready"
    ACTIVE = "active"
    DRAINING = "draining"


@dataclass(slots=True)
class Rolling:
    """One living plan."""

    plan: Plan
    model: ModelSpec
    begun: int
    """Numbers the beginnings of plans on this peer."""
    life: Life = Life.PROPOSED
    is_asked: bool = False
    """The last LoadUnits asked for this peer's part."""
    is_loaded: bool = False
    """Weights and KV of this peer's part stand."""


@dataclass(slots=True)
class Rollout:
    me: PeerId
    budget_bytes: int
    plans: dict[PlanId, Rolling] = field(default_factory=dict)
    target: PlanId | None = None
    """The plan computed last: where the swarm is going."""
    active: PlanId | None = None
    """The plan that serves."""
    started: list[PlanId] = field(default_factory=list)
    retired: list[tuple[PlanId, str]] = field(default_factory=list)
    """Plans that began, or ended and why, since the caller last looked; it empties both."""
    _begun: int = 0
    _held: tuple[int, ...] = ()
    _wanted: tuple[int, ...] = ()
    """What the last LoadUnits asked for; held once it is done."""
    _is_hopeless: bool = False
    """The swarm has no plan: nothing is kept for the next one."""
    _loads: int = 0
    _must_load: bool = False
    """There may be something to drop, since a plan whose part was asked for is retired, or
    something more to hold."""
    _standby: tuple[int, ...] = ()
    """Units to hold beside those of plans, as far as they fit, the first ones first."""
    _held_beside: frozenset[int] = frozenset()
    """Of what is held, what was loaded for no plan."""
    _wanted_beside: frozenset[int] = frozenset()
    _way: tuple[str, str, int] | None = None
    """Of the last LoadUnits."""
    _cannot_load: set[PlanId] = field(default_factory=set)

    # --- questions ------------------------------------------------------------------------

    def active_plan(self) -> Plan | None:
        return self.plans[self.active].plan if self.active is not None else None

    def units(self) -> tuple[int, ...]:
        """Units that stand here, for whatever plan they were loaded.  Not those on standby: plans
        stay where they are by what it costs to move them, and so do not follow these."""
        return tuple(unit for unit in self._held if unit not in self._held_beside)

    def standby_units(self) -> tuple[int, ...]:
        return tuple(unit for unit in self._held if unit in self._held_beside)

    def must_drain(self, held_of: HeldOf) -> tuple[PlanId, ...]:
        """Plans that have to end here before the target, agreed on by all, fits."""
        if self.target is None or self.plans[self.target].is_asked:
            return ()
        if not self._is_agreed(self.target, held_of):
            return ()
        living = [plan for plan in self.plans if plan != self.target]
        return () if self._fits({self.target, *living}) else tuple(sorted(living))

    def drains_for_target(self, held_of: HeldOf) -> bool:
        """Whether some peer of the target waits for the active plan to end."""
        if self.target is None or self.active is None or self.target == self.active:
            return False
        peers = self.plans[self.target].plan.peers()
        return any(self.active in held_of(peer).must_drain for peer in peers)

    # --- events ---------------------------------------------------------------------------

    def propose(self, plan: Plan, model: ModelSpec) -> None:
        """``plan`` was computed here from the latest snapshot."""
        if plan.id not in self.plans:
            self._begun += 1
            self.plans[plan.id] = Rolling(plan, model, self._begun)
            self.started.append(plan.id)
        self.target, self._is_hopeless = plan.id, False

    def propose_none(self) -> None:
        self.target, self._is_hopeless = None, True

    def on_loaded(self, load: int) -> bool:
        """True when what is loaded is what was asked for last."""
        if load != self._loads:
            return False
        self._held, self._held_beside = self._wanted, self._wanted_beside
        for rolling in self.plans.values():
            rolling.is_loaded |= rolling.is_asked
        return True

    def load_bytes(self) -> int:
        """Weights of all that the last LoadUnits asked for."""
        loading = self._loading()
        return _weight_bytes(loading[0], self._wanted) if loading else 0

    def on_load_failed(self, load: int) -> bool:
        """True when the failure is that of the latest load."""
        if load != self._loads:
            return False
        failed = {p for p, r in self.plans.items() if r.is_asked and not r.is_loaded}
        self._cannot_load |= failed
        return True

    def is_loaded(self) -> bool:
        """Whether plans need something here, or might, and all of that was loaded."""
        asked = [rolling for rolling in self.plans.values() if rolling.is_asked]
        return bool(asked) and all(rolling.is_loaded for rolling in asked)

    def hold(self, units: tuple[int, ...]) -> None:
        """Beside the units of plans those of ``units`` that are here, and one more; in this order,
        as far as they fit."""
        loading = self._loading()
        missing = next((u for u in self._fitting(loading, units) if u not in self._held), None)
        here = tuple(unit for unit in units if unit in self._held or unit == missing)
        self._standby = self._fitting(loading, here)
        self._must_load |= {*_units_of(loading, self.me), *self._standby} != {*self._held}

    def forgive_failures(self) -> None:
        """Plans that could not be loaded may be tried again."""
        self._cannot_load.clear()

    # --- reconciling ----------------------------------------------------------------------

    def reconcile(
        self,
        held_of: HeldOf,
        is_present: Callable[[PeerId], bool],
        edges_open: Callable[[PlanId], bool],
    ) -> list[Log | LoadUnits]:
        """Move every plan as far as the records allow."""
        effects: list[Log | LoadUnits] = []
        for plan_id in list(self.plans):
            plan = self.plans[plan_id].plan
            gone = [peer for peer in plan.peers() if not is_present(peer)]
            if gone:
                effects += self._retire(plan_id, _lost(plan, gone))
        self._supersede(effects)
        self._retire_drained(held_of, effects)
        effects += self._load(held_of)
        for rolling in self.plans.values():
            self._advance(rolling, held_of, edges_open, effects)
        return effects

    def _supersede(self, effects: list[Log | LoadUnits]) -> None:
        """A newer proposal takes the place of one that nothing runs on yet."""
        for plan_id, rolling in list(self.plans.items()):
            is_young = rolling.life in (Life.PROPOSED, Life.LOADING, Life.READY)
            if plan_id != self.target and is_young:
                effects += self._retire(plan_id, "a newer plan took its place")

    def _retire_drained(self, held_of: HeldOf, effects: list[Log | LoadUnits]) -> None:
        for plan_id, rolling in list(self.plans.items()):
            is_leaving = rolling.life is Life.DRAINING or plan_id in self.must_drain(held_of)
            if plan_id == self.target or not is_leaving:
                continue
            held = [held_of(source) for source in rolling.plan.sources]
            if not any(plan_id == h.active or plan_id in h.running for h in held):
                effects += self._retire(plan_id, "drained")

    def _load(self, held_of: HeldOf) -> list[Log | LoadUnits]:
        """Ask for the parts of all plans that should stand here, when that has changed."""
        wanted = {p for p, rolling in self.plans.items() if rolling.life is not Life.PROPOSED}
        if self.target is not None and self._is_agreed(self.target, held_of):
            with_target = {*wanted, self.target}
            if self._fits(with_target):
                wanted = with_target
        wanted -= self._cannot_load
        asked = {plan_id for plan_id, rolling in self.plans.items() if rolling.is_asked}
        if wanted == asked and not self._must_load:
            return []
        if not wanted and not self._is_hopeless and not self._cannot_load:
            return []  # What stands here may be part of the plan that comes next.
        if wanted != asked:
            # Nothing that a plan waits for may wait for what only might be needed.
            self._standby = tuple(unit for unit in self._standby if unit in self._held)
        for plan_id, rolling in self.plans.items():
            rolling.is_asked = plan_id in wanted
        loading = self._loading()
        way = _way_of(loading[0].plan) if loading else None
        if way != self._way:  # What is held of another model, or in another dtype, has to go.
            self._way, self._standby = way, ()
        self._must_load = False
        self._loads += 1
        return [self._load_units()]

    def _is_agreed(self, plan_id: PlanId, held_of: HeldOf) -> bool:
        peers = self.plans[plan_id].plan.peers()
        return all(held_of(peer).computed == plan_id for peer in peers if peer != self.me)

    def _fits(self, plan_ids: set[PlanId]) -> bool:
        """Whether this peer's parts of these plans fit its budget together.  A part alone fits
        by the planner's word."""
        with_part = {p for p in plan_ids if self.plans[p].plan.units_of(self.me)}
        if len(with_part) <= 1:
            return True
        # One engine computes in one way for one model: another way has to wait for its end.
        ways = {_way_of(self.plans[plan_id].plan) for plan_id in with_part}
        return len(ways) == 1 and self._bytes(with_part) <= self.budget_bytes

    def _bytes(self, plan_ids: set[PlanId]) -> int:
        rolling = [self.plans[plan_id] for plan_id in sorted(plan_ids)]
        return _weight_bytes(rolling[0], _units_of(rolling, self.me)) + self._kv_bytes(rolling)

    def _kv_bytes(self, rolling: list[Rolling]) -> int:
        model, workload = rolling[0].model, rolling[0].plan.workload
        kv = 0
        for promise in _promises(rolling, self.me):
            of_promise = msgspec.structs.replace(workload, context=promise.context)
            for units_range in unit_ranges(promise.units):
                kv += kv_bytes(model, units_range, of_promise, promise.slots)
        return kv

    def _loading(self) -> list[Rolling]:
        """Plans whose parts stand here or are asked for; where none of them has a part here, those
        that something may be held on standby for."""
        asked = [self.plans[plan_id] for plan_id in sorted(self.plans)]
        asked = [rolling for rolling in asked if rolling.is_asked]
        with_part = [rolling for rolling in asked if rolling.plan.units_of(self.me)]
        is_one_way = len({_way_of(rolling.plan) for rolling in asked}) == 1
        return with_part or (asked if is_one_way else [])

    def _fitting(self, loading: list[Rolling], units: tuple[int, ...]) -> tuple[int, ...]:
        """Of these units, in this order, what no plan has here and fits beside what plans have."""
        if not loading:
            return ()
        of_plans, found = _units_of(loading, self.me), list[int]()
        room = self.budget_bytes - self._kv_bytes(loading) - _weight_bytes(loading[0], of_plans)
        for unit in units:
            if unit in of_plans or unit >= loading[0].plan.n_units:
                continue
            # NOTE: a head that is tied to an embedding counts in full here.
            n_bytes = _weight_bytes(loading[0], {unit})
            if n_bytes <= room:
                room -= n_bytes
                found.append(unit)
        return tuple(found)

    def _load_units(self) -> LoadUnits:
        loading = self._loading()
        self._wanted_beside = frozenset(self._fitting(loading, self._standby))
        units = _units_of(loading, self.me) | self._wanted_beside
        self._wanted = tuple(sorted(units))
        if not units:
            return LoadUnits(self._loads, "", "", 0, (), ())
        model, dtype, tile_rows = _way_of(loading[0].plan)
        kv = _promises(loading, self.me)
        return LoadUnits(self._loads, model, dtype, tile_rows, unit_ranges(units), kv)

    def _advance(
        self,
        rolling: Rolling,
        held_of: HeldOf,
        edges_open: Callable[[PlanId], bool],
        effects: list[Log | LoadUnits],
    ) -> None:
        plan_id = rolling.plan.id
        if rolling.life is Life.PROPOSED and rolling.is_asked:
            self._enter(rolling, Life.LOADING, effects)
        if rolling.life is Life.LOADING and rolling.is_loaded and edges_open(plan_id):
            self._enter(rolling, Life.READY, effects)
        if rolling.life is Life.READY and not edges_open(plan_id):
            self._enter(rolling, Life.LOADING, effects)
        if plan_id != self.target or rolling.life not in (Life.READY, Life.DRAINING):
            return
        others = [peer for peer in rolling.plan.peers() if peer != self.me]
        if all(held_of(peer).begun(plan_id) is not None for peer in others):
            self._activate(rolling, effects)

    def _activate(self, rolling: Rolling, effects: list[Log | LoadUnits]) -> None:
        if self.active is not None and self.active != rolling.plan.id:
            self._enter(self.plans[self.active], Life.DRAINING, effects)
        self.active = rolling.plan.id
        self._enter(rolling, Life.ACTIVE, effects)

    def _enter(self, rolling: Rolling, life: Life, effects: list[Log | LoadUnits]) -> None:
        effects.append(Log(f"plan {rolling.plan} {rolling.life.name} -> {life.name}"))
        rolling.life = life

    def _retire(self, plan_id: PlanId, why: str) -> list[Log | LoadUnits]:
        rolling = self.plans.pop(plan_id)
        self.retired.append((plan_id, why))
        self._must_load |= rolling.is_asked
        if self.active == plan_id:
            self.active = None
        if self.target == plan_id:
            self.target = None
        return [Log(f"plan {rolling.plan} {rolling.life.name} -> RETIRED: {why}")]


def _lost(plan: Plan, gone: list[PeerId]) -> str:
    """``stage 2 of 3: dev-b lost``"""
    names = " and ".join(peer.name for peer in gone)
    numbers = [str(n) for n, stage in enumerate(plan.stages, start=1) if stage.peer in gone]
    if not numbers:
        return f"source {names} lost"
    stages = "stage" if len(numbers) == 1 else "stages"
    return f"{stages} {' and '.join(numbers)} of {len(plan.stages)}: {names} lost"


def _way_of(plan: Plan) -> tuple[str, str, int]:
    """Model, dtype and tile rows: what an engine is made for."""
    return plan.model_digest, plan.workload.dtype, plan.workload.tile_rows


def _weight_bytes(rolling: Rolling, units: Collection[int]) -> int:
    """Of any units, in the model and the dtype of this plan."""
    model, dtype = rolling.model, rolling.plan.workload.dtype
    return sum(weight_bytes(model, r, dtype, 0 in units) for r in unit_ranges(units))


def _units_of(plans: list[Rolling], me: PeerId) -> set[int]:
    """What ``me`` holds for all of these plans together."""
    return {unit for r in plans for units in r.plan.units_of(me) for unit in units}


def _promises(plans: list[Rolling], me: PeerId) -> tuple[KvPromise, ...]:
    """The KV that ``me`` reserves for all of these plans together: their slots add up, because
    each plan's admission counts only its own."""
    by_role: dict[str, KvPromise] = {}
    for rolling in plans:
        plan, workload = rolling.plan, rolling.plan.workload
        parts = [("entry", plan.entry)] if me in plan.sources else []
        parts += [("stage", stage.units) for stage in plan.stages if stage.peer == me]
        for role, units in parts:
            known = by_role.get(role, KvPromise(role, (), 0, 0))
            by_role[role] = KvPromise(
                role,
                tuple(sorted({*known.units, *units})),
                known.slots + workload.batch,
                max(known.context, workload.context),
            )
    return tuple(by_role[role] for role in sorted(by_role))
