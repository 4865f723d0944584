"""Options of the commands that have this machine stand in for devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct

from edgeshard_p2p.cli.common import USAGE
from edgeshard_p2p.config import ConfigError, peer_config

if TYPE_CHECKING:
    from edgeshard_p2p.faults.emulation import Emulated


class Emulation(Struct, frozen=True):
    """What ``emulation_options`` say."""

    model: str | None
    """None: the demo's."""
    flags: tuple[str, ...]
    logs: Path | None
    shaper: bool


def emulation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--model, --flag, --logs, --shaper: of the emulated devices' peers."""
    options = [
        click.option("--model", metavar="NAME|PATH",
                     help="Of the emulated devices.  [default: the demo's]"),
        click.option("--flag", "flags", multiple=True, metavar="FLAG=VALUE",
                     help="For every emulated peer, as batch=8 for --batch 8.  May be repeated."),
        click.option("--logs", type=click.Path(path_type=Path), metavar="DIR",
                     help="Keep the emulated peers' logs."),
        click.option("--shaper", is_flag=True,
                     help="Each emulated peer holds up what it sends, in place of namespaces and a "
                     "switch between them; needs no root, and is so anyway without."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@contextmanager
def devices_of(topology: Path, wanted: Emulation, say: Callable[[str], None]) -> Iterator[Emulated]:
    """As emulated for as long as this lasts.  Raises FaultError and TopologyError."""
    from edgeshard_p2p.faults.emulation import emulated
    from edgeshard_p2p.model.library import DEMO_NAME
    from edgeshard_p2p.topology import read_topology

    flags = _as_flags(wanted.flags)
    read, model = read_topology(topology), wanted.model or DEMO_NAME
    with emulated(read, model, flags, wanted.logs, wanted.shaper, say) as found:
        yield found


def _as_flags(pairs: Sequence[str]) -> list[str]:
    """As `edgeshard peer` takes them, which itself would refuse others only when it is started."""
    from edgeshard_p2p.faults.devices import FaultError

    flags = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise FaultError(f"--flag {pair!r} is not FLAG=VALUE", USAGE)
        number = value.removeprefix("-").isdecimal()
        try:
            peer_config({key.replace("-", "_"): int(value) if number else value}, None)
        except ConfigError as error:
            raise FaultError(f"--flag {pair!r}: {error}", USAGE) from None
        flags += [f"--{key}", value]
    return flags
