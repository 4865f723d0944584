"""Requests of this source that are over and whose KV may still be here and along the stages: the
next turn of a chat goes on from there.

Knows tokens; whether anything is left is known where it is kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgeshard_p2p.core.ids import RequestId
from edgeshard_p2p.core.kept import KeptCaches

WORTH_TOKENS = 16
"""Fewer are computed again sooner than the stages have said what they have of them."""


@dataclass(frozen=True, slots=True)
class Continued:
    request: RequestId
    """That is over."""
    length: int
    """So many of its first tokens are the new request's too."""


@dataclass(slots=True)
class EndedRequests:
    kept: KeptCaches
    _tokens: dict[RequestId, tuple[int, ...]] = field(default_factory=dict)

    def add(self, request: RequestId, tokens: tuple[int, ...]) -> None:
        self._tokens = {r: known for r, known in self._tokens.items() if self.kept.of(r).units}
        self._tokens[request] = tokens

    def longest(self, tokens: Sequence[int]) -> Continued | None:
        """What has most in common with a new prompt.  Going on from it takes it from whoever could
        go on from its end: less than a half of it is not enough for that."""
        found = [Continued(r, _common(known, tokens)) for r, known in self._tokens.items()]
        worth = [
            one
            for one in found
            if one.length >= WORTH_TOKENS
            and 2 * one.length > len(self._tokens[one.request])
            and self.kept.of(one.request).units
        ]
        return max(worth, key=lambda one: (one.length, one.request), default=None)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    lengths = range(1, min(len(a), len(b)) + 1)
    return bisect_left(lengths, True, key=lambda n: tuple(a[:n]) != tuple(b[:n]))
