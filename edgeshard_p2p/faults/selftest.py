"""A running swarm, tried: the plans next to the one that it serves, and the loss of a stage.

Every plan is pinned in turn and asked the same; then one stage stands still in the middle of an
answer.  All answers have to be the same tokens.  What is pinned here lapses by itself, should this
be killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from edgeshard_p2p.config import parse_address
from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.pin import Pin
from edgeshard_p2p.core.pinned import NOTE
from edgeshard_p2p.core.plan import Snapshot, without
from edgeshard_p2p.core.planner import answer as planned
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.variants import Variant, variants
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.verdict import Outcome, Rehearsal, Tokens, Trial
from edgeshard_p2p.net.asking import ask
from edgeshard_p2p.net.client import Client, NoAnswer
from edgeshard_p2p.net.security import Security
from edgeshard_p2p.prompts import words
from edgeshard_p2p.reports import as_pin, is_ready
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
FAILS_FOR_S = 10.0
"""Longer than a frozen device is waited for."""
GOES_ON_S, TOKENS_MAX = 2.0, 256
"""So much of the answer is to be left by then, in at most so many tokens."""
TIME_S = 115.0
"""For all of it; what does not fit in is left out, and said to be."""
REHEARSAL_S = 45.0
"""Of that, kept for the failover and for the swarm to be as it was."""
TRIAL_S = 10.0
"""A plan is not begun with less."""
SWITCH_S = 40.0
REPORT_S = 3.0
IN_VAIN_MAX = 3
"""Reports that do not come, one after another, until the peer is given up."""
POLL_S = 0.1
VICTIMS_MAX = 3
"""Losses that are planned for, in search of one that leaves a plan."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Answer:
    token_ids: tuple[int, ...]
    done: Done | None
    error: str = ""
    stall_ms: float = 0.0

    def beside(self, wanted: _Answer) -> Tokens:
        return Tokens.SAME if self.token_ids == wanted.token_ids else Tokens.DIFFERENT


