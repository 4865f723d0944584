"""A random swarm, random faults, and then peace: all drawn from one seed.

    run_seed(7)      raises AssertionError when anything is not as it must be
    run_few(7)       likewise; 2 to 6 peers, up to 8 units: the seeds of ``tests/sim/test_found.py``
    run_busy(7)      likewise; members stay, and there is much traffic
    run_chats(7)     likewise; most prompts go on from an earlier answer

What ``run_seed`` draws:

    peers    3 to 12, by N_PEERS: 72 % have 3 or 4, the median is 4; the first is a source, each
             other one with 1/2; one in 20 of the others lacks the model's files
    units    3 to 6, by N_BLOCKS: the blocks, the embedding and the head
    devices  memory from BUDGETS, speed from BLOCK_US; in 1 of 5 swarms all are alike, on a network
             without jitter, so that plans tie
    meeting  by multicast, or each by the addresses of all others: 1/2 each
    network  1/2 lose 1, 5 or 10 % of all messages, and of these 1/2 double 5 %, 1/2 hold up 5 %
             by up to 0.3 s so that later ones overtake, 1/2 ring alarms up to 50 ms late
    start    in 2/3 the faults wait for a plan that serves (10 s at most), else they come as they
             please
    faults   2 to 9 by the weights of FAULTS, each after 0 to 12 s, 1/2 within 0.3 s, which is in
             the middle of an answer: crash (the disk lost or not), restart, leave, freeze, thaw,
             partition, one-way cut, firewall that rejects, repair, slow link, slow device, failing
             load or pass, new setting, prompts, cancel
    prompts  1 to 150 tokens long, answered with 1 to 150
    peace    in 1/2 of the swarms who is down comes back

While faults happen, safety is checked after every event; once they stop, the swarm must come to
life.  What both mean stands in ``checks``.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from edgeshard_p2p.sim import checks
from edgeshard_p2p.sim.simulator import Simulator
from edgeshard_p2p.sim.trial import Trial

BUDGETS = (20_000, 30_000, 45_000, 60_000, 120_000, 10**9)
"""A unit weighs 4,000 bytes, the KV of one request in one block 8,192: from a peer that holds
little more than its entry to one that holds everything."""
BLOCK_US = (500, 1_000, 3_000, 10_000)
N_PEERS = {3: 36, 4: 36, 5: 9, 6: 6, 7: 4, 8: 3, 9: 2, 10: 2, 11: 1, 12: 1}
"""In so many of 100 swarms; the median is 4."""
N_BLOCKS = (1, 2, 3, 4, 4)
"""With embedding and head 3 to 6 units."""
READY_S = 10.0
PAUSES_S = (0.0, 0.1, 0.3, 1.0, 4.0, 12.0)
"""At most so long between two faults."""

Fault = Callable[[Trial], None]
Faults = tuple[tuple[int, Fault], ...]

FAULTS_OF_FEW: Faults = (
    (3, Trial.crash),
    (1, Trial.lose_disk),
    (3, Trial.restart),
    (2, Trial.leave),
    (3, Trial.freeze),
    (2, Trial.thaw),
    (2, Trial.partition),
    (2, Trial.cut),
    (1, Trial.reject),
    (3, Trial.repair),
    (1, Trial.slow_down),
    (1, Trial.fail_load),
    (1, Trial.fail_pass),
    (1, Trial.set_something),
    (8, Trial.submit),
    (1, Trial.cancel),
)
"""What may happen, and how often of all."""

FAULTS: Faults = (*FAULTS_OF_FEW, (3, Trial.slow_link), (2, Trial.fail_stage))

TRAFFIC: Faults = (
    (8, Trial.submit),
    (2, Trial.cancel),
    (1, Trial.fail_pass),
    (8, Trial.fail_stage),
    (2, Trial.freeze),
    (4, Trial.thaw),
    (1, Trial.cut),
    (4, Trial.repair),
)
"""What happens to a swarm whose members stay."""

SOUND_TRAFFIC: Faults = ((8, Trial.submit), (2, Trial.cancel))
"""What happens to one whose members stay and do what they are asked."""

CHATS: Faults = (
    (4, Trial.submit),
    (12, Trial.ask_on),
    (1, Trial.cancel),
    (1, Trial.crash),
    (2, Trial.restart),
    (1, Trial.freeze),
    (2, Trial.thaw),
    (1, Trial.cut),
    (2, Trial.repair),
    (1, Trial.fail_stage),
    (1, Trial.set_something),
)
"""What happens to one that is asked on and on."""


def random_trial(seed: int) -> Trial:
    rng = Random(seed)
    (n_peers,) = rng.choices(list(N_PEERS), list(N_PEERS.values()))
    trial = _random_trial(seed, rng, n_peers, rng.choice(N_BLOCKS))
    if rng.random() < 0.2:
        trial.swarm.network.jitter_s = 0.0
        budget_bytes, block_us = rng.choice(BUDGETS), rng.choice(BLOCK_US)
        for peer in trial.swarm.peers.values():
            peer.budget_bytes, peer.block_us = budget_bytes, block_us
    return trial


def trial_of_few(seed: int) -> Trial:
    rng = Random(seed)
    n_blocks = rng.choice((2, 4, 4, 6))
    return _random_trial(seed, rng, rng.choice((2, 3, 3, 4, 4, 5, 6)), n_blocks)


def _random_trial(seed: int, rng: Random, n_peers: int, n_blocks: int) -> Trial:
    swarm, names = Simulator(seed, n_blocks), list("abcdefghijkl"[:n_peers])
    if rng.random() < 0.5:
        swarm.network.loss = rng.choice((0.01, 0.05, 0.1))
        swarm.network.doubled = rng.choice((0.0, 0.05))
        swarm.network.overtaken = rng.choice((0.0, 0.05))
        swarm.timer_lag_s = rng.choice((0.0, 0.05))
    for name in names:
        budget_bytes, block_us = rng.choice(BUDGETS), rng.choice(BLOCK_US)
        is_source = name == "a" or rng.random() < 0.5
        models = () if name != "a" and rng.random() < 0.05 else None
        swarm.add(name, budget_bytes, is_source, block_us, models)
    return Trial(seed, rng, swarm, names, is_lan=rng.random() < 0.5)


def busy_trial(seed: int) -> Trial:
    """Several stages, all of them sources."""
    rng = Random(seed)
    swarm = Simulator(seed)
    names = list("abcd"[: rng.choice((3, 4))])
    for name in names:
        swarm.add(name, rng.choice((50_000, 60_000, 70_000)), block_us=rng.choice(BLOCK_US))
    return Trial(seed, rng, swarm, names, is_lan=True)


def run_seed(seed: int) -> Trial:
    """A whole trial: peers come and go, the network breaks and heals.  Raises AssertionError."""
    trial = random_trial(seed)
    trial.start_all()
    if trial.rng.random() < 2 / 3:
        trial.swarm.run_until(lambda: checks.serving_plan(trial.swarm) is not None, READY_S)
        trial.submit()
    _suffer(trial, FAULTS, trial.rng.randint(2, 9), PAUSES_S)
    return _end(trial)


def run_few(seed: int) -> Trial:
    """A whole trial of two to six peers.  Raises AssertionError."""
    trial = trial_of_few(seed)
    trial.start_all()
    _suffer(trial, FAULTS_OF_FEW, trial.rng.randint(2, 9), (0, 1, 4, 4, 15))
    return _end(trial)


def run_busy(seed: int) -> Trial:
    """A whole trial of the data plane: many requests over a network that loses, doubles and
    reorders much.  For odd seeds nothing else goes wrong, so no request may be set back.
    Raises AssertionError."""
    trial = busy_trial(seed)
    trial.start_all()
    trial.swarm.set("a", "batch", trial.rng.choice((1, 2, 4)))
    trial.check_settles()
    plan = checks.serving_plan(trial.swarm)
    network = trial.swarm.network
    network.loss = trial.rng.choice((0.0, 0.05, 0.1))
    network.doubled = network.overtaken = 0.2
    is_sound = bool(seed % 2)
    faults, n_faults = (SOUND_TRAFFIC, 8) if is_sound else (TRAFFIC, 16)
    _suffer(trial, faults, n_faults, (0, 0.2, 0.5))
    _end(trial)
    # Links that are measured anew may bring another plan.
    if is_sound and checks.serving_plan(trial.swarm) == plan:
        set_back = [str(r.id) for r in trial.requests if r.finished and r.finished.stats.failovers]
        assert not set_back, f"set back by nothing but the network: {set_back}"
    return trial


def run_chats(seed: int) -> Trial:
    """A whole trial in which most prompts go on from an earlier answer, so that what is cached of
    requests that are over is used and given up.  Raises AssertionError."""
    trial = busy_trial(seed)
    trial.start_all()
    trial.swarm.set("a", "batch", trial.rng.choice((2, 4)))
    trial.check_settles()
    trial.swarm.network.loss = trial.rng.choice((0.0, 0.0, 0.05))
    _suffer(trial, CHATS, 24, (0.2, 1.0, 4.0))
    return _end(trial)


def _suffer(trial: Trial, faults: Faults, n: int, pauses_s: tuple[float, ...]) -> None:
    weights, happenings = [weight for weight, _ in faults], [fault for _, fault in faults]
    for _ in range(n):
        trial.swarm.run(trial.swarm.now + trial.rng.random() * trial.rng.choice(pauses_s))
        trial.rng.choices(happenings, weights)[0](trial)


def _end(trial: Trial) -> Trial:
    trial.make_peace()
    trial.check_settles()
    trial.check_answers()
    trial.check_lets_go()
    return trial
