"""Models in numbers without their files: specs that are shipped, and specs read from TOML.

Knows nothing of checkpoints and configs: ``model.checkpoint`` makes specs of those.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.tables import At, TopologyError, convert, read_toml, to_table

_SHIPPED = Path(__file__).parent / "model_specs"
_NO_DIGEST = "0" * 64

_Params = Annotated[int, Meta(ge=1, le=2**44)]


class _SpecFile(Struct, frozen=True):
    """The keys of a spec; their meaning is that of ``ModelSpec``."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    family: Annotated[str, Meta(min_length=1, max_length=40)]
    hidden_size: Annotated[int, Meta(ge=1, le=2**20)]
    vocab_size: Annotated[int, Meta(ge=1, le=2**24)]
    max_context: Annotated[int, Meta(ge=1, le=2**24)]
    n_blocks: Annotated[int, Meta(ge=1, le=1024)]
    embedding_params: _Params
    block_params: object
    """One number for every block, or a list with one for each."""
    head_params: _Params
    kv_width: Annotated[int, Meta(ge=0, le=2**32)]
    tied_params: Annotated[int, Meta(ge=0, le=2**44)] = 0


def shipped() -> list[str]:
    """Names of the specs that come with the program."""
    return sorted(file.stem for file in _SHIPPED.glob("*.toml"))


@lru_cache(maxsize=64)
def shipped_spec(name: str) -> ModelSpec | None:
    return read_spec(_SHIPPED / f"{name}.toml") if name in shipped() else None


def read_spec(path: Path) -> ModelSpec:
    """The spec in a TOML file.  Raises TopologyError with file and key."""
    at = At(path)
    file = to_table(read_toml(path), _SpecFile, at)
    if file.tied_params > min(file.head_params, file.embedding_params):
        raise (at / "tied_params").error("expected no more than embedding_params and head_params")
    spec = ModelSpec(
        name=file.name,
        digest=_NO_DIGEST,
        family=file.family,
        hidden_size=file.hidden_size,
        vocab_size=file.vocab_size,
        max_context=file.max_context,
        embedding_params=file.embedding_params,
        block_params=_blocks(file, at / "block_params"),
        head_params=file.head_params,
        tied_params=file.tied_params,
        kv_width=file.kv_width,
    )
    return replace(spec, digest=digest_of_numbers(spec))


def digest_of_numbers(spec: ModelSpec) -> str:
    """Stands for a model whose files are not there: SHA-256 over all of its spec but the digest."""
    numbers = msgspec.json.encode(replace(spec, digest=_NO_DIGEST), order="sorted")
    return sha256(numbers).hexdigest()


def _blocks(file: _SpecFile, at: At) -> tuple[int, ...]:
    if not isinstance(file.block_params, list):
        return (convert(file.block_params, _Params, at),) * file.n_blocks
    if len(file.block_params) != file.n_blocks:
        raise at.error(f"expected {file.n_blocks} numbers, got {len(file.block_params)}")
    return tuple(convert(file.block_params, list[_Params], at))


__all__ = ["TopologyError", "digest_of_numbers", "read_spec", "shipped", "shipped_spec"]
