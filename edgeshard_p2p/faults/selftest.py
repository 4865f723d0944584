"""A running swarm, tried: the plans next to the one that it serves, and the loss of a stage.

Every plan is pinned in turn and asked the same; then one stage stands still in the middle of an
answer, as a device that froze.  All answers have to be the same tokens.  What is pinned here lapses
by itself, should this be killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.pin import Pin, PinnedStage
from edgeshard_p2p.core.pinned import NOTE
from edgeshard_p2p.core.plan import Snapshot, without
from edgeshard_p2p.core.planner import answer as planned
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.variants import Variant, variants
from edgeshard_p2p.faults.asking import ask
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.prose import words
from edgeshard_p2p.net.client import Client, NoAnswer
from edgeshard_p2p.net.security import Security
from edgeshard_p2p.wire.client import (
    ClientRequest,
    Done,
    Failed,
    Okay,
    Run,
    Set,
    StandStill,
    Status,
    StatusReport,
    SwarmView,
    Text,
    View,
)
from edgeshard_p2p.wire.errors import WireError

TOKENS = 16
PROMPT_WORDS = 24
FAILS_AT = 4
"""Tokens that have come when the stage stands still."""
STANDS_STILL_S = 10.0
"""Longer than a frozen device is waited for."""
TIME_S = 115.0
"""For all of it; what does not fit in is left out, and said to be."""
REHEARSAL_S = 45.0
"""Of that, kept for the failover and for the swarm to be as it was."""
SWITCH_S = 40.0
ANSWER_S = 60.0
REPORT_S = 3.0
POLL_S = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan that was tried, or why it was not."""

    what: str
    plan: str
    tokens: str
    """``same``, ``different``, ``none`` (no whole answer) or ``not tried``."""
    why: str = ""
    ms_per_token: float | None = None
    switched_ms: float | None = None
    """From the pin to a plan that every stage is ready for."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    tokens: str
    """As of a ``Trial``."""
    why: str = ""
    lost: str = ""
    failovers: int = 0
    replayed_tokens: int = 0
    recovery_ms: float | None = None
    stall_ms: float | None = None


@dataclass(slots=True)
class Outcome:
    plan: str
    not_asked: list[str]
    """Members that do not answer here: whether requests run at them is not known."""
    trials: list[Trial] = field(default_factory=list)
    rehearsal: Rehearsal | None = None

    @property
    def has_passed(self) -> bool:
        """Nothing that was tried gave other tokens, or none."""
        found = [trial.tokens for trial in self.trials]
        if self.rehearsal is not None:
            found.append(self.rehearsal.tokens)
        return all(tokens in ("same", "not tried") for tokens in found)


@dataclass(frozen=True, slots=True)
class _Answer:
    token_ids: tuple[int, ...]
    done: Done | None
    error: str = ""
    stall_ms: float | None = None


class SelfTest:
    """``run`` once."""

    def __init__(self, address: Address, security: Security, say: Say) -> None:
        self._address, self._security, self._say = address, security, say
        self._ends_at = time.monotonic() + TIME_S
        self._pinned_before = ""
        self._has_pinned = False

    def run(self, is_forced: bool) -> Outcome:
        """Raises FaultError where there is nothing that could be tried."""
        report = self._ready_report()
        served = _served(report)
        outcome = Outcome(str(served), self._look_for_requests(report, is_forced))
        self._pinned_before = str(report["settings"].get("pin", ""))
        snapshot = self._snapshot()
        self._say(f"served: {served}")
        wanted = self._answer()
        if wanted.done is None:
            raise FaultError(f"no whole answer from the plan that is served: {wanted.error}")
        try:
            for variant in variants(snapshot, served):
                outcome.trials.append(self._tried(variant, wanted))
        finally:
            self._lift()
        now_served = self._wait_for(served if self._pinned_before else None)
        if now_served is not None:
            outcome.rehearsal = self._rehearsed(snapshot, now_served, report, wanted)
        return outcome

    # --- what is there --------------------------------------------------------------------

    def _ask(self, request: ClientRequest, wait_s: float = REPORT_S) -> Any:
        return ask(self._address, self._security, request, wait_s)

    def _report(self) -> dict[str, Any]:
        """Empty without an answer."""
        answer = self._ask(Status())
        return answer.report if isinstance(answer, StatusReport) else {}

    def _ready_report(self) -> dict[str, Any]:
        with Client(self._address, self._security) as client:
            client.send(Status())  # Raises where nobody is: with the reason.
            answer = next(client.answers(REPORT_S))
        if not isinstance(answer, StatusReport):
            raise FaultError(_why(answer), 2)
        report: dict[str, Any] = answer.report
        plan = report["plan"]
        if not _is_ready(plan):
            why = plan["waiting_for"] or plan.get("note", "") or plan["state"]
            raise FaultError(f"no plan is served yet: {why}")
        sources = [stage["peer"] for stage in plan["stages"] if stage["stage"] == 0]
        if report["self"]["name"] not in sources:
            raise FaultError(f"{report['self']['name']} takes no prompts; ask {sources[0]}", 2)
        return report

    def _look_for_requests(self, report: dict[str, Any], is_forced: bool) -> list[str]:
        """Who does not answer.  Raises FaultError where requests run that this would disturb."""
        busy, silent = [], []
        for member in report["members"]:
            if member["state"] != "alive":
                continue
            answer = ask(_address_of(member), self._security, Status(), REPORT_S)
            if not isinstance(answer, StatusReport):
                silent.append(member["name"])
                continue
            told: dict[str, Any] = answer.report
            if told["requests"] or told["self"]["requests_in_stage"]:
                busy.append(member["name"])
        if busy and not is_forced:
            names = ", ".join(busy)
            raise FaultError(f"requests run at {names}, and would be disturbed; --force does it")
        if silent:
            self._say(f"not asked for requests, no answer from here: {', '.join(silent)}")
        return silent

    def _snapshot(self) -> Snapshot:
        answer = self._ask(View())
        if not isinstance(answer, SwarmView) or answer.snapshot is None:
            raise FaultError("the peer does not say what it plans with")
        return msgspec.structs.replace(answer.snapshot, pin=None)

    # --- plans ----------------------------------------------------------------------------

    def _tried(self, variant: Variant, wanted: _Answer) -> Trial:
        trial = Trial(variant.what, str(variant.pin), "not tried", variant.why_not)
        if not trial.why and time.monotonic() + REHEARSAL_S + SWITCH_S / 4 > self._ends_at:
            trial = replace(trial, why="no time was left")
        if not trial.why:
            trial = self._tried_now(trial, variant.pin, wanted)
        self._say(_told(trial))
        return trial

    def _tried_now(self, trial: Trial, pin: Pin, wanted: _Answer) -> Trial:
        begun = time.monotonic()
        lapses_s = int(SWITCH_S + ANSWER_S)
        self._has_pinned = True
        said = self._ask(Set("pin", str(pin), lapses_s))
        if not isinstance(said, Okay):
            return replace(trial, tokens="none", why=_why(said))
        if self._wait_for(pin) is None:
            waited_s = time.monotonic() - begun
            return replace(trial, tokens="none", why=f"not served within {waited_s:.0f} s")
        switched_ms = round((time.monotonic() - begun) * 1e3, 1)
        got = self._answer()
        if got.done is None:
            return replace(trial, tokens="none", why=got.error, switched_ms=switched_ms)
        return replace(
            trial,
            tokens=_compared(got, wanted),
            ms_per_token=round(got.done.ms_per_token, 2),
            switched_ms=switched_ms,
        )

    def _lift(self) -> None:
        if self._has_pinned:
            self._ask(Set("pin", self._pinned_before))

    def _wait_for(self, plan: Pin | None) -> Pin | None:
        """What is served in the end: ``plan``, or without one whatever nobody has pinned.  None: it
        is not served in time."""
        time_left_s = self._ends_at - REHEARSAL_S / 2 - time.monotonic()
        ends_at, pause = time.monotonic() + min(SWITCH_S, time_left_s), threading.Event()
        while time.monotonic() < ends_at:
            report = self._report()
            if report and _is_ready(report["plan"]):
                served = _served(report)
                if served == plan or (plan is None and _is_chosen(report["plan"])):
                    return served
            pause.wait(POLL_S)
        return None

    # --- an answer ------------------------------------------------------------------------

    def _answer(self, at_token: Callable[[int], None] | None = None) -> _Answer:
        """Greedy, and told of how many tokens there are whenever some come."""
        token_ids: list[int] = []
        stall_s, came_at = 0.0, 0.0
        try:
            for answer in self._stream():
                now = time.monotonic()
                if isinstance(answer, Text):
                    stall_s = max(stall_s, now - came_at) if came_at else 0.0
                    token_ids += answer.token_ids
                    came_at = now
                    if at_token is not None:
                        at_token(len(token_ids))
                elif isinstance(answer, Done):
                    return _Answer(tuple(token_ids), answer, stall_ms=round(stall_s * 1e3, 1))
                elif isinstance(answer, Failed):
                    return _Answer(tuple(token_ids), None, answer.error)
        except (NoAnswer, WireError) as error:
            return _Answer(tuple(token_ids), None, str(error))
        raise AssertionError("a stream ends with its last word, or raises")

    def _stream(self) -> Iterator[Any]:
        with Client(self._address, self._security) as client:
            client.send(Run(words(PROMPT_WORDS), True, TOKENS, Sampling()))
            yield from client.answers(ANSWER_S)

    # --- the failover ---------------------------------------------------------------------

    def _rehearsed(
        self, snapshot: Snapshot, served: Pin, report: dict[str, Any], wanted: _Answer
    ) -> Rehearsal:
        victim, why_not = _who_may_be_lost(snapshot, served, report)
        if victim is None:
            self._say(f"failover: not tried: {why_not}")
            return Rehearsal("not tried", why_not)
        address = _address_of(victim)
        if not isinstance(ask(address, self._security, Status(), REPORT_S), StatusReport):
            why_not = f"{victim['name']} does not answer from here"
            self._say(f"failover: not tried: {why_not}")
            return Rehearsal("not tried", why_not)
        self._say(f"failover: {victim['name']} stands still for {STANDS_STILL_S:.0f} s")
        told = StandStill(STANDS_STILL_S)
        has_told = threading.Event()

        def at_token(n_tokens: int) -> None:
            if n_tokens >= FAILS_AT and not has_told.is_set():
                has_told.set()
                ask(address, self._security, told, REPORT_S)

        got = self._answer(at_token)
        found = self._judged(victim["name"], got, wanted)
        self._say(_failover_told(found))
        return found

    def _judged(self, lost: str, got: _Answer, wanted: _Answer) -> Rehearsal:
        done = got.done
        if done is None:
            return Rehearsal("none", got.error, lost)
        if not done.failovers:
            return Rehearsal("none", "the answer was over before the loss mattered", lost)
        return Rehearsal(
            _compared(got, wanted),
            "",
            lost,
            done.failovers,
            done.replayed_tokens,
            round(done.recovery_ms, 1),
            got.stall_ms,
        )


def _who_may_be_lost(
    snapshot: Snapshot, served: Pin, report: dict[str, Any]
) -> tuple[dict[str, Any] | None, str]:
    """The first stage without which the swarm can still hold the model; None: and why not."""
    why_not = "all units are at the source"
    me = report["self"]["name"]
    members = {member["name"]: member for member in report["members"]}
    for stage in served.stages:
        if stage.name == me:
            continue
        left = planned(without(snapshot, stage.name))
        if left.layout is not None:
            return members[stage.name], ""
        why_not = f"without {stage.name} no plan: {left.reason}"
    return None, why_not


def _served(report: dict[str, Any]) -> Pin:
    stages = report["plan"]["stages"]
    sources = [stage["peer"] for stage in stages if stage["stage"] == 0]
    entry_end = next(stage["end"] for stage in stages if stage["stage"] == 0)
    shared = [stage for stage in stages if stage["stage"] > 0]
    pinned = (PinnedStage(s["peer"], UnitRange(s["start"], s["end"])) for s in shared)
    return Pin(tuple(sorted(sources)), entry_end, tuple(pinned))


def _is_ready(plan: dict[str, Any]) -> bool:
    return plan["state"] == "active" and all(stage["is_ready"] for stage in plan["stages"])


def _is_chosen(plan: dict[str, Any]) -> bool:
    """Whether it is the answer to what is known now, and nobody's pin."""
    return plan["predicted_ms_per_token"] is not None and NOTE not in plan["note"]


def _address_of(member: dict[str, Any]) -> Address:
    host, _, port = str(member["address"]).rpartition(":")
    return Address(host, int(port))


def _compared(got: _Answer, wanted: _Answer) -> str:
    return "same" if got.token_ids == wanted.token_ids else "different"


def _why(answer: Any) -> str:
    return answer.error if isinstance(answer, Failed) else "no word from the peer"


def _told(trial: Trial) -> str:
    if trial.tokens == "not tried":
        return f"{trial.what}: not tried: {trial.why}"
    if trial.ms_per_token is None:
        return f"{trial.what}: NO ANSWER: {trial.why}"
    verdict = "the same tokens" if trial.tokens == "same" else "OTHER TOKENS"
    return f"{trial.what}: {verdict}, {trial.ms_per_token:.1f} ms/token"


def _failover_told(found: Rehearsal) -> str:
    if found.recovery_ms is None:
        return f"failover: NO ANSWER: {found.why}"
    verdict = "the same tokens" if found.tokens == "same" else "OTHER TOKENS"
    return (
        f"failover: {verdict}, {found.replayed_tokens} tokens replayed, the answer stood still for "
        f"{(found.stall_ms or 0) / 1e3:.1f} s"
    )
