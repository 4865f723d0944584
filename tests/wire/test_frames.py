"""Frames: small headers, payloads as they lie in memory, sizes checked before anyone believes
them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.links import SMALL_BYTES
from edgeshard_p2p.core.messages import (
    WIRE_MAX,
    FrameHeader,
    FrameKind,
    LinkEcho,
    Open,
    ProbeBody,
    RowFlag,
    RowGroupHeader,
)
from edgeshard_p2p.core.plan import FRAME_OVERHEAD_BYTES
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.wire.codec import encode_control
from edgeshard_p2p.wire.errors import WireError
from edgeshard_p2p.wire.frames import (
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Buffer,
    decode_frame,
    encode_body,
    encode_header,
    encode_probe,
)
from tests.wire.strategies import damaged, junk, values_of

FP32, BF16, INT32 = 1, 2, 3
BYTES = {FP32: 4, BF16: 2, INT32: 4}
SENDER = PeerId("a-host-with-the-longest-name-that-a-peer-may-have.example-3f2a", 12_345)
OPEN = Open(Sampling(0.7, 0.9, 2**62), position=0, oldest_live=3)
KINDS = {"malformed", "oversized", "wire_version", "wrong_size"}

ZMTP_BYTES = 9 + 9 + 2
"""Length and flags of two parts, and a delimiter's worth."""


def header(kind: FrameKind = FrameKind.HIDDEN, **changes: Any) -> FrameHeader:
    """Of one decode row, late in a long life."""
    group = RowGroupHeader(
        source_index=11,
        sequence=1_000_000,
        attempt=3,
        position=100_000,
        rows=1,
        cached_len=100_000,
        stop_unit=82,
        flags=RowFlag.LAST_CHUNK,
    )
    made = FrameHeader(
        version=WIRE_MAX,
        kind=kind,
        sender=SENDER.tag,
        plan=bytes.fromhex("fedcba9876543210"),
        edge=200,
        epoch=1_000_000,
        sequence=1_000_000,
        acked=1_000_000,
        micro_batch=1_000_000,
        service_us=3_000_000,
        numerics=16,
        dtype=FP32,
        shape=(1, 4096),
        groups=(group,),
    )
    return replace(made, **changes)


def empty(kind: FrameKind) -> FrameHeader:
    return header(kind, dtype=0, shape=())


def refusal(*parts: Buffer) -> str:
    with pytest.raises(WireError) as caught:
        decode_frame(parts)
    return caught.value.kind


def decodes_or_is_refused(*parts: Buffer) -> None:
    with suppress(WireError):
        decode_frame(parts)


# --- what is sent arrives -----------------------------------------------------------------


@given(values_of(FrameHeader), st.data())
def test_headers(drawn: FrameHeader, data: st.DataObject) -> None:
    drawn = replace(drawn, version=WIRE_MAX)
    payload = b""
    if drawn.kind is FrameKind.HIDDEN:
        shape = data.draw(st.tuples(st.integers(0, 8), st.integers(0, 16)))
        drawn = replace(drawn, dtype=data.draw(st.sampled_from([FP32, BF16])), shape=shape)
        payload = bytes(BYTES[drawn.dtype] * shape[0] * shape[1])
    elif drawn.kind is FrameKind.TOKENS:
        drawn = replace(drawn, dtype=INT32, shape=(data.draw(st.integers(0, 64)),))
        payload = bytes(4 * drawn.shape[0])
    elif drawn.kind is FrameKind.OPEN:
        payload = encode_body(data.draw(values_of(Open)))
    elif drawn.kind is FrameKind.PROBE:
        payload = encode_body(data.draw(values_of(ProbeBody)))
    decoded, arrived, body = decode_frame([encode_header(drawn), payload])
    assert (decoded, bytes(arrived)) == (drawn, payload)
    if body is not None:
        assert encode_body(body) == payload


