"""What values the swarm's settings may have."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.settings import SettingValue, describe, is_same, is_valid, why_at_odds
from tests.core.parts import MODEL


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model", MODEL, True),
        ("model", "llama", False),
        ("dtype", "bf16", True),
        ("dtype", "fp16", False),
        ("numerics", "fast", True),
        ("numerics", 1, False),
        ("context", 1, True),
        ("context", 0, False),
        ("context", 2**24 + 1, False),
        ("batch", 4096, True),
        ("batch", 4097, False),
        ("batch", "4", False),
        ("first_layer", "embedding", True),
        ("first_layer", "head", False),
        ("objective", "latency", True),
        ("objective", "throughput", True),
        ("objective", "beauty", False),
        ("micro_batch", 0, True),
        ("micro_batch", 4097, False),
        ("schedule", "bubbles", True),
        ("schedule", "none", False),
        ("prompt", 64, True),
        ("prompt", -1, False),
        ("generate", 64, True),
        ("pin", "a:0-2,b:2-6", True),
        ("pin", "", True),
        ("pin", "a:0-2,b:3-6", False),
        ("pin", 8, False),
        ("no_such_setting", 1, False),
    ],
)
def test_values(key: str, value: SettingValue, expected: bool) -> None:
    assert is_valid(key, value) is expected


def test_models_are_the_same_by_their_files() -> None:
    assert is_same(MODEL, replace(MODEL, name="other name"))
    assert not is_same(MODEL, replace(MODEL, digest="1" * 64))
    assert not is_same(MODEL, "tiny")
    assert describe(MODEL) == "tiny (000000000000)"
    assert describe(7) == "7"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"batch": 8, "micro_batch": 8}, ""),
        ({"batch": 8, "micro_batch": 9}, "9 rows to a pass cannot be: batch is 8"),
        ({"batch": None, "micro_batch": 9}, ""),
        ({"pin": "a:0-2,b:2-6", "model": MODEL}, ""),
        ({"pin": "a:0-2,b:2-7", "model": None}, ""),
        ({"pin": "", "model": MODEL}, ""),
        (
            {"pin": "a:0-2,b:2-7", "model": MODEL},
            "pin=a:0-2,b:2-7 cannot be: it ends at unit 7, the model has 6",
        ),
        ({"pin": "a:0-5", "model": MODEL}, "it ends at unit 5, the model has 6"),
    ],
)
def test_settings_that_cannot_be_together(
    settings: dict[str, SettingValue | None], why: str
) -> None:
    said = why_at_odds(settings)
    assert why in said
    assert bool(said) == bool(why)
