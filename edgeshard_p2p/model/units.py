"""One unit at a time, from the checkpoint into memory: embedding, a block, or norm and head.

A unit holds private copies in the swarm's dtype and nothing of the mapped files.  The generic
block is transformers' own decoder layer, taken from the skeleton, its matrices packed.
Knows nothing of requests, tiles' origin, or which units belong together.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from edgeshard_p2p.model import families
from edgeshard_p2p.model.attention import View
from edgeshard_p2p.model.checkpoint import Checkpoint, Reader
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.linear import Linear, Table, n_bytes
from edgeshard_p2p.model.tiles import Tile

ROTARY_STEP = 256


class Block(Protocol):
    n_bytes: int

    def run(self, hidden: Tensor, tile: Tile, slots: list[Tensor]) -> Tensor: ...


class GenericBlock:
    """A decoder layer of transformers, run on the rows of a tile."""

    def __init__(self, module: nn.Module, config: Any, layer: int) -> None:
        self._module = module
        self._window = families.window_of(families.family_of(config), config, layer)
        self._kind = families.rotary_kind(config, layer)
        self.n_bytes = _module_bytes(module)

    def run(self, hidden: Tensor, tile: Tile, slots: list[Tensor]) -> Tensor:
        extra: dict[str, Any] = {"view": View(tile, slots, self._window)}
        if tile.rotary:
            cos, sin = tile.rotary[self._kind]
            extra["position_embeddings"] = (cos[None], sin[None])
        out: Tensor = self._module(hidden[None], attention_mask=None, **extra)
        return out[0]


class Embedding:
    def __init__(
        self, checkpoint: Checkpoint, read: Reader, dtype: torch.dtype, shared: Table | None
    ) -> None:
        name = families.embedding_name(checkpoint.family)
        self.table = shared or Table(read(name).to(dtype))
        positions = families.positions_name(checkpoint.family)
        self._positions = read(positions).to(dtype, copy=True) if positions else None
        module = checkpoint.skeleton.get_input_embeddings()  # type: ignore[operator]
        scale = getattr(module, "scalar_embed_scale", None)
        # Rounded as transformers rounds it: to fp32 first, then to the dtype of the weights.
        self._scale = None if scale is None else torch.tensor(scale, dtype=torch.float32).to(dtype)

    @property
    def n_bytes(self) -> int:
        """Without the table, which a tied head may hold too."""
        return n_bytes([] if self._positions is None else [self._positions])

    def run(self, ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.table.rows(ids)
        if self._scale is not None:
            hidden = hidden * self._scale
        return hidden if self._positions is None else hidden + self._positions[positions]


class Head:
    """Final norm and the matrix to the vocabulary, which is the embedding's where they are tied."""

    def __init__(
        self, checkpoint: Checkpoint, read: Reader, dtype: torch.dtype, shared: Table | None
    ) -> None:
        family, config = checkpoint.family, checkpoint.config
        norm = families.decoder_of(family, checkpoint.skeleton).get_submodule(family.norm)
        self._norm = load_module(norm, families.norm_prefix(family), config, read, dtype)
        name = families.head_name(family, config)
        self.table = shared or Table(read(name).to(dtype))
        self.table.pack()
        bias = f"{families.HEAD}.bias"
        has_bias = bias in checkpoint.names()
        self._bias = read(bias).to(dtype, copy=True) if has_bias else None
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.n_bytes = _module_bytes(self._norm)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.table.multiply(self._norm(hidden))
        if self._bias is not None:
            logits = logits + self._bias
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits


def load_generic_block(
    checkpoint: Checkpoint, read: Reader, layer: int, dtype: torch.dtype
) -> GenericBlock:
    config = checkpoint.config
    prefix = families.block_prefix(checkpoint.family, layer)
    skeleton = checkpoint.skeleton.get_submodule(prefix.removesuffix("."))
    return GenericBlock(load_module(skeleton, prefix, config, read, dtype), config, layer)


def load_module(
    skeleton: nn.Module, prefix: str, config: Any, read: Reader, dtype: torch.dtype
) -> nn.Module:
    """A copy of a module of the skeleton with its tensors read and its matrices packed."""
    module = copy.deepcopy(skeleton, {id(config): config})
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Linear | Conv1D):
            _replace(module, name, _packed(child, f"{prefix}{name}", read, dtype))
    for name, _ in list(module.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        tensor = read(f"{prefix}{name}").to(dtype, copy=True)
        parameter = nn.Parameter(tensor, requires_grad=False)
        setattr(module.get_submodule(owner), attribute, parameter)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise ModelError(f"{prefix}{name} is in no checkpoint; this model is not supported")
    return module.eval()


def _packed(child: nn.Module, name: str, read: Reader, dtype: torch.dtype) -> Linear:
    weight = read(f"{name}.weight").to(dtype)
    bias = read(f"{name}.bias").to(dtype) if getattr(child, "bias", None) is not None else None
    # GPT-2 keeps its matrices [in, out].
    return Linear(weight.t() if isinstance(child, Conv1D) else weight, bias)


def _replace(module: nn.Module, name: str, child: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, child)


def _module_bytes(module: nn.Module) -> int:
    packed = sum(child.n_bytes for child in module.modules() if isinstance(child, Linear))
    return packed + n_bytes(module.parameters())


class Rotary:
    """Cosines and sines by position, from transformers' own module, computed once.

    In steps of fixed length from position 0, so that a position's numbers depend on nothing else.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, is_signed: bool) -> None:
        decoder = families.decoder_of(checkpoint.family, checkpoint.skeleton)
        skeleton = getattr(decoder, "rotary_emb", None)
        config = checkpoint.config
        # The skeleton's frequencies are on the meta device; a new module computes them.
        self._module = None if skeleton is None else type(skeleton)(config=config)
        layers = range(config.num_hidden_layers)
        self._kinds = {families.rotary_kind(config, layer) for layer in layers}
        self._last_position = checkpoint.spec.max_context - 1
        self._dtype = dtype
        self._is_signed = is_signed
        self._tables: dict[str | None, tuple[Tensor, Tensor]] = {}
        self._length = 0

    def fill(self, tile: Tile) -> None:
        """Gives ``tile`` the numbers of its positions, one pair per kind of block."""
        if self._module is None:
            return
        self._grow(max(segment.end_position for segment in tile.segments))
        for kind, (cos, sin) in self._tables.items():
            tile.rotary[kind] = (cos[tile.positions], sin[tile.positions])

    def _grow(self, length: int) -> None:
        while self._length < length:
            positions = torch.arange(self._length, self._length + ROTARY_STEP)
            # NOTE: longrope looks at the last position of the call, even if nobody asks for it.
            positions.clamp_(max=self._last_position)
            for kind in self._kinds:
                step = self._compute(positions, kind)
                have = self._tables.get(kind)
                self._tables[kind] = (
                    step
                    if have is None
                    else (torch.cat((have[0], step[0])), torch.cat((have[1], step[1])))
                )
            self._length += ROTARY_STEP

    def _compute(self, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        assert self._module is not None
        like = torch.empty(0, dtype=self._dtype)
        arguments = {} if kind is None else {"layer_type": kind}
        cos, sin = self._module(like, positions[None], **arguments)
        cos, sin = cos[0], sin[0]
        if self._is_signed:
            # Half the rotation is a subtraction; the sign once here spares a negation per row.
            half = sin.shape[-1] // 2
            sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
        return cos, sin
