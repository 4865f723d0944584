"""Hundreds of peers: how soon all know of a death, and what keeping in touch costs each."""

from __future__ import annotations

import pytest

from edgeshard_p2p.core.timing import Timing
from edgeshard_p2p.sim.crowd import Death, run_death, run_steady

PERIOD_S = Timing().probe_period_s
BYTES_PER_S = 1_000
"""Of one peer among however many, its records included, while nothing happens."""
SEEDS = 200
LATE_MAX = 2
"""Of 200 deaths; loss can always be worse than any bound."""


def _late(deaths: dict[int, Death]) -> dict[int, Death]:
    return {seed: death for seed, death in deaths.items() if not death.is_in_time(PERIOD_S)}


@pytest.mark.parametrize(("n_peers", "seeds"), [(60, range(5)), (200, range(2))])
def test_all_know_of_a_death_in_time(n_peers: int, seeds: range) -> None:
    deaths = {seed: run_death(seed, n_peers) for seed in seeds}
    assert _late(deaths) == {}
    assert not any(death.n_wrong for death in deaths.values())


def test_what_a_peer_sends_does_not_grow_with_the_swarm() -> None:
    few, many = (sum(run_steady(0, n_peers).values()) for n_peers in (30, 120))
    assert few < BYTES_PER_S
    assert many < 1.1 * few


def test_one_seed_is_one_story() -> None:
    assert run_death(3, 20) == run_death(3, 20)


def test_a_small_swarm_knows_too() -> None:
    """With nobody left to ask for help, and with one other."""
    assert _late({n_peers: run_death(1, n_peers, loss=0.0) for n_peers in (2, 3, 4)}) == {}


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_all_know_of_200_deaths_in_time() -> None:
    deaths = {seed: run_death(seed) for seed in range(SEEDS)}
    assert len(_late(deaths)) <= LATE_MAX
