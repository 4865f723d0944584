"""The invariants, all of them: what must hold after every event of a simulated run, and what must
come true once the faults end.

Safety, at the peer that an event has just happened to:

    members   A belief gives way only to one that is newer in (generation, incarnation, state).
              Nobody believes an incarnation that its owner has not reached.  Who left stays gone.
    records   A record is what its owner made it, or an older one; it gives way to newer ones only.
    plans     Equal snapshots give equal plans, in whatever order their facts came (``Choices``).
              Nobody computes for a plan that it has not loaded, nor units that are not its own.
              No request starts on a plan of which some peer has never been ready.
    memory    Weights and KV that are asked for fit the budget.  Units are held before they are
              computed, slots are reserved and never too few (``HashModel``).
    caches    Rows are computed at exactly the position that comes next in every unit, within the
              context, and logged rows are there when they are wanted (``HashModel``).
    tokens    What the user has is what one undisturbed peer would have said so far; a request ends
              once, with the tokens it emitted, with an error's text or without.  Stop and length
              mean what they say.
    attempts  A frame, a refusal or a grant of an earlier attempt changes nothing of the present
              one, at its source or at a stage (``attempts``).
    tensors   Each is dropped or used once, and no more (``SimPeer``).
    bounds    Every queue, window and table is under its bound.
    restraint Nobody wakes up again and again at one instant, opens an edge again and again, or
              overwhelms another with messages.

Liveness, after the faults:

    settles   All who live believe in exactly each other, and one plan serves with nothing else
              rolling; or all know that none can, and why.  It stays so.
    answers   Every source of the plan answers a prompt; every request that was accepted ends.
    set back  Where nothing is wrong but the network, no request needs a second attempt
              (``faults.run_busy``).
    lets go   No slot, tensor or pass is held for a request that is over, nor KV but what is known
              as such; no unit that is not of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core.admission import QUEUE_MAX
from edgeshard_p2p.core.edges import WAITING_MAX, WINDOW
from edgeshard_p2p.core.ids import PeerId, PlanId, unit_ranges
from edgeshard_p2p.core.join import CONTACTS_MAX
from edgeshard_p2p.core.membership import MEMBERS_MAX
from edgeshard_p2p.core.messages import FrameAck, FrameHeader, Identity, MemberState
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.plan import kv_bytes, weight_bytes
from edgeshard_p2p.core.records import Record, RecordValue
from edgeshard_p2p.core.source import REQUESTS_MAX
from edgeshard_p2p.core.view import model_of, workload_of

if TYPE_CHECKING:
    from edgeshard_p2p.sim.device import SimPeer
    from edgeshard_p2p.sim.request import SimRequest
    from edgeshard_p2p.sim.simulator import Simulator

PLANS_MAX = 8
SPINS_MAX = 20
"""Alarms that one peer may ask for at one instant; more is a loop that never sleeps."""

CHATTER_MAX = 150
"""Control messages from one peer to another within a second, acknowledgements of frames aside;
a busy swarm takes some 50."""

OPENINGS_MAX = 12
"""Of one edge within a second: asked again four times, and four times for credit; an edge that is
refused as often as it is opened would be asked as fast as the network is."""

Belief = tuple[int, int, MemberState]
"""(generation, incarnation, state)"""
Records = dict[tuple[PeerId, type[RecordValue]], Record]


class Safety:
    """Looks at the peer that an event has just happened to: nobody else has changed."""

    def __init__(self, swarm: Simulator) -> None:
        self._swarm = swarm
        self._beliefs: dict[tuple[str, int], dict[str, Belief]] = {}
        """What each life of each peer believed last, by name of the member."""
        self._revisions: dict[tuple[str, int], int] = {}
        self._records: dict[tuple[str, int], Records] = {}
        """What each life of each peer knew last."""
        self._was_ready: set[tuple[PeerId, PlanId]] = set()
        """Who has ever called itself ready for which plan."""
        self._spins: dict[str, tuple[float, int]] = {}
        self._chatter: dict[tuple[str, str], tuple[int, int]] = {}
        """By sender and receiver: the present second, and the messages in it."""

        self._openings: dict[tuple[PeerId, PlanId, int], tuple[int, int]] = {}
        """By sender and edge: the present second, and the openings in it."""

    def check(self, peer: SimPeer, core: PeerCore) -> None:
        self._check_beliefs(peer, core)
        self._check_records(peer, core)
        _check_bounds(core)
        ready = core.planning.held_of(core.me).ready
        self._was_ready |= {(core.me, one.plan) for one in ready}

    # --- one owner per fact -----------------------------------------------------------------

    def _owner(self, identity: Identity) -> PeerCore | None:
        """Who lives as exactly this: a peer that lost its disk may count from 1 again."""
        for peer in self._swarm.peers.values():
            core = peer.core
            if core is not None and core.membership.me == identity:
                return core
        return None

    def _is_relived(self, peer: PeerId) -> bool:
        return any(peer in sim_peer.relived for sim_peer in self._swarm.peers.values())

    def _check_beliefs(self, peer: SimPeer, core: PeerCore) -> None:
        members = core.membership.members
        now: dict[str, Belief] = {
            name: (member.identity.peer.generation, member.incarnation, member.state)
            for name, member in members.items()
        }
        before = self._beliefs.get((peer.host, peer.life), {})
        if now == before:
            return
        for name, belief in now.items():
            if name in before and before[name] == belief:
                continue
            if name in before:
                _check_step(core, name, before[name], belief)
            # A belief that was right stays right: an owner never lowers its incarnation.
            owner = self._owner(members[name].identity)
            if owner is not None:
                is_owners = members[name].incarnation <= owner.membership.incarnation
                assert is_owners, f"{core.me} raised that of {members[name].peer}"
        self._beliefs[peer.host, peer.life] = now

    def _check_records(self, peer: SimPeer, core: PeerCore) -> None:
        """Records are what their owner made them: copies are the same or older, and give way
        only to newer ones."""
        key = (peer.host, peer.life)
        if self._revisions.get(key) == core.gossip.revision:
            return
        self._revisions[key] = core.gossip.revision
        before = self._records.get(key, {})
        self._records[key] = now = {
            (owner, kind): record
            for owner, kinds in core.gossip.records.items()
            for kind, record in kinds.items()
        }
        for (owner_id, kind), record in before.items():
            is_kept = now.get((owner_id, kind), record).version >= record.version
            assert is_kept, f"{core.me} went back on {kind.__name__} of {owner_id}"
        for (owner_id, kind), record in now.items():
            # A copy that was right stays right: its owner makes newer ones only.
            if before.get((owner_id, kind)) is not record:
                self._check_copy(core, owner_id, kind, record)

    def _check_copy(
        self, core: PeerCore, owner_id: PeerId, kind: type[RecordValue], record: Record
    ) -> None:
        member = core.membership.members.get(owner_id.name)
        owner = self._owner(member.identity) if member and member.peer == owner_id else None
        if owner is None or self._is_relived(owner_id):
            return
        known = owner.gossip.records.get(owner_id, {}).get(kind)
        newest = known.version if known is not None else 0
        is_copy = record.version < newest or record == known
        assert is_copy, f"{core.me} has {record}, its owner {known}"

    # --- the data plane -----------------------------------------------------------------------

    def check_forward(self, peer: SimPeer, effect: fx.RunForward) -> None:
        """Nobody computes for a plan that it has not loaded, nor starts on one that is not
        ready everywhere."""
        core, plan_id = peer.core, effect.job.plan
        assert core is not None
        rolling = core.planning.rollout.plans.get(plan_id)
        if rolling is None and plan_id in core.serving.retired:
            return  # What still waits is computed when its plan ends, since it counts as cached.
        assert rolling is not None, f"{core.me} computes for {plan_id}, which is not its plan"
        assert core.planning.is_loaded(plan_id), f"{core.me} computes for {plan_id}, not loaded"
        mine = [part for part in rolling.plan.units_of(core.me) if set(effect.units) <= set(part)]
        assert mine, f"{effect.units} not of {core.me}"
        if effect.job.role == "entry":
            for other in rolling.plan.peers():
                is_ready = other == core.me or (other, plan_id) in self._was_ready
                assert is_ready, f"{core.me} dispatches on {plan_id}, {other} was never ready"

    def check_memory(self, peer: SimPeer, effect: fx.LoadUnits) -> None:
        """Weights and KV that are asked for fit the budget together."""
        core = peer.core
        assert core is not None
        model = model_of(core.gossip)
        if model is None or not effect.units:
            return
        workload = workload_of(core.gossip, model, 4)
        held = {unit for units in effect.units for unit in units}
        n_bytes = sum(weight_bytes(model, r, effect.dtype, 0 in held) for r in effect.units)
        for promise in effect.kv:
            of_promise = replace(workload, context=promise.context)
            ranges = unit_ranges(promise.units)
            n_bytes += sum(kv_bytes(model, r, of_promise, promise.slots) for r in ranges)
        assert n_bytes <= peer.budget_bytes, f"{core.me} loads {n_bytes} of {peer.budget_bytes}"

    def check_token(self, request: SimRequest) -> None:
        """What the user has is what one undisturbed peer would have said so far."""
        expected = request.oracle.tokens(len(request.tokens))
        assert request.finished is None, f"{request.id} goes on after its end"
        assert request.tokens == expected, f"{request.id}: {request.tokens}, not {expected}"

    def check_end(self, request: SimRequest, effect: fx.FinishRequest) -> None:
        assert request.finished is None, f"{request.id} ended twice"
        assert list(effect.tokens) == request.tokens, f"{request.id} ends with other tokens"
        assert bool(effect.error) == (effect.finish_reason == "error"), f"{effect}"
        n_tokens = len(request.tokens)
        if effect.finish_reason == "length":
            core = self._swarm.peers[request.at].core
            assert core is not None
            rolling = core.planning.rollout.plans[effect.stats.plan_id or ""]
            is_full = len(request.prompt) + n_tokens >= rolling.plan.workload.context
            assert n_tokens == request.max_tokens or is_full, f"{effect}"
        if effect.finish_reason == "stop":
            assert request.oracle.tokens(n_tokens + 1)[-1] in request.stop_ids, f"{effect}"

    def check_spinning(self, peer: SimPeer, now: float) -> None:
        since, n = self._spins.get(peer.host, (now, 0))
        n = n + 1 if since == now else 1
        self._spins[peer.host] = (now, n)
        assert n <= SPINS_MAX, f"{peer.id} wants to be woken for ever at {now}"

    def check_opening(self, peer: SimPeer, header: FrameHeader, now: float) -> None:
        key, second = (peer.id, header.plan_id, header.edge), int(now)
        known, n = self._openings.get(key, (second, 0))
        n = n + 1 if known == second else 1
        self._openings[key] = (second, n)
        assert n <= OPENINGS_MAX, f"{peer.id} opens edge {header.edge} again and again at {now}"

    def check_chatter(self, peer: SimPeer, effect: fx.Send, now: float) -> None:
        """Peers do not go on answering each other's answers."""
        if isinstance(effect.message, FrameAck):
            return
        second, n = self._chatter.get((peer.host, effect.to.host), (int(now), 0))
        n = n + 1 if second == int(now) else 1
        self._chatter[peer.host, effect.to.host] = (int(now), n)
        assert n <= CHATTER_MAX, f"{peer.id} overwhelms {effect.to} with {effect.message}"


