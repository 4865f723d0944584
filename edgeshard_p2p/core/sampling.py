"""How the next token is drawn.  The drawing itself is the model's business, not the core's."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class Sampling(Struct, frozen=True, array_like=True):
    """Counter-based sampling: the token at a position is a function of (logits, this, position),
    so it does not matter which peer draws it, nor how often."""

    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
