"""Text <-> token ids, for one model; and text from ids that come one at a time.

Knows nothing of weights, and nothing of requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from edgeshard_p2p.model.errors import ModelError

TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)

_INCOMPLETE = "\ufffd"  # what a decoder makes of bytes that are no character, or none yet
_WINDOW = 16  # tokens; the bytes of one character spread over at most 4
_HELD_MAX = 3  # a character lacks at most its last byte


class Tokenizer:
    """The tokenizer of the model in ``path``; reads local files only."""

    def __init__(self, path: Path) -> None:
        self._tokenizer: Any = _load(path)
        added = self._tokenizer.added_tokens_decoder
        self._special = frozenset(token for token in added if added[token].special)
        self.n_vocab: int = len(self._tokenizer)
        self.stop_ids: tuple[int, ...] = _stop_ids(path, self._tokenizer.eos_token_id)

    def encode(self, prompt: str, raw: bool) -> tuple[int, ...]:
        """The ids of a prompt: as the only message of a chat, unless raw or no chat model.
        Raises ModelError where the model's own chat template fails."""
        if raw or not self._tokenizer.chat_template:
            return tuple(self._tokenizer.encode(prompt))
        message = {"role": "user", "content": prompt}
        try:
            ids = self._tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, return_dict=False
            )
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the model's chat template does not take this prompt ({error}); try --raw"
            ) from error
        return tuple(ids)

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self.decode, self._special)


class StreamDecoder:
    """``decode`` in pieces: what push() and flush() return is, together, the decoded text.

    Nothing is returned before it is certain, so never half a character.  A tokenizer decodes a
    token by what stands before it (the space before a word, the rest of a character), so each
    push decodes a window of the last tokens and returns what that adds:

        ids    |.. seen ..| new |          the window; the older half is forgotten now and then
        text   |... returned ...|held|     held: bytes that may still become a character

    NOTE: where bytes can never become one, tokenizers of the SentencePiece kind turn back and
    spoil the whole run of byte tokens that they are in; what was returned stays returned.
    """

    def __init__(self, decode: Callable[[list[int]], str], special: frozenset[int]) -> None:
        self._decode = decode
        self._special = special
        self._ids: list[int] = []
        self._n_returned = 0  # characters of the window's text

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        self._ids.append(token)
        text = self._decode(self._ids)
        piece = self._take(text, len(text.rstrip(_INCOMPLETE)))
        if len(self._ids) > _WINDOW and not text.endswith(_INCOMPLETE):
            self._forget(self._whole_prefix(), n_held=0)
        elif len(self._ids) > 2 * _WINDOW:  # so many bytes and no character: this is no text
            piece += self._take(text, len(text) - _HELD_MAX)
            self._forget(_WINDOW, n_held=len(text) - self._n_returned)
        return piece

    def flush(self) -> str:
        """The rest, complete or not; the next push starts anew."""
        text = self._decode(self._ids)
        piece = self._take(text, len(text))
        self._ids, self._n_returned = [], 0
        return piece

    def _take(self, text: str, end: int) -> str:
        piece = text[self._n_returned : end]
        self._n_returned = max(self._n_returned, end)
        return piece

    def _whole_prefix(self) -> int:
        """How many tokens end with the end of a character, half a window or the next longer."""
        for n_tokens in range(_WINDOW // 2, len(self._ids)):
            if not self._decode(self._ids[:n_tokens]).endswith(_INCOMPLETE):
                return n_tokens
        return 0

    def _forget(self, n_tokens: int, n_held: int) -> None:
        self._ids = self._ids[n_tokens:]
        self._n_returned = max(0, len(self._decode(self._ids)) - n_held)


def _load(path: Path) -> Any:
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{path} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); "
            f"copy it there from where the model came from"
        )
    for file in sorted(path.glob("*.json")):
        _read_json(file)  # names the file; the tokenizer would not
    import transformers  # Here, since it takes seconds and the peer can talk meanwhile.

    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"the tokenizer in {path} cannot be loaded: {error}") from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}; fetch the model again") from error


def _stop_ids(path: Path, eos_token_id: int | None) -> tuple[int, ...]:
    """All that any of the model's files calls an end; a chat's is often in one of them only."""
    ids: set[int] = set() if eos_token_id is None else {eos_token_id}
    for file in (path / "generation_config.json", path / "config.json"):
        named = _read_json(file).get("eos_token_id") if file.is_file() else None
        ids.update(named if isinstance(named, list) else [named] if named is not None else [])
    return tuple(sorted(ids))
