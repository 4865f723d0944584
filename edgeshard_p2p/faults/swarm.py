"""A swarm that is asked, disturbed and watched: one scenario's, again and again where wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import structs

from edgeshard_p2p.core.pin import parse_pin
from edgeshard_p2p.faults import figures as fig
from edgeshard_p2p.faults.devices import Devices, FaultError
from edgeshard_p2p.faults.questions import REPORT_TIMEOUT_S, Questions
from edgeshard_p2p.faults.scenario import FAULTS, LOSSES, PASSING, UNDOING, FaultScenario, Step
from edgeshard_p2p.faults.watch import Watch
from edgeshard_p2p.prompts import prompt_of
from edgeshard_p2p.reports import as_pin, is_ready
from edgeshard_p2p.wire.client import (
    ClientAnswer,
    Done,
    Failed,
    Run,
    Set,
)

READY_TIMEOUT_S = 180.0
STEP_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 200.0
CLEAN_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 60.0
POLL_S = 0.1

Say = Callable[[str], None]


@dataclass
class Outcome:
    """One request that was disturbed."""

    scenario: FaultScenario
    network: str
    observed: fig.Observed
    tokens: fig.Tokens
    n_tokens: int
    done: Done | None
    error: str
    prompt_tokens: int
    left_over: int
    """Requests that some living peer still holds anything of."""
    missed: list[str] = field(default_factory=list)
    """Steps whose moment never came."""

    def times(self) -> fig.Times:
        return fig.worst([fig.times_of(self.observed, fault) for fault in self.harms()])

    def harms(self) -> list[fig.Fault]:
        return [fault for fault in self.observed.faults if fault.do in FAULTS]

    def unexpected(self) -> list[str]:
        """What the scenario says otherwise; empty: it went as expected."""
        expect = self.scenario.expect
        found = [f"{step}: its moment never came" for step in self.missed]
        if expect.answer == "whole":
            if self.done is None:
                found.append(f"the answer ended early: {self.error}")
            if not self.tokens.is_whole:
                t = self.tokens
                found.append(f"tokens: {t.lost} lost, {t.doubled} doubled, {t.changed} changed")
        elif self.done is not None:
            found.append("the answer did not end, but went on to its last token")
        failovers = self.done.failovers if self.done is not None else 0
        if failovers < expect.failovers_min:
            found.append(f"{failovers} failovers, expected {expect.failovers_min} at least")
        if self.left_over:
            found.append(f"{self.left_over} requests were left over")
        return found


class FaultSwarm(Questions):
    def __init__(self, scenario: FaultScenario, devices: Devices, say: Say) -> None:
        super().__init__(devices)
        self.scenario, self._say = scenario, say
        self._alive = set(scenario.names)
        self._frozen: set[str] = set()
        self._slowed: set[str] = set()
        self._cut_off: set[str] = set()
        self._is_relinked = False
        self._undone_at: float | None = None
        """When something that was done to this request was last undone."""
        self.prompt, self.prompt_tokens = "", 0
        self.wanted: list[int] = []
        """The tokens of an undisturbed run."""

    def _here(self) -> list[str]:
        """Who lives and can be reached by the source."""
        return [n for n in self.scenario.names if n in self._alive - self._frozen - self._cut_off]

    def wait(self, is_so: Callable[[], bool], wait_s: float, what: str) -> None:
        """Raises FaultError when it does not come to be, or a peer ends meanwhile."""
        ends_at, pause = time.monotonic() + wait_s, threading.Event()
        while not is_so():
            ended = self._devices.why_ended()
            if ended or time.monotonic() > ends_at:
                raise FaultError(ended or f"{what}: not in {wait_s:.0f} s")
            pause.wait(POLL_S)

    # --- before and between ---------------------------------------------------------------

    def open(self) -> None:
        """Wait for the swarm, pin its plan, and find out what an undisturbed run says."""
        self.wait_until_serving()
        self.pin()
        self.prompt, self.prompt_tokens = self._prompt()
        self._say("an undisturbed run")
        self.wanted = self._undisturbed()

    def wait_until_serving(self) -> None:
        """Every peer the same plan, whichever."""
        self._say(
            f"waiting for {len(self.scenario.names)} peers on {self._devices.network}; where they "
            "are new to this machine each measures itself first, one after another"
        )
        self._wait_until_serving(is_pinned=False)
        self._say(f"serving: {self._plan_in_words()}")

    def pin(self) -> None:
        if not self.scenario.swarm.pin:
            return
        self.set(self.scenario.source, "pin", self.scenario.swarm.pin)
        self._wait_until_serving(is_pinned=True)
        self._say(f"pinned: {self._plan_in_words()}")

    def pin_to(self, pin: str) -> None:
        """In place of the scenario's."""
        self.scenario = structs.replace(
            self.scenario, swarm=structs.replace(self.scenario.swarm, pin=pin)
        )
        self.pin()

    def unpin(self) -> None:
        if self.scenario.swarm.pin:
            self.ask(self.scenario.source, Set("pin", ""), REPORT_TIMEOUT_S)

    def _wait_until_serving(self, is_pinned: bool) -> None:
        what = "every peer serves the pinned plan" if is_pinned else "every peer serves a plan"
        try:
            self.wait(lambda: self._is_serving(is_pinned), READY_TIMEOUT_S, what)
        except FaultError as error:
            report = self.report(self.scenario.source)
            plan = report.get("plan", {})
            why = plan.get("waiting_for") or plan.get("note") or plan.get("state", "")
            raise FaultError(f"{error}; {self.scenario.source} says: {why}") from None

    def _is_serving(self, is_pinned: bool) -> bool:
        reports = [self.report(name) for name in self.scenario.names]
        if not all(reports):
            return False
        plans = [report["plan"] for report in reports]
        members = [m for r in reports for m in r["members"] if m["name"] in self.scenario.names]
        is_one = len({plan["plan_id"] for plan in plans}) == 1 and plans[0]["plan_id"] is not None
        is_here = {m["state"] for m in members} == {"alive"}
        is_so = is_one and is_here and all(map(is_ready, plans))
        return is_so and (not is_pinned or self._is_pinned(plans[0]))

    def _is_pinned(self, plan: dict[str, Any]) -> bool:
        pin = parse_pin(self.scenario.swarm.pin)
        return pin is None or as_pin(plan) == pin

    def _plan_in_words(self) -> str:
        stages = self.report(self.scenario.source)["plan"]["stages"]
        return " | ".join(f"{s['start']}-{s['end'] - 1} {s['peer']}" for s in stages)

    def _run(self, max_tokens: int) -> Run:
        return Run(self.prompt, True, max_tokens, self.scenario.request.sampling)

    def _prompt(self) -> tuple[str, int]:
        return prompt_of(self.scenario.request.prompt_tokens, self._count)

    def _count(self, text: str) -> int:
        run = Run(text, True, 1, self.scenario.request.sampling)
        answer = self.insist(self.scenario.source, run, PROBE_TIMEOUT_S)
        if not isinstance(answer, Done):
            raise FaultError(f"{self.scenario.source} does not answer: {_why(answer)}")
        return answer.prompt_tokens

    def _undisturbed(self) -> list[int]:
        with Watch(
            self._devices, self.scenario.source, self._run(self.scenario.request.generate)
        ) as watch:
            watch.wait_until(lambda: watch.is_ended, ANSWER_TIMEOUT_S)
        if watch.done is None:
            raise FaultError(f"an undisturbed run ends early: {watch.error}")
        return watch.token_ids

    def repair(self) -> float | None:
        """Undo what the steps have done, and wait until the swarm serves as before: every peer the
        same plan, which is the pinned one where there is a pin.  Milliseconds since the last thing
        that was undone, here or by a step: an upper bound, where the answer went on after that.
        None: nothing had to be."""
        if self._cut_off or self._is_relinked:
            self._do(Step("heal"), ())
        for name in sorted(self._slowed & self._alive):
            self._do(Step("restore"), (name,))
        for name in sorted(self._frozen & self._alive):
            self._do(Step("thaw"), (name,))
        for name in self.scenario.names:
            if name not in self._alive:
                self._do(Step("start"), (name,))
        self._wait_until_serving(is_pinned=True)
        if self._undone_at is None:
            return None
        return round((time.monotonic() - self._undone_at) * 1e3, 1)

    # --- a disturbed request --------------------------------------------------------------

    def disturb(self, scenario: FaultScenario | None = None) -> Outcome:
        """Ask, take the steps, and see it through."""
        scenario, self._undone_at = scenario or self.scenario, None
        watch = Watch(
            self._devices,
            scenario.source,
            self._run(scenario.request.generate),
            self._others(scenario),
        )
        missed: list[str] = []
        with watch:
            for step in scenario.steps:
                if not self._wait_for(step, watch):
                    missed.append(str(step))
                    continue
                self._take(step, watch)
            watch.wait_until(lambda: watch.is_ended, ANSWER_TIMEOUT_S)
            if not watch.is_ended:
                watch.error = f"no end after {ANSWER_TIMEOUT_S:.0f} s"
            self._wait_until_noticed(watch)
        left_over = self.left_over()
        return Outcome(
            scenario,
            self._devices.network,
            watch.observed,
            fig.compare(self.wanted, watch.token_ids),
            len(watch.token_ids),
            watch.done,
            watch.error,
            self.prompt_tokens,
            left_over,
            missed,
        )

    def _others(self, scenario: FaultScenario) -> list[str]:
        """Who else is watched: somebody has to be left when the source is lost."""
        hit = {name for step in scenario.steps if step.do in LOSSES for name in step.who}
        if not {"source", scenario.source} & hit:
            return []
        return [name for name in scenario.names if name not in hit and name != scenario.source][:1]

    def _wait_for(self, step: Step, watch: Watch) -> bool:
        """Whether its moment came."""
        if step.after_s is not None:
            threading.Event().wait(step.after_s)
            return True
        attempt = watch.attempt

        def is_now() -> bool:
            plan = watch.report.get("plan", {})
            if step.token is not None:
                return watch.n_tokens >= step.token
            if step.when == "loading":
                return bool(plan.get("state") == "loading")
            return watch.attempt > attempt and watch.is_replaying

        watch.wait_until(lambda: is_now() or watch.is_ended, STEP_TIMEOUT_S)
        return is_now()

    def _take(self, step: Step, watch: Watch) -> None:
        who = tuple(dict.fromkeys(self._resolve(role, watch.report) for role in step.who))
        lost: tuple[str, ...] = ()
        if step.do in LOSSES:
            is_ours_cut_off = step.do == "partition" and self.scenario.source in who
            lost = tuple(n for n in self.scenario.names if n not in who) if is_ours_cut_off else who
        fault = fig.Fault(time.monotonic(), step.do, who, lost, watch.n_tokens)
        how = self._do(step, who)
        watch.observed.faults.append(replace(fault, how=how))
        self._say(f"{step.do} {', '.join(who) or 'all'} {step.moment}{f' ({how})' if how else ''}")

    def _resolve(self, role: str, report: dict[str, Any]) -> str:
        """The name of who plays ``role`` in the plan that the source reports."""
        if role in self.scenario.names:
            return role
        if role == "source":
            return self.scenario.source
        stages = report.get("plan", {}).get("stages", [])
        if role == "spare":
            busy = {stage["peer"] for stage in stages}
            names = [name for name in self._here() if name not in busy]
        else:
            index = int(role.removeprefix("stage "))
            names = [stage["peer"] for stage in stages if stage["stage"] == index]
        if not names:
            raise FaultError(f"the plan has no {role} to do anything to")
        return str(names[0])

    def _do(self, step: Step, who: tuple[str, ...]) -> str:
        """Do it, remember it; how it was done, where there is more than one way."""
        devices, how = self._devices, step.detail
        if step.do in UNDOING:
            self._undone_at = time.monotonic()
        if step.do == "partition":
            self._cut_off |= set(who)
            devices.partition(who, step.way)
        elif step.do == "link":
            if len(who) != 2:
                raise FaultError(f"{step}: both are {', '.join(who)}")
            self._is_relinked = True
            devices.link(*who, step.mbps, step.delay_ms)
        elif step.do == "heal":
            self._cut_off.clear()
            self._is_relinked = False
            devices.heal()
        elif step.do == "slow":
            self._slowed |= set(who)
            hows = [devices.slow(name, step.by) for name in who]
            how = hows[0]
        else:
            for name in who or self._concerned(step.do):
                getattr(devices, step.do)(name)
                self._remember(step.do, name)
        return how

    def _concerned(self, verb: str) -> list[str]:
        return sorted({"thaw": self._frozen, "restore": self._slowed}[verb])

    def _remember(self, verb: str, name: str) -> None:
        if verb in ("kill", "leave", "stop"):
            self._alive.discard(name)
            self._slowed.discard(name)
            self._frozen.discard(name)
        elif verb == "start":
            self._alive.add(name)
        elif verb == "freeze":
            self._frozen.add(name)
        elif verb == "thaw":
            self._frozen.discard(name)
        else:
            self._slowed.discard(name)

    def _wait_until_noticed(self, watch: Watch) -> None:
        """An answer may end before anybody has noticed: with its source, or before it mattered.
        Of a device that got slow the next plan is what tells."""
        losses = [fault for fault in watch.observed.faults if fault.do in LOSSES]
        slowed = [fault for fault in watch.observed.faults if fault.do == "slow"]
        # Who only was away and is back may never have been missed.
        is_away = self._frozen | self._cut_off
        for_good = [f for f in losses if f.do not in PASSING or {*f.who} <= is_away]

        def are_noticed() -> bool:
            times = [fig.times_of(watch.observed, fault) for fault in for_good]
            later = [fig.times_of(watch.observed, fault) for fault in slowed]
            return all(one.detected_ms is not None for one in times) and all(
                one.replanned_ms is not None for one in later
            )

        watch.wait_until(are_noticed, CLEAN_TIMEOUT_S)

    def left_over(self, wait_s: float = CLEAN_TIMEOUT_S) -> int:
        """Requests that peers still hold, after a while."""
        with suppress(FaultError):
            self.wait(lambda: not self._held(), wait_s, "nothing is left over")
        return self._held()

    def _held(self) -> int:
        reports = [report for report in map(self.report, self._here()) if report]
        return sum(len(r["requests"]) + r["self"]["requests_in_stage"] for r in reports)


def _why(answer: ClientAnswer | None) -> str:
    return answer.error if isinstance(answer, Failed) else "no word from it"
