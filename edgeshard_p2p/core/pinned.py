"""The plan that a pin names, where the swarm can serve it; else why it cannot.

Nothing is searched: the layout is given, and what is left to find is the batch that fits.
"""

from __future__ import annotations

from bisect import bisect_left

from edgeshard_p2p.core.answers import Answer, in_units
from edgeshard_p2p.core.footprint import entry_of
from edgeshard_p2p.core.layout import Layout, is_linked, missing_bytes, predict
from edgeshard_p2p.core.pin import Pin
from edgeshard_p2p.core.plan import Snapshot, Stage

NOTE = "pinned"


def pinned_answer(snapshot: Snapshot, pin: Pin) -> Answer:
    """Without a layout where the pin cannot be followed, for the reason that stands in it."""
    peers = {device.peer.name: device.peer for device in snapshot.devices}
    absent = [name for name in pin.names() if name not in peers]
    if absent:
        return Answer(None, reason=f"{absent[0]} is not ready to be planned")
    layout = Layout(
        sources=tuple(peers[name] for name in pin.sources),
        entry_end=pin.entry_end,
        stages=tuple(Stage(peers[stage.name], stage.units) for stage in pin.stages),
        tail_start=snapshot.model.n_units,
    )
    reason = _why_not(snapshot, layout)
    if reason:
        return Answer(None, reason=reason)
    batches = range(1, snapshot.workload.batch + 1)
    batch = bisect_left(batches, True, key=lambda b: bool(missing_bytes(snapshot, layout, b)))
    if not batch:
        name, lack = min(missing_bytes(snapshot, layout, 1).items())
        return Answer(None, reason=f"{name} lacks {in_units(lack)}", missing_bytes=lack)
    return Answer(layout, batch, predict(snapshot, layout, batch, 1), NOTE)


def _why_not(snapshot: Snapshot, layout: Layout) -> str:
    n_units, least_end = snapshot.model.n_units, entry_of(snapshot).end
    end = layout.stages[-1].units.end if layout.stages else layout.entry_end
    is_source = {device.peer: device.is_source for device in snapshot.devices}
    strangers = [peer for peer in layout.sources if not is_source[peer]]
    if strangers:
        return f"{strangers[0]} is no source"
    if end != n_units:
        return f"it ends at unit {end}, the model has {n_units}"
    if layout.entry_end < least_end:
        return f"a source keeps units {entry_of(snapshot)} for its own prompts"
    if len(layout.sources) > 1 and layout.entry_end > least_end:
        return f"several sources keep units {entry_of(snapshot)} each and no more"
    if layout.revisits:
        return "a device would be visited twice"
    if snapshot.workload.context > snapshot.model.max_context:
        return f"the model's context is {snapshot.model.max_context}"
    return "" if is_linked(snapshot, layout) else "not all of its links are measured"
