"""The shell around a peer's core: what arrives, whatever it is, and while a layer runs."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import (
    WIRE_MAX,
    Ack,
    Address,
    ControlMessage,
    FrameHeader,
    FrameKind,
    Hello,
    Identity,
    LinkEcho,
    Open,
    Ping,
    ProbeBody,
    Refused,
    Welcome,
)
from edgeshard_p2p.core.peer import CoreConfig, PeerCore
from edgeshard_p2p.core.records import UnitTimes
from edgeshard_p2p.model.tiles import EXACT_TILE_ROWS
from edgeshard_p2p.net.transport import Callbacks, Transport
from edgeshard_p2p.runtime import driver as driver_module
from edgeshard_p2p.runtime.driver import Driver
from edgeshard_p2p.runtime.model_host import ModelHost
from edgeshard_p2p.runtime.state import Profile, State
from edgeshard_p2p.wire.codec import decode_control, encode_control
from edgeshard_p2p.wire.frames import encode_body, encode_header, encode_probe
from tests.core.parts import MODEL
from tests.runtime.endpoint import OPEN, Endpoint, endpoint
from tests.runtime.waiting import DEADLINE_S, free_address, until_async
from tests.wire.strategies import damaged, values_of

THEM = PeerId("b", 1)


@asynccontextmanager
async def peer(directory: Path, is_bound: bool = True) -> AsyncIterator[Driver]:
    """A peer without a model, on its own sockets."""
    address, state = free_address(), State(directory)
    me = Identity(PeerId("a", 1), "a" * 16, address)
    core = PeerCore(CoreConfig(me, True, 2**30, EXACT_TILE_ROWS), Random(1))
    driver: Driver
    host = ModelHost("cpu", {})
    callbacks = Callbacks(
        on_peer=lambda data: driver.arrivals.on_peer(data),
        on_client=lambda identity, data: True,
        on_frame=lambda parts: driver.arrivals.on_frame(parts),
        on_contact_failed=lambda to, why: driver.post(ev.ContactFailed(to, why)),
        on_connection_lost=lambda to, is_refused: driver.post(ev.ConnectionLost(to, is_refused)),
        refusal=lambda: driver.refusal(),
    )
    transport = Transport(address, OPEN, callbacks)
    driver = Driver(core, transport, lambda: host, state, OPEN.swarm_keys, "cpu", None)
    try:
        if is_bound:
            await transport.open()
            await driver.open()
        driver.post(ev.Started())
        yield driver
    finally:
        await driver.close()
        await transport.close()
        state.close()


def say(sender: Endpoint, to: Driver, message: ControlMessage) -> None:
    data = encode_control(OPEN.swarm_key, THEM, message)
    sender.transport.send_control(to.core.config.me.address, data)


def hello(sender: Endpoint) -> Hello:
    return Hello(Identity(THEM, "b" * 16, sender.address), 0)


def heard(by: Endpoint, kind: type) -> list[Any]:
    messages = [decode_control(OPEN.swarm_key, data)[1] for data in by.messages]
    return [message for message in messages if isinstance(message, kind)]


def test_it_answers_while_a_layer_runs(tmp_path: Path) -> None:
    """The compute thread is held until the answer has arrived: were the loop held with it, no
    answer would come."""

    async def main() -> None:
        order: list[str] = []
        begun, release = threading.Event(), threading.Event()

        def layer() -> bool:
            begun.set()
            return release.wait(DEADLINE_S)

        def on_done(was_released: bool) -> None:
            assert was_released
            order.append("computed")

        async with peer(tmp_path) as a, endpoint() as b:
            say(b, a, hello(b))
            await until_async(lambda: heard(b, Welcome), "the welcome")
            a._compute.submit(layer, on_done, lambda error: None)
            await until_async(begun.is_set, "the layer's beginning")
            say(b, a, Ping(77, ()))
            await until_async(lambda: [m for m in heard(b, Ack) if m.nonce == 77], "the answer")
            order.append("answered")
            release.set()
            await until_async(lambda: len(order) == 2, "the result")
            assert order == ["answered", "computed"]

    uvloop.run(main())


def test_what_is_malformed_is_counted_by_kind_and_costs_nobody_anything(tmp_path: Path) -> None:
    async def main() -> None:
        async with peer(tmp_path) as a, endpoint() as b:
            address = a.core.config.me.address
            good = encode_control(OPEN.swarm_key, THEM, hello(b))
            foreign = encode_control(b"foreign!", THEM, hello(b))
            for data in (b"", b"\xff" * 40, good[:-3], good + b"x", foreign):
                b.transport.send_control(address, data)
            header = FrameHeader(
                WIRE_MAX + 1, FrameKind.EDGE, THEM.tag, bytes(8), 0, 1, 1, 0, 0, 0, 0, 0, (), ()
            )
            for parts in ([b"x"], [b"x", b""], [encode_header(header), b""]):
                b.transport.send_probe(address, parts)
            expected = Counter({"malformed": 6, "other_swarm": 1, "wire_version": 1})
            await until_async(
                lambda: a.arrivals.refused == expected, f"{expected} of {a.arrivals.refused}"
            )
            say(b, a, hello(b))
            await until_async(lambda: heard(b, Welcome), "the welcome")
            assert not a.ended.done()

    uvloop.run(main())


def test_a_peer_of_another_release_is_refused_by_its_versions(tmp_path: Path) -> None:
    async def main() -> None:
        async with peer(tmp_path) as a, endpoint() as b:
            identity = Identity(THEM, "b" * 16, b.address)
            say(b, a, Hello(identity, 0, WIRE_MAX + 1, WIRE_MAX + 3))
            await until_async(lambda: heard(b, Refused), "the refusal")
            refused = heard(b, Refused)[0]
            assert refused.reason == "wire_version"
            assert f"{WIRE_MAX + 1}-{WIRE_MAX + 3}" in refused.detail
            assert not heard(b, Welcome)

    uvloop.run(main())


def test_a_probe_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with peer(tmp_path) as a, endpoint() as b:
            say(b, a, hello(b))
            await until_async(lambda: heard(b, Welcome), "the welcome")
            parts = encode_probe(THEM, nonce=5, n_bytes=10_000)
            b.transport.send_probe(a.core.config.me.address, parts)
            await until_async(lambda: LinkEcho(5) in heard(b, LinkEcho), "the echo")

    uvloop.run(main())


def test_a_bug_in_the_core_ends_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with peer(tmp_path) as a:

            def broken(event: ev.Event, now: float) -> list[Any]:
                raise ZeroDivisionError("a bug")

            monkeypatch.setattr(a.core, "handle", broken)
            with pytest.raises(ZeroDivisionError):
                a.post(ev.PeerDiscovered(Address("127.0.0.1", 7911)))
            with pytest.raises(ZeroDivisionError, match="a bug"):
                async with asyncio.timeout(DEADLINE_S):
                    await a.ended

    uvloop.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_on_the_compute_thread_ends_the_peer(tmp_path: Path) -> None:
    async def main() -> None:
        async with peer(tmp_path) as a:
            a._compute.submit(lambda: 1 // 0, lambda _: None, lambda error: None)
            with pytest.raises(ZeroDivisionError):
                async with asyncio.timeout(DEADLINE_S):
                    await a.ended

    uvloop.run(main())


@given(data=st.data())
def test_no_message_or_frame_ends_a_peer(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever fits the types, and what comes of damaging it, in any order."""
    messages = data.draw(st.lists(values_of(ControlMessage), max_size=2))
    encoded = [encode_control(OPEN.swarm_key, THEM, message) for message in messages]
    encoded += [data.draw(damaged(one)) for one in encoded]
    frames = [
        [encode_header(header), _payload(header, data)]
        for header in data.draw(st.lists(values_of(FrameHeader), max_size=2))
    ]

    async def main(directory: Path) -> None:
        async with peer(directory, is_bound=False) as a:
            performed = a._performers
            # Told to end, or to begin a later life, a peer may be: not to break.
            for kind in performed:
                performed[kind] = lambda effect: None
            for one in encoded:
                a.arrivals.on_peer(memoryview(one))
            for parts in frames:
                a.arrivals.on_frame([memoryview(part) for part in parts])
            a.post(ev.DeadlineReached())
            assert not a.ended.done()

    uvloop.run(main(tmp_path_factory.mktemp("state")))


