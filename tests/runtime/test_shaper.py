"""Links that a transport emulates: when what is sent gets there, and that nothing passes beside."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import uvloop

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net.lane import Lane
from edgeshard_p2p.net.shaper import Held, ShapedTransport
from edgeshard_p2p.net.transport import CONTROL_QUEUE
from edgeshard_p2p.runtime.shape import ShapeFile, read_shape
from edgeshard_p2p.tables import TopologyError
from tests.runtime.endpoint import Endpoint, endpoint
from tests.runtime.waiting import free_address, until_async

A, B = Address("127.0.0.1", 1), Address("127.0.0.1", 3)
PLAN = b"plan...1"


def sent(held: Held, now: float) -> list[object]:
    return [send() for send in held.take_due(now)]


def holds(held: Held, to: Address, n_bytes: int, name: str, now: float) -> str:
    return held.hold(to, n_bytes, lambda: name, now)  # type: ignore[arg-type,return-value]


def test_messages_follow_each_other_at_the_rate_and_the_delay_occupies_nothing() -> None:
    held = Held({A: Lane(1000.0, 5.0), B: Lane(10.0, 0.0)})
    assert holds(held, A, 1000, "first", 10.0) == ""
    holds(held, A, 500, "second", 10.0)
    holds(held, B, 100, "elsewhere", 10.0)
    assert held.next_due() == 16.0
    assert sent(held, 15.9) == []
    assert sent(held, 16.0) == ["first"]
    assert sent(held, 16.5) == ["second"]
    assert held.next_due() == 20.0
    assert sent(held, 99.0) == ["elsewhere"]
    assert held.next_due() is None
    holds(held, A, 1000, "after idle time", 100.0)
    assert held.next_due() == 106.0
    assert held.counters["messages"] == 4
    assert held.counters["bytes"] == 2600
    assert held.counters["late_us_max"] == 79_000_000


def test_link_that_gets_quicker_does_not_let_anything_overtake() -> None:
    held = Held({A: Lane(1000.0, 5.0)})
    holds(held, A, 1000, "first", 0.0)
    held.reshape({A: Lane(1e9, 0.0)})
    holds(held, A, 1000, "second", 0.0)
    assert sent(held, 5.9) == []
    assert sent(held, 6.0) == ["first", "second"]


def test_cut_link_loses_what_is_sent_and_a_full_one_what_is_too_much() -> None:
    held = Held({A: None, B: Lane(1.0, 0.0)})
    assert holds(held, A, 1, "lost", 0.0) == "shaper: cut"
    for _ in range(CONTROL_QUEUE):
        assert holds(held, B, 1, "waits", 0.0) == ""
    assert holds(held, B, 1, "lost", 0.0) == "shaper: queue full"
    assert len(sent(held, 2.0)) == 2
    assert holds(held, B, 1, "waits", 2.0) == ""


def shaped(end: Endpoint) -> ShapedTransport:
    assert isinstance(end.transport, ShapedTransport)
    return end.transport


def test_nothing_of_a_peer_is_quicker_than_its_link() -> None:
    async def scenario() -> None:
        address, lane = free_address(), Lane(100_000.0, 0.05)
        async with endpoint(address=address) as b, endpoint(lanes={address: lane}) as a:
            begun = time.monotonic()
            a.transport.send_control(b.address, bytes(1000))
            a.transport.send_probe(b.address, [b"header", bytes(4994)])
            a.transport.send_frame(PLAN, 0, 1, b.address, [b"h", memoryview(bytearray(3999))])
            await until_async(lambda: b.messages and len(b.frames) == 2, "what was sent")
            assert time.monotonic() - begun >= 0.05 + 10_000 / 100_000
            assert a.transport.shaping["bytes"] == 10_000
            assert b.transport.shaping == {}
            begun = time.monotonic()
            b.transport.send_control(a.address, b"not shaped: its own lanes say nothing")
            await until_async(lambda: a.messages, "what was sent back")

    uvloop.run(scenario())


def test_frames_keep_their_order_over_the_end_of_an_epoch() -> None:
    async def scenario() -> None:
        address = free_address()
        lanes = {address: Lane(1e6, 0.05)}
        async with endpoint(address=address) as b, endpoint(lanes=lanes) as a:
            for epoch in (1, 2):
                names = [b"%d.%d" % (epoch, number) for number in range(20)]
                for name in names:
                    a.transport.send_frame(PLAN, 0, epoch, b.address, [name, b""])
                a.transport.close_edge(PLAN, 0)
            await until_async(lambda: len(b.frames) == 40, "frames of both epochs")
            for epoch in (b"1.", b"2."):
                seen = [parts[0] for parts in b.frames if parts[0].startswith(epoch)]
                assert seen == sorted(seen, key=lambda name: int(name[2:]))

    uvloop.run(scenario())


def test_cut_is_made_and_healed_while_it_runs() -> None:
    async def scenario() -> None:
        address = free_address()
        quick = {address: Lane(1e9, 0.0)}
        async with endpoint(address=address) as b, endpoint(lanes={address: None}) as a:
            a.transport.send_control(b.address, b"lost")
            assert a.transport.dropped == {"shaper: cut": 1}
            shaped(a).reshape(quick)
            a.transport.send_control(b.address, b"heard")
            await until_async(lambda: b.messages, "what was sent after it")
            assert b.messages == [b"heard"]

    uvloop.run(scenario())


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "shape.toml"
    path.write_text(text)
    return path


LINK = '[[link]]\nto = "10.0.0.2:7911"\n'


def test_what_a_file_says(tmp_path: Path) -> None:
    cut = '[[link]]\nto = "10.0.0.3:7911"\ncut = true\n'
    path = written(tmp_path, f"{LINK}mbps = 8\ndelay_ms = 2.5\n{cut}")
    file = ShapeFile(path)
    lanes = {Address("10.0.0.2", 7911): Lane(1e6, 0.0025), Address("10.0.0.3", 7911): None}
    assert file.read() == lanes
    assert file.news() is None
    new = path.with_suffix(".new")
    new.write_text(f"{LINK}mbps = 16\n")
    new.replace(path)
    assert file.news() == {Address("10.0.0.2", 7911): Lane(2e6, 0.0)}
    assert file.news() is None
    path.write_text("no TOML")
    assert file.news() is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LINK, "link[0]: expected either mbps or cut = true"),
        (LINK + "mbps = 1\ncut = true\n", "link[0]: expected either mbps or cut = true"),
        (LINK + "mbps = 0\n", "link[0].mbps: expected a number > 0"),
        (LINK + "mbps = nan\n", "link[0].mbps: expected"),
        (LINK + "mbps = 1\ndelay_ms = -1\n", "link[0].delay_ms: expected a number >= 0"),
        (LINK + "mbps = 1\nloss = 1\n", 'link[0]: unknown key "loss"'),
        ('[[link]]\nto = "::"\nmbps = 1\n', "link[0].to: '::' is not HOST:PORT"),
        ("link = 3\n", "link: expected a list"),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, why: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TopologyError) as caught:
        read_shape(path)
    assert str(caught.value).startswith(f"{path}: {why}"), str(caught.value)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="cannot be read: No such file"):
        ShapeFile(tmp_path / "none").read()
