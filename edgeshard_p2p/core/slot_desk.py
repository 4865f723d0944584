"""Slots of plans: asked for by this peer's requests, and granted where admission is this peer's.

Knows nothing of what is done with a slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edgeshard_p2p.core.admission import RETRY_MS, Admission, Waiting
from edgeshard_p2p.core.effects import Effect, Send
from edgeshard_p2p.core.flow import Flow
from edgeshard_p2p.core.ids import PeerId, PlanId, RequestId
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import SlotAnswer, SlotAsk, SlotReturn
from edgeshard_p2p.core.request import AskSlot, ReturnSlot, SourceStep
from edgeshard_p2p.core.source import SourceWork


@dataclass(slots=True)
class SlotDesk:
    membership: Membership
    is_loaded: Callable[[PlanId], bool]
    flows: dict[PlanId, Flow]
    source: SourceWork
    run: Callable[[list[SourceStep], float], list[Effect]]
    """Performs what the source wants once it has an answer."""
    refused: Counter[str]
    admissions: dict[PlanId, Admission] = field(default_factory=dict)

    @property
    def me(self) -> PeerId:
        return self.source.me

    # --- this peer's requests -------------------------------------------------------------

    def ask(self, step: AskSlot, now: float) -> list[Effect]:
        admitting = step.plan.admitting
        waited_ms = max(0, int(step.waited_s * 1e3))
        ask = SlotAsk(step.plan.id, step.request, step.attempt, waited_ms, step.is_running)
        if admitting == self.me:
            return self.run(self._take(self._answer(ask, now), now), now)
        return self._send(admitting, ask)

    def give_back(self, step: ReturnSlot, now: float) -> list[Effect]:
        admitting = step.plan.admitting
        back = SlotReturn(step.plan.id, step.request, step.attempt)
        if admitting == self.me:
            return self.on_return(self.me, back, now)
        return self._send(admitting, back)

    def on_answer(self, sender: PeerId, answer: SlotAnswer, now: float) -> list[Effect]:
        flow = self.flows.get(answer.plan)
        if flow is None or flow.plan.admitting != sender:
            self.refused["not_theirs_to_say"] += 1
            return []
        steps = self._take(answer, now)
        if not steps and answer.verdict == "granted" and answer.request.source == self.me:
            # A slot granted to a request that has ended meanwhile goes back.
            if answer.request in self.source.requests:
                return []
            return self.give_back(ReturnSlot(flow.plan, answer.request, answer.attempt), now)
        return self.run(steps, now)

    def _take(self, answer: SlotAnswer, now: float) -> list[SourceStep]:
        return self.source.on_slot(answer, now)

    # --- those of all sources, where admission is here ------------------------------------

    def on_ask(self, sender: PeerId, ask: SlotAsk, now: float) -> list[Effect]:
        if ask.request.source != sender:
            return []
        flow = self.flows.get(ask.plan)
        if flow is not None and sender not in flow.plan.sources:
            return []
        if self.membership.address_of(sender) is None:
            return []
        return self._send(sender, self._answer(ask, now))

    def _answer(self, ask: SlotAsk, now: float) -> SlotAnswer:
        admission = self.admissions.get(ask.plan)
        if admission is None or not self.is_loaded(ask.plan):
            return SlotAnswer(ask.plan, ask.request, ask.attempt, "no_such_plan", RETRY_MS)
        since = now - ask.waited_ms / 1e3
        verdict = admission.on_ask(Waiting(ask.request, ask.attempt, ask.is_running, since), now)
        retry_ms = admission.retry_ms()
        return SlotAnswer(ask.plan, ask.request, ask.attempt, verdict, retry_ms)

    def on_return(self, sender: PeerId, back: SlotReturn, now: float) -> list[Effect]:
        if back.request.source != sender:
            self.refused["not_theirs_to_say"] += 1
            return []
        return self.released(back.plan, [(back.request, back.attempt)], now)

    def released(
        self, plan_id: PlanId, slots: Iterable[tuple[RequestId, int]], now: float
    ) -> list[Effect]:
        """(request, attempt) of slots that are free now."""
        admission = self.admissions.get(plan_id)
        if admission is None:
            return []
        for request, attempt in slots:
            admission.give_back(request, attempt, now)
        return self._tell_grants(plan_id, now)

    def forget_source(self, source: PeerId) -> None:
        """Its plans are about to be retired, so nobody is granted its slots."""
        for admission in self.admissions.values():
            admission.forget_source(source)

    def forget_below(self, source: PeerId, oldest_live: int, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for plan_id, admission in self.admissions.items():
            admission.forget_below(source, oldest_live)
            effects += self._tell_grants(plan_id, now)
        return effects

    def _tell_grants(self, plan_id: PlanId, now: float) -> list[Effect]:
        """Grant the slots that are free now and tell the sources."""
        effects: list[Effect] = []
        for one in self.admissions[plan_id].grant_next(now):
            answer = SlotAnswer(plan_id, one.request, one.attempt, "granted")
            if answer.request.source == self.me:
                effects += self.run(self._take(answer, now), now)
            else:
                effects += self._send(answer.request.source, answer)
        return effects

    def _send(self, to: PeerId, message: SlotAsk | SlotAnswer | SlotReturn) -> list[Effect]:
        address = self.membership.address_of(to)
        return [Send(address, message)] if address is not None else []
