"""Topology files: devices, their classes, what a model takes on them, and the links between.

A file is read and checked as a whole; with a model it makes the scenario that plans are compared
for.  Knows nothing of how plans are made, nor of devices that exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from edgeshard_p2p.class_times import ClassTimes, read_class_times, unit_times
from edgeshard_p2p.core.ids import Name, PeerId
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import (
    BYTES_PER_MBIT,
    DEFAULT_GOAL,
    FIRST_LAYERS,
    FRAME_OVERHEAD_BYTES,
    Device,
    Framing,
    Goal,
    Link,
    RowTimes,
    Workload,
    snapshot,
)
from edgeshard_p2p.core.scenario import DEVICES_MAX, Scenario, dtype_notes
from edgeshard_p2p.tables import At, TopologyError, convert, quoted, read_toml, to_table

CLOUD = "cloud"

_GIB = 2**30

_Gib = Annotated[float, Meta(gt=0, le=2**18)]
_Mbps = Annotated[float, Meta(gt=0, le=10**7)]
_Ms = Annotated[float, Meta(ge=0, le=10**7)]
_Bytes = Annotated[int, Meta(ge=0, le=2**20)]


class _File(Struct, frozen=True):
    sources: list[Name]
    name: Annotated[str, Meta(max_length=200)] = ""
    first_layer: str = "block"
    kv: bool = True
    device: list[Any] = []
    class_: dict[str, Any] = msgspec.field(name="class", default_factory=dict)
    link: Any = {}


class _DeviceEntry(Struct, frozen=True):
    name: Name
    class_: str = msgspec.field(name="class")
    role: str | None = None
    count: Annotated[int, Meta(ge=1, le=DEVICES_MAX)] | None = None
    memory_gib: _Gib | None = None

    def names(self) -> list[str]:
        if self.count is None:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(1, self.count + 1)]


class _ClassEntry(Struct, frozen=True):
    memory_gib: _Gib | None = None
    cores: Annotated[float, Meta(ge=0.01, le=1024)] | None = None
    times: Any = {}


class _LinkEntry(Struct, frozen=True):
    default_mbps: _Mbps | None = None
    per_message_ms: _Ms = 0.0
    delay_ms: _Ms = 0.0
    row_overhead_bytes: _Bytes = FRAME_OVERHEAD_BYTES
    token_bytes: _Bytes = FRAME_OVERHEAD_BYTES
    pair: list[Any] = []


class _PairEntry(Struct, frozen=True):
    """Both directions between two devices, a device and a class, or two classes."""

    a: str
    b: str
    mbps: _Mbps
    per_message_ms: _Ms | None = None
    delay_ms: _Ms | None = None


class DeviceClass(Struct, frozen=True):
    memory_bytes: int | None
    cores: float | None
    times: ClassTimes


class Member(Struct, frozen=True):
    """A device of the file."""

    name: str
    class_name: str
    memory_bytes: int


class _Links(Struct, frozen=True):
    entry: _LinkEntry
    pairs: dict[tuple[str, str], tuple[int, _PairEntry]]
    """By both names in their order; with the place in the file, for the later one to win."""

    @property
    def framing(self) -> Framing:
        return Framing(self.entry.row_overhead_bytes, self.entry.token_bytes)

    def between(self, a: tuple[str, str], b: tuple[str, str]) -> Link | None:
        """From ``a`` to ``b``, each a name and its class: as said of the two devices, of a device
        and a class, of the two classes, or of all."""
        for names in ([(a[0], b[0])], [(a[0], b[1]), (a[1], b[0])], [(a[1], b[1])]):
            said = [self.pairs[_key(*pair)] for pair in names if _key(*pair) in self.pairs]
            if said:
                pair = max(said, key=lambda place_and_entry: place_and_entry[0])[1]
                return self._link(a[0], b[0], pair.mbps, pair.per_message_ms, pair.delay_ms)
        mbps = self.entry.default_mbps
        return None if mbps is None else self._link(a[0], b[0], mbps, None, None)

    def _link(
        self, a: str, b: str, mbps: float, per_message_ms: float | None, delay_ms: float | None
    ) -> Link:
        entry = self.entry
        return Link(
            a,
            b,
            delay_us=_us(entry.delay_ms if delay_ms is None else delay_ms),
            per_message_us=_us(entry.per_message_ms if per_message_ms is None else per_message_ms),
            bytes_per_s=max(1, round(mbps * BYTES_PER_MBIT)),
        )


class Topology(Struct, frozen=True):
    """A file that was read.  Everything in it holds together; whether it has times for a model,
    or times that can be scaled to it, shows in ``scenario``."""

    file: Path
    name: str
    sources: tuple[str, ...]
    first_layer: str
    kv: bool
    members: tuple[Member, ...]
    classes: dict[str, DeviceClass]
    links: _Links
    cloud: str | None

    def scenario(
        self,
        model: ModelSpec,
        *,
        dtype: str,
        context: int,
        batch: int,
        goal: Goal = DEFAULT_GOAL,
        first_layer: str | None = None,
        kv: bool | None = None,
        framing: Framing | None = None,
    ) -> Scenario:
        """What plans are made and compared for; ``first_layer``, ``kv`` and ``framing`` are the
        file's where they are None.  Raises TopologyError where a class has no times that could
        serve for ``model``."""
        notes: list[str] = []
        times = {name: self._times(name, model, notes) for name in self.classes}
        if not (self.kv if kv is None else kv):
            model = replace(model, kv_width=0)
        first = self.first_layer if first_layer is None else first_layer
        workload = Workload(dtype, "exact", 0, context, batch, first)
        framing = self.links.framing if framing is None else framing
        places = [(member.name, member.class_name) for member in self.members]
        return Scenario(
            snapshot=snapshot(
                model, workload, self._devices(times), self.all_links(), goal, framing
            ),
            order=(*self.sources, *(n for n, _ in places if n not in self.sources)),
            cloud=self.cloud,
            spares={
                name: _device(name, False, known.memory_bytes, times[name])
                for name, known in self.classes.items()
                if known.memory_bytes is not None
            },
            spare_links=tuple(sorted(self._spare_links(places))),
            notes=(*notes, *dtype_notes(dtype)),
        )

    def all_links(self) -> list[Link]:
        places = [(member.name, member.class_name) for member in self.members]
        return list(self._all(places, places))

    def _times(self, class_name: str, model: ModelSpec, notes: list[str]) -> _Times:
        at = At(self.file) / "class" / class_name / "times"
        times, scaled_from = unit_times(self.classes[class_name].times, model, at)
        if scaled_from is not None:
            notes.append(
                f"{model.name} has no times on class {class_name}: "
                f"scaled by parameters from {scaled_from}"
            )
        return times

    def _devices(self, times: dict[str, _Times]) -> list[Device]:
        return [
            _device(
                member.name,
                member.name in self.sources,
                member.memory_bytes,
                times[member.class_name],
            )
            for member in self.members
        ]

    def _spare_links(self, places: list[tuple[str, str]]) -> Iterator[Link]:
        """A spare stands under its class's name, and ``a == b`` for two of one class."""
        spares = [(name, name) for name, known in self.classes.items() if known.memory_bytes]
        yield from self._all(spares, places)
        yield from self._all(places, spares)
        yield from self._all(spares, spares)
        for spare in spares:
            link = self.links.between(spare, spare)
            if link is not None:
                yield link

    def _all(
        self, starts: Iterable[tuple[str, str]], ends: list[tuple[str, str]]
    ) -> Iterator[Link]:
        for a in starts:
            for b in ends:
                link = self.links.between(a, b) if a != b else None
                if link is not None:
                    yield link


