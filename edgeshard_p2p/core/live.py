"""The snapshot that the peers of a running swarm plan with, as a scenario that plans are compared
for.  Pure; knows nothing of how the snapshot got here."""

from __future__ import annotations

from edgeshard_p2p.core.plan import Device, Snapshot
from edgeshard_p2p.core.scenario import Scenario
from edgeshard_p2p.core.whatif import with_twins


class LiveError(Exception):
    """Theirs: a snapshot that does not hold together."""


def live_scenario(seen: Snapshot, excluded: dict[str, str]) -> Scenario:
    """``seen`` with what comparing plans needs: sources first, otherwise by name; no cloud; and
    what could be added is another one like each peer.  ``excluded`` says why a peer that is there
    is not in ``seen``, by name.  Raises LiveError."""
    _check(seen)
    devices = sorted(seen.devices, key=lambda device: (not device.is_source, device.peer))
    order = tuple(device.peer.name for device in devices)
    no_cloud = "a running swarm names no cloud"
    return with_twins(Scenario(seen, order, no_cloud=no_cloud, excluded=excluded))


def _check(seen: Snapshot) -> None:
    """What types cannot say, and the planner takes for granted."""
    names = [device.peer.name for device in seen.devices]
    if len(set(names)) < len(names):
        raise LiveError("a peer stands twice in it")
    if len({(link.a, link.b) for link in seen.links}) < len(seen.links):
        raise LiveError("a link stands twice in it")
    for device in seen.devices:
        if not _has_all_times(device, seen.model.n_units):
            raise LiveError(f"{device.peer} has not one time for each unit of {seen.model.name}")


def _has_all_times(device: Device, n_units: int) -> bool:
    rows = [device.unit_us, *(times.unit_us for times in (*device.decode, *device.prefill))]
    return all(len(unit_us) == n_units for unit_us in rows)
