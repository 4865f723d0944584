"""From what is known to what is served: view, plan, rollout, and this peer's part in them.

Ties the machines that follow plans together: when to plan again, how far each living plan is,
what failed, what has to end first.  Computes no plan and moves no tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from edgeshard_p2p.core.edges import CARRY_FACTOR
from edgeshard_p2p.core.effects import Effect, LoadUnits, Log
from edgeshard_p2p.core.events import LoadFailed, PlanComputed, UnitsLoaded
from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId, PlanId, unit_ranges
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.pass_sizes import PassSize, PassSizes, round_us
from edgeshard_p2p.core.plan import CHUNK_ROWS, DEFAULT_GOAL, Plan, Snapshot
from edgeshard_p2p.core.records import (
    DeviceRecord,
    Failure,
    FailuresRecord,
    HeldRecord,
    LinksRecord,
    ReadyPlan,
)
from edgeshard_p2p.core.replan import Replan
from edgeshard_p2p.core.request import Phase
from edgeshard_p2p.core.rollout import Life, Rollout
from edgeshard_p2p.core.schedule import Schedule, schedule_of
from edgeshard_p2p.core.serving import Serving
from edgeshard_p2p.core.standby import Standby
from edgeshard_p2p.core.timing import Timing
from edgeshard_p2p.core.view import model_of, view

Item = TypeVar("Item")


@dataclass(slots=True)
class Planning:
    membership: Membership
    gossip: Gossip
    timing: Timing
    tile_rows: int
    replan: Replan
    rollout: Rollout
    standby: Standby
    log_bytes: int
    serving: Serving = field(init=False)
    _sizes: PassSizes = field(default_factory=PassSizes)
    _seen: tuple[int, ...] = ()
    _failures: dict[Failure, float] = field(default_factory=dict)
    """This peer's own, and when each expires."""
    _draining: PlanId | None = None
    """The active plan, while it has to end for the next one."""
    _hopeless_at: float | None = None
    """When what waits for a plan is ended, if none is possible until then."""
    _park_at: float | None = None
    """When what still runs on it is parked; None: that is done, or need not be."""
    _loading: tuple[int, float] | None = None
    """The load under way, and when it is given up."""

    def __post_init__(self) -> None:
        me = self.membership.me.peer
        self.serving = Serving(
            me,
            self.membership,
            self.timing,
            self.is_loaded,
            self._row_us,
            lambda peer, n_bytes: self._carry_s(self.membership.me.peer, peer, n_bytes),
            self._travel_s,
            self._pass_rows,
            lambda: self.schedule() == "bubbles",
            self.log_bytes,
        )

    # --- questions ------------------------------------------------------------------------

    def is_loaded(self, plan_id: PlanId) -> bool:
        rolling = self.rollout.plans.get(plan_id)
        return rolling is not None and rolling.is_loaded

    def held_of(self, peer: PeerId) -> HeldRecord:
        held = self.gossip.of(peer, HeldRecord)
        return held if isinstance(held, HeldRecord) else HeldRecord()

    def _carry_s(self, a: PeerId, b: PeerId, n_bytes: int) -> float:
        record = self.gossip.of(a, LinksRecord)
        links = record.links if isinstance(record, LinksRecord) else ()
        return next((link.carry_s(n_bytes) for link in links if link.to == b.name), 0.0)

    def _travel_s(self, plan: Plan) -> float:
        model = model_of(self.gossip)
        n_bytes = CHUNK_ROWS * model.hidden_bytes(plan.workload.dtype) if model is not None else 0
        way = [self.membership.me.peer, *(stage.peer for stage in plan.stages)]
        return CARRY_FACTOR * sum(self._carry_s(a, b, n_bytes) for a, b in pairwise(way) if a != b)

    def _row_us(self, peer: PeerId) -> int:
        device = self.gossip.of(peer, DeviceRecord)
        figures = (device.prefill or device.decode) if isinstance(device, DeviceRecord) else ()
        return max(1, figures[-1].block_us // figures[-1].rows) if figures else 1

    def _snapshot(self) -> Snapshot | None:
        return self.replan.view.snapshot if self.replan.view is not None else None

    def objective(self) -> str:
        snapshot = self._snapshot()
        return (snapshot.goal if snapshot is not None else DEFAULT_GOAL).objective

    def schedule(self) -> Schedule:
        return schedule_of(self.gossip.setting("schedule"))

    def tokens_per_s(self, plan: Plan, n_requests: int) -> float | None:
        """What is expected of ``plan``; None where nobody knows what it costs."""
        size, snapshot = self.pass_size(plan, n_requests), self._snapshot()
        if size is None or snapshot is None:
            return None
        took_us = round_us(plan, size.rows, n_requests, snapshot, self.schedule())
        return n_requests * 1e6 / took_us

    def batch_wished(self) -> int | None:
        """Sequences that the swarm's settings wish for; a plan holds as many as fit."""
        snapshot = self._snapshot()
        return snapshot.workload.batch if snapshot is not None else None

    def pass_size(self, plan: Plan, n_requests: int) -> PassSize | None:
        return self._sizes.of(plan, n_requests, self._snapshot())

    def _pass_rows(self, plan: Plan, n_requests: int, n_chunks: int) -> int:
        return self._sizes.rows(plan, n_requests, n_chunks, self._snapshot())

    def dispatchable(self) -> Plan | None:
        """The plan on which requests may start: active, ready everywhere, not asked to end."""
        plan = self.rollout.active_plan()
        if plan is None or self.rollout.drains_for_target(self.held_of):
            return None
        others = [peer for peer in plan.peers() if peer != self.membership.me.peer]
        is_ready = all(self.held_of(peer).begun(plan.id) is not None for peer in others)
        return plan if is_ready and self._edges_open(plan.id) else None

    def held(self) -> HeldRecord:
        """Where this peer stands, for the others."""
        plan = self.dispatchable()
        ready = [
            ReadyPlan(plan_id, rolling.begun)
            for plan_id, rolling in sorted(self.rollout.plans.items())
            if rolling.life in (Life.READY, Life.ACTIVE, Life.DRAINING)
            and self._edges_open(plan_id)
        ]
        return HeldRecord(
            unit_ranges(self.rollout.units()),
            self.rollout.target,
            tuple(ready),
            plan.id if plan is not None else None,
            self.serving.source.running_plans(),
            self.rollout.must_drain(self.held_of),
            self.serving.source.oldest_live,
        )

    def why_no_plan(self) -> str:
        return self.replan.waiting_for()

    def why_waiting(self) -> str:
        """What a request waits for that has no plan to start on."""
        return self.why_no_plan() or "the plan is being loaded"

    def is_hopeless(self) -> bool:
        """Nothing serves, and the present swarm is known to be unable to."""
        return self.rollout.active is None and self.replan.is_infeasible()

    def next_deadlines(self) -> list[float | None]:
        times = [self.replan.next_deadline(), self.serving.next_deadline()]
        times += self._failures.values()
        if self._loading is not None:
            times.append(self._loading[1])
        return [*times, self._park_at, self._hopeless_at]

    def _edges_open(self, plan_id: PlanId) -> bool:
        flow = self.serving.flows.get(plan_id)
        return flow is not None and flow.all_open()

    # --- events ---------------------------------------------------------------------------

    def on_choice(self, event: PlanComputed, now: float) -> list[Effect]:
        self.standby.on_choice(event.choice)
        if not self.replan.on_choice(event.choice):
            return []
        model = model_of(self.gossip)
        if event.choice.plan is None or model is None:
            self.rollout.propose_none()
            return [Log(f"no plan: {event.choice.reason}", "warning")]
        if event.choice.plan.id == self.rollout.target:
            return []
        self.rollout.propose(event.choice.plan, model)
        ms = event.choice.latency_us / 1e3
        note = f" ({event.choice.reason})" if event.choice.reason else ""
        return [Log(f"plan {event.choice.plan} PROPOSED, {ms:.1f} ms/token predicted{note}")]

    def _follow_hopeless(self, now: float) -> list[Effect]:
        """What waits for a plan ends when there has been none to be had for a while: who is held
        dead by mistake, as after a partition, is back sooner."""
        waits = any(r.phase is Phase.WAITING for r in self.serving.source.requests.values())
        if not waits or self.rollout.active is not None or not self.replan.found_none():
            self._hopeless_at = None
            return []
        if self._hopeless_at is None:
            self._hopeless_at = now + self.timing.hopeless_s
        if now < self._hopeless_at:
            return []
        text = f"the swarm cannot serve: {self.why_no_plan()}"
        return self.serving.run(self.serving.source.end_waiting(text, now), now)

    def on_loaded(self, event: UnitsLoaded, _: float) -> list[Effect]:
        if not self.rollout.on_loaded(event.load):
            return []
        self._loading = None
        held = _in_words(self.rollout.units())
        standby = _in_words(self.rollout.standby_units())
        told = [f"units {held} are loaded"] if held else []
        told += [f"units {standby} are on standby"] if standby else []
        return [Log("; ".join(told) or "no units are held any more")]

    def on_load_failed(self, event: LoadFailed, now: float) -> list[Effect]:
        if not self.rollout.on_load_failed(event.load):
            return []
        self._loading = None
        if self.rollout.is_loaded():
            self.standby.on_load_failed()
            self.rollout.hold(self.rollout.standby_units())
            return [Log(f"nothing more is held on standby: {event.detail}", "warning")]
        me = self.membership.me.peer
        self._fail(Failure("cannot_load", me, None, event.detail[:300]), now)
        return [Log(f"loading failed: {event.detail}", "error")]

    def _fail(self, failure: Failure, now: float) -> None:
        self._failures[failure] = now + self.timing.failure_expiry_s

    # --- after every event ----------------------------------------------------------------

    def settle(self, now: float) -> list[Effect]:
        """Bring view, plans and this peer's records of them up to date."""
        effects = self._follow_loading(now)
        effects += self._follow_failures(now)
        self._refresh_view(now)
        effects += self.replan.tick(now)
        effects += self._follow_standby()
        effects += self._follow_plans(now)
        effects += self._follow_drain(now)
        effects += self._follow_hopeless(now)
        self.membership.circle = self._circle()
        effects += self._follow_restarts(now)
        effects += self._dispatch(now)
        return effects + self.gossip.publish(self.held(), self.membership)

    def _circle(self) -> tuple[str, ...]:
        """Everybody with a part in a plan that lives here: the loss of one concerns all."""
        plans = [rolling.plan for rolling in self.rollout.plans.values()]
        return tuple(sorted({peer.name for plan in plans for peer in plan.peers()}))

    def _follow_loading(self, now: float) -> list[Effect]:
        """A load that takes too long is one that failed: the swarm goes round this peer until the
        failure expires."""
        if self._loading is None or now < self._loading[1]:
            return []
        load, _ = self._loading
        return self.on_load_failed(LoadFailed(load, "loading took too long"), now)

    def _follow_failures(self, now: float) -> list[Effect]:
        failed_edges, self.serving.failed_edges = self.serving.failed_edges, []
        for spec in failed_edges:
            self._fail(Failure("no_edge", spec.sender, spec.receiver), now)
        expired = [failure for failure, ends_at in self._failures.items() if ends_at <= now]
        for failure in expired:
            del self._failures[failure]
        if expired:
            self.rollout.forgive_failures()
        failures = FailuresRecord(tuple(sorted(self._failures)))
        return self.gossip.publish(failures, self.membership)

    def _refresh_view(self, now: float) -> None:
        present = [member.peer.generation for member in self.membership.present()]
        seen = (self.gossip.revision, len(present), *present)
        if seen != self._seen:
            self._seen = seen
            self.replan.on_view(view(self.membership, self.gossip, self.tile_rows), now)

    def _follow_plans(self, now: float) -> list[Effect]:
        """Move the living plans, and the data plane with them."""
        effects = self._propose_again()
        steps = self.rollout.reconcile(self.held_of, self.membership.is_present, self._edges_open)
        for plan_id in _take(self.rollout.started):
            if plan_id in self.rollout.plans:
                rolling = self.rollout.plans[plan_id]
                self.serving.start_plan(rolling.plan, rolling.model)
        for plan_id, why in _take(self.rollout.retired):
            if plan_id in self.serving.flows:
                effects += self.serving.end_plan(plan_id, why, now)
        for plan_id, rolling in self.rollout.plans.items():
            if rolling.life is not Life.PROPOSED:
                effects += self.serving.flows[plan_id].open_edges(now)
        loads = [step for step in steps if isinstance(step, LoadUnits)]
        logs = [step for step in steps if not isinstance(step, LoadUnits)]
        for load in loads:
            reading_s = self.rollout.load_bytes() / self.timing.load_bytes_per_s
            self._loading = (load.load, now + self.timing.load_deadline_s + reading_s)
            effects += self.serving.on_load(load)
        # What is retired is freed before what is new is loaded.
        return [*logs, *effects, *loads]

    def _follow_standby(self) -> list[Effect]:
        """In idle time: what serves is what is planned now, stands here, and nothing runs."""
        plan, choice = self.rollout.active_plan(), self.replan.current_choice()
        view, is_busy = self.replan.view, self._loading is not None or not self.serving.is_idle()
        if plan is None or choice is None or view is None or view.snapshot is None or is_busy:
            return []
        if choice.plan is None or choice.plan.id != plan.id or not self.rollout.is_loaded():
            return []
        effects = self.standby.follow(view.snapshot, plan)
        if (units := self.standby.units()) is not None:
            self.rollout.hold(units)
        return effects

    def _propose_again(self) -> list[Effect]:
        """A plan that was retired with a peer of it is proposed again when the swarm is as it
        was: a death refuted, a partition healed."""
        choice, model = self.replan.current_choice(), model_of(self.gossip)
        if self.rollout.target is not None or choice is None or model is None:
            return []
        if choice.plan is None:
            return []
        self.rollout.propose(choice.plan, model)
        return [Log(f"plan {choice.plan} PROPOSED again")]

    def _dispatch(self, now: float) -> list[Effect]:
        plan = self.dispatchable()
        if plan is None or self.membership.me.peer not in plan.sources:
            return []
        return self.serving.run(self.serving.source.start(plan, self._begun(plan), now), now)

    def _begun(self, plan: Plan) -> dict[PeerId, int]:
        """Which beginning of ``plan`` is ready, for each peer that says so."""
        begun = {peer: self.held_of(peer).begun(plan.id) for peer in plan.peers()}
        return {peer: number for peer, number in begun.items() if number is not None}

    def _follow_restarts(self, now: float) -> list[Effect]:
        """Park what ran on a plan that some peer has begun anew meanwhile: its KV is gone."""
        effects: list[Effect] = []
        for plan_id in self.serving.source.running_plans():
            if plan_id in self.rollout.plans:
                begun = self._begun(self.rollout.plans[plan_id].plan)
                steps = self.serving.source.park_restarted(plan_id, begun, now)
                effects += self.serving.run(steps, now)
        return effects

    def _follow_drain(self, now: float) -> list[Effect]:
        """The active plan has to end for the next: after a while, park what still runs."""
        active = self.rollout.active
        if active is None or not self.rollout.drains_for_target(self.held_of):
            self._draining = self._park_at = None
            return []
        if self._draining != active:
            self._draining, self._park_at = active, now + self.timing.drain_deadline_s
        if self._park_at is None or now < self._park_at:
            return []
        self._park_at = None
        steps = self.serving.source.park_plan(
            active, "the next plan needs the memory", now, keeps=False
        )
        return self.serving.run(steps, now)


def _in_words(units: Iterable[int]) -> str:
    return ", ".join(str(found) for found in unit_ranges(units))


def _take(items: list[Item]) -> list[Item]:
    taken = list(items)
    items.clear()
    return taken
