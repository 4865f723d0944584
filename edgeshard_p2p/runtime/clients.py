"""Clients of this peer: prompts in, text out.

Keeps the text side of each request: the tokenizer, the stream decoder, whom to answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.admission import RETRY_MS
from edgeshard_p2p.core.ids import RequestId
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.report import report
from edgeshard_p2p.core.settings import LIFTED, is_valid, why_invalid
from edgeshard_p2p.core.view import View, model_of
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.text import StreamDecoder, Tokenizer
from edgeshard_p2p.net.transport import Transport
from edgeshard_p2p.wire import client as wire

PENDING_MAX = 64
"""Prompts that may be in tokenisation at once."""
CALL_EVERY_S = 5.0
"""Who has had nothing for so long is called: one that is gone gives up its place."""


@dataclass(slots=True)
class Stream:
    identity: bytes
    decoder: StreamDecoder
    held_ids: list[int] = field(default_factory=list)
    """Ids whose text is not complete yet."""
    is_silent: bool = False
    """Nothing was sent since it was called last."""


class Clients:
    def __init__(
        self,
        core: PeerCore,
        transport: Transport,
        post: Callable[[ev.Event], None],
        counters: Callable[[], dict[str, dict[str, Any]]],
        stand_still: Callable[[float], None],
    ) -> None:
        self._core = core
        self._transport = transport
        self._post = post
        self._counters = counters
        self._stand_still = stand_still
        self.tokenizer: Tokenizer | None = None
        """Of the model that is open; None until there is one."""
        self._pending: dict[str, bytes] = {}
        self._unwanted: set[str] = set()
        """Of the pending ones, those that are to be cancelled."""
        self._streams: dict[RequestId, Stream] = {}
        self._by_identity: dict[bytes, RequestId] = {}

    # --- requests -------------------------------------------------------------------------

    def on_request(self, identity: bytes, request: wire.ClientRequest, spawn: Any) -> None:
        if isinstance(request, wire.Run):
            self._run(identity, request, spawn)
        elif isinstance(request, wire.Cancel):
            if identity in self._by_identity:
                self._post(ev.RequestCancelled(self._by_identity[identity]))
            elif identity.hex() in self._pending:
                self._unwanted.add(identity.hex())
        elif isinstance(request, wire.Status):
            self.answer(identity, wire.StatusReport(report(self._core) | self._counters()))
        elif isinstance(request, wire.View):
            self.answer(identity, self._swarm_view())
        elif isinstance(request, wire.StandStill):
            self.answer(identity, wire.Okay())
            self._stand_still(request.for_s)
        else:
            self._set(identity, request)

    def _run(self, identity: bytes, request: wire.Run, spawn: Any) -> None:
        client = identity.hex()
        if client in self._pending or len(self._pending) >= PENDING_MAX:
            self.answer(identity, wire.Failed("this peer is overloaded", retry_ms=RETRY_MS))
            return
        if self._is_opening():
            text = f"{self._core.me} is still opening the model"
            self.answer(identity, wire.Failed(text, retry_ms=RETRY_MS))
            return
        self._pending[client] = identity
        if not self._core.is_source() or self.tokenizer is None:
            # The core knows best how to say why not.
            self._submit(client, request, ())
            return
        spawn(self._tokenize(client, request, self.tokenizer), name=f"tokenize {client}")

    def _is_opening(self) -> bool:
        """Whether prompts are welcome, but nobody can read them yet."""
        core = self._core
        if self.tokenizer is not None or not core.is_source() or core.is_stopping:
            return False
        return model_of(core.gossip) is not None and not core.local.trouble

    async def _tokenize(self, client: str, request: wire.Run, tokenizer: Tokenizer) -> None:
        prompt: tuple[int, ...] = ()
        if request.prompt.strip():
            try:
                prompt = await asyncio.to_thread(tokenizer.encode, request.prompt, request.is_raw)
            except ModelError as error:
                self._turn_away(client, wire.Failed(str(error), is_usage=True))
                return
        if self.tokenizer is not tokenizer:
            text = "the swarm's model has just changed"
            self._turn_away(client, wire.Failed(text, retry_ms=RETRY_MS))
            return
        self._submit(client, request, prompt)

    def _turn_away(self, client: str, failed: wire.Failed) -> None:
        self._unwanted.discard(client)
        self.answer(self._pending.pop(client), failed)

    def _submit(self, client: str, request: wire.Run, prompt: tuple[int, ...]) -> None:
        reader = None if request.ignore_eos else self.tokenizer
        stop_ids = reader.stop_ids if reader is not None else ()
        self._post(
            ev.PromptSubmitted(
                client, prompt, request.max_tokens, request.sampling, frozenset(stop_ids)
            )
        )

    def _swarm_view(self) -> wire.SwarmView:
        replan = self._core.planning.replan
        view = replan.view or View(None, replan.waiting_for())
        return wire.SwarmView(view.snapshot, view.waiting_for, view.excluded)

    def _set(self, identity: bytes, request: wire.Set) -> None:
        value: str | int = int(request.value) if request.value.isdecimal() else request.value
        if is_valid(request.key, value):
            error = self._core.wishes.why_not(request.key, value)
        else:
            error = why_invalid(request.key, value)
        if error:
            self.answer(identity, wire.Failed(error, is_usage=True))
            return
        if request.for_s and request.key not in LIFTED:
            error = f"{request.key} cannot be set for a time only; {', '.join(LIFTED)} can"
            self.answer(identity, wire.Failed(error, is_usage=True))
            return
        self._post(ev.SettingAsked(request.key, value, for_s=request.for_s))
        self.answer(identity, wire.Okay())

    # --- effects --------------------------------------------------------------------------

    def accepted(self, effect: fx.Accepted) -> None:
        identity = self._pending.pop(effect.client)
        assert self.tokenizer is not None
        self._streams[effect.request] = Stream(identity, self.tokenizer.stream())
        self._by_identity[identity] = effect.request
        is_there = self.answer(identity, wire.Started(str(effect.request)))
        if not is_there or effect.client in self._unwanted:
            self._unwanted.discard(effect.client)
            self._post(ev.RequestCancelled(effect.request))

    def rejected(self, effect: fx.Rejected) -> None:
        self._turn_away(effect.client, wire.Failed(effect.reason, retry_ms=effect.retry_ms))

    async def call(self) -> None:
        """Call again and again on those that wait: their connection may have ended, which shows
        only when something is sent."""
        while True:
            await asyncio.sleep(CALL_EVERY_S)
            for request, stream in list(self._streams.items()):
                if stream.is_silent and not self.answer(stream.identity, wire.Waiting()):
                    self._post(ev.RequestCancelled(request))
                stream.is_silent = True

    def emit(self, effect: fx.EmitToken) -> None:
        stream = self._streams[effect.request]
        stream.held_ids.append(effect.token)
        self._send_text(effect.request, stream, stream.decoder.push(effect.token))

    def _send_text(self, request: RequestId, stream: Stream, text: str) -> None:
        if not text:
            return
        ids, stream.held_ids, stream.is_silent = tuple(stream.held_ids), [], False
        if not self.answer(stream.identity, wire.Text(text, ids)):
            self._post(ev.RequestCancelled(request))

    def notice(self, effect: fx.RequestNotice) -> None:
        stream = self._streams[effect.request]
        self.answer(stream.identity, wire.Notice(effect.text))

    def finish(self, effect: fx.FinishRequest) -> None:
        stream = self._streams.pop(effect.request)
        self._by_identity.pop(stream.identity, None)
        rest = stream.decoder.flush()
        if rest or stream.held_ids:
            self.answer(stream.identity, wire.Text(rest, tuple(stream.held_ids)))
        if effect.finish_reason == "error":
            self.answer(stream.identity, wire.Failed(effect.error, retry_ms=effect.retry_ms))
            return
        stats = effect.stats
        self.answer(
            stream.identity,
            wire.Done(
                effect.finish_reason,
                stats.prompt_tokens,
                stats.generated_tokens,
                stats.ttft_ms,
                stats.ms_per_token,
                stats.plan_id,
                stats.failovers,
                stats.replayed_tokens,
                stats.recovery_ms,
                stats.cached_tokens,
            ),
        )

    def answer(self, identity: bytes, answer: wire.ClientAnswer) -> bool:
        return self._transport.answer_client(identity, wire.encode_answer(answer))
