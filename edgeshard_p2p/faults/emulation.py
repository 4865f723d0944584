"""Devices of a topology file that this machine stands in for: each a peer with its share of the
machine's time and memory, and with its links' rates and delays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgeshard_p2p.control_groups import memory_left, usable_cores
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.local import LocalDevices
from edgeshard_p2p.faults.machine import bare_mib, model_path
from edgeshard_p2p.faults.namespaces import why_not
from edgeshard_p2p.faults.scenario import (
    ExpectEntry,
    FaultScenario,
    RequestEntry,
    SwarmEntry,
    links_of,
    peers_of,
)
from edgeshard_p2p.faults.swarm import FaultSwarm, Say
from edgeshard_p2p.topology import Topology

DEVICES_MAX = 8
"""More belong into the simulator: they would take turns rather than work at the same time."""
SPARE_CORES = 0.4
"""What the switch and whoever asks take."""
_MIB = 2**20


def scenario_of(topology: Topology, flags: list[str]) -> FaultScenario:
    """Raises TopologyError where a class does not say its ``cores``."""
    return FaultScenario(
        topology.name,
        "",
        SwarmEntry(flags=flags),
        peers_of(topology),
        RequestEntry(generate=1),
        (),
        ExpectEntry(),
        links_of(topology),
    )


def must_shape(is_wanted: bool, say: Say) -> bool:
    """Whether peers emulate their links themselves: wanted, or the only way here."""
    missing = why_not()
    if missing and not is_wanted:
        say(f"network namespaces need {missing}; without them each peer emulates its links itself")
    return is_wanted or bool(missing)


@dataclass(frozen=True, slots=True)
class Emulated:
    """Devices that serve."""

    topology: Topology
    scenario: FaultScenario
    devices: LocalDevices

    @property
    def sources(self) -> list[str]:
        return list(self.topology.sources)

    def told(self) -> dict[str, str]:
        """What stands in for what, for every report of figures that come from here."""
        return {"topology": self.topology.name, **self.devices.limits()}


def devices_of(
    scenario: FaultScenario, model: str, logs: Path | None, is_shaped: bool, say: Say
) -> LocalDevices:
    """Of a scenario with links, where this machine can stand in for them.  Raises FaultError."""
    check_cores(scenario)  # Before a model is fetched.
    path = model_path(model, say)
    check_memory(scenario, path)
    is_shaped = must_shape(is_shaped, say)
    return LocalDevices(scenario, path, logs, scenario.links, is_shaped=is_shaped)


@contextmanager
def emulated(
    topology: Topology,
    model: str,
    flags: list[str],
    logs: Path | None,
    is_shaped: bool,
    say: Say,
) -> Iterator[Emulated]:
    """A peer for each device of the file, once they serve; all are gone afterwards.  ``is_shaped``:
    the peers emulate their links themselves, as they do where no namespaces can be made.  Raises
    FaultError, and TopologyError where the file says too little for it."""
    scenario = scenario_of(topology, flags)
    devices = devices_of(scenario, model, logs, is_shaped, say)
    say(
        f"starting {len(scenario.peers)} devices; one of each kind measures itself first, which "
        "takes the longer the smaller its share of this machine: up to a minute each"
    )
    with devices:
        FaultSwarm(scenario, devices, say).wait_until_serving()
        found = Emulated(topology, scenario, devices)
        say("; ".join(f"{what}: {how}" for what, how in found.told().items()))
        yield found
        if devices.why_ended():
            raise FaultError(devices.why_ended())


def check_number(n_devices: int) -> None:
    """Raises FaultError."""
    if n_devices > DEVICES_MAX:
        raise FaultError(
            f"{n_devices} devices are too many to emulate, {DEVICES_MAX} at most; "
            "`edgeshard simulate` takes more"
        )


def check_fits(scenario: FaultScenario, model: str) -> None:
    """Whether this machine can stand in for all of them at once.  Raises FaultError."""
    check_cores(scenario)
    check_memory(scenario, model)


def check_cores(scenario: FaultScenario) -> None:
    """Whether this process may use as many processors as all of them have.  Raises FaultError."""
    check_number(len(scenario.peers))
    wanted, have = sum(peer.cores or 0.0 for peer in scenario.peers), usable_cores()
    free = max(0.0, have - SPARE_CORES)
    if wanted > free:
        raise FaultError(
            f"the devices want {wanted:g} cores, this process may use {have:g} and has {free:g} of "
            f"them to give: {wanted - free:.2g} are missing"
        )


def check_memory(scenario: FaultScenario, model: str) -> None:
    """Whether there is as much memory as all of them may use.  Raises FaultError."""
    peers = scenario.peers
    need = (sum(peer.layers_mib or 0 for peer in peers) + len(peers) * bare_mib(model)) * _MIB
    available = min(psutil.virtual_memory().available, memory_left())
    if need > available:
        raise FaultError(
            f"the devices want {need / 2**30:.1f} GiB, this machine has {available / 2**30:.1f} "
            f"to give: {(need - available) / 2**30:.1f} GiB are missing"
        )
