"""Fault scenarios: a swarm, one request, what is done to whom and when, how it has to end.

A file is read and checked as a whole (``scripts/faults/README.md`` has the keys).  Knows nothing
of how a fault is done.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from edgeshard_p2p.config import ConfigError, parse_address
from edgeshard_p2p.core.ids import Name
from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.pin import parse_pin
from edgeshard_p2p.core.plan import Link
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.tables import At, TopologyError, quoted, read_toml, to_table
from edgeshard_p2p.topology import Topology, read_topology

LOSSES = ("kill", "freeze", "leave", "stop", "partition")
"""After these the others have to do without."""
PASSING = ("freeze", "partition")
"""Of these, who may come back as if nothing had been."""
FAULTS = (*LOSSES, "slow")
UNDOING = ("thaw", "heal", "restore", "start")
VERBS = (*FAULTS, "link", *UNDOING)
BOTH, OUT, IN = "both", "out", "in"
WAYS = (BOTH, OUT, IN)
"""Of a partition: nothing passes; nothing of those that are cut off; nothing to them."""
MOMENTS = ("loading", "recovering")
ENDS = ("whole", "ended")
PEERS_MAX = 16
STEPS_MAX = 64
SLOWER_BY = 4.0
_MIB = 2**20

_ROLE = re.compile(r"source|spare|stage [1-9][0-9]?")
_Seconds = Annotated[float, Meta(ge=0, le=600)]


class _File(Struct, frozen=True):
    about: Annotated[str, Meta(max_length=300)] = ""
    swarm: Any = {}
    peer: list[Any] = []
    request: Any = {}
    step: list[Any] = []
    expect: Any = {}


class SwarmEntry(Struct, frozen=True):
    model: str = "smollm2-135m-instruct"
    layers_mib: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    """Memory of each peer beside what it takes by itself."""
    flags: list[str] = []
    pin: str = ""
    topology: str = ""
    """The file, from this one, whose devices are emulated; they are the peers."""
    namespaces: bool = False
    """Whether each peer has a network namespace of its own though no step asks for it."""


class PeerEntry(Struct, frozen=True):
    name: Name
    source: bool = False
    layers_mib: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    flags: list[str] = []
    cores: Annotated[float, Meta(ge=0.01, le=64)] | None = None
    """So much of the machine's time it may have, from its start; 0.5: half of one core's."""
    address: str = ""
    """Of a peer that runs already, on a device of its own."""
    host: str = ""
    """What stands for {host} in --via; the address's, where it is not given."""
    start: str = ""
    partition: str = ""
    heal: str = ""

    @property
    def is_remote(self) -> bool:
        return bool(self.address)

    @property
    def place(self) -> Address:
        """Of one that is remote."""
        return parse_address(self.address)


class RequestEntry(Struct, frozen=True):
    source: str = ""
    prompt_tokens: Annotated[int, Meta(ge=1, le=2**16)] = 64
    generate: Annotated[int, Meta(ge=1, le=2**16)] = 64
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 7

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.seed)


class _AtEntry(Struct, frozen=True):
    token: Annotated[int, Meta(ge=0, le=2**16)] | None = None
    after_s: _Seconds | None = None
    when: str | None = None


class _StepEntry(Struct, frozen=True):
    at: Any
    do: str
    who: str | list[str] = ""
    by: Annotated[float, Meta(gt=1, le=100)] | None = None
    way: str = BOTH
    mbps: Annotated[float, Meta(gt=0, le=10**7)] | None = None
    delay_ms: Annotated[float, Meta(ge=0, le=10**5)] | None = None


