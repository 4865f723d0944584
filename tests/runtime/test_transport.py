"""The sockets of peers on one machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net import client as net_client
from edgeshard_p2p.net import transport as net_transport
from edgeshard_p2p.net.client import Client, NoAnswer
from edgeshard_p2p.net.offences import OFFENCES_MAX, TRACKED_MAX, Offences
from edgeshard_p2p.net.security import Security
from edgeshard_p2p.net.transport import CONTACTS_MAX, DATA_QUEUE, BindError
from edgeshard_p2p.wire.client import (
    ClientAnswer,
    Okay,
    Status,
    Text,
    decode_request,
    encode_answer,
)
from edgeshard_p2p.wire.codec import CONTROL_BYTES_MAX
from edgeshard_p2p.wire.frames import Buffer
from tests.runtime.endpoint import OPEN, UNREADABLE, Endpoint, endpoint
from tests.runtime.waiting import DEADLINE_S, LOOPBACK, free_address, until_async

PLAN, OTHER_PLAN = b"plan...1", b"plan...2"


def say(sender: Endpoint, to: Endpoint, data: bytes) -> None:
    sender.transport.send_control(to.address, data)


async def until(condition: Callable[[], object], again: Callable[[], object] = int) -> None:
    """Wait for ``condition``, doing ``again`` meanwhile: what is sent into a gap may be lost."""

    def is_true() -> bool:
        again()
        return bool(condition())

    await until_async(is_true, "what was sent")


def test_control_messages_arrive_in_order_and_both_ways() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            sent = [b"%d" % number for number in range(200)]
            for data in sent:
                say(a, b, data)
                say(b, a, data)
            await until(lambda: len(a.messages) == len(b.messages) == len(sent))
            assert a.messages == b.messages == sent
            assert not a.transport.dropped

    uvloop.run(scenario())


def test_no_message_is_left_unread_where_both_ends_talk_at_once() -> None:
    """A descriptor of ZeroMQ's tells of changes: sending may swallow the one that told of what
    has arrived."""

    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            sent = [b"%d" % number for number in range(300)]
            n_answered = 0

            def answer() -> None:
                nonlocal n_answered
                for data in b.messages[n_answered:]:
                    n_answered += 1
                    say(b, a, data)

            for number, data in enumerate(sent):
                say(a, b, data)
                if number % 7 < number % 5:
                    answer()
                    await asyncio.sleep(0)
            await until(lambda: answer() or len(a.messages) == len(sent))
            assert a.messages == b.messages == sent

    uvloop.run(scenario())


def test_frames_arrive_as_they_were_sent() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            payload = bytes(range(256)) * 4096
            parts: list[Buffer] = [b"header", memoryview(bytearray(payload))]
            a.transport.send_frame(PLAN, 0, 1, b.address, parts)
            a.transport.send_probe(b.address, [b"header", b"body", bytes(70_000)])
            a.transport.send_frame(PLAN, 0, 1, b.address, [b"release", b""])
            await until(lambda: len(b.frames) == 3)
            assert sorted(b.frames) == sorted(
                [[b"header", payload], [b"header", b"body", bytes(70_000)], [b"release", b""]]
            )
            assert b.messages == []

    uvloop.run(scenario())


def test_edges_have_sockets_of_their_own_and_a_new_epoch_a_new_one() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b, endpoint() as c:
            a.transport.send_frame(PLAN, 0, 1, b.address, [b"0", b""])
            a.transport.send_frame(PLAN, 1, 1, c.address, [b"1", b""])
            a.transport.send_frame(OTHER_PLAN, 0, 1, c.address, [b"2", b""])
            await until(lambda: len(b.frames) == 1 and len(c.frames) == 2)
            # The edge of the same name goes elsewhere in its next life.
            a.transport.send_frame(PLAN, 0, 2, c.address, [b"3", b""])
            await until(lambda: len(c.frames) == 3)
            a.transport.close_edge(PLAN, 0)
            a.transport.close_edge(PLAN, 0)
            a.transport.send_frame(PLAN, 0, 2, b.address, [b"4", b""])
            await until(lambda: len(b.frames) == 2)

    uvloop.run(scenario())


def test_a_full_queue_drops_and_counts_and_never_waits() -> None:
    async def scenario() -> None:
        async with endpoint() as a:
            nobody = free_address()
            n_sent = 4 * DATA_QUEUE
            for _ in range(n_sent):
                a.transport.send_frame(PLAN, 0, 1, nobody, [b"header", bytes(4096)])
                a.transport.send_probe(nobody, [b"header", b"body", bytes(4096)])
            assert 0 < a.transport.dropped["frame: queue full"] < n_sent
            assert 0 < a.transport.dropped["probe: queue full"] < n_sent
            for _ in range(net_transport.CONTROL_QUEUE * 2):
                a.transport.send_control(nobody, b"hello?")
            assert a.transport.dropped["control: queue full"] > 0

    uvloop.run(scenario())


def test_sent_before_the_other_is_there_arrives_once_it_is() -> None:
    async def scenario() -> None:
        at = free_address()
        async with endpoint() as a:
            a.transport.send_control(at, b"early")
            async with endpoint(address=at) as b:
                await until(lambda: b.messages == [b"early"])

    uvloop.run(scenario())


def test_what_is_no_address_is_counted() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            for host in ("", "no such host at all", "x" * 253, "\u00e4\ud800"):
                a.transport.send_control(Address(host, 7911), b"x")
                a.transport.send_probe(Address(host, 7911), [b"x", b""])
            assert a.transport.dropped["connect: no such address"] > 0
            say(a, b, b"still here")
            await until(lambda: b.messages)

    uvloop.run(scenario())


@pytest.mark.parametrize("offset", [0, 1], ids=["control", "data"])
def test_a_port_in_use_is_said_with_both_ports(
    offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net_transport, "BIND_TRIES", 2)

    async def scenario() -> None:
        at = free_address()
        with socket.socket() as taken:
            taken.bind((LOOPBACK, at.port + offset))
            taken.listen()
            peer = Endpoint(at, OPEN)
            with pytest.raises(BindError, match=f"port {at.port + offset} .*{at.port + 1}"):
                await peer.transport.open()
            await peer.transport.close()
        async with endpoint(address=at):
            pass

    uvloop.run(scenario())


def test_an_address_that_is_not_of_this_machine() -> None:
    async def scenario() -> None:
        peer = Endpoint(Address("192.0.2.77", free_address().port), OPEN)
        with pytest.raises(BindError, match=r"cannot listen on 192\.0\.2\.77"):
            await peer.transport.open()
        await peer.transport.close()

    uvloop.run(scenario())


def test_a_peer_comes_back_to_its_ports_at_once_and_is_heard() -> None:
    async def scenario() -> None:
        at = free_address()
        async with endpoint() as a:
            for number in range(5):
                async with endpoint(address=at) as b:
                    word = b"%d" % number
                    await until(lambda: word in b.messages, lambda: say(a, b, word))  # noqa: B023
                    await until(lambda: b"back" in a.messages, lambda: say(b, a, b"back"))
                    a.messages.clear()

    uvloop.run(scenario())


def test_what_is_too_large_costs_only_its_sender() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b, endpoint() as c:
            say(a, b, bytes(CONTROL_BYTES_MAX + 1))
            await until(lambda: b"after" in b.messages, lambda: say(a, b, b"after"))
            say(c, b, b"from another")
            await until(lambda: b"from another" in b.messages)
            assert max(map(len, b.messages)) < 100

    uvloop.run(scenario())


def test_parts_that_make_no_sense_are_counted() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            say(a, b, b"hello")
            socket_ = a.transport._contacts[b.address].socket
            socket_.send_multipart([b"p"])
            socket_.send_multipart([b"p", b"too", b"many"])
            socket_.send_multipart([b"?", b"of no kind"])
            say(a, b, b"bye")
            await until(lambda: b.messages == [b"hello", b"bye"])
            assert b.transport.dropped == {
                "control: not three parts": 2,
                "control: unknown kind": 1,
            }

    uvloop.run(scenario())


def test_more_contacts_than_are_kept_open() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            say(a, b, b"first")
            await until(lambda: b.messages == [b"first"])
            port = free_address().port
            for number in range(CONTACTS_MAX):
                a.transport.send_control(Address(f"127.0.1.{number + 1}", port), b"x")
            assert len(a.transport._contacts) == CONTACTS_MAX
            assert b.address not in a.transport._contacts
            say(a, b, b"again")
            await until(lambda: b.messages == [b"first", b"again"])

    uvloop.run(scenario())


def test_forgotten_sockets_are_opened_again() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            for number in range(3):
                word = b"%d" % number
                say(a, b, word)
                a.transport.send_probe(b.address, [word, b""])
                await until(lambda: len(b.messages) == len(b.frames) == number + 1)  # noqa: B023
                a.transport.forget(b.address)
                a.transport.forget(b.address)

    uvloop.run(scenario())


# --- connections that end -----------------------------------------------------------------


def test_end_of_the_other_process_is_seen_and_that_its_port_refuses() -> None:
    async def scenario() -> None:
        async with endpoint() as a:
            async with endpoint() as b:
                say(a, b, b"hello")
                await until(lambda: b.messages == [b"hello"])
                assert a.lost == []
            await until(lambda: (b.address, True) in a.lost)
            assert a.lost == [(b.address, False), (b.address, True)]

    uvloop.run(scenario())


def test_end_of_a_connection_is_no_refusal_where_somebody_listens() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            say(a, b, bytes(CONTROL_BYTES_MAX + 1))  # Whereupon b hangs up.
            await until(lambda: a.lost)
            await until(lambda: not a.transport._looks)
            assert set(a.lost) == {(b.address, False)}

    uvloop.run(scenario())


def test_own_goodbye_is_no_loss() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            say(a, b, b"hello")
            await until(lambda: b.messages)
            a.transport.forget(b.address)
            say(a, b, b"again")
            await until(lambda: len(b.messages) == 2)
            assert a.lost == []

    uvloop.run(scenario())


# --- clients ------------------------------------------------------------------------------


def _ask(at: Address, security: Security, n_answers: int) -> list[ClientAnswer]:
    """As the command line does it; blocks."""
    with Client(at, security) as client:
        client.send(Status())
        answers = client.answers(DEADLINE_S)
        return [next(answers) for _ in range(n_answers)]


def test_a_client_is_answered() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            asked = asyncio.create_task(asyncio.to_thread(_ask, a.address, OPEN, 3))
            await until(lambda: a.requests)
            identity, data = a.requests[0]
            assert decode_request(data) == (OPEN.swarm_key, Status())
            say(b, a, b"meanwhile")
            answers: list[ClientAnswer] = [Text("so", (1,)), Text(" it is", (2, 3)), Okay()]
            for answer in answers:
                assert a.transport.answer_client(identity, encode_answer(answer))
            assert await asked == answers
            await until(lambda: a.messages == [b"meanwhile"])

    uvloop.run(scenario())


def test_a_client_that_is_gone_is_noticed() -> None:
    async def scenario() -> None:
        async with endpoint() as a:
            asked = asyncio.create_task(asyncio.to_thread(_ask, a.address, OPEN, 0))
            await until(lambda: a.requests)
            await asked
            identity = a.requests[0][0]
            answer = encode_answer(Okay())
            await until(lambda: not a.transport.answer_client(identity, answer))
            assert a.transport.dropped["answer: nobody reads it"] == 1
            assert not a.transport.answer_client(b"never seen", answer)

    uvloop.run(scenario())


def test_a_client_that_does_not_read_does_not_hold_the_peer() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b:
            with Client(a.address, OPEN) as client:
                await asyncio.to_thread(client.send, Status())
                await until(lambda: a.requests)
                identity, answer = a.requests[0][0], encode_answer(Text("x" * 4_096, ()))
                await until(
                    lambda: not all(a.transport.answer_client(identity, answer) for _ in range(100))
                )
                say(b, a, b"still here?")
                await until(lambda: a.messages)

    uvloop.run(scenario())


def test_a_client_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_client, "CONNECT_TIMEOUT_S", 0.2)
    at = free_address()
    with (
        Client(at, OPEN) as client,
        pytest.raises(NoAnswer, match=f"nobody answers at {at}"),
    ):
        client.send(Status())


def test_a_client_of_a_peer_that_says_nothing() -> None:
    async def scenario() -> None:
        async with endpoint() as a:
            with Client(a.address, OPEN) as client:
                await asyncio.to_thread(client.send, Status())
                with pytest.raises(NoAnswer, match="no word from"):
                    await asyncio.to_thread(next, client.answers(0.05))

    uvloop.run(scenario())


# --- who keeps sending what cannot be read ------------------------------------------------


def test_connection_that_keeps_at_it_is_refused_and_told_and_no_other_one() -> None:
    async def scenario() -> None:
        async with endpoint() as a, endpoint() as b, endpoint() as c:
            for _ in range(OFFENCES_MAX):
                say(a, b, UNREADABLE)
            await until(lambda: a.messages == [b"refused"])
            say(a, b, b"reformed")
            await until(lambda: b.transport.dropped["control: refused connection"] == 1)
            say(c, b, b"hello")
            await until(lambda: b"hello" in b.messages)
            assert b"reformed" not in b.messages

    uvloop.run(scenario())


def test_an_error_now_and_then_is_forgiven_to_the_last() -> None:
    offences = Offences()
    assert [offences.note(b"a") for _ in range(OFFENCES_MAX - 1)] == [False] * (OFFENCES_MAX - 1)
    assert not offences.is_refused(b"a")
    assert offences.note(b"a")
    assert offences.is_refused(b"a")
    assert not offences.is_refused(b"b")


def test_what_is_remembered_of_connections_is_bounded() -> None:
    offences = Offences()
    for number in range(3 * TRACKED_MAX):
        offences.note(b"%d" % number)
    assert len(offences._by_connection) == TRACKED_MAX
