"""Who did not get in, from the order in which libzmq tells of it."""

from __future__ import annotations

from collections import Counter

import pytest
import zmq

from edgeshard_p2p.net.handshakes import FAILED, NONE, Handshakes

COME, GONE = zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED
IN, AUTH = zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH
LATE, WRONG = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

STORIES = {
    "in and out": ([(COME, 7), (IN, 0), (GONE, 7)], {}),
    "timed out": ([(COME, 7), (LATE, 11), (GONE, 7)], {FAILED: 1}),
    "wrong bytes": ([(COME, 7), (WRONG, 99), (GONE, 7)], {FAILED: 1}),
    "not a word": ([(COME, 7), (GONE, 7)], {NONE: 1}),
    "wrong key": ([(COME, 7), (AUTH, 400), (GONE, 7)], {FAILED: 1}),
    "the same descriptor again": ([(COME, 7), (IN, 0), (GONE, 7), (COME, 7), (GONE, 7)], {NONE: 1}),
    "the second first": ([(COME, 7), (COME, 8), (IN, 0), (GONE, 7), (GONE, 8)], {NONE: 1}),
    "one fails while one waits": (
        [(COME, 7), (COME, 8), (LATE, 11), (GONE, 8), (IN, 0), (GONE, 7)],
        {FAILED: 1},
    ),
    "its place was given away, and it fails": (
        [(COME, 7), (COME, 8), (AUTH, 400), (WRONG, 99), (GONE, 7), (GONE, 8)],
        {FAILED: 2},
    ),
    "its place was given away, and it fails later": (
        [(COME, 7), (COME, 8), (AUTH, 400), (GONE, 8), (WRONG, 99), (GONE, 7)],
        {FAILED: 1, NONE: 1},
    ),
    "an end of what came before": ([(GONE, 7), (IN, 0)], {}),
}


@pytest.mark.parametrize("name", STORIES)
def test_each_is_counted_once(name: str) -> None:
    events, expected = STORIES[name]
    handshakes = Handshakes()
    counted = Counter(handshakes.on_event(event, value) for event, value in events)
    del counted[None]
    assert counted == expected
    assert not handshakes._waiting
