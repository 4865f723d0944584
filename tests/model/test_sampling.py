"""Drawing a token is a function of logits, sampling and position alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.model.sampling import sample, uniform

LOGITS = torch.tensor([1.0, 3.0, 2.0, 3.0, -5.0])


def test_greedy_takes_the_first_of_equals() -> None:
    assert sample(LOGITS, Sampling(), 0) == 1
    assert sample(torch.zeros(50_000), Sampling(), 9) == 0


def test_the_same_counter_draws_the_same() -> None:
    sampling = Sampling(temperature=1.3, seed=5)
    drawn = [sample(LOGITS, sampling, position) for position in range(50)]
    assert drawn == [sample(LOGITS, sampling, position) for position in range(50)]
    other = Sampling(temperature=1.3, seed=6)
    assert drawn != [sample(LOGITS, other, position) for position in range(50)]


def test_frequencies_follow_the_probabilities() -> None:
    sampling = Sampling(temperature=2.0, seed=1)
    counts = Counter(sample(LOGITS, sampling, position) for position in range(4000))
    expected = torch.softmax(LOGITS.double() / 2.0, -1)
    for token, probability in enumerate(expected.tolist()):
        assert counts[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    # Sorted: 1 and 3 with 0.40 each, 2 with 0.15, 0 with 0.05.
    nearly_all = Sampling(temperature=1.0, top_p=0.79, seed=2)
    assert {sample(LOGITS, nearly_all, position) for position in range(500)} == {1, 3}
    one = Sampling(temperature=1.0, top_p=1e-9, seed=2)
    assert {sample(LOGITS, one, position) for position in range(100)} == {1}
    whole = Sampling(temperature=5.0, top_p=1.0, seed=2)
    assert {sample(LOGITS, whole, position) for position in range(500)} == {0, 1, 2, 3, 4}


def test_uniform_is_uniform_and_below_one() -> None:
    values = [uniform(seed, position) for seed in range(20) for position in range(200)]
    assert len(set(values)) == len(values)
    assert 0.0 <= min(values) < 0.01
    assert 0.99 < max(values) < 1.0
