"""Plans as JSON and in words."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.answers import Answer, in_units, objective_us
from edgeshard_p2p.core.footprint import entry_of, unit_bytes
from edgeshard_p2p.core.ids import Count, PeerId, UnitRange
from edgeshard_p2p.core.layout import bytes_on, decode_legs
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import Device, Goal, Snapshot, Stage, kv_bytes, weight_bytes
from edgeshard_p2p.core.scenario import Scenario


def in_json(scenario: Scenario, found: Answer, algorithm: str) -> dict[str, Any]:
    snapshot, layout = scenario.snapshot, found.layout
    model = snapshot.model
    told: dict[str, Any] = {
        "plan_id": None,
        "snapshot_id": snapshot.id,
        "algorithm": algorithm,
        "objective": snapshot.goal.objective,
        "model": model.name,
        "dtype": snapshot.workload.dtype,
        "feasible": layout is not None,
        "reason": found.reason,
        "missing_bytes": found.missing_bytes,
        "revisits": layout.revisits if layout else False,
        "batch": found.batch,
        "predicted": predicted(snapshot.goal, found, algorithm),
        "stages": _stages(snapshot, found) if layout else [],
        "excluded": [*_unable(scenario), *_excluded(snapshot, found, algorithm)],
        "unit_weight_bytes": [
            weight_bytes(model, UnitRange(unit, unit + 1), snapshot.workload.dtype, False)
            for unit in range(model.n_units)
        ],
        "tied_bytes": _tied_bytes(model, snapshot.workload.dtype),
        "notes": list(scenario.notes),
    }
    if layout is not None:
        workload = replace(snapshot.workload, batch=found.batch)
        told["plan_id"] = layout.id(model.digest, workload, model.n_units)
    return told


def _tied_bytes(model: ModelSpec, dtype: str) -> int:
    """What embedding and head take less where one device holds both."""
    head = UnitRange(model.head_unit, model.n_units)
    return weight_bytes(model, head, dtype, False) - weight_bytes(model, head, dtype, True)


def predicted(goal: Goal, found: Answer, algorithm: str) -> dict[str, Any] | None:
    """``ms_per_token`` is from one token of a sequence to its next: for ``latency`` of one alone,
    for ``throughput`` with the batch in flight.  ``objective_ms`` is what is minimised, which
    ``bound`` is on: the same with its part of the expected prompt where that counts."""
    if (said := found.prediction) is None:
        return None
    bound_us = found.bound_us if algorithm == "exact" else None
    is_throughput = goal.objective == "throughput"
    return {
        "ms_per_token": (said.iteration_us if is_throughput else said.latency_us) / 1e3,
        "latency_ms": said.latency_us / 1e3,
        "ttft_ms": said.ttft_us / 1e3,
        "tokens_per_s": round(found.batch * 1e6 / max(1, said.iteration_us), 3),
        "micro_batch": said.micro_batch,
        "bottleneck": said.bottleneck,
        "bottleneck_ms": said.bottleneck_us / 1e3,
        "objective_ms": float(objective_us(goal, found)) / 1e3,
        "bound": None if bound_us is None else bound_us / 1e3,
    }


def _stages(snapshot: Snapshot, found: Answer) -> list[dict[str, Any]]:
    layout, prediction = found.layout, found.prediction
    assert layout is not None
    assert prediction is not None
    legs = {
        source: decode_legs(snapshot, layout, source, prediction.micro_batch)
        for source in layout.sources
    }
    routes = {source: layout.runs(snapshot.model.n_units, source) for source in layout.sources}
    entries = [(runs[0], [legs[source]]) for source, runs in routes.items()]
    shared = [(stage, list(legs.values())) for stage in layout.stages]
    tails = [
        (runs[-1], [legs[source]])
        for source, runs in routes.items()
        if layout.tail_start < snapshot.model.n_units
    ]
    return [
        _stage(snapshot, found, stage, passed, layout.sources)
        for stage, passed in [*entries, *shared, *tails]
    ]


def _stage(
    snapshot: Snapshot,
    found: Answer,
    stage: Stage,
    routes: list[list[Any]],
    sources: tuple[PeerId, ...],
) -> dict[str, Any]:
    """``link_ms``: of the hop that leaves the stage, mean over the sources whose tokens take it."""
    workload, compute_us, hops_us = snapshot.workload, 0, []
    for legs in routes:
        at = next(i for i, leg in enumerate(legs) if leg.units == stage.units)
        compute_us = legs[at].busy_us
        after = legs[at + 1] if at + 1 < len(legs) and not legs[at + 1].units else None
        hops_us.append(after.busy_us + after.delay_us if after else 0)
    return {
        "peer": stage.peer.name,
        "start": stage.units.start,
        "end": stage.units.end,
        "weight_bytes": weight_bytes(
            snapshot.model, stage.units, workload.dtype, stage.peer in sources
        ),
        "kv_bytes": kv_bytes(snapshot.model, stage.units, workload, found.batch),
        "compute_ms": compute_us / 1e3,
        "link_ms": sum(hops_us) / len(hops_us) / 1e3,
    }


def _unable(scenario: Scenario) -> list[dict[str, str]]:
    return [{"peer": name, "reason": scenario.excluded[name]} for name in sorted(scenario.excluded)]


def _excluded(snapshot: Snapshot, found: Answer, algorithm: str) -> list[dict[str, str]]:
    layout = found.layout
    if layout is None:
        return []
    used = layout.peers()
    return [
        {"peer": device.peer.name, "reason": _reason(snapshot, found, algorithm, device)}
        for device in snapshot.devices
        if device.peer not in used
    ]


def _reason(snapshot: Snapshot, found: Answer, algorithm: str, device: Device) -> str:
    """Why a device has no part: memory, links, or (NOTE: ``--explain`` has what would change that)
    because it gains nothing."""
    name = device.peer.name
    smallest = min(unit_bytes(snapshot, False, found.batch)[entry_of(snapshot).end :])
    if device.budget_bytes < smallest:
        return f"memory: it holds {in_units(device.budget_bytes)}, not a single block"
    if not any(link.b == name for link in snapshot.links):
        return "link: no device has one to it"
    if not any(link.a == name for link in snapshot.links):
        return "link: it has none to any device"
    if algorithm != "exact":
        return f"{algorithm} has no use for it"
    if found.is_best:
        return "time: the plan is no better with it"
    return "time: no better plan with it was found"


def in_words(scenario: Scenario, found: Answer, algorithm: str) -> str:
    told = in_json(scenario, found, algorithm)
    lines = [_head(told)]
    for stage in told["stages"]:
        lines.append(
            f"  units {stage['start']:>3}-{stage['end'] - 1:<3} {stage['peer']:<16} "
            f"{in_units(stage['weight_bytes']):>9} + {in_units(stage['kv_bytes'])} KV, "
            f"{stage['compute_ms']:.2f} ms, then {stage['link_ms']:.2f} ms of link"
        )
    if told["revisits"]:
        lines.append("  comes back to a device; compared, but never served")
    unused = [entry["peer"] for entry in told["excluded"] if entry["peer"] not in scenario.excluded]
    if unused:
        lines.append(f"  without {', '.join(unused)}")
    lines += [f"  without {entry['peer']}: {entry['reason']}" for entry in _unable(scenario)]
    notes = [*scenario.notes, *([found.reason] if found.layout and found.reason else [])]
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)])


def _head(told: dict[str, Any]) -> str:
    what = f"{told['algorithm']}, {told['objective']}, {told['model']} {told['dtype']}"
    if not told["feasible"]:
        return f"{what}: infeasible: {told['reason']}"
    said = told["predicted"]
    bound = f", bound {said['bound']:.2f} ms" if said["bound"] is not None else ""
    if said["objective_ms"] != said["ms_per_token"]:
        bound = f"; planned for {said['objective_ms']:.2f} ms{bound}"
    return (
        f"{what}: {said['ms_per_token']:.1f} ms/token, {said['tokens_per_s']:.2f} tokens/s with "
        f"{told['batch']} in flight by {said['micro_batch']}{bound}; busiest {said['bottleneck']} "
        f"({said['bottleneck_ms']:.2f} ms); plan {told['plan_id'][:6]}"
    )


def figures(goal: Goal, found: Answer) -> str:
    """``ms/token | tokens/s`` for a table."""
    said = predicted(goal, found, "exact")
    if said is None:
        return "infeasible"
    return f"{said['ms_per_token']:.1f} ms/token | {said['tokens_per_s']:.2f} tokens/s"


class SavedStage(Struct, frozen=True):
    peer: str
    start: int
    end: int


class SavedPlan(Struct, frozen=True):
    """What of a plan's JSON tells which weights are where."""

    plan_id: str
    model: str
    dtype: str
    stages: list[SavedStage]
    unit_weight_bytes: list[Count]
    tied_bytes: Count

    def __post_init__(self) -> None:
        n_units = len(self.unit_weight_bytes)
        if not all(0 <= stage.start <= stage.end <= n_units for stage in self.stages):
            raise ValueError(f"a stage is not within units 0-{n_units - 1}")

    def units(self) -> dict[str, set[int]]:
        held: dict[str, set[int]] = {}
        for stage in self.stages:
            held.setdefault(stage.peer, set()).update(range(stage.start, stage.end))
        return held


