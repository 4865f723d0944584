"""A whole peer in this process: the loop is there for others while a layer of a model runs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import Ack, Address, Hello, Identity, Ping, Refused
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.net.transport import FROM_CLIENT
from edgeshard_p2p.runtime.model_host import ModelHost
from edgeshard_p2p.wire.client import (
    Done,
    Okay,
    Run,
    Set,
    StandStill,
    Status,
    StatusReport,
    Text,
)
from edgeshard_p2p.wire.codec import decode_control, encode_control
from tests.runtime.endpoint import Endpoint, endpoint
from tests.runtime.living import SECURITY, ask, live_apart, peer, whole_model
from tests.runtime.waiting import DEADLINE_S, until_async

ME = PeerId("tester", 1)


class SlowHost(ModelHost):
    """Its layers take until the test says so."""

    def __init__(self) -> None:
        super().__init__("cpu", {})
        self.entered, self.release = threading.Event(), threading.Event()

    def forward(self, *given: Any) -> Any:
        self.entered.set()
        assert self.release.wait(DEADLINE_S)
        return super().forward(*given)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_apart(tmp_path, monkeypatch)


def _send(a: Endpoint, to: Address, message: Any) -> None:
    a.transport.send_control(to, encode_control(SECURITY.swarm_key, ME, message))


def _heard(a: Endpoint) -> list[Any]:
    return [decode_control(SECURITY.swarm_key, data)[1] for data in a.messages]


def _hello(a: Endpoint) -> Hello:
    return Hello(Identity(ME, "0123456789abcdef", a.address), 0)


def test_probes_and_clients_are_answered_while_a_layer_runs(tmp_path: Path, model: Path) -> None:
    """By order, not by time: the layer ends after they have been answered, or never."""

    async def main() -> None:
        host = SlowHost()
        async with peer(tmp_path, model, lambda: host) as life, endpoint(SECURITY) as a:
            to = life.core.membership.me.address
            plan_of = life.core.planning.dispatchable
            await until_async(lambda: plan_of() is not None, "a plan that serves")
            answer = asyncio.to_thread(ask, to, Run("hello", True, 3, Sampling()), Done)
            asked = asyncio.create_task(answer)
            await until_async(host.entered.is_set, "a layer that runs")

            _send(a, to, _hello(a))
            await until_async(lambda: a.messages, "the welcome")
            _send(a, to, Ping(77, ()))
            acks = lambda: [m for m in _heard(a) if isinstance(m, Ack)]  # noqa: E731
            await until_async(acks, "the answer to the probe")
            (report,) = await asyncio.to_thread(ask, to, Status(), StatusReport)

            assert not host.release.is_set()
            assert not asked.done()
            assert acks()[0].nonce == 77
            (request,) = report.report["requests"]
            assert (request["state"], request["generated_tokens"]) == ("running", 0)
            host.release.set()
            *_, done = answers = await asked
            assert sum(len(t.token_ids) for t in answers if isinstance(t, Text)) == 3
            assert done.finish_reason == "length"

    uvloop.run(main())


def test_whatever_arrives_the_peer_goes_on(tmp_path: Path) -> None:
    """Hostile bytes on each of its doors, each followed by a good message."""
    ping = encode_control(SECURITY.swarm_key, ME, Ping(1, ()))
    unreadable = ping.replace(b"tester", b"\xff" * 6)
    hostile = [b"", b"\xc1", b"\xa1\xff", b"\x91" * 50_000, ping[:-1], unreadable]
    edge = b"\x01" * 8

    async def main() -> None:
        async with peer(tmp_path) as life, endpoint(SECURITY) as a:
            to = life.core.membership.me.address
            for data in hostile:
                a.transport.send_control(to, data)
                a.transport._contacts[to].socket.send_multipart([FROM_CLIENT, data])
                a.transport.send_frame(edge, 0, 1, to, [data, data])
            header = [1, 4, b"\x00" * 8, edge, 0, 1, 1, 0, 0, 0, 0, 2, [1], []]
            tokens_of_bf16 = [msgspec.msgpack.encode(header), b"xx"]
            a.transport.send_frame(edge, 0, 1, to, tokens_of_bf16)
            nowhere = Identity(PeerId("lost", 1), "f" * 16, Address("no such host", 1))
            _send(a, to, Hello(nowhere, 0))
            _send(a, to, _hello(a))
            await until_async(lambda: a.messages, "the welcome")
            refused = life.driver.arrivals.refused
            await until_async(lambda: refused["malformed"] == 3 * len(hostile) + 1, "all counted")
            assert not life.driver.ended.done()

    uvloop.run(main())


@pytest.mark.parametrize("value", ["²", "-1", "9" * 200, "", "4 "])
def test_a_setting_that_cannot_be_is_refused(value: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with peer(tmp_path) as life:
            to = life.core.membership.me.address
            (answer,) = await asyncio.to_thread(ask, to, Set("batch", value), object)
            assert answer.is_usage
            assert "cannot be; expected" in answer.error
            assert not life.driver.ended.done()

    uvloop.run(main())


def test_a_peer_of_another_release_is_told_so(tmp_path: Path) -> None:
    """By a raw message of wire version 99, as that release would send it."""

    async def main() -> None:
        async with peer(tmp_path) as life, endpoint(SECURITY) as a:
            to = life.core.membership.me.address
            hello = msgspec.structs.replace(_hello(a), wire_min=99, wire_max=99)
            data = msgspec.msgpack.encode((99, SECURITY.swarm_key, ME, hello))
            a.transport.send_control(to, data)
            await until_async(lambda: a.messages, "the refusal")
            (refused,) = _heard(a)
            assert isinstance(refused, Refused)
            assert refused.reason == "wire_version"
            assert "tester@1 speaks wire versions 99-99" in refused.detail

    uvloop.run(main())


def test_a_peer_that_stands_still_is_deaf_and_dumb_and_goes_on_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        async with peer(tmp_path) as life, endpoint(SECURITY) as a:
            to = life.core.membership.me.address
            _send(a, to, _hello(a))
            await until_async(lambda: a.messages, "the welcome")
            (okay,) = await asyncio.to_thread(ask, to, StandStill(1.0), Okay)
            assert okay == Okay()
            assert life.driver.arrivals.is_deaf
            handled, core_handle = [], life.core.handle

            def handle(event: Any, now: float) -> Any:
                handled.append((event, life.driver.arrivals.is_deaf))
                return core_handle(event, now)

            life.core.handle = handle
            _send(a, to, Ping(77, ()))
            await until_async(lambda: handled, "its going on")
            assert not any(is_deaf for _, is_deaf in handled)
            _send(a, to, Ping(78, ()))
            acks = lambda: [m.nonce for m in _heard(a) if isinstance(m, Ack)]  # noqa: E731
            await until_async(acks, "the answer to the probe")
            assert acks() == [78]

    uvloop.run(main())


def test_a_peer_that_stands_still_can_be_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with peer(tmp_path) as life:
            to = life.core.membership.me.address
            await asyncio.to_thread(ask, to, StandStill(30.0), Okay)
        assert life.driver.ended.done()

    uvloop.run(main())
