"""What this peer computes next, for its stages and for its own requests, of all living plans.

Says how large passes may be, how many of a source's are under way, and when a chunk has room where
it goes next; `lanes` decides by that which rows have their turn, and they become passes here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edgeshard_p2p.core.edges import CHUNKS_AHEAD
from edgeshard_p2p.core.effects import Effect, RunForward
from edgeshard_p2p.core.flow import Flow
from edgeshard_p2p.core.ids import PlanId, RequestId
from edgeshard_p2p.core.lanes import Lane, Lanes, Waiting
from edgeshard_p2p.core.outcome import StageRows
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.request import ROLE as ENTRY
from edgeshard_p2p.core.request import EntryRows, Flush
from edgeshard_p2p.core.source import SourceWork
from edgeshard_p2p.core.stage import ROLE as STAGE
from edgeshard_p2p.core.stage import StageWork
from edgeshard_p2p.core.work import Job

Rows = EntryRows | StageRows

PassRows = Callable[[Plan, int, int], int]
"""How many rows a pass of a plan takes at best, with so many requests that decode, and so many
chunks of prompts that have still to set out."""


@dataclass(slots=True)
class ComputeDesk:
    stages: dict[PlanId, StageWork]
    flows: dict[PlanId, Flow]
    source: SourceWork
    pass_rows: PassRows
    has_rounds: Callable[[], bool]
    """Whether all rows of a source's come back before any sets out again (``bubbles``)."""
    lanes: Lanes[Rows] = field(default_factory=Lanes)
    _left: dict[PlanId, set[RequestId]] = field(default_factory=dict)
    """Whose rows have still to set out in the present round."""

    def put_entry(self, rows: EntryRows) -> None:
        lane = (ENTRY, rows.plan.id)
        self.lanes.put(lane, rows, [rows.request], rows.group.rows, rows.is_chunk)

    def put_stage(self, stage: StageWork, rows: StageRows) -> None:
        n_rows = sum(group.rows for group in rows.groups)
        lane = (STAGE, stage.plan.id)
        self.lanes.put(lane, rows, stage.requests_of(rows), n_rows, rows.is_chunk)

    def begin(self) -> list[Effect]:
        """Passes, as many as the compute thread should have."""
        effects: list[Effect] = []
        while taken := self.lanes.take(self._rows_max, self._takes_chunk):
            effects += self._begin(taken)
        return effects

    def _rows_max(self, lane: Lane) -> int:
        """0 where as many passes of this source's are on their way as there is use for: smaller
        ones would never find together, for what comes back together sets out together."""
        role, plan_id = lane
        stage = self.stages.get(plan_id)
        requests = self.source.requests.values() if role == ENTRY else ()
        here = [request for request in requests if request.plan_id == plan_id]
        own = [request for request in here if request.is_decoding]
        n_requests = max(len(own), stage.n_decoding() if stage is not None else 0)
        if not n_requests:
            return 1
        n_chunks = sum(request.n_chunks for request in here)
        n_rows = self.pass_rows(self.flows[plan_id].plan, n_requests, n_chunks)
        if role != ENTRY:
            return n_rows
        out = {request.pass_number for request in own} - {None}
        if self.has_rounds():
            everybody = {request.id for request in own}
            left = self._left.setdefault(plan_id, everybody) if out else everybody
            self._left[plan_id] = left & everybody
            n_rows = min(n_rows, len(self._left[plan_id]))
        return n_rows if len(out) * n_rows < len(own) else 0

    def _takes_chunk(self, lane: Lane) -> bool:
        """Whether few enough are where it goes next."""
        role, plan_id = lane
        flow, stage = self.flows[plan_id], self.stages.get(plan_id)
        next_index = 0 if role == ENTRY or stage is None else stage.index + 1
        if next_index == len(flow.plan.stages):
            return True
        if role == ENTRY and flow.plan.stages[0].peer == self.source.me:
            return self.lanes.n_chunks((STAGE, plan_id), self.source.me) < CHUNKS_AHEAD
        return flow.chunks_ahead(flow.onward(self.source.me, next_index)) < CHUNKS_AHEAD

    def _begin(self, taken: list[Waiting[Rows]]) -> list[Effect]:
        role, plan_id = taken[0].lane
        effects: list[Effect] = []
        if role == ENTRY:
            entry = [w.work for w in taken if isinstance(w.work, EntryRows)]
            run = self.source.begin(entry)
            effects += [run] if run is not None else []
            self._left.get(plan_id, set()).difference_update(rows.request for rows in entry)
        else:
            rows = [w.work for w in taken if isinstance(w.work, StageRows)]
            outcome = self.stages[plan_id].begin(rows)
            effects += outcome.effects
            for due in outcome.consumed:
                effects += self.flows[plan_id].consumed(due)
        self._note(effects, taken[0].is_chunk)
        return effects

    def _note(self, effects: list[Effect], is_chunk: bool) -> None:
        for effect in effects:
            if isinstance(effect, RunForward):
                self.lanes.begun(effect.job.role, effect.job.number, is_chunk)

    def end_plan(self, plan_id: PlanId) -> list[Effect]:
        """Its requests do not run any more.  What waits of its stage is computed, for it counts as
        cached; what waits at the source of requests that have nothing to go on with is not."""
        self._left.pop(plan_id, None)
        self.lanes.take_lane((ENTRY, plan_id))
        taken = self.lanes.take_lane((STAGE, plan_id))
        return [effect for one in taken for effect in self._begin([one])]

    def before_open(self, plan_id: PlanId, requests: list[RequestId]) -> list[Effect]:
        """An attempt goes on with what the one before it has computed; so that comes first."""
        taken = self.lanes.take_of((STAGE, plan_id), requests)
        return [effect for one in taken for effect in self._begin([one])]

    def flush_entry(self, step: Flush) -> list[Effect]:
        """What waits of a request that does not run any more, and may go on with it."""
        if step.plan is None:
            return []
        effects: list[Effect] = []
        for one in self.lanes.take_of((ENTRY, step.plan), [step.request]):
            assert isinstance(one.work, EntryRows)
            if one.work.attempt != step.attempt:
                continue  # Of one that was let go.
            run = self.source.entry.begin([one.work])
            self._note([run], one.is_chunk)
            effects.append(run)
        return effects

    def ended(self, job: Job) -> None:
        self.lanes.ended(job.role, job.number)
