"""Measuring links: the formula, larger payloads, silence, and when a figure has moved."""

from __future__ import annotations

import pytest

from edgeshard_p2p.core.edges import AHEAD_BYTES
from edgeshard_p2p.core.effects import Log, SendProbe
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.links import (
    ATTEMPTS,
    BIG_BYTES,
    BUSY_SHARE,
    BYTES_PER_S_MAX,
    MOVED_BY,
    REMEMBERED,
    ROUNDS,
    SHOWS_US,
    SMALL_BYTES,
    LinkProber,
)
from edgeshard_p2p.core.member import Member
from edgeshard_p2p.core.plan import FRAME_OVERHEAD_BYTES
from edgeshard_p2p.core.records import LinkFigures
from tests.core.parts import TIMING, B, C, membership, of, some

ROUND_TRIP_S = 0.010
WARM_UP_S = 0.5
"""Added to the first probe of each size."""


class Line:
    """A link with a round trip and a bandwidth, and a prober at this end of it."""

    def __init__(self, bytes_per_s: float, known: dict[str, LinkFigures] | None = None) -> None:
        self.bytes_per_s = bytes_per_s
        self.prober = LinkProber(TIMING, known or {})
        self.members: dict[str, Member] = membership(B, C).members
        self.now = 0.0
        self.sizes: list[int] = []

    def track(self, *names: str) -> bool:
        return self.prober.track([self.members[name] for name in names], self.now)

    def probe(self) -> SendProbe | None:
        probes = of(SendProbe, self.prober.tick(self.members, self.now))
        assert len(probes) <= 1, "one at a time"
        return probes[0] if probes else None

    def measure(self) -> None:
        """Answer probes until none is due."""
        while (probe := self.probe()) is not None:
            n_before = self.sizes.count(probe.n_bytes)
            self.sizes.append(probe.n_bytes)
            self.now += ROUND_TRIP_S + (0 if n_before % ROUNDS else WARM_UP_S)
            self.now += (probe.n_bytes - SMALL_BYTES) / self.bytes_per_s
            self.now += 2 * FRAME_OVERHEAD_BYTES / self.bytes_per_s  # A small one, and the answer.
            self.prober.on_echo(probe.nonce, self.now)

    def figures(self) -> LinkFigures:
        (figures,) = self.prober.figures()
        return figures


@pytest.mark.parametrize("bytes_per_s", [1e3, 1e4])
def test_bandwidth_is_what_the_payload_adds_and_delay_what_small_ones_do_not_occupy(
    bytes_per_s: float,
) -> None:
    line = Line(bytes_per_s)
    line.track("b")
    assert not line.prober.is_settled()
    line.measure()
    assert line.sizes == [SMALL_BYTES] * ROUNDS + [BIG_BYTES[0]] * ROUNDS
    figures = line.figures()
    assert (figures.to, figures.per_message_us) == ("b", 0)
    assert figures.delay_us == pytest.approx(5_000, rel=0.001)
    assert figures.bytes_per_s == pytest.approx(bytes_per_s, rel=0.01)
    assert line.prober.is_settled()


def test_fastest_trip_counts_and_the_first_of_each_size_does_not() -> None:
    small_us, big_us = [1, 20_900, 20_700, 20_800], [2, 320_700, 220_700, 420_700]
    line = Line(1e6)
    line.track("b")
    for trip_us in (*small_us, *big_us):
        probe = some(line.probe())
        line.now += trip_us * 1e-6
        line.prober.on_echo(probe.nonce, line.now)
    expected = (BIG_BYTES[0] - SMALL_BYTES) * 1_000_000 // (220_700 - 20_700)
    occupied_us = FRAME_OVERHEAD_BYTES * 1_000_000 // expected
    assert line.figures() == LinkFigures("b", 10_350 - occupied_us, 0, expected)


def test_payload_that_hardly_shows_is_made_larger() -> None:
    for bytes_per_s, n_sizes in ((1e4, 1), (5e4, 2), (1e8, 3), (5e8, 4), (4e9, 5), (1e12, 5)):
        line = Line(bytes_per_s)
        line.track("b")
        line.measure()
        assert sorted(set(line.sizes)) == [SMALL_BYTES, *BIG_BYTES[:n_sizes]]
        expected = min(bytes_per_s, BYTES_PER_S_MAX)
        assert line.figures().bytes_per_s <= BYTES_PER_S_MAX
        if BIG_BYTES[-1] / bytes_per_s * 1e6 > SHOWS_US[-2]:
            assert line.figures().bytes_per_s == pytest.approx(expected, rel=0.05)


