"""A prompt as its user sees it: what was asked, what came, and what should have come."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeshard_p2p.core.effects import FinishRequest
from edgeshard_p2p.core.ids import RequestId
from edgeshard_p2p.sim.compute import Oracle


@dataclass(slots=True)
class SimRequest:
    client: str
    at: str
    life: int
    """The life of the peer that it was put to."""
    prompt: tuple[int, ...]
    max_tokens: int
    oracle: Oracle
    stop_ids: frozenset[int] = frozenset()
    id: RequestId | None = None
    tokens: list[int] = field(default_factory=list)
    rejected: str | None = None
    finished: FinishRequest | None = None

    @property
    def is_answered(self) -> bool:
        return self.finished is not None and self.finished.finish_reason in ("length", "stop")
