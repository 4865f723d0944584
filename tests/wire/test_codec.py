"""Control messages: what is sent arrives, and nothing that arrives can do more than be refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import (
    WIRE_MAX,
    Ack,
    Address,
    ControlMessage,
    Hello,
    Identity,
    LinkEcho,
    MemberState,
    News,
    Ping,
    Refused,
    Update,
)
from edgeshard_p2p.wire.codec import CONTROL_BYTES_MAX, decode_control, encode_control
from edgeshard_p2p.wire.errors import WireError
from tests.wire.strategies import damaged, junk, values_of

SWARM, OTHER = b"swarm..1", b"swarm..2"
ME = PeerId("laptop-3f2a", 7)
IDENTITY = Identity(ME, "0123456789abcdef", Address("192.0.2.7", 7911))
MESSAGES = get_args(ControlMessage)


def envelope(
    body: Any, *, version: int = WIRE_MAX, swarm: bytes = SWARM, sender: Any = ME
) -> bytes:
    return msgspec.msgpack.encode((version, swarm, sender, body))


def refusal(data: bytes) -> str:
    """Under which kind it is refused."""
    with pytest.raises(WireError) as caught:
        decode_control(SWARM, data)
    return caught.value.kind


def decodes_or_is_refused(data: bytes) -> None:
    """Anything but a WireError fails the test."""
    with suppress(WireError):
        decode_control(SWARM, data)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_what_is_sent_arrives(kind: type, data: st.DataObject) -> None:
    sender, message = data.draw(values_of(PeerId)), data.draw(values_of(kind))
    encoded = encode_control(SWARM, sender, message)
    assert decode_control(SWARM, encoded) == (sender, message)
    assert decode_control(SWARM, memoryview(encoded)) == (sender, message)


def test_every_message_has_a_tag_of_its_own() -> None:
    tags = [kind.__struct_config__.tag for kind in MESSAGES]
    assert len(set(tags)) == len(tags)


@given(st.binary(max_size=200) | junk())
def test_noise_is_refused(data: bytes) -> None:
    assert refusal(data) == "malformed"


@given(values_of(ControlMessage), st.data())
def test_a_damaged_message_is_refused_or_another(
    message: ControlMessage, data: st.DataObject
) -> None:
    decodes_or_is_refused(data.draw(damaged(encode_control(SWARM, ME, message))))


@given(junk())
def test_an_envelope_with_anything_in_it_is_refused_or_a_message(body: bytes) -> None:
    decodes_or_is_refused(envelope(msgspec.Raw(body)))


@pytest.mark.parametrize("cut", [0, 1, 2, 10, 20, -1])
def test_truncated(cut: int) -> None:
    assert refusal(encode_control(SWARM, ME, Hello(IDENTITY, 3))[:cut]) == "malformed"


@pytest.mark.parametrize(
    "deep",
    [b"\x91" * 100_000, b"\x81\xa1a" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"],
    ids=["arrays", "maps", "an array of 4 G", "a map of 4 G"],
)
def test_nested_or_announced_beyond_measure(deep: bytes) -> None:
    start = envelope(msgspec.Raw(b"\xc0"))[:-1]
    assert refusal(deep) == "malformed"
    assert refusal(start + deep) == "malformed"
    news = msgspec.msgpack.encode(News(()))[:-1]
    assert refusal(start + news + deep) == "malformed"


def test_text_that_is_no_utf8() -> None:
    good = encode_control(SWARM, ME, Refused("name_taken", "detail"))
    assert refusal(good.replace(b"detail", b"\xff\xfe\xfd\xfc\xfb\xfa")) == "malformed"
    assert refusal(good.replace(b"laptop", b"\xff\xfe\xfd\xfc\xfb\xfa")) == "malformed"


def test_oversized_is_refused_unread() -> None:
    assert refusal(bytes(CONTROL_BYTES_MAX + 1)) == "oversized"
    assert refusal(bytes(CONTROL_BYTES_MAX)) == "malformed"


def test_bounds_stand_at_the_door() -> None:
    update = Update(IDENTITY, 0, MemberState.ALIVE)
    assert decode_control(SWARM, envelope(Ping(1, (update,) * 512)))[0] == ME
    assert refusal(envelope(Ping(1, (update,) * 513))) == "malformed"
    assert refusal(envelope(LinkEcho(-1))) == "malformed"
    assert refusal(envelope(LinkEcho(2**48 + 1))) == "malformed"
    assert refusal(envelope(Refused("x" * 41, ""))) == "malformed"
    assert refusal(envelope(LinkEcho(1), sender=("a" * 64, 1))) == "malformed"
    assert refusal(envelope(LinkEcho(1), sender=("../../etc", 1))) == "malformed"
    assert refusal(envelope(LinkEcho(1), sender=("", 1))) == "malformed"
    assert refusal(envelope(LinkEcho(1), swarm=b"short")) == "malformed"
    no_port = Identity(ME, IDENTITY.install_id, Address("192.0.2.7", 65535))
    assert refusal(envelope(Hello(no_port, 0))) == "malformed"
    assert refusal(envelope(Hello(Identity(ME, "no hex", IDENTITY.address), 0))) == "malformed"


def test_an_unknown_tag_is_refused() -> None:
    assert refusal(envelope((99, 1))) == "malformed"


def test_another_swarm_is_told_apart_before_the_body_is_read() -> None:
    assert refusal(envelope(LinkEcho(1), swarm=OTHER)) == "other_swarm"
    assert refusal(envelope("nonsense", swarm=OTHER)) == "other_swarm"


@pytest.mark.parametrize("version", [0, WIRE_MAX + 1, 65535])
def test_another_wire_version_can_say_hello_and_refuse_and_nothing_else(version: int) -> None:
    hello = Hello(IDENTITY, 3, version, version)
    assert decode_control(SWARM, envelope(hello, version=version)) == (ME, hello)
    refused = Refused("wire_version", "install the same release on both")
    assert decode_control(SWARM, envelope(refused, version=version)) == (ME, refused)
    for body in (Ack(1, ME, ()), LinkEcho(1), "nonsense"):
        assert refusal(envelope(body, version=version)) == "malformed"
    assert refusal(envelope(hello, version=65536)) == "malformed"


def test_a_later_release_may_append_fields() -> None:
    fields = msgspec.to_builtins(Hello(IDENTITY, 3, WIRE_MAX, WIRE_MAX))
    longer = envelope([*fields, "new in a later release"], version=WIRE_MAX + 1)
    assert decode_control(SWARM, longer) == (ME, Hello(IDENTITY, 3, WIRE_MAX, WIRE_MAX))
