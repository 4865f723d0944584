"""Questions to one peer, as the command line asks them.  They wait."""

from __future__ import annotations

from contextlib import suppress

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net.client import Client, NoAnswer
from edgeshard_p2p.net.security import Security
from edgeshard_p2p.wire.client import (
    ClientAnswer,
    ClientRequest,
    Done,
    Failed,
    Okay,
    StatusReport,
    SwarmView,
)
from edgeshard_p2p.wire.errors import WireError

LAST_WORDS = Done | Failed | StatusReport | SwarmView | Okay


def ask(
    address: Address, security: Security, request: ClientRequest, wait_s: float
) -> ClientAnswer | None:
    """The last word of the conversation; None: there is none."""
    with suppress(NoAnswer, WireError), Client(address, security) as client:
        client.send(request)
        return next(a for a in client.answers(wait_s) if isinstance(a, LAST_WORDS))
    return None
