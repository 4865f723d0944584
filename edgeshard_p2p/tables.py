"""TOML files read into Structs; what is wrong is said in one line, with the file and the key.

Knows nothing of what the files are about.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

_FILE_BYTES_MAX = 2**22
_WHERE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_WORDS = {
    " | null": "",
    "`object`": "a table",
    "`array`": "a list",
    "`float`": "a number",
    "`int`": "a whole number",
    "`str`": "text",
    "`bool`": "true or false",
}
"""What msgspec calls a type, and what a person does."""
_KEY_CHARACTERS_MAX = 60

T = TypeVar("T")


class TopologyError(Exception):
    """A topology file, or a model's spec, that cannot be used; the message is one line."""


class At(Struct, frozen=True):
    """A place in a file: a key such as ``device[2].memory_gib``, counted from 0."""

    file: Path
    key: str = ""

    def __truediv__(self, key: str | int) -> At:
        if isinstance(key, int):
            return At(self.file, f"{self.key}[{key}]")
        bare = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else quoted(key)
        return At(self.file, f"{self.key}.{bare}" if self.key else bare)

    def error(self, text: str) -> TopologyError:
        return TopologyError(": ".join(part for part in (str(self.file), self.key, text) if part))


def quoted(value: object) -> str:
    """A text of the file's as it can stand in a message: on one line, not without end."""
    text = str(value)
    shown = text if len(text) <= _KEY_CHARACTERS_MAX else f"{text[:_KEY_CHARACTERS_MAX]}..."
    return '"' + shown.encode("unicode_escape").decode("ascii") + '"'


def read_toml(file: Path) -> dict[str, Any]:
    """Raises TopologyError for whatever is no readable TOML."""
    at = At(file)
    try:
        with file.open("rb") as stream:
            content = stream.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise at.error(f"cannot be read: {error.strerror}") from None
    if len(content) > _FILE_BYTES_MAX:
        raise at.error(f"has more than {_FILE_BYTES_MAX} bytes, expected a short TOML file")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise at.error(f"is not UTF-8 (byte {error.start}), expected TOML") from None
    except RecursionError:
        raise at.error("is not TOML: nested too deeply") from None
    except ValueError as error:  # also of a number with thousands of digits
        raise at.error(f"is not TOML: {error}") from None


def to_table(value: object, kind: type[T], at: At) -> T:
    """``value`` as the Struct ``kind``, every key of which must be known."""
    if not isinstance(value, dict):
        raise at.error(f"expected a table, got {_word(value)}")
    known = kind.__struct_encode_fields__  # type: ignore[attr-defined]
    for key in value:
        if key not in known:
            raise at.error(f"unknown key {quoted(key)}; known: {', '.join(known)}")
    table: T = convert(value, kind, at)
    return table


def convert(value: object, kind: Any, at: At) -> Any:
    """``msgspec.convert``, its complaint in the words of somebody who writes TOML."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        match = _WHERE.fullmatch(str(error))
        what, path = (match["what"], match["path"] or "") if match else (str(error), "")
        where = At(at.file, f"{at.key}{path}".removeprefix("."))
        raise where.error(_in_words(what)) from None


def _in_words(what: str) -> str:
    what = re.sub(
        r"Expected `str` matching regex .*", "expected letters, digits, '.', '_' or '-'", what
    )
    missing = re.fullmatch(r"Object missing required field `(.*)`", what)
    if missing:
        return f"{missing[1]} is missing"
    for theirs, ours in _WORDS.items():
        what = what.replace(theirs, ours)
    what = re.sub(r"(\d)\.0\b", r"\1", what).replace("`", "")
    return what[0].lower() + what[1:]


def _word(value: object) -> str:
    """What a TOML value is, in the words of ``_WORDS``."""
    return _WORDS.get(f"`{type(value).__name__}`", "a list" if isinstance(value, list) else "text")
