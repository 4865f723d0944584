"""What a run has tried, and what came of it."""

from __future__ import annotations

import resource
from collections import Counter
from dataclasses import dataclass, field

import psutil

from edgeshard_p2p.sim.simulator import SWARM
from tests.fuzz import corpus
from tests.fuzz.wired import Input

GROWTH_MIB_MAX = 64


@dataclass
class Tally:
    n_inputs: Counter[str] = field(default_factory=Counter)
    """By door."""
    refused: Counter[str] = field(default_factory=Counter)
    """By kind."""
    believed: int = 0
    """Drawn and not put to a door: whoever knows the secret can say it truly."""
    grows: bool = False
    smallest: dict[str, tuple[Input, str]] = field(default_factory=dict)
    """Of each complaint in reading, and the kind that it is counted under."""
    said: list[str] = field(default_factory=list)
    rss_first: int = 0
    rss_last: int = 0

    def note(self, given: Input, kind: str, counted: Counter[str]) -> None:
        self.n_inputs[given.door] += 1
        self.refused += counted
        if self.grows and counted[kind] and _size(given) <= corpus.BYTES_MAX:
            name = corpus.complaint(given, SWARM)
            known = self.smallest.get(name)
            if name != corpus.READ and (known is None or _size(given) < _size(known[0])):
                self.smallest[name] = given, kind

    def say(self, text: str) -> None:
        """A line for the summary."""
        self.said.append(text)

    def note_memory(self) -> None:
        """After a swarm is gone: what many inputs take, one takes."""
        self.rss_last = psutil.Process().memory_info().rss
        self.rss_first = self.rss_first or self.rss_last
        growth_mib = (self.rss_last - self.rss_first) / 2**20
        assert growth_mib < GROWTH_MIB_MAX, f"{growth_mib:.0f} MiB more than at first"

    def summary(self) -> list[str]:
        if not self.n_inputs:
            return self.said
        doors = ", ".join(f"{n:,} {door}" for door, n in sorted(self.n_inputs.items()))
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.refused.items()))
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        growth_mib = (self.rss_last - self.rss_first) / 2**20
        n_inputs = self.n_inputs.total()
        return [
            f"{n_inputs:,} inputs ({doors}); {self.believed:,} more were credible, and not put",
            f"refused: {kinds}",
            f"memory: peak {peak_mib:.0f} MiB of the whole process, of which the inputs after the "
            f"first thousand took {growth_mib:.0f}",
            *self.said,
        ]


def _size(given: Input) -> int:
    return sum(map(len, given.parts))
