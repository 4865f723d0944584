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

from edgeshard_p2p.faults.devices import FaultError

POSITIONS = 32
"""Cached before the row."""
PASSES = 20


class Reference:
    """A context manager.  Asked while nothing else runs."""

    def __init__(self, model: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def pass_us(self) -> int:
        """Of one row, on average."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # It says nothing more.
        told = self._process.stdout.readline()
        if not told:
            raise FaultError("how fast this machine is cannot be measured: its process has ended")
        return int(told)


def main(model: Path) -> None:
    from stage_time import engine_of, group, one_pass, values

    from edgeshard_p2p.core.ids import UnitRange
    from edgeshard_p2p.model.checkpoint import spec_of_config

    units = UnitRange(0, spec_of_config(model).n_units)
    engine = engine_of(model, units, 1, POSITIONS + 1)
    prompt = group(0, 0, POSITIONS)
    engine.open(prompt.key)
    engine.forward(units, [prompt], values(engine, units, POSITIONS))

    def one_row() -> None:
        one_pass(engine, units, 1, POSITIONS)
        for unit in units:
            engine.truncate(prompt.key, unit, POSITIONS)

    for _ in sys.stdin:
        one_row()
        started = time.perf_counter()
        for _ in range(PASSES):
            one_row()
        print(round(1e6 * (time.perf_counter() - started) / PASSES), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
