"""A running swarm under load: what its users saw, what its peers did meanwhile, and what the plan
had promised."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from edgeshard_p2p.config import parse_address
from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.schedule import schedule_of
from edgeshard_p2p.load.figures import Figures, figures, steady_tokens_per_s
from edgeshard_p2p.load.traffic import Load, Served, Traffic
from edgeshard_p2p.load.watch import Expected, bubbles, expected, served_plan
from edgeshard_p2p.net.asking import ask
from edgeshard_p2p.net.client import Client
from edgeshard_p2p.net.security import Security
from edgeshard_p2p.prompts import SLACK, prompt_of, words
from edgeshard_p2p.wire.client import (
    ClientRequest,
    Done,
    Failed,
    Run,
    Status,
    StatusReport,
    SwarmView,
    View,
)

ASK_S = 10.0
PROBE_S = 120.0
LOADING_S, POLL_S = 120.0, 0.25
VARIANTS = 1000
"""Where the prompts of a bench may begin."""

Answer = TypeVar("Answer")


class LoadError(Exception):
    """Why the swarm cannot be put under load, in one line."""


class Wish(Struct, frozen=True):
    requests: int
    concurrency: int
    """At most as many as there are requests."""
    prompt: int
    """Tokens; the nearest that words can get, a few more or less from one to the next."""
    generate: int
    temperature: float = 0.0
    seed: int = 0


class Measured(Struct, frozen=True):
    plan_id: str
    objective: str
    batch: int
    """What the plan holds at once; requests beyond wait for a slot."""
    concurrency: int
    prompt_tokens: int
    generate: int
    seen: Figures
    steady_tokens_per_s: float | None
    """Where all requests were put at once: while all were decoding."""
    bubbles: dict[str, float]
    """By peer: the part of the time in which it computed nothing."""
    predicted: Expected | None
    plans: int
    """How many plans the answers ended on: with more than one the swarm changed it meanwhile."""
    errors: tuple[str, ...]
    shaped: tuple[str, ...]
    """Peers of the plan that emulate links inside themselves."""

    def told(self) -> dict[str, Any]:
        """As one flat object."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        seen = told.pop("seen")
        return {**told, **seen}


class Bench:
    """``peers``: sources.  Raises LoadError, and what a conversation with a peer can raise."""

    def __init__(self, peers: Sequence[Address], security: Security) -> None:
        self._peers, self._security = tuple(peers), security

    def run(
        self, wish: Wish, say: Callable[[str], None], on_token: Callable[[], None]
    ) -> tuple[Measured, list[Served]]:
        for peer in self._peers[1:]:
            self._check_source(peer)
        report = self._serving(say)
        plan: Any = report["plan"]
        say(f"looking for a prompt of {wish.prompt} tokens")
        prompt, n_prompt = prompt_of(wish.prompt, self._count)
        if n_prompt + SLACK + wish.generate > plan["context"]:
            raise LoadError(
                f"{n_prompt} + {wish.generate} tokens, and {SLACK} by which prompts differ, are "
                f"more than the swarm's context of {plan['context']}; ask for fewer, or "
                "`edgeshard set context=`"
            )
        promise = self._promise(report, min(wish.concurrency, plan["batch"]))
        # No two begin alike, nor, as far as can be, as those of the bench before: else what is
        # cached of one would spare the other its prompt.
        n_words, first = len(prompt.split()), 1 + secrets.randbelow(VARIANTS)
        prompts = tuple(words(n_words, first + number) for number in range(wish.requests))
        load = Load(
            prompts, wish.requests, wish.concurrency, wish.generate, wish.temperature, wish.seed
        )
        before, begun = self._reports(report), time.monotonic()
        served = Traffic(load, self._peers, self._security, on_token).run()
        seen, took_s = figures(served), time.monotonic() - begun
        is_at_once = wish.concurrency == wish.requests
        measured = Measured(
            plan["plan_id"],
            plan["objective"],
            plan["batch"],
            wish.concurrency,
            n_prompt,
            wish.generate,
            seen,
            steady_tokens_per_s(served) if is_at_once else None,
            bubbles(before, self._reports(report), took_s),
            promise,
            len({one.plan_id for one in served if one.plan_id}),
            tuple(sorted({one.error for one in served if one.error})),
            tuple(sorted(name for name, said in before.items() if said.get("shaping"))),
        )
        return measured, served

    def _serving(self, say: Callable[[str], None]) -> dict[str, Any]:
        """A report of when there is a plan that serves; one that is being loaded is waited for."""
        ends_at, pause = time.monotonic() + LOADING_S, threading.Event()
        for n_asked in count():
            report: dict[str, Any] = self._asked(self._peers[0], Status(), StatusReport).report
            if report["plan"]["state"] == "active":
                break
            why = report["plan"]["waiting_for"]
            if not why and time.monotonic() > ends_at:
                why = f"its plan has not been loaded in {LOADING_S:.0f} s"
            if why:
                raise LoadError(f"the swarm cannot serve now: {why}")
            if not n_asked:
                say("waiting: the plan is being loaded")
            pause.wait(POLL_S)
        return report

    def _check_source(self, peer: Address) -> None:
        me: Any = self._asked(peer, Status(), StatusReport).report["self"]
        if not me["is_source"]:
            raise LoadError(f"{peer} takes no prompts: {me['name']} is no source")

    def _asked(self, peer: Address, request: ClientRequest, expected: type[Answer]) -> Answer:
        with Client(peer, self._security) as client:
            client.send(request)
            answer = next(client.answers(ASK_S))
        if not isinstance(answer, expected):
            why = answer.error if isinstance(answer, Failed) else "it is of another release"
            raise LoadError(f"{peer}: {why}")
        return answer

    def _count(self, text: str) -> int:
        peer, ends_at = self._peers[0], time.monotonic() + PROBE_S
        request = Run(text, True, 1, Sampling())
        answer = ask(peer, self._security, request, PROBE_S)
        while isinstance(answer, Failed) and answer.retry_ms and time.monotonic() < ends_at:
            threading.Event().wait(answer.retry_ms / 1e3)
            answer = ask(peer, self._security, request, PROBE_S)
        if not isinstance(answer, Done):
            why = answer.error if isinstance(answer, Failed) else "no answer"
            raise LoadError(f"{peer}: {why}")
        return answer.prompt_tokens

    def _promise(self, report: dict[str, Any], n_requests: int) -> Expected | None:
        snapshot = self._asked(self._peers[0], View(), SwarmView).snapshot
        plan = served_plan(report, snapshot) if snapshot is not None else None
        if snapshot is None or plan is None:
            return None
        schedule = schedule_of(report["settings"].get("schedule"))
        return expected(plan, snapshot, n_requests, schedule)

    def _reports(self, report: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Of every peer of the plan that can be reached from here, by name."""
        names = {part["peer"] for part in report["plan"]["stages"]}
        found = {}
        for member in report["members"]:
            if member["name"] in names:
                address = parse_address(member["address"])
                answer = ask(address, self._security, Status(), ASK_S)
                if isinstance(answer, StatusReport):
                    found[member["name"]] = answer.report
        return found
