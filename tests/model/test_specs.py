"""Specs hold the numbers that transformers' own models have, whether shipped, written or made from
a config alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.model.checkpoint import spec_of_config
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.specs import digest_of_numbers, read_spec, shipped, shipped_spec
from edgeshard_p2p.tables import TopologyError
from tests.model import tiny

SHIPPED: dict[str, dict[str, Any]] = {
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
    "llama2-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "max_position_embeddings": 4096,
    },
    "llama2-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
    "smollm2-135m-instruct": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
"""As LlamaConfig wants them; its vocabulary is Llama 2's if nothing is said."""


def _config(path: Path, family: str, **settings: Any) -> Path:
    path.mkdir(exist_ok=True)
    transformers.AutoConfig.for_model(family, **settings).save_pretrained(path)
    return path


def _numbers(spec: ModelSpec) -> dict[str, Any]:
    return {
        field: getattr(spec, field)
        for field in spec.__struct_fields__
        if field not in ("name", "digest")
    }


def _n_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_specs_are_those_of_their_configs(tmp_path: Path, name: str) -> None:
    spec = shipped_spec(name)
    assert spec is not None
    made = spec_of_config(_config(tmp_path / name, "llama", **SHIPPED[name]))
    assert spec == made  # name and digest too: both are made of the numbers


def test_what_is_shipped() -> None:
    assert shipped() == sorted(SHIPPED)
    assert shipped_spec("gpt-5") is None
    assert shipped_spec("../model_specs/llama2-7b") is None


def test_llama2_7b_in_numbers() -> None:
    spec = shipped_spec("llama2-7b")
    assert spec is not None
    assert set(spec.block_params) == {202_383_360}
    assert spec.embedding_params == 32000 * 4096
    assert spec.head_params == 4096 + 32000 * 4096
    assert (spec.n_units, spec.tied_params, spec.kv_width) == (34, 0, 2 * 32 * 128)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2", "gpt_neox"])
def test_the_spec_of_a_config_counts_what_the_model_has(
    tmp_path: Path, family: str, is_tied: bool
) -> None:
    settings = {**tiny.CONFIGS[family], "tie_word_embeddings": is_tied}
    path = _config(tmp_path, family, **settings)
    config = transformers.AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    decoder = model.base_model
    blocks = decoder.h if family == "gpt2" else decoder.layers
    matrix = 300 * 64
    spec = spec_of_config(path)
    # A parameter that is shared counts once in a model, in a spec as part of both ends.
    total = spec.embedding_params + sum(spec.block_params) + spec.head_params - spec.tied_params
    assert total == _n_elements(model)
    assert spec.block_params == tuple(_n_elements(block) for block in blocks)
    assert spec.embedding_params == matrix + (256 * 64 if family == "gpt2" else 0)
    assert spec.tied_params == (matrix if is_tied else 0)
    n_kv_heads = 4 if family in ("gpt2", "gpt_neox") else 2
    assert spec.kv_width == 2 * n_kv_heads * (32 if family == "gemma2" else 16)
    assert (spec.hidden_size, spec.vocab_size, spec.max_context) == (64, 300, 256)
    assert spec.family == family


def test_a_checkpoint_has_the_spec_of_its_config(tmp_path: Path) -> None:
    path = tiny.save_model(tmp_path, "qwen2")
    assert _numbers(tiny.opened(path).spec) == _numbers(spec_of_config(path))


@pytest.mark.parametrize("family", ["mixtral", "opt", "falcon", "olmo2"])
def test_families_that_no_peer_serves_have_specs_too(tmp_path: Path, family: str) -> None:
    settings = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    extra = {"opt": {"word_embed_proj_dim": 64}, "mixtral": {"num_local_experts": 3}}
    path = _config(tmp_path, family, **settings, **extra.get(family, {}))
    config = transformers.AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    spec = spec_of_config(path)
    total = spec.embedding_params + sum(spec.block_params) + spec.head_params - spec.tied_params
    assert (spec.n_blocks, total) == (3, _n_elements(model))


def test_the_digest_follows_the_numbers(tmp_path: Path) -> None:
    one, other = (
        spec_of_config(_config(tmp_path / "m", "llama", **{**SHIPPED["llama2-7b"], **change}))
        for change in ({}, {"intermediate_size": 11009})
    )
    assert one.digest == digest_of_numbers(one)
    assert one.digest != other.digest


