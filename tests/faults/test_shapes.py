"""What peers are told that their links take, and what becomes of that."""

from __future__ import annotations

from pathlib import Path

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.plan import Link
from edgeshard_p2p.faults.scenario import BOTH, IN, OUT
from edgeshard_p2p.faults.shapes import Shapes
from edgeshard_p2p.net.lane import Lane
from edgeshard_p2p.runtime.shape import read_shape

AT = {name: Address("127.0.0.1", port) for name, port in zip("abc", (1, 3, 5), strict=True)}
LINKS = {(a, b): Link(a, b, 2_500, 0, 6_250_000) for a in "ab" for b in "ab" if a != b}
LANE = Lane(6_250_000.0, 0.0025)


def reached(shapes: Shapes) -> set[str]:
    """Who reaches whom."""
    return {
        a + b
        for a in "abc"
        for b, lane in ((b, read_shape(shapes.file(a)).get(AT[b])) for b in "abc")
        if lane is not None
    }


def test_peers_have_the_links_of_the_topology_and_no_others(tmp_path: Path) -> None:
    shapes = Shapes(tmp_path, AT, LINKS)
    assert read_shape(shapes.file("a")) == {AT["b"]: LANE, AT["c"]: None}
    assert reached(shapes) == {"ab", "ba"}


def test_partitions_one_way_and_both(tmp_path: Path) -> None:
    shapes = Shapes(tmp_path, AT, LINKS)
    for way, left in ((OUT, {"ba"}), (IN, {"ab"}), (BOTH, set())):
        shapes.partition(["a"], way)
        assert reached(shapes) == left
        shapes.heal()
        assert reached(shapes) == {"ab", "ba"}


def test_link_is_changed_for_one_end(tmp_path: Path) -> None:
    shapes = Shapes(tmp_path, AT, LINKS)
    shapes.relink({("a", "b"): Link("a", "b", 0, 0, 125_000)})
    assert read_shape(shapes.file("a"))[AT["b"]] == Lane(125_000.0, 0.0)
    assert read_shape(shapes.file("b"))[AT["a"]] == LANE
