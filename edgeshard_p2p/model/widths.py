"""Which tile widths were found to be exact and worth using, kept on disk.

Finding out takes the better part of a second, and after a loss somebody waits for it.  It depends
on the model's shapes, on the processor and on torch, all of which are in the file's name.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeshard_p2p.model import kernel_probe, memo


class Widths(msgspec.Struct, frozen=True):
    """None: not found out yet."""

    block: tuple[int, ...] | None = None
    head: tuple[int, ...] | None = None


def file_of(directory: Path, digest: str, dtype: str, tile_rows: int) -> Path:
    return directory / f"widths-2-{digest[:16]}-{dtype}-{tile_rows}-{kernel_probe.machine()}.json"


def read(file: Path) -> Widths:
    return memo.read(file, Widths) or Widths()
