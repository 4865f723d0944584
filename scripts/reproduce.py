"""What ``scripts/reproduce`` runs: the paper's comparison on emulated devices, and its report."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import click
import comparing
from cell_log import Log, Progress, known_lines, run_of
from comparing import Speeds
from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.cli.common import Finite
from edgeshard_p2p.cli.plot import PlotError, check_plot, plot_comparison
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import KV_POSITIONS
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.emulation import check_fits
from edgeshard_p2p.faults.ending import end_on_term
from edgeshard_p2p.faults.namespaces import NamespaceError, why_not
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.library import DEMO_NAME, cache_dir, fetch_demo_model, resolve
from edgeshard_p2p.prompts import SLACK, prompt_of
from edgeshard_p2p.reproduction import lines as written
from edgeshard_p2p.reproduction import pool
from edgeshard_p2p.reproduction.cells import LATENCY, THROUGHPUT, Cell, Part, parts_of
from edgeshard_p2p.reproduction.figures import accuracy, gain, series
from edgeshard_p2p.reproduction.lines import Lines, LinesError
from edgeshard_p2p.reproduction.report import UNITS, report

FAILED, USAGE = 1, 2
OUT = Path("docs/results")
NAME = "reproduce"
PROMPT = 32
"""Tokens, as in the paper; it has 96 come back."""
FASTEST_CORES = 0.9
SAME = ("model", "prompt_tokens", "generate", "repeats", "requests", "seed", "context")
"""What all cells of a report have in common."""


def say(text: str) -> None:
    click.echo(text, err=True)


def fail(text: str, exit_code: int) -> NoReturn:
    say(f"reproduce: {text}")
    sys.exit(exit_code)


@click.command("reproduce", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="The first bandwidth alone, few tokens, once each.")
@click.option("--full", is_flag=True, help="Everything at every bandwidth, from both sources.")
@click.option(
    "--mbps",
    multiple=True,
    type=Finite(0.1, 1000),
    metavar="RATE",
    help="Of the paper's, between source and cloud; may be repeated, the lowest comes "
    f"first.  [default: {', '.join(f'{rate:g}' for rate in pool.RATES_MBPS)}]",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=click.Choice(list(pool.SOURCES)),
    help="Which edge device prompts come in at.  May be repeated.  [default: both]",
)
@click.option("--repeats", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option(
    "--generate",
    type=click.IntRange(4, 96),
    default=16,
    show_default=True,
    help="Tokens of an answer.",
)
@click.option(
    "--requests",
    type=click.IntRange(2, 64),
    default=8,
    show_default=True,
    help="At once, for throughput.",
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@click.option(
    "--minutes",
    type=Finite(1, 1440),
    metavar="N",
    help="No cell begins later than so long after the start.",
)
@click.option("--model", default=DEMO_NAME, show_default=True, metavar="NAME|PATH")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=OUT,
    show_default=True,
    metavar="DIR",
    help=f"Where {NAME}.jsonl, {NAME}.md and the pictures go.",
)
@click.option("--resume", is_flag=True, help="Go on with the lines that are there.")
@click.option(
    "--report",
    "only_report",
    is_flag=True,
    help="Measure nothing: the report from the lines that are there.",
)
@click.option("--logs", type=click.Path(path_type=Path), metavar="DIR", help="Keep peers' logs.")
@click.option("--json", "as_json", is_flag=True, help="What was found, as one object.")
def main(
    quick: bool,
    full: bool,
    mbps: tuple[float, ...],
    sources: tuple[str, ...],
    repeats: int,
    generate: int,
    requests: int,
    seed: int,
    minutes: float | None,
    model: str,
    out: Path,
    resume: bool,
    only_report: bool,
    logs: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure the plans of each of the paper's algorithms, and ours, on four emulated devices, and
    write the report.  Every cell is written as soon as it is there.

    Needs Linux, root and two cores that nothing else uses.  Exit code: 0 where all cells were
    measured or say why they cannot be.
    """
    end_on_term()
    if quick and full:
        fail("--quick and --full are not both possible", USAGE)
    file = out / f"{NAME}.jsonl"
    try:
        is_whole = True
        if not only_report:
            out.mkdir(parents=True, exist_ok=True)
            check_plot(out / f"{NAME}.svg")
            rates = sorted(set(mbps)) or list(pool.RATES_MBPS)
            if quick:
                rates, repeats, generate = rates[:1], 1, min(generate, 8)
            names = list(dict.fromkeys(sources)) or list(pool.SOURCES)[: 1 if quick else None]
            parts = parts_of(rates, names, full)
            wish = _wish(model, repeats, generate, requests, seed, minutes, logs, resume)
            is_whole = _measure(wish, parts, file)
        _report(file, as_json)
        sys.exit(0 if is_whole else FAILED)
    except (FaultError, NamespaceError, ModelError, PlotError, LinesError) as error:
        fail(str(error), getattr(error, "exit_code", FAILED))
    except OSError as error:
        fail(f"{error.filename or file}: {error.strerror}", FAILED)
    except KeyboardInterrupt:
        fail(f"cancelled; what is measured is written to {file} as it comes", FAILED)


