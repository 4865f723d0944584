"""``edgeshard plan``: what the planner would do, with the devices of a running swarm or with
devices that need not be there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from edgeshard_p2p.cli.common import FAILED, USAGE, fail, reach_options
from edgeshard_p2p.cli.planning import (
    PlanOptions,
    plan_of,
    plan_options,
    read_live,
    read_scenario,
)
from edgeshard_p2p.core.plan import ALGORITHMS

if TYPE_CHECKING:
    from edgeshard_p2p.cli.plan_words import SavedPlan
    from edgeshard_p2p.core.answers import Answer
    from edgeshard_p2p.core.scenario import Scenario

_Step = TypeVar("_Step")

REACH = {"peer_address": "--peer", "swarm": "--swarm", "secret_file": "--secret-file"}


@click.command()
@click.option(
    "--topology",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Devices and links, as topology/*.toml.",
)
@click.option(
    "--live",
    is_flag=True,
    help="In place of --topology and --model: the running swarm, as it has measured itself, with "
    "its own settings where no option says otherwise.",
)
@click.option(
    "--model", metavar="NAME|PATH|SPEC.toml", help="A shipped spec, a model, a spec file."
)
@click.option(
    "--prompt",
    type=click.IntRange(0, 2**24),
    default=0,
    metavar="P",
    help="Expected prompt; with --generate its prefill counts too.",
)
@click.option(
    "--generate", type=click.IntRange(0, 2**16), default=0, metavar="G", help="Expected answer."
)
@click.option(
    "--what-if",
    "changes",
    multiple=True,
    metavar="CHANGE",
    help="drop=NAME, add=CLASS (of a running swarm: one like NAME), bandwidth:A-B=MBPS, "
    "memory:NAME=GIB, dtype=D; repeatable.",
)
@click.option("--explain", is_flag=True, help="Each device: what holds it, what it is worth.")
@click.option("--compare", is_flag=True, help="All algorithms in one table.")
@click.option("--survives", is_flag=True, help="The plan after each single loss.")
@click.option(
    "--diff",
    "saved",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="A B",
    help="Two plans saved with --json: the bytes that would move.",
)
@reach_options
@plan_options
def plan(
    topology: Path | None,
    live: bool,
    model: str | None,
    changes: tuple[str, ...],
    explain: bool,
    compare: bool,
    survives: bool,
    saved: tuple[Path, Path] | None,
    peer_address: str,
    swarm: str,
    secret_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Which devices would run which layers, how fast, and why."""
    _check_live(live, bool(saved or topology or model), as_json)
    if saved:
        _print_diff(saved, as_json)
        return
    if explain + compare + survives > 1:
        fail("--explain, --compare and --survives are one at a time", USAGE, as_json)
    wanted = PlanOptions(model or "", as_json=as_json, **options)
    if live:
        scenario = read_live(peer_address, swarm, secret_file, wanted)
    elif topology is None or model is None:
        fail("--topology and --model are needed, or --live", USAGE, as_json)
    else:
        scenario = read_scenario(topology, wanted)
    after = _changed(scenario, changes, as_json)
    if compare:
        _print_comparison(after, wanted)
    elif survives:
        _print_losses(after, wanted)
    elif explain:
        _print_explanation(after, wanted)
    else:
        _print_plans([scenario, after] if changes else [scenario], wanted)


def _check_live(is_live: bool, has_files: bool, as_json: bool) -> None:
    """With --live devices and model are the swarm's; without it there is no peer to talk to."""
    if is_live and has_files:
        text = "--live plans the running swarm and its model: no --topology, --model or --diff"
        fail(text, USAGE, as_json)
    source_of = click.get_current_context().get_parameter_source
    for name, option in REACH.items():
        if not is_live and source_of(name) is not ParameterSource.DEFAULT:
            fail(f"{option} is for --live", USAGE, as_json)


def _changed(scenario: Scenario, changes: tuple[str, ...], as_json: bool) -> Scenario:
    from edgeshard_p2p.core.whatif import WhatIfError, changed

    try:
        for change in changes:
            scenario = changed(scenario, change)
    except WhatIfError as error:
        fail(str(error), USAGE, as_json)
    return scenario


def _print_plans(scenarios: list[Scenario], options: PlanOptions) -> None:
    """One plan, or the plans before and after the changes; the last one decides the exit code."""
    from edgeshard_p2p.cli.plan_words import in_json, in_words

    found = [plan_of(scenario, options) for scenario in scenarios]
    pairs = list(zip(scenarios, found, strict=True))
    if options.as_json:
        told = [in_json(scenario, answer, options.algorithm) for scenario, answer in pairs]
        whole = told[0] if len(told) == 1 else {"before": told[0], "after": told[1]}
        print(json.dumps(whole))
    else:
        labels = ["before: ", "after:  "] if len(pairs) > 1 else [""]
        for label, (scenario, answer) in zip(labels, pairs, strict=True):
            print(label + in_words(scenario, answer, options.algorithm))
    if found[-1].layout is None:
        sys.exit(FAILED)