class Step(Struct, frozen=True):
    """One of ``token``, ``after_s`` and ``when`` says when: so many tokens have come; so long after
    the step before; the swarm is at that point of its recovery."""

    do: str
    who: tuple[str, ...] = ()
    """Names, ``source``, ``spare`` or ``stage N``; everyone it concerns, where it is empty."""
    token: int | None = None
    after_s: float | None = None
    when: str | None = None
    by: float = SLOWER_BY
    """How many times slower."""
    way: str = BOTH
    mbps: float | None = None
    """Of the link between two, from now on; None: as before."""
    delay_ms: float | None = None

    def __str__(self) -> str:
        times = f"by {self.by:g}" if self.do == "slow" else self.detail
        return " ".join([self.do, " and ".join(self.who) or "all", *([times] if times else [])])

    @property
    def detail(self) -> str:
        """What becomes of links."""
        words = [f"{self.way} only"] if self.way != BOTH else []
        words += [f"to {self.mbps:g} Mbit/s"] if self.mbps is not None else []
        words += [f"with {self.delay_ms:g} ms"] if self.delay_ms is not None else []
        return " ".join(words)

    @property
    def moment(self) -> str:
        if self.token is not None:
            return f"at token {self.token}"
        return f"{self.after_s:g} s later" if self.after_s is not None else f"while {self.when}"


class ExpectEntry(Struct, frozen=True):
    answer: str = "whole"
    """``whole``: the tokens of an undisturbed run.  ``ended``: with an error, and at once."""
    failovers_min: Annotated[int, Meta(ge=0, le=100)] = 0


class FaultScenario(Struct, frozen=True):
    name: str
    about: str
    swarm: SwarmEntry
    peers: tuple[PeerEntry, ...]
    request: RequestEntry
    steps: tuple[Step, ...]
    expect: ExpectEntry
    links: dict[tuple[str, str], Link] | None = None
    """Of emulated devices, by ordered pair of names."""

    @property
    def source(self) -> str:
        """Who is asked."""
        return self.request.source or next(peer.name for peer in self.peers if peer.source)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(peer.name for peer in self.peers)

    @property
    def is_remote(self) -> bool:
        return any(peer.is_remote for peer in self.peers)

    @property
    def wants_namespaces(self) -> bool:
        """A partition cannot be made between processes on one loopback device; links that are
        emulated can be cut."""
        if self.links is not None:
            return False
        return self.swarm.namespaces or any(step.do in ("partition", "heal") for step in self.steps)


def read_scenario(path: Path) -> FaultScenario:
    """Raises TopologyError with the file, the key and what was expected there."""
    at = At(path)
    file = to_table(read_toml(path), _File, at)
    swarm: SwarmEntry = to_table(file.swarm, SwarmEntry, at / "swarm")
    topology = read_topology(path.parent / swarm.topology) if swarm.topology else None
    if topology is not None and file.peer:
        raise (at / "peer").error("expected none: the peers are the devices of swarm.topology")
    peers = peers_of(topology) if topology is not None else _peers(file.peer, at / "peer")
    names = {peer.name for peer in peers}
    request: RequestEntry = to_table(file.request, RequestEntry, at / "request")
    if request.source and request.source not in {p.name for p in peers if p.source}:
        raise (at / "request" / "source").error(f"{quoted(request.source)} is no source")
    expect: ExpectEntry = to_table(file.expect, ExpectEntry, at / "expect")
    if expect.answer not in ENDS:
        raise (at / "expect" / "answer").error(_one_of(expect.answer, ENDS))
    if len(file.step) > STEPS_MAX:
        raise (at / "step").error(f"expected at most {STEPS_MAX} steps")
    steps = [
        _step(value, names, request, is_first=not index, at=at / "step" / index)
        for index, value in enumerate(file.step)
    ]
    for index, step in enumerate(steps):
        _check_commands(step, peers, at / "step" / index)
        if topology is None and (step.do == "link" or step.way != BOTH):
            raise (at / "step" / index).error("only with swarm.topology: links that are emulated")
    return FaultScenario(
        name=path.stem,
        about=file.about,
        swarm=_with_known_pin(swarm, names, at / "swarm"),
        peers=peers,
        request=request,
        steps=tuple(steps),
        expect=expect,
        links=links_of(topology) if topology is not None else None,
    )


def peers_of(topology: Topology) -> tuple[PeerEntry, ...]:
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
    return tuple(peers)


def links_of(topology: Topology) -> dict[tuple[str, str], Link]:
    """By ordered pair of names."""
    return {(link.a, link.b): link for link in topology.all_links()}