def test_measured_link_is_measured_again_after_a_while() -> None:
    line = Line(1e6)
    line.track("b")
    line.measure()
    assert line.prober.next_deadline() == pytest.approx(line.now + TIMING.link_refresh_s)
    line.now += TIMING.link_refresh_s
    n = len(line.sizes)
    line.measure()
    assert len(line.sizes) == 2 * n


def test_link_is_worse_when_all_remembered_measurements_say_so() -> None:
    line = Line(1e6)
    line.track("b")
    line.measure()
    before = line.figures()
    line.bytes_per_s /= 4
    for n in range(REMEMBERED):
        assert line.figures() == before
        line.now = some(line.prober.next_deadline())
        line.measure()
        soon = n + 1 < REMEMBERED
        wait_s = TIMING.link_doubt_s if soon else TIMING.link_refresh_s
        assert line.prober.next_deadline() == pytest.approx(line.now + wait_s)
    assert line.figures().bytes_per_s == pytest.approx(before.bytes_per_s / 4, rel=0.01)


def test_probes_take_a_small_share_of_a_link_that_serves() -> None:
    line = Line(1e5)
    line.track("b")
    line.measure()
    begun = line.now
    assert line.prober.next_deadline() == begun + TIMING.link_refresh_s
    line.prober.is_busy = True
    n_bytes = sum(size for size in line.sizes if size != SMALL_BYTES)
    waits_s = some(line.prober.next_deadline()) - begun
    assert waits_s >= n_bytes / line.bytes_per_s / BUSY_SHARE
    line.now += TIMING.link_refresh_s
    assert line.probe() is None
    line.prober.is_busy = False
    assert line.probe() is not None


def test_small_trip_that_was_held_up_makes_no_link_quicker() -> None:
    line = Line(1e6)
    line.track("b")
    line.measure()
    before = line.figures()
    line.now = some(line.prober.next_deadline())
    while (probe := line.probe()) is not None:
        line.now += ROUND_TRIP_S + (probe.n_bytes - SMALL_BYTES) / line.bytes_per_s
        line.now += 0.1 if probe.n_bytes == SMALL_BYTES else 0.0
        line.prober.on_echo(probe.nonce, line.now)
    assert line.figures() == before


@pytest.mark.parametrize("worse", [0.1, 0.5])
def test_link_that_only_seems_worse_at_times_stays_what_it_is(worse: float) -> None:
    line = Line(1e6)
    line.track("b")
    line.measure()
    before = line.figures()
    for n in range(3 * REMEMBERED):
        line.bytes_per_s = 1e6 if n % REMEMBERED == 0 else 1e6 * worse
        line.now = some(line.prober.next_deadline())
        line.measure()
        assert line.figures() == before


@pytest.mark.parametrize(("factor", "moves"), [(1 + MOVED_BY / 2, False), (1 + 2 * MOVED_BY, True)])
def test_figure_is_kept_until_it_has_moved_enough(factor: float, moves: bool) -> None:
    line = Line(1e6)
    line.track("b")
    line.measure()
    before = line.figures()
    line.bytes_per_s *= factor
    line.now += TIMING.link_refresh_s
    line.measure()
    assert (line.figures() != before) is moves


def test_known_link_keeps_nobody_waiting_but_is_measured() -> None:
    known = LinkFigures("b", 7, 0, 1_000)
    line = Line(1e6, {"b": known})
    line.track("b")
    assert line.prober.is_settled()
    assert line.figures() == known
    line.measure()
    assert line.figures() != known


def test_link_outlives_the_lives_of_its_ends() -> None:
    line = Line(1e6)
    line.track("b")
    line.measure()
    assert line.prober.track([], line.now) is False
    assert line.prober.figures() == ()
    line.members = membership(PeerId("b", 2)).members
    assert line.track("b") is True
    assert line.prober.is_settled()
    assert line.figures().to == "b"


