"""How long each kind of unit takes on this device, by rows (decode) and by chunk (prefill).

Measured through an engine as it will serve, one kind of unit in memory at a time.  Knows nothing
of what the numbers are used for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from msgspec import Struct
from torch import Tensor

from edgeshard_p2p.core.ids import PeerId, RequestId, UnitRange
from edgeshard_p2p.core.model_spec import DTYPE_BYTES
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import CacheKey, RowGroup
from edgeshard_p2p.model.cpu_quota import WHOLE, cpu_share
from edgeshard_p2p.model.engine import DTYPES, Engine
from edgeshard_p2p.model.errors import EngineError

DECODE_ROWS = (1, 2, 4, 8, 16, 32)
PREFILL_CHUNKS = (32, 128, 512)
CACHED_LENGTH = 128
"""Positions cached by each sequence of a measured decode step."""
ROUNDS, REPEATS, REPEATS_MAX, REPEAT_US = 2, 4, 12, 500_000
"""Passes of each size in a round, all sizes in turn: more of short ones, as long as they take less
than this together.  The first few of weights that were just loaded may take several times as long,
and so may any while others read memory, for tenths of a second or more (a head of 113 MB on a Zen
machine: 37 ms for the first four, then 8 to 11, and at times 40)."""
ROLE = "profile"

STAGE_BYTES = 2**26
"""Blocks are measured as many at a time as weigh this much.  One small block by itself stays in
the processor's cache, as it would not in a stage (SmolLM2-135M, Zen 5: a block of 14 MB takes
0.41 ms by itself and 0.55 ms as one of thirty)."""

Times = tuple[int, int, int, int]
"""(rows, embedding_us, block_us, head_us)"""


class Profile(Struct, frozen=True):
    decode: tuple[Times, ...]
    """By sequences in a step, one row each."""
    prefill: tuple[Times, ...]
    """By rows of one sequence, of which the last ends in a token."""


def measure(engine: Engine, context: int, progress: Callable[[str], None]) -> Profile:
    """Microseconds.  ``engine`` holds nothing, before and after."""
    if engine.held():
        raise EngineError("a profile needs an engine of its own; this one holds units")
    spec = engine.spec
    cached = min(CACHED_LENGTH, context - 1)
    decode = [[_group(row, cached, 1) for row in range(rows)] for rows in DECODE_ROWS]
    chunks = sorted({min(chunk, context) for chunk in PREFILL_CHUNKS})
    prefill = [[_group(0, 0, chunk)] for chunk in chunks]
    columns = []
    head = UnitRange(spec.head_unit, spec.n_units)
    for units in (UnitRange(0, 1), _blocks(engine), head):
        progress(f"measuring units {units}")
        for unit in units:
            engine.load(unit)
        decode_us = _measure(engine, units, decode, cached + 1)
        columns.append((decode_us, _measure(engine, units, prefill, chunks[-1])))
        engine.drop(units)
        engine.unreserve(ROLE)
    return Profile(
        _rows(DECODE_ROWS, [column[0] for column in columns]),
        _rows(chunks, [column[1] for column in columns]),
    )


def _blocks(engine: Engine) -> UnitRange:
    block_bytes = engine.spec.block_params[0] * DTYPE_BYTES[engine.dtype]
    count = max(1, min(-(-STAGE_BYTES // block_bytes), engine.spec.n_blocks))
    return UnitRange(1, 1 + count)


def _rows(sizes: Sequence[int], columns: Sequence[list[int]]) -> tuple[Times, ...]:
    embedding, block, head = columns
    return tuple(zip(sizes, embedding, block, head, strict=True))


def _group(sequence: int, position: int, rows: int) -> RowGroup:
    key = CacheKey(RequestId(PeerId("profiler", 0), sequence), ROLE)
    return RowGroup(key, position, rows, Sampling())


def _measure(
    engine: Engine, units: UnitRange, steps: list[list[RowGroup]], context: int
) -> list[int]:
    # Reserved per kind of step: 32 sequences of the longest chunk would be much memory.
    engine.reserve(ROLE, units, max(len(groups) for groups in steps), context)
    samples_us: list[list[float]] = [[] for _ in steps]
    for _ in range(ROUNDS):
        for samples, groups in zip(samples_us, steps, strict=True):
            samples += _times_us(engine, units, groups)
    # The second best: whoever shares the machine only ever adds time, and these figures are kept.
    return [max(1, round(sorted(samples)[1] / len(units))) for samples in samples_us]


def _times_us(engine: Engine, units: UnitRange, groups: list[RowGroup]) -> list[float]:
    """Of some passes, without a first one, which builds kernels."""
    share = cpu_share()
    has_kv = engine.spec.is_block(units.start)
    for group in groups:
        engine.open(group.key)
        if has_kv and group.position:
            _pass(engine, units, [_group(group.key.request.sequence, 0, group.position)], share)
    samples: list[float] = []
    while len(samples) <= REPEATS or (sum(samples) < REPEAT_US and len(samples) <= REPEATS_MAX):
        samples.append(_pass(engine, units, groups, share))
        for group in groups:
            for unit in units:
                engine.truncate(group.key, unit, group.position)
    for group in groups:
        engine.release(group.key)
    return samples[1:]


def _pass(engine: Engine, units: UnitRange, groups: list[RowGroup], share: float) -> float:
    """Microseconds of one forward pass; what they will be on average, where this process may have
    but a ``share`` of a core."""
    values = _input(engine, units, sum(group.rows for group in groups))
    clock = time.perf_counter_ns if share == WHOLE else time.thread_time_ns
    started = clock()
    engine.forward(units, groups, values)
    return (clock() - started) / 1000 / share


def _input(engine: Engine, units: UnitRange, rows: int) -> Tensor:
    if 0 in units:
        return torch.arange(rows) % engine.spec.vocab_size
    generator = torch.Generator().manual_seed(0)
    shape = (rows, engine.spec.hidden_size)
    return torch.randn(shape, generator=generator).to(DTYPES[engine.dtype])
