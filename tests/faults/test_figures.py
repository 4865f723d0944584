"""The figures of a report, out of what was seen."""

from __future__ import annotations

import pytest

from edgeshard_p2p.faults.figures import (
    Fault,
    Observed,
    Piece,
    Seen,
    Times,
    Tokens,
    compare,
    replay_ms_per_token,
    resolution_ms,
    stall_ms,
    times_of,
    worst,
)

KILL = Fault(10.0, "kill", ("b",), ("b",), at_token=2)


def seen(
    at: float, plan: str | None, state: str = "active", b: str = "alive", gen: int = 1
) -> Seen:
    return Seen(at, "a", {"a": ("alive", 1), "b": (b, gen)}, plan, state)


def test_loss_is_noticed_planned_round_and_got_over() -> None:
    observed = Observed(
        "a",
        [
            Piece(9.0, 1),
            Piece(9.9, 1),
            Piece(13.1, notice="interrupted: b@1 is gone"),
            Piece(14.5, 1),
        ],
        [
            seen(9.9, "p"),
            seen(11.0, "p", b="suspect"),
            seen(13.0, "q", "loading", b="dead"),
            seen(14.0, "q", b="dead"),
        ],
        [KILL],
    )
    found = times_of(observed, KILL)
    assert found == Times(3000.0, 4000.0, 4500.0)
    assert replay_ms_per_token(found, 100) == 5.0
    assert stall_ms(observed) == 4600.0
    assert resolution_ms(observed) == {"p50": 1100.0, "max": 2000.0}


def test_what_did_not_happen_has_no_time() -> None:
    observed = Observed("a", [Piece(9.0, 1), Piece(11.0, 1)], [seen(9.0, "p"), seen(11.0, "p")])
    assert times_of(observed, KILL) == Times()
    assert replay_ms_per_token(Times(), 0) is None


def test_later_life_is_as_good_as_a_death() -> None:
    observed = Observed("a", [], [seen(9.0, "p"), seen(11.0, "p", gen=2)])
    assert times_of(observed, KILL).detected_ms == 1000.0


def test_same_plan_again_is_a_new_one_once_it_had_ended() -> None:
    observed = Observed("a", [], [seen(9.0, "p"), seen(11.0, "p", "loading"), seen(12.0, "p")])
    assert times_of(observed, KILL).replanned_ms == 2000.0


def test_second_loss_during_the_first_one_s_recovery_waits_for_the_same_token() -> None:
    second = Fault(12.0, "kill", ("c",))
    pieces = [Piece(9.0, 1), Piece(11.0, notice="interrupted: b@1 is gone"), Piece(15.0, 1)]
    observed = Observed("a", pieces)
    assert times_of(observed, KILL).resumed_ms == 5000.0
    assert times_of(observed, second).resumed_ms == 3000.0


def test_fault_that_nobody_noticed_has_no_time_of_the_next_one() -> None:
    first, second = Fault(10.0, "freeze", ("b",), ("b",)), Fault(12.0, "freeze", ("b",), ("b",))
    seens = [seen(9.0, "p"), seen(13.0, "p", b="dead"), seen(14.0, "q", b="dead")]
    observed = Observed("a", [], seens, [first, second])
    assert times_of(observed, first) == Times()
    assert times_of(observed, second) == Times(1000.0, 2000.0)


def test_token_of_an_earlier_interruption_is_no_resumption() -> None:
    pieces = [Piece(8.0, notice="interrupted: x"), Piece(9.0, 1), Piece(11.0, 1)]
    assert times_of(Observed("a", pieces), KILL).resumed_ms is None


def test_lost_source_is_watched_by_another() -> None:
    fault = Fault(10.0, "kill", ("a",), ("a",))
    by_b = [
        Seen(9.0, "b", {"a": ("alive", 1), "b": ("alive", 1)}, "p", "active"),
        Seen(12.0, "b", {"a": ("dead", 1), "b": ("alive", 1)}, None, "none"),
    ]
    assert times_of(Observed("a", [], by_b), fault) == Times(2000.0)


def test_longest_of_several_faults() -> None:
    times = [Times(1.0, None, 5.0), Times(2.0, 3.0, 4.0)]
    assert worst(times) == Times(2.0, 3.0, 5.0)
    assert worst([]) == Times()


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ([1, 2, 3, 4, 5], Tokens()),
        ([1, 2, 4, 5], Tokens(lost=1)),
        ([1, 2, 3], Tokens(lost=2)),
        ([1, 2, 3, 3, 4, 5], Tokens(doubled=1)),
        ([1, 2, 9, 4, 5], Tokens(changed=1)),
        ([], Tokens(lost=5)),
        ([1, 2, 3, 4, 5, 4, 5], Tokens(doubled=2)),
    ],
)
def test_tokens_beside_an_undisturbed_run(got: list[int], expected: Tokens) -> None:
    assert compare([1, 2, 3, 4, 5], got) == expected
    assert expected.is_whole is (expected == Tokens())