class SelfTest:
    """``run`` once."""

    def __init__(self, address: Address, security: Security, say: Say) -> None:
        self._address, self._security, self._say = address, security, say
        self._ends_at = time.monotonic() + TIME_S
        self._has_pinned = False

    def run(self, is_forced: bool) -> Outcome:
        """Raises FaultError where there is nothing that could be tried, NoAnswer and WireError
        where nobody can be asked."""
        report = self._ready_report()
        served = as_pin(report["plan"])
        outcome = Outcome(str(served), self._look_for_requests(report, is_forced))
        snapshot = self._snapshot()
        self._say(f"served: {served}")
        wanted = self._answer(TOKENS)
        if wanted.done is None:
            raise FaultError(f"no whole answer from the plan that is served: {wanted.error}")
        try:
            for variant in variants(snapshot, served):
                trial = self._tried(variant, wanted)
                self._say(str(trial))
                outcome.trials.append(trial)
            if self._has_pinned:
                self._restore(served, outcome)
            if not outcome.not_restored:
                outcome.rehearsal = self._rehearsed(wanted.done.ms_per_token)
                self._say(str(outcome.rehearsal))
                if outcome.rehearsal.lost:
                    self._restore(served, outcome)
        finally:
            self._lift()
        return outcome

    def _left_s(self) -> float:
        return max(0.0, self._ends_at - time.monotonic())

    # --- what is there --------------------------------------------------------------------

    def _ask(self, request: ClientRequest) -> object:
        return ask(self._address, self._security, request, REPORT_S)

    def _ready_report(self) -> dict[str, Any]:
        with Client(self._address, self._security) as client:
            client.send(Status())
            answer = next(client.answers(REPORT_S))
        if not isinstance(answer, StatusReport):
            raise FaultError(_why(answer), 2)
        report: dict[str, Any] = answer.report
        plan = report["plan"]
        if not is_ready(plan):
            why = plan["waiting_for"] or plan.get("note") or f"the plan is {plan['state']}"
            raise FaultError(f"no plan is served yet ({why}); try again when `status` shows one")
        sources = [stage["peer"] for stage in plan["stages"] if stage["stage"] == 0]
        if report["self"]["name"] not in sources:
            raise FaultError(f"{report['self']['name']} takes no prompts; ask {sources[0]}", 2)
        if report["settings"].get("pin"):
            raise FaultError("a plan is pinned; lift it first: edgeshard set pin=")
        return report

    def _look_for_requests(self, report: dict[str, Any], is_forced: bool) -> list[str]:
        """Who does not answer.  Raises FaultError where requests run that this would disturb."""
        members = [member for member in report["members"] if member["state"] == "alive"]
        with ThreadPoolExecutor(max_workers=16) as pool:
            answers = list(pool.map(self._report_of, members))
        told = {m["name"]: r for m, r in zip(members, answers, strict=True)}
        busy = [name for name, one in told.items() if one and _has_requests(one)]
        silent = [name for name, one in told.items() if not one]
        if busy and not is_forced:
            names = ", ".join(busy)
            raise FaultError(f"requests run at {names}, and would be disturbed; --force does it")
        if silent:
            self._say(f"not asked for requests, no answer from here: {', '.join(silent)}")
        return silent

    def _report_of(self, member: dict[str, Any]) -> dict[str, Any]:
        """Empty without an answer."""
        answer = ask(_address_of(member), self._security, Status(), REPORT_S)
        return answer.report if isinstance(answer, StatusReport) else {}

    def _snapshot(self) -> Snapshot:
        answer = self._ask(View())
        if not isinstance(answer, SwarmView) or answer.snapshot is None:
            raise FaultError("the peer has just lost what it plans with; try again")
        return answer.snapshot

    # --- plans ----------------------------------------------------------------------------

    def _tried(self, variant: Variant, wanted: _Answer) -> Trial:
        trial = Trial(variant.what, str(variant.pin or ""), Tokens.NOT_TRIED, variant.why_not)
        if variant.pin is None or trial.why:
            return trial
        if self._left_s() < REHEARSAL_S + TRIAL_S:
            return replace(trial, why="no time was left")
        begun = time.monotonic()
        plan_id = self._pinned(variant.pin, self._left_s() - REHEARSAL_S)
        waited_ms = round((time.monotonic() - begun) * 1e3, 1)
        if plan_id is None:
            why = f"not served within {waited_ms / 1e3:.0f} s"
            return replace(trial, tokens=Tokens.NONE, why=why)
        got = self._answer(TOKENS)
        if got.done is None:
            return replace(trial, tokens=Tokens.NONE, why=got.error, switched_ms=waited_ms)
        if got.done.plan_id != plan_id or got.done.failovers:
            return replace(trial, tokens=Tokens.NONE, why="another plan took its place meanwhile")
        return replace(
            trial,
            tokens=got.beside(wanted),
            ms_per_token=round(got.done.ms_per_token, 2),
            switched_ms=waited_ms,
        )

    def _pinned(self, pin: Pin, wait_s: float) -> str | None:
        """The id of the plan; None: it is not served in time."""
        self._has_pinned = True
        if not isinstance(self._ask(Set("pin", str(pin), int(TIME_S))), Okay):
            raise FaultError(f"no word from {self._address} any more")
        plan = self._serving(pin, wait_s)
        return None if plan is None else str(plan["plan_id"])

    def _serving(self, pin: Pin | None, wait_s: float) -> dict[str, Any] | None:
        """What is served, once it is what ``pin`` names, or without one what nobody has pinned."""
        ends_at, pause = time.monotonic() + min(SWITCH_S, wait_s), threading.Event()
        n_in_vain = 0
        while time.monotonic() < ends_at:
            answer = self._ask(Status())
            n_in_vain = n_in_vain + 1 if answer is None else 0
            if n_in_vain == IN_VAIN_MAX:
                raise FaultError(f"no word from {self._address} any more")
            if isinstance(answer, StatusReport):
                report: dict[str, Any] = answer.report
                plan: dict[str, Any] = report["plan"]
                is_wanted = _is_chosen if pin is None else lambda plan: as_pin(plan) == pin
                if is_ready(plan) and is_wanted(plan):
                    return plan
            pause.wait(POLL_S)
        return None

    def _restore(self, served: Pin, outcome: Outcome) -> None:
        """Lift what was pinned.  By way of a pin to ``served``: units stay where they are, by what
        it costs to move them, and so would those of the last trial.  The swarm may still choose
        another plan, where its figures have changed meanwhile."""
        self._pinned(served, SWITCH_S)
        plan = self._serving(None, SWITCH_S) if self._lift() else None
        if plan is None:
            outcome.not_restored = f"no plan of the swarm's own within {SWITCH_S:.0f} s"
            self._say(f"NOT AS BEFORE: {outcome.not_restored}")
            return
        outcome.plan_after = str(as_pin(plan))
        if outcome.plan_after != outcome.plan:
            self._say(f"another plan than before is chosen now: {outcome.plan_after}")

    def _lift(self) -> bool:
        """Whether nothing is pinned by this any more."""
        if self._has_pinned:
            self._has_pinned = not isinstance(self._ask(Set("pin", "")), Okay)
        return not self._has_pinned

    # --- an answer ------------------------------------------------------------------------

    def _answer(self, n_tokens: int, at_token: Callable[[int], None] | None = None) -> _Answer:
        """Greedy.  ``at_token`` is told how many tokens there are, whenever some come."""
        token_ids: list[int] = []
        stall_s, came_at = 0.0, time.monotonic()
        try:
            with Client(self._address, self._security) as client:
                client.send(Run(words(PROMPT_WORDS), True, n_tokens, Sampling()))
                for answer in client.answers(self._left_s()):
                    now = time.monotonic()
                    if isinstance(answer, Text):
                        stall_s = max(stall_s, now - came_at) if token_ids else 0.0
                        token_ids += answer.token_ids
                        came_at = now
                        if at_token is not None:
                            at_token(len(token_ids))
                    elif isinstance(answer, Done):
                        return _Answer(tuple(token_ids), answer, "", round(stall_s * 1e3, 1))
                    elif isinstance(answer, Failed):
                        return _Answer(tuple(token_ids), None, answer.error)
                    if now > self._ends_at:
                        break
        except NoAnswer as error:
            return _Answer(tuple(token_ids), None, str(error))
        return _Answer(tuple(token_ids), None, f"no end within {TIME_S:.0f} s of all")

    # --- the failover ---------------------------------------------------------------------

    def _rehearsed(self, ms_per_token: float) -> Rehearsal:
        try:
            report, snapshot = self._ready_report(), self._snapshot()
        except (FaultError, NoAnswer, WireError) as error:
            return Rehearsal(Tokens.NOT_TRIED, str(error))
        me, stages = report["self"]["name"], as_pin(report["plan"]).stages
        name, why_not = _who_may_be_lost(snapshot, [s.name for s in stages if s.name != me])
        if not name:
            return Rehearsal(Tokens.NOT_TRIED, why_not)
        member = next(member for member in report["members"] if member["name"] == name)
        n_tokens = min(TOKENS_MAX, FAILS_AT + max(TOKENS, int(GOES_ON_S * 1e3 / ms_per_token)))
        wanted = self._answer(n_tokens)
        if wanted.done is None or len(wanted.token_ids) < FAILS_AT + TOKENS:
            return Rehearsal(Tokens.NOT_TRIED, wanted.error or "the answer is too short for it")
        try:
            with Client(_address_of(member), self._security) as victim:
                # The connection has to be there when the moment comes.
                victim.send(Status())
                next(victim.answers(REPORT_S))
                return self._without(name, victim, n_tokens, wanted)
        except NoAnswer as error:
            return Rehearsal(Tokens.NOT_TRIED, str(error))

    def _without(self, name: str, victim: Client, n_tokens: int, wanted: _Answer) -> Rehearsal:
        """The answer while ``name`` stands still in the middle of it."""
        self._say(f"failover: {name} stands still for {FAILS_FOR_S:.0f} s")
        has_told = False

        def at_token(n_here: int) -> None:
            nonlocal has_told
            if n_here >= FAILS_AT and not has_told:
                has_told = True
                victim.send(StandStill(FAILS_FOR_S))

        got = self._answer(n_tokens, at_token)
        if got.done is None:
            return Rehearsal(Tokens.NONE, got.error, name)
        if not got.done.failovers:
            return Rehearsal(Tokens.NOT_TRIED, "the answer was over before it mattered", name)
        return Rehearsal(
            got.beside(wanted),
            "",
            name,
            got.done.failovers,
            got.done.replayed_tokens,
            round(got.done.recovery_ms, 1),
            got.stall_ms,
        )


def _who_may_be_lost(snapshot: Snapshot, stages: Iterable[str]) -> tuple[str, str]:
    """The first stage without which the swarm can still hold the model; empty: none, and why."""
    why_not = "no stage is at another peer than the one that is asked"
    for name in list(stages)[:VICTIMS_MAX]:
        left = planned(msgspec.structs.replace(without(snapshot, name), pin=None))
        if left.layout is not None:
            return name, ""
        why_not = f"without {name} no plan: {left.reason}"
    return "", why_not


def _is_chosen(plan: dict[str, Any]) -> bool:
    """Whether it is the answer to what is known now, and nobody's pin."""
    return plan["predicted_ms_per_token"] is not None and NOTE not in plan["note"]


def _has_requests(report: dict[str, Any]) -> bool:
    return bool(report["requests"] or report["self"]["requests_in_stage"])


def _address_of(member: dict[str, Any]) -> Address:
    return parse_address(str(member["address"]))


def _why(answer: object) -> str:
    return answer.error if isinstance(answer, Failed) else "the peer is of another release"
