"""What many requests saw, in numbers.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from edgeshard_p2p.load.traffic import Served


class Spread(Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values_s: Sequence[float]) -> Spread:
        ordered = sorted(values_s) or [0.0]
        return cls(*(round(1e3 * at(ordered, share), 3) for share in (0.5, 0.99, 1.0)))


def at(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all is not above."""
    rank = -(-len(ordered) * round(share * 1000) // 1000)
    return ordered[max(0, rank - 1)]


class Figures(Struct, frozen=True):
    requests: int
    failed: int
    refusals: int
    """How often a request was refused for now, and came again."""
    failovers: int
    cached_tokens: int
    """Of all prompts, that were still cached of others: nobody had to compute them."""
    tokens: int
    seconds: float
    """From the first question to the last token."""
    tokens_per_s: float
    ttft_ms: Spread
    """From the question to the first token, waiting for a slot included."""
    inter_token_ms: Spread
    """Between two tokens of an answer, all answers together."""
    ms_per_token: Spread
    """Of each answer, after its first token."""


def figures(served: Sequence[Served]) -> Figures:
    whole = [one for one in served if one.is_whole and one.token_at]
    gaps_s = [b - a for one in whole for a, b in pairwise(one.token_at)]
    paces_s = [
        (one.token_at[-1] - one.token_at[0]) / (len(one.token_at) - 1)
        for one in whole
        if len(one.token_at) > 1
    ]
    n_tokens = sum(len(one.token_ids) for one in whole)
    begun = min((one.asked_at for one in whole), default=0.0)
    seconds = max((one.token_at[-1] for one in whole), default=0.0) - begun
    return Figures(
        requests=len(served),
        failed=sum(not one.is_whole for one in served),
        refusals=sum(one.refusals for one in served),
        failovers=sum(one.failovers for one in served),
        cached_tokens=sum(one.cached_tokens for one in served),
        tokens=n_tokens,
        seconds=round(seconds, 3),
        tokens_per_s=round(n_tokens / seconds, 3) if seconds else 0.0,
        ttft_ms=Spread.of([one.token_at[0] - one.asked_at for one in whole]),
        inter_token_ms=Spread.of(gaps_s),
        ms_per_token=Spread.of(paces_s),
    )


def steady_tokens_per_s(served: Sequence[Served]) -> float:
    """Of the time in which all requests that were put at once are past their first token and none
    has ended: what decoding gives with all in flight.  0.0: there is no such time."""
    whole = [one for one in served if one.is_whole and one.token_at]
    begin = max((one.token_at[0] for one in whole), default=0.0)
    end = min((one.token_at[-1] for one in whole), default=0.0)
    if end <= begin:
        return 0.0
    n_tokens = sum(begin < moment <= end for one in whole for moment in one.token_at)
    return round(n_tokens / (end - begin), 3)
