"""What the stages of this peer have of requests, for their sources to know; and whether there is
room for one more log.

Knows nothing of what a source does with the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edgeshard_p2p.core.effects import Effect, Send
from edgeshard_p2p.core.flow import Flow
from edgeshard_p2p.core.ids import PeerId, PlanId
from edgeshard_p2p.core.kept import KeptCaches
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import CacheAsk, CacheReport
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.request import AskCaches
from edgeshard_p2p.core.stage import ROLE, StageWork


@dataclass(slots=True)
class CacheDesk:
    me: PeerId
    membership: Membership
    stages: dict[PlanId, StageWork]
    flows: dict[PlanId, Flow]
    is_loaded: Callable[[PlanId], bool]
    log_bytes: int
    """For all logs of hidden states together."""
    kept: KeptCaches = field(init=False)
    """What stages of plans that are gone have left here."""

    def __post_init__(self) -> None:
        self.kept = KeptCaches(ROLE, self._n_open)

    def _n_open(self) -> int:
        return sum(len(stage.requests) for stage in self.stages.values())

    def may_log(self, plan: Plan, n_others: int) -> bool:
        """Beside ``n_others`` that stages have no part in.  A log may grow as long as the
        context."""
        slots = [known.slot for s in self.stages.values() for known in s.requests.values()]
        n_logs = n_others + self.kept.n_logs() + sum(1 for slot in slots if slot.is_logged)
        row_bytes = self.flows[plan.id].model.hidden_bytes(plan.workload.dtype)
        return (n_logs + 1) * row_bytes * plan.workload.context <= self.log_bytes

    def ask(self, step: AskCaches) -> tuple[list[Effect], CacheReport | None]:
        """The stages of the plan; this peer's own report at once, if it has a stage of it."""
        effects, own = list[Effect](), None
        ask = CacheAsk(step.plan.id, step.request, step.continues)
        for index, stage in enumerate(step.plan.stages):
            address = self.membership.address_of(stage.peer)
            if index in step.known:
                continue
            if stage.peer == self.me:
                own = self.report(ask)
            elif address is not None:
                effects.append(Send(address, ask))
        return effects, own

    def on_ask(self, sender: PeerId, ask: CacheAsk) -> list[Effect]:
        address = self.membership.address_of(sender)
        if address is None or ask.request.source != sender:
            return []
        report = self.report(ask)
        return [Send(address, report)] if report is not None else []

    def report(self, ask: CacheAsk) -> CacheReport | None:
        """Of this peer's stage of the plan, once that stands."""
        stage = self.stages.get(ask.plan)
        if stage is None or not self.is_loaded(ask.plan):
            return None
        cached = stage.cached(ask.request, ask.continues)
        return CacheReport(ask.plan, ask.request, stage.index, cached.units, cached.logs)
