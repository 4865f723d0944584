"""Peers that emulate their links themselves, as anybody may without root."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import BLOCK_MIB, N_BLOCKS
from tests.e2e.swarm import Machine, Swarm, eventually, free_port

SHOWS_BYTES = 2**17
"""The probe that a link of this rate is settled by."""
MBPS, DELAY_MS = 20, 15


def shape(directory: Path, name: str, port: int) -> Path:
    path = directory / f"{name}.toml"
    path.write_text(f'[[link]]\nto = "127.0.0.1:{port}"\nmbps = {MBPS}\ndelay_ms = {DELAY_MS}\n')
    return path


def test_link_is_measured_as_slow_as_it_was_made_and_answers_pass_it(
    machine: Machine, tmp_path: Path
) -> None:
    room = BLOCK_MIB * (N_BLOCKS // 2 + 2)
    with Swarm(machine, tmp_path) as swarm:
        ports = {"amy": free_port(), "ben": free_port()}
        to_amy, to_ben = (shape(tmp_path, name, port) for name, port in ports.items())
        amy = swarm.start("amy", "--shape", to_ben, port=ports["amy"], layers_mib=room)
        swarm.start("ben", "--no-source", "--shape", to_amy, port=ports["ben"], layers_mib=room)
        swarm.serving_plan("amy", "ben")
        links = eventually(lambda: amy.status()["links"], swarm.story)
        for link in links:
            assert link["round_trip_us"] >= 2 * DELAY_MS * 1e3 - 2
            # What a probe of the size that shows took, with the answer: no less than the formula.
            took_us = link["round_trip_us"] + SHOWS_BYTES * 1e6 / link["bytes_per_s"]
            assert took_us >= 2 * DELAY_MS * 1e3 + SHOWS_BYTES * 8 / MBPS - 10, link
        answer = amy.run("hello", "--max-tokens", 3)
        assert len(answer["token_ids"]) == 3
        report = amy.status()
        assert report["shaping"]["links"] == 1
        assert report["shaping"]["bytes"] > SHOWS_BYTES
        said = machine.edgeshard("status", *amy.client_flags()).stdout
        assert "1 of its links are emulated (--shape)" in said


def test_shape_that_cannot_be_is_said_in_one_line(machine: Machine, tmp_path: Path) -> None:
    done = machine.edgeshard("peer", "--shape", tmp_path / "none.toml", "--no-mdns")
    assert done.exit_code == 2
    assert done.complaint == f"{tmp_path / 'none.toml'}: cannot be read: No such file or directory"
