"""What a run writes down as it goes, a JSON object a line: how it was begun, each swarm, each cell.
So what was measured is there whatever ends the run, and the report is made from nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from edgeshard_p2p.reproduction.cells import Cell

PLACES = ("--out", "--logs")
"""Options that say where files go."""


class LinesError(Exception):
    """Theirs: lines that are no run's."""


class Emulated(Struct, frozen=True):
    """One device as it is stood in for."""

    name: str
    kind: str
    cores: float
    layers_mib: int
    paper_ms: float
    """Of one token through the whole of Llama 2 7B."""


class Run(Struct, frozen=True, tag="run", tag_field="kind"):
    """How it was begun."""

    command: str
    version: str
    machine: dict[str, str]
    model: str
    row_bytes: int
    """Of one token's hidden state."""
    prompt_tokens: int
    generate: int
    repeats: int
    requests: int
    seed: int
    context: int
    scale: float
    devices: tuple[Emulated, ...]
    links_checked: int = 0
    """Lone messages over the emulated links, before any figure."""
    links_wrong: tuple[str, ...] = ()


class Swarm(Struct, frozen=True, tag="swarm", tag_field="kind"):
    """One that has come up."""

    source: str
    whole_ms: dict[str, float]
    """By device, of one token through all units, as it measured itself."""


class Switch(Struct, frozen=True, tag="switch", tag_field="kind"):
    """What the links' switch did for a swarm, once that had ended."""

    source: str
    seconds: float
    cpu_s: float
    frames: int
    late_us: float
    """On average."""


class Ended(Struct, frozen=True, tag="ended", tag_field="kind"):
    """Why a part was not measured to its end."""

    what: str
    why: str


Line = Run | Swarm | Switch | Ended | Cell

_DECODER = msgspec.json.Decoder(Line)


class Lines(Struct, frozen=True):
    """A run that was read.  Of several beginnings and cells of one place the last one counts, and
    what was not come to is of the last one."""

    run: Run
    swarms: tuple[Swarm, ...]
    switches: tuple[Switch, ...]
    ended: tuple[Ended, ...]
    cells: tuple[Cell, ...]
    versions: tuple[str, ...]
    """Of the program, by which cells were measured, in order."""


def read(lines: Iterable[str]) -> Lines:
    """Raises LinesError."""
    found: list[Line] = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_DECODER.decode(line))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise LinesError(f"line {number} is no line of a run: {error}") from None
    runs = [line for line in found if isinstance(line, Run)]
    if not runs:
        raise LinesError("no line says how the run was begun")
    cells = {line.place: line for line in found if isinstance(line, Cell)}
    ended = list[Ended]()
    for one in found:
        if isinstance(one, Run):
            ended.clear()
        elif isinstance(one, Ended):
            ended.append(one)
    return Lines(
        runs[-1],
        tuple(line for line in found if isinstance(line, Swarm)),
        tuple(line for line in found if isinstance(line, Switch)),
        tuple(ended),
        tuple(cells.values()),
        tuple(dict.fromkeys(run.version for run in runs)),
    )


def command_of(arguments: Iterable[str]) -> str:
    """How a run is begun again: where files go on a machine is nobody else's."""
    found, words = ["scripts/reproduce"], iter(arguments)
    for word in words:
        if word in PLACES:
            next(words, None)
        elif word.partition("=")[0] not in PLACES:
            found.append(word)
    return shlex.join(found)


def write(line: Line) -> str:
    return msgspec.json.encode(line).decode()
