"""A model's directory, opened: config.json, safetensors, and a skeleton without memory.

Everything that can be wrong with the files is found here, from config and headers, before the
first tensor is read.  Knows nothing of which units are wanted, nor of how they run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from huggingface_hub.errors import StrictDataclassError
from msgspec.structs import replace
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.model import families
from edgeshard_p2p.model.attention import ATTENTION_NAME
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.specs import digest_of_numbers

_BLOCKS_MAX = 1024
_HEADER_BYTES_MAX = 2**28
_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})
_CONFIG_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError, StrictDataclassError),
)
"""What transformers raises over a config.json that makes no model."""


class Reader(Protocol):
    def __call__(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and what it is called there."""

    file: Path
    name: str
    shape: tuple[int, ...]


class Checkpoint:
    """Attributes: path, config, spec, family, skeleton (the model on the meta device)."""

    def __init__(
        self,
        path: Path,
        config: Any,
        skeleton: nn.Module,
        places: dict[str, Place],
        spec: ModelSpec,
    ) -> None:
        self.path = path
        self.config = config
        self.family = families.family_of(config)
        self.skeleton = skeleton
        self.spec = spec
        self._places = places

    def names(self) -> tuple[str, ...]:
        """Names of the tensors, as the model calls them."""
        return tuple(sorted(self._places))

    def tensor(self, name: str) -> torch.Tensor:
        """A private copy of one tensor, in the dtype of the file."""
        with self.reading() as read:
            return read(name).clone()

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """Reads tensors as views of the mapped files.  The caller copies what it keeps: with the
        last view gone the mapping goes, and its pages no longer count as this process's memory."""
        handles: dict[Path, Any] = {}

        def read(name: str) -> torch.Tensor:
            place = self._places[name]
            if place.file not in handles:
                handles[place.file] = safe_open(place.file, framework="pt")
            tensor: torch.Tensor = handles[place.file].get_tensor(place.name)
            return tensor

        yield read
        handles.clear()


def open_checkpoint(path: Path, digest: str, name: str) -> Checkpoint:
    """Opens and checks a model's directory; ``digest`` is the digest of its manifest."""
    config = _read_config(path)
    family = families.family_of(config)
    skeleton = _skeleton(path, config, ATTENTION_NAME)
    found = {place.name: place for file in _safetensors(path) for place in _read_header(file)}
    places = _locate(skeleton, family, config, found)
    spec = _spec(config, skeleton, digest, name)
    return Checkpoint(path, config, skeleton, places, spec)


def spec_of_config(directory: Path) -> ModelSpec:
    """What config.json alone says of a model, of a family that peers cannot serve too.  Its digest
    is over these numbers, its name that of the directory."""
    _check_config(directory)
    config = _load_config(directory)
    skeleton = _skeleton(directory, config, "eager")  # which every family has
    try:
        spec = _spec(config, skeleton, "0" * 64, directory.resolve().name)
        spec = msgspec.convert(msgspec.to_builtins(spec), ModelSpec)
    except _CONFIG_ERRORS as error:
        raise _unusable(directory, error) from None
    return replace(spec, digest=digest_of_numbers(spec))


def _read_config(path: Path) -> Any:
    """The config of a model that peers can serve."""
    model_type = _check_config(path)
    if model_type not in families.FAMILIES:
        raise ModelError(
            f"family {model_type!r} is not supported; supported: {', '.join(families.FAMILIES)}"
        )
    return _load_config(path)


def _check_config(path: Path) -> str:
    """The model's type, from a config.json that transformers may look at: it would build lists
    as long as the number of blocks."""
    try:
        raw = json.loads((path / "config.json").read_text())
        model_type = raw["model_type"]
        n_blocks = max(raw.get(key) or 0 for key in ("num_hidden_layers", "n_layer", "n_layers"))
    except FileNotFoundError:
        raise ModelError(f"{path} has no config.json; give a model's directory") from None
    except (OSError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path / 'config.json'} is not a model's config: {error!r}") from None
    if not isinstance(model_type, str):
        raise ModelError(f"{path / 'config.json'} is not a model's config: no name in model_type")
    if n_blocks > _BLOCKS_MAX:
        raise ModelError(f"{path / 'config.json'} cannot be used: more than {_BLOCKS_MAX} blocks")
    return model_type


