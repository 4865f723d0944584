"""Watching a request: its stream and its source's reports, each with the moment it came.

Threads, since a conversation with a peer waits; they end when the request and the watching do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from edgeshard_p2p.faults.devices import Devices
from edgeshard_p2p.faults.figures import Observed, Piece, Seen
from edgeshard_p2p.net.client import Client, NoAnswer
from edgeshard_p2p.wire.client import Done, Failed, Notice, Run, Status, StatusReport, Text
from edgeshard_p2p.wire.errors import WireError

POLL_S = 0.015
REPORT_TIMEOUT_S = 1.0
RETRY_S = 0.2
ANSWER_TIMEOUT_S = 150.0
"""Longer than any wait of a source's own, after which it says why."""


class Watch:
    """A context manager around one request to ``source``; ``others`` are asked for reports too."""

    def __init__(
        self, devices: Devices, source: str, request: Run, others: Iterable[str] = ()
    ) -> None:
        self._devices, self._source, self._request = devices, source, request
        self.observed = Observed(source)
        self.token_ids: list[int] = []
        self.done: Done | None = None
        self.error = ""
        """Why the answer ended before its end."""
        self.report: dict[str, Any] = {}
        """The source's latest."""
        self._changed = threading.Condition()
        self._is_over = threading.Event()
        names = dict.fromkeys([source, *others])
        self._watchers = [
            threading.Thread(target=self._poll, args=(name,), daemon=True) for name in names
        ]
        self._stream = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        for thread in self._watchers:
            thread.start()
        self.wait_until(lambda: bool(self.report), REPORT_TIMEOUT_S)
        self._stream.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._watchers:
            thread.join(2 * REPORT_TIMEOUT_S)
        if self.is_ended:
            self._stream.join()

    @property
    def is_ended(self) -> bool:
        return self.done is not None or bool(self.error)

    @property
    def n_tokens(self) -> int:
        """As many as have come here, or as the source says that it has."""
        requests = self.report.get("requests", [])
        generated = max((request["generated_tokens"] for request in requests), default=0)
        return max(len(self.token_ids), generated)

    @property
    def attempt(self) -> int:
        return max((r["attempt"] for r in self.report.get("requests", [])), default=0)

    @property
    def is_replaying(self) -> bool:
        return any(request["state"] == "running" for request in self.report.get("requests", []))

    def wait_until(self, is_so: Callable[[], bool], wait_s: float) -> bool:
        """Whether it became so in time; looked at whenever something comes."""
        with self._changed:
            return self._changed.wait_for(is_so, wait_s)

    # --- threads --------------------------------------------------------------------------

    def _follow(self) -> None:
        self._devices.enter(self._source)
        address = self._devices.address(self._source)
        try:
            with Client(address, self._devices.security) as client:
                client.send(self._request)
                for answer in client.answers(ANSWER_TIMEOUT_S):
                    if self._take(answer, time.monotonic()):
                        return
        except (NoAnswer, WireError) as error:
            self._end(str(error))

    def _take(self, answer: Any, at: float) -> bool:
        """Whether that was the end."""
        with self._changed:
            if isinstance(answer, Text):
                self.token_ids += answer.token_ids
                self.observed.pieces.append(Piece(at, len(answer.token_ids)))
            elif isinstance(answer, Notice):
                self.observed.pieces.append(Piece(at, notice=answer.text))
            elif isinstance(answer, Done):
                self.done = answer
            elif isinstance(answer, Failed):
                self.error = answer.error
            self._changed.notify_all()
            return self.is_ended

    def _end(self, why: str) -> None:
        with self._changed:
            self.error = why
            self._changed.notify_all()

    def _poll(self, name: str) -> None:
        self._devices.enter(name)
        while not self._is_over.is_set():
            with suppress(NoAnswer, WireError):
                self._poll_while_it_answers(name)
            self._is_over.wait(RETRY_S)

    def _poll_while_it_answers(self, name: str) -> None:
        with Client(self._devices.address(name), self._devices.security) as client:
            while not self._is_over.is_set():
                client.send(Status())
                answer = next(client.answers(REPORT_TIMEOUT_S))
                if isinstance(answer, StatusReport):
                    self._note(name, answer.report, time.monotonic())
                self._is_over.wait(POLL_S)

    def _note(self, name: str, report: dict[str, Any], at: float) -> None:
        members = {m["name"]: (m["state"], m["generation"]) for m in report["members"]}
        plan = report["plan"]
        with self._changed:
            self.observed.seen.append(Seen(at, name, members, plan["plan_id"], plan["state"]))
            if name == self._source:
                self.report = report
            self._changed.notify_all()
