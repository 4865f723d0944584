"""What follows events and nobody computes with: acknowledgements, and the next deadline.

Each wake-up of the loop costs a busy device more than what is done in it, for it comes between
passes that leave nothing of the interpreter in the caches.  So these wait for each other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import ceil

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.edges import ACK_HELD_S
from edgeshard_p2p.core.ids import PlanId
from edgeshard_p2p.core.messages import Address, FrameAck
from edgeshard_p2p.core.peer import PeerCore

PAUSE_S = 0.001
"""So much later once for several events, and without keeping the interpreter from the compute
thread, which has just been given work."""
LATE_S = 0.05
READS_S = 0.02
"""Whose deadline comes later than this, or who stood still, first lets so much time pass for
reading."""


class Afterwards:
    """``send`` and ``post`` are called on the loop."""

    def __init__(
        self, core: PeerCore, send: Callable[[fx.Send], None], post: Callable[[ev.Event], None]
    ) -> None:
        self._core, self._send, self._post = core, send, post
        self._loop = asyncio.get_running_loop()
        self._acks: dict[tuple[Address, PlanId, int], tuple[FrameAck, fx.Send]] = {}
        self._is_owed = False
        """Whether an acknowledgement is due that cannot wait."""
        self._pause: asyncio.TimerHandle | None = None
        self._is_short = False
        """Whether the pause is that of PAUSE_S."""
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._reads_first = False

    def close(self) -> None:
        self._is_closed = True
        for timer in (self._pause, self._timer):
            if timer is not None:
                timer.cancel()

    def acknowledge(self, effect: fx.Send, ack: FrameAck) -> None:
        """They are cumulative: of an edge the one counts that says most, which need not be the last
        (what is consumed of a frame is told before its receipt)."""
        known = self._acks.setdefault((effect.to, ack.plan, ack.edge), (ack, effect))
        if _says(ack) > _says(known[0]):
            self._acks[effect.to, ack.plan, ack.edge] = (ack, effect)
        self._is_owed |= not effect.can_wait

    def after_events(self) -> None:
        """Some have been handled, and their effects are performed."""
        if self._is_owed or not self._core.is_steady:
            self._pause_for(PAUSE_S, is_short=True)
        elif self._acks:
            self._pause_for(ACK_HELD_S, is_short=False)

    def _pause_for(self, pause_s: float, is_short: bool) -> None:
        if self._is_closed or (self._pause is not None and (self._is_short or not is_short)):
            return
        if self._pause is not None:
            self._pause.cancel()
        self._is_short = is_short
        self._pause = self._loop.call_later(pause_s, self._after_pause)

    def _after_pause(self) -> None:
        self._pause = None
        acks, self._acks, self._is_owed = self._acks, {}, False
        for _, effect in acks.values():
            self._send(effect)
        self._arm()

    def _arm(self) -> None:
        deadline = self._core.next_deadline()
        if deadline == self._deadline and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._deadline, self._timer = deadline, None
        if deadline is not None:
            # NOTE: uvloop's own clock counts whole milliseconds; round trips need better.
            wait_ms = max(0, ceil((deadline - time.monotonic()) * 1e3))
            self._timer = self._loop.call_later(wait_ms / 1e3, self._on_deadline)

    def _on_deadline(self) -> None:
        assert self._deadline is not None
        self._timer = None
        if time.monotonic() > self._deadline + LATE_S and not self._reads_first:
            # This process did not run for a while: the answer that it now misses may lie unread.
            self._reads_first = True
            self._timer = self._loop.call_later(READS_S, self._on_deadline)
            return
        self._reads_first = False
        self._post(ev.DeadlineReached())


def _says(ack: FrameAck) -> tuple[int, int, int, int]:
    return ack.epoch, ack.acked, ack.credit, ack.chunks
