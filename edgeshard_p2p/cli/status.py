"""``edgeshard status`` and ``edgeshard set``: the swarm as one peer sees it, and its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeshard_p2p.cli.common import USAGE, ask, fail, peer_options

MEASURED_FOR = ("dtype", "numerics")
"""Settings of which each has times of its own."""
QUICK_MBIT_PER_S = 100_000
"""Beyond this a probe's time is noise."""


@click.command()
@peer_options
def status(peer_address: str, swarm: str, secret_file: Path | None, as_json: bool) -> None:
    """Members, measurements, plan and requests."""
    from edgeshard_p2p.wire.client import Status, StatusReport

    report = ask(Status(), StatusReport, peer_address, swarm, secret_file, as_json).report
    print(json.dumps(report) if as_json else _in_words(report))


@click.command("set")
@click.argument("assignment", metavar="KEY=VALUE")
@click.option(
    "--for",
    "for_s",
    type=click.IntRange(1, 86_400),
    default=None,
    metavar="SECONDS",
    help="Of a pin: the peer that is asked lifts it after so long.",
)
@peer_options
def set_setting(
    assignment: str,
    for_s: int | None,
    peer_address: str,
    swarm: str,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    """Set a setting of the whole swarm, for instance batch=8.

    pin=NAME:0-10,NAME:10-32 puts the units where you say, for as long as these peers and the one
    that is asked are there; pin= lifts it.  The first range is the source's, A+B:0-2 that of
    several; who is not named there takes no prompts meanwhile.
    """
    from edgeshard_p2p.wire.client import Okay, Set

    key, equals, value = assignment.partition("=")
    if not equals:
        fail(f"{assignment!r} is not KEY=VALUE", USAGE, as_json)
    ask(Set(key, value, for_s or 0), Okay, peer_address, swarm, secret_file, as_json)
    if key in MEASURED_FOR:
        text = f"who does not know its times for {value} measures itself first, and answers wait"
        click.echo(f"edgeshard: {text}", err=True)
    if key == "pin" and value:
        _warn_of_pin(value, peer_address, swarm, secret_file, as_json)
    how_long = f" for {for_s} s" if for_s else ""
    print(json.dumps({key: value}) if as_json else f"{key} = {value}{how_long}")


def _warn_of_pin(
    pin: str, peer_address: str, swarm: str, secret_file: Path | None, as_json: bool
) -> None:
    """Where it cannot be followed now; it may be later, so it stays."""
    from edgeshard_p2p.core.pin import parse_pin
    from edgeshard_p2p.core.pinned import pinned_answer
    from edgeshard_p2p.wire.client import SwarmView, View

    seen = ask(View(), SwarmView, peer_address, swarm, secret_file, as_json)
    wanted = parse_pin(pin)
    if seen.snapshot is None or wanted is None:
        return
    found = pinned_answer(seen.snapshot, wanted)
    if found.layout is None:
        click.echo(f"edgeshard: not followed now: {found.reason}", err=True)


def _in_words(report: dict[str, Any]) -> str:
    sections = [
        _plan(report["plan"], report["settings"]),
        _table("members", report["members"], _member),
        _table("devices", report["profiles"], _profile),
        _table("links", report["links"], _link),
        _table("seen one way only", report["one_way"], _one_way),
        _table("requests owned here", report["requests"], _request),
    ]
    me = report["self"]
    role = "source" if me["is_source"] else "no source"
    head = f"{me['name']}@{me['generation']} at {me['address']}, {role}"
    if me["standby_units"]:
        ranges = ", ".join(f"{start}-{end - 1}" for start, end in me["standby_units"])
        head += f", on standby units {ranges}"
    if report.get("shaping"):
        head += f", {report['shaping']['links']} of its links are emulated (--shape)"
    return "\n".join([head, *[section for section in sections if section]])


def _plan(plan: dict[str, Any], settings: dict[str, Any]) -> str:
    if plan["plan_id"] is None:
        return f"plan: none; {plan['waiting_for']}"
    predicted, together = plan["predicted_ms_per_token"], plan["predicted_tokens_per_s"]
    speeds = [f"{predicted:.1f} ms/token alone"] if predicted is not None else []
    if together is not None and plan["batch"] > 1:
        size = f"{plan['micro_batch']} to a pass"
        size += " (micro_batch is set)" if settings.get("micro_batch") else ""
        size += ", with bubbles (schedule is set)" if settings.get("schedule") == "bubbles" else ""
        speeds.append(f"{together:.1f} tokens/s of {plan['batch']} requests, {size}")
    head = (
        f"plan {plan['plan_id'][:6]} {plan['state']}: {plan['dtype']} {plan['numerics']}, "
        f"{plan['batch']} x {plan['context']} tokens, for {plan['objective']}"
    )
    wished = plan["batch_wished"]
    if wished is not None and plan["batch"] < wished:
        head += (
            f"\n  memory has room for {plan['batch']} of the {wished} requests wished for at once"
        )
    lines = [
        head,
        *([f"  predicted {', '.join(speeds)}"] if speeds else []),
        *[f"  {_stage(stage)}" for stage in plan["stages"]],
    ]
    return "\n".join([*lines, *([f"  note: {plan['note']}"] if plan["note"] else [])])


def _stage(stage: dict[str, Any]) -> str:
    kind = "source " if stage["stage"] == 0 else f"stage {stage['stage']}"
    ready = "ready" if stage["is_ready"] else "not ready"
    return f"{kind}  units {stage['start']}-{stage['end'] - 1}  {stage['peer']}  {ready}"


def _table(title: str, rows: list[dict[str, Any]], describe: Any) -> str:
    return "\n".join([f"{title}:", *[f"  {describe(row)}" for row in rows]]) if rows else ""


def _member(row: dict[str, Any]) -> str:
    return (
        f"{row['name']}@{row['generation']}  {row['state']}  incarnation {row['incarnation']}  "
        f"{row['address']}"
    )


def _profile(row: dict[str, Any]) -> str:
    if not row.get("decode") or not row.get("prefill"):
        return f"{row['name']}  not measured: {row['why_not']}"
    one = row["decode"][0]
    why_not = f"  not planned: {row['why_not']}" if row["why_not"] else ""
    chunk = row["prefill"][-1]
    beside = f"{row['pass_us'] / 1e3:.1f} ms per pass besides; " if row.get("pass_us") else ""
    if row.get("rested_us"):
        beside += f"{row['rested_us'] / 1e3:.1f} ms less after a rest; "
    return (
        f"{row['name']}  block {one['block_us'] / 1e3:.2f} ms, head {one['head_us'] / 1e3:.2f} ms "
        f"per token; block {chunk['block_us'] / 1e3:.1f} ms per {chunk['rows']}-token chunk; "
        f"{beside}{row['budget_bytes'] / 2**20:.0f} MiB{why_not}"
    )


def _link(row: dict[str, Any]) -> str:
    mbit_per_s = row["bytes_per_s"] * 8 / 1e6
    speed = f"{mbit_per_s:.0f} Mbit/s" if mbit_per_s < QUICK_MBIT_PER_S else "over 100 Gbit/s"
    return f"{row['from']} -> {row['to']}  round trip {row['round_trip_us'] / 1e3:.2f} ms, {speed}"


def _one_way(row: dict[str, Any]) -> str:
    return f"{row['from']} gets no direct answer from {row['to']}"


def _request(row: dict[str, Any]) -> str:
    cause = f"  ({row['cause']})" if row["cause"] else ""
    return (
        f"{row['request']}  {row['state']}  attempt {row['attempt']}  "
        f"{row['prompt_tokens']} + {row['generated_tokens']} tokens{cause}"
    )
