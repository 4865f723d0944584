"""What hidden states are between sockets and the compute thread: bytes that are also a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeshard_p2p.wire.frames import Buffer

WIRE_DTYPES = {1: torch.float32, 2: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Received:
    """Hidden states from another peer; their size has been checked against dtype and shape."""

    payload: Buffer
    dtype: int
    shape: tuple[int, ...]

    def tensor(self) -> Tensor:
        """On the frame's own memory."""
        return torch.frombuffer(self.payload, dtype=WIRE_DTYPES[self.dtype]).view(self.shape)


@dataclass(frozen=True, slots=True)
class Computed:
    """Hidden states from a pass of this peer: for the wire, or for its own next stage."""

    rows: Tensor
    payload: Buffer
    """The bytes of ``rows``, without a copy."""

    @classmethod
    def of(cls, rows: Tensor) -> Computed:
        rows = rows.contiguous()
        return cls(rows, rows.view(torch.uint8).numpy().data.cast("B"))

    def tensor(self) -> Tensor:
        return self.rows


@dataclass(frozen=True, slots=True)
class Passed:
    """What came of a forward pass."""

    hidden: Computed | None
    tokens: tuple[int | None, ...]
    service_us: int
