"""One secret for a swarm: who knows it is heard, who does not is told, on both sides."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop
import zmq

from edgeshard_p2p.net import transport as net
from edgeshard_p2p.net.client import Client, NoAnswer
from edgeshard_p2p.net.security import SecretError, Security, open_security, read_secrets
from edgeshard_p2p.wire.client import Status
from tests.runtime.endpoint import Endpoint, endpoint
from tests.runtime.waiting import free_address, until_async

S1, S2, S3 = b"the first secret, long", b"the second secret, too", b"a third secret as well"
PLAN = b"\x01" * 8

HANDSHAKE_FAILED = "connection: handshake failed"
OR_NO_PEER = " (or it is no edgeshard peer at all)"
TAKES_ANOTHER = f"it uses no secret, or another one; give both the same --secret-file{OR_NO_PEER}"
ASKS_FOR_ONE = f"it asks for a secret; give the swarm's with --secret-file{OR_NO_PEER}"


def _security(*secrets: bytes) -> Security:
    return open_security("tests", secrets)


async def _hears(a: Endpoint, b: Endpoint) -> None:
    """Control, data and probes from a to b.

    A message that leaves with a secret that is refused is lost, so it is sent again."""

    def is_heard() -> bool:
        a.transport.send_control(b.address, b"control")
        return bool(b.messages)

    await until_async(is_heard, "a control message")
    a.transport.send_frame(PLAN, 0, 1, b.address, [b"frame", b""])
    a.transport.send_probe(b.address, [b"probe", b"", b""])
    await until_async(lambda: len(b.frames) == 2, "a frame and a probe")


async def _is_told(a: Endpoint, b: Endpoint, why: str) -> None:
    a.transport.send_control(b.address, b"let me in")
    await until_async(lambda: a.failures, "the refusal")
    assert a.failures == [(b.address, why)]
    assert not b.messages


def test_the_same_secret_is_heard_both_ways() -> None:
    async def main() -> None:
        async with endpoint(_security(S1)) as a, endpoint(_security(S1)) as b:
            await _hears(a, b)
            await _hears(b, a)
            assert not a.failures + b.failures

    uvloop.run(main())


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        ((S1,), (S2,), TAKES_ANOTHER),
        ((S1,), (), TAKES_ANOTHER),
        ((), (S1,), ASKS_FOR_ONE),
        ((S1, S2), (S3,), TAKES_ANOTHER),
        ((S1, S2), (), TAKES_ANOTHER),
        ((S3,), (S1, S2), TAKES_ANOTHER),
    ],
    ids=["other", "to none", "from none", "list to other", "list to none", "other to list"],
)
def test_who_does_not_know_the_secret_is_told(
    mine: tuple[bytes, ...], theirs: tuple[bytes, ...], why: str
) -> None:
    async def main() -> None:
        async with endpoint(_security(*mine)) as a, endpoint(_security(*theirs)) as b:
            await _is_told(a, b, why)

    uvloop.run(main())


def test_without_a_secret_nobody_is_kept_out() -> None:
    async def main() -> None:
        async with endpoint(_security()) as a, endpoint(_security()) as b:
            await _hears(a, b)
            assert not a.failures + b.failures

    uvloop.run(main())


ROTATION = [((S1,), (S1, S2)), ((S1, S2), (S2, S1)), ((S2, S1), (S2,))]
"""Each round of a rotation, while some peers have done it and others have not."""


@pytest.mark.parametrize(("before", "after"), ROTATION, ids=["added", "in front", "taken out"])
def test_a_secret_can_be_rotated(before: tuple[bytes, ...], after: tuple[bytes, ...]) -> None:
    async def main() -> None:
        async with endpoint(_security(*before)) as a, endpoint(_security(*after)) as b:
            await _hears(a, b)
            await _hears(b, a)
            assert not a.failures + b.failures
        keys = [_security(*secrets).swarm_keys for secrets in (before, after)]
        assert keys[0][0] in keys[1]
        assert keys[1][0] in keys[0]

    uvloop.run(main())


def test_a_peer_is_found_again_after_it_changed_its_secret() -> None:
    """Also by probes, whose sockets were opened with the secret before."""

    async def main() -> None:
        async with endpoint(_security(S1, S2)) as a:
            async with endpoint(_security(S1)) as b:
                await _hears(a, b)
            async with endpoint(_security(S2), b.address) as b:
                a.transport.close_edge(PLAN, 0)
                await _hears(a, b)

    uvloop.run(main())


def test_refused_secrets_are_tried_again_without_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round through the list, then a pause: by count, with a pause that does not end."""
    monkeypatch.setattr(net, "SECRETS_PAUSE_S", 1e6)
    monkeypatch.setattr(net, "ROUNDS_TO_TELL", 1)

    async def main() -> None:
        async with endpoint(_security(S1, S2)) as a, endpoint(_security(S3)) as b:
            await _is_told(a, b, TAKES_ANOTHER)
            assert a.transport._contacts[b.address].secret_index == 1

    uvloop.run(main())


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [((S1,), (S2,)), ((S1,), ()), ((), (S1,)), ((S1, S2), (S3,))],
    ids=["other", "to none", "from none", "list to other"],
)
def test_a_refused_peer_comes_in_once_the_other_has_its_secret(
    mine: tuple[bytes, ...], theirs: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it was refused; libzmq's own sockets give up for good."""
    monkeypatch.setattr(net, "SECRETS_PAUSE_S", 0.01)

    async def main() -> None:
        async with endpoint(_security(*mine)) as a:
            async with endpoint(_security(*theirs)) as b:
                await _is_told(a, b, TAKES_ANOTHER if mine else ASKS_FOR_ONE)
                contact = a.transport._contacts[b.address]
                await until_async(lambda: contact._refusals > 6, "more refusals")
                assert len(a.failures) == 1
            async with endpoint(_security(*mine), b.address) as b:
                await _hears(a, b)

    uvloop.run(main())


def test_one_that_hangs_up_while_it_comes_up_is_not_called_a_stranger() -> None:
    async def main() -> None:
        async with endpoint(_security(S1)) as a:
            address = free_address()
            busy = await asyncio.start_server(
                lambda _, writer: writer.close(), address.host, address.port
            )
            a.transport.send_control(address, b"lost")
            contact = a.transport._contacts[address]
            await until_async(lambda: contact._refusals > 0, "a handshake that fails")
            busy.close()
            async with endpoint(_security(S1), address) as b:
                await _hears(a, b)
            assert not a.failures

    uvloop.run(main())


def test_refused_handshakes_are_counted_at_both_ports() -> None:
    """libzmq refuses them by itself."""

    async def main() -> None:
        async with endpoint(_security(S1)) as a, endpoint(_security(S2)) as b:
            n_refused = b.transport.dropped
            a.transport.send_probe(b.address, [b"probe"])
            await until_async(lambda: n_refused[HANDSHAKE_FAILED] > 0, "the data port's refusal")
            n_before = n_refused[HANDSHAKE_FAILED]
            a.transport.forget_probe(b.address)
            a.transport.send_control(b.address, b"control")
            await until_async(
                lambda: n_refused[HANDSHAKE_FAILED] > n_before, "the control port's refusal"
            )

    uvloop.run(main())


def test_told_both_ways_when_each_calls_the_other() -> None:
    async def main() -> None:
        async with endpoint(_security(S1)) as a, endpoint(_security()) as b:
            await _is_told(a, b, TAKES_ANOTHER)
            await _is_told(b, a, ASKS_FOR_ONE)

    uvloop.run(main())


@pytest.mark.parametrize("port", ["control", "data"])
def test_zap_admits_only_derived_keys(port: str) -> None:
    """A stranger who has seen the server's public key, and made a key of its own."""

    async def main() -> None:
        async with endpoint(_security(S1)) as b, endpoint(_security(S1)) as a:
            context = zmq.Context()
            socket = context.socket(zmq.DEALER if port == "control" else zmq.PUSH)
            socket.linger = 0
            public, private = zmq.curve_keypair()
            socket.curve_serverkey = _security(S1).keys[0].server.public
            socket.curve_publickey, socket.curve_secretkey = public, private
            monitor = socket.get_monitor_socket(net.HANDSHAKE_EVENTS)
            n = b.address.port + (port == "data")
            socket.connect(f"tcp://127.0.0.1:{n}")
            socket.send_multipart([net.FROM_PEER, b"intruder"])
            try:
                assert await asyncio.to_thread(monitor.poll, 60_000)
                event = zmq.utils.monitor.parse_monitor_message(monitor.recv_multipart())["event"]
                assert event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            finally:
                context.destroy(0)
            await _hears(a, b)
            assert set(b.messages) == {b"control"}
            assert {frame[0] for frame in b.frames} == {b"frame", b"probe"}

    uvloop.run(main())


def test_keys_follow_from_secret_and_swarm_alone() -> None:
    first, again = _security(S1, S2), _security(S1, S2)
    assert first == again
    assert first.keys[0].server.public != first.keys[0].client.public
    assert open_security("other", (S1,)).swarm_key != _security(S1).swarm_key
    assert open_security("other", ()).swarm_key != _security().swarm_key
    assert len({*first.swarm_keys, *_security().swarm_keys}) == 3
    assert first.admits(_security(S2).keys[0].client.public)
    assert not first.admits(_security(S3).keys[0].client.public)
    assert not first.admits(first.keys[0].server.public)


# --- a client -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [((S1,), (S2,), TAKES_ANOTHER), ((S1,), (), TAKES_ANOTHER), ((), (S1,), ASKS_FOR_ONE)],
    ids=["other", "to none", "from none"],
)
def test_a_client_is_told_as_well(
    mine: tuple[bytes, ...], theirs: tuple[bytes, ...], why: str
) -> None:
    async def main() -> None:
        async with endpoint(_security(*theirs)) as b:

            def ask() -> None:
                with Client(b.address, _security(*mine)) as client:
                    client.send(Status())

            with pytest.raises(NoAnswer) as caught:
                await asyncio.to_thread(ask)
            assert str(caught.value) == f"{b.address} refuses the connection: {why}"
            assert not b.requests

    uvloop.run(main())


@pytest.mark.parametrize("theirs", [(S1,), (S2,), (S2, S1)])
def test_a_client_tries_every_secret_of_its_list(theirs: tuple[bytes, ...]) -> None:
    async def main() -> None:
        async with endpoint(_security(*theirs)) as b:

            def ask() -> None:
                with Client(b.address, _security(S1, S2)) as client:
                    client.send(Status())

            await asyncio.to_thread(ask)
            await until_async(lambda: b.requests, "the request")

    uvloop.run(main())


# --- the file -----------------------------------------------------------------------------


def test_secrets_are_lines_and_the_first_is_active(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"# comment\n\n  " + S1 + b"  \r\n" + S2 + b"\n")
    assert read_secrets(file) == (S1, S2)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot read the secret file"),
        (b"", "holds no secret"),
        (b"# only this\n", "holds no secret"),
        (b"short\n", "shorter than 16 characters"),
        (S1 + b"\nshort\n", "shorter than 16 characters"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    content: bytes | None, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SecretError, match=why) as caught:
        read_secrets(file)
    assert str(file) in str(caught.value)