def moved_bytes(before: SavedPlan, after: SavedPlan) -> dict[str, int]:
    """By peer, the weights that it would have to load to go from one saved plan to another.  A
    matrix that embedding and head share is there with either; what is held of another model, or
    in another dtype, serves nothing."""
    sizes, tied_bytes = after.unit_weight_bytes, after.tied_bytes
    is_same = (before.model, before.dtype, before.unit_weight_bytes) == (
        after.model, after.dtype, sizes,
    )  # fmt: skip

    def n_bytes_of(held: set[int]) -> int:
        return sum(sizes[unit] for unit in held) - tied_bytes * ({0, len(sizes) - 1} <= held)

    old, new = before.units() if is_same else {}, after.units()
    moved = {}
    for peer, wanted in new.items():
        held = old.get(peer, set())
        moved[peer] = n_bytes_of(held | wanted) - n_bytes_of(held)
    return {peer: n_bytes for peer, n_bytes in sorted(moved.items()) if n_bytes}


def memory_words(scenario: Scenario, found: Answer, name: str) -> str:
    """How much of a device's memory the plan takes."""
    snapshot, layout = scenario.snapshot, found.layout
    device = next(device for device in snapshot.devices if device.peer.name == name)
    if layout is None:
        return in_units(device.budget_bytes)
    used = sum(bytes_on(snapshot, layout, device.peer, found.batch))
    return f"{in_units(used)} of {in_units(device.budget_bytes)}"
