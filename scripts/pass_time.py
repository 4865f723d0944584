"""How fast this machine is at the moment: a process that holds the whole model, is restrained by
nothing, and when asked passes a row through it.

Emulated devices measure themselves once.  What they measured says less about a later figure where
the machine has become slower or quicker since, as one does that is shared with others.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from msgspec import Struct

POSITIONS = 32
"""Cached before the row."""
PASSES = 20


class Pace(Struct, frozen=True):
    """Microseconds of a pass of one row."""

    usual: int
    """On average, by the clock: so long as passes take now."""
    measured: int
    """As a device that measured itself now would find it: the second quickest of a few, by the
    processor time of its thread."""


class Reference:
    """A context manager.  Asked while nothing else runs."""

    def __init__(self, model: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for who asks; this ends with its input.
        )

    def __enter__(self) -> Self:
        self._said()  # That the model is here.
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def pace(self) -> Pace | None:
        """None once its process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        said = self._said().split()
        return Pace(*map(int, said)) if said else None

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def main(model: Path) -> None:
    from stage_time import engine_of, group, one_pass, values

    from edgeshard_p2p.core.ids import UnitRange
    from edgeshard_p2p.model.checkpoint import spec_of_config
    from edgeshard_p2p.model.profiler import REPEATS

    units = UnitRange(0, spec_of_config(model).n_units)
    engine = engine_of(model, units, 1, POSITIONS + 1)
    prompt = group(0, 0, POSITIONS)
    engine.open(prompt.key)
    engine.forward(units, [prompt], values(engine, units, POSITIONS))

    def one_row() -> None:
        one_pass(engine, units, 1, POSITIONS)
        for unit in units:
            engine.truncate(prompt.key, unit, POSITIONS)

    print("ready", flush=True)
    for _ in sys.stdin:
        one_row()
        times_ns, started_ns = [], time.perf_counter_ns()
        for _ in range(PASSES):
            begun_ns = time.thread_time_ns()
            one_row()
            times_ns.append(time.thread_time_ns() - begun_ns)
        usual = (time.perf_counter_ns() - started_ns) // PASSES // 1000
        print(usual, sorted(times_ns[:REPEATS])[1] // 1000, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
