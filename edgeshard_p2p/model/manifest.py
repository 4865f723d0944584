"""Whether two directories hold the same model: a digest over the files that decide its tokens.

Knows nothing of what is in the files, nor of where models are kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from edgeshard_p2p.model import memo
from edgeshard_p2p.model.errors import ModelError

Progress = Callable[[str], None]

# Other files (notes, pictures, other formats of the same weights) decide nothing.
MANIFEST_PATTERNS = (
    "*.model",  # SentencePiece: tokenizer.model, spiece.model
    "*.safetensors",
    "*.safetensors.index.json",
    "added_tokens.json",
    "chat_template*",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)

_BLOCK_BYTES = 2**24
_ANNOUNCE_BYTES = 2**30


class _Hashed(msgspec.Struct, array_like=True):
    size: int
    mtime_ns: int
    sha256: str


_Table = dict[str, _Hashed]


def digest(directory: Path, hashes_dir: Path, progress: Progress) -> str:
    """SHA-256 over the names and SHA-256 of the model's files, sorted by name.

    The same files give the same digest anywhere, whatever the directory is called.
    """
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} holds no model: there is no config.json in it")
    files = sorted(file for file in directory.iterdir() if _is_listed(file))
    manifest = hashlib.sha256()
    for name, sha256 in file_digests(files, hashes_dir, progress).items():
        manifest.update(f"{name}\0{sha256}\n".encode())
    return manifest.hexdigest()


def _is_listed(file: Path) -> bool:
    return file.is_file() and any(fnmatch(file.name, pattern) for pattern in MANIFEST_PATTERNS)


def file_digests(files: list[Path], hashes_dir: Path, progress: Progress) -> dict[str, str]:
    """SHA-256 by file name, for files of one directory.

    A file that kept its size and time since an earlier call is not read again: that is noted
    in ``hashes_dir``, in one table per directory.
    """
    place = str(files[0].parent.resolve())
    table_path = hashes_dir / f"{hashlib.sha256(os.fsencode(place)).hexdigest()}.json"
    known = memo.read(table_path, _Table) or {}
    table = {file.name: _hashed(file, known.get(file.name), progress) for file in files}
    if not table.items() <= known.items():
        memo.keep(table_path, known | table)
    return {name: hashed.sha256 for name, hashed in table.items()}


def _hashed(file: Path, known: _Hashed | None, progress: Progress) -> _Hashed:
    stat = file.stat()
    if known and (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return known
    return _Hashed(stat.st_size, stat.st_mtime_ns, sha256_file(file, progress))


def sha256_file(file: Path, progress: Progress) -> str:
    sha256 = hashlib.sha256()
    size, done = file.stat().st_size, 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            if size >= _ANNOUNCE_BYTES and done % _ANNOUNCE_BYTES == 0:
                progress(f"reading {file.name}, once: {100 * done // size} %")
            sha256.update(block)
            done += len(block)
    return sha256.hexdigest()