def _with_known_pin(entry: SwarmEntry, names: set[str], at: At) -> SwarmEntry:
    if entry.pin:
        pin = parse_pin(entry.pin)
        if pin is None:
            raise (at / "pin").error('expected ranges that follow each other, as "a:0-9,b:9-32"')
        strangers = sorted({*pin.names()} - names)
        if strangers:
            raise (at / "pin").error(f"no peer {quoted(strangers[0])} in this file")
    return entry


def _peers(values: list[Any], at: At) -> tuple[PeerEntry, ...]:
    if not 1 <= len(values) <= PEERS_MAX:
        raise at.error(f"expected 1 to {PEERS_MAX} peers, got {len(values)}")
    peers: dict[str, PeerEntry] = {}
    for index, value in enumerate(values):
        here = at / index
        peer: PeerEntry = to_table(value, PeerEntry, here)
        if peer.name in peers or _ROLE.fullmatch(peer.name):
            raise (here / "name").error(f"{quoted(peer.name)} is taken")
        if peer.address:
            try:
                parse_address(peer.address)
            except ConfigError as error:
                raise (here / "address").error(str(error)) from None
        peers[peer.name] = peer
    if not any(peer.source for peer in peers.values()):
        raise at.error("expected one with source = true")
    if len({peer.is_remote for peer in peers.values()}) > 1:
        raise at.error("expected an address for every peer, or for none")
    return tuple(peers.values())


def _step(value: object, names: set[str], request: RequestEntry, is_first: bool, at: At) -> Step:
    entry: _StepEntry = to_table(value, _StepEntry, at)
    if entry.do not in VERBS:
        raise (at / "do").error(_one_of(entry.do, VERBS))
    when: _AtEntry = to_table(entry.at, _AtEntry, at / "at")
    if [when.token, when.after_s, when.when].count(None) != 2:
        raise (at / "at").error("expected one of token, after_s and when")
    if when.when is not None and when.when not in MOMENTS:
        raise (at / "at" / "when").error(_one_of(when.when, MOMENTS))
    if when.when is not None and is_first:
        raise (at / "at" / "when").error("expected a fault before it, which it follows from")
    if when.token is not None and when.token > request.generate:
        raise (at / "at" / "token").error(f"only {request.generate} tokens are generated")
    if entry.by is not None and entry.do != "slow":
        raise (at / "by").error("only slow is by so many times")
    if entry.way not in WAYS:
        raise (at / "way").error(_one_of(entry.way, WAYS))
    if entry.way != BOTH and entry.do != "partition":
        raise (at / "way").error("only a partition is one way or the other")
    has_link = entry.mbps is not None or entry.delay_ms is not None
    if has_link is not (entry.do == "link"):
        raise at.error("expected mbps or delay_ms with link, and with nothing else")
    who = (entry.who,) if isinstance(entry.who, str) else tuple(entry.who)
    who = tuple(name for name in who if name)
    if not who and entry.do in (*FAULTS, "start"):
        raise (at / "who").error("expected a peer, source, spare or stage N")
    if entry.do == "link" and len(set(who)) != 2:
        raise (at / "who").error("expected two, whose link it is")
    for name in who:
        if name not in names and not _ROLE.fullmatch(name):
            raise (at / "who").error(
                f"no peer {quoted(name)} in this file; expected one of {', '.join(sorted(names))}, "
                "source, spare or stage N"
            )
    by = entry.by or SLOWER_BY
    times = (when.token, when.after_s, when.when)
    return Step(entry.do, who, *times, by, entry.way, entry.mbps, entry.delay_ms)


def _check_commands(step: Step, peers: tuple[PeerEntry, ...], at: At) -> None:
    """What cannot be done to a device that is somebody's without being told how."""
    for peer in peers:
        if not peer.is_remote or (step.who and not {*step.who} & {peer.name} and _is_named(step)):
            continue
        if step.do in ("start", "partition", "heal") and not getattr(peer, step.do):
            raise (at / "do").error(f"peer {peer.name} has no {step.do} command to do it with")


def _is_named(step: Step) -> bool:
    return not any(_ROLE.fullmatch(name) for name in step.who)


def _one_of(value: str, known: tuple[str, ...]) -> str:
    return f"expected one of {', '.join(known)}, got {quoted(value)}"


__all__ = ["FaultScenario", "PeerEntry", "Step", "TopologyError", "read_scenario"]
