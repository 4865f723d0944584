"""What the command line and a peer say to each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.plan import Device, Link, snapshot
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.wire.client import (
    PROMPT_CHARS_MAX,
    Cancel,
    ClientAnswer,
    ClientRequest,
    Failed,
    Run,
    Set,
    StandStill,
    Status,
    StatusReport,
    SwarmView,
    Text,
    View,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from edgeshard_p2p.wire.errors import WireError
from tests.core.parts import MODEL, WORKLOAD, A, B
from tests.wire.strategies import damaged, junk, values_of

SWARM = b"swarm..1"
UNIT_US = (10, 200, 200, 200, 200, 300)
SNAPSHOT = snapshot(
    MODEL,
    WORKLOAD,
    [Device(A, True, 5000, UNIT_US, (UnitRange(0, 2),)), Device(B, False, 9000, UNIT_US)],
    [Link("a", "b", 5, 1, 100), Link("b", "a", 5, 1, 100)],
)
RUN = Run("Wie heißt du?", is_raw=False, max_tokens=32, sampling=Sampling(0.8, 0.95, 2**62))


def refusal(decode: Callable[[bytes], Any], data: bytes) -> str:
    with pytest.raises(WireError) as caught:
        decode(data)
    return caught.value.kind


def decodes_or_is_refused(decode: Callable[[bytes], Any], data: bytes) -> None:
    with suppress(WireError):
        decode(data)


@pytest.mark.parametrize("kind", get_args(ClientRequest), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_requests_arrive(kind: type, data: st.DataObject) -> None:
    request = data.draw(values_of(kind))
    assert decode_request(encode_request(SWARM, request)) == (SWARM, request)


@pytest.mark.parametrize("kind", get_args(ClientAnswer), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_answers_arrive(kind: type, data: st.DataObject) -> None:
    answer = data.draw(values_of(kind))
    assert decode_answer(encode_answer(answer)) == answer


@pytest.mark.parametrize(
    "request_",
    [Cancel(), Status(), View(), Set("batch", "8"), Set("pin", "a:0-4", 60), StandStill(8.0), RUN],
)
def test_a_request_of_each_kind(request_: ClientRequest) -> None:
    assert decode_request(memoryview(encode_request(SWARM, request_))) == (SWARM, request_)


def test_reports_keep_their_shape() -> None:
    report: dict[str, object] = {"peers": [{"name": "a", "rtt_ms": 0.5}], "plan": None}
    assert decode_answer(encode_answer(StatusReport(report))) == StatusReport(report)


@pytest.mark.parametrize(
    "request_",
    [
        msgspec.structs.replace(RUN, max_tokens=0),
        msgspec.structs.replace(RUN, max_tokens=2**24 + 1),
        msgspec.structs.replace(RUN, prompt="x" * (PROMPT_CHARS_MAX + 1)),
        msgspec.structs.replace(RUN, sampling=Sampling(temperature=-0.1)),
        msgspec.structs.replace(RUN, sampling=Sampling(temperature=float("nan"))),
        msgspec.structs.replace(RUN, sampling=Sampling(top_p=0.0)),
        msgspec.structs.replace(RUN, sampling=Sampling(top_p=1.5)),
        msgspec.structs.replace(RUN, sampling=Sampling(seed=-1)),
        msgspec.structs.replace(RUN, sampling=Sampling(seed=2**63)),
        Set("x" * 41, ""),
        Set("batch", "8" * 4097),
        Set("pin", "a:0-4", 86_401),
        Set("pin", "a:0-4", -1),
        StandStill(0.0),
        StandStill(30.1),
        StandStill(float("nan")),
    ],
    ids=lambda request: str(request)[:60],
)
def test_bounds_stand_at_the_door(request_: ClientRequest) -> None:
    assert refusal(decode_request, encode_request(SWARM, request_)) == "malformed"


def test_an_answer_is_no_request() -> None:
    data = msgspec.msgpack.encode((SWARM, Failed("no")))
    assert refusal(decode_request, data) == "malformed"


def test_the_swarm_comes_with_all_that_plans_are_made_from() -> None:
    view = SwarmView(SNAPSHOT, "", {"c": "it is measuring itself"})
    arrived = decode_answer(encode_answer(view))
    assert arrived == view
    assert isinstance(arrived, SwarmView)
    assert arrived.snapshot is not None
    assert arrived.snapshot.id == SNAPSHOT.id
    assert decode_answer(encode_answer(SwarmView(None, "no model", {}))).snapshot is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": [["a", True]]},
        {"devices": [[["a", 1], True, -1, [1, 2, 3]]]},
        {"devices": [[["a b", 1], True, 1, [1, 2, 3]]]},
        {"devices": [[["a", 1], True, 1, [1, 2, 3], [], [[0, [1, 2, 3]]]]]},
        {"links": [["a", "b", 1, 1, 0]]},
        {"links": 7},
        {"workload": ["fp33", "exact", 4, 256, 2]},
        {"workload": ["fp32", "exact", 4, 256, 2, "head"]},
        {"goal": ["speed"]},
        {"goal": ["latency", 2**25]},
        {"model": None},
    ],
    ids=str,
)
def test_a_swarm_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    snapshot = msgspec.to_builtins(SNAPSHOT) | wrong
    whole = {"type": "swarm_view", "snapshot": snapshot, "waiting_for": "", "excluded": {}}
    assert refusal(decode_answer, msgspec.msgpack.encode(whole)) == "malformed"


def test_text_that_is_no_utf8() -> None:
    request = encode_request(SWARM, msgspec.structs.replace(RUN, prompt="prompt?"))
    assert refusal(decode_request, request.replace(b"prompt?", b"\xff" * 7)) == "malformed"
    answer = encode_answer(Text("answer", ()))
    assert refusal(decode_answer, answer.replace(b"answer", b"\xff" * 6)) == "malformed"


@given(st.binary(max_size=200) | junk())
def test_noise_is_refused(data: bytes) -> None:
    assert refusal(decode_request, data) == "malformed"
    assert refusal(decode_answer, data) == "malformed"
    body = msgspec.msgpack.encode((SWARM, msgspec.Raw(data)))
    decodes_or_is_refused(decode_request, body)


@given(values_of(ClientRequest), values_of(ClientAnswer), st.data())
def test_damaged_ones_are_refused_or_others(
    request_: ClientRequest, answer: ClientAnswer, data: st.DataObject
) -> None:
    request_data = data.draw(damaged(encode_request(SWARM, request_)))
    decodes_or_is_refused(decode_request, request_data)
    decodes_or_is_refused(decode_answer, data.draw(damaged(encode_answer(answer))))


@pytest.mark.parametrize("deep", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff"])
def test_nested_or_announced_beyond_measure(deep: bytes) -> None:
    report = encode_answer(StatusReport({"a": None}))[:-1]
    assert refusal(decode_answer, report + deep) == "malformed"
    assert refusal(decode_answer, deep) == "malformed"
    assert refusal(decode_request, deep) == "malformed"
