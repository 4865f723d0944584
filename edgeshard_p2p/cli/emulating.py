"""Options of the commands that have this machine stand in for devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from edgeshard_p2p.model.library import DEMO_NAME

USAGE = 2


def emulation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--model, --flag, --logs: of the devices' peers."""
    options = [
        click.option("--model", default=DEMO_NAME, show_default=True, metavar="NAME|PATH"),
        click.option("--flag", "flags", multiple=True, metavar="FLAG=VALUE",
                     help="For every emulated peer, as batch=8 for --batch 8.  May be repeated."),
        click.option("--logs", type=click.Path(path_type=Path), metavar="DIR",
                     help="Keep the emulated peers' logs."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def as_flags(pairs: Sequence[str]) -> list[str]:
    """As `edgeshard peer` takes them.  Raises FaultError."""
    from edgeshard_p2p.faults.devices import FaultError

    flags = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise FaultError(f"--flag {pair!r} is not FLAG=VALUE", USAGE)
        flags += [f"--{key}", value]
    return flags
