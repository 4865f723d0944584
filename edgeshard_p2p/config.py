"""What the operator wants, from flags and a TOML file: one frozen object, validated once."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgeshard_p2p.core.ids import Name
from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.settings import is_valid, why_at_odds

DEFAULT_PORT = 7911
DEFAULT_LISTEN = f"127.0.0.1:{DEFAULT_PORT}"
SETTING_FLAGS = (
    "dtype",
    "numerics",
    "context",
    "batch",
    "micro_batch",
    "objective",
    "schedule",
    "prompt",
    "generate",
    "first_layer",
)
"""Flags that seed settings of the swarm under the same key; ``model`` needs opening first."""

MEMORY_MAX = 2**48
"""Of one peer, in bytes."""

_KEYS: dict[str, Any] = {
    "listen": str,
    "advertise": str,
    "join": list[str],
    "mdns": bool,
    "name": Name,
    "swarm": str,
    "secret_file": str,
    "model": str,
    "source": bool,
    "memory": str | int,
    "device": str,
    "state_dir": str,
    "min_members": int,
    "standby": bool,
    "shape": str,
    **dict.fromkeys(SETTING_FLAGS, str | int),
}
"""What a flag or a key of the file may hold."""

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]")
_SIZE = re.compile(r"^(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)(i?B?)$", re.IGNORECASE)
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
    standby: bool = False
    shape: Path | None = None
    """Of emulated links, what they take."""
    settings: dict[str, str | int] = field(default_factory=dict)
    """Settings of the swarm that were given explicitly, by key."""


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """``HOST``, ``HOST:PORT`` or ``:PORT``.  Raises ConfigError."""
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(default_port))
    if text.isdecimal():
        raise ConfigError(f"{text!r} is not HOST:PORT; for this port write :{text}")
    host = host or "127.0.0.1"
    if not port.isdecimal() or not 1 <= int(port) <= 65534 or not _HOST.fullmatch(host):
        raise ConfigError(f"{text!r} is not HOST:PORT with a port from 1 to 65534")
    return Address("127.0.0.1" if host == "localhost" else host, int(port))


def parse_size(text: str) -> int:
    """``900MiB``, ``1.5G`` or plain bytes; units are powers of 1024.  Raises ConfigError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size; write for instance 900MiB or 4GiB")
    n_bytes = int(float(match[1]) * _UNITS[match[2].upper()])
    if n_bytes > MEMORY_MAX:
        raise ConfigError(f"{text!r} is more than any device has; write for instance 4GiB")
    return n_bytes


def peer_config(flags: dict[str, Any], file: Path | None) -> PeerConfig:
    """Flags over file over defaults.  ``flags`` holds only what was given."""
    values = {**(_read_toml(file) if file is not None else {}), **flags}
    for key, value in values.items():
        values[key] = _checked(key, value, file)
    settings = {key: values.pop(key) for key in SETTING_FLAGS if key in values}
    for key, value in settings.items():
        if not is_valid(key, value):
            raise ConfigError(f"--{key.replace('_', '-')} {value} is not possible")
    if why := why_at_odds(settings):
        raise ConfigError(why)
    if "memory" in values:
        values["memory_bytes"] = parse_size(str(values.pop("memory")))
    values["listen"] = parse_address(values.get("listen", DEFAULT_LISTEN))
    values["join"] = tuple(parse_address(text) for text in values.get("join", ()))
    if values.get("device", "cpu") != "cpu":
        raise ConfigError(
            f"--device {values['device']} is not built yet; this release computes on cpu"
        )
    if not _HOST.fullmatch(values.get("advertise", "host")):
        raise ConfigError(f"--advertise {values['advertise']!r} is not a host")
    for key in ("secret_file", "state_dir", "shape"):
        if values.get(key) is not None:
            values[key] = Path(values[key]).expanduser()
    return PeerConfig(settings=settings, **values)


def _checked(key: str, value: Any, file: Path | None) -> Any:
    """Flags have been checked for their type already; what else can be wrong is said as of the
    file."""
    if key not in _KEYS:
        where = f"{file}: " if file is not None else ""
        raise ConfigError(f"{where}unknown key {key!r}; known: {', '.join(_KEYS)}")
    try:
        return msgspec.convert(value, _KEYS[key])
    except msgspec.ValidationError as error:
        name = f"--{key.replace('_', '-')}"
        if key == "name":
            raise ConfigError(
                f"{name} {value!r} is not possible; use up to 63 letters, digits, '.', '_' or '-'"
            ) from error
        raise ConfigError(f"{name} {value!r} is not possible: {error}") from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        loaded = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    return {key.replace("-", "_"): value for key, value in loaded.items()}
