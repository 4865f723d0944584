"""Changes to a scenario that were not made yet: ``drop=NAME``, ``add=CLASS``,
``bandwidth:A-B=MBPS``, ``memory:NAME=GIB``, ``dtype=NAME``.  Pure, and blind to plans."""

from __future__ import annotations

from msgspec.structs import replace

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.model_spec import PLANNED_BITS
from edgeshard_p2p.core.plan import Device, Link, Snapshot, snapshot
from edgeshard_p2p.core.scenario import Scenario, dtype_notes

MBPS_MAX, GIB_MAX = 10**7, 2**18
_FORMS = "drop=NAME, add=CLASS, bandwidth:A-B=MBPS, memory:NAME=GIB or dtype=NAME"


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
    gone = _named(scenario, name)
    devices = [device for device in scenario.snapshot.devices if device != gone]
    links = [link for link in scenario.snapshot.links if name not in (link.a, link.b)]
    order = tuple(other for other in scenario.order if other != name)
    cloud = None if scenario.cloud == name else scenario.cloud
    return replace(scenario, snapshot=_with(scenario, devices, links), order=order, cloud=cloud)


def _with_another(scenario: Scenario, kind: str) -> Scenario:
    """NOTE: an added device is no source, and the links it has with the others are the links of
    its class."""
    spare = scenario.spares.get(kind)
    if spare is None:
        known = ", ".join(sorted(scenario.spares)) or "none"
        raise WhatIfError(f"no class {kind!r}; there are {known}")
    name = _free_name(scenario, kind)
    links = [
        *scenario.snapshot.links,
        *(_renamed(link, kind, name) for link in scenario.spare_links
          if _joins(link, kind, scenario.order)),
    ]  # fmt: skip
    twins = [other for other in scenario.order if other in _added(scenario, kind)]
    own = next((link for link in scenario.spare_links if link.a == link.b == kind), None)
    if own is not None:
        pairs = [pair for twin in twins for pair in ((twin, name), (name, twin))]
        links += [replace(own, a=a, b=b) for a, b in pairs]
    # A device of the file may be called like one that was added; then it has its link already.
    links = list({(link.a, link.b): link for link in links}.values())
    devices = [*scenario.snapshot.devices, replace(spare, peer=PeerId(name, 1))]
    return replace(
        scenario, snapshot=_with(scenario, devices, links), order=(*scenario.order, name)
    )


def _added(scenario: Scenario, kind: str) -> set[str]:
    return {name for name in scenario.order if name.startswith(f"{kind}.new-")}


def _free_name(scenario: Scenario, kind: str) -> str:
    taken = _added(scenario, kind)
    return next(name for n in range(1, 1000) if (name := f"{kind}.new-{n}") not in taken)


def _joins(link: Link, kind: str, names: tuple[str, ...]) -> bool:
    return (link.a == kind and link.b in names) or (link.b == kind and link.a in names)


def _renamed(link: Link, kind: str, name: str) -> Link:
    return replace(link, a=name) if link.a == kind else replace(link, b=name)


def _in_dtype(scenario: Scenario, dtype: str) -> Scenario:
    if dtype not in PLANNED_BITS:
        raise WhatIfError(f"no dtype {dtype!r}; expected {', '.join(PLANNED_BITS)}")
    before = scenario.snapshot.workload
    kept = [note for note in scenario.notes if note not in dtype_notes(before.dtype)]
    return replace(
        scenario,
        snapshot=replace(scenario.snapshot, workload=replace(before, dtype=dtype)),
        notes=(*kept, *dtype_notes(dtype)),
    )


def _with_memory(scenario: Scenario, name: str, gib: float) -> Scenario:
    changed_one = replace(_named(scenario, name), budget_bytes=int(gib * 2**30))
    devices = [
        changed_one if device.peer.name == name else device for device in scenario.snapshot.devices
    ]
    links = list(scenario.snapshot.links)
    return replace(scenario, snapshot=_with(scenario, devices, links))


def _with_bandwidth(scenario: Scenario, pair: str, mbps: float) -> Scenario:
    a, b = _ends(scenario, pair)
    bytes_per_s = max(1, int(mbps * 125_000))
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
