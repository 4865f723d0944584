"""Traces and figures as pictures.  Knows nothing of how they came about; matplotlib is there only
with the extra ``plot``, and is imported when a picture is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeshard_p2p.sim.gantt import window_of
from edgeshard_p2p.sim.pipeline import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
COLOURS = 20
"""Of the colour map ``tab20``; micro-batches beyond begin again."""
INCHES_PER_RESOURCE = 0.35


class PlotError(Exception):
    """There can be no picture; in words for the user."""


def check_plot(file: Path) -> None:
    """Whether ``plot`` could write there; to be asked before the work."""
    if file.suffix not in SUFFIXES:
        raise PlotError(f"{file} is neither .png nor .svg")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise PlotError("--plot needs matplotlib: pip install 'edgeshard_p2p[plot]'") from None
    is_new = not file.exists()
    try:
        file.open("ab").close()
        if is_new:
            file.unlink()
    except OSError as error:
        raise PlotError(f"cannot write {file}: {error.strerror}") from None


def plot(
    trace: Sequence[Span], file: Path, title: str = "", first: int = 0, iterations: int = 3
) -> None:
    """The window of ``gantt.window_of``: a bar for each time that a device or link is occupied."""
    check_plot(file)
    from matplotlib.figure import Figure

    begin, end = window_of(trace, first, iterations) if trace else (0, 0)
    names = list(dict.fromkeys(span.resource for span in trace))
    seen = [span for span in trace if begin < span.end_us and span.start_us < end]
    figure = Figure(figsize=(12, 1.2 + INCHES_PER_RESOURCE * len(names)), layout="constrained")
    axes = figure.add_subplot()
    _bars(axes, seen, names)
    axes.set_xlim(begin / 1e3, max(end, begin + 1) / 1e3)
    axes.set_xlabel("ms")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title(title)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    from matplotlib import rc_context

    # No date and no random names: the same run gives the same file.
    metadata: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {}
    with rc_context({"svg.hashsalt": "edgeshard"}):
        try:
            figure.savefig(file, metadata=metadata)
        except OSError as error:
            raise PlotError(f"cannot write {file}: {error.strerror}") from None


def _bars(axes: Axes, spans: Sequence[Span], names: Sequence[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    colours = colormaps["tab20"]
    for span in spans:
        axes.broken_barh(
            [(span.start_us / 1e3, (span.end_us - span.start_us) / 1e3)],
            (names.index(span.resource) - 0.4, 0.8),
            facecolors=[colours(span.micro_batch % COLOURS)],
            hatch="///" if span.kind == "prefill" else None,
            edgecolor="white",
            linewidth=0.3,
        )
    shown = sorted({span.micro_batch for span in spans})[:COLOURS]
    patches = [Patch(color=colours(n % COLOURS), label=f"micro-batch {n}") for n in shown]
    if any(span.kind == "prefill" for span in spans):
        patches.append(Patch(facecolor="white", edgecolor="grey", hatch="///", label="prefill"))
    axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def plot_load(token_at: Sequence[Sequence[float]], asked_at: Sequence[float], file: Path) -> None:
    """Tokens per second over time, and how long tokens took; times in seconds, of one clock."""
    check_plot(file)
    from matplotlib.figure import Figure

    begun = min(asked_at, default=0.0)
    moments = sorted(moment - begun for times in token_at for moment in times)
    firsts = [
        1e3 * (times[0] - asked) for times, asked in zip(token_at, asked_at, strict=True) if times
    ]
    gaps = [1e3 * (b - a) for times in token_at for a, b in pairwise(times)]
    figure = Figure(figsize=(12, 4), layout="constrained")
    over_time, first, between = figure.subplots(1, 3)
    n_seconds = max(1, ceil(moments[-1])) if moments else 1
    over_time.hist(moments, bins=n_seconds, range=(0, n_seconds))
    over_time.set(title="tokens in each second", xlabel="s")
    first.hist(firsts, bins=30)
    first.set(title="until the first token", xlabel="ms", ylabel="requests")
    between.hist(gaps, bins=60)
    between.set(title="between two tokens", xlabel="ms", ylabel="tokens")
    _save(figure, file)


Curves = Mapping[str, Sequence[tuple[float, float | None, float | None]]]
"""By name: points of x, what was predicted and what was measured there."""


def plot_comparison(panels: Mapping[str, Curves], file: Path, title: str) -> None:
    """A panel for each unit; measured in solid lines, predicted in dashed ones."""
    check_plot(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * max(1, len(panels)), 4.5), layout="constrained")
    figure.suptitle(title)
    for place, (unit, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for number, (name, points) in enumerate(curves.items()):
            rates = [x for x, _, _ in points]
            for of, style, label in ((1, "--", None), (2, "-", name)):
                values = [_or_gap(point[of]) for point in points]
                axes.plot(rates, values, style, marker=".", color=f"C{number}", label=label)
        axes.set(xlabel="Mbps between source and cloud", ylabel=unit, xscale="log")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    _save(figure, file)


def _or_gap(value: float | None) -> float:
    return float("nan") if value is None else value
