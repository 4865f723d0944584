"""N requests through a pipeline of devices and links, event by event.

A micro-batch passes its legs in order.  A resource serves one at a time, in the order of
``core.schedule``; ``delay_us`` passes besides.  The prompts of a micro-batch pass one by one, each
with all its chunks as one piece; when all of them have their first token, they decode together.
At most ``batch`` sequences are in flight; micro-batches wait for their slots first in, first out.

Every time is what the legs say: nothing is drawn here but who a micro-batch's source is, and that
only where there are several (``groups_of``).  Knows nothing of tokens, memory or failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heappop, heappush
from itertools import cycle, pairwise
from random import Random
from typing import Literal

from msgspec import Struct

from edgeshard_p2p.core.layout import Layout, Leg, decode_legs, prefill_legs
from edgeshard_p2p.core.plan import Snapshot
from edgeshard_p2p.core.schedule import Order, Pace, Schedule, Server, Ticket

Kind = Literal["prefill", "decode"]


class Group(Struct, frozen=True):
    """The requests that make up a micro-batch, all of one source."""

    rows: int
    prefill: tuple[Leg, ...]
    """Of one prompt."""
    decode: tuple[Leg, ...]
    """Of one token of each row."""
    source: str = ""


class Span(Struct, frozen=True):
    """A resource was occupied."""

    resource: str
    start_us: int
    end_us: int
    micro_batch: int
    kind: Kind
    token: int
    """Which of the answer's tokens it was for; 0 comes of the prefill."""


class Spread(Struct, frozen=True):
    """All 0 where there is nothing to spread."""

    mean_us: int = 0
    p50_us: int = 0
    p99_us: int = 0


class Use(Struct, frozen=True):
    resource: str
    busy_us: int
    busy_share: float
    """Of the whole time."""
    bubble_share: float | None
    """What it was idle of the decode phase, from the first decode to the last token, whoever is
    being prefilled meanwhile.  None without a decode."""


class Report(Struct, frozen=True):
    ttft_us: tuple[int, ...]
    """Of each request from time 0, when all come; so the wait for a slot counts."""
    finish_us: tuple[int, ...]
    token_us: Spread
    """Times between two tokens of a request, over all requests."""
    tokens_per_s: float
    total_us: int
    n_micro_batches: int
    """As many as are in flight at once."""
    iteration_us: int | None
    """Mean time from token to token of a micro-batch, while all that fit are decoding and have done
    so for a while.  None where that never happens for long enough."""
    uses: tuple[Use, ...]
    """In the order of the pipeline."""
    trace: tuple[Span, ...]
    """In order of time; without what takes no time."""


def groups_of(
    snapshot: Snapshot,
    layout: Layout,
    *,
    requests: int,
    prompt: int,
    batch: int,
    micro_batch: int,
    seed: int = 0,
) -> list[Group]:
    """The requests in micro-batches of ``micro_batch`` rows; where that does not divide ``batch``
    or ``requests``, some are smaller.

    Sources take turns, in each round in an order drawn from ``seed``; with one source ``seed``
    changes nothing.
    """
    rng, made = Random(seed), dict[tuple[int, int], Group]()
    round_: list[int] = []
    groups: list[Group] = []
    for rows in _sizes(requests, batch, micro_batch):
        round_ = round_ or rng.sample(range(len(layout.sources)), len(layout.sources))
        at = round_.pop()
        if (at, rows) not in made:
            source = layout.sources[at]
            prefill = prefill_legs(snapshot, layout, source, prompt)
            decode = decode_legs(snapshot, layout, source, rows)
            made[at, rows] = Group(rows, tuple(prefill), tuple(decode), source.name)
        groups.append(made[at, rows])
    return groups


def _sizes(requests: int, batch: int, micro_batch: int) -> list[int]:
    """Rows of each micro-batch: sets that fill ``batch`` exactly, one set after another."""
    whole, rest = divmod(batch, micro_batch)
    sizes: list[int] = []
    for rows in cycle([micro_batch] * whole + ([rest] if rest else [])):
        if requests <= 0:
            break
        sizes.append(min(rows, requests))
        requests -= rows
    return sizes