def _payload(header: FrameHeader, data: st.DataObject) -> bytes:
    if header.kind is FrameKind.OPEN:
        return encode_body(data.draw(values_of(Open)))
    if header.kind is FrameKind.PROBE:
        return encode_body(data.draw(values_of(ProbeBody)))
    return b""


@pytest.mark.parametrize(
    ("before", "cores", "expected"), [(0.2, 0.2, 9_000), (1.0, 1.0, 9_000), (1.0, 4.0, 0)]
)
def test_what_passes_take_is_kept_and_counts_where_it_could_be_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: float, cores: float, expected: int
) -> None:
    """A peer that comes back with more processors goes by nothing that it could not correct."""
    key = f"{MODEL.digest[:16]}-fp32-exact-4-cpu-{driver_module.cpu_share():.3g}"
    times = (UnitTimes(1, 10, 200, 300),)

    async def main() -> None:
        monkeypatch.setattr(driver_module, "usable_cores", lambda: before)
        async with peer(tmp_path) as a:
            # By what it could use at its start, as it was reckoned, whatever that is by now.
            monkeypatch.setattr(driver_module, "cpu_share", lambda: 0.05)
            a._performers[fx.SavePassTime](fx.SavePassTime(9_000))
            a._state.save_profile(key, Profile(times, times, 70))
        monkeypatch.undo()
        monkeypatch.setattr(driver_module, "usable_cores", lambda: cores)
        async with peer(tmp_path) as a:
            a.post(ev.ModelOpened(MODEL.digest, MODEL))
            a._performers[fx.MeasureDevice](fx.MeasureDevice("fp32", "exact", 4))
            measured = a.core.local.measured
            assert measured is not None
            assert (measured.pass_us, measured.rested_us) == (expected, 70)

    uvloop.run(main())
