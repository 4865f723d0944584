"""Acknowledgements that wait for each other, and the alarm for the next deadline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.edges import ACK_HELD_S
from edgeshard_p2p.core.messages import Address, FrameAck
from edgeshard_p2p.runtime import afterwards
from edgeshard_p2p.runtime.afterwards import LATE_S, PAUSE_S, READS_S, Afterwards
from tests.core.parts import PLAN

TO = Address("127.0.0.1", 7000)


@dataclass
class Timer:
    at: float
    action: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Shell:
    """A loop whose time is set by hand, and a core that says what it is told to."""

    is_steady: bool = True
    deadline: float | None = None
    now: float = 100.0
    timers: list[Timer] = field(default_factory=list)
    sent: list[FrameAck] = field(default_factory=list)
    posted: list[ev.Event] = field(default_factory=list)

    def call_later(self, delay_s: float, action: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay_s, action))
        return self.timers[-1]

    def next_deadline(self) -> float | None:
        self.is_steady = True
        return self.deadline

    def pending(self) -> list[float]:
        """When the timers go off that are still wanted, from now."""
        return [round(t.at - self.now, 6) for t in self.timers if not t.is_cancelled]

    def pass_time(self, until: float) -> None:
        while due := [t for t in self.timers if not t.is_cancelled and t.at <= until]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = timer.at
            timer.action()
        self.now = until


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    made = Shell()
    monkeypatch.setattr(afterwards.asyncio, "get_running_loop", lambda: made)
    monkeypatch.setattr(afterwards.time, "monotonic", lambda: made.now)
    return made


def of(shell: Shell) -> Afterwards:
    def send(effect: fx.Send) -> None:
        assert isinstance(effect.message, FrameAck)
        shell.sent.append(effect.message)

    core: Any = shell
    return Afterwards(core, send, shell.posted.append)


def ack(after: Afterwards, acked: int, can_wait: bool, edge: int = 0) -> None:
    message = FrameAck(PLAN.id, edge, 1, acked, acked + 8, 0)
    after.acknowledge(fx.Send(TO, message, can_wait), message)
    after.after_events()


def test_what_can_wait_waits_and_goes_as_one(shell: Shell) -> None:
    after = of(shell)
    for acked in (1, 2, 3):
        ack(after, acked, can_wait=True)
    assert shell.pending() == [ACK_HELD_S]
    shell.pass_time(shell.now + ACK_HELD_S)
    assert [message.acked for message in shell.sent] == [3]
    assert shell.pending() == []


def test_what_cannot_wait_takes_along_what_can(shell: Shell) -> None:
    after = of(shell)
    ack(after, 1, can_wait=True, edge=0)
    ack(after, 5, can_wait=False, edge=1)
    assert shell.pending() == [PAUSE_S]
    ack(after, 2, can_wait=True, edge=0)
    assert shell.pending() == [PAUSE_S], "what is due is not put off"
    shell.pass_time(shell.now + PAUSE_S)
    assert [(message.edge, message.acked) for message in shell.sent] == [(0, 2), (1, 5)]


def test_of_one_edge_the_furthest_counts(shell: Shell) -> None:
    """What was consumed is told before the receipt of the same frame, which was made earlier."""
    after = of(shell)
    ack(after, 5, can_wait=False)
    ack(after, 4, can_wait=True)
    shell.pass_time(shell.now + PAUSE_S)
    assert [message.acked for message in shell.sent] == [5]


def test_steady_flow_wakes_nobody(shell: Shell) -> None:
    after = of(shell)
    after.after_events()
    assert shell.pending() == []


def test_the_next_deadline_is_kept_to(shell: Shell) -> None:
    after = of(shell)
    shell.is_steady, shell.deadline = False, shell.now + 0.4
    after.after_events()
    shell.pass_time(shell.now + PAUSE_S)
    assert shell.pending() == [0.4], "not before it: a whole millisecond more, at most"
    shell.is_steady, shell.deadline = False, shell.now + 0.2
    after.after_events()
    shell.pass_time(shell.now + PAUSE_S)
    assert shell.pending() == [0.199], "an alarm that is not wanted any more is taken back"
    shell.pass_time(shell.deadline)
    assert shell.posted == [ev.DeadlineReached()]


def test_who_did_not_run_reads_before_the_deadline_counts(shell: Shell) -> None:
    after = of(shell)
    shell.is_steady, shell.deadline = False, shell.now + 0.1
    after.after_events()
    shell.pass_time(shell.now + PAUSE_S)
    (alarm,) = (timer for timer in shell.timers if not timer.is_cancelled)
    alarm.at = shell.deadline + 2 * LATE_S
    shell.pass_time(alarm.at)
    assert shell.posted == []
    shell.pass_time(shell.now + READS_S)
    assert shell.posted == [ev.DeadlineReached()]


def test_closed_it_does_nothing_more(shell: Shell) -> None:
    after = of(shell)
    shell.is_steady, shell.deadline = False, shell.now + 0.1
    ack(after, 1, can_wait=True)
    shell.pass_time(shell.now + PAUSE_S)
    shell.is_steady = False
    ack(after, 2, can_wait=True)
    after.close()
    assert shell.pending() == []
    shell.is_steady = False
    after.after_events()
    assert shell.pending() == []
