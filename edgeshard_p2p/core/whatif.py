"""Changes to a scenario that were not made yet: ``drop=NAME``, ``add=KIND``,
``bandwidth:A-B=MBPS``, ``memory:NAME=GIB``, ``dtype=NAME``.  Pure, and blind to plans."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from msgspec.structs import replace

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.model_spec import PLANNED_BITS
from edgeshard_p2p.core.plan import BYTES_PER_MBIT, Device, Link, Snapshot, snapshot, without
from edgeshard_p2p.core.scenario import DEVICES_MAX, Scenario, dtype_notes

MBPS_MAX, GIB_MAX = 10**7, 2**18
_FORMS = "drop=NAME, add=KIND, bandwidth:A-B=MBPS, memory:NAME=GIB or dtype=NAME"


class WhatIfError(Exception):
    """The operator's: a change that cannot be."""


def changed(scenario: Scenario, change: str) -> Scenario:
    """Raises WhatIfError."""
    left, equals, value = change.partition("=")
    verb, _, subject = left.partition(":")
    if verb in ("drop", "add", "dtype") and equals and not subject:
        return {"drop": _without, "add": _with_another, "dtype": _in_dtype}[verb](scenario, value)
    if verb == "memory" and subject:
        return _with_memory(scenario, subject, _number(change, value, GIB_MAX))
    if verb == "bandwidth" and subject:
        return _with_bandwidth(scenario, subject, _number(change, value, MBPS_MAX))
    raise WhatIfError(f"{change!r} is no change; expected {_FORMS}")


def _number(change: str, text: str, most: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number <= most:
        raise WhatIfError(f"{change!r}: expected a number above 0 and up to {most:g}")
    return number


def _named(scenario: Scenario, name: str) -> Device:
    for device in scenario.snapshot.devices:
        if device.peer.name == name:
            return device
    raise WhatIfError(f"no device {name!r}; there are {', '.join(scenario.order)}")


def _with(scenario: Scenario, devices: list[Device], links: list[Link]) -> Snapshot:
    old = scenario.snapshot
    return snapshot(old.model, old.workload, devices, links, old.goal, old.framing)


def _without(scenario: Scenario, name: str) -> Scenario:
    _named(scenario, name)
    order = tuple(other for other in scenario.order if other != name)
    cloud = None if scenario.cloud == name else scenario.cloud
    return replace(scenario, snapshot=without(scenario.snapshot, name), order=order, cloud=cloud)


def _with_another(scenario: Scenario, kind: str) -> Scenario:
    """NOTE: an added device is no source, and the links it has with the others are the links of
    its kind."""
    spare = scenario.spares.get(kind)
    if spare is None:
        known = ", ".join(sorted(scenario.spares)) or "none"
        raise WhatIfError(f"no {kind!r} to add; there are {known}")
    if len(scenario.order) >= DEVICES_MAX:
        raise WhatIfError(f"expected {DEVICES_MAX} devices at most")
    name = next(free for n in count(1) if (free := f"{kind}.new-{n}") not in scenario.order)
    own = list(_links_of_another(scenario, kind, name))
    devices = [*scenario.snapshot.devices, replace(spare, peer=PeerId(name, 1))]
    note = f"no link of {name} with another device is known"
    return replace(
        scenario,
        snapshot=_with(scenario, devices, [*scenario.snapshot.links, *own]),
        order=(*scenario.order, name),
        added={**scenario.added, name: kind},
        notes=scenario.notes if own else (*scenario.notes, note),
    )


def _links_of_another(scenario: Scenario, kind: str, name: str) -> Iterator[Link]:
    """Of a new device ``name``, in either direction, with all that are there; those that were added
    have the links of their kinds."""
    known = {(link.a, link.b): link for link in scenario.spare_links}
    for other in scenario.order:
        stands_under = scenario.added.get(other, other)
        if (there := known.get((kind, stands_under))) is not None:
            yield replace(there, a=name, b=other)
        if (back := known.get((stands_under, kind))) is not None:
            yield replace(back, a=other, b=name)


def with_twins(scenario: Scenario) -> Scenario:
    """``scenario``, where what could be added is another one like each device: of the same memory,
    times and links, under that device's name.

    NOTE: between the two no link is known; they get the quickest that the device has.
    """
    devices, links = scenario.snapshot.devices, scenario.snapshot.links
    slowest_first = sorted(links, key=lambda link: (link.bytes_per_s, -link.delay_us, link.b))
    quickest = {link.a: replace(link, b=link.a) for link in slowest_first}
    return replace(
        scenario,
        spares={device.peer.name: replace(device, is_source=False, held=()) for device in devices},
        spare_links=(*links, *quickest.values()),
        added={},
    )


def _in_dtype(scenario: Scenario, dtype: str) -> Scenario:
    if dtype not in PLANNED_BITS:
        raise WhatIfError(f"no dtype {dtype!r}; expected {', '.join(PLANNED_BITS)}")
    old = scenario.snapshot
    devices = old.devices
    if dtype != old.workload.dtype:
        # Weights that are held in one dtype would have to be loaded in the other.
        devices = tuple(replace(device, held=()) for device in devices)
    kept = [note for note in scenario.notes if note not in dtype_notes(old.workload.dtype)]
    return replace(
        scenario,
        snapshot=replace(old, workload=replace(old.workload, dtype=dtype), devices=devices),
        notes=(*kept, *dtype_notes(dtype)),
    )


def _with_memory(scenario: Scenario, name: str, gib: float) -> Scenario:
    changed_one = replace(_named(scenario, name), budget_bytes=max(1, round(gib * 2**30)))
    devices = [
        changed_one if device.peer.name == name else device for device in scenario.snapshot.devices
    ]
    links = list(scenario.snapshot.links)
    return replace(scenario, snapshot=_with(scenario, devices, links))


def _with_bandwidth(scenario: Scenario, pair: str, mbps: float) -> Scenario:
    a, b = _ends(scenario, pair)
    bytes_per_s = max(1, round(mbps * BYTES_PER_MBIT))
    links = [
        replace(link, bytes_per_s=bytes_per_s) if {link.a, link.b} == {a, b} else link
        for link in scenario.snapshot.links
    ]
    if links == list(scenario.snapshot.links) and not _is_linked(scenario, a, b):
        raise WhatIfError(f"{a} and {b} have no link")
    devices = list(scenario.snapshot.devices)
    return replace(scenario, snapshot=_with(scenario, devices, links))


def _is_linked(scenario: Scenario, a: str, b: str) -> bool:
    return any({link.a, link.b} == {a, b} for link in scenario.snapshot.links)


def _ends(scenario: Scenario, pair: str) -> tuple[str, str]:
    """Names may have hyphens in them: the cut that gives two devices is meant."""
    cuts = [(pair[:at], pair[at + 1 :]) for at, char in enumerate(pair) if char == "-"]
    for a, b in cuts:
        if a != b and a in scenario.order and b in scenario.order:
            return a, b
    raise WhatIfError(f"{pair!r} is not A-B of two devices; there are {', '.join(scenario.order)}")
