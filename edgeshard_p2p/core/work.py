"""The vocabulary of computing: references to tensors, rows of requests, forward passes.

Tensors themselves never enter the core; it knows their ids and sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeshard_p2p.core.ids import NO_PLAN, PlanId, RequestId
from edgeshard_p2p.core.sampling import Sampling


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that the shell keeps until it is told to drop it."""

    id: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class CacheKey:
    """The KV of one request in one role on this peer: a device that is both the request's source
    and a stage of the plan keeps the two apart, so each may free its own.  So do the stages of two
    plans, of which one may hear late that the request has gone over to the other."""

    request: RequestId
    role: str
    plan: PlanId = NO_PLAN


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Consecutive rows of one request inside a forward pass."""

    key: CacheKey
    position: int
    """Of the first row; equals the cached length before the pass."""
    rows: int
    emit: Sampling | None = None
    """Sample a token from the last row, where the pass reaches the head."""


@dataclass(frozen=True, slots=True)
class Job:
    """Names one forward pass, so that its result finds the way back."""

    plan: PlanId
    role: str
    """``entry`` or ``stage``."""
    number: int
    """Never used twice by a process: a plan may come back under the same id while passes of its
    earlier beginning are still under way."""
