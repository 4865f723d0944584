"""The lines that ``scripts/reproduce`` writes as it goes: of the run, of each cell; and how far it
has come."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import psutil
from comparing import Say, Speeds, Wanted

from edgeshard_p2p import __version__
from edgeshard_p2p.control_groups import usable_cores
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.faults.scenario import PeerEntry
from edgeshard_p2p.reproduction import lines as written
from edgeshard_p2p.reproduction import pool
from edgeshard_p2p.reproduction.cells import Cell, Part, Place
from edgeshard_p2p.reproduction.lines import Line, Lines, LinesError
from edgeshard_p2p.reproduction.report import UNITS


class Log:
    """The lines of a run, written as they come."""

    def __init__(self, file: Path, is_resumed: bool) -> None:
        if is_resumed:
            os.truncate(file, len(_whole(file)))
        self._out: TextIO = file.open("a" if is_resumed else "w")

    def put(self, line: Line) -> None:
        self._out.write(written.write(line) + "\n")
        self._out.flush()

    def close(self) -> None:
        self._out.close()


class Progress:
    """Which cells are there, and when the others will be; ``ends_at``: after which none begins."""

    def __init__(
        self, parts: Sequence[Part], done: dict[Place, Cell], say: Say, ends_at: float | None
    ) -> None:
        self._say, self._ends_at = say, ends_at
        self._left = [p for part in parts for p in part.places() if p not in done]
        self._all, self._done = len(self._left), done
        self._took_s: list[float] = []
        self._begun = self._last = time.monotonic()

    def begin(self) -> None:
        """Of a swarm's cells: what it took to come up is none's."""
        self._last = time.monotonic()

    def is_done(self, place: Place) -> bool:
        return place in self._done

    def is_late(self) -> bool:
        return self._ends_at is not None and time.monotonic() > self._ends_at

    def has_left(self, parts: Sequence[Part]) -> bool:
        return any(place in self._left for part in parts for place in part.places())

    def tell(self, cell: Cell) -> None:
        self._done[cell.place] = cell
        self._left.remove(cell.place)
        now, n = time.monotonic(), self._all - len(self._left)
        self._took_s.append(now - self._last)
        self._last = now
        figure = f"{cell.median:.4g} {UNITS[cell.place.objective]}" if cell.median else "no figure"
        if cell.measured and not cell.like:
            figure += f" ±{100 * cell.noise:.1f} %"
        said = [figure, cell.why, f"as {cell.like}" if cell.like else ""]
        left_min = statistics.mean(self._took_s) * len(self._left) / 60
        self._say(
            f"  {'; '.join(part for part in said if part)}  [{n} of {self._all} cells, "
            f"{(now - self._begun) / 60:.0f} min, about {left_min:.0f} left]"
        )


def _whole(file: Path) -> bytes:
    """The last line may have been cut short by whatever ended the run."""
    text = file.read_bytes()
    return text[: text.rfind(b"\n") + 1]


def known_lines(file: Path) -> Lines:
    """Raises LinesError."""
    try:
        return written.read(_whole(file).decode().split("\n")[:-1])
    except UnicodeDecodeError:
        raise LinesError(f"{file}: no lines of a run: it is no text") from None
    except LinesError as error:
        raise LinesError(f"{file}: {error}") from None


def run_of(
    wanted: Wanted,
    spec: ModelSpec,
    n_prompt: int,
    speeds: Speeds,
    peers: Sequence[PeerEntry],
) -> written.Run:
    """What the figures are taken with; links are not checked yet."""
    return written.Run(
        command=written.command_of(sys.argv[1:]),
        version=_version(),
        machine=_machine(),
        model=f"{spec.name} ({spec.n_blocks} blocks, fp32, exact)",
        row_bytes=spec.hidden_bytes("fp32"),
        prompt_tokens=n_prompt,
        generate=wanted.generate,
        repeats=wanted.repeats,
        requests=wanted.requests,
        seed=wanted.seed,
        context=wanted.context,
        scale=speeds.scale,
        devices=tuple(
            written.Emulated(p.name, kind.name, p.cores or 0.0, p.layers_mib or 0, kind.whole_ms)
            for p, kind in ((p, pool.DEVICES[p.name]) for p in peers)
        ),
    )


def _version() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return f"{__version__} {done.stdout.strip()}".strip()


def _machine() -> dict[str, str]:
    """As the system describes it, without a name."""
    named = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": named[0] if named else platform.machine(),
        "cores": f"{usable_cores():g}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
    }
