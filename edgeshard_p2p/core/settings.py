"""The settings that belong to the whole swarm, and what values they may have."""

from __future__ import annotations

from collections.abc import Callable

from edgeshard_p2p.core.model_spec import DTYPE_BYTES, ModelSpec
from edgeshard_p2p.core.pin import parse_pin
from edgeshard_p2p.core.plan import OBJECTIVES
from edgeshard_p2p.core.schedule import SCHEDULES

SettingValue = ModelSpec | str | int

EXPLICIT_CONFLICTS = ("model", "dtype", "numerics")
"""A newcomer whose flag contradicts the swarm in one of these does not join."""

LIFTED: dict[str, SettingValue] = {"pin": ""}
"""What may be set for a time, and how it is lifted."""


def _one_of(*choices: str) -> Callable[[SettingValue], bool]:
    return lambda value: value in choices


def _between(low: int, high: int) -> Callable[[SettingValue], bool]:
    return lambda value: isinstance(value, int) and low <= value <= high


def _is_pin(value: SettingValue) -> bool:
    """The empty text lifts a pin."""
    return isinstance(value, str) and (not value or parse_pin(value) is not None)


_VALID: dict[str, Callable[[SettingValue], bool]] = {
    "model": lambda value: isinstance(value, ModelSpec),
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
    "pin": _is_pin,
}


def is_valid(key: str, value: SettingValue) -> bool:
    """False for unknown keys and impossible values: they are not believed."""
    check = _VALID.get(key)
    return check is not None and check(value)


def why_invalid(key: str, value: SettingValue) -> str:
    """Of what ``is_valid`` refuses."""
    if key not in _VALID:
        return f"{key} is no setting of the swarm; there are {', '.join(sorted(_VALID))}"
    if key == "pin":
        return (
            f"{key}={value} is no pin; write NAME:0-11,NAME:11-32, half-open ranges of units that "
            "follow each other from 0 to the last, first the source's (several: A+B:0-2)"
        )
    return f"{key}={describe(value)} is not a setting of the swarm that can be"


def describe(value: SettingValue) -> str:
    """A setting's value in words."""
    return f"{value.name} ({value.digest[:12]})" if isinstance(value, ModelSpec) else str(value)


def is_same(a: SettingValue, b: SettingValue) -> bool:
    """Models are the same by their files, whatever they are called."""
    if isinstance(a, ModelSpec) and isinstance(b, ModelSpec):
        return a.digest == b.digest
    return a == b
