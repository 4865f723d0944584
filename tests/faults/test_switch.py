"""Emulated links: when a frame is delivered, to whom, and real sockets over them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeshard_p2p.core.plan import Link
from edgeshard_p2p.faults import lone_messages
from edgeshard_p2p.faults.lone_messages import Trial, check_links, rounds
from edgeshard_p2p.faults.namespaces import Switched, why_not
from edgeshard_p2p.faults.switch import ETHERNET_BYTES, TUN, Fabric, address_of
from edgeshard_p2p.net.lane import Lane

MBIT = 125_000
BROADCAST = b"\xff" * 6


def frame(to: int, n_bytes: int = 1000) -> bytes:
    """Of so many bytes beside its header."""
    address = bytes(int(part, 16) for part in address_of(to).split(":"))
    return address + bytes(ETHERNET_BYTES - 6 + n_bytes)


def fabric(n: int = 3, bytes_per_s: float = 1000.0, delay_s: float = 0.5) -> Fabric:
    pairs = [(a, b) for a in range(n) for b in range(n) if a != b]
    return Fabric({pair: Lane(bytes_per_s, delay_s) for pair in pairs})


def delivered(switch: Fabric, now: float) -> list[int]:
    return [to for to, _ in switch.take_due(now)]


def test_frames_follow_each_other_at_the_rate_and_the_delay_occupies_nothing() -> None:
    lane = Lane(1000.0, 5.0)
    assert [lane.deliver_at(n, 10.0) for n in (1000, 500)] == [16.0, 16.5]
    assert lane.deliver_at(1000, 100.0) == 106.0


def test_frame_goes_to_whose_address_it_bears_after_its_time() -> None:
    switch = fabric()
    switch.arrive(0, frame(2), 10.0)
    assert switch.next_due() == 11.5
    assert delivered(switch, 11.4) == []
    assert delivered(switch, 11.5) == [2]
    assert switch.next_due() is None
    switch.arrive(0, frame(7), 0.0)
    switch.arrive(0, frame(0), 0.0)  # To itself.
    assert switch.next_due() is None


def test_directions_and_pairs_do_not_share_anything() -> None:
    switch = fabric()
    for port, to in ((0, 1), (1, 0), (0, 2)):
        switch.arrive(port, frame(to), 0.0)
    assert sorted(delivered(switch, 1.5)) == [0, 1, 2]


def test_broadcast_goes_to_all_others() -> None:
    switch = fabric()
    switch.arrive(1, BROADCAST + bytes(ETHERNET_BYTES - 6 + 1000), 0.0)
    assert delivered(switch, 1.5) == [0, 2]


def test_those_cut_off_reach_each_other_and_nobody_else() -> None:
    switch = fabric(4)
    switch.cut_off = frozenset({0, 1})
    for port, to in ((0, 1), (0, 2), (2, 1), (2, 3)):
        switch.arrive(port, frame(to), 0.0)
    assert sorted(delivered(switch, 9.0)) == [1, 3]
    assert switch.counters["dropped"] == 2


def test_order_changes_what_it_names_and_what_comes_later() -> None:
    switch = fabric()
    switch.arrive(0, frame(2), 0.0)
    switch.obey({"lanes": [[0, 2, 500.0, 0.25]]})
    switch.arrive(0, frame(2), 0.0)
    switch.arrive(2, frame(0), 0.0)
    assert [delivered(switch, at) for at in (1.49, 1.5, 3.24, 3.25)] == [[], [2, 0], [], [2]]
    switch.obey({"cut_off": [0]})
    switch.arrive(0, frame(2), 9.0)
    assert switch.counters["dropped"] == 1
    switch.obey({"cut_off": []})
    assert (switch.lanes[0, 2].bytes_per_s, switch.cut_off) == (500.0, frozenset())


def test_one_way_is_cut_and_the_other_is_not() -> None:
    switch = fabric(3)
    switch.obey({"one_way": [[0, 1]]})
    for port, to in ((0, 1), (1, 0), (0, 2)):
        switch.arrive(port, frame(to), 0.0)
    assert sorted(delivered(switch, 9.0)) == [0, 2]
    switch.obey({"cut_off": [], "one_way": []})
    switch.arrive(0, frame(1), 10.0)
    assert delivered(switch, 99.0) == [1]


@pytest.mark.parametrize("n", range(2, 9))
def test_everybody_meets_everybody_once(n: int) -> None:
    names = [f"d{index}" for index in range(n)]
    found = rounds(names)
    met = [frozenset(pair) for pairs in found for pair in pairs]
    assert len(met) == len(set(met)) == n * (n - 1) // 2
    for pairs in found:
        busy = [name for pair in pairs for name in pair]
        assert len(busy) == len(set(busy))


@pytest.mark.parametrize(
    ("took_ms", "is_right"), [(100.0, True), (109.0, True), (112.0, False), (88.0, False)]
)
def test_a_tenth_is_near_enough(took_ms: float, is_right: bool) -> None:
    assert Trial("a", "b", 1, 100.0, took_ms).is_right is is_right
    assert Trial("a", "b", 1, 1.0, 1.4).is_right


@pytest.fixture
def switched() -> Iterator[Switched]:
    missing = why_not() or ("" if Path(TUN).exists() else TUN)
    if missing:
        pytest.skip(f"emulated links need {missing}")
    pairs = [(a, b) for a in "abc" for b in "abc" if a != b]
    links = {(a, b): Link(a, b, 20_000, 0, 20 * MBIT) for a, b in pairs}
    namespaces = Switched("edgeshard-tests", "abc", links)
    yield namespaces
    namespaces.close()


def test_nothing_is_quicker_than_its_link(switched: Switched) -> None:
    trials = check_links(switched, switched.links, lambda _: None, (100, 50_000))
    assert len(trials) == 3 * 2 * 2
    for trial in trials:
        assert trial.ideal_ms == pytest.approx(20 + trial.n_bytes / (20 * MBIT) * 1e3)
        assert trial.took_ms >= trial.ideal_ms
    switched.close()
    assert switched.said["frames"] > 0
    assert switched.said["cpu_s"] > 0
    assert not [name for name in os.listdir("/run/netns") if name.startswith(switched.prefix)]


def test_one_that_was_stopped_ends_too(switched: Switched) -> None:
    assert switched._switch is not None
    switched._switch.send_signal(signal.SIGSTOP)
    switched.close()
    assert switched.said["cpu_s"] > 0


def test_rates_can_be_changed_while_it_runs(switched: Switched) -> None:
    slow = Link("a", "b", 0, 0, MBIT // 10)
    switched.relink({("a", "b"): slow})
    trials = check_links(switched, switched.links, lambda _: None, (5_000,))
    took_ms = {(trial.a, trial.b): trial.took_ms for trial in trials}
    assert took_ms["a", "b"] >= 5_000 / slow.bytes_per_s * 1e3


def test_partition_is_between_and_not_among(switched: Switched) -> None:
    def reaches(a: str, b: str, wait_s: float) -> bool:
        ends_at = time.monotonic() + wait_s
        listener = lone_messages._listening(switched, b)

        def connect() -> socket.socket:
            return socket.create_connection(
                (switched.host(b), lone_messages.PORT), timeout=ends_at - time.monotonic()
            )

        with listener:
            try:
                lone_messages._inside(switched, a, connect).close()
            except OSError:
                return False
            return True

    switched.partition(["a", "b"])
    assert reaches("a", "b", 20.0)
    assert not reaches("a", "c", 0.5)
    switched.heal()
    assert reaches("a", "c", 20.0)


def test_wiring_that_cannot_be_is_said_in_one_line() -> None:
    wiring = json.dumps({"namespaces": ["/no/such/namespace"], "lanes": []})
    done = subprocess.run(
        [sys.executable, "-m", "edgeshard_p2p.faults.switch", wiring],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert json.loads(done.stdout) == {"error": "no TAP can be made: No such file or directory"}
