"""The report of a run, in Markdown, from its lines and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from edgeshard_p2p.reproduction import pool
from edgeshard_p2p.reproduction.cells import (
    ALGORITHMS,
    BASELINES,
    BUBBLES,
    LATENCY,
    NO_BUBBLES,
    THROUGHPUT,
    Cell,
    Place,
    in_words,
)
from edgeshard_p2p.reproduction.figures import GAINS, WITHIN, accuracy, gain, rivals
from edgeshard_p2p.reproduction.lines import Lines

UNITS = {LATENCY: "ms/token", THROUGHPUT: "tokens/s"}


def report(lines: Lines, plots: Sequence[str] = ()) -> str:
    """``plots``: files to show, as the report names them."""
    sections = [
        ["# The paper's comparison on emulated devices", *_how(lines)],
        ["## What was wanted", *_wanted(lines)],
        *(_tables(lines)),
        *([["## Pictures", *(f"![{plot}]({plot})" for plot in plots)]] if plots else []),
        ["## What is emulated, and how", *_emulated(lines)],
    ]
    return "\n\n".join(text for section in sections for text in section) + "\n"


def _how(lines: Lines) -> Iterator[str]:
    run = lines.run
    yield (
        "Written by `scripts/reproduce` from the lines of one run, which are beside it; nothing in "
        "it was put in by hand. The algorithms of EdgeShard (arXiv 2405.14371) each plan for "
        f"emulated devices that hold {run.model}; what their plans take was predicted by the cost "
        "model from what the swarm itself had measured, and then measured."
    )
    machine = "; ".join(f"{key}: {value}" for key, value in run.machine.items())
    yield _table(
        ["", ""],
        [
            ["command", f"`{run.command}`"],
            ["program", ", then ".join(lines.versions)],
            ["machine", machine],
            ["scale s", f"{run.scale:.3f}"],
            [
                "a lone request",
                f"{run.prompt_tokens} tokens in, {run.generate} out, up to {run.repeats} "
                "times; ms/token after the first token",
            ],
            [
                "throughput",
                f"{run.requests} such requests at once, up to {max(1, run.repeats - 1)} times; "
                "tokens/s while all are decoding",
            ],
            ["seed, context", f"{run.seed}, {run.context}"],
        ],
    )


def _wanted(lines: Lines) -> Iterator[str]:
    yield "\n".join(f"- {text}" for text in (*_beaten(lines), *_gains(lines), *_accuracies(lines)))


def _beaten(lines: Lines) -> Iterator[str]:
    n, better = rivals(lines.cells)
    beyond = [rival for rival in better if not rival.is_within_noise]
    wanted = "`exact` takes no more ms/token than any other algorithm, measured, within the noise"
    yield f"{_verdict(n > 0 and not beyond)}: {wanted}; compared with {n} figures."
    for rival in better:
        place = rival.cell.place
        noise = "within" if rival.is_within_noise else "beyond"
        yield (
            f"{place.algorithm} was better by {_percent(rival.by)} ({noise} the noise of "
            f"{_percent(rival.noise)}) with the source {place.source} at {place.mbps:g} Mbps."
        )


def _gains(lines: Lines) -> Iterator[str]:
    for source in _sources(lines):
        for mbps in _rates(lines):
            for objective, wanted in GAINS.items():
                found = gain(lines.cells, source, mbps, objective)
                where = f"source {source}, {mbps:g} Mbps, {UNITS[objective]}"
                is_default = mbps == min(pool.RATES_MBPS) and source == pool.SOURCES["fast"]
                text, is_met = f"{where}: no figures", False
                if found is not None:
                    is_met = found.ratio >= wanted
                    text = (
                        f"{where}: {found.ratio:.2f} times as good as "
                        f"the best baseline, {found.baseline.place.algorithm} "
                        f"({found.exact.median:.4g} against {found.baseline.median:.4g})"
                    )
                if is_default:
                    yield f"{_verdict(is_met)}, at least {wanted} is wanted: {text}."
                elif found is not None:
                    yield f"{text}."


def _accuracies(lines: Lines) -> Iterator[str]:
    for objective, unit in UNITS.items():
        found = accuracy(lines.cells, objective)
        if found is None:
            yield f"{_verdict(False)}: predicted {unit}: nothing was measured."
            continue
        verdict = _verdict(found.median <= WITHIN)
        yield (
            f"{verdict}, {_percent(WITHIN)} at most is wanted: predicted {unit} off by "
            f"{_percent(found.median)} in the median of {found.n} plans; worst "
            f"{found.worst_by:+.0%} ({found.worst.place})."
        )


def _tables(lines: Lines) -> Iterator[list[str]]:
    rates = _rates(lines)
    for source in _sources(lines):
        for objective, unit in UNITS.items():
            here = [c for c in lines.cells if c.place.source == source]
            here = [c for c in here if c.place.objective == objective]
            if here:
                title = f"## {unit}, source {source}: predicted | measured"
                yield [title, _comparison(here, rates), *_remarks(here)]
        rounds = [c for c in lines.cells if c.place.source == source]
        rounds = [c for c in rounds if c.place.schedule == BUBBLES]
        if rounds:
            title = f"## Bubbles against none, in passes of as many rows, source {source}"
            yield [title, _bubbles(rounds, lines.cells)]


def _comparison(cells: Sequence[Cell], rates: Sequence[float]) -> str:
    by_place = {(c.place.algorithm, c.place.mbps): c for c in cells if _has_no_bubbles(c)}
    rates = [rate for rate in rates if any(c.place.mbps == rate for c in cells)]
    rows = []
    for algorithm in ALGORITHMS:
        figures = [_figure(by_place.get((algorithm, rate))) for rate in rates]
        rows.append([algorithm, *figures])
    return _table(["", *(f"{rate:g} Mbps" for rate in rates)], rows)


def _has_no_bubbles(cell: Cell) -> bool:
    return cell.place.schedule == NO_BUBBLES


def _figure(cell: Cell | None) -> str:
    if cell is None:
        return "not in this run"
    said = "-" if cell.predicted is None else f"{cell.predicted:.4g}"
    if cell.median is None or cell.why:
        return f"{said} | -"
    noise = f" ±{_percent(cell.noise)}" if len(cell.measured) > 1 else ""
    return f"{said} | {cell.median:.4g}{noise}"


def _remarks(cells: Sequence[Cell]) -> Iterator[str]:
    """The plans, and why there is no figure."""
    rows = [
        [
            f"{cell.place.mbps:g}",
            cell.place.algorithm,
            in_words(cell.plan) or "none",
            "" if cell.place.objective == LATENCY else str(cell.rows),
            "; ".join(_remarks_on(cell)),
        ]
        for cell in cells
        if _has_no_bubbles(cell)
    ]
    yield _table(["Mbps", "algorithm", "plan, in units", "rows to a pass", ""], rows)


def _remarks_on(cell: Cell) -> Iterator[str]:
    if cell.why:
        yield cell.why
    elif cell.like:
        yield f"measured once, as {cell.like}"
    if cell.slow:
        yield f"predicted while {cell.slow}"


def _bubbles(rounds: Sequence[Cell], cells: Iterable[Cell]) -> str:
    by_place = {cell.place: cell for cell in cells}
    rows = []
    for cell in rounds:
        place = cell.place
        usual = by_place.get(Place(place.source, place.mbps, THROUGHPUT, place.algorithm))
        ratio = ""
        if usual is not None and usual.median and cell.median and not usual.why + cell.why:
            ratio = f"{usual.median / cell.median:.2f}"
        why = cell.why
        rows.append([f"{place.mbps:g}", place.algorithm, _figure(cell), _figure(usual), ratio, why])
    head = ["Mbps", "algorithm", "tokens/s, bubbles", "no bubbles", "measured ratio", ""]
    return _table(head, rows)


def _emulated(lines: Lines) -> Iterator[str]:
    run = lines.run
    whole = {name: ms for swarm in lines.swarms for name, ms in swarm.whole_ms.items()}
    first = next((whole[d.name] for d in run.devices if d.name in whole), None)
    rows = []
    for device in run.devices:
        ms = whole.get(device.name)
        ratio = f"{ms / first:.3f}" if ms is not None and first is not None else "-"
        rows.append(
            [
                device.name,
                device.kind,
                f"{device.cores:g}",
                f"{device.layers_mib}",
                "-" if ms is None else f"{ms:.1f}",
                ratio,
                f"{device.paper_ms / pool.AGX_MS:.3f}",
            ]
        )
    head = ["device", "stands for", "cores", "MiB", "ms, whole model", "to the AGX", "the paper's"]
    yield _table(head, rows)
    yield (
        "Each device is a peer in a network namespace of its own, with a CPU quota by which the "
        "whole-model times stand to each other as in the paper (the shares were set by what the "
        "3090 and an AGX Orin measured of themselves; the others go by the latter's times), and "
        "room for as large a part of the blocks as there, with the KV of all requests. The "
        "model's head is a larger part of it "
        "than of Llama 2 7B. Rates are the paper's times the bytes of a row here over those there, "
        "divided by s, the whole-model time of the emulated AGX Orin over 140.34 ms: "
        f"{_rate(lines, 1.0):.0f} kbit/s for 1 Mbps, {_rate(lines, 50.0):.0f} kbit/s for the 50 "
        "between all devices but source and cloud. The 2.1 ms per message of the authors' code, "
        f"times s, are a delay of {pool.PER_MESSAGE_MS * run.scale:.1f} ms here: it adds to a "
        "token's time and occupies no link. First layer: the embedding alone, the paper's rule."
    )
    if run.links_checked:
        wrong = len(run.links_wrong)
        yield (
            f"Before any figure {run.links_checked} lone messages went over the links; {wrong} of "
            "them took more than a tenth and 0.5 ms more or less than they should"
            + "".join(f"; {text}" for text in run.links_wrong)
            + "."
        )
    for switch in lines.switches:
        share = switch.cpu_s / switch.seconds if switch.seconds else 0.0
        yield (
            f"The links' switch, source {switch.source}: {_percent(share)} of a core over "
            f"{switch.seconds / 60:.0f} minutes, frames {switch.late_us:.0f} us late on average."
        )
    yield (
        f"The baselines are {', '.join(BASELINES)}; `paper` is the paper's algorithm 1 for latency "
        "and 2 for throughput. A plan that comes back to a device has a prediction alone. "
        "± is half of what the repeats differ by. Plans that are the same are measured once, and "
        "again where a rate that they use differs."
    )
    for ended in lines.ended:
        yield f"Not measured to its end: {ended.what}: {ended.why}."


def _rate(lines: Lines, mbps: float) -> float:
    """kbit/s."""
    return pool.bytes_per_s(mbps, lines.run.row_bytes, lines.run.scale) * 8 / 1e3


def _sources(lines: Lines) -> list[str]:
    return list(dict.fromkeys(cell.place.source for cell in lines.cells))


def _rates(lines: Lines) -> list[float]:
    return sorted({cell.place.mbps for cell in lines.cells})


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "**not met**"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Bars within a cell are its own."""
    written = [head, ["---"] * len(head), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in written]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
