"""Small swarms for scenarios: nothing random but the network's jitter."""

from __future__ import annotations

from edgeshard_p2p.core.ids import PlanId
from edgeshard_p2p.core.messages import MemberState
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.sim import checks
from edgeshard_p2p.sim.request import SimRequest
from edgeshard_p2p.sim.simulator import Simulator

STARTS_S = 5.0
"""By then all have met, and nobody is settled only because nothing has happened yet."""
SETTLE_S = 30.0
ANSWER_S = 60.0
EVERYTHING = 10**9
HALF = 60_000
"""Bytes: enough for a part of the model, whose six units with KV take 155,072."""


def swarm_of(names: str, budget_bytes: int = HALF, seed: int = 7) -> Simulator:
    """Started one after another; each is given the address of the first."""
    swarm = Simulator(seed)
    for name in names:
        swarm.add(name, budget_bytes)
    for name in names:
        swarm.start(name, join=tuple(names[:1]) if name != names[0] else ())
    return swarm


def settle(swarm: Simulator) -> PlanId | None:
    """The plan that everyone serves then; None when all know that there can be none."""
    swarm.run(swarm.now + STARTS_S)
    assert swarm.run_until(lambda: checks.is_settled(swarm), SETTLE_S), "it does not settle"
    return checks.serving_plan(swarm)


def answer(swarm: Simulator, request: SimRequest) -> list[int]:
    ended = swarm.run_until(lambda: request.finished is not None, ANSWER_S)
    assert ended, f"no end: {request.tokens}"
    assert request.is_answered, f"{request.finished}"
    return request.tokens


def core(swarm: Simulator, name: str) -> PeerCore:
    alive = swarm.peers[name].core
    assert alive is not None, f"{name} does not live"
    return alive


def belief(swarm: Simulator, of: str, about: str) -> MemberState | None:
    member = core(swarm, of).membership.members.get(about)
    return member.state if member is not None else None
