"""Which tile widths were found to be exact, kept on disk.

Finding out takes the better part of a second, and after a loss somebody waits for it.  It depends
on the model's shapes, on the processor and on torch, all of which are in the file's name.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from edgeshard_p2p.model import kernel_probe


class Widths(msgspec.Struct, frozen=True):
    """None: not found out yet."""

    block: tuple[int, ...] | None = None
    head: tuple[int, ...] | None = None


def file_of(directory: Path, digest: str, dtype: str, tile_rows: int) -> Path:
    return directory / f"widths-{digest[:16]}-{dtype}-{tile_rows}-{kernel_probe.machine()}.json"


def read(file: Path) -> Widths:
    """What is known; nothing where there is no file, or none that can be believed."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Widths)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Widths()


def keep(file: Path, widths: Widths) -> None:
    """What cannot be written is found out again next time; nothing else is lost."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(msgspec.json.encode(widths))
        temporary.replace(file)
