"""The whole of a peer's mind: every event goes in, every decision comes out.

    handle(event, now) -> effects        next_deadline() -> when to say DeadlineReached

PeerCore routes events to machines that do not know each other, and after each event brings the
swarm's view, the plan and this peer's own records up to date.  It computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core import messages as msg
from edgeshard_p2p.core.effects import (
    Accepted,
    Effect,
    LoadUnits,
    Log,
    Rejected,
    SaveLinks,
    Send,
    Stop,
)
from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId, PlanId, unit_ranges
from edgeshard_p2p.core.join import Join
from edgeshard_p2p.core.links import LinkProber
from edgeshard_p2p.core.local import LocalDevice
from edgeshard_p2p.core.membership import Membership, MemberState
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.records import (
    DeviceRecord,
    Failure,
    FailuresRecord,
    HeldRecord,
    LinkFigures,
    LinksRecord,
)
from edgeshard_p2p.core.replan import Replan
from edgeshard_p2p.core.rollout import Life, Rollout
from edgeshard_p2p.core.serving import Serving
from edgeshard_p2p.core.settings import EXPLICIT_CONFLICTS, SettingValue, describe
from edgeshard_p2p.core.source import REQUESTS_MAX
from edgeshard_p2p.core.timing import Timing
from edgeshard_p2p.core.view import model_of, view, workload_of


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What the operator decided, and what this peer remembers from earlier lives."""

    me: msg.Identity
    is_source: bool
    budget_bytes: int
    tile_rows: int
    """Rows of a padded tile where the swarm computes ``exact``."""
    join: tuple[msg.Address, ...] = ()
    wishes: dict[str, SettingValue] = field(default_factory=dict)
    """Settings named on the command line; they seed what the swarm has not set."""
    min_members: int = 1
    known_links: tuple[LinkFigures, ...] = ()
    timing: Timing = field(default_factory=Timing)


