"""Inputs worth keeping: a text file each, replayed in every run.

    # what it is
    control malformed           the door, and the kind it is counted under (or ``read``)
    c1                          a part in hex; ``00*70`` repeats a byte

A campaign adds the smallest input of each kind of complaint that is not here yet; what made a test
fail is written as ``failed-*``, with ``?`` for the kind, to be named once it is understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

from edgeshard_p2p.wire.client import decode_request
from edgeshard_p2p.wire.codec import decode_control
from edgeshard_p2p.wire.errors import WireError
from edgeshard_p2p.wire.frames import decode_frame
from tests.fuzz.wired import CLIENT, CONTROL, Input

DIRECTORY = Path(__file__).parent / "corpus"
READ, UNKNOWN = "read", "?"
BYTES_MAX = 4_096
"""Of an input that is kept because it is new; larger ones are made anew by each campaign."""


DETAILS = re.compile(
    r"(, got | - at |: invalid | matching |codec can't | value |field `|opcode |, shape |'.*').*"
)
"""Of a complaint: what is different each time, and everything after it."""


@dataclass(frozen=True, slots=True)
class Kept:
    name: str
    given: Input
    kind: str


def load() -> list[Kept]:
    return [_read(path) for path in sorted(DIRECTORY.glob("*.txt"))]


def _read(path: Path) -> Kept:
    lines = [line.strip() for line in path.read_text("ascii").splitlines()]
    first, *parts = [line for line in lines if not line.startswith("#")]
    door, kind = first.split()
    return Kept(path.stem, Input(door, tuple(_bytes(part) for part in parts)), kind)


def save(name: str, what: str, given: Input, kind: str) -> Path:
    path = DIRECTORY / f"{name}.txt"
    about = " ".join(what.encode("ascii", "replace").decode().split())
    lines = [f"# {about}", f"{given.door} {kind}", *(_hex(part) for part in given.parts)]
    path.write_text("\n".join(lines) + "\n", "ascii")
    return path


def grow(smallest: dict[str, tuple[Input, str]]) -> list[Path]:
    """Keep what complains in a way that nothing here does yet."""
    known = {kept.name for kept in load()}
    return [
        save(name, "found by a campaign", given, kind)
        for name, (given, kind) in sorted(smallest.items())
        if name not in known
    ]


def save_failed(given: Input, what: str) -> Path:
    """A failing input, under a name that follows from its bytes."""
    name = blake2b(repr(given).encode(), digest_size=4).hexdigest()
    return save(f"failed-{name}", what, given, UNKNOWN)


def _hex(data: bytes) -> str:
    """Runs of one byte are written short; an empty part is a lone dot."""
    words, plain = [], ""
    for value, run in groupby(data):
        n = len(list(run))
        if n > 16:
            words += [plain, f"{value:02x}*{n}"]
            plain = ""
        else:
            plain += f"{value:02x}" * n
    return " ".join(word for word in [*words, plain] if word) or "."


def _bytes(text: str) -> bytes:
    data = b""
    for word in text.replace(".", "").split():
        value, _, times = word.partition("*")
        data += bytes.fromhex(value) * int(times or 1)
    return data


def complaint(given: Input, swarm: bytes) -> str:
    """How reading it ends, as words joined by dashes: without places, numbers and what was found
    instead of what was expected."""
    try:
        if given.door == CONTROL:
            decode_control(swarm, given.parts[0])
        elif given.door == CLIENT:
            decode_request(given.parts[0])
        else:
            decode_frame(given.parts)
    except WireError as error:
        text = re.sub(DETAILS, "", str(error))
        return re.sub(r"[^a-z]+", "-", f"{given.door} {text}".lower()).strip("-")[:60].strip("-")
    return READ
