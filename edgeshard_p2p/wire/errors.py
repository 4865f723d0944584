"""What arrives and is not what it should be."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what was expected; text that is no UTF-8 and nesting
without end are no DecodeError to it."""


class WireError(Exception):
    """Theirs: input that was dropped.  ``kind`` is what it is counted under."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
