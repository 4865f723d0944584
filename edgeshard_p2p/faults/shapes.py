"""Links of peers on loopback that each peer emulates itself (``edgeshard peer --shape``): for each
a file of what its links take, written anew when that changes.  Needs no root."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.plan import BYTES_PER_MBIT, Link
from edgeshard_p2p.faults.scenario import IN, OUT


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
        self._links = dict(links)
        self._cut: set[tuple[str, str]] = set()
        directory.mkdir(parents=True, exist_ok=True)
        self._write()

    def file(self, name: str) -> Path:
        return self._directory / f"{name}.toml"

    def partition(self, names: Iterable[str], way: str) -> None:
        """Another one beside those that there are already."""
        inside = set(names)
        outside = self._addresses.keys() - inside
        self._cut |= {(a, b) for a in inside for b in outside if way != IN}
        self._cut |= {(b, a) for a in inside for b in outside if way != OUT}
        self._write()

    def relink(self, links: Mapping[tuple[str, str], Link]) -> None:
        """Other rates and delays from now on, for pairs that are linked."""
        self._links |= links
        self._write()

    def heal(self) -> None:
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
        mbps = link.bytes_per_s / BYTES_PER_MBIT
        return f"{head}mbps = {mbps!r}\ndelay_ms = {link.delay_us / 1e3!r}\n"