def _print_comparison(scenario: Scenario, options: PlanOptions) -> None:
    from edgeshard_p2p.cli.plan_words import figures, in_json
    from edgeshard_p2p.core.baselines import NoCloud, plan_by

    goal = scenario.snapshot.goal
    found: dict[str, Answer | str] = {}
    for algorithm in ALGORITHMS:
        try:
            found[algorithm] = plan_by(algorithm, scenario)
        except NoCloud as error:
            found[algorithm] = str(error)
    if options.as_json:
        print(json.dumps({
            name: {"feasible": False, "reason": one} if isinstance(one, str)
            else in_json(scenario, one, name)
            for name, one in found.items()
        }))  # fmt: skip
        return
    for name, one in found.items():
        if isinstance(one, str):
            print(f"{name:<16} {one}")
            continue
        again = "  (comes back to a device)" if one.layout and one.layout.revisits else ""
        why = f": {one.reason}" if one.layout is None else again
        print(f"{name:<16} {figures(goal, one)}{why}")


def _print_losses(scenario: Scenario, options: PlanOptions) -> None:
    from edgeshard_p2p.cli.plan_words import figures, in_json
    from edgeshard_p2p.core.whatif import changed

    goal = scenario.snapshot.goal
    found = plan_of(scenario, options)
    peers = [peer.name for peer in found.layout.peers()] if found.layout else []
    losses = {}
    for name in _shown(peers, len(peers), "without each"):
        left = changed(scenario, f"drop={name}")
        losses[name] = left, plan_of(left, options)
    if options.as_json:
        told = {name: in_json(left, one, options.algorithm) for name, (left, one) in losses.items()}
        print(json.dumps({"plan": in_json(scenario, found, options.algorithm), "losses": told}))
    else:
        why = f": {found.reason}" if found.layout is None else ""
        print(f"{'with all':<16} {figures(goal, found)}{why}")
        for name, (_, one) in losses.items():
            why = f": {one.reason}" if one.reason else ""
            print(f"{'without ' + name:<16} {figures(goal, one)}{why}")
    if found.layout is None:
        sys.exit(FAILED)


def _print_explanation(scenario: Scenario, options: PlanOptions) -> None:
    from edgeshard_p2p.cli.plan_words import figures, in_json, in_words, memory_words, predicted
    from edgeshard_p2p.core.explain import readings

    if options.algorithm != "exact":
        fail("--explain explains exact only", USAGE, options.as_json)
    goal = scenario.snapshot.goal
    found = plan_of(scenario, options)
    n_devices = len(scenario.order)
    read = list(_shown(readings(scenario, found), n_devices, "what if"))
    if options.as_json:
        told = [
            {
                "peer": one.peer,
                "used": one.is_used,
                "bound_by": one.bound_by,
                "without": predicted(goal, one.without, "exact"),
                "another": predicted(goal, one.twice, "exact"),
            }
            for one in read
        ]
        print(json.dumps({**in_json(scenario, found, "exact"), "devices": told}))
    else:
        print(in_words(scenario, found, "exact"))
        for one in read:
            part = "used" if one.is_used else "not used"
            print(
                f"  {one.peer:<16} {part}, held by {one.bound_by}, "
                f"{memory_words(scenario, found, one.peer)}; "
                f"without it {figures(goal, one.without)}; "
                f"with another like it {figures(goal, one.twice)}"
            )
    if found.layout is None:
        sys.exit(FAILED)


def _shown(steps: Iterable[_Step], n_steps: int, label: str) -> Iterator[_Step]:
    """With a bar on stderr, if that is a terminal."""
    is_hidden = not sys.stderr.isatty()
    bar = click.progressbar(steps, n_steps, label, hidden=is_hidden, file=sys.stderr)
    with bar as shown:
        yield from shown


def _print_diff(saved: tuple[Path, Path], as_json: bool) -> None:
    from edgeshard_p2p.cli.plan_words import moved_bytes
    from edgeshard_p2p.core.answers import in_units

    before, after = (_saved(file, as_json) for file in saved)
    moved = moved_bytes(before, after)
    if as_json:
        ids = {"before": before.plan_id, "after": after.plan_id}
        print(json.dumps({**ids, "moved_bytes": moved, "total_bytes": sum(moved.values())}))
        return
    for peer, n_bytes in moved.items():
        print(f"{peer:<16} loads {in_units(n_bytes)}")
    print(f"{'in all':<16} {in_units(sum(moved.values()))}")


def _saved(file: Path, as_json: bool) -> SavedPlan:
    import msgspec

    from edgeshard_p2p.cli.plan_words import SavedPlan

    try:
        return msgspec.json.decode(file.read_bytes(), type=SavedPlan)
    except OSError as error:
        fail(f"{file}: {error}", USAGE, as_json)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        text = f"{file} is no plan saved with `edgeshard plan --json`: {error}"
        fail(text, USAGE, as_json)
