"""The specs of models that were opened on this machine before.

Opening a model takes seconds, most of them for importing transformers.  A peer that starts again
joins and is planned with what is known here, and opens the model meanwhile.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from msgspec.structs import replace

from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.model import library, memo
from edgeshard_p2p.model.library import LocalModel


def _file(digest: str) -> Path:
    """Changes with whatever makes specs."""
    makers = f"{version('edgeshard_p2p')}-{version('transformers')}"
    return library.cache_dir() / "specs" / f"{digest}-{makers}.json"


def of(model: LocalModel, digest: str) -> ModelSpec | None:
    """The spec of ``model``, whose manifest digest is ``digest``."""
    spec = memo.read(_file(digest), ModelSpec)
    return replace(spec, name=model.name) if spec is not None and spec.digest == digest else None


def keep(spec: ModelSpec) -> None:
    memo.keep(_file(spec.digest), spec)