_Times = tuple[tuple[RowTimes, ...], tuple[RowTimes, ...]]
"""Decode and prefill times."""


def _device(name: str, is_source: bool, memory_bytes: int, times: _Times) -> Device:
    decode, prefill = times
    return Device(
        PeerId(name, 1),
        is_source,
        memory_bytes,
        decode[0].unit_us,
        decode=decode[1:],
        prefill=prefill,
    )


def read_topology(path: Path) -> Topology:
    """Raises TopologyError with the file, the key and what was expected there."""
    at = At(path)
    file = to_table(read_toml(path), _File, at)
    if file.first_layer not in FIRST_LAYERS:
        raise (at / "first_layer").error(
            f'expected "embedding" or "block", got {quoted(file.first_layer)}'
        )
    if len(file.class_) > DEVICES_MAX:
        raise (at / "class").error(f"expected at most {DEVICES_MAX} classes")
    classes = {
        name: _read_class(name, value, at / "class" / name) for name, value in file.class_.items()
    }
    members, cloud = _read_devices(file.device, classes, at / "device")
    names = {member.name for member in members}
    _check_sources(file.sources, names, at / "sources")
    return Topology(
        file=path,
        name=file.name or path.stem,
        sources=tuple(file.sources),
        first_layer=file.first_layer,
        kv=file.kv,
        members=tuple(members),
        classes=classes,
        links=_read_links(file.link, names, set(classes), at / "link"),
        cloud=cloud,
    )


