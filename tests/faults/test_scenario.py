"""Scenario files: what may stand in one, and the one line that says what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeshard_p2p.faults.scenario import Step, TopologyError, read_scenario
from tests.topologies import topology_text

SHIPPED = sorted((Path(__file__).parents[2] / "scripts" / "faults").glob("*.toml"))
PEERS = '[[peer]]\nname = "a"\nsource = true\n[[peer]]\nname = "b"\n'
KILL = 'do = "kill"\nwho = "b"\n'


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_are_scenarios(path: Path) -> None:
    read = read_scenario(path)
    assert read.steps
    assert read.wants_namespaces is (path.stem == "partition")


def written(directory: Path, text: str) -> Path:
    path = directory / "x.toml"
    path.write_text(text)
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    steps = (
        '[[step]]\nat = {token = 3}\ndo = "kill"\nwho = ["stage 2", "b"]\n'
        '[[step]]\nat = {after_s = 1.5}\ndo = "slow"\nwho = "spare"\nby = 8\n'
        '[[step]]\nat = {when = "loading"}\ndo = "heal"\n'
    )
    read = read_scenario(written(tmp_path, '[swarm]\npin = "a:0-2,b:2-8"\n' + PEERS + steps))
    assert read.steps == (
        Step("kill", ("stage 2", "b"), token=3),
        Step("slow", ("spare",), after_s=1.5, by=8),
        Step("heal", when="loading"),
    )
    assert [str(step) for step in read.steps] == [
        "kill stage 2 and b",
        "slow spare by 8",
        "heal all",
    ]
    assert (read.name, read.source, read.names) == ("x", "a", ("a", "b"))
    assert read.wants_namespaces
    assert not read.is_remote


TOPOLOGY = topology_text(
    [("a", "slow", 1), ("b", "slow", 2)],
    {"slow": "cores = 0.25\nmemory_gib = 0.5"},
    "default_mbps = 8",
)
EMULATED = '[swarm]\ntopology = "devices/two.toml"\n'


def emulated(tmp_path: Path, steps: str, topology: str = TOPOLOGY) -> Path:
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "two.toml").write_text(topology)
    return written(tmp_path, EMULATED + steps)


def test_devices_of_a_topology_are_the_peers(tmp_path: Path) -> None:
    steps = (
        '[[step]]\nat = {token = 3}\ndo = "partition"\nwho = "b-1"\nway = "out"\n'
        '[[step]]\nat = {after_s = 1}\ndo = "link"\nwho = ["source", "b-2"]\nmbps = 1\n'
    )
    read = read_scenario(emulated(tmp_path, steps))
    assert read.names == ("a", "b-1", "b-2")
    assert (read.peers[1].cores, read.peers[1].layers_mib, read.source) == (0.25, 512, "a")
    assert read.links is not None
    assert read.links["b-2", "a"].bytes_per_s == 1_000_000
    assert not read.wants_namespaces
    assert [str(step) for step in read.steps] == [
        "partition b-1 out only",
        "link source and b-2 to 1 Mbit/s",
    ]


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        (PEERS, "peer: expected none: the peers are the devices of swarm.topology"),
        (
            "[[step]]\nat = {token = 1}\ndo = 'kill'\nwho = 'b'",
            'step[0].who: no peer "b" in this file; expected one of a, b-1, b-2, source',
        ),
        (
            "[[step]]\nat = {token = 1}\ndo = 'kill'\nwho = 'a'\nway = 'out'",
            "step[0].way: only a partition is one way or the other",
        ),
        (
            "[[step]]\nat = {token = 1}\ndo = 'partition'\nwho = 'a'\nway = 'up'",
            'step[0].way: expected one of both, out, in, got "up"',
        ),
        (
            "[[step]]\nat = {token = 1}\ndo = 'link'\nwho = ['a', 'b-1']",
            "step[0]: expected mbps or delay_ms with link, and with nothing else",
        ),
        (
            "[[step]]\nat = {token = 1}\ndo = 'link'\nwho = 'a'\nmbps = 1",
            "step[0].who: expected two, whose link it is",
        ),
        (
            "[[step]]\nat = {token = 1}\ndo = 'link'\nwho = ['a', 'b-1']\nmbps = nan",
            "step[0].mbps: expected a number",
        ),
    ],
)
def test_what_cannot_be_on_emulated_devices(tmp_path: Path, steps: str, complaint: str) -> None:
    path = emulated(tmp_path, steps)
    with pytest.raises(TopologyError) as caught:
        read_scenario(path)
    assert str(caught.value).startswith(f"{path}: {complaint}"), str(caught.value)


def test_topology_that_cannot_be_emulated_is_named(tmp_path: Path) -> None:
    path = emulated(tmp_path, "", TOPOLOGY.replace("cores = 0.25\n", ""))
    with pytest.raises(TopologyError, match=r"two\.toml: class\.slow\.cores: expected"):
        read_scenario(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[peer]]\nname = 'a'", "peer: expected one with source = true"),
        (PEERS + "[[peer]]\nname = 'a'", 'peer[2].name: "a" is taken'),
        (PEERS + "[[peer]]\nname = 'source'", 'peer[2].name: "source" is taken'),
        (PEERS + "[[peer]]\nname = 'c'\nmemory = 3", 'peer[2]: unknown key "memory"'),
        (PEERS + "address = 'x:99999'", "peer[1].address: 'x:99999' is not HOST:PORT"),
        (PEERS + "address = 'x:7911'", "peer: expected an address for every peer, or for none"),
        (PEERS + "[request]\nsource = 'b'", 'request.source: "b" is no source'),
        (PEERS + "[expect]\nanswer = 'fine'", "expect.answer: expected one of whole, ended"),
        (PEERS + "[swarm]\npin = 'a:0-2,c:2-4'", 'swarm.pin: no peer "c" in this file'),
        (PEERS + "[swarm]\npin = 'a:0-2,b:3-4'", "swarm.pin: expected ranges"),
        (PEERS + "[[step]]\n" + KILL, "step[0]: at is missing"),
        (PEERS + "[[step]]\nat = {}\n" + KILL, "step[0].at: expected one of token, after_s"),
        (PEERS + "[[step]]\nat = {token = 65}\n" + KILL, "step[0].at.token: only 64 tokens"),
        (PEERS + "[[step]]\nat = {when = 'loading'}\n" + KILL, "step[0].at.when: expected a fault"),
        (PEERS + "[[step]]\nat = {token = 1}\ndo = 'maim'", "step[0].do: expected one of kill, "),
        (PEERS + "[[step]]\nat = {token = 1}\ndo = 'kill'", "step[0].who: expected a peer"),
        (
            PEERS + "[[step]]\nat = {token = 1}\ndo = 'kill'\nwho = 'z'",
            'step[0].who: no peer "z" in this file; expected one of a, b, source, spare or stage N',
        ),
        (PEERS + "[[step]]\nat = {token = 1}\nby = 2\n" + KILL, "step[0].by: only slow"),
        (
            PEERS + "[[step]]\nat = {token = 1}\ndo = 'partition'\nwho = 'b'\nway = 'in'",
            "step[0]: only with swarm.topology: links that are emulated",
        ),
        (
            PEERS + "[[step]]\nat = {token = 1}\ndo = 'link'\nwho = ['a', 'b']\nmbps = 1",
            "step[0]: only with swarm.topology: links that are emulated",
        ),
        (
            "[[peer]]\nname = 'a'\nsource = true\naddress = 'h'\n"
            "[[step]]\nat = {token = 1}\ndo = 'partition'\nwho = 'a'",
            "step[0].do: peer a has no partition command to do it with",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be(tmp_path: Path, text: str, complaint: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TopologyError) as caught:
        read_scenario(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: {complaint}"), said
    assert "\n" not in said