def _load_config(path: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except _CONFIG_ERRORS as error:
        raise _unusable(path, error) from None


def _skeleton(path: Path, config: Any, attention: str) -> nn.Module:
    """The model on the meta device."""
    try:
        # NOTE: transformers reads the name of the attention from the config that it was built with.
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except _CONFIG_ERRORS as error:
        raise _unusable(path, error) from None
    return skeleton.eval()


def _unusable(path: Path, error: Exception) -> ModelError:
    text = " ".join(str(error).split())
    is_clear = text and not isinstance(error, LookupError)  # whose text is the bare key
    cause = text if is_clear else " ".join(repr(error).split())
    return ModelError(f"{path / 'config.json'} cannot be used: {cause}")


def _safetensors(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{path} has no *.safetensors; convert the model to safetensors")
        return files
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of safetensors: {error!r}") from None
    for name in names:
        if not (path / name).is_file():
            raise ModelError(f"{index} names {name}, which is missing; fetch the model again")
    return [path / name for name in names]


def _read_header(file: Path) -> list[Place]:
    """A file's tensors of floats, after comparing the header with the file's size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(_HEADER_BYTES_MAX, size - 8):
            raise ModelError(f"{file} is truncated or no safetensors file; fetch it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            places = [
                Place(file, name, tuple(entry["shape"]))
                for name, entry in header.items()
                if entry["dtype"] in _FLOATS
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"{file} has a broken header ({error!r}); fetch it again") from None
    if 8 + length + end != size:
        raise ModelError(
            f"{file} is truncated or damaged: {size} bytes instead of {8 + length + end}; "
            "fetch it again"
        )
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise ModelError(f"{file} is damaged ({error}); fetch it again") from None
    return places


def _wanted(skeleton: nn.Module, config: Any) -> Iterable[tuple[str, tuple[int, ...]]]:
    for name, tensor in skeleton.state_dict().items():
        if not (config.tie_word_embeddings and name == f"{families.HEAD}.weight"):
            yield name, tuple(tensor.shape)


def _locate(
    skeleton: nn.Module, family: families.Family, config: Any, found: dict[str, Place]
) -> dict[str, Place]:
    """The place of each tensor that the model needs; all must be there, in the right shape."""
    places: dict[str, Place] = {}
    for name, shape in _wanted(skeleton, config):
        candidates = families.names_in_file(family, name)
        place = next((found[candidate] for candidate in candidates if candidate in found), None)
        if place is None:
            raise ModelError(
                f"tensor {name} is missing from the safetensors, or is quantized: they are not of "
                "the model in config.json; fetch or convert it again"
            )
        if place.shape != shape:
            raise ModelError(
                f"tensor {name} in {place.file.name} is {list(place.shape)}, but config.json needs "
                f"{list(shape)}: the files are of different models; fetch it again"
            )
        places[name] = place
    return places


def _spec(config: Any, skeleton: nn.Module, digest: str, name: str) -> ModelSpec:
    """By the shape of the skeleton alone: the blocks are the list of as many modules, tables
    beside them are the embedding, and the rest is norm and head."""
    blocks = _blocks_name(skeleton, config)
    outside = {key: n for key, n in _sizes(skeleton).items() if not key.startswith(f"{blocks}.")}
    embedding = sum(
        n for key, n in outside.items() if isinstance(_module_of(skeleton, key), nn.Embedding)
    )
    head = skeleton.get_output_embeddings()  # type: ignore[operator]
    _, kv_heads, head_dim = families.kv_shape(config)
    return ModelSpec(
        name=name,
        digest=digest,
        family=config.model_type,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_context=families.max_context(config),
        embedding_params=embedding,
        block_params=tuple(
            sum(_sizes(block).values()) for block in skeleton.get_submodule(blocks).children()
        ),
        head_params=sum(outside.values()) - embedding,
        tied_params=head.weight.numel() if config.tie_word_embeddings else 0,
        kv_width=2 * kv_heads * head_dim,
    )


def _sizes(module: nn.Module) -> dict[str, int]:
    return {key: tensor.numel() for key, tensor in module.state_dict().items()}


def _module_of(skeleton: nn.Module, tensor: str) -> nn.Module:
    return skeleton.get_submodule(tensor.rpartition(".")[0])


def _blocks_name(skeleton: nn.Module, config: Any) -> str:
    for name, module in skeleton.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return name
    raise ValueError(f"no list of {config.num_hidden_layers} blocks in the model")