def simulate(
    groups: Sequence[Group],
    *,
    batch: int,
    generate: int,
    schedule: Schedule = "no-bubbles",
    order: Order = "fifo",
) -> Report:
    """All requests come at time 0 and generate so many tokens, at least one, each."""
    largest = max((group.rows for group in groups), default=0)
    if not 0 < largest <= batch or generate < 1:
        raise ValueError(f"{largest} rows at once, {batch} slots, {generate} tokens")
    run = _Run(groups, batch, generate, Pace(schedule), order)
    run.run()
    return _report(run)


@dataclass(slots=True)
class _Job:
    """What is under way: one prompt, or one token of a whole micro-batch."""

    micro_batch: int
    row: int
    kind: Kind
    token: int
    legs: tuple[Leg, ...]
    passed: int = 0
    """Legs that it is through with."""

    @property
    def leg(self) -> Leg | None:
        """Where it is, or goes; None when its token is back."""
        return self.legs[self.passed] if self.passed < len(self.legs) else None


@dataclass(slots=True)
class _Run:
    groups: Sequence[Group]
    slots: int
    """Free ones."""
    generate: int
    pace: Pace
    order: Order
    now: int = 0
    n_joined: int = 0
    n_first: int = 0
    """Micro-batches that were in flight at first."""
    servers: dict[str, Server] = field(default_factory=dict)
    jobs: dict[tuple[int, int], _Job] = field(default_factory=dict)
    """By micro-batch and row."""
    first: list[dict[int, int]] = field(default_factory=list)
    """When each row's first token came, for each micro-batch."""
    tokens: list[list[int]] = field(default_factory=list)
    """When each token of the micro-batch came, the first one of its last row."""
    trace: list[Span] = field(default_factory=list)
    _events: list[tuple[int, int, _Job, str]] = field(default_factory=list)
    """When; a number that keeps their order; who arrives; the resource that it leaves, if any."""
    _n_events: int = 0

    def __post_init__(self) -> None:
        self.first, self.tokens = [{} for _ in self.groups], [[] for _ in self.groups]
        for group in self.groups:
            for leg in (*group.prefill, *group.decode):
                self.servers.setdefault(leg.resource, Server(self.order))

    def run(self) -> None:
        self._admit()
        self.n_first = self.n_joined
        self._decide()
        while self._events:
            self.now = self._events[0][0]
            # Everything that happens at this moment comes before any decision: the order in which
            # it was found out must not matter.
            while self._events and self._events[0][0] == self.now:
                _, _, job, resource = heappop(self._events)
                self._leave(job, resource) if resource else self._arrive(job)
            self._decide()

    def _admit(self) -> None:
        """First in, first out: a small one does not overtake one that waits for its slots."""
        while self.n_joined < len(self.groups):
            rows = self.groups[self.n_joined].rows
            if rows > self.slots:
                return
            self.slots -= rows
            self.pace.joined(self.n_joined)
            self.n_joined += 1

    def _decide(self) -> None:
        while starting := self.pace.starts():
            for micro_batch in starting:
                self._start(micro_batch)
        for name, server in self.servers.items():
            if ticket := server.begin():
                self._serve(name, self.jobs[ticket.micro_batch, ticket.row])

    def _start(self, micro_batch: int) -> None:
        group, token = self.groups[micro_batch], len(self.tokens[micro_batch])
        if token:
            self._arrive(_Job(micro_batch, 0, "decode", token, group.decode))
            return
        for row in range(group.rows):
            self._arrive(_Job(micro_batch, row, "prefill", 0, group.prefill))

    def _serve(self, resource: str, job: _Job) -> None:
        assert job.leg is not None
        # What a rest is worth is left out: where there is a queue, nobody rests.
        end_us = self.now + job.leg.busy_us + job.leg.beside_us
        self._push(end_us, job, resource)
        if end_us > self.now:
            span = Span(resource, self.now, end_us, job.micro_batch, job.kind, job.token)
            self.trace.append(span)

    def _leave(self, job: _Job, resource: str) -> None:
        assert job.leg is not None
        self.servers[resource].end()
        delay_us = job.leg.delay_us
        job.passed += 1
        self._push(self.now + delay_us, job)

    def _arrive(self, job: _Job) -> None:
        if job.leg is None:
            self._back(job)
            return
        self.jobs[job.micro_batch, job.row] = job
        self.servers[job.leg.resource].arrive(Ticket(self.now, job.micro_batch, job.row))

    def _back(self, job: _Job) -> None:
        micro_batch, group = job.micro_batch, self.groups[job.micro_batch]
        if job.kind == "prefill":
            self.first[micro_batch][job.row] = self.now
            if len(self.first[micro_batch]) < group.rows:
                return
        self.tokens[micro_batch].append(self.now)
        if len(self.tokens[micro_batch]) < self.generate:
            self.pace.back(micro_batch)
            return
        self.pace.left(micro_batch)
        self.slots += group.rows
        self._admit()

    def _push(self, at: int, job: _Job, resource: str = "") -> None:
        heappush(self._events, (at, self._n_events, job, resource))
        self._n_events += 1


