"""Which devices this machine can stand in for."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import pytest

from edgeshard_p2p.faults import emulation
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.emulation import check_fits, check_memory, scenario_of
from edgeshard_p2p.faults.scenario import links_of
from edgeshard_p2p.topology import Topology, TopologyError, read_topology
from tests.topologies import topology_text


def topology(tmp_path: Path, count: int = 2, cores: str = "cores = 0.5") -> Topology:
    file = tmp_path / "x.toml"
    slow, quick = "cores = 0.25\nmemory_gib = 0.5", f"{cores}\nmemory_gib = 1"
    devices = [("a", "slow", 1), ("b", "quick", count)]
    text = topology_text(devices, {"slow": slow, "quick": quick}, "default_mbps = 8\ndelay_ms = 3")
    file.write_text(text)
    return read_topology(file)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two cores and 4 GiB, on which a bare peer takes 300 MiB."""
    monkeypatch.setattr(emulation, "usable_cores", lambda: 2.0)
    monkeypatch.setattr(emulation, "memory_left", lambda: math.inf)
    memory = psutil.virtual_memory()._replace(available=4 * 2**30)
    monkeypatch.setattr(emulation.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(emulation, "bare_mib", lambda model: 300)


def test_devices_have_what_the_file_says(tmp_path: Path) -> None:
    found = topology(tmp_path)
    scenario = scenario_of(found, ["--batch", "8"])
    told = [(peer.name, peer.source, peer.layers_mib, peer.cores) for peer in scenario.peers]
    assert told == [("a", True, 512, 0.25), ("b-1", False, 1024, 0.5), ("b-2", False, 1024, 0.5)]
    assert scenario.swarm.flags == ["--batch", "8"]
    links = links_of(found)
    assert len(links) == 6
    assert (links["a", "b-2"].bytes_per_s, links["a", "b-2"].delay_us) == (1_000_000, 3000)
    check_fits(scenario, "model")


def test_class_without_its_share_of_the_machine_is_named(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"x\.toml: class\.quick\.cores: expected, to emulate"):
        scenario_of(topology(tmp_path, cores=""), [])


@pytest.mark.parametrize(
    ("count", "cores", "why"),
    [
        (8, "cores = 0.1", "9 devices are too many to emulate, 8 at most"),
        (
            3,
            "cores = 0.5",
            r"want 1.75 cores, this process may use 2 and has 1.6 of them .*: 0.15 are missing",
        ),
        (4, "cores = 0.1", r"want 6.0 GiB, this machine has 4.0 to give: 2.0 GiB are missing"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, count: int, cores: str, why: str) -> None:
    scenario = scenario_of(topology(tmp_path, count, cores), [])

    with pytest.raises(FaultError, match=why):
        check_fits(scenario, "model")


def test_what_the_group_of_this_process_leaves_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation, "memory_left", lambda: 2.0**30)
    with pytest.raises(FaultError, match=r"this machine has 1.0 to give"):
        check_memory(scenario_of(topology(tmp_path), []), "model")