def test_the_payload_is_not_copied() -> None:
    payload = memoryview(bytearray(4 * 4096))
    _, arrived, body = decode_frame([memoryview(encode_header(header())), payload])
    assert arrived is payload
    assert body is None


def test_a_plan_id_reads_as_its_header_says() -> None:
    assert header().plan_id == "fedcba9876543210"


def test_open() -> None:
    for oldest in (0, 2**48):
        sent = replace(OPEN, oldest_live=oldest)
        assert decode_frame([encode_header(empty(FrameKind.OPEN)), encode_body(sent)])[2] == sent


@pytest.mark.parametrize("n_bytes", [0, 1, 1 << 20])
def test_probe(n_bytes: int) -> None:
    parts = encode_probe(SENDER, nonce=77, n_bytes=n_bytes)
    decoded, _, body = decode_frame(parts)
    assert decoded.kind is FrameKind.PROBE
    assert body == ProbeBody(SENDER, 77)
    assert len(parts[2]) == n_bytes


# --- bytes on the wire --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("hidden", [576, 4096, 16384])
def test_one_decode_row_costs_its_tensor_and_little_more(hidden: int, dtype: int) -> None:
    """What the planner counts for a frame is true of a long-lived swarm, too."""
    row = header(dtype=dtype, shape=(1, hidden))
    tensor = bytes(hidden * BYTES[dtype])
    decode_frame([encode_header(row), tensor])
    assert len(encode_header(row)) + len(tensor) + ZMTP_BYTES <= (
        hidden * BYTES[dtype] + FRAME_OVERHEAD_BYTES
    )


def test_a_token_fits_the_same_overhead() -> None:
    token = header(FrameKind.TOKENS, dtype=INT32, shape=(1,))
    assert len(encode_header(token)) + 4 + ZMTP_BYTES <= 4 + FRAME_OVERHEAD_BYTES


def test_a_further_request_in_a_frame_costs_less_than_40_bytes() -> None:
    groups = header().groups
    many = header(shape=(32, 4096), groups=groups * 32)
    one_more = header(shape=(33, 4096), groups=groups * 33)
    assert len(encode_header(one_more)) - len(encode_header(many)) < 40


# --- what is not as it should be ----------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "shape", "n_bytes"),
    [
        (FP32, (1, 4096), 4 * 4096 - 1),
        (FP32, (1, 4096), 4 * 4096 + 1),
        (FP32, (1, 4096), 0),
        (FP32, (2, 4096), 4 * 4096),
        (BF16, (1, 4096), 4 * 4096),
        (FP32, (0, 4096), 4),
        (FP32, (2**32 - 1, 2**32 - 1), 16),
    ],
)
def test_wrong_tensor_sizes(dtype: int, shape: tuple[int, ...], n_bytes: int) -> None:
    sent = encode_header(header(dtype=dtype, shape=shape))
    assert refusal(sent, bytes(n_bytes)) == "wrong_size"


@pytest.mark.parametrize("kind", [FrameKind.EDGE, FrameKind.RELEASE])
def test_a_payload_where_none_belongs(kind: FrameKind) -> None:
    decode_frame([encode_header(empty(kind)), b""])
    assert refusal(encode_header(empty(kind)), b"x") == "wrong_size"


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "n_bytes"),
    [
        (FrameKind.HIDDEN, 0, (1, 4096), 0),
        (FrameKind.HIDDEN, INT32, (1, 4096), 4 * 4096),
        (FrameKind.HIDDEN, 4, (1, 4096), 4 * 4096),
        (FrameKind.HIDDEN, FP32, (), 4),
        (FrameKind.TOKENS, FP32, (1,), 4),
        (FrameKind.TOKENS, BF16, (1,), 2),
        (FrameKind.TOKENS, INT32, (), 4),
    ],
)
def test_tensors_that_this_kind_of_frame_does_not_carry(
    kind: FrameKind, dtype: int, shape: tuple[int, ...], n_bytes: int
) -> None:
    """A token frame of an odd size would not even unpack."""
    sent = encode_header(header(kind, dtype=dtype, shape=shape))
    assert refusal(sent, bytes(n_bytes)) == "malformed"


