"""Links of peers on loopback that each peer emulates itself (``edgeshard peer --shape``): for each
a file of what its links take, written anew when that changes.  Needs no root."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.plan import Link

_BYTES_PER_MBIT = 125_000


class Shapes:
    """``addresses``: by name; ``links``: by ordered pair of names.  A pair without a link does not
    reach each other."""

    def __init__(
        self,
        directory: Path,
        addresses: Mapping[str, Address],
        links: Mapping[tuple[str, str], Link],
    ) -> None:
        self._directory, self._addresses = directory, dict(addresses)
        self._first, self._links = dict(links), dict(links)
        self._cut: set[tuple[str, str]] = set()
        directory.mkdir(parents=True, exist_ok=True)
        self._write()

    def file(self, name: str) -> Path:
        return self._directory / f"{name}.toml"

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Nothing gets from the first to the second of each from now on."""
        self._cut |= set(pairs)
        self._write()

    def change(self, link: Link) -> None:
        self._links[link.a, link.b] = link
        self._write()

    def heal(self) -> None:
        """As it was at first."""
        self._links = dict(self._first)
        self._cut.clear()
        self._write()

    def _write(self) -> None:
        for name in self._addresses:
            tables = [self._table(name, to) for to in self._addresses if to != name]
            text, file = "\n".join(tables), self.file(name)
            if not file.exists() or file.read_text() != text:
                whole = file.with_suffix(".new")
                whole.write_text(text)
                whole.replace(file)  # Whoever reads it has all of it.

    def _table(self, name: str, to: str) -> str:
        link = self._links.get((name, to))
        head = f'[[link]]\nto = "{self._addresses[to]}"\n'
        if link is None or (name, to) in self._cut:
            return f"{head}cut = true\n"
        mbps = link.bytes_per_s / _BYTES_PER_MBIT
        return f"{head}mbps = {mbps!r}\ndelay_ms = {link.delay_us / 1e3!r}\n"
