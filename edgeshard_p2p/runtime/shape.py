"""The file that says what a peer's links are to take: ``edgeshard peer --shape``.

    [[link]]
    to = "127.0.0.1:7913"       as the other peer listens
    mbps = 50                   in 10^6 bits per second
    delay_ms = 2                one way; 0, where it is left out
    cut = true                  in place of a rate: nothing gets there

Links to others are as fast as the network.  Each end shapes what it sends.  The file may be written
anew while the peer runs.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from edgeshard_p2p.config import ConfigError, parse_address
from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.plan import BYTES_PER_MBIT
from edgeshard_p2p.net.lane import Lane
from edgeshard_p2p.net.shaper import Lanes
from edgeshard_p2p.tables import At, TopologyError, read_toml, to_table

log = logging.getLogger("edgeshard")


class _File(Struct, frozen=True):
    link: list[Any] = []


class _Entry(Struct, frozen=True):
    to: str
    mbps: Annotated[float, Meta(gt=0, le=10**7)] | None = None
    delay_ms: Annotated[float, Meta(ge=0, le=10**5)] = 0.0
    cut: bool = False


def read_shape(path: Path) -> dict[Address, Lane | None]:
    """Raises TopologyError with the file, the key and what was expected there."""
    at = At(path)
    file: _File = to_table(read_toml(path), _File, at)
    lanes: dict[Address, Lane | None] = {}
    for index, value in enumerate(file.link):
        here = at / "link" / index
        entry: _Entry = to_table(value, _Entry, here)
        try:
            to = parse_address(entry.to)
        except ConfigError as error:
            raise (here / "to").error(str(error)) from None
        if entry.cut == (entry.mbps is not None):
            raise here.error("expected either mbps or cut = true")
        rate = (entry.mbps or 0.0) * BYTES_PER_MBIT
        lanes[to] = None if entry.cut else Lane(rate, entry.delay_ms / 1e3)
    return lanes


class ShapeFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._written_at = self._mtime()

    def read(self) -> Lanes:
        """Raises TopologyError."""
        return read_shape(self._path)

    def news(self) -> Lanes | None:
        """What it says now; None: nothing new, or nothing that can be read."""
        written_at = self._mtime()
        if written_at == self._written_at:
            return None
        self._written_at = written_at
        try:
            return read_shape(self._path)
        except TopologyError as error:
            log.warning("links stay as they are: %s", error)
            return None

    def _mtime(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0