def test_silent_link_is_unusable_and_tried_again_later() -> None:
    line = Line(1e6)
    line.prober.known["b"] = LinkFigures("b", 7, 0, BYTES_PER_S_MAX)
    line.track("b")
    for _ in range(ATTEMPTS):
        assert line.prober.figures() != ()
        probe = some(line.probe())
        line.now = some(line.prober.next_deadline())
        line.prober.on_echo(probe.nonce + 100, line.now)  # Somebody else's.
    effects = line.prober.tick(line.members, line.now)
    assert [log.level for log in of(Log, effects)] == ["warning"]
    assert line.prober.figures() == ()
    assert line.prober.is_settled()
    assert line.prober.next_deadline() == line.now + TIMING.contact_max_s


def test_large_probe_has_more_patience() -> None:
    line = Line(1e6)
    line.track("b")
    for _ in range(ROUNDS):
        probe = some(line.probe())
        assert line.prober.next_deadline() == line.now + TIMING.probe_small_timeout_s
        line.prober.on_echo(probe.nonce, line.now)
    probe = some(line.probe())
    assert probe.n_bytes == BIG_BYTES[0]
    assert line.prober.next_deadline() == line.now + TIMING.probe_big_timeout_s


def test_slow_link_on_which_a_chunk_is_ahead_is_waited_for() -> None:
    known = LinkFigures("b", 7, 0, 6_500)  # 52 kbit/s
    line = Line(known.bytes_per_s, {"b": known})
    line.track("b")
    assert line.probe() is not None
    patience_s = some(line.prober.next_deadline()) - line.now
    assert patience_s > AHEAD_BYTES / known.bytes_per_s


def test_link_of_50_kbit_per_s_is_measured() -> None:
    line = Line(bytes_per_s=6_250)
    line.track("b")
    while (probe := line.probe()) is not None:
        took_s = ROUND_TRIP_S + probe.n_bytes / line.bytes_per_s
        assert line.now + took_s < some(line.prober.next_deadline())
        line.now += took_s
        line.prober.on_echo(probe.nonce, line.now)
    assert line.figures().bytes_per_s == pytest.approx(6_250, rel=0.01)


def test_late_and_doubled_echoes_count_for_nothing() -> None:
    line = Line(1e6)
    line.track("b")
    first = some(line.probe())
    line.now += TIMING.probe_small_timeout_s
    second = some(line.probe())
    line.prober.on_echo(first.nonce, line.now)
    assert line.probe() is None  # The second is still on its way.
    line.prober.on_echo(second.nonce, line.now + 0.001)
    line.prober.on_echo(second.nonce, line.now + 9.0)
    line.now += 0.001
    line.measure()
    assert line.figures().delay_us < 6_000


def test_links_that_keep_somebody_waiting_go_first() -> None:
    line = Line(1e6, {"b": LinkFigures("b", 7, 0, 1_000)})
    line.track("b", "c")
    probe = some(line.probe())
    assert probe.to == line.members["c"].address


def test_nothing_is_probed_while_this_device_measures_itself() -> None:
    line = Line(1e6)
    line.prober.is_paused = True
    line.track("b")
    assert line.probe() is None
    assert line.prober.next_deadline() is None
    line.prober.is_paused = False
    assert line.probe() is not None


def test_impossibly_quick_echo_is_a_microsecond() -> None:
    line = Line(1e6)
    line.track("b")
    while (probe := line.probe()) is not None:
        line.prober.on_echo(probe.nonce, line.now)
    assert line.figures() == LinkFigures("b", 1, 0, BYTES_PER_S_MAX)


def test_payload_that_is_quicker_than_nothing_is_as_quick_as_can_be_said() -> None:
    line = Line(1e6)
    line.track("b")
    while (probe := line.probe()) is not None:
        line.now += 0.2 if probe.n_bytes == SMALL_BYTES else 0.1
        line.prober.on_echo(probe.nonce, line.now)
    assert line.figures() == LinkFigures("b", 100_000, 0, BYTES_PER_S_MAX)


def test_answer_for_a_member_that_is_gone_is_dropped() -> None:
    line = Line(1e6)
    line.track("b")
    probe = some(line.probe())
    line.prober.track([], line.now)
    line.prober.on_echo(probe.nonce, line.now)
    assert line.prober.figures() == ()
