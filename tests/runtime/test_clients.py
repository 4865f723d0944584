"""Clients that go away before there is anything to tell them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.ids import RequestId
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.runtime import clients as module
from edgeshard_p2p.runtime.clients import Clients
from edgeshard_p2p.wire import client as wire
from tests.core.parts import A
from tests.runtime.waiting import until_async

WHO = b"\x01\x02"
REQUEST = RequestId(A, 1)


class Desk:
    """Clients of a peer that takes every prompt; ``gone`` are not reached any more."""

    def __init__(self) -> None:
        self.gone: set[bytes] = set()
        self.told: list[wire.ClientAnswer] = []
        self.events: list[ev.Event] = []
        core: Any = SimpleNamespace(is_source=lambda: False, me=A)
        transport: Any = SimpleNamespace(answer_client=self._answer)
        self.clients = Clients(core, transport, self.events.append, dict, lambda _: None)
        text: Any = SimpleNamespace(push=lambda _: "x", flush=lambda: "")
        self.clients.tokenizer = SimpleNamespace(stream=lambda: text, stop_ids=())  # type: ignore[assignment]

    def _answer(self, identity: bytes, data: bytes) -> bool:
        if identity in self.gone:
            return False
        self.told.append(wire.decode_answer(data))
        return True

    def ask(self) -> None:
        self.clients.on_request(WHO, wire.Run("once", True, 3, Sampling()), None)

    def accept(self) -> None:
        self.clients.accepted(fx.Accepted(WHO.hex(), REQUEST))

    @property
    def cancelled(self) -> list[RequestId]:
        return [event.request for event in self.events if isinstance(event, ev.RequestCancelled)]


def test_who_is_gone_before_the_prompt_is_taken_is_cancelled() -> None:
    desk = Desk()
    desk.ask()
    desk.gone.add(WHO)
    desk.accept()
    assert desk.cancelled == [REQUEST]


def test_word_to_cancel_that_comes_before_the_prompt_is_taken_counts() -> None:
    desk = Desk()
    desk.ask()
    desk.clients.on_request(WHO, wire.Cancel(), None)
    assert desk.cancelled == []
    desk.accept()
    assert desk.cancelled == [REQUEST]


def test_prompt_that_is_turned_away_leaves_nothing_to_cancel() -> None:
    desk = Desk()
    desk.ask()
    desk.clients.on_request(WHO, wire.Cancel(), None)
    desk.clients.rejected(fx.Rejected(WHO.hex(), "no"))
    desk.ask()
    desk.accept()
    assert desk.cancelled == []


def test_who_waits_is_called_and_cancelled_when_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALL_EVERY_S", 0.001)
    desk = Desk()

    async def main() -> None:
        desk.ask()
        desk.accept()
        calling = asyncio.create_task(desk.clients.call())
        await until_async(lambda: wire.Waiting() in desk.told, "a call")
        assert desk.cancelled == []
        desk.gone.add(WHO)
        await until_async(lambda: REQUEST in desk.cancelled, "it is cancelled")
        calling.cancel()

    asyncio.run(main())
