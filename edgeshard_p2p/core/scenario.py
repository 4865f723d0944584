"""A snapshot, and what comparing plans for it needs beside it: the order of the file, which
device is the cloud, what could be added.  Pure; who reads topology files, or asks a running swarm,
builds it."""

from __future__ import annotations

from msgspec import Struct

from edgeshard_p2p.core.plan import Device, Link, Snapshot

DEVICES_MAX = 512


class Scenario(Struct, frozen=True):
    snapshot: Snapshot
    order: tuple[str, ...]
    """Names of the devices, sources first, otherwise as the file has them."""
    cloud: str | None = None
    no_cloud: str = 'no device has role = "cloud"'
    """Why there is none, where there is none."""
    spares: dict[str, Device] = {}
    """By class, or by the device that it is like: a device of that name that could be added."""
    spare_links: tuple[Link, ...] = ()
    """Links of every spare with every device, with every other spare, and (``a == b``) with a
    second one of its kind.  Spares stand under the names of their kinds."""
    added: dict[str, str] = {}
    """The kind of each device that was added, by name."""
    excluded: dict[str, str] = {}
    """Why a device that is there cannot be planned, by name."""
    notes: tuple[str, ...] = ()
    """What was assumed: times scaled from another model, for instance."""


def dtype_notes(dtype: str) -> tuple[str, ...]:
    """What planning in ``dtype`` assumes beyond the default, fp32."""
    if dtype == "fp32":
        return ()
    return (f"{dtype} changes bytes; times stay those that were measured or given",)
