"""Seeds that found a bug once, and what it was."""

from __future__ import annotations

import pytest

from edgeshard_p2p.sim.faults import run_few

FOUND = {
    26: "two that held each other dead answered verdict with verdict until the next Hello",
    93: "the next attempt's ask overtook the release of the one before, which freed its slot",
    517: "a drain deadline that had passed woke the peer for ever",
    784: "requests freed by gossip let the next one overtake their release",
    940: "a plan retired by a death that was refuted was never proposed again",
    3159: "a plan that came back under its id had lost its KV, and sources went on waiting",
    3256: "a later life at an old address answered probes for the life before it",
    7119: "a device that lost its state directory used a generation that it had had before",
    # And that an edge which was refused was opened again as fast as it was answered.
    40916: "an ask that was withdrawn gave back the slot of the one that had followed it",
}


@pytest.mark.parametrize("seed", sorted(FOUND))
def test_seed(seed: int) -> None:
    run_few(seed)


def test_one_seed_is_one_story() -> None:
    assert run_few(12).swarm.log == run_few(12).swarm.log
