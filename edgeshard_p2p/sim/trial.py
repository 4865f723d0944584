"""A random swarm, what may be done to it, and what has to be true once that stops.

All that is drawn comes from the trial's one generator.  Knows nothing of how often what is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from edgeshard_p2p.sim import checks
from edgeshard_p2p.sim.network import Pace
from edgeshard_p2p.sim.request import SimRequest
from edgeshard_p2p.sim.simulator import Simulator

SLOWER = 20
SLOWEST_US = 40_000
SETTINGS: dict[str, tuple[str | int, ...]] = {
    "batch": (1, 2, 6),
    "context": (96, 160, 256),
    "first_layer": ("embedding",),
}
SLOW_DELAYS_S = (0.005, 0.05, 0.2)
SLOW_BYTES_PER_S = (2e4, 2e5, 2e6)
"""A link's usual pace is 1 ms and 1e8."""
SETTLE_S = 120.0
"""Beyond the memory of failures, which keeps a peer or a link out for a minute."""
STAYS_S = 3.0
END_S = 200.0
LATEST_CHATS = 3
"""Any of so many is asked on: of earlier ones nothing is left."""
GRACE_S = 90.0
"""For releases to pass every stage, records to spread, a change of plan that is under way, and what
is kept of requests that are over to be given up."""


