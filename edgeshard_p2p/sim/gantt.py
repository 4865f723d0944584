"""A trace as text: one line for each device and link, time from left to right.

Knows nothing of how the trace came about.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeshard_p2p.sim.pipeline import Span

CELLS_MIN = 10
IDLE = "."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OTHERS = "0123456789"
"""Micro-batches beyond the letters; beyond these they begin again."""


def window_of(trace: Sequence[Span], first: int = 0, iterations: int = 3) -> tuple[int, int]:
    """From when the first micro-batch begins with token ``first`` to when it begins with the one so
    many later, or to the end of the trace."""
    lead = [span for span in trace if span.micro_batch == trace[0].micro_batch]
    begins = [span.start_us for span in lead if span.token >= first]
    ends = [span.start_us for span in lead if span.token >= first + iterations]
    if not begins:
        return (0, 0)
    return min(begins), min(ends, default=max(span.end_us for span in trace))


def full_from(trace: Sequence[Span], n: int) -> int:
    """The first token that the first micro-batch begins with when the first ``n`` are through with
    their prompts; its first decode where it is through itself by then."""
    last_us = max((s.end_us for s in trace if s.kind == "prefill" and s.micro_batch < n), default=0)
    begins: dict[int, int] = {}
    for span in trace:
        if span.kind == "decode" and span.micro_batch == 0:
            begins.setdefault(span.token, span.start_us)
    return next((token for token, us in begins.items() if us >= last_us), 1)


def gantt(trace: Sequence[Span], width: int = 100, first: int = 0, iterations: int = 3) -> str:
    """The window of ``window_of``, with a legend; empty where there is nothing to be seen.

    A cell shows who has most of it; it is idle where nobody has any of it.
    """
    begin, end = window_of(trace, first, iterations) if trace else (0, 0)
    if begin == end:
        return ""
    names = list(dict.fromkeys(span.resource for span in trace))
    label = max(map(len, names))
    n_cells = max(CELLS_MIN, width - label - 1)
    step = -(-(end - begin) // n_cells)
    n_cells = -(-(end - begin) // step)
    lines = [
        f"{name:<{label}} {_line([s for s in trace if s.resource == name], begin, step, n_cells)}"
        for name in names
    ]
    return "\n".join([*lines, *_legend(begin, end, step)])


def _line(spans: Sequence[Span], begin: int, step: int, n_cells: int) -> str:
    cells: list[dict[str, int]] = [{} for _ in range(n_cells)]
    end = begin + n_cells * step
    for span in spans:
        start, stop = max(begin, span.start_us), min(end, span.end_us)
        for at in range((start - begin) // step, -(-(stop - begin) // step)):
            cell_start = begin + at * step
            us = min(stop, cell_start + step) - max(start, cell_start)
            cells[at][_mark(span)] = cells[at].get(_mark(span), 0) + us
    # Of two that have as much of a cell, the one that came first.
    return "".join(max(cell, key=lambda mark: cell[mark], default=IDLE) for cell in cells)


def _mark(span: Span) -> str:
    marks = LETTERS + OTHERS
    mark = marks[span.micro_batch % len(marks)]
    return mark.lower() if span.kind == "prefill" else mark


def _legend(begin: int, end: int, step: int) -> list[str]:
    return [
        f"{begin / 1e3:.1f} to {end / 1e3:.1f} ms, a cell is {step / 1e3:g} ms",
        f"A, B, ...: micro-batches at a token; a, b, ...: at a prompt; {IDLE} idle",
    ]
