"""A whole peer in this process, and a client that asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeshard_p2p.config import PeerConfig
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net.client import Client
from edgeshard_p2p.net.security import Security, open_security
from edgeshard_p2p.runtime import peer as runtime
from edgeshard_p2p.runtime.model_host import ModelHost
from edgeshard_p2p.runtime.state import State
from tests.e2e.conftest import save_tokenizer
from tests.model.tiny import save_model
from tests.runtime.waiting import DEADLINE_S, free_address, until_async

SECURITY = open_security("tests", ())


def whole_model(directory: Path) -> Path:
    """A tiny one that a peer can be given."""
    path = save_model(directory, "llama")
    save_tokenizer(path)
    return path


def live_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache of one's own.  Peers of one user measure themselves one at a time: not waiting
    for those of others."""
    monkeypatch.setenv("EDGESHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@asynccontextmanager
async def peer(
    tmp_path: Path,
    model: Path | None = None,
    host: Callable[[], ModelHost] | None = None,
    security: Security = SECURITY,
) -> AsyncIterator[Any]:
    config = PeerConfig(free_address(), mdns=False, name="peer", swarm="tests")
    state = State(tmp_path / "state")
    given = runtime._open_given(str(model)) if model is not None else None
    own = ModelHost("cpu", {})
    life = runtime._Life(config, security, config.listen, state, given, 2**28, 0)
    running = asyncio.create_task(life.run(host or (lambda: own)))
    try:
        await until_async(lambda: running.done() or life.core._started_at, "the peer's start")
        yield life
        life.driver.post(ev.StopAsked())
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        state.close()


def ask(to: Address, request: Any, until_kind: type, security: Security = SECURITY) -> list[Any]:
    """As the command line does it; blocks."""
    answers = []
    with Client(to, security) as client:
        client.send(request)
        for answer in client.answers(DEADLINE_S):
            answers.append(answer)
            if isinstance(answer, until_kind):
                return answers
    return answers
