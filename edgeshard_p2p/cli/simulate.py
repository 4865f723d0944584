"""``edgeshard simulate``: N requests through the plan of a topology file, event by event, beside
what the closed form says.  Knows nothing of how the plan was found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from edgeshard_p2p.cli.common import FAILED, USAGE, fail
from edgeshard_p2p.cli.planning import PlanOptions, plan_of, plan_options, read_scenario

if TYPE_CHECKING:
    from edgeshard_p2p.core.layout import Layout
    from edgeshard_p2p.core.scenario import Scenario
    from edgeshard_p2p.core.schedule import Schedule
    from edgeshard_p2p.sim.pipeline import Report, Use


@dataclass(frozen=True, slots=True)
class Simulated:
    schedule: Schedule
    rows: int
    """Of a micro-batch."""
    report: Report
    closed_form_us: int
    """Time of an iteration by ``core.schedule``."""

    @property
    def difference_percent(self) -> float | None:
        """How much longer the simulated iteration is."""
        if self.report.iteration_us is None or not self.closed_form_us:
            return None
        return (self.report.iteration_us / self.closed_form_us - 1) * 100


def simulated(
    scenario: Scenario,
    layout: Layout,
    batch: int,
    micro_batch: int,
    *,
    requests: int,
    prompt: int,
    generate: int,
    schedule: Schedule,
    seed: int,
) -> Simulated:
    """``requests`` come at once; ``batch`` are in flight, ``micro_batch`` in a micro-batch."""
    from msgspec.structs import replace

    from edgeshard_p2p.core.layout import latency_us, loads
    from edgeshard_p2p.core.schedule import iteration_us
    from edgeshard_p2p.sim import pipeline

    snapshot, rows = scenario.snapshot, min(batch, micro_batch, requests)
    groups = pipeline.groups_of(
        snapshot,
        layout,
        requests=requests,
        prompt=prompt,
        batch=batch,
        micro_batch=micro_batch,
        seed=seed,
    )
    report = pipeline.simulate(groups, batch=batch, generate=generate, schedule=schedule)
    # Fewer may be in flight than there are sources: then the form is of those that are.
    counted = {group.source for group in groups[: report.n_micro_batches]}
    sources = tuple(source for source in layout.sources if source.name in counted)
    in_flight = replace(layout, sources=sources)
    bottleneck_us = max(loads(snapshot, in_flight, rows).values())
    pipeline_us = latency_us(snapshot, in_flight, rows, report.n_micro_batches)
    closed_form_us = iteration_us(schedule, pipeline_us, bottleneck_us, report.n_micro_batches)
    return Simulated(schedule, rows, report, closed_form_us)


def _count(most: int) -> click.IntRange:
    return click.IntRange(1, most)


@click.command()
@click.argument("topology", type=click.Path(path_type=Path), metavar="TOPOLOGY")
@click.option(
    "--model", required=True, metavar="M", help="The model, as `edgeshard plan` names it."
)
@click.option(
    "--requests",
    type=_count(100_000),
    default=8,
    show_default=True,
    metavar="N",
    help="Requests, all at once.",
)
@click.option(
    "--prompt",
    type=_count(2**24),
    default=32,
    show_default=True,
    metavar="P",
    help="Tokens of each prompt.",
)
@click.option(
    "--generate",
    type=_count(2**16),
    default=96,
    show_default=True,
    metavar="G",
    help="Tokens of each answer.",
)
@click.option(
    "--schedule",
    type=click.Choice(["bubbles", "no-bubbles"]),
    default="no-bubbles",
    show_default=True,
    help="When a micro-batch may start its next token.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="S",
    help="Whose prompts come first, where there are several sources.",
)
@click.option(
    "--gantt",
    "wants_gantt",
    is_flag=True,
    help="Draw the first iterations that all are in, as text.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw them to a .png or .svg.",
)
@plan_options
def simulate(
    topology: Path,
    requests: int,
    prompt: int,
    generate: int,
    schedule: str,
    seed: int,
    wants_gantt: bool,
    plot_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Put requests through the plan of a topology file, without any device."""
    from edgeshard_p2p.sim.gantt import full_from, gantt

    if plot_file is not None:
        _check_plot(plot_file, as_json)
    wanted = PlanOptions(prompt=prompt, generate=generate, as_json=as_json, **options)
    scenario = read_scenario(topology, wanted)
    answer = plan_of(scenario, wanted)
    if answer.layout is None or answer.prediction is None:
        fail(f"infeasible: {answer.reason}", FAILED, as_json)
    result = simulated(
        scenario,
        answer.layout,
        answer.batch,
        answer.prediction.micro_batch,
        requests=requests,
        prompt=prompt,
        generate=generate,
        schedule=cast("Schedule", schedule),
        seed=seed,
    )
    # Prompts take so much longer that nothing would be seen of tokens beside them.
    first = full_from(result.report.trace, result.report.n_micro_batches)
    picture = gantt(result.report.trace, first=first) if wants_gantt else ""
    if plot_file is not None:
        _plot(result, plot_file, first, as_json)
    print(json.dumps(in_json(result, picture)) if as_json else in_words(result, picture))