class Wish(Struct, frozen=True):
    wanted: comparing.Wanted
    spec: ModelSpec
    n_prompt: int
    """Tokens of the first prompt."""
    minutes: float | None
    logs: Path | None
    resume: bool


def _wish(
    model: str,
    repeats: int,
    generate: int,
    requests: int,
    seed: int,
    minutes: float | None,
    logs: Path | None,
    resume: bool,
) -> Wish:
    """Fetches the model where it is the demo's and not here.  Raises ModelError."""
    # Light until here: a report, and what cannot be, need no torch.
    from edgeshard_p2p.model.checkpoint import spec_of_config
    from edgeshard_p2p.model.text import Tokenizer

    path = fetch_demo_model(say).path if model == DEMO_NAME else resolve(model).path
    tokenizer = Tokenizer(path)
    prompt, n_prompt = prompt_of(PROMPT, lambda text: len(tokenizer.encode(text, True)))
    context = -(-(n_prompt + SLACK + generate) // KV_POSITIONS) * KV_POSITIONS
    n_words = len(prompt.split())
    wanted = comparing.Wanted(
        str(path), n_words, FASTEST_CORES, context, repeats, generate, requests, seed
    )
    return Wish(wanted, spec_of_config(path), n_prompt, minutes, logs, resume)


def _measure(wish: Wish, parts: Sequence[Part], file: Path) -> bool:
    """Whether all of it was come to."""
    missing = why_not()
    if missing:
        raise FaultError(f"emulated devices need {missing}")
    wanted, ends_at = wish.wanted, None
    if wish.minutes is not None:
        ends_at = time.monotonic() + 60 * wish.minutes
    known = known_lines(file) if wish.resume else None
    profiles = cache_dir() / "reproduce" / f"{FASTEST_CORES:g}-{wanted.context}"
    if known is not None:
        speeds = Speeds({d.name: d.cores for d in known.run.devices}, known.run.scale)
    else:
        speeds = _scaled(wish, parts[0].source, profiles)
    peers = comparing.peers_of(wanted, parts[0].source, wish.spec, speeds.cores)
    run = run_of(wanted, wish.spec, wish.n_prompt, speeds, peers)
    if known is not None:
        _check_same(file, known.run, run)
    agx_ms = speeds.scale * pool.AGX_MS
    say(f"scale {speeds.scale:.3f}: the emulated AGX Orin takes {agx_ms:.0f} ms for a token")
    row_bytes = wish.spec.hidden_bytes("fp32")
    links = pool.links(parts[0].source, parts[0].mbps, row_bytes, speeds.scale)
    trials = comparing.checked(links, say)
    wrong = tuple(str(trial) for trial in trials if not trial.is_right)
    for text in wrong:
        say(f"not as it should be: {text}")
    log = Log(file, wish.resume)
    try:
        log.put(replace(run, links_checked=len(trials), links_wrong=wrong))
        done = {cell.place: cell for cell in known.cells if not cell.why} if known else {}
        progress = Progress(parts, done, say, ends_at)
        is_whole = True
        for source in dict.fromkeys(part.source for part in parts):
            here = [part for part in parts if part.source == source]
            here = [part for part in here if not set(part.places()) <= done.keys()]
            if here and not progress.is_late():
                _measure_from(wish, source, here, speeds, profiles, log, progress)
            if progress.has_left(here):
                is_whole = False
                if progress.is_late():
                    log.put(written.Ended(f"source {source}", "there was no more time"))
        return is_whole
    finally:
        log.close()


def _scaled(wish: Wish, source: str, profiles: Path) -> Speeds:
    _forget(profiles)
    nominal = {n: pool.cores_of(kind, wish.wanted.cores) for n, kind in pool.DEVICES.items()}
    peers = comparing.peers_of(wish.wanted, source, wish.spec, nominal)
    check_fits(comparing.scenario_of(wish.wanted, peers), wish.wanted.model)
    return comparing.speeds_of(wish.wanted, wish.spec, profiles, say)


def _check_same(file: Path, before: written.Run, now: written.Run) -> None:
    """Raises LinesError where the cells that are there were measured otherwise."""
    for name in SAME:
        was, is_now = getattr(before, name), getattr(now, name)
        if was != is_now:
            raise LinesError(f"{file}: cannot go on with {name} {is_now}: its cells have {was}")


def _measure_from(
    wish: Wish,
    source: str,
    parts: Sequence[Part],
    speeds: Speeds,
    profiles: Path,
    log: Log,
    progress: Progress,
) -> None:
    begun, devices = time.monotonic(), None
    try:
        with comparing.serving(
            wish.wanted, source, parts[0].mbps, speeds, wish.spec, profiles, wish.logs, say
        ) as swarm:
            devices = swarm.devices
            for cell in _cells(swarm, parts, log, progress):
                log.put(cell)
                progress.tell(cell)
    except FaultError as error:
        say(f"given up: {error}")
        log.put(written.Ended(f"source {source}", str(error)))
    finally:
        if devices is not None and devices.switched:
            took = devices.switched
            log.put(
                written.Switch(
                    source,
                    round(time.monotonic() - begun, 1),
                    round(took["cpu_s"], 2),
                    took.get("frames", 0),
                    round(took.get("late_us", 0) / max(1, took.get("frames", 0)), 1),
                )
            )


def _cells(
    swarm: comparing.Swarm, parts: Sequence[Part], log: Log, progress: Progress
) -> Iterator[Cell]:
    whole_ms = {name: us / 1e3 for name, us in swarm.measured.items()}
    log.put(written.Swarm(swarm.source, whole_ms))
    progress.begin()
    for part in parts:
        yield from comparing.cells_of(swarm, part, progress.is_done, progress.is_late)


def _forget(profiles: Path) -> None:
    """What devices measured in an earlier run: this machine may be another, or busier."""
    shutil.rmtree(profiles, ignore_errors=True)


def _report(file: Path, as_json: bool) -> None:
    lines = known_lines(file)
    plots = []
    for source in dict.fromkeys(cell.place.source for cell in lines.cells):
        found = {unit: series(lines.cells, source, objective) for objective, unit in UNITS.items()}
        picture = file.parent / f"{NAME}-{source}.svg"
        plot_comparison({unit: of for unit, of in found.items() if of}, picture, f"source {source}")
        plots.append(picture.name)
    target = file.with_suffix(".md")
    target.write_text(report(lines, plots))
    say(f"written: {target}")
    if as_json:
        print(json.dumps(_told(lines)), flush=True)


def _told(lines: Lines) -> dict[str, object]:
    gains = {}
    for place in dict.fromkeys((c.place.source, c.place.mbps) for c in lines.cells):
        for objective in (LATENCY, THROUGHPUT):
            found = gain(lines.cells, *place, objective)
            if found is not None:
                gains[f"{place[0]} {place[1]:g} Mbps {objective}"] = round(found.ratio, 3)
    off = {objective: accuracy(lines.cells, objective) for objective in (LATENCY, THROUGHPUT)}
    return {
        "reproduce": len(lines.cells),
        "without_figure": sum(not cell.measured or bool(cell.why) for cell in lines.cells),
        "scale": lines.run.scale,
        "gains": gains,
        "predicted_off_by": {
            objective: {"median": round(a.median, 4), "worst": round(a.worst_by, 4)}
            for objective, a in off.items()
            if a is not None
        },
    }


if __name__ == "__main__":
    main(prog_name="scripts/reproduce")
