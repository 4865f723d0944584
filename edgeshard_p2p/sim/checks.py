"""What must hold after every event of a simulated run, and what must come true once faults end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeshard_p2p.core.admission import QUEUE_MAX
from edgeshard_p2p.core.edges import WINDOW
from edgeshard_p2p.core.source import REQUESTS_MAX
from edgeshard_p2p.sim.compute import oracle

if TYPE_CHECKING:
    from edgeshard_p2p.sim.simulator import SimPeer, Simulator


def check_safety(swarm: Simulator) -> None:
    """Equal snapshots giving equal plans, and caches matching positions, are asserted where they
    happen (``Simulator._plan``, ``HashModel.run``)."""
    for peer in swarm.peers.values():
        if peer.core is not None:
            _check_incarnations(swarm, peer)
            _check_bounds(peer)


def _check_incarnations(swarm: Simulator, peer: SimPeer) -> None:
    """Nobody believes an incarnation that its owner has not had."""
    assert peer.core is not None
    for name, member in peer.core.membership.members.items():
        owner = swarm.peers[name]
        assert member.peer.generation <= owner.generation, f"{peer.id} made up {member.peer}"
        if owner.core is not None and member.peer == owner.core.me:
            highest = owner.core.membership.incarnation
            assert member.incarnation <= highest, f"{peer.id} raised {member.peer}'s incarnation"


def _check_bounds(peer: SimPeer) -> None:
    assert peer.core is not None
    serving = peer.core.serving
    assert len(serving.source.requests) <= REQUESTS_MAX
    for flow in serving.flows.values():
        for edge in flow.out.values():
            assert len(edge._unacked) <= WINDOW, f"{peer.id} overruns {edge.spec}"
    for plan_id, admission in serving.admissions.items():
        assert len(admission.queue) <= QUEUE_MAX
        assert len(admission.granted) <= serving.flows[plan_id].plan.workload.batch


def check_tokens(swarm: Simulator) -> None:
    """Whatever was emitted is what one undisturbed peer would have said."""
    for request, client in swarm.requests.items():
        prompt, max_tokens = swarm.prompts[client]
        emitted = swarm.peers[request.source.name].emitted[request]
        expected = oracle(prompt, swarm.spec.n_units, len(emitted))
        assert emitted == expected, f"{request}: {emitted} instead of {expected}"
        finished = swarm.finished.get(request)
        if finished is not None and finished.finish_reason == "length":
            assert len(emitted) == max_tokens, f"{request} ended after {len(emitted)} tokens"


def is_converged(swarm: Simulator) -> bool:
    """All live peers know exactly each other and serve one plan, and nothing is left over."""
    cores = [peer.core for peer in swarm.peers.values() if peer.core is not None]
    ids = sorted(core.me for core in cores)
    for core in cores:
        others = [member.peer for member in core.membership.present()]
        if sorted([core.me, *others]) != ids:
            return False
    rollouts = [core.planning.rollout for core in cores]
    active = {rollout.active for rollout in rollouts}
    if len(active) != 1 or None in active:
        return False
    return all(
        list(core.planning.rollout.plans) == [core.planning.rollout.active] for core in cores
    )


def check_nothing_held(swarm: Simulator) -> None:
    """With no request alive, no KV, no slot and no tensor is."""
    for peer in swarm.peers.values():
        if peer.core is None:
            continue
        assert peer.model.n_cached() == 0, f"{peer.id} still holds KV"
        assert not peer.tensors, f"{peer.id} still holds {len(peer.tensors)} tensors"
        for admission in peer.core.serving.admissions.values():
            assert not admission.granted, f"{peer.id} still grants"
            assert not admission.queue, f"{peer.id} still has askers"