def _report(run: _Run) -> Report:
    total_us = max(times[-1] for times in run.tokens)
    n_tokens = run.generate * sum(group.rows for group in run.groups)
    return Report(
        ttft_us=tuple(us for rows in run.first for _, us in sorted(rows.items())),
        finish_us=tuple(_finishes(run)),
        token_us=_spread(_between_tokens(run)),
        tokens_per_s=n_tokens * 1e6 / total_us if total_us else 0.0,
        total_us=total_us,
        n_micro_batches=run.n_first,
        iteration_us=_iteration_us(run.tokens[: run.n_first]),
        uses=tuple(_uses(run, total_us)),
        trace=tuple(run.trace),
    )


def _finishes(run: _Run) -> list[int]:
    """Of one token, each row has its own; later ones come together."""
    alone = run.generate == 1
    return [
        us if alone else times[-1]
        for rows, times in zip(run.first, run.tokens, strict=True)
        for _, us in sorted(rows.items())
    ]


def _between_tokens(run: _Run) -> list[int]:
    """For each request, from each of its tokens to the next; the wait for the others of its
    micro-batch counts."""
    return [
        after - before
        for rows, times in zip(run.first, run.tokens, strict=True)
        for us in rows.values()
        for before, after in pairwise((us, *times[1:]))
    ]


def _spread(values: list[int]) -> Spread:
    if not values:
        return Spread()
    values = sorted(values)
    at = [values[-(-len(values) * percent // 100) - 1] for percent in (50, 99)]
    return Spread(sum(values) // len(values), *at)


def _iteration_us(tokens: list[list[int]]) -> int | None:
    """Over the later half of the time for which all these micro-batches decode."""
    begin, end = max(times[0] for times in tokens), min(times[-1] for times in tokens)
    settled = [[us for us in times if (begin + end) // 2 <= us <= end] for times in tokens]
    n = sum(len(times) - 1 for times in settled if times)
    span = sum(times[-1] - times[0] for times in settled if times)
    return round(Fraction(span, n)) if begin < end and n else None


def _uses(run: _Run, total_us: int) -> list[Use]:
    busy_us, decode_us = dict.fromkeys(run.servers, 0), dict.fromkeys(run.servers, 0)
    begin = min((span.start_us for span in run.trace if span.kind == "decode"), default=total_us)
    for span in run.trace:
        busy_us[span.resource] += span.end_us - span.start_us
        decode_us[span.resource] += max(0, span.end_us - max(begin, span.start_us))
    phase = total_us - begin
    return [
        Use(
            resource=name,
            busy_us=us,
            busy_share=us / total_us if total_us else 0.0,
            bubble_share=1 - decode_us[name] / phase if phase else None,
        )
        for name, us in busy_us.items()
    ]
