"""The slots of the plans whose admission is this peer's: asks answered, grants made.

Knows nothing of who tells whom, nor of sources' insides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edgeshard_p2p.core.admission import RETRY_MS, Admission, Waiting
from edgeshard_p2p.core.ids import PlanId, RequestId
from edgeshard_p2p.core.messages import SlotAnswer, SlotAsk


@dataclass(slots=True)
class SlotDesk:
    is_loaded: Callable[[PlanId], bool]
    admissions: dict[PlanId, Admission] = field(default_factory=dict)

    def answer(self, ask: SlotAsk, now: float) -> SlotAnswer:
        admission = self.admissions.get(ask.plan)
        if admission is None or not self.is_loaded(ask.plan):
            return SlotAnswer(ask.plan, ask.request, ask.attempt, "no_such_plan", RETRY_MS)
        since = now - ask.waited_ms / 1e3
        verdict = admission.on_ask(Waiting(ask.request, ask.attempt, ask.is_running, since))
        return SlotAnswer(ask.plan, ask.request, ask.attempt, verdict, RETRY_MS)

    def give_back(self, plan_id: PlanId, request: RequestId, attempt: int) -> bool:
        """False where this peer does not admit to that plan."""
        admission = self.admissions.get(plan_id)
        if admission is None:
            return False
        admission.give_back(request, attempt)
        return True

    def grants(self, plan_id: PlanId) -> list[SlotAnswer]:
        """Grant the slots that are free now."""
        granted = self.admissions[plan_id].grant_next()
        return [SlotAnswer(plan_id, one.request, one.attempt, "granted") for one in granted]
