"""Devices of a topology file that this machine stands in for: each a peer in a network namespace of
its own, with its share of the machine's time and with its links' rates and delays."""

from __future__ import annotations

import os

import psutil

from edgeshard_p2p.core.plan import Link
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.local import bare_mib
from edgeshard_p2p.faults.scenario import (
    ExpectEntry,
    FaultScenario,
    PeerEntry,
    RequestEntry,
    SwarmEntry,
)
from edgeshard_p2p.tables import At
from edgeshard_p2p.topology import Topology

DEVICES_MAX = 8
"""More belong into the simulator: they would take turns rather than work at the same time."""
SPARE_CORES = 0.4
"""What the switch and whoever asks take."""
_MIB = 2**20


def scenario_of(topology: Topology, flags: list[str]) -> FaultScenario:
    """Raises TopologyError where a class does not say its ``cores``."""
    peers = []
    for member in topology.members:
        cores = topology.classes[member.class_name].cores
        if cores is None:
            at = At(topology.file) / "class" / member.class_name / "cores"
            raise at.error("expected, to emulate it: its share of this machine's cores")
        layers_mib = max(1, member.memory_bytes // _MIB)
        is_source = member.name in topology.sources
        peers.append(PeerEntry(member.name, is_source, layers_mib, cores=cores))
    return FaultScenario(
        topology.name,
        "",
        SwarmEntry(flags=flags),
        tuple(peers),
        RequestEntry(generate=1),
        (),
        ExpectEntry(),
    )


def links_of(topology: Topology) -> dict[tuple[str, str], Link]:
    """By ordered pair of names."""
    return {(link.a, link.b): link for link in topology.all_links()}


def check_number(n_devices: int) -> None:
    """Raises FaultError."""
    if n_devices > DEVICES_MAX:
        raise FaultError(
            f"{n_devices} devices are too many to emulate, {DEVICES_MAX} at most; "
            "`edgeshard simulate` takes more"
        )


def check_fits(scenario: FaultScenario, model: str) -> None:
    """Whether this machine can stand in for all of them at once.  Raises FaultError."""
    peers = scenario.peers
    check_number(len(peers))
    wanted, have = sum(peer.cores or 0.0 for peer in peers), os.cpu_count() or 1
    if wanted > have - SPARE_CORES:
        raise FaultError(
            f"the devices want {wanted:g} cores, this machine has {have - SPARE_CORES:g} of {have} "
            f"to give: {wanted - have + SPARE_CORES:.2g} are missing"
        )
    need = (sum(peer.layers_mib or 0 for peer in peers) + len(peers) * bare_mib(model)) * _MIB
    available = psutil.virtual_memory().available
    if need > available:
        raise FaultError(
            f"the devices want {need / 2**30:.1f} GiB, this machine has {available / 2**30:.1f} "
            f"to give: {(need - available) / 2**30:.1f} GiB are missing"
        )