def _check_step(core: PeerCore, name: str, before: Belief, after: Belief) -> None:
    """A belief gives way only to one that is newer in (generation, incarnation, state)."""
    assert after > before, f"{core.me} went back on {name}: {before} -> {after}"
    if after[0] == before[0]:
        is_over = before[2] is MemberState.LEFT
        assert not is_over, f"{core.me} takes back that {name} left: {before} -> {after}"


def _check_bounds(core: PeerCore) -> None:
    """Every queue is under its bound."""
    serving, membership = core.serving, core.membership
    assert len(serving.source.requests) <= REQUESTS_MAX
    assert len(serving.source.entry.passes) <= 4 * REQUESTS_MAX
    assert len(core.join.contacts) <= CONTACTS_MAX
    assert len(membership.members) <= MEMBERS_MAX
    assert len(membership._rumours) <= len(membership.members) + 2
    assert len(membership._probes) <= 8 + 2 * len(membership.members) ** 2
    assert len(core.planning.rollout.plans) <= PLANS_MAX
    for flow in serving.flows.values():
        for out in flow.out.values():
            assert len(out._unacked) <= WINDOW, f"{core.me} overruns {out.spec}"
            assert len(out._waiting) < WAITING_MAX
        for in_ in flow.in_.values():
            assert 0 <= in_.received - in_.consumed <= WINDOW, f"{core.me} is overrun by {in_}"
    for plan_id, admission in serving.slots.admissions.items():
        assert len(admission.queue) <= QUEUE_MAX
        n_slots = serving.flows[plan_id].plan.workload.batch
        assert len(admission.granted) <= n_slots, f"of {n_slots} slots are granted {admission}"


