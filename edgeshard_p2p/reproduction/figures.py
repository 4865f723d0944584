"""What the cells say together: how good the predictions are, and how much ``exact`` gains.  Pure
arithmetic on what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from msgspec import Struct

from edgeshard_p2p.reproduction.cells import (
    ALGORITHMS,
    BASELINES,
    LATENCY,
    NO_BUBBLES,
    THROUGHPUT,
    Cell,
    Place,
)

GAINS = {LATENCY: 1.85, THROUGHPUT: 2.2}
"""The paper's, over the best of its baselines, with 1 Mbps between source and cloud."""
WITHIN = 0.1
"""How far predictions may be off."""


class Accuracy(Struct, frozen=True):
    """Of the predictions of one objective, over all plans that were measured."""

    n: int
    median: float
    """Of how far they are off either way, as a part of what was measured."""
    worst: Cell
    worst_by: float


class Gain(Struct, frozen=True):
    """Of ``exact`` over the best baseline; above 1 it is better."""

    baseline: Cell
    exact: Cell
    ratio: float


class Rival(Struct, frozen=True):
    """An algorithm whose plan was measured to be better than that of ``exact``."""

    cell: Cell
    exact: Cell
    by: float
    noise: float
    """Of both figures together."""

    @property
    def is_within_noise(self) -> bool:
        return self.by <= self.noise


def counting(cells: Iterable[Cell]) -> list[Cell]:
    """Those with a figure that counts."""
    return [cell for cell in cells if cell.measured and not cell.why]


def accuracy(cells: Iterable[Cell], objective: str) -> Accuracy | None:
    """None where nothing was measured.  A plan that several algorithms found counts once."""
    off = [
        (cell.off_by, cell)
        for cell in counting(cells)
        if cell.place.objective == objective and not cell.like and cell.off_by is not None
    ]
    if not off:
        return None
    worst_by, worst = max(off, key=lambda pair: abs(pair[0]))
    return Accuracy(len(off), statistics.median(abs(by) for by, _ in off), worst, worst_by)


def gain(cells: Iterable[Cell], source: str, mbps: float, objective: str) -> Gain | None:
    """None where ``exact`` or all baselines have no figure."""
    at = {
        cell.place.algorithm: cell
        for cell in counting(cells)
        if cell.place == Place(source, mbps, objective, cell.place.algorithm, NO_BUBBLES)
    }
    exact = at.get("exact")
    baselines = [at[name] for name in BASELINES if name in at]
    if exact is None or not baselines:
        return None
    best = min(baselines, key=lambda cell: _cost(cell))
    return Gain(best, exact, _cost(best) / _cost(exact))


def rivals(cells: Sequence[Cell]) -> tuple[int, list[Rival]]:
    """With how many figures of other algorithms that of ``exact`` was compared, in ms/token, and
    those that were better."""
    found, n = [], 0
    by_place = {cell.place: cell for cell in counting(cells)}
    for place, cell in by_place.items():
        exact = by_place.get(Place(place.source, place.mbps, LATENCY, "exact"))
        if place.objective != LATENCY or exact is None or place.algorithm == "exact":
            continue
        n += 1
        by = _cost(exact) / _cost(cell) - 1
        if by > 0 and cell.plan != exact.plan:
            found.append(Rival(cell, exact, by, cell.noise + exact.noise))
    return n, found


def _cost(cell: Cell) -> float:
    """Time of a token, whatever it was measured in."""
    assert cell.median is not None
    return cell.median if cell.place.objective == LATENCY else 1e3 / cell.median


def series(
    cells: Iterable[Cell], source: str, objective: str
) -> dict[str, list[tuple[float, float | None, float | None]]]:
    """By algorithm: rate, predicted, measured; in the order of rates."""
    found: dict[str, list[tuple[float, float | None, float | None]]] = {}
    for algorithm in ALGORITHMS:
        points = [
            (cell.place.mbps, cell.predicted, cell.median if not cell.why else None)
            for cell in cells
            if cell.place == Place(source, cell.place.mbps, objective, algorithm)
        ]
        if points:
            found[algorithm] = sorted(points, key=lambda point: point[0])
    return found
