"""What a peer can say of the swarm: plain values, ready for JSON.  Pure questions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgeshard_p2p.core.ids import unit_ranges
from edgeshard_p2p.core.messages import MemberState
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.records import DeviceRecord, LinksRecord
from edgeshard_p2p.core.rollout import Life, Rolling

Report = dict[str, Any]


def report(core: PeerCore) -> Report:
    return {
        "self": _self(core),
        "plan": _plan(core),
        "members": _members(core),
        "profiles": [_profile(core, member) for member in _present(core)],
        "links": [link for member in _present(core) for link in _links(core, member)],
        "requests": [_request(request) for request in core.serving.source.requests.values()],
        "one_way": _one_way(core),
        "settings": {s.key: _value(s.value) for s in core.gossip.all_settings()},
    }


def _present(core: PeerCore) -> list[Any]:
    return sorted([core.me, *(member.peer for member in core.membership.present())])


def _self(core: PeerCore) -> Report:
    return {
        "name": core.me.name,
        "generation": core.me.generation,
        "incarnation": core.membership.incarnation,
        "address": str(core.membership.me.address),
        "is_source": core.is_source(),
        "units": _ranges(core.planning.rollout.units()),
        "standby_units": _ranges(core.planning.rollout.standby_units()),
        "requests_in_stage": sum(len(s.requests) for s in core.serving.stages.values()),
    }


def _ranges(units: Iterable[int]) -> list[list[int]]:
    return [[found.start, found.end] for found in unit_ranges(units)]


def _plan(core: PeerCore) -> Report:
    rolling = _serving_or_next(core)
    waiting_for = core.planning.replan.waiting_for()
    if rolling is None:
        return {"plan_id": None, "state": "none", "stages": [], "waiting_for": waiting_for}
    plan = rolling.plan
    choice = core.planning.replan.choice
    is_latest = choice is not None and choice.plan is not None and choice.plan.id == plan.id
    predicted_ms = choice.latency_us / 1e3 if is_latest and choice is not None else None
    return {
        "plan_id": plan.id,
        "state": rolling.life.value,
        "stages": _stages(core, plan),
        "batch": plan.workload.batch,
        "batch_wished": core.planning.batch_wished(),
        "context": plan.workload.context,
        "dtype": plan.workload.dtype,
        "numerics": plan.workload.numerics,
        "objective": core.planning.objective(),
        "predicted_ms_per_token": predicted_ms,
        **_many(core, plan),
        "note": choice.reason if is_latest and choice is not None else "",
        "waiting_for": waiting_for,
    }


def _many(core: PeerCore, plan: Plan) -> Report:
    """What is expected with the whole batch in flight."""
    batch = plan.workload.batch
    size = core.planning.pass_size(plan, batch)
    return {
        "micro_batch": size.rows if size is not None else None,
        "predicted_tokens_per_s": core.planning.tokens_per_s(plan, batch),
    }


def _serving_or_next(core: PeerCore) -> Rolling | None:
    plan_id = core.planning.rollout.active or core.planning.rollout.target
    return core.planning.rollout.plans.get(plan_id) if plan_id is not None else None


def _stages(core: PeerCore, plan: Plan) -> list[Report]:
    """Stage 0 is the part that every source runs for its own prompts."""
    parts = [(0, source, plan.entry) for source in plan.sources]
    parts += [(k + 1, stage.peer, stage.units) for k, stage in enumerate(plan.stages)]
    return [
        {
            "stage": index,
            "peer": peer.name,
            "start": units.start,
            "end": units.end,
            "is_ready": _is_ready(core, plan, peer),
        }
        for index, peer, units in parts
    ]


def _is_ready(core: PeerCore, plan: Plan, peer: Any) -> bool:
    if peer != core.me:
        return core.planning.held_of(peer).begun(plan.id) is not None
    rolling = core.planning.rollout.plans.get(plan.id)
    return rolling is not None and rolling.life in (Life.READY, Life.ACTIVE, Life.DRAINING)


def _members(core: PeerCore) -> list[Report]:
    me = core.membership.me
    rows = [(me.peer, core.membership.incarnation, MemberState.ALIVE, me.address)]
    for member in core.membership.members.values():
        rows.append((member.peer, member.incarnation, member.state, member.address))
    return [
        {
            "name": peer.name,
            "generation": peer.generation,
            "incarnation": incarnation,
            "state": state.name.lower(),
            "address": str(address),
        }
        for peer, incarnation, state, address in sorted(rows)
    ]


def _profile(core: PeerCore, peer: Any) -> Report:
    record = core.gossip.of(peer, DeviceRecord)
    if not isinstance(record, DeviceRecord):
        return {"name": peer.name, "is_eligible": False, "why_not": "nothing heard of it yet"}
    view = core.planning.replan.view
    why_not = view.excluded.get(peer.name, "") if view is not None else ""
    return {
        "name": peer.name,
        "is_source": record.is_source,
        "budget_bytes": record.budget_bytes,
        "is_eligible": record.eligible,
        "why_not": why_not or record.note,
        "has_model": record.model is not None,
        "dtype": record.dtype,
        "numerics": record.numerics,
        "decode": [_times(times) for times in record.decode],
        "prefill": [_times(times) for times in record.prefill],
        "pass_us": record.pass_us,
        "rested_us": record.rested_us,
    }


def _times(times: Any) -> Report:
    return {
        "rows": times.rows,
        "embedding_us": times.embedding_us,
        "block_us": times.block_us,
        "head_us": times.head_us,
    }


def _links(core: PeerCore, peer: Any) -> list[Report]:
    record = core.gossip.of(peer, LinksRecord)
    return [
        {
            "from": peer.name,
            "to": link.to,
            "round_trip_us": 2 * link.delay_us,
            "bytes_per_s": link.bytes_per_s,
        }
        for link in (record.links if isinstance(record, LinksRecord) else ())
    ]


def _one_way(core: PeerCore) -> list[Report]:
    """Who gets no answer from whom, though others do."""
    rows = []
    for peer in _present(core):
        record = core.gossip.of(peer, LinksRecord)
        silent = record.silent if isinstance(record, LinksRecord) else ()
        rows += [{"from": peer.name, "to": name} for name in silent]
    return rows


def _request(request: Any) -> Report:
    return {
        "request": str(request.id),
        "state": request.phase.value,
        "attempt": request.attempt,
        "prompt_tokens": len(request.prompt.prompt),
        "generated_tokens": len(request.generated),
        "cause": request.cause,
    }


def _value(value: Any) -> str | int:
    model = getattr(value, "name", None)
    return f"{model} {value.digest[:12]}" if model is not None else value