# --- liveness: what must come true once the faults stop -----------------------------------------


def is_settled(swarm: Simulator) -> bool:
    """One plan serves; or everyone knows that none can, and why."""
    if not swarm.lives():
        return True
    return (_serves_one_plan(swarm) or _is_known_hopeless(swarm)) and _is_one_swarm(swarm)


def _is_one_swarm(swarm: Simulator) -> bool:
    """All live peers believe in exactly each other."""
    cores = [peer.core for peer in swarm.lives() if peer.core is not None]
    ids = sorted(core.me for core in cores)
    return all(
        sorted([core.me, *(member.peer for member in core.membership.present())]) == ids
        for core in cores
    )


def _serves_one_plan(swarm: Simulator) -> bool:
    """Everyone has the same active plan and no other."""
    rollouts = [peer.core.planning.rollout for peer in swarm.lives() if peer.core is not None]
    active = {rollout.active for rollout in rollouts}
    if len(active) != 1 or None in active:
        return False
    return all(list(r.plans) == [r.active] == [r.target] for r in rollouts)


def _is_known_hopeless(swarm: Simulator) -> bool:
    cores = [peer.core for peer in swarm.lives() if peer.core is not None]
    views = {_snapshot_id(core) for core in cores}
    is_agreed = len(views) == 1
    return is_agreed and all(
        not core.planning.rollout.plans
        and bool(core.planning.why_no_plan())
        and (core.planning.replan.is_infeasible() or _snapshot_id(core) is None)
        for core in cores
    )


