"""A bench of a swarm whose plan is not there yet, or will not be."""

from __future__ import annotations

from typing import Any

import pytest

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.load import bench
from edgeshard_p2p.load.bench import Bench, LoadError
from edgeshard_p2p.net.security import open_security
from edgeshard_p2p.wire.client import StatusReport

LOADING, ACTIVE = ("loading", ""), ("active", "")


def serving(monkeypatch: pytest.MonkeyPatch, *plans: tuple[str, str]) -> tuple[Any, list[str]]:
    """What comes of a swarm that reports these, one after another, and what is said meanwhile."""
    reports = iter([{"plan": {"state": state, "waiting_for": why}} for state, why in plans])
    monkeypatch.setattr(bench, "POLL_S", 0.0)
    monkeypatch.setattr(Bench, "_asked", lambda *_: StatusReport(next(reports)))
    said: list[str] = []
    told = Bench([Address("127.0.0.1", 1)], open_security("test", ()))._serving(said.append)
    return told["plan"]["state"], said


def test_a_plan_that_is_being_loaded_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serving(monkeypatch, ACTIVE) == ("active", [])
    waited = serving(monkeypatch, LOADING, LOADING, ACTIVE)
    assert waited == ("active", ["waiting: the plan is being loaded"])


def test_a_plan_that_will_not_be_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="cannot serve now: memory is short"):
        serving(monkeypatch, LOADING, ("none", "memory is short"))


def test_nor_one_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LOADING_S", -1.0)
    with pytest.raises(LoadError, match="has not been loaded in -1 s"):
        serving(monkeypatch, LOADING)
