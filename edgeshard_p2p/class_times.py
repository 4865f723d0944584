"""What models take on a class of devices: read from a topology file, spread over units, and scaled
to models that were never timed there.

Knows nothing of devices and links.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct

from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import CHUNK_ROWS, RowTimes
from edgeshard_p2p.specs import shipped, shipped_spec
from edgeshard_p2p.tables import At, convert, to_table

US_MAX = 2**48
"""Of one unit: no more than the planner's numbers hold."""

_ROWS_MAX = 65536
_UNITS_MAX = 1026
_Ms = Annotated[float, Meta(ge=0, le=10**7)]

_PerUnit = float | tuple[float, ...]
"""Milliseconds of every block, or of each unit."""
_Curve = dict[int, _PerUnit]
"""By rows or tokens, ascending."""


class ModelTimes(NamedTuple):
    decode: _Curve
    prefill: _Curve


ClassTimes = dict[str, ModelTimes]
"""By the name of the model."""


class _TimesEntry(Struct, frozen=True):
    decode_ms: Any
    prefill_ms: Any = None


def read_class_times(value: object, at: At) -> ClassTimes:
    """The table ``times`` of a class."""
    return {
        model: _read_times(entry, at / model)
        for model, entry in convert(value, dict[str, Any], at).items()
    }


def _read_times(value: object, at: At) -> ModelTimes:
    entry = to_table(value, _TimesEntry, at)
    decode = _read_curve(entry.decode_ms, 1, at / "decode_ms")
    if 1 not in decode:
        raise (at / "decode_ms").error('expected a key "1" for one row')
    if entry.prefill_ms is None:
        return ModelTimes(decode, {})
    return ModelTimes(decode, _read_curve(entry.prefill_ms, CHUNK_ROWS, at / "prefill_ms"))


def _read_curve(value: object, bare_rows: int, at: At) -> _Curve:
    """``bare_rows``: what times are of that stand without a table."""
    if not isinstance(value, dict):
        return {bare_rows: _read_per_unit(value, at)}
    if not value:
        raise at.error("expected at least one key")
    curve: _Curve = {}
    for key, times in value.items():
        if not re.fullmatch(r"[1-9][0-9]{0,4}", key) or int(key) > _ROWS_MAX:
            raise (at / key).error(f'expected a key from "1" to "{_ROWS_MAX}"')
        curve[int(key)] = _read_per_unit(times, at / key)
    return dict(sorted(curve.items()))


def _read_per_unit(value: object, at: At) -> _PerUnit:
    if not isinstance(value, list):
        number: float = convert(value, _Ms, at)
        return number
    if not 3 <= len(value) <= _UNITS_MAX:
        raise at.error(f"expected a number, or one for each unit, got a list of {len(value)}")
    return tuple(convert(value, list[_Ms], at))


def unit_times(
    known: ClassTimes, model: ModelSpec, at: At
) -> tuple[tuple[tuple[RowTimes, ...], tuple[RowTimes, ...]], str | None]:
    """Decode and prefill times of ``model``, and which model they are scaled from, if they are."""
    name, timed = (model.name, model) if model.name in known else _nearest(known, model, at)
    times = known[name]
    decode = _row_times(times.decode, timed, model, at / name / "decode_ms")
    prefill = _row_times(times.prefill, timed, model, at / name / "prefill_ms")
    return (decode, prefill), None if timed is model else name


def _nearest(known: ClassTimes, model: ModelSpec, at: At) -> tuple[str, ModelSpec]:
    """Of the models that have times and a spec, the one nearest in parameters."""
    specs = [(name, spec) for name in sorted(known) if (spec := shipped_spec(name)) is not None]
    if not specs:
        raise at.error(
            f"no times for {model.name}, nor for a model to scale them from "
            f"({', '.join(name for name in shipped() if name != model.name)})"
        )
    return min(specs, key=lambda named: abs(_n_params(named[1]) - _n_params(model)))


def _n_params(model: ModelSpec) -> int:
    return model.embedding_params + sum(model.block_params) + model.head_params - model.tied_params


def _row_times(curve: _Curve, timed: ModelSpec, model: ModelSpec, at: At) -> tuple[RowTimes, ...]:
    rows_and_ms = [(rows, _every_unit(times, timed, rows, at)) for rows, times in curve.items()]
    if timed is not model:
        rows_and_ms = [(rows, _scaled(ms, timed, model)) for rows, ms in rows_and_ms]
    return tuple(RowTimes(rows, tuple(map(_us, ms))) for rows, ms in rows_and_ms)


def _every_unit(times: _PerUnit, model: ModelSpec, rows: int, at: At) -> tuple[float, ...]:
    """A single number is that of every block.  The head takes as long for its parameters as the
    blocks for theirs; the embedding is a lookup and takes nothing."""
    if isinstance(times, tuple):
        if len(times) != model.n_units:
            raise at.error(
                f"expected {model.n_units} numbers for the units of {model.name}, got {len(times)}"
                f" (for {rows} rows)"
            )
        return times
    head = times * model.head_params / _mean(model.block_params)
    return (0.0, *(times,) * model.n_blocks, head)


def _scaled(ms: tuple[float, ...], timed: ModelSpec, model: ModelSpec) -> tuple[float, ...]:
    """Blocks and head by their parameters; the embedding, which reads one row, by its width."""
    per_param = _mean(ms[1:-1]) / _mean(timed.block_params)
    return (
        ms[0] * model.hidden_size / timed.hidden_size,
        *(per_param * params for params in model.block_params),
        ms[-1] * model.head_params / timed.head_params,
    )


def _mean(numbers: tuple[float, ...]) -> float:
    return sum(numbers) / len(numbers)


def _us(ms: float) -> int:
    return max(1, min(US_MAX, round(ms * 1000))) if ms > 0 else 0
