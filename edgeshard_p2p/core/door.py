"""Whether a prompt may enter at this peer, and if not, why and where else.

Decides nothing about requests that are in.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeshard_p2p.core.events import PromptSubmitted
from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.local import LocalDevice
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.planning import Planning
from edgeshard_p2p.core.records import DeviceRecord
from edgeshard_p2p.core.view import model_of, workload_of


@dataclass(slots=True)
class Door:
    me: PeerId
    is_willing: bool
    """By its operator's word."""
    tile_rows: int
    membership: Membership
    gossip: Gossip
    local: LocalDevice
    planning: Planning

    def is_source(self) -> bool:
        """Whether prompts may enter here: by its flag, and by the plan where there is one."""
        plan = self.planning.rollout.active_plan()
        return self.is_willing and (plan is None or self.me in plan.sources)

    def reason_against(self, event: PromptSubmitted) -> str:
        """In words for the user; empty: none."""
        model = model_of(self.gossip)
        if not self.is_source():
            sources = self._sources()
            hint = f"; ask {' or '.join(sources)}" if sources else "; the swarm has no source"
            why_not = "takes no prompts under this plan" if self.is_willing else "is not a source"
            return f"{self.me} {why_not}{hint}"
        if model is None or self.local.trouble:
            return f"{self.me} cannot serve: {self.local.trouble or self.planning.why_no_plan()}"
        if not event.prompt:
            return "the prompt is empty"
        context = workload_of(self.gossip, model, self.tile_rows).context
        if len(event.prompt) >= context:
            return (
                f"the prompt has {len(event.prompt)} tokens, the swarm's context is {context}; "
                "shorten it, or start the swarm with a larger --context"
            )
        if self.planning.is_hopeless():
            return f"the swarm cannot serve: {self.planning.why_no_plan()}"
        return ""

    def _sources(self) -> list[str]:
        """Who takes prompts: by the plan, or where there is none by what they say."""
        found, plan = [], self.planning.rollout.active_plan()
        for member in self.membership.present():
            record = self.gossip.of(member.peer, DeviceRecord)
            is_source = isinstance(record, DeviceRecord) and record.is_source
            if is_source and (plan is None or member.peer in plan.sources):
                found.append(f"{member.peer.name} at {member.address}")
        return found
