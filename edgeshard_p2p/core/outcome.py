"""What a stage has to compute, what it is computing, and what came of an event."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeshard_p2p.core.edges import Due, EdgeKind
from edgeshard_p2p.core.effects import Effect
from edgeshard_p2p.core.events import ForwardDone
from edgeshard_p2p.core.flow import Frame, is_of_chunk
from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.messages import AttemptRefused, FrameKind, RowGroupHeader
from edgeshard_p2p.core.work import TensorRef


@dataclass(frozen=True, slots=True)
class StageRows:
    """Rows of one frame that are to pass ``units``, or of one replay that begins here."""

    groups: tuple[RowGroupHeader, ...]
    units: UnitRange
    spans: tuple[tuple[int, int], ...] = ()
    """(first row, rows) of the tensor, one for each group."""
    tensor: TensorRef | None = None
    """None where the rows were logged here."""
    n_rows: int = 0
    """Of the tensor."""
    due: Due | None = None
    micro_batch: int = 0

    @property
    def is_chunk(self) -> bool:
        return any(map(is_of_chunk, self.groups))


@dataclass(slots=True)
class Running:
    """A forward pass under way, and the frames that it is made of."""

    groups: tuple[RowGroupHeader, ...]
    consumed: list[Due]
    micro_batch: int = 0


@dataclass(slots=True)
class Outcome:
    """What came of an event: effects, frames to offer, refusals to tell sources."""

    effects: list[Effect] = field(default_factory=list)
    offers: list[tuple[EdgeKind, int, Frame]] = field(default_factory=list)
    """(kind, source index or -1, frame) of edges that leave this stage."""
    refusals: list[AttemptRefused] = field(default_factory=list)
    consumed: list[Due] = field(default_factory=list)
    """Frames that have been dealt with."""
    waits: list[StageRows] = field(default_factory=list)
    """To be computed, when their turn comes."""


def token_frames(running: Running, event: ForwardDone) -> list[tuple[EdgeKind, int, Frame]]:
    """One frame for each source that has tokens among these rows.  Each is told its rows' share
    of the time, since it does not know of the others, and judges by it (``gray``)."""
    by_source: dict[int, list[tuple[RowGroupHeader, int]]] = {}
    for group, token in zip(running.groups, event.tokens, strict=True):
        if token is not None:
            by_source.setdefault(group.source_index, []).append((group, token))
    frames = []
    for source_index, pairs in sorted(by_source.items()):
        groups = tuple(_token_group(group) for group, _ in pairs)
        frame = Frame(
            FrameKind.TOKENS,
            groups,
            running.micro_batch,
            event.service_us * len(pairs) // len(running.groups),
            tokens=tuple(token for _, token in pairs),
        )
        frames.append((EdgeKind.RETURN, source_index, frame))
    return frames


def _token_group(group: RowGroupHeader) -> RowGroupHeader:
    """The token follows the group's last row."""
    position = group.position + group.rows
    return RowGroupHeader(
        group.source_index, group.sequence, group.attempt, position, 1, position, 0, group.flags
    )
