"""Random swarms under random faults: safety after every event, and life once the faults stop."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgeshard_p2p.core import entry
from edgeshard_p2p.sim.faults import run_busy, run_chats, run_few, run_seed
from edgeshard_p2p.sim.trial import Trial

BLOCK = 10
"""Seeds of one test: enough that collecting is cheap, few enough that workers share them."""
FOUND = (1_001_550, 1_002_367)
"""Seeds of the campaign that failed: rows of a source waited for a plan that had ended; frames of
an edge's earlier epoch gave credit in the next one."""
CHUNK_ROWS = 16
"""Of prefill, where there is to be much traffic from short prompts."""


def _blocks(first: int, n: int, of: int) -> list[range]:
    return [range(start, start + of) for start in range(first, first + n, of)]


def _run(trial: Callable[[int], Trial], seeds: range) -> None:
    for seed in seeds:
        try:
            trial(seed)
        except AssertionError as error:
            raise AssertionError(f"{trial.__name__}({seed}): {error}") from error


@pytest.mark.parametrize("seeds", _blocks(0, 500, BLOCK), ids=str)
def test_swarm_survives_its_faults(seeds: range) -> None:
    _run(run_seed, seeds)


@pytest.mark.parametrize("seed", FOUND)
def test_swarm_survives_what_was_found_once(seed: int) -> None:
    _run(run_seed, range(seed, seed + 1))


@pytest.mark.parametrize("seeds", _blocks(0, 20, BLOCK), ids=str)
def test_few_survive_their_faults(seeds: range) -> None:
    _run(run_few, seeds)


@pytest.mark.parametrize("seeds", _blocks(0, 24, BLOCK // 2), ids=str)
def test_traffic_survives_a_bad_network(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "CHUNK_ROWS", CHUNK_ROWS)
    _run(run_busy, seeds)


@pytest.mark.parametrize("seeds", _blocks(0, 20, BLOCK // 2), ids=str)
def test_chats_go_on(seeds: range) -> None:
    _run(run_chats, seeds)


def test_chats_go_on_from_what_is_cached() -> None:
    """Else the trials above would show nothing of it."""
    asked = [request for seed in range(4) for request in run_chats(seed).requests]
    ended = [request.finished.stats for request in asked if request.finished]
    assert any(stats.cached_tokens for stats in ended)


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seeds", _blocks(1_000_000, 1_000, 5 * BLOCK), ids=str)
def test_chats_go_on_for_long(seeds: range) -> None:
    _run(run_chats, seeds)


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seeds", _blocks(1_000_000, 20_000, 10 * BLOCK), ids=str)
def test_swarm_survives_its_faults_for_long(seeds: range) -> None:
    _run(run_seed, seeds)


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seeds", _blocks(1_000_000, 4_000, 5 * BLOCK), ids=str)
def test_traffic_survives_a_bad_network_for_long(
    seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "CHUNK_ROWS", CHUNK_ROWS)
    _run(run_busy, seeds)
