"""What the peers of a plan say of themselves before and after: how long each of them computed.  And
what was to be expected of the plan."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from edgeshard_p2p.core.pass_sizes import PassSizes, round_us
from edgeshard_p2p.core.plan import Plan, Snapshot, Stage
from edgeshard_p2p.core.schedule import Schedule
from edgeshard_p2p.reports import as_pin


class Expected(Struct, frozen=True):
    """By the cost model, of the plan that serves and so many requests at once."""

    requests: int
    rows_per_pass: int
    ms_per_token: float
    """Of each of these requests."""
    tokens_per_s: float


def served_plan(report: dict[str, Any], snapshot: Snapshot) -> Plan | None:
    """The plan of a status report; None where one of its peers is not in ``snapshot``."""
    if not report["plan"]["stages"]:
        return None
    pin = as_pin(report["plan"])
    peers = {device.peer.name: device.peer for device in snapshot.devices}
    if not peers.keys() >= set(pin.names()):
        return None
    sources = tuple(peers[name] for name in pin.sources)
    stages = tuple(Stage(peers[stage.name], stage.units) for stage in pin.stages)
    return Plan(snapshot.model.digest, snapshot.workload, sources, pin.entry_end, stages)


def expected(
    plan: Plan, snapshot: Snapshot, n_requests: int, schedule: Schedule
) -> Expected | None:
    size = PassSizes().of(plan, n_requests, snapshot)
    if size is None:
        return None
    took_us = round_us(plan, size.rows, n_requests, snapshot, schedule)
    tokens_per_s = round(n_requests * 1e6 / took_us, 3)
    return Expected(n_requests, size.rows, took_us / 1e3, tokens_per_s)


def bubbles(
    before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]], seconds: float
) -> dict[str, float]:
    """The part of the time for which each peer did not compute, by its status before and after;
    of peers that could be asked both times and did not start anew between."""
    shares = {}
    for name in sorted(before.keys() & after.keys()):
        busy = [report["compute"]["busy_us"] / 1e6 for report in (before[name], after[name])]
        is_same = before[name]["self"]["generation"] == after[name]["self"]["generation"]
        if is_same and seconds > 0:
            shares[name] = round(max(0.0, 1 - (busy[1] - busy[0]) / seconds), 3)
    return shares
