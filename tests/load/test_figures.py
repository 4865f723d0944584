"""What many requests saw, in numbers."""

from __future__ import annotations

import pytest

from edgeshard_p2p.load.figures import Spread, at, figures, steady_tokens_per_s
from edgeshard_p2p.load.traffic import Served


def served(index: int, asked_at: float, *token_at: float, error: str = "") -> Served:
    return Served(index, asked_at, list(token_at), list(range(len(token_at))), error=error)


@pytest.mark.parametrize(
    ("share", "value"), [(0.001, 1.0), (0.5, 2.0), (0.75, 3.0), (0.99, 4.0), (1.0, 4.0)]
)
def test_share_of_values_that_one_is_not_above(share: float, value: float) -> None:
    assert at([1.0, 2.0, 3.0, 4.0], share) == value


def test_figures_of_two_answers() -> None:
    found = figures([served(0, 10.0, 11.0, 11.1, 11.4), served(1, 10.5, 12.0, 12.2)])
    assert (found.requests, found.failed, found.tokens) == (2, 0, 5)
    assert found.seconds == pytest.approx(2.2)
    assert found.tokens_per_s == pytest.approx(5 / 2.2, abs=1e-3)
    assert found.ttft_ms == Spread(1000.0, 1500.0, 1500.0)
    assert found.inter_token_ms == Spread(200.0, 300.0, 300.0)
    assert found.ms_per_token == Spread(200.0, 200.0, 200.0)


def test_failed_requests_count_as_such_and_for_nothing_else() -> None:
    lost = served(1, 0.0, 1.0, 50.0, error="the swarm is gone")
    lost.refusals = 3
    found = figures([served(0, 10.0, 11.0), lost])
    assert (found.requests, found.failed, found.refusals, found.tokens) == (2, 1, 3, 1)
    assert (found.seconds, found.ttft_ms.max) == (1.0, 1000.0)


def test_nothing_at_all_is_no_error() -> None:
    found = figures([served(0, 0.0, error="nobody is there")])
    assert (found.failed, found.tokens, found.tokens_per_s, found.ttft_ms.p50) == (1, 0, 0.0, 0.0)


def test_steady_pace_is_that_of_the_time_when_all_were_decoding() -> None:
    early = served(0, 0.0, 1.0, 2.0, 3.0, 4.0)
    late = served(1, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert steady_tokens_per_s([early, late]) == pytest.approx(4 / 2.0)
    assert steady_tokens_per_s([early, served(1, 0.0, 9.0, 10.0)]) == 0.0
    assert steady_tokens_per_s([]) == 0.0
