"""Acknowledgements that wait to be sent: they are cumulative, so one says what several would have.

One that somebody waits for goes soon; the others wait a while for more to come, since each costs
both ends about as much as the frame that it is for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeshard_p2p.core.edges import WINDOW
from edgeshard_p2p.core.effects import Send
from edgeshard_p2p.core.ids import PlanId
from edgeshard_p2p.core.messages import Address, FrameAck

PATIENCE_S = 0.1
"""A fraction of the time after which a sender would send its frames again (`resend_s`)."""
UNTOLD_MAX = WINDOW // 2
"""Frames: a sender may be out of credit when it has sent twice as many."""
EDGES_MAX = 256

Edge = tuple[Address, PlanId, int]


@dataclass(slots=True)
class Acks:
    _waiting: dict[Edge, Send] = field(default_factory=dict)
    _told: dict[Edge, FrameAck] = field(default_factory=dict)
    """The last one that was sent."""

    def put(self, effect: Send, ack: FrameAck) -> bool:
        """Whether it is to go soon."""
        edge = (effect.to, ack.plan, ack.edge)
        self._waiting[edge] = effect
        told = self._told.get(edge)
        return told is None or _is_waited_for(ack, told)

    def take(self) -> list[Send]:
        """All, to be sent now."""
        taken, self._waiting = self._waiting, {}
        if len(self._told) > EDGES_MAX:
            self._told.clear()
        for edge, effect in taken.items():
            assert isinstance(effect.message, FrameAck)
            self._told[edge] = effect.message
        return list(taken.values())


def _is_waited_for(ack: FrameAck, told: FrameAck) -> bool:
    """A chunk computed makes room for the next, and who is told nothing new has asked again."""
    is_other = ack.epoch != told.epoch or ack.chunks != told.chunks
    n_new = max(ack.acked - told.acked, ack.credit - told.credit)
    return is_other or n_new == 0 or n_new >= UNTOLD_MAX
