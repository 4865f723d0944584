"""What one device takes to pass rows through its units: a process that computes nothing else.

Started by ``scripts/bench throughput``, which confines it as it does a peer.  Says ``ready`` when
the units are here, waits for a line, and prints the microseconds of a pass on average.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from edgeshard_p2p.core.ids import PeerId, RequestId, UnitRange
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import CacheKey, RowGroup
from edgeshard_p2p.model.checkpoint import open_checkpoint
from edgeshard_p2p.model.engine import Engine, use_one_thread
from edgeshard_p2p.model.library import manifest_digest
from edgeshard_p2p.model.tiles import EXACT_TILE_ROWS

ROLE = "stage"
UNTIMED = 2
"""Passes before: the first ones build kernels and find out about tile widths."""


def group(sequence: int, position: int, rows: int) -> RowGroup:
    key = CacheKey(RequestId(PeerId("bench", 0), sequence), ROLE)
    return RowGroup(key, position, rows, Sampling())


def values(engine: Engine, units: UnitRange, rows: int) -> torch.Tensor:
    if units.start == 0:
        return torch.arange(rows) % engine.spec.vocab_size
    return torch.randn((rows, engine.spec.hidden_size))


def mean_us(model: Path, units: UnitRange, rows: int, begin: int, passes: int) -> float:
    """Of passes of one row each of so many requests, that have ``begin`` positions cached at first
    and one more after each pass."""
    use_one_thread()
    engine = Engine(
        open_checkpoint(model, manifest_digest(model), "bench"), "fp32", EXACT_TILE_ROWS, "cpu"
    )
    for unit in units:
        engine.load(unit)
    engine.reserve(ROLE, units, rows, begin + UNTIMED + passes)
    for sequence in range(rows):
        prompt = group(sequence, 0, begin)
        engine.open(prompt.key)
        engine.forward(units, [prompt], values(engine, units, begin))
    for k in range(UNTIMED):
        one_pass(engine, units, rows, begin + k)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    for k in range(passes):
        one_pass(engine, units, rows, begin + UNTIMED + k)
    return 1e6 * (time.perf_counter() - started) / passes


def one_pass(engine: Engine, units: UnitRange, rows: int, position: int) -> None:
    groups = [group(sequence, position, 1) for sequence in range(rows)]
    engine.forward(units, groups, values(engine, units, rows))


def main(arguments: Sequence[str]) -> None:
    model, *numbers = arguments
    start, end, rows, begin, passes = map(int, numbers)
    print(round(mean_us(Path(model), UnitRange(start, end), rows, begin, passes)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
