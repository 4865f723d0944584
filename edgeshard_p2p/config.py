"""What the operator wants, from flags and a TOML file: one frozen object, validated once."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.settings import is_valid

DEFAULT_PORT = 7911
DEFAULT_LISTEN = f"127.0.0.1:{DEFAULT_PORT}"
SETTING_FLAGS = ("dtype", "numerics", "context", "batch", "objective", "first_layer")
"""Flags that seed settings of the swarm under the same key; ``model`` needs opening first."""

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B?)$", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class ConfigError(Exception):
    """The operator's: a flag or a key that cannot be."""


@dataclass(frozen=True, slots=True)
class PeerConfig:
    listen: Address
    advertise: str | None = None
    join: tuple[Address, ...] = ()
    mdns: bool = True
    name: str | None = None
    swarm: str = "default"
    secret_file: Path | None = None
    model: str | None = None
    source: bool = True
    memory_bytes: int | None = None
    device: str = "cpu"
    state_dir: Path | None = None
    min_members: int = 1
    settings: dict[str, str | int] = field(default_factory=dict)
    """Settings of the swarm that were given explicitly, by key."""


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """``HOST``, ``HOST:PORT`` or ``:PORT``.  Raises ConfigError."""
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(default_port))
    host = host or "127.0.0.1"
    if not port.isdigit() or not 1 <= int(port) <= 65534:
        raise ConfigError(f"{text!r} is not HOST:PORT with a port from 1 to 65534")
    return Address("127.0.0.1" if host == "localhost" else host, int(port))


def parse_size(text: str) -> int:
    """``900MiB``, ``1.5G`` or plain bytes; units are powers of 1024.  Raises ConfigError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size; write for instance 900MiB or 4GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def peer_config(flags: dict[str, Any], file: Path | None) -> PeerConfig:
    """Flags over file over defaults.  ``flags`` holds only what was given."""
    values = {**(_read_toml(file) if file is not None else {}), **flags}
    settings = {key: values.pop(key) for key in SETTING_FLAGS if key in values}
    for key, value in settings.items():
        if not is_valid(key, value):
            raise ConfigError(_why_invalid(key, value))
    known = {f.name for f in fields(PeerConfig)} | {"memory"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{file}: unknown key {unknown[0]!r}")
    if "memory" in values:
        values["memory_bytes"] = parse_size(str(values.pop("memory")))
    values["listen"] = parse_address(values.get("listen", DEFAULT_LISTEN))
    values["join"] = tuple(parse_address(text) for text in values.get("join", ()))
    for key in ("secret_file", "state_dir"):
        if values.get(key) is not None:
            values[key] = Path(values[key]).expanduser()
    return PeerConfig(settings=settings, **values)


def _why_invalid(key: str, value: object) -> str:
    if key == "objective" and value == "throughput":
        return "--objective throughput is not built yet; this release plans for latency"
    return f"--{key.replace('_', '-')} {value} is not possible"


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        loaded = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
    return {key.replace("-", "_"): value for key, value in loaded.items()}
