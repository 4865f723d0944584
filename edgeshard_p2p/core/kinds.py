"""Devices that could change places, and the numbers of the states that count them.

A state says how many devices of each kind are used: fifteen devices of three kinds have 78 such
states instead of 2^15.  Knows nothing of what a device costs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.intp]
Kinds = list[list[int]]
"""The devices of each kind, in order; kinds by their first device."""
Pairs = Sequence[Sequence[object]]
"""Something for each ordered pair of devices."""


def kinds_of(owns: Sequence[Hashable], pairs: Pairs) -> Kinds:
    """The devices, those together that could change places without changing what each owns or
    anything of a pair."""
    kinds: dict[Hashable, Kinds] = {}
    for device, own in enumerate(owns):
        alike = kinds.setdefault(own, [])
        kind = next((kind for kind in alike if _change_places(pairs, kind[0], device)), None)
        if kind is None:
            alike.append([device])
        else:
            kind.append(device)
    return sorted(kind for alike in kinds.values() for kind in alike)


def _change_places(pairs: Pairs, a: int, b: int) -> bool:
    others = [c for c in range(len(pairs)) if c not in (a, b)]
    return pairs[a][b] == pairs[b][a] and all(
        pairs[a][c] == pairs[b][c] and pairs[c][a] == pairs[c][b] for c in others
    )


def n_states(kinds: Kinds) -> int:
    """Rows of a table by (used of each kind, kind of the last)."""
    return prod(len(kind) + 1 for kind in kinds) * len(kinds)


@dataclass(frozen=True)
class Moves:
    """Uses of one more device, from the states of one level, by kind."""

    place: Places
    """Where in the level."""
    kind: Places
    after: Places
    """The state that follows."""
    of: list[slice]
    """By kind, which of the moves use one of it."""


class States:
    """Numbers the states, in mixed radix."""

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        sizes = [len(kind) for kind in kinds]
        self.count = prod(size + 1 for size in sizes)
        self.strides = [prod(size + 1 for size in sizes[:k]) for k in range(len(sizes))]
        """By kind, how much further the state is that has one more of it used."""
        states = np.arange(self.count, dtype=np.intp)
        pairs = zip(self.strides, sizes, strict=True)
        used = [states // stride % (size + 1) for stride, size in pairs]
        n_used = sum(used, start=np.zeros(self.count, dtype=np.intp))
        self.levels = [np.flatnonzero(n_used == level) for level in range(sum(sizes) + 1)]
        """The states by the number of devices used."""
        self.moves = [self._moves(level, used) for level in self.levels]
        """By level, how one more device is used."""
        self.inside = [
            [np.flatnonzero(of_kind[level] > 0) for of_kind in used] for level in self.levels
        ]
        """By level and kind, where in the level one of the kind may have been the last."""

    def _moves(self, level: Places, used: list[Places]) -> Moves:
        pairs = zip(used, self.kinds, strict=True)
        free = [np.flatnonzero(of_kind[level] < len(kind)) for of_kind, kind in pairs]
        sizes = [len(places) for places in free]
        bounds = list(accumulate(sizes, initial=0))
        place = np.concatenate([np.zeros(0, dtype=np.intp), *free])
        kind = np.repeat(np.arange(len(free)), sizes)
        after = level[place] + np.array(self.strides, dtype=np.intp)[kind]
        return Moves(place, kind, after, [slice(*pair) for pair in pairwise(bounds)])
