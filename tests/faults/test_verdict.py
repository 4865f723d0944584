"""What a selftest makes of what it found."""

from __future__ import annotations

import pytest

from edgeshard_p2p.faults.verdict import Outcome, Rehearsal, Tokens, Trial


def trial(tokens: Tokens) -> Trial:
    return Trial("a | b one block up, to 4", "a:0-4,b:4-6", tokens, "why", 10.0, 900.0)


@pytest.mark.parametrize(
    ("trials", "rehearsal", "not_restored", "verdict"),
    [
        ([Tokens.SAME, Tokens.NOT_TRIED], Tokens.SAME, "", "passed"),
        ([Tokens.SAME], Tokens.NOT_TRIED, "", "passed"),
        ([Tokens.NOT_TRIED], Tokens.SAME, "", "passed"),
        ([Tokens.SAME, Tokens.DIFFERENT], Tokens.SAME, "", "failed"),
        ([Tokens.SAME, Tokens.NONE], Tokens.SAME, "", "failed"),
        ([Tokens.SAME], Tokens.DIFFERENT, "", "failed"),
        ([Tokens.SAME], Tokens.NONE, "", "failed"),
        ([Tokens.SAME], None, "no plan of the swarm's own within 40 s", "failed"),
        ([Tokens.NOT_TRIED], Tokens.NOT_TRIED, "", "nothing tried"),
        ([], Tokens.NOT_TRIED, "", "nothing tried"),
    ],
)
def test_verdict(
    trials: list[Tokens], rehearsal: Tokens | None, not_restored: str, verdict: str
) -> None:
    outcome = Outcome("a:0-3,b:3-6", [], [trial(tokens) for tokens in trials])
    outcome.rehearsal = Rehearsal(rehearsal) if rehearsal is not None else None
    outcome.not_restored = not_restored
    assert outcome.verdict == verdict


def test_what_is_wrong_stands_out() -> None:
    assert str(trial(Tokens.DIFFERENT)).endswith("to 4: OTHER TOKENS, 10.0 ms/token")
    assert str(trial(Tokens.NONE)).endswith("to 4: NO ANSWER: why")
    assert str(trial(Tokens.NOT_TRIED)).endswith("to 4: not tried: why")
    lost = Rehearsal(Tokens.DIFFERENT, "", "b", 1, 28, 600.0, 4200.0)
    assert str(lost) == (
        "failover without b: OTHER TOKENS, 28 replayed; the answer stood still for 4.2 s"
    )
