"""What arrives and is not what it should be."""

from __future__ import annotations


class WireError(Exception):
    """Theirs: input that was dropped.  ``kind`` is what it is counted under."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
