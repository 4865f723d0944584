"""What belongs to an earlier attempt of a request changes nothing of the present one.

Knows what an event names; that it is late is found by looking at the peer just before.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core import messages as msg
from edgeshard_p2p.core.ids import RequestId
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.request import Phase

Standing = tuple[object, ...]
"""Of a request at a peer: as a source sees it, or as a stage does."""


def untouchable(core: PeerCore, event: ev.Event, now: float) -> dict[RequestId, Standing]:
    """How the requests stand that ``event`` names by an earlier attempt."""
    park_at = core.planning._park_at
    if park_at is not None and park_at <= now:
        return {}  # Requests are parked now, whatever the event is.
    return dict(_late(core, event))


def touched(core: PeerCore, before: dict[RequestId, Standing], event: ev.Event) -> list[RequestId]:
    after = dict(_late(core, event)) if before else {}
    return [request for request, standing in before.items() if after.get(request) != standing]


def _late(core: PeerCore, event: ev.Event) -> Iterator[tuple[RequestId, Standing]]:
    if isinstance(event, ev.FrameReceived):
        yield from _late_rows(core, event.header)
    elif isinstance(event, ev.MessageReceived):
        named = event.message
        if isinstance(named, msg.AttemptRefused | msg.SlotAnswer):
            yield from _at_source(core, named.request, named.attempt)


def _late_rows(core: PeerCore, header: msg.FrameHeader) -> Iterator[tuple[RequestId, Standing]]:
    stage = core.serving.stages.get(header.plan_id)
    for group in header.groups:
        if header.kind is msg.FrameKind.TOKENS:
            yield from _at_source(core, RequestId(core.me, group.sequence), group.attempt)
        elif stage is not None and header.kind in (msg.FrameKind.OPEN, msg.FrameKind.HIDDEN):
            if group.source_index >= len(stage.plan.sources):
                continue  # It is refused.
            request = RequestId(stage.plan.sources[group.source_index], group.sequence)
            known = stage.requests.get(request)
            if known is not None and known.attempt > group.attempt:
                yield request, (known.attempt, known.slot.length)


def _at_source(
    core: PeerCore, request_id: RequestId, attempt: int
) -> Iterator[tuple[RequestId, Standing]]:
    request = core.serving.source.requests.get(request_id)
    if request is not None and request.phase is not Phase.WAITING and request.attempt > attempt:
        yield request_id, (request.attempt, request.phase, request.is_granted, request.n_known)
