"""From the options of ``plan`` and ``simulate`` to a scenario and what an algorithm makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeshard_p2p.cli.common import FAILED, USAGE, Decorator, ask, fail
from edgeshard_p2p.core.model_spec import PLANNED_BITS
from edgeshard_p2p.core.plan import ALGORITHMS, FIRST_LAYERS, OBJECTIVES

if TYPE_CHECKING:
    from edgeshard_p2p.core.answers import Answer
    from edgeshard_p2p.core.model_spec import ModelSpec
    from edgeshard_p2p.core.scenario import Scenario

DEFAULT_BATCH = {"latency": 1, "throughput": 8}


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What is not given is None or 0."""

    model: str = ""
    """Of a topology file; a running swarm has its own."""
    objective: str | None = None
    algorithm: str = "exact"
    context: int | None = None
    prompt: int = 0
    generate: int = 0
    batch: int | None = None
    micro_batch: int | None = None
    dtype: str | None = None
    private_head: bool = False
    first_layer: str | None = None
    kv: bool | None = None
    own_framing: bool = False
    as_json: bool = False


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which ``plan`` and ``simulate`` find a plan."""
    options: list[Decorator] = [
        click.option("--objective", type=click.Choice(OBJECTIVES),
                     help="What the plan is to be good at.  [default: latency]"),
        click.option("--algorithm", type=click.Choice(ALGORITHMS), default="exact",
                     show_default=True, help="How the plan is found."),
        click.option("--context", type=click.IntRange(1, 2**24), metavar="N",
                     help="Tokens of a sequence, at most.  [default: up to 2048]"),
        click.option("--batch", type=click.IntRange(1, 4096), metavar="B",
                     help="Sequences in flight.  [default: 1; for throughput 8]"),
        click.option("--micro-batch", type=click.IntRange(1, 4096), metavar="b",
                     help="Sequences of a micro-batch, for throughput.  [default: the best]"),
        click.option("--dtype", type=click.Choice(tuple(PLANNED_BITS)), help="[default: fp32]"),
        click.option("--private-head", is_flag=True,
                     help="The sources also hold the last units; nobody else sees a token."),
        click.option("--first-layer", type=click.Choice(FIRST_LAYERS),
                     help="Last unit of each source's own part.  [default: the file's]"),
        click.option("--kv/--no-kv", default=None,
                     help="Whether KV takes memory.  [default: as the file has it]"),
        click.option("--own-framing", is_flag=True,
                     help="Rows and tokens as peers frame them, whatever the file says."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def read_scenario(topology: Path, options: PlanOptions) -> Scenario:
    """Ends the command where the file, the model or an option cannot be."""
    from edgeshard_p2p.core.plan import DEFAULT_FRAMING, Goal
    from edgeshard_p2p.topology import TopologyError, read_topology

    objective = options.objective or "latency"
    batch = options.batch or DEFAULT_BATCH[objective]
    _check_micro_batch(options, objective, batch)
    goal = Goal(
        objective,
        options.prompt,
        options.generate,
        options.micro_batch or 0,
        options.private_head,
    )
    try:
        file = read_topology(topology)
        model = _model(options)
        return file.scenario(
            model,
            dtype=options.dtype or "fp32",
            context=_context(options, model),
            batch=batch,
            goal=goal,
            first_layer=options.first_layer,
            kv=options.kv,
            framing=DEFAULT_FRAMING if options.own_framing else None,
        )
    except TopologyError as error:
        fail(str(error), USAGE, options.as_json)


def read_live(
    peer_address: str, swarm: str, secret_file: Path | None, options: PlanOptions
) -> Scenario:
    """What one of its peers knows of a running swarm; what no option says is as the swarm has it.
    Ends the command where no peer answers, or there is nothing to plan."""
    from edgeshard_p2p.core.live import LiveError, live_scenario
    from edgeshard_p2p.wire.client import SwarmView, View

    seen = ask(View(), SwarmView, peer_address, swarm, secret_file, options.as_json)
    if seen.snapshot is None:
        fail(seen.waiting_for, FAILED, options.as_json)
    try:
        return _as_asked(live_scenario(seen.snapshot, seen.excluded), options)
    except LiveError as error:
        fail(f"{peer_address} gives what cannot be planned: {error}", FAILED, options.as_json)


def _as_asked(scenario: Scenario, options: PlanOptions) -> Scenario:
    """``scenario`` with what the options say in place of what was settled before."""
    from msgspec.structs import replace

    from edgeshard_p2p.core.whatif import changed

    if options.dtype not in (None, scenario.snapshot.workload.dtype):
        scenario = changed(scenario, f"dtype={options.dtype}")
    settled, goal = scenario.snapshot.workload, scenario.snapshot.goal
    objective, batch = options.objective or goal.objective, options.batch or settled.batch
    _check_micro_batch(options, objective, batch)
    workload = replace(
        settled,
        context=options.context or settled.context,
        batch=batch,
        first_layer=options.first_layer or settled.first_layer,
    )
    goal = replace(
        goal,
        objective=objective,
        prompt=options.prompt or goal.prompt,
        generate=options.generate or goal.generate,
        micro_batch=options.micro_batch or goal.micro_batch,
        private_head=options.private_head or goal.private_head,
    )
    return replace(scenario, snapshot=replace(scenario.snapshot, workload=workload, goal=goal))


def _check_micro_batch(options: PlanOptions, objective: str, batch: int) -> None:
    from edgeshard_p2p.core.settings import why_at_odds

    if options.micro_batch and objective != "throughput":
        fail("--micro-batch is for --objective throughput", USAGE, options.as_json)
    why_not = why_at_odds({"batch": batch, "micro_batch": options.micro_batch or 0})
    if why_not:
        fail(why_not, USAGE, options.as_json)


def _context(options: PlanOptions, model: ModelSpec) -> int:
    from edgeshard_p2p.core.view import DEFAULT_CONTEXT

    wanted = options.prompt + options.generate
    context = options.context or min(model.max_context, max(DEFAULT_CONTEXT, wanted))
    if wanted > context:
        text = f"--prompt and --generate are {wanted} tokens, more than the context of {context}"
        fail(text, USAGE, options.as_json)
    return context


def _model(options: PlanOptions) -> ModelSpec:
    """A shipped spec, a spec file, or whatever ``peer --model`` takes, of which only the
    configuration is read."""
    from edgeshard_p2p.specs import read_spec, shipped, shipped_spec

    name = options.model
    if (spec := shipped_spec(name)) is not None:
        return spec
    if name.endswith(".toml"):
        return read_spec(Path(name))
    from edgeshard_p2p.model import library
    from edgeshard_p2p.model.checkpoint import spec_of_config
    from edgeshard_p2p.model.errors import ModelError

    try:
        return spec_of_config(library.resolve(name).path)
    except ModelError as error:
        known = ", ".join(shipped())
        fail(f"{error} (or a spec that ships: {known})", USAGE, options.as_json)


def plan_of(scenario: Scenario, options: PlanOptions) -> Answer:
    """Ends the command where the algorithm needs a cloud that is not there."""
    from edgeshard_p2p.core.baselines import NoCloud, plan_by

    try:
        return plan_by(options.algorithm, scenario)
    except NoCloud as error:
        fail(f"{options.algorithm}: {error}", USAGE, options.as_json)