def _check_plot(file: Path, as_json: bool) -> None:
    from edgeshard_p2p.cli.plot import PlotError, check_plot

    try:
        check_plot(file)
    except PlotError as error:
        fail(str(error), USAGE, as_json)


def _plot(result: Simulated, file: Path, first: int, as_json: bool) -> None:
    from edgeshard_p2p.cli.plot import PlotError, plot

    title = f"{result.schedule}, {_micro_batches(result)}"
    try:
        plot(result.report.trace, file, title, first)
    except PlotError as error:
        fail(str(error), FAILED, as_json)


def in_words(result: Simulated, picture: str = "") -> str:
    report = result.report
    between = report.token_us
    lines = [
        f"{len(report.ttft_us)} requests in {report.total_us / 1e6:.3f} s, {result.schedule}, "
        f"{_micro_batches(result)}",
        f"  first token  p50 {_ttft_p50_us(report) / 1e3:.2f} ms",
        f"  token        mean {between.mean_us / 1e3:.2f} ms, p50 {between.p50_us / 1e3:.2f} ms, "
        f"p99 {between.p99_us / 1e3:.2f} ms",
        f"  throughput   {report.tokens_per_s:.2f} tokens/s",
        f"  iteration    {_iteration(result)}",
    ]
    width = max(len("resource"), *(len(use.resource) for use in report.uses))
    lines += [f"{'resource':<{width}}     busy   bubbles (while decoding)"]
    lines += [f"{use.resource:<{width}}  {_shares(use)}" for use in report.uses]
    return "\n".join([*lines, *([picture] if picture else [])])


def in_json(result: Simulated, picture: str = "") -> dict[str, Any]:
    report = result.report
    between, iteration = report.token_us, report.iteration_us
    told = {
        "schedule": result.schedule,
        "requests": len(report.ttft_us),
        "micro_batches": report.n_micro_batches,
        "micro_batch": result.rows,
        "total_ms": report.total_us / 1e3,
        "ttft_p50_ms": _ttft_p50_us(report) / 1e3,
        "ttft_ms": [us / 1e3 for us in report.ttft_us],
        "finish_ms": [us / 1e3 for us in report.finish_us],
        "ms_per_token": {
            "mean": between.mean_us / 1e3,
            "p50": between.p50_us / 1e3,
            "p99": between.p99_us / 1e3,
        },
        "tokens_per_s": report.tokens_per_s,
        "iteration_ms": None if iteration is None else iteration / 1e3,
        "closed_form_ms": result.closed_form_us / 1e3,
        "difference_percent": result.difference_percent,
        "resources": [
            {
                "resource": use.resource,
                "busy_ms": use.busy_us / 1e3,
                "busy_share": use.busy_share,
                "bubble_share": use.bubble_share,
            }
            for use in report.uses
        ],
    }
    return {**told, "gantt": picture} if picture else told


def _micro_batches(result: Simulated) -> str:
    return f"{result.report.n_micro_batches} micro-batches of at most {result.rows} in flight"


def _ttft_p50_us(report: Report) -> int:
    return sorted(report.ttft_us)[(len(report.ttft_us) - 1) // 2]


def _iteration(result: Simulated) -> str:
    simulated_us, difference = result.report.iteration_us, result.difference_percent
    closed_form = f"closed form {result.closed_form_us / 1e3:.2f} ms"
    if simulated_us is None or difference is None:
        return f"no steady state in so few tokens, {closed_form}"
    # A difference that rounds to nothing has no sign.
    percent = round(difference, 2) or 0.0
    return f"{simulated_us / 1e3:.2f} ms simulated, {closed_form}, {percent:+.2f} %"


def _shares(use: Use) -> str:
    bubbles = "-" if use.bubble_share is None else f"{use.bubble_share * 100:.1f} %"
    return f"{use.busy_share * 100:5.1f} %  {bubbles:>8}"
