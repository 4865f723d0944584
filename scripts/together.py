"""What ``scripts/bench together`` runs: the same requests one after another, then all at once.

Peers on loopback hold the small model in stages, pinned.  Every request draws its tokens with a
seed of its own, so each has its own answer, which has to be the same both times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.local import LocalDevices
from edgeshard_p2p.faults.scenario import (
    ExpectEntry,
    FaultScenario,
    PeerEntry,
    RequestEntry,
    SwarmEntry,
)
from edgeshard_p2p.faults.swarm import FaultSwarm
from edgeshard_p2p.model.library import fetch_demo_model
from edgeshard_p2p.net.client import Client
from edgeshard_p2p.wire.client import Done, Failed, Run, Text

NAMES = ("amy", "ben", "cat")
PINS = {1: "amy:0-32", 2: "amy:0-15,ben:15-32", 3: "amy:0-11,ben:11-21,cat:21-32"}
"""Cuts of the small model, near to even."""
PROMPT, GENERATE = 64, 64
ANSWER_S = 300.0

Say = Callable[[str], None]
Answer = tuple[tuple[int, ...], float]
"""Token ids, and seconds until the first of them."""


def together(n_peers: int, n_requests: int, numerics: str, say: Say) -> tuple[dict[str, Any], bool]:
    """The figures, and whether all answers were the same both times."""
    flags = ["--context", "512", "--batch", str(n_requests), "--numerics", numerics]
    scenario = FaultScenario(
        "together",
        "",
        SwarmEntry(flags=flags, pin=PINS[n_peers]),
        tuple(PeerEntry(name, source=name == NAMES[0]) for name in NAMES[:n_peers]),
        RequestEntry(prompt_tokens=PROMPT, generate=GENERATE),
        (),
        ExpectEntry(),
    )
    with LocalDevices(scenario, str(fetch_demo_model(say).path)) as devices:
        swarm = FaultSwarm(scenario, devices, say)
        swarm.open()

        def answer(seed: int) -> Answer:
            sampling = Sampling(temperature=1.0, seed=seed)
            return _answer(devices, Run(swarm.prompt, True, GENERATE, sampling))

        say(f"{n_requests} requests, one after another")
        begun = time.monotonic()
        lone = [answer(seed) for seed in range(n_requests)]
        lone_s, begun = time.monotonic() - begun, time.monotonic()
        say("the same, all at once")
        with ThreadPoolExecutor(n_requests) as pool:
            at_once = list(pool.map(answer, range(n_requests)))
        at_once_s = time.monotonic() - begun
    n_tokens = sum(len(ids) for ids, _ in lone)
    changed = sum(a[0] != b[0] for a, b in zip(lone, at_once, strict=True))
    told = {
        "peers": n_peers,
        "requests": n_requests,
        "numerics": numerics,
        "one_after_another": {"tokens_per_s": round(n_tokens / lone_s, 1)},
        "at_once": {
            "tokens_per_s": round(sum(len(ids) for ids, _ in at_once) / at_once_s, 1),
            "ttft_max_s": round(max(first_s for _, first_s in at_once), 2),
        },
        "ratio": round(lone_s / at_once_s, 2),
        "changed": changed,
    }
    return told, not changed


def _answer(devices: LocalDevices, run: Run) -> Answer:
    token_ids: list[int] = []
    begun, first_s = time.monotonic(), 0.0
    with Client(devices.address(NAMES[0]), devices.security) as client:
        client.send(run)
        for answer in client.answers(ANSWER_S):
            if isinstance(answer, Failed):
                raise FaultError(f"no whole answer: {answer.error}")
            if isinstance(answer, Text) and not token_ids:
                first_s = time.monotonic() - begun
            token_ids += answer.token_ids if isinstance(answer, Text) else ()
            if isinstance(answer, Done):
                return tuple(token_ids), first_s
    raise FaultError("the conversation ended before the answer did")
