"""What a client (the command line) and a peer say to each other.

One request per connection; the answers to it come back in order.  Text and ids stay between the
client and the peer that it talks to.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edgeshard_p2p.core.ids import Name
from edgeshard_p2p.core.pin import PIN_CHARS_MAX
from edgeshard_p2p.core.plan import Snapshot
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.wire.errors import UNREADABLE, WireError

PROMPT_CHARS_MAX = 400_000
SET_FOR_MAX_S = 86_400
STAND_STILL_MAX_S = 30.0


class Run(Struct, frozen=True, tag="run"):
    prompt: Annotated[str, Meta(max_length=PROMPT_CHARS_MAX)]
    is_raw: bool
    max_tokens: Annotated[int, Meta(ge=1, le=2**24)]
    sampling: Sampling
    ignore_eos: bool = False
    """Go on to ``max_tokens`` whatever comes."""


class Cancel(Struct, frozen=True, tag="cancel"):
    pass


class Status(Struct, frozen=True, tag="status"):
    pass


class Set(Struct, frozen=True, tag="set"):
    key: Annotated[str, Meta(max_length=40)]
    value: Annotated[str, Meta(max_length=PIN_CHARS_MAX)]
    for_s: Annotated[int, Meta(ge=0, le=SET_FOR_MAX_S)] = 0
    """Lifted after so long by the peer that is asked; 0: it stays."""


class View(Struct, frozen=True, tag="view"):
    """What does the swarm plan with?"""


class StandStill(Struct, frozen=True, tag="stand_still"):
    """Hear nothing, say nothing and do nothing for so long, as a frozen device would; but what
    arrives meanwhile is lost."""

    for_s: Annotated[float, Meta(ge=0.1, le=STAND_STILL_MAX_S)]


ClientRequest = Run | Cancel | Status | Set | View | StandStill


class Started(Struct, frozen=True, tag="started"):
    request: str


class Text(Struct, frozen=True, tag="text"):
    """A piece of the answer, and the ids it came from."""

    text: str
    token_ids: tuple[int, ...]


class Notice(Struct, frozen=True, tag="notice"):
    text: str


class Waiting(Struct, frozen=True, tag="waiting"):
    """Nothing new.  Sent to find out whether anybody is still there."""


class Done(Struct, frozen=True, tag="done"):
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    ttft_ms: float
    ms_per_token: float
    plan_id: str | None
    failovers: int
    replayed_tokens: int
    recovery_ms: float
    cached_tokens: int = 0
    """Of the prompt, that were still cached of a request before."""


class Failed(Struct, frozen=True, tag="failed"):
    """``is_usage``: the caller asked for something that cannot be; else it may go well later."""

    error: str
    is_usage: bool = False
    retry_ms: int = 0


class StatusReport(Struct, frozen=True, tag="report"):
    report: dict[str, object]


class SwarmView(Struct, frozen=True, tag="swarm_view"):
    """What the peer's own plans are made from (``core.view.View``).  As large as the swarm: that is
    bounded by ``membership.MEMBERS_MAX``, whoever asks."""

    snapshot: Snapshot | None
    """None: there is nothing to plan, for the reason in ``waiting_for``."""
    waiting_for: str
    excluded: dict[Name, str]
    """Why a present member is not in the snapshot, by name."""


class Okay(Struct, frozen=True, tag="okay"):
    pass


ClientAnswer = Started | Text | Notice | Waiting | Done | Failed | StatusReport | SwarmView | Okay

_encoder = msgspec.msgpack.Encoder()
_request = msgspec.msgpack.Decoder(tuple[bytes, ClientRequest])
_answer: msgspec.msgpack.Decoder[ClientAnswer] = msgspec.msgpack.Decoder(ClientAnswer)


def encode_request(swarm: bytes, request: ClientRequest) -> bytes:
    return _encoder.encode((swarm, request))


def decode_request(data: bytes | memoryview) -> tuple[bytes, ClientRequest]:
    """(swarm key, request).  Raises WireError."""
    try:
        return _request.decode(data)
    except UNREADABLE as error:
        raise WireError("malformed", str(error)) from error


def encode_answer(answer: ClientAnswer) -> bytes:
    return _encoder.encode(answer)


def decode_answer(data: bytes | memoryview) -> ClientAnswer:
    try:
        return _answer.decode(data)
    except UNREADABLE as error:
        raise WireError("malformed", str(error)) from error
