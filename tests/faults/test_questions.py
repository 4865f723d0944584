"""Questions to peers that do not answer at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edgeshard_p2p.faults import questions
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.questions import Questions
from edgeshard_p2p.wire.client import Failed, Okay, Status

LATER = Failed("it is still opening the model", retry_ms=2000)
NEVER = Failed("there is no such setting", is_usage=True)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "PAUSE_S", 0.0)


def asked(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> tuple[Questions, Iterator[Any]]:
    """Of a peer that answers so, one question after another; and what it has not said yet."""
    left = iter(answers)
    monkeypatch.setattr(Questions, "ask", lambda *_: next(left))
    return Questions(None), left  # type: ignore[arg-type]


def test_who_does_not_answer_or_says_later_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, left = asked(monkeypatch, None, LATER, Okay(), "too much")
    assert peer.insist("a", Status(), 1.0) == Okay()
    assert list(left) == ["too much"]


def test_refusal_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, left = asked(monkeypatch, NEVER, "too much")
    with pytest.raises(FaultError, match="a does not take x=1: there is no such setting"):
        peer.set("a", "x", "1")
    assert list(left) == ["too much"]


@pytest.mark.parametrize(
    ("answer", "why"), [(None, "it does not answer"), (LATER, "still opening the model")]
)
def test_patience_ends(answer: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "PATIENCE_S", -1.0)
    peer, _ = asked(monkeypatch, answer)
    with pytest.raises(FaultError, match=why):
        peer.set("a", "x", "1")
