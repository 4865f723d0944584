"""From the options of ``plan`` and ``simulate`` to a scenario and what an algorithm makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeshard_p2p.cli.common import USAGE, fail

if TYPE_CHECKING:
    from edgeshard_p2p.core.model_spec import ModelSpec
    from edgeshard_p2p.core.planner import Answer
    from edgeshard_p2p.core.scenario import Scenario

ALGORITHMS = ("exact", "paper", "edge-solo", "cloud-edge-even", "cloud-edge-opt", "even")
DTYPES = ("fp32", "bf16", "fp16", "int8", "int4")
DEFAULT_CONTEXT = 2048
DEFAULT_BATCH = {"latency": 1, "throughput": 8}


@dataclass(frozen=True, slots=True)
class PlanOptions:
    model: str
    objective: str = "latency"
    algorithm: str = "exact"
    context: int | None = None
    prompt: int = 0
    generate: int = 0
    batch: int | None = None
    micro_batch: int | None = None
    dtype: str | None = None
    as_json: bool = False


def read_scenario(topology: Path, options: PlanOptions) -> Scenario:
    """Ends the command where the file, the model or an option cannot be."""
    from edgeshard_p2p.core.plan import Goal
    from edgeshard_p2p.topology import TopologyError, read_topology

    goal = Goal(options.objective, options.prompt, options.generate, options.micro_batch or 0)
    try:
        file = read_topology(topology)
        model = _model(options)
        wanted = max(DEFAULT_CONTEXT, options.prompt + options.generate)
        return file.scenario(
            model,
            dtype=options.dtype or "fp32",
            context=options.context or min(model.max_context, wanted),
            batch=options.batch or DEFAULT_BATCH[options.objective],
            goal=goal,
        )
    except TopologyError as error:
        fail(str(error), USAGE, options.as_json)


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
