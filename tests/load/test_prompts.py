"""Prompts for a load: of a wanted length, and none that begins as another does."""

from __future__ import annotations

import pytest

from edgeshard_p2p.prompts import prompt_of, words


def test_length_is_what_was_asked_for() -> None:
    text, n_tokens = prompt_of(40, lambda text: len(text) // 4)
    assert n_tokens == len(text) // 4 == 40


@pytest.mark.parametrize("n_tokens", [30, 480])
def test_no_text_is_tried_that_is_much_longer(n_tokens: int) -> None:
    """It might be more than the swarm's context."""
    counted = []

    def count(text: str) -> int:
        counted.append(len(text) // 4)
        return counted[-1]

    prompt_of(n_tokens, count)
    assert max(counted) <= max(1.1 * n_tokens, 100)


def test_no_two_variants_begin_alike() -> None:
    n_variants = 500
    begin = {words(8, variant) for variant in range(n_variants)}
    assert len(begin) == n_variants
    assert {len(text.split()) for text in begin} <= {8, 9}
