"""The swarm's model on this device: found, told of, opened, and then its tokenizer.

Opening takes seconds, most of them for imports.  A model whose spec is known here is told of
first: this peer is planned meanwhile.  What needs the model itself, measuring and loading, comes
after it on the compute thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.model import known_specs, library
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.library import LocalModel
from edgeshard_p2p.model.text import Tokenizer
from edgeshard_p2p.runtime.clients import Clients
from edgeshard_p2p.runtime.compute import Compute

if TYPE_CHECKING:
    from edgeshard_p2p.runtime.model_host import ModelHost


class Opening:
    """``given``: the model that the operator named, which need not lie in the library."""

    def __init__(
        self,
        core: PeerCore,
        clients: Clients,
        compute: Compute,
        host: Callable[[], ModelHost],
        given: LocalModel | None,
        post: Callable[[ev.Event], None],
        progress: Callable[[str], None],
    ) -> None:
        self._core, self._clients, self._compute, self._host = core, clients, compute, host
        self._given, self._post, self._progress = given, post, progress

    def open(self, effect: fx.OpenModel) -> None:
        digest = effect.digest
        self._compute.submit(
            partial(self._find, digest), self._on_found, partial(self._cannot_open, digest)
        )

    def _find(self, digest: str) -> tuple[LocalModel, ModelSpec]:
        model = self._given
        if model is None or library.manifest_digest(model.path) != digest:
            model = library.find_by_digest(digest, self._progress)
        if model is None:
            raise ModelError(_missing_model(digest))
        known = known_specs.of(model, digest)
        return model, known or self._host().open(model.path, digest, model.name)

    def _on_found(self, found: tuple[LocalModel, ModelSpec]) -> None:
        model, spec = found
        on_error = partial(self._cannot_open, spec.digest)
        self._clients.tokenizer = None

        def read_tokenizer(_: None) -> None:
            """After what waits by then, since only prompts wait for it, and it takes a second."""
            self._compute.submit(
                partial(Tokenizer, model.path), partial(self._on_tokenizer, spec.digest), on_error
            )

        on_open = read_tokenizer if self._core.config.is_source else lambda _: None
        self._compute.submit(partial(self._open, model, spec), on_open, on_error)
        self._post(ev.ModelOpened(spec.digest, spec))

    def _open(self, model: LocalModel, told: ModelSpec) -> None:
        if self._host().open(model.path, told.digest, model.name) != told:
            raise ModelError("what was noted of it was not true; start all peers again")

    def _on_tokenizer(self, digest: str, tokenizer: Tokenizer) -> None:
        opened = self._core.local.opened
        if opened is not None and opened.digest == digest:
            self._clients.tokenizer = tokenizer

    def _cannot_open(self, digest: str, error: Exception) -> None:
        self._post(ev.ModelOpened(digest, None, f"cannot open the model: {error}"))


def _missing_model(digest: str) -> str:
    return (
        f"the swarm's model {digest[:12]} is not on this device; copy its directory here and "
        "start with --model DIRECTORY (edgeshard fetch gets the demo's)"
    )
