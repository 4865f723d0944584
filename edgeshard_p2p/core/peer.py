"""The whole of a peer's mind: every event goes in, every decision comes out.

    handle(event, now) -> effects        next_deadline() -> when to say DeadlineReached

PeerCore routes events to machines that do not know each other, and after each event brings the
swarm's view, the plan and this peer's own records up to date.  It computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core import messages as msg
from edgeshard_p2p.core.admission import RETRY_MS
from edgeshard_p2p.core.door import Door
from edgeshard_p2p.core.effects import (
    Accepted,
    Effect,
    Log,
    Rejected,
    RequestNotice,
    SaveLinks,
    Send,
    Stop,
)
from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.gray import Judge, Slowness
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.join import Join
from edgeshard_p2p.core.links import LinkProber
from edgeshard_p2p.core.local import LocalDevice
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.planning import Planning
from edgeshard_p2p.core.records import (
    DeviceRecord,
    HeldRecord,
    LinkFigures,
    LinksRecord,
)
from edgeshard_p2p.core.replan import Replan
from edgeshard_p2p.core.rollout import Rollout
from edgeshard_p2p.core.settings import SettingValue
from edgeshard_p2p.core.source import REQUESTS_MAX
from edgeshard_p2p.core.standby import Standby
from edgeshard_p2p.core.timing import Timing
from edgeshard_p2p.core.view import model_of, promised_us, workload_of
from edgeshard_p2p.core.wishes import Wishes

OLDER_BY_MS = 1_000
"""A peer that has been up for so much longer keeps its settings when a newcomer contradicts."""
QUIET_GROWTH_MAX = 10
"""A peer that keeps refuting waits at most so many times longer before it is planned."""

LOG_SHARE = 16
"""Of the budget, one part in so many is for logs of hidden states, and not planned with."""


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
    standby: bool = False
    """Hold layers of the plan that would follow a loss, where there is time and memory."""
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
        self.wishes = Wishes(self.gossip, self.membership, timing.seed_delay_s, config.wishes)
        self.links = LinkProber(timing, {link.to: link for link in config.known_links})
        log_bytes = config.budget_bytes // LOG_SHARE
        planned_bytes = config.budget_bytes - log_bytes
        self.local = LocalDevice(config.is_source, planned_bytes, Slowness(timing))
        self.judge = Judge(self.membership, timing, partial(promised_us, self.gossip))
        self.planning = Planning(
            self.membership,
            self.gossip,
            timing,
            config.tile_rows,
            Replan(timing, config.min_members),
            Rollout(me.peer, planned_bytes),
            Standby(me.peer, config.standby),
            log_bytes,
        )
        self.serving = self.planning.serving
        self.door = Door(
            self.me,
            config.is_source,
            config.tile_rows,
            self.membership,
            self.gossip,
            self.local,
            self.planning,
        )
        self.is_stopping = False
        self._started_at = 0.0
        self._now = 0.0
        self._has_settled = False
        self._settled_revision: tuple[int | str, ...] = ()
        self.is_steady = False
        """Whether nothing but frames, results and acknowledgements has come since the next deadline
        was asked for, and it stands."""
        self._deadline: float | None = None
        self._handlers = self._event_handlers()
        self._message_handlers = self._control_handlers()

    def _event_handlers(self) -> dict[type, Callable[[Any, float], list[Effect]]]:
        return {
            ev.Started: self._on_started,
            ev.DeadlineReached: lambda _, now: self._tick(now),
            ev.PeerDiscovered: self._on_discovered,
            ev.ContactFailed: self._on_contact_failed,
            ev.ConnectionLost: self.membership.on_connection_lost,
            ev.MessageReceived: self._on_message,
            ev.FrameReceived: self._on_frame,
            ev.ModelOpened: lambda event, _: self.local.on_opened(event),
            ev.DeviceMeasured: lambda event, _: self.local.on_measured(event),
            ev.PassesTimed: lambda event, _: self._on_passes_timed(event.us),
            ev.MeasureFailed: lambda event, _: self.local.on_measure_failed(event.detail),
            ev.PlanComputed: self.planning.on_choice,
            ev.UnitsLoaded: self.planning.on_loaded,
            ev.LoadFailed: self.planning.on_load_failed,
            ev.ForwardDone: self.serving.on_done,
            ev.ForwardFailed: self.serving.on_failed,
            ev.PromptSubmitted: self._on_prompt,
            ev.RequestCancelled: self._on_cancelled,
            ev.SettingAsked: self.wishes.on_asked,
            ev.StopAsked: self._on_stop,
        }

    def _control_handlers(self) -> dict[type, Callable[[PeerId, Any, float], list[Effect]]]:
        return {
            msg.Hello: self._on_hello,
            msg.Welcome: self._on_welcome,
            msg.Refused: lambda sender, m, _: self.join.on_refused(sender, m),
            msg.Ping: self.membership.on_ping,
            msg.Ack: self.membership.on_ack,
            msg.PingReq: self.membership.on_ping_req,
            msg.Nack: self.membership.on_nack,
            msg.News: lambda _, m, now: self.membership.on_news(m, now),
            msg.Digest: lambda sender, m, _: self.gossip.on_digest(sender, m, self.membership),
            msg.Delta: self._on_delta,
            msg.LinkEcho: self._on_echo,
            msg.EdgeAnswer: self.serving.on_answer,
            msg.FrameAck: self.serving.on_ack,
            msg.FrameRefused: self.serving.on_refused,
            msg.AttemptRefused: self.serving.on_attempt_refused,
            msg.SlotAsk: self.serving.slots.on_ask,
            msg.SlotAnswer: self.serving.on_slot_answer,
            msg.CacheAsk: lambda sender, m, _: self.serving.caches.on_ask(sender, m),
            msg.CacheReport: self.serving.on_cache_report,
            msg.Slow: self._on_slow,
            msg.SlotReturn: self.serving.slots.on_return,
        }

    # --- the two entries ------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[Effect]:
        """Total: late, doubled, unknown and impossible input is normal input."""
        self._now = now
        effects = self._handlers[type(event)](event, now)
        revision = (self.serving.revision(), self.gossip.revision, *self.membership.revision())
        is_settled = revision == self._settled_revision
        self.is_steady &= is_settled and ev.is_flow(event) and self._is_soon(now)
        if not is_settled or not ev.is_routine(event):
            self._settled_revision = revision
            effects += self._settle(now)
        return effects + self.serving.desk.begin()

    def _is_soon(self, now: float) -> bool:
        """Whether the next deadline comes before what the flow of frames can bring about: frames
        that are sent again, and attempts whose slot came free."""
        soon_s = min(self.timing.resend_s, self.timing.report_wait_s)
        return self._deadline is not None and self._deadline <= now + soon_s

    def next_deadline(self) -> float | None:
        """While all is steady the one of before: to look for it costs as much as a frame."""
        if not self.is_steady:
            self.is_steady, self._deadline = True, self._earliest()
        return self._deadline

    def _earliest(self) -> float | None:
        times = [
            self.membership.next_deadline(),
            self.join.next_deadline(),
            self.gossip.next_deadline(),
            self.links.next_deadline(),
            self.local.slowness.next_deadline(),
            self.wishes.next_deadline(),
            *self.planning.next_deadlines(),
        ]
        if self._now < self._quiet_from():
            times.append(self._quiet_from())
        return min((time for time in times if time is not None), default=None)

    def _tick(self, now: float) -> list[Effect]:
        effects = self.membership.tick(now)
        effects += self.join.tick(self.membership, now)
        effects += self.gossip.tick(self.membership, now)
        effects += self.links.tick(self.membership.members, now)
        effects += self.local.slowness.tick(now)
        effects += self.serving.tick(now, self.planning.why_waiting())
        return effects + self.wishes.tick(now)

    # --- coming in ------------------------------------------------------------------------

    def _on_started(self, _: ev.Started, now: float) -> list[Effect]:
        self._started_at = self.join.started_at = self.wishes.started_at = now
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
        # A namesake in its first generation looks like this peer, until its Hello is read.
        if event.sender == self.me and not isinstance(event.message, msg.Hello | msg.Refused):
            return []
        effects = self._message_handlers[type(event.message)](event.sender, event.message, now)
        return effects + self.membership.verdict_on(event.sender)

    def _on_hello(self, _: PeerId, hello: msg.Hello, now: float) -> list[Effect]:
        return self.join.on_hello(hello, self.gossip.all_settings(), self.membership, now)

    def _on_welcome(self, sender: PeerId, welcome: msg.Welcome, now: float) -> list[Effect]:
        if not self.join.has_met:
            uptime_ms = (now - self._started_at) * 1e3
            if welcome.uptime_ms > uptime_ms + OLDER_BY_MS:
                self.gossip.forget_own_settings()
            for setting in welcome.settings:
                conflict = self.wishes.conflict(setting, sender)
                if conflict:
                    return [Stop(2, conflict)]
        for setting in welcome.settings:
            self.gossip.take_setting(setting)
        effects = self.join.on_welcome(welcome, self.membership, now)
        return effects + self.wishes.seed()

    def _on_delta(self, _: PeerId, delta: msg.Delta, now: float) -> list[Effect]:
        self.gossip.on_delta(delta, self.membership)
        effects: list[Effect] = []
        for record in delta.records:
            # Only what is believed: the record at hand may be an older one, or a made-up one.
            held = self.gossip.of(record.owner, HeldRecord)
            if isinstance(record.value, HeldRecord) and held == record.value:
                effects += self.serving.free_below(record.owner, held.oldest_live, now)
        return effects

    # --- links ----------------------------------------------------------------------------

    def _on_echo(self, _: PeerId, echo: msg.LinkEcho, now: float) -> list[Effect]:
        before = self.links.figures()
        self.links.on_echo(echo.nonce, now)
        effects = self.links.tick(self.membership.members, now)
        if self.links.figures() != before:
            effects.append(SaveLinks(self.links.figures()))
        return effects

    def _on_frame(self, event: ev.FrameReceived, now: float) -> list[Effect]:
        if isinstance(event.body, msg.ProbeBody):
            # Only to a member, and where it is known to be: whoever names another address would
            # have this peer knock there.
            address = self.membership.address_of(event.body.sender)
            echo = msg.LinkEcho(event.body.nonce)
            return [Send(address, echo)] if address is not None else []
        flow = self.serving.flows.get(event.header.plan_id)
        judged = self.judge.on_frame(event.header, flow, now)
        return [*self.serving.on_frame(event, now), *judged]

    def _on_passes_timed(self, us: int) -> list[Effect]:
        # Where one peer does everything there are no frames.
        sends = any(flow.outgoing() for flow in self.serving.flows.values())
        return self.local.beside.on_timed(us) if sends else []

    def _on_slow(self, sender: PeerId, told: msg.Slow, now: float) -> list[Effect]:
        flow = self.serving.flows.get(told.plan)
        return self.local.slowness.on_slow(sender, told, flow, now)

    # --- requests -------------------------------------------------------------------------

    def is_source(self) -> bool:
        """Whether prompts may enter here."""
        return self.door.is_source()

    def _on_prompt(self, event: ev.PromptSubmitted, now: float) -> list[Effect]:
        refusal = f"{self.me} is leaving the swarm" if self.is_stopping else ""
        refusal = refusal or self.door.reason_against(event)
        if refusal:
            return [Rejected(event.client, refusal)]
        if len(self.serving.source.requests) >= REQUESTS_MAX:
            text = f"{self.me} already has {REQUESTS_MAX} requests"
            return [Rejected(event.client, text, retry_ms=RETRY_MS)]
        model = model_of(self.gossip)
        assert model is not None
        request = self.serving.source.submit(event, model.digest, now)
        effects: list[Effect] = [Accepted(event.client, request.id)]
        if self.planning.dispatchable() is None:
            why = self.planning.why_waiting()
            effects.append(RequestNotice(request.id, f"waiting: {why}"))
        return effects

    def _on_cancelled(self, event: ev.RequestCancelled, now: float) -> list[Effect]:
        return self.serving.run(self.serving.source.cancel(event.request, now), now)

    def _on_stop(self, _: ev.StopAsked, now: float) -> list[Effect]:
        self.is_stopping = True
        text = f"{self.me} is leaving the swarm"
        effects = self.serving.run(self.serving.source.end_all(text, now), now)
        return [*effects, *self.membership.leave(), Log(f"{self.me} left the swarm"), Stop(0)]

    # --- after every event ----------------------------------------------------------------

    def _settle(self, now: float) -> list[Effect]:
        """Bring this peer's own records, and then the plans, up to date with what happened."""
        effects = self._follow_members(now)
        model = model_of(self.gossip)
        workload = workload_of(self.gossip, model, self.config.tile_rows) if model else None
        effects += self.local.wants(model, workload)
        effects += self._pace_links(now)
        record = self.local.record(model, workload, self._unsettled(now))
        effects += self.gossip.publish(record, self.membership)
        links = LinksRecord(self.links.figures(), self.membership.silent())
        effects += self.gossip.publish(links, self.membership)
        return effects + self.planning.settle(now)

    def _follow_members(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        changes, self.membership.changes = self.membership.changes, []
        for change in changes:
            if change.replaced is not None:
                effects += self.serving.free_source(change.replaced)
            if not change.member.is_present:
                effects += self.serving.free_source(change.member.peer)
            if change.member.state is msg.MemberState.DEAD:
                self.join.add(change.member.address, now)
        if changes:
            self.gossip.forget_except(m.peer for m in self.membership.members.values())
        return effects

    def _pace_links(self, now: float) -> list[Effect]:
        """A link is measured when the devices at both its ends are done with themselves."""
        at_rest = [m for m in self.membership.present() if self._is_at_rest(m.peer)]
        is_new = self.links.track(at_rest, now)
        self.links.is_busy = not self.serving.is_idle()
        was_paused, self.links.is_paused = self.links.is_paused, self.local.is_measuring()
        is_released = was_paused and not self.links.is_paused
        return self.links.tick(self.membership.members, now) if is_new or is_released else []

    def _is_at_rest(self, peer: PeerId) -> bool:
        record = self.gossip.of(peer, DeviceRecord)
        return isinstance(record, DeviceRecord) and (bool(record.decode) or record.model is None)

    def _quiet_from(self) -> float:
        """A peer that had to refute waits longer before it is planned."""
        growth = min(1 + self.membership.refutations, QUIET_GROWTH_MAX)
        return self._started_at + self.timing.settle_s * growth

    def _unsettled(self, now: float) -> str:
        if self.is_stopping:
            return "it is leaving"
        if now < self._quiet_from():
            return "it has just started"
        # Only the first links keep a peer out: later ones must not take it away from a plan.
        self._has_settled = self._has_settled or self.links.is_settled()
        return "" if self._has_settled else "it is measuring its links"
