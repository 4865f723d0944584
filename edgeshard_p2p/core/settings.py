"""The settings that belong to the whole swarm, and what values they may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from edgeshard_p2p.core.model_spec import DTYPE_BYTES, ModelSpec
from edgeshard_p2p.core.pin import parse_pin
from edgeshard_p2p.core.plan import OBJECTIVES
from edgeshard_p2p.core.schedule import SCHEDULES

SettingValue = ModelSpec | str | int

EXPLICIT_CONFLICTS = ("model", "dtype", "numerics")
"""A newcomer whose flag contradicts the swarm in one of these does not join."""

LIFTED: dict[str, SettingValue] = {"pin": ""}
"""What may be set for a time, and how it is lifted."""


class _Kind(Struct, frozen=True):
    """What values a setting may have, and that in words."""

    takes: Callable[[SettingValue], bool]
    expected: str


def _one_of(*choices: str) -> _Kind:
    return _Kind(lambda value: value in choices, " or ".join(choices))


def _between(low: int, high: int) -> _Kind:
    return _Kind(
        lambda value: isinstance(value, int) and low <= value <= high,
        f"a whole number from {low} to {high}",
    )


def _is_pin(value: SettingValue) -> bool:
    """The empty text lifts a pin."""
    return isinstance(value, str) and (not value or parse_pin(value) is not None)


_KINDS = {
    "model": _Kind(lambda value: isinstance(value, ModelSpec), "set by `edgeshard peer --model`"),
    "dtype": _one_of(*DTYPE_BYTES),
    "numerics": _one_of("exact", "fast"),
    "objective": _one_of(*OBJECTIVES),
    "context": _between(1, 2**24),
    "batch": _between(1, 4096),
    "micro_batch": _between(0, 4096),
    "schedule": _one_of(*SCHEDULES),
    "prompt": _between(0, 2**24),
    "generate": _between(0, 2**16),
    "first_layer": _one_of("block", "embedding"),
    "pin": _Kind(
        _is_pin,
        "NAME:0-11,NAME:11-32, half-open ranges of units that follow each other from 0 to the "
        "last, first the source's (several: A+B:0-2)",
    ),
}


def is_valid(key: str, value: SettingValue) -> bool:
    """False for unknown keys and impossible values: they are not believed."""
    kind = _KINDS.get(key)
    return kind is not None and kind.takes(value)


def why_invalid(key: str, value: SettingValue) -> str:
    """Of what ``is_valid`` refuses."""
    kind = _KINDS.get(key)
    if kind is None:
        return f"{key} is no setting of the swarm; there are {', '.join(sorted(_KINDS))}"
    return f"{key}={describe(value)} cannot be; expected {kind.expected}"


def why_at_odds(settings: Mapping[str, SettingValue | None]) -> str:
    """Why these cannot all be, each of which could; empty: they can."""
    batch, rows, model = (settings.get(key) for key in ("batch", "micro_batch", "model"))
    if isinstance(batch, int) and isinstance(rows, int) and rows > batch:
        return f"{rows} rows to a pass cannot be: batch is {batch}"
    text = settings.get("pin")
    pin = parse_pin(text) if isinstance(text, str) else None
    if pin is not None and isinstance(model, ModelSpec) and pin.end != model.n_units:
        return f"pin={pin} cannot be: it ends at unit {pin.end}, the model has {model.n_units}"
    return ""


def describe(value: SettingValue) -> str:
    """A setting's value in words."""
    return f"{value.name} ({value.digest[:12]})" if isinstance(value, ModelSpec) else str(value)


def is_same(a: SettingValue, b: SettingValue) -> bool:
    """Models are the same by their files, whatever they are called."""
    if isinstance(a, ModelSpec) and isinstance(b, ModelSpec):
        return a.digest == b.digest
    return a == b
