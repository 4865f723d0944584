"""What is wrong with a model's files is said before a tensor is read, with the next step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import PROMPT, Chain, opened, save_model, transformers_greedy

from edgeshard_p2p.model.errors import ModelError

PathOf = Callable[[str], Path]


@pytest.fixture
def copy(model_path: PathOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_path("llama"), tmp_path / "model"))


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def test_an_unsupported_family_is_refused_by_name(copy: Path) -> None:
    edit_config(copy, model_type="mamba")
    with pytest.raises(ModelError, match=r"'mamba' is not supported; supported: .*llama"):
        opened(copy)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "dynamic",
        ),
    ],
)
def test_unsupported_extras_are_refused_by_name(
    copy: Path, changes: dict[str, object], named: str
) -> None:
    edit_config(copy, **changes)
    with pytest.raises(ModelError, match=named):
        opened(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": 3}'])
def test_a_broken_config_is_named(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config.json|is not supported"):
        opened(copy)


@pytest.mark.parametrize("kept", [0, 5, 100, 20_000, -1])
def test_a_truncated_file_is_named(copy: Path, kept: int) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model.safetensors is truncated"):
        opened(copy)


def test_a_foreign_checkpoint_is_refused(copy: Path, model_path: PathOf) -> None:
    shutil.copy(model_path("gpt2") / "model.safetensors", copy)
    with pytest.raises(ModelError, match=r"tensor model\.embed_tokens\.weight is missing"):
        opened(copy)


def test_a_checkpoint_of_other_shape_is_refused(copy: Path) -> None:
    edit_config(copy, intermediate_size=128)
    with pytest.raises(ModelError, match=r"mlp\.\w+_proj\.weight .* is \[.*96.*needs \[.*128"):
        opened(copy)


def test_a_missing_tensor_is_named(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.layers\.3\.mlp\.up_proj\.weight is missing"):
        opened(copy)


def test_without_weights_there_is_no_model(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        opened(copy)


def test_a_sharded_checkpoint_is_read_by_its_index(copy: Path) -> None:
    expected = transformers_greedy(copy, PROMPT, 4)
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for part, chosen in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: tensors[name] for name in chosen}, copy / part)
        weight_map.update(dict.fromkeys(chosen, part))
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert Chain(opened(copy), (3,)).generate(PROMPT, 4) == expected
    (copy / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names b\.safetensors, which is missing"):
        opened(copy)


def test_files_of_the_bare_decoder_are_read(tmp_path: Path) -> None:
    path = save_model(tmp_path, "gpt2")
    expected = transformers_greedy(path, PROMPT, 4)
    tensors = load_file(path / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    save_file(bare, path / "model.safetensors")
    assert Chain(opened(path), (3,)).generate(PROMPT, 4) == expected


def test_tensors_are_private_copies(copy: Path) -> None:
    checkpoint = opened(copy)
    name = "model.layers.0.mlp.up_proj.weight"
    assert name in checkpoint.names()
    checkpoint.tensor(name).zero_()
    assert torch.count_nonzero(checkpoint.tensor(name))