def _snapshot_id(core: PeerCore) -> str | None:
    view = core.planning.replan.view
    return view.snapshot.id if view is not None and view.snapshot is not None else None


def serving_plan(swarm: Simulator) -> PlanId | None:
    """The plan of a settled swarm, if it has one."""
    lives = [peer.core for peer in swarm.lives() if peer.core is not None]
    return lives[0].planning.rollout.active if lives else None


def leftovers(swarm: Simulator) -> list[str]:
    """With no request alive no KV, slot or tensor is held, and no unit but the plan's: what is."""
    return [left for peer in swarm.lives() for left in _leftovers(peer)]


def _leftovers(peer: SimPeer) -> Iterator[str]:
    core = peer.core
    assert core is not None
    for key in peer.model.logs:
        if key not in peer.model.caches:
            yield f"{peer.id}: a log of {key.request} as {key.role}"
    # What requests that are over have left stays as long as there is room for it.
    over = core.serving.caches.kept.over() | core.serving.source.kept.over()
    for key in peer.model.caches.keys() - over:
        yield f"{peer.id}: KV of {key.request} as {key.role}"
    if lost := over - peer.model.caches.keys():
        yield f"{peer.id}: no KV of {[key.request for key in lost]}"
    if peer.tensors:
        yield f"{peer.id}: {len(peer.tensors)} tensors"
    if core.serving.source.entry.passes:
        yield f"{peer.id}: passes that it waits for"
    for stage in core.serving.stages.values():
        if stage.requests or stage.running:
            yield f"{peer.id}: {stage.requests} and {stage.running} in stage {stage.index}"
    for admission in core.serving.slots.admissions.values():
        if admission.granted or admission.queue:
            yield f"{peer.id}: slots of {admission.granted}, asks of {list(admission.queue)}"
    plan = core.planning.rollout.active_plan()
    ranges = plan.units_of(core.me) if plan is not None else ()
    wanted = {unit for units in ranges for unit in units}
    wanted |= {*core.planning.rollout.standby_units()} if plan is not None else set()
    if peer.model.held != wanted:
        yield f"{peer.id}: units {peer.model.held} instead of {wanted}"