@dataclass(slots=True)
class Trial:
    seed: int
    rng: Random
    swarm: Simulator
    names: list[str]
    is_lan: bool
    """Peers find each other by multicast; otherwise by the addresses they were given."""
    requests: list[SimRequest] = field(default_factory=list)

    # --- the beginning ----------------------------------------------------------------------

    def start_all(self) -> None:
        for name in self.names:
            self.swarm.run(self.swarm.now + self.rng.random() * self.rng.choice((0, 1, 3)))
            self.start(name)

    def start(self, name: str) -> None:
        if self.swarm.peers[name].options:
            self.swarm.restart(name)
        else:
            others = tuple(other for other in self.names if other != name)
            self.swarm.start(name, join=() if self.is_lan else others)
        self.discover()

    def discover(self) -> None:
        if not self.is_lan:
            return
        lives = [peer.host for peer in self.swarm.lives()]
        for a in lives:
            for b in lives:
                if a != b and (a, b) not in self.swarm.network.cuts:
                    self.swarm.discover(a, b)

    # --- the middle -------------------------------------------------------------------------

    def any_name(self) -> str:
        return self.rng.choice(self.names)

    def crash(self) -> None:
        self.swarm.crash(self.any_name())

    def lose_disk(self) -> None:
        """It comes back without any memory of its earlier lives."""
        name = self.any_name()
        self.swarm.crash(name)
        self.swarm.peers[name].lose_disk(self.rng)
        self.start(name)

    def restart(self) -> None:
        self.start(self.any_name())

    def leave(self) -> None:
        self.swarm.leave(self.any_name())

    def freeze(self) -> None:
        self.swarm.freeze(self.any_name())

    def thaw(self) -> None:
        self.swarm.thaw(self.any_name())

    def partition(self) -> None:
        shuffled = self.rng.sample(self.names, len(self.names))
        n = self.rng.randint(1, max(1, len(shuffled) - 1))
        self.swarm.network.partition(shuffled[:n], shuffled[n:])

    def cut(self) -> None:
        sender, receiver = self.rng.sample(self.names, 2)
        self.swarm.network.cut(sender, receiver)

    def reject(self) -> None:
        host, other = self.rng.sample(self.names, 2)
        self.swarm.reject(host, other)

    def slow_link(self) -> None:
        sender, receiver = self.rng.sample(self.names, 2)
        pace = Pace(self.rng.choice(SLOW_DELAYS_S), self.rng.choice(SLOW_BYTES_PER_S))
        self.swarm.network.slow_down(sender, receiver, pace)

    def repair(self) -> None:
        self.swarm.network.repair()
        self.discover()

    def slow_down(self) -> None:
        peer = self.swarm.peers[self.any_name()]
        peer.block_us = min(SLOWER * peer.block_us, SLOWEST_US)

    def fail_load(self) -> None:
        self.swarm.peers[self.any_name()].loads_to_fail += 1

    def fail_pass(self) -> None:
        self.swarm.peers[self.any_name()].passes_to_fail += 1

    def fail_stage(self) -> None:
        n_passes = self.rng.choice((1, 1, 4))
        self.swarm.peers[self.any_name()].stage_passes_to_fail += n_passes

    def set_something(self) -> None:
        key = self.rng.choice(sorted(SETTINGS))
        self.swarm.set(self.any_name(), key, self.rng.choice(SETTINGS[key]))

    def submit(self) -> None:
        for _ in range(self.rng.choice((1, 1, 2, 6))):
            length = self.rng.choice((1, 5, 60, 150))
            prompt = tuple(self.rng.randrange(100) for _ in range(length))
            max_tokens = self.rng.choice((1, 20, 90, 150))
            is_anywhere = self.rng.random() < 0.2
            sources = [name for name in self.names if self.swarm.peers[name].is_source]
            at = self.rng.choice(self.names if is_anywhere else sources)
            self.requests.append(self.swarm.submit(at, prompt, max_tokens))

    def ask_on(self) -> None:
        """The next turn of a chat: an earlier prompt and its answer, or most of it, and more."""
        answered = [request for request in self.requests if request.is_answered]
        if not answered:
            return
        before = self.rng.choice(answered[-LATEST_CHATS:])
        said = (*before.prompt, *before.tokens)
        n_kept = len(said) - self.rng.choice((0, 0, 1, 20))
        more = tuple(self.rng.randrange(100) for _ in range(self.rng.choice((1, 5, 40))))
        max_tokens = self.rng.choice((1, 20, 90))
        asked = self.swarm.submit(before.at, said[: max(0, n_kept)] + more, max_tokens)
        self.requests.append(asked)

    def cancel(self) -> None:
        if self.swarm.unended():
            self.swarm.cancel(self.rng.choice(self.swarm.unended()))

    # --- the end ----------------------------------------------------------------------------

    def make_peace(self) -> None:
        self.swarm.network.calm()
        self.swarm.timer_lag_s = 0.0
        for peer in self.swarm.peers.values():
            peer.loads_to_fail = peer.passes_to_fail = peer.stage_passes_to_fail = 0
            self.swarm.thaw(peer.host)
        if self.rng.random() < 0.5:
            for name in self.names:
                if self.swarm.peers[name].core is None:
                    self.start(name)
        self.discover()

    def check_settles(self) -> None:
        swarm = self.swarm
        ends_at = swarm.now + SETTLE_S
        while True:
            is_settled = swarm.run_until(lambda: checks.is_settled(swarm), ends_at - swarm.now)
            assert is_settled, "it does not settle"
            plan = checks.serving_plan(swarm)
            swarm.run(swarm.now + STAYS_S)
            if checks.is_settled(swarm) and checks.serving_plan(swarm) == plan:
                return
            assert swarm.now < ends_at, "it settles again and again"

    def check_answers(self) -> None:
        """Nothing that was accepted is left without an end; then every source answers."""
        self._check_ends()
        asked: list[SimRequest] = []
        if checks.serving_plan(self.swarm) is not None:
            for peer in self.swarm.lives():
                if peer.core is not None and peer.core.is_source():
                    asked.append(self.swarm.submit(peer.host, (1, 2, 3), 5))
        self._check_ends()
        for request in asked:
            assert request.is_answered, f"{request.rejected or request.finished}"

    def _check_ends(self) -> None:
        swarm = self.swarm
        is_ended = swarm.run_until(lambda: not swarm.unended(), END_S)
        assert is_ended, f"without an end: {[str(r.id) for r in swarm.unended()]}"

    def check_lets_go(self) -> None:
        """Nothing is held for requests that are over, nor for plans that are."""
        swarm = self.swarm
        is_clean = swarm.run_until(
            lambda: not checks.leftovers(swarm) and checks.is_settled(swarm), GRACE_S
        )
        assert is_clean, f"left over: {checks.leftovers(swarm) or 'the swarm is unsettled'}"