class PeerCore:
    def __init__(self, config: CoreConfig, rng: Random) -> None:
        me, timing = config.me, config.timing
        self.config = config
        self.me: PeerId = me.peer
        self.timing = timing
        self.membership = Membership(me, timing, rng)
        self.join = Join(timing)
        self.gossip = Gossip(me.peer, rng, timing.gossip_period_s)
        self.links = LinkProber(timing, {link.to: link for link in config.known_links})
        self.local = LocalDevice(config.is_source, config.budget_bytes)
        self.replan = Replan(timing, config.min_members)
        self.rollout = Rollout(me.peer, config.budget_bytes)
        self.serving = Serving(me.peer, self.membership, timing, self._is_loaded)
        self.is_stopping = False
        self._started_at = 0.0
        self._seeded = False
        self._seen: tuple[int, ...] = ()
        self._failures: dict[Failure, float] = {}
        self._drain_since: tuple[PlanId, float] | None = None
        self._handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            ev.Started: self._on_started,
            ev.DeadlineReached: lambda _, now: self._tick(now),
            ev.PeerDiscovered: self._on_discovered,
            ev.ContactFailed: self._on_contact_failed,
            ev.MessageReceived: self._on_message,
            ev.FrameReceived: self._on_frame,
            ev.ModelOpened: lambda event, _: self.local.on_opened(event),
            ev.DeviceMeasured: self._on_measured,
            ev.MeasureFailed: lambda event, _: self.local.on_measure_failed(event.detail),
            ev.PlanComputed: self._on_choice,
            ev.UnitsLoaded: self._on_loaded,
            ev.LoadFailed: self._on_load_failed,
            ev.ForwardDone: self.serving.on_done,
            ev.ForwardFailed: self.serving.on_failed,
            ev.PromptSubmitted: self._on_prompt,
            ev.RequestCancelled: self._on_cancelled,
            ev.SettingAsked: lambda event, _: self._set(event.key, event.value),
            ev.StopAsked: self._on_stop,
        }
        self._message_handlers: dict[type, Callable[[PeerId, Any, float], list[Effect]]] = {
            msg.Hello: self._on_hello,
            msg.Welcome: self._on_welcome,
            msg.Refused: lambda sender, m, _: self.join.on_refused(sender, m),
            msg.Ping: self.membership.on_ping,
            msg.Ack: self.membership.on_ack,
            msg.PingReq: self.membership.on_ping_req,
            msg.News: lambda _, m, now: self.membership.on_news(m, now),
            msg.Digest: lambda sender, m, _: self.gossip.on_digest(sender, m, self.membership),
            msg.Delta: self._on_delta,
            msg.LinkEcho: self._on_echo,
            msg.EdgeAnswer: lambda _, m, now: self.serving.on_answer(m, now),
            msg.FrameAck: lambda _, m, now: self.serving.on_ack(m, now),
            msg.FrameRefused: lambda _, m, now: self.serving.on_refused(m, now),
            msg.AttemptRefused: self.serving.on_attempt_refused,
            msg.SlotAsk: self.serving.on_slot_ask,
            msg.SlotAnswer: lambda _, m, now: self.serving.on_slot_answer(m, now),
            msg.SlotReturn: lambda _, m, now: self.serving.on_slot_return(m, now),
        }

    # --- the two entries ------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[Effect]:
        """Total: late, doubled, unknown and impossible input is normal input."""
        effects = self._handlers[type(event)](event, now)
        return effects + self._settle(now)

    def next_deadline(self) -> float | None:
        times = [
            self.membership.next_deadline(),
            self.join.next_deadline(),
            self.gossip.next_deadline(),
            self.links.next_deadline(),
            self.replan.next_deadline(),
            self.serving.next_deadline(),
            *self._own_deadlines(),
        ]
        return min((time for time in times if time is not None), default=None)

    def _own_deadlines(self) -> list[float]:
        times = list(self._failures.values())
        if not self._seeded:
            times.append(self._started_at + self.timing.seed_delay_s)
        if not self._is_quiet_at(self._seen_at):
            times.append(self._quiet_from())
        if self._drain_since is not None:
            times.append(self._drain_since[1] + self.timing.drain_deadline_s)
        return times

    _seen_at: float = 0.0

    def _tick(self, now: float) -> list[Effect]:
        effects = self.membership.tick(now)
        effects += self.join.tick(self.membership, now)
        effects += self.gossip.tick(self.membership, now)
        effects += self.links.tick(self.membership.members, now)
        effects += self.serving.tick(now, self.replan.waiting_for())
        if not self._seeded and now >= self._started_at + self.timing.seed_delay_s:
            effects += self._seed()
        return effects

    # --- coming in ------------------------------------------------------------------------

    def _on_started(self, _: ev.Started, now: float) -> list[Effect]:
        self._started_at = now
        for address in self.config.join:
            self.join.add(address, now, is_join=True)
        return self._tick(now)

    def _on_discovered(self, event: ev.PeerDiscovered, now: float) -> list[Effect]:
        self.join.add(event.address, now)
        return []

    def _on_contact_failed(self, event: ev.ContactFailed, _: float) -> list[Effect]:
        text = f"{event.address} does not take this peer: {event.reason}"
        is_first = not self.join.has_met and event.address in self.config.join
        return [Stop(2, text)] if is_first else [Log(text, "warning")]

    def _on_message(self, event: ev.MessageReceived, now: float) -> list[Effect]:
        if event.sender == self.me:
            return []
        effects = self._message_handlers[type(event.message)](event.sender, event.message, now)
        return effects + self.membership.verdict_on(event.sender)

    def _on_hello(self, _: PeerId, hello: msg.Hello, now: float) -> list[Effect]:
        return self.join.on_hello(hello, self.gossip.all_settings(), self.membership, now)

    def _on_welcome(self, sender: PeerId, welcome: msg.Welcome, now: float) -> list[Effect]:
        if not self.join.has_met:
            for setting in welcome.settings:
                conflict = self._conflict(setting, sender)
                if conflict:
                    return [Stop(2, conflict)]
        for setting in welcome.settings:
            self.gossip.take_setting(setting)
        effects = self.join.on_welcome(welcome, self.membership, now)
        return effects + self._seed()

    def _conflict(self, setting: msg.Setting, sender: PeerId) -> str:
        wish = self.config.wishes.get(setting.key)
        if setting.key not in EXPLICIT_CONFLICTS or wish is None or wish == setting.value:
            return ""
        if _digest_of(wish) == _digest_of(setting.value):
            return ""
        mine = self.gossip.settings.get(setting.key)
        if mine is not None and (mine.counter, mine.by) > (setting.counter, setting.by):
            return ""  # The other side yields: its seed is the one that loses.
        return (
            f"the swarm at {sender} runs {setting.key} {describe(setting.value)}, this peer was "
            f"given {describe(wish)}; leave --{setting.key} out to take the swarm's"
        )

    def _seed(self) -> list[Effect]:
        """Set what nobody has set, from this peer's own flags; once."""
        if self._seeded:
            return []
        self._seeded = True
        unset = [key for key in sorted(self.config.wishes) if key not in self.gossip.settings]
        return [e for key in unset for e in self._set(key, self.config.wishes[key])]

    def _set(self, key: str, value: SettingValue) -> list[Effect]:
        text = f"setting {key} = {describe(value)}"
        return [Log(text), *self.gossip.set(key, value, self.membership)]

    def _on_delta(self, _: PeerId, delta: msg.Delta, now: float) -> list[Effect]:
        self.gossip.on_delta(delta, self.membership)
        effects: list[Effect] = []
        for record in delta.records:
            if isinstance(record.value, HeldRecord):
                below = record.value.oldest_live
                effects += self.serving.free_below(record.owner, below, now)
        return effects

    # --- measuring ------------------------------------------------------------------------

    def _on_echo(self, _: PeerId, echo: msg.LinkEcho, now: float) -> list[Effect]:
        before = self.links.figures()
        self.links.on_echo(echo.nonce, now)
        effects = self.links.tick(self.membership.members, now)
        if self.links.figures() != before:
            effects.append(SaveLinks(self.links.figures()))
        return effects

    def _on_frame(self, event: ev.FrameReceived, now: float) -> list[Effect]:
        if isinstance(event.body, msg.ProbeBody):
            return [Send(event.body.reply_to, msg.LinkEcho(event.body.nonce))]
        return self.serving.on_frame(event, now)

    def _on_measured(self, event: ev.DeviceMeasured, _: float) -> list[Effect]:
        self.local.on_measured(event)
        one = event.decode[0]
        return [Log(f"measured: a block takes {one.block_us / 1e3:.2f} ms per token here")]

    # --- plans ----------------------------------------------------------------------------

    def _is_loaded(self, plan_id: PlanId) -> bool:
        rolling = self.rollout.plans.get(plan_id)
        return rolling is not None and rolling.is_loaded

    def _on_choice(self, event: ev.PlanComputed, now: float) -> list[Effect]:
        if not self.replan.on_choice(event.choice):
            return []
        model = model_of(self.gossip)
        if event.choice.plan is None or model is None:
            self.rollout.propose_none()
            return [Log(f"no plan: {event.choice.reason}", "warning"), *self._end_hopeless(now)]
        if event.choice.plan.id == self.rollout.target:
            return []
        self.rollout.propose(event.choice.plan, model)
        ms = event.choice.latency_us / 1e3
        return [Log(f"plan {event.choice.plan} PROPOSED, {ms:.1f} ms/token predicted")]

    def _end_hopeless(self, now: float) -> list[Effect]:
        if self.rollout.active is not None:
            return []
        text = f"the swarm cannot serve: {self.replan.waiting_for()}"
        return self.serving.run(self.serving.source.end_waiting(text, now), now)

    def _on_loaded(self, event: ev.UnitsLoaded, _: float) -> list[Effect]:
        self.rollout.on_loaded(event.load)
        held = unit_ranges(self.rollout.units())
        return [Log(f"loaded units {', '.join(map(str, held)) or 'none'}")]

    def _on_load_failed(self, event: ev.LoadFailed, now: float) -> list[Effect]:
        if not self.rollout.on_load_failed(event.load):
            return []
        self._fail(Failure("cannot_load", self.me, None, event.detail[:300]), now)
        return [Log(f"loading failed: {event.detail}", "error")]

    def _fail(self, failure: Failure, now: float) -> None:
        self._failures[failure] = now + self.timing.failure_expiry_s

    def held_of(self, peer: PeerId) -> HeldRecord:
        held = self.gossip.of(peer, HeldRecord)
        return held if isinstance(held, HeldRecord) else HeldRecord()

    # --- requests -------------------------------------------------------------------------

    def _on_prompt(self, event: ev.PromptSubmitted, now: float) -> list[Effect]:
        refusal = self._reason_against_prompt(event)
        if refusal:
            return [Rejected(event.client, refusal)]
        if len(self.serving.source.requests) >= REQUESTS_MAX:
            text = f"{self.me} already has {REQUESTS_MAX} requests"
            return [Rejected(event.client, text, retry_ms=2_000)]
        request = self.serving.source.submit(event, now)
        return [Accepted(event.client, request.id), *self._dispatch(now)]

    def _reason_against_prompt(self, event: ev.PromptSubmitted) -> str:
        model = model_of(self.gossip)
        if self.is_stopping:
            return f"{self.me} is leaving the swarm"
        if model is None:
            return f"{self.me} has no model yet: {self.replan.waiting_for()}"
        if not self.is_source():
            sources = self._sources()
            hint = f"; ask {' or '.join(sources)}" if sources else "; the swarm has no source"
            return f"{self.me} is not a source{hint}"
        if not event.prompt:
            return "the prompt is empty"
        context = workload_of(self.gossip, model, self.config.tile_rows).context
        if len(event.prompt) >= context:
            return (
                f"the prompt has {len(event.prompt)} tokens, the swarm's context is {context}; "
                "shorten it, or start the swarm with a larger --context"
            )
        if self.rollout.active is None and self.replan.is_infeasible():
            return f"the swarm cannot serve: {self.replan.waiting_for()}"
        return ""

    def is_source(self) -> bool:
        """Whether prompts may enter here: by its flag, and by the plan where there is one."""
        plan = self.rollout.active_plan()
        return self.config.is_source and (plan is None or self.me in plan.sources)

    def _sources(self) -> list[str]:
        found = []
        for member in self.membership.present():
            record = self.gossip.of(member.peer, DeviceRecord)
            if isinstance(record, DeviceRecord) and record.is_source:
                found.append(f"{member.peer.name} at {member.address}")
        return found

    def _on_cancelled(self, event: ev.RequestCancelled, now: float) -> list[Effect]:
        return self.serving.run(self.serving.source.cancel(event.request, now), now)

    def _on_stop(self, _: ev.StopAsked, now: float) -> list[Effect]:
        self.is_stopping = True
        text = f"{self.me} is leaving the swarm"
        effects = self.serving.run(self.serving.source.end_all(text, now), now)
        return [*effects, *self.membership.leave(), Stop(0)]

    # --- after every event ----------------------------------------------------------------

    def _settle(self, now: float) -> list[Effect]:
        """Bring view, plans and own records up to date with whatever just happened."""
        self._seen_at = now
        effects = self._follow_members(now)
        model = model_of(self.gossip)
        workload = workload_of(self.gossip, model, self.config.tile_rows) if model else None
        effects += self.local.wants(model, workload)
        record = self.local.record(model, workload, self._unsettled(now))
        effects += self.gossip.publish(record, self.membership)
        links = LinksRecord(self.links.figures(), self.membership.silent())
        effects += self.gossip.publish(links, self.membership)
        effects += self._follow_failures(now)
        self._refresh_view(now)
        effects += self.replan.tick(now)
        effects += self._follow_plans(now)
        effects += self._dispatch(now)
        return effects + self.gossip.publish(self._held(), self.membership)

    def _follow_members(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        changes, self.membership.changes = self.membership.changes, []
        for change in changes:
            if change.replaced is not None:
                effects += self.serving.free_source(change.replaced, now)
            if not change.member.is_present:
                effects += self.serving.free_source(change.member.peer, now)
            if change.member.state is MemberState.DEAD:
                self.join.add(change.member.address, now)
        if changes:
            self.gossip.forget_except(m.peer for m in self.membership.members.values())
            self.links.track(self.membership.present(), now)
            effects += self.links.tick(self.membership.members, now)
        return effects

    def _quiet_from(self) -> float:
        """A peer that had to refute lately waits longer before it is planned."""
        patience = self.timing.settle_s * (1 + min(self.membership.refutations, 9))
        return self._started_at + patience

    def _is_quiet_at(self, now: float) -> bool:
        return now >= self._quiet_from()

    def _unsettled(self, now: float) -> str:
        if self.is_stopping:
            return "it is leaving"
        if not self._is_quiet_at(now):
            return "it has just started"
        return "" if self.links.is_settled() else "it is measuring its links"

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
            new = view(self.membership, self.gossip, self.config.tile_rows)
            self.replan.on_view(new, now)

    def _follow_plans(self, now: float) -> list[Effect]:
        """Move the living plans, and the data plane with them."""
        effects: list[Effect] = []
        steps = self.rollout.reconcile(
            self.held_of, self.membership.is_present, self._edges_open
        )
        for plan_id in self._take(self.rollout.started):
            if plan_id in self.rollout.plans:
                rolling = self.rollout.plans[plan_id]
                self.serving.start_plan(rolling.plan, rolling.model)
        for plan_id in self._take(self.rollout.retired):
            if plan_id in self.serving.flows:
                effects += self.serving.end_plan(plan_id, "its plan was retired", now)
        for plan_id, rolling in self.rollout.plans.items():
            if rolling.life is not Life.PROPOSED:
                effects += self.serving.flows[plan_id].open_edges(now)
        loads = [step for step in steps if isinstance(step, LoadUnits)]
        logs = [step for step in steps if not isinstance(step, LoadUnits)]
        # What is retired is freed before what is new is loaded.
        return [*logs, *effects, *loads]

    @staticmethod
    def _take(plan_ids: list[PlanId]) -> list[PlanId]:
        taken = list(plan_ids)
        plan_ids.clear()
        return taken

    def _edges_open(self, plan_id: PlanId) -> bool:
        flow = self.serving.flows.get(plan_id)
        return flow is not None and flow.all_open()

    def dispatchable(self) -> Plan | None:
        """The plan on which requests may start: active, ready everywhere, not asked to end."""
        plan = self.rollout.active_plan()
        if plan is None or self.rollout.drains_for_target(self.held_of):
            return None
        others = [peer for peer in plan.peers() if peer != self.me]
        is_ready = all(plan.id in self.held_of(peer).ready for peer in others)
        return plan if is_ready and self._edges_open(plan.id) else None

    def _dispatch(self, now: float) -> list[Effect]:
        effects = self._follow_drain(now)
        plan = self.dispatchable()
        if plan is None or self.me not in plan.sources:
            return effects
        return effects + self.serving.run(self.serving.source.start(plan, now), now)

    def _follow_drain(self, now: float) -> list[Effect]:
        """The active plan has to end for the next: after a while, park what still runs."""
        active = self.rollout.active
        if active is None or not self.rollout.drains_for_target(self.held_of):
            self._drain_since = None
            return []
        if self._drain_since is None or self._drain_since[0] != active:
            self._drain_since = (active, now)
        if now < self._drain_since[1] + self.timing.drain_deadline_s:
            return []
        steps = self.serving.source.park_plan(active, "the next plan needs the memory", now)
        return self.serving.run(steps, now)

    def _held(self) -> HeldRecord:
        plan = self.dispatchable()
        ready = [
            plan_id
            for plan_id, rolling in self.rollout.plans.items()
            if rolling.life in (Life.READY, Life.ACTIVE, Life.DRAINING)
            and self._edges_open(plan_id)
        ]
        return HeldRecord(
            unit_ranges(self.rollout.units()),
            self.rollout.target,
            tuple(sorted(ready)),
            plan.id if plan is not None else None,
            self.serving.source.running_plans(),
            self.rollout.must_drain(self.held_of),
            self.serving.source.oldest_live,
        )


def _digest_of(value: SettingValue) -> SettingValue:
    """Models are the same by their files, whatever they are called."""
    return value if isinstance(value, (str, int)) else value.digest
