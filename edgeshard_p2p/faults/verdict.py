"""What a selftest found, and how it says so.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Tokens(Enum):
    """What a plan that was tried answered, beside the plan that is served."""

    SAME = "same"
    DIFFERENT = "different"
    NONE = "none"
    """No whole answer, or not from that plan."""
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan that was tried, or why it was not."""

    what: str
    plan: str
    tokens: Tokens
    why: str = ""
    ms_per_token: float | None = None
    switched_ms: float | None = None
    """From the pin to a plan that every stage is ready for."""

    def __str__(self) -> str:
        if self.tokens is Tokens.NOT_TRIED:
            return f"{self.what}: not tried: {self.why}"
        if self.tokens is Tokens.NONE:
            return f"{self.what}: NO ANSWER: {self.why}"
        return f"{self.what}: {_in_words(self.tokens)}, {self.ms_per_token:.1f} ms/token"


@dataclass(frozen=True, slots=True)
class Rehearsal:
    tokens: Tokens
    why: str = ""
    lost: str = ""
    failovers: int = 0
    replayed_tokens: int = 0
    recovery_ms: float | None = None
    """By the source's clock."""
    stall_ms: float | None = None
    """The longest wait for a token."""

    def __str__(self) -> str:
        if self.tokens is Tokens.NOT_TRIED:
            return f"failover: not tried: {self.why}"
        if self.tokens is Tokens.NONE:
            return f"failover: NO ANSWER: {self.why}"
        return (
            f"failover without {self.lost}: {_in_words(self.tokens)}, {self.replayed_tokens} "
            f"replayed; the answer stood still for {(self.stall_ms or 0) / 1e3:.1f} s"
        )


@dataclass(slots=True)
class Outcome:
    plan: str
    not_asked: list[str]
    """Members that do not answer here: whether requests run at them is not known."""
    trials: list[Trial] = field(default_factory=list)
    rehearsal: Rehearsal | None = None
    plan_after: str = ""
    """What the swarm has chosen afterwards: ``plan``, unless its figures have changed."""
    not_restored: str = ""
    """Why the swarm does not serve a plan of its own again; empty: it does."""

    @property
    def verdict(self) -> str:
        """``passed``, ``failed`` or ``nothing tried``."""
        found = [trial.tokens for trial in self.trials]
        if self.rehearsal is not None:
            found.append(self.rehearsal.tokens)
        if self.not_restored or {*found} & {Tokens.DIFFERENT, Tokens.NONE}:
            return "failed"
        return "passed" if Tokens.SAME in found else "nothing tried"


def _in_words(tokens: Tokens) -> str:
    return "the same tokens" if tokens is Tokens.SAME else "OTHER TOKENS"
