"""Requests put to running peers: always so many at once, until all have been answered.

Each of them is a client of its own, as a user would be.  One that is refused for now comes again
when it was told to.  Knows nothing of what the figures mean.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import zmq

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.net.client import Client, NoAnswer
from edgeshard_p2p.net.security import Security
from edgeshard_p2p.wire.client import Cancel, Done, Failed, Run, Text
from edgeshard_p2p.wire.errors import WireError

ANSWER_S = 180.0
"""Without a word for so long a request has failed."""
REFUSALS_MAX = 1000
SOCKETS_PER_CLIENT, SOCKETS_MIN = 16, 1024
"""One that was closed counts for a while."""


@dataclass(frozen=True, slots=True)
class Load:
    prompts: tuple[str, ...]
    """By number, after the last the first again; as they are, without the chat template."""
    requests: int
    """At most."""
    concurrency: int
    generate: int
    temperature: float = 0.0
    seed: int = 0
    """Of the first request; the others have the numbers after it."""
    seeds: int = 0
    """After so many requests the first seed comes again; 0: never."""

    def sampling(self, index: int) -> Sampling:
        return Sampling(
            self.temperature, seed=self.seed + (index % self.seeds if self.seeds else index)
        )


@dataclass(slots=True)
class Served:
    """One request as its client saw it; times are of the monotonic clock, in seconds."""

    index: int
    asked_at: float = 0.0
    """When it was first asked; being refused meanwhile counts as waiting."""
    token_at: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    refusals: int = 0
    failovers: int = 0
    cached_tokens: int = 0
    """Of its prompt, that nobody had to compute."""
    plan_id: str | None = None
    """That it ended on."""
    error: str = ""

    @property
    def is_whole(self) -> bool:
        return not self.error


class Traffic:
    """``peers``: sources, each asked in turn.  ``on_token`` is told of each token, from any
    thread."""

    def __init__(
        self, load: Load, peers: Sequence[Address], security: Security, on_token: Callable[[], None]
    ) -> None:
        self._load, self._peers, self._security = load, tuple(peers), security
        self._on_token = on_token
        self._is_over = threading.Event()
        self._is_closed = threading.Event()
        self._served: list[Served] = []
        self._turn = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        n_sockets = max(SOCKETS_MIN, SOCKETS_PER_CLIENT * (load.concurrency + 1))
        self._context.set(zmq.MAX_SOCKETS, n_sockets)

    def run(self) -> list[Served]:
        """All of them, by number.  Whatever ends this ends the requests as well."""
        pool = ThreadPoolExecutor(self._load.concurrency, thread_name_prefix="client")
        try:
            clients = [pool.submit(self._ask_on) for _ in range(self._load.concurrency)]
            for done in wait(clients, return_when=FIRST_EXCEPTION).done:
                done.result()
        finally:
            self.end()
            pool.shutdown(cancel_futures=True)
            self._context.term()
        return self._served

    def close(self) -> None:
        """From any thread: no further request is begun; those that were are seen through."""
        self._is_closed.set()

    def end(self) -> None:
        """From any thread: what still runs is cancelled, and soon over."""
        self._is_over.set()

    def _ask_on(self) -> None:
        """One client: a request after the other."""
        while (one := self._next()) is not None:
            self._serve(one)

    def _next(self) -> Served | None:
        with self._turn:
            n_begun = len(self._served)
            if self._is_closed.is_set() or self._is_over.is_set() or n_begun == self._load.requests:
                return None
            self._served.append(Served(n_begun))
            return self._served[-1]

    def _serve(self, one: Served) -> None:
        one.asked_at = time.monotonic()
        try:
            while not self._is_over.is_set():
                refused = self._converse(one)
                if refused is None:
                    return
                one.refusals += 1
                if one.refusals >= REFUSALS_MAX:
                    one.error = refused.error
                    return
                self._is_over.wait(refused.retry_ms / 1e3)
            one.error = "cancelled"
        except (NoAnswer, WireError) as error:
            one.error = str(error)
        except zmq.ZMQError as error:
            one.error = f"no connection for one more client: {error}; try a lower --concurrency"

    def _converse(self, one: Served) -> Failed | None:
        """The refusal, where it is to come again."""
        load, peer = self._load, self._peers[one.index % len(self._peers)]
        one.token_at.clear()
        one.token_ids.clear()
        with Client(peer, self._security, self._context) as client:
            prompt = load.prompts[one.index % len(load.prompts)]
            sampling = load.sampling(one.index)
            client.send(Run(prompt, True, load.generate, sampling, ignore_eos=True))
            for answer in client.answers(ANSWER_S, self._is_over.is_set):
                if isinstance(answer, Text):
                    now = time.monotonic()
                    for token_id in answer.token_ids:
                        one.token_at.append(now)
                        one.token_ids.append(token_id)
                        self._on_token()
                elif isinstance(answer, Failed):
                    if answer.retry_ms and not one.token_ids:
                        return answer
                    one.error = answer.error
                    return None
                elif isinstance(answer, Done):
                    one.failovers, one.plan_id = answer.failovers, answer.plan_id
                    one.cached_tokens = answer.cached_tokens
                    return None
            # Else it would hold its place until there is a text that nobody takes.
            client.send(Cancel())
        one.error = "cancelled"
        return None
