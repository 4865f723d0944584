"""GGUF file -> directory of safetensors, config and tokenizer, once, for good.

``python -m edgeshard_p2p.model.convert SRC.gguf DST`` is a process of its own because torch
never gives back the memory that this takes: several times the file.  It says one line per step
on stdout.  DST appears complete or not at all, however the process ends.

NOTE: the same GGUF must become the same bytes on every peer, or their manifests would differ and
they could not serve together.  So nothing of this machine or of the versions used is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.manifest import Progress

_INTERRUPTED = 130


# ---- the side that asks


def convert_in_child(gguf: Path, target: Path, progress: Progress) -> None:
    """Make ``target`` from ``gguf``, or raise ModelError and leave nothing."""
    command = [sys.executable, "-m", "edgeshard_p2p.model.convert", str(gguf), str(target)]
    with tempfile.TemporaryFile("w+") as errors, child(command, errors) as converter:
        assert converter.stdout is not None
        for line in converter.stdout:
            progress(line.rstrip("\n"))
        if converter.wait():
            raise ModelError(f"{gguf} cannot be converted: {why_failed(converter, errors)}")


@contextlib.contextmanager
def child(
    command: list[str], errors: IO[str], environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A child process that outlives no exception here, Ctrl-C included."""
    process = subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=errors, env=environment
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def why_failed(process: subprocess.Popen[str], errors: IO[str]) -> str:
    if process.returncode < 0:
        return f"its process was ended by signal {-process.returncode}; is there enough memory?"
    errors.seek(0)
    return errors.read().strip().rpartition("\n")[2]


@contextlib.contextmanager
def locked(target: Path, progress: Progress) -> Iterator[None]:
    """One process at a time makes ``target``; the others wait, and say so."""
    with _lock_file(target) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is making {target.name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock_file(target: Path) -> IO[str]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{target.name}.lock").open("w")
    except OSError as error:
        raise ModelError(
            f"nothing can be written to {target.parent}: {error.strerror}; "
            f"set EDGESHARD_CACHE to a directory where it can"
        ) from error


# ---- the child


def convert(gguf: Path, directory: Path) -> None:
    """Unpack every weight to fp32 and save it with its config and tokenizer."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    _say("converting: unpacking the weights, which takes longest")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **source,
        dtype=torch.float32,
        # Else the model keeps the mark "quantized", which save_pretrained refuses, and on a
        # machine with the kernels for it the packed blocks as well.
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    _say("converting: writing safetensors")
    model.save_pretrained(directory)
    _say("converting: the tokenizer")
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    for name in ("config.json", "generation_config.json"):
        _forget_version(directory / name)


def _forget_version(path: Path) -> None:
    if path.exists():
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        fields.pop("transformers_version", None)
        path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", "utf-8")


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A directory to fill that becomes ``target`` at the end, or vanishes on any error."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        yield part
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """End through the ``finally`` above; a second signal must not end that too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _make(gguf: Path, target: Path) -> None:
    with locked(target, _say):
        if not target.exists():
            with _staged(target) as directory:
                convert(gguf, directory)


def main(arguments: list[str]) -> int:
    """0 done, 1 cannot be converted (why is the last line on stderr), 2 wrong usage."""
    if len(arguments) != 2:
        print("usage: python -m edgeshard_p2p.model.convert SRC.gguf DST", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _make(Path(arguments[0]), Path(arguments[1]))
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
