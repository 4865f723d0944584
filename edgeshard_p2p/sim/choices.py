"""Plans of simulated peers: computed once by snapshot, and now and then again, from the same facts
in another order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from edgeshard_p2p.core.plan import Choice, Snapshot, snapshot
from edgeshard_p2p.core.planner import choose

PLANNED_AGAIN = 0.2
"""Share of the plans that are known already and are computed once more, to be compared."""


@dataclass(slots=True)
class Choices:
    doubt: Random
    known: dict[str, Choice] = field(default_factory=dict)

    def of(self, asked: Snapshot) -> Choice:
        choice = self.known.get(asked.id)
        if choice is None:
            choice = self.known[asked.id] = choose(asked)
        elif self.doubt.random() < PLANNED_AGAIN:
            again = choose(_shuffled(asked, self.doubt))
            assert again == choice, f"one snapshot, two plans: {choice} and {again}"
        return choice


def _shuffled(known: Snapshot, rng: Random) -> Snapshot:
    """The same facts as somebody else heard them."""
    devices, links = list(known.devices), list(known.links)
    rng.shuffle(devices)
    rng.shuffle(links)
    return snapshot(
        known.model, known.workload, devices, links, known.goal, known.framing, known.pin
    )
