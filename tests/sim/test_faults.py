"""Random swarms under random faults: safety after every event, and life once the faults stop."""

from __future__ import annotations

import pytest

from edgeshard_p2p.sim.faults import run_seed

BLOCK = 10
"""Seeds of one test: enough that collecting is cheap, few enough that workers share them."""


def _blocks(first: int, n: int, of: int) -> list[range]:
    return [range(start, start + of) for start in range(first, first + n, of)]


def _run(seeds: range) -> None:
    for seed in seeds:
        try:
            run_seed(seed)
        except AssertionError as error:
            raise AssertionError(f"run_seed({seed}): {error}") from error


@pytest.mark.parametrize("seeds", _blocks(0, 150, BLOCK), ids=str)
def test_swarm_survives_its_faults(seeds: range) -> None:
    _run(seeds)


@pytest.mark.campaign
@pytest.mark.parametrize("seeds", _blocks(1_000_000, 20_000, 10 * BLOCK), ids=str)
def test_swarm_survives_its_faults_for_long(seeds: range) -> None:
    _run(seeds)
