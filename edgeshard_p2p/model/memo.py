"""What was found out on this machine, kept on disk as JSON: only time is lost without it.

So what cannot be read or believed is None, and what cannot be written is found out again.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def read(file: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def keep(file: Path, value: object) -> None:
    with suppress(OSError):
        write(file, value)


def write(file: Path, value: object) -> None:
    """For readers whole or not at all; where two write at once one wins.  Raises OSError."""
    data = msgspec.json.encode(value)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{file.name}.", suffix=".tmp", dir=file.parent)
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        scratch.replace(file)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
