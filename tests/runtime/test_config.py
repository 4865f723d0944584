"""What the operator says is read once, and what cannot be is said in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeshard_p2p.config import ConfigError, PeerConfig, parse_address, parse_size, peer_config
from edgeshard_p2p.core.messages import Address

EVERYTHING = """
listen = "127.0.0.1:8000"
advertise = "10.0.0.7"
join = ["a:1", "b"]
mdns = false
name = "kitchen"
swarm = "home"
secret-file = "~/secret"
model = "tiny"
source = false
memory = "1.5GiB"
device = "cpu"
state-dir = "~/state"
min-members = 3
dtype = "bf16"
numerics = "fast"
context = 512
batch = 2
objective = "latency"
first-layer = "embedding"
"""


def _file(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "peer.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def _error(flags: dict[str, Any], file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        peer_config(flags, file)
    return str(caught.value)


def test_nothing_is_needed() -> None:
    assert peer_config({}, None) == PeerConfig(Address("127.0.0.1", 7911))


def test_a_file_may_hold_everything(tmp_path: Path) -> None:
    assert peer_config({}, _file(tmp_path, EVERYTHING)) == PeerConfig(
        listen=Address("127.0.0.1", 8000),
        advertise="10.0.0.7",
        join=(Address("a", 1), Address("b", 7911)),
        mdns=False,
        name="kitchen",
        swarm="home",
        secret_file=Path.home() / "secret",
        model="tiny",
        source=False,
        memory_bytes=3 * 2**29,
        state_dir=Path.home() / "state",
        min_members=3,
        settings={
            "dtype": "bf16",
            "numerics": "fast",
            "context": 512,
            "batch": 2,
            "objective": "latency",
            "first_layer": "embedding",
        },
    )


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = _file(tmp_path, 'name = "file"\nswarm = "file"\nbatch = 2\n')
    config = peer_config({"name": "flag", "batch": 3, "join": ("a:1",)}, file)
    assert (config.name, config.swarm, config.settings) == ("flag", "file", {"batch": 3})
    assert config.join == (Address("a", 1),)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ("settings = {}", "unknown key 'settings'"),
        ("memory_bytes = 5", "unknown key 'memory_bytes'"),
        ("listen = 5", "--listen 5 is not possible"),
        ('join = "a:1"', "--join 'a:1' is not possible"),
        ('mdns = "yes"', "--mdns 'yes' is not possible"),
        ('min-members = "3"', "--min-members '3' is not possible"),
        ("secret-file = 3", "--secret-file 3 is not possible"),
        ("memory = 1.5", "--memory 1.5 is not possible"),
        ("name = true", "--name True is not possible"),
        ('context = "much"', "--context much is not possible"),
        ("context = true", "--context True is not possible"),
        ("first-layer = 3", "--first-layer 3 is not possible"),
        ("listen =", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_is_said(text: str | bytes, why: str, tmp_path: Path) -> None:
    assert why in _error({}, _file(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert _error({}, tmp_path / "none.toml") == (
        f"cannot read {tmp_path / 'none.toml'}: No such file or directory"
    )
    assert "cannot read" in _error({}, tmp_path)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"name": "my peer"}, "--name 'my peer' is not possible; use up to 63 letters"),
        ({"name": "x" * 64}, "use up to 63 letters"),
        ({"name": ""}, "use up to 63 letters"),
        ({"context": 0}, "--context 0 is not possible"),
        ({"batch": -1}, "--batch -1 is not possible"),
        ({"objective": "beauty"}, "--objective beauty is not possible"),
        ({"micro_batch": -1}, "--micro-batch -1 is not possible"),
        ({"advertise": "10.0.0.7:7911"}, "is not a host"),
        ({"memory": "lots"}, "'lots' is not a size; write for instance 900MiB"),
        ({"memory": "5000TiB"}, "more than any device has"),
        ({"listen": "127.0.0.1:port"}, "is not HOST:PORT"),
        ({"listen": "9710"}, "for this port write :9710"),
        ({"join": ("a b:1",)}, "'a b:1' is not HOST:PORT"),
    ],
)
def test_a_flag_that_cannot_be_is_said(flags: dict[str, Any], why: str) -> None:
    assert why in _error(flags)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", Address("10.0.0.1", 7911)),
        ("10.0.0.1:80", Address("10.0.0.1", 80)),
        (":80", Address("127.0.0.1", 80)),
        ("localhost:80", Address("127.0.0.1", 80)),
        ("pi-4.local:65534", Address("pi-4.local", 65534)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["a:0", "a:65535", "a:-1", "a:1.5", "a:", "a b:1", "a/b:1", "*:1", "é:1", "a:²", "tcp://a:1"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("0", 0), ("1024", 1024), ("1k", 1024), ("900MiB", 900 * 2**20), (" 1.5 GB ", 3 * 2**29)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1.MiB", "1XiB", "1e9", "9" * 400, "9" * 15 + "T"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)