BROKEN_CONFIGS: dict[str, Any] = {
    "hidden_size": ["x", 0, -5, 10**30, None, 2**21],
    "vocab_size": [[1], -1, 2**40],
    "num_hidden_layers": [0, -1, 2000, 10**12, "5", {}],
    "num_attention_heads": [0, 7],
    "num_key_value_heads": [0, -3],
    "hidden_act": ["nope"],
    "rope_parameters": [3, {"rope_type": "x"}],
    "max_position_embeddings": ["x", 0],
    "intermediate_size": [1.5, -1],
    "dtype": ["float99"],
    "pad_token_id": [10**9],
    "head_dim": [{}],
    "model_type": [["llama"], None, "no-such-model", "t5"],
    "layer_types": [5],
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in BROKEN_CONFIGS.items() for value in values]
)
def test_broken_configs_are_refused_in_one_line(tmp_path: Path, key: str, value: object) -> None:
    file = _config(tmp_path, "llama", **SHIPPED["smollm2-135m-instruct"]) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ModelError) as raised:
        spec_of_config(tmp_path)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_cut_configs_are_refused_in_one_line(tmp_path: Path) -> None:
    file = _config(tmp_path, "llama", **SHIPPED["smollm2-135m-instruct"]) / "config.json"
    whole = file.read_text().rstrip()
    for text in [whole[:end] for end in range(0, len(whole), 29)] + ["[]", "3", "[" * 9999, "{}"]:
        file.write_text(text)
        with pytest.raises(ModelError, match=r"is not a model's config: .*\Z"):
            spec_of_config(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="is not a model's config"):
        spec_of_config(tmp_path)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        spec_of_config(tmp_path / "nowhere")


SPEC = """
name = "mine"
family = "llama"
hidden_size = 8
vocab_size = 100
max_context = 64
n_blocks = 2
embedding_params = 800
block_params = [100, 300]
head_params = 1000
tied_params = 800
kv_width = 16
"""


def _spec_file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return file


def test_a_spec_of_ones_own(tmp_path: Path) -> None:
    spec = read_spec(_spec_file(tmp_path, SPEC))
    assert (spec.name, spec.block_params, spec.tied_params) == ("mine", (100, 300), 800)
    assert spec.digest == digest_of_numbers(spec)
    alike = read_spec(_spec_file(tmp_path, SPEC.replace("[100, 300]", "200")))
    assert alike.block_params == (200, 200)


WRONG = {
    ("hidden_size = 8", ""): "hidden_size is missing",
    ("hidden_size = 8", "hiden = 8"): (
        'unknown key "hiden"; known: name, family, hidden_size, vocab_size, max_context, '
        "n_blocks, embedding_params, block_params, head_params, kv_width, tied_params"
    ),
    ("hidden_size = 8", 'hidden_size = "8"'): "hidden_size: expected a whole number, got text",
    ("hidden_size = 8", "hidden_size = 1e3"): "hidden_size: expected a whole number, got a number",
    ("hidden_size = 8", f"hidden_size = {10**9}"): (
        "hidden_size: expected a whole number <= 1048576"
    ),
    ("hidden_size = 8", f"hidden_size = {10**30}"): (
        "hidden_size: expected a whole number <= 1048576"
    ),
    ('"mine"', '""'): "name: expected text of length >= 1",
    ("n_blocks = 2", "n_blocks = 0"): "n_blocks: expected a whole number >= 1",
    ("n_blocks = 2", "n_blocks = 5000"): "n_blocks: expected a whole number <= 1024",
    ("n_blocks = 2", "n_blocks = 3"): "block_params: expected 3 numbers, got 2",
    ("[100, 300]", "[100, -3]"): "block_params[1]: expected a whole number >= 1",
    ("[100, 300]", "[100, 1.5]"): "block_params[1]: expected a whole number, got a number",
    ("[100, 300]", "0"): "block_params: expected a whole number >= 1",
    ("[100, 300]", "'x'"): "block_params: expected a whole number, got text",
    ("tied_params = 800", "tied_params = 900"): (
        "tied_params: expected no more than embedding_params and head_params"
    ),
    ("kv_width = 16", "kv_width = -16"): "kv_width: expected a whole number >= 0",
    ("kv_width = 16", "kv_width ="): ("is not TOML: Invalid value (at line 12, column 11)"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.items())
def test_what_a_spec_cannot_be_is_said_with_its_key(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    assert change[0] in SPEC
    file = _spec_file(tmp_path, SPEC.replace(*change, 1))
    with pytest.raises(TopologyError) as raised:
        read_spec(file)
    assert str(raised.value) == f"{file}: {said}"


def test_spec_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="cannot be read: No such file"):
        read_spec(tmp_path / "none.toml")
    with pytest.raises(TopologyError, match="cannot be read: Is a directory"):
        read_spec(tmp_path)
    for end in range(0, len(SPEC.rstrip()) - 2, 5):
        with pytest.raises(TopologyError, match=r"mine\.toml: .*\Z"):
            read_spec(_spec_file(tmp_path, SPEC[:end]))