@pytest.mark.parametrize("version", [0, WIRE_MAX + 1, 65535])
def test_another_wire_version(version: int) -> None:
    assert refusal(encode_header(header(version=version)), bytes(4 * 4096)) == "wire_version"


def test_bounds_stand_at_the_door() -> None:
    good = header()
    for changes in (
        {"kind": 99},
        {"sender": b"short"},
        {"plan": b"of nine b"},
        {"shape": (1, 2, 3)},
        {"sequence": -1},
        {"sequence": 2**48 + 1},
        {"edge": 2**32},
        {"groups": good.groups * 4097},
        {"groups": (replace(good.groups[0], rows=65537),)},
    ):
        assert refusal(encode_header(replace(good, **changes)), bytes(4 * 4096)) == "malformed"


def test_how_many_parts() -> None:
    sent = encode_header(header())
    assert refusal() == "malformed"
    assert refusal(sent) == "malformed"
    assert refusal(sent, bytes(4 * 4096), b"", b"") == "malformed"


def test_oversized_is_refused_unread() -> None:
    assert refusal(bytes(HEADER_BYTES_MAX + 1), b"") == "oversized"
    assert refusal(encode_header(header()), bytes(PAYLOAD_BYTES_MAX + 1)) == "oversized"


@pytest.mark.parametrize("deep", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff"])
def test_nested_or_announced_beyond_measure(deep: bytes) -> None:
    assert refusal(deep, b"") == "malformed"
    assert refusal(encode_header(empty(FrameKind.OPEN)), deep) == "malformed"
    assert refusal(encode_header(empty(FrameKind.PROBE)), deep) == "malformed"
    without_groups = encode_header(header(groups=()))[:-1]
    assert refusal(without_groups + deep, bytes(4 * 4096)) == "malformed"


def test_text_that_is_no_utf8() -> None:
    sent, body, padding = encode_probe(SENDER, 1, 0)
    assert refusal(sent, bytes(body).replace(b"host", b"\xff\xfe\xfd\xfc"), padding) == "malformed"


@given(st.binary(max_size=200) | junk(), st.binary(max_size=64) | junk())
def test_noise_is_refused(first: bytes, second: bytes) -> None:
    assert refusal(first, second) in KINDS
    for kind in FrameKind:
        decodes_or_is_refused(encode_header(empty(kind)), second)


@given(values_of(FrameHeader), st.binary(max_size=64), st.data())
def test_a_damaged_frame_is_refused_or_another(
    drawn: FrameHeader, payload: bytes, data: st.DataObject
) -> None:
    decodes_or_is_refused(data.draw(damaged(encode_header(drawn))), payload)
    body = encode_body(data.draw(values_of(Open) | values_of(ProbeBody)))
    decodes_or_is_refused(encode_header(drawn), data.draw(damaged(body)))


def test_a_later_release_may_append_fields_to_open() -> None:
    longer = msgspec.msgpack.encode([*msgspec.to_builtins(OPEN), "new in a later release"])
    assert decode_frame([encode_header(empty(FrameKind.OPEN)), longer])[2] == OPEN


@pytest.mark.parametrize("name", ["a", "n" * 64])
def test_a_small_probe_and_its_answer_are_about_two_tokens_on_the_wire(name: str) -> None:
    """Links' delays are reckoned by that.  Framing and encryption add tens of bytes to each."""
    sender, nonce = PeerId(name, 1), 2**40
    parts = [*encode_probe(sender, nonce, SMALL_BYTES)]
    parts.append(encode_control(b"12345678", sender, LinkEcho(nonce)))
    assert FRAME_OVERHEAD_BYTES < sum(map(len, parts)) <= 2.5 * FRAME_OVERHEAD_BYTES