def _read_class(name: str, value: object, at: At) -> DeviceClass:
    convert(name, Name, at)
    entry = to_table(value, _ClassEntry, at)
    memory = None if entry.memory_gib is None else _bytes(entry.memory_gib)
    return DeviceClass(memory, entry.cores, read_class_times(entry.times, at / "times"))


def _read_devices(
    values: list[Any], classes: dict[str, DeviceClass], at: At
) -> tuple[list[Member], str | None]:
    """The devices, and which of them is the cloud."""
    members: dict[str, Member] = {}
    cloud = None
    for index, value in enumerate(values):
        here = at / index
        entry = to_table(value, _DeviceEntry, here)
        for name in entry.names():
            convert(name, Name, here / "name")
            _check_new(name, members, classes, here / "name")
            members[name] = Member(name, entry.class_, _memory(entry, classes, here))
        if entry.role is not None:
            cloud = _cloud(entry, cloud, here)
    if not 1 <= len(members) <= DEVICES_MAX:
        raise at.error(f"expected 1 to {DEVICES_MAX} devices, got {len(members)}")
    return list(members.values()), cloud


def _check_new(
    name: str, members: dict[str, Member], classes: dict[str, DeviceClass], at: At
) -> None:
    if name in members:
        raise at.error(f"{quoted(name)} is the name of an earlier device")
    if name in classes:
        raise at.error(f"{quoted(name)} names both a class and a device")


def _memory(entry: _DeviceEntry, classes: dict[str, DeviceClass], at: At) -> int:
    """The device's own memory, or its class's."""
    known = classes.get(entry.class_)
    if known is None:
        raise (at / "class").error(
            f"no class {quoted(entry.class_)}; classes: {', '.join(classes) or 'none'}"
        )
    if entry.memory_gib is not None:
        return _bytes(entry.memory_gib)
    if known.memory_bytes is None:
        raise (at / "memory_gib").error(f"expected, as class {entry.class_} has none")
    return known.memory_bytes


def _cloud(entry: _DeviceEntry, earlier: str | None, at: At) -> str:
    (name, *others) = entry.names()
    if entry.role != CLOUD:
        raise (at / "role").error(f'expected "cloud" or no role, got {quoted(entry.role)}')
    if others or earlier is not None:
        raise (at / "role").error("expected at most one device of role cloud")
    return name


def _check_sources(sources: list[str], names: set[str], at: At) -> None:
    if not sources:
        raise at.error("expected at least one device's name")
    for index, source in enumerate(sources):
        if source not in names:
            raise (at / index).error(f"no device {quoted(source)} in this file")
        if source in sources[:index]:
            raise (at / index).error(f"{quoted(source)} is named twice")


def _read_links(value: object, names: set[str], classes: set[str], at: At) -> _Links:
    entry = to_table(value, _LinkEntry, at)
    pairs: dict[tuple[str, str], tuple[int, _PairEntry]] = {}
    for index, table in enumerate(entry.pair):
        here = at / "pair" / index
        pair = to_table(table, _PairEntry, here)
        for key, end in (("a", pair.a), ("b", pair.b)):
            if end not in names and end not in classes:
                raise (here / key).error(f"{quoted(end)} is no device and no class of this file")
        if pair.a == pair.b and pair.a in names:
            raise here.error(f"expected two devices, got {quoted(pair.a)} twice")
        pairs[_key(pair.a, pair.b)] = (index, pair)
    return _Links(entry, pairs)


def _key(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a <= b else (b, a)


def _bytes(gib: float) -> int:
    return max(1, round(gib * _GIB))


def _us(ms: float) -> int:
    return max(1, round(ms * 1000)) if ms > 0 else 0


__all__ = ["DEVICES_MAX", "Topology", "TopologyError", "read_topology"]
