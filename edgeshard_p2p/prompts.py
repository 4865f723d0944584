"""Words for prompts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice

SAMPLE, TRIES = 64, 7
"""Words that are counted first: more than are wanted might be more than is possible."""

_TEXT = """
The old harbour lies where the river meets the sea, and every morning before the sun is up the boats
go out past the long stone wall to look for fish. An old man who has lived there all his life keeps
a book in which he writes down how the wind blew, how high the water stood, which boats came home
and what they brought. In the evening people sit on the steps of his house and he reads to them from
it, about the storm that took the roof of the church, about the winter when the river froze and
children walked to the island, about the stranger who came one day in a boat without a sail and
would not say from where. This is the story that he told them on the first warm night of spring:
"""


STRIDE = 7
"""Words between the beginnings of two prompts; it has no divisor in common with the text's length,
so each word is a beginning before one is for the second time."""


SLACK = 8
"""Tokens by which one variant may be longer than another of as many words."""


def words(n: int, variant: int = 0) -> str:
    """So many; two variants differ within a few words of their beginning."""
    text = _TEXT.split()
    lap, nth = divmod(variant, len(text))
    start = nth * STRIDE % len(text)
    begun = [f"{lap}:"] if lap else []
    return " ".join([*begun, *islice(cycle(text), start, start + n)])


def prompt_of(n_tokens: int, count: Callable[[str], int]) -> tuple[str, int]:
    """A prompt (the first variant) as near to ``n_tokens`` as words can get, and its length;
    ``count`` says how many tokens the model sees in a text, so no tokenizer is needed here."""
    n_words, best = min(n_tokens, SAMPLE), (n_tokens + 1, "", 0)
    for _ in range(TRIES):
        text = words(n_words)
        found = count(text)
        off = found - n_tokens
        best = min(best, (abs(off), text, found))
        if not off:
            break
        n_words = max(1, n_words - off if abs(off) <= 3 else round(n_words * n_tokens / found))
    return best[1], best[2]
