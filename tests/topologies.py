"""Topology files for devices that are emulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def topology_text(
    devices: Sequence[tuple[str, str, int]], classes: Mapping[str, str], link: str
) -> str:
    """``devices``: name, class and number of each, the first of them the source; ``classes`` and
    ``link``: what their tables say."""
    tables = [f'sources = ["{devices[0][0]}"]']
    for name, of_class, count in devices:
        number = f"\ncount = {count}" if count > 1 else ""
        tables.append(f'[[device]]\nname = "{name}"\nclass = "{of_class}"{number}')
    tables += [f"[class.{name}]\n{text}" for name, text in classes.items()]
    return "\n".join([*tables, f"[link]\n{link}\n"])
