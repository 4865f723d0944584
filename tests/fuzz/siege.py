"""A simulated swarm that goes on answering prompts, and what is put to its doors meanwhile."""

from __future__ import annotations

from collections import Counter
from random import Random

from edgeshard_p2p.core.effects import FinishRequest, RunForward, Send
from edgeshard_p2p.core.messages import FrameHeader
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.sim import checks
from edgeshard_p2p.sim.checks import Safety
from edgeshard_p2p.sim.device import SimPeer
from edgeshard_p2p.sim.request import SimRequest
from edgeshard_p2p.sim.simulator import SWARM
from edgeshard_p2p.wire.client import (
    Cancel,
    ClientRequest,
    Run,
    Set,
    Status,
    View,
    decode_request,
    encode_request,
)
from edgeshard_p2p.wire.codec import CONTROL_BYTES_MAX, decode_control
from edgeshard_p2p.wire.errors import WireError
from edgeshard_p2p.wire.frames import HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX, decode_frame
from tests.fuzz import corpus, damage, forgery
from tests.fuzz.forgery import HARMLESS
from tests.fuzz.tally import Tally
from tests.fuzz.wired import CLIENT, CONTROL, DATA, Input, Wired
from tests.sim.swarms import ANSWER_S, HALF, settle

NAMES = "abc"
LIMITS = (CONTROL_BYTES_MAX, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX)
N_RUNNING = 3
PAUSE_S = 0.01
"""Of the swarm's own time between two inputs: some bad input between any two good messages."""
CLIENT_REQUESTS: tuple[ClientRequest, ...] = (
    Run("hello", False, 8, Sampling()),
    Cancel(),
    Status(),
    View(),
    Set("batch", "2"),
)


WAYS: dict[str, tuple[tuple[str, int], ...]] = {
    CONTROL: (("damage", 500), ("repeat", 80), ("lie", 250), ("mix", 60), ("foreign", 40)),
    DATA: (("damage", 400), ("repeat", 80), ("forge", 400), ("mix", 60), ("oversize", 2)),
    CLIENT: (("damage", 900), ("repeat", 80), ("oversize", 1)),
}
"""How what is good is spoiled at each door, and how often of all; ``lie`` makes its own."""


class Siege:
    """A swarm of three that goes on answering, and what is put to its doors meanwhile."""

    def __init__(self, seed: int, tally: Tally) -> None:
        self.rng = Random(seed)
        self.swarm = Wired(seed)
        self.tally = tally
        self.requests: list[SimRequest] = []
        for name in NAMES:
            self.swarm.add(name, HALF)
        for name in NAMES:
            self.swarm.start(name, join=("a",) if name != "a" else ())
        self.plan = settle(self.swarm)
        assert self.plan is not None
        self.drawn: Input | None = None
        """What is looked at."""

    def keep_busy(self) -> None:
        for _ in range(N_RUNNING - len(self.swarm.unended())):
            prompt = tuple(self.rng.randrange(100) for _ in range(self.rng.choice((1, 3, 60))))
            n_tokens = self.rng.choice((5, 20, 60))
            request = self.swarm.submit(self.rng.choice(NAMES), prompt, n_tokens)
            self.requests.append(request)

    def draw(self) -> tuple[str, Input, str]:
        """Where to, what, and the kind it must be counted under."""
        while True:
            host, good = self._good()
            ways, weights = zip(*WAYS[good.door], strict=True)
            way = self.rng.choices(ways, weights)[0]
            if way == "lie":
                host = self.rng.choice(NAMES)
                return host, *forgery.forged_message(self.rng, self.swarm, host)
            given = self._spoiled(way, good)
            kind = self.verdict(host, given, is_repeat=way == "repeat")
            if kind is not None:
                return host, given, kind
            self.tally.believed += 1

    def _spoiled(self, way: str, good: Input) -> Input:
        if way == "repeat":
            return good
        if way == "forge":
            return forgery.forged_frame(self.rng, self.swarm, good)
        if way == "foreign":
            return forgery.of_another_swarm(good)
        if way == "oversize":
            return damage.oversized(self.rng, good.door, LIMITS)
        if way == "mix":
            others = [one for _, one in self.swarm.caught if one.door == good.door]
            return damage.mixed(self.rng, good, self.rng.choice(others or [good]))
        return damage.damaged(self.rng, good)

    def _good(self) -> tuple[str, Input]:
        door = self.rng.choice((CONTROL, CONTROL, DATA, DATA, CLIENT))
        if door == CLIENT:
            request = self.rng.choice(CLIENT_REQUESTS)
            return self.rng.choice(NAMES), Input(CLIENT, (encode_request(SWARM, request),))
        while True:
            host, caught = self.rng.choice(self.swarm.caught)
            if caught.door == door:
                return host, caught

    def verdict(self, host: str, given: Input, is_repeat: bool) -> str | None:
        """None for what could only be told from the truth by who sent it."""
        self.drawn = given
        try:
            if given.door == DATA:
                decode_frame(given.parts)
                return forgery.verdict_on_frame(
                    self.swarm, self.swarm.doors(host).core, given.parts
                )
            if given.door == CONTROL:
                decode_control(SWARM, given.parts[0])
                return HARMLESS if is_repeat else None
            swarm_key, _ = decode_request(given.parts[0])
        except WireError as error:
            return error.kind
        return HARMLESS if swarm_key == SWARM else "other_swarm"

    def put(self, host: str, given: Input, kind: str) -> None:
        doors = self.swarm.doors(host)
        before, n_events = doors.refused(), self.swarm.n_events
        self.swarm.knock(host, given)
        counted = doors.refused() - before
        if kind != HARMLESS:
            assert counted == Counter({kind: 1}), f"{counted}, not {kind}"
        if doors.arrivals.refused - before:
            assert self.swarm.n_events == n_events, "it was refused, and acted on"
        self.tally.note(given, kind, counted)

    def check_undisturbed(self) -> None:
        for peer in self.swarm.lives():
            assert peer.core is not None
            active, members = peer.core.planning.rollout.active, peer.core.membership.present()
            assert active == self.plan, f"{peer.id} serves {active}"
            assert len(members) == len(NAMES) - 1, f"{peer.id} believes in {members}"
            for request in peer.core.serving.source.requests.values():
                assert request.failovers == 0, f"{request.id} was interrupted: {request.cause}"

    def check_served(self) -> None:
        """Every request ends with the tokens of one undisturbed peer, at its first attempt."""
        swarm = self.swarm
        assert swarm.run_until(lambda: not swarm.unended(), ANSWER_S), "requests do not end"
        for request in self.requests:
            assert request.is_answered, f"{request.rejected or request.finished}"
            assert request.finished is not None
            assert request.finished.stats.failovers == 0, f"{request.finished}"
        swarm.run_until(lambda: not checks.leftovers(swarm), ANSWER_S)
        assert checks.leftovers(swarm) == []


def besiege(seed: int, n_inputs: int, tally: Tally) -> None:
    siege = Siege(seed, tally)
    for number in range(n_inputs):
        siege.keep_busy()
        siege.swarm.run(siege.swarm.now + siege.rng.random() * PAUSE_S)
        try:
            host, given, kind = siege.draw()
            siege.drawn = given
            siege.put(host, given, kind)
            siege.check_undisturbed()
        except Exception as error:
            assert siege.drawn is not None
            path = corpus.save_failed(siege.drawn, f"seed {seed}, input {number}: {error}"[:200])
            raise AssertionError(f"besiege({seed}), input {number}, kept in {path}") from error
    siege.check_served()


class Bounds(Safety):
    """Of what is checked after each event, the part that no lie may change."""

    def check(self, peer: SimPeer, core: PeerCore) -> None:
        checks._check_bounds(core)

    def check_chatter(self, peer: SimPeer, effect: Send, now: float) -> None:
        """Whoever is lied to has much to ask and to answer."""

    def check_opening(self, peer: SimPeer, header: FrameHeader, now: float) -> None:
        """Lies open edges and lose them."""

    def check_forward(self, peer: SimPeer, effect: RunForward) -> None:
        """Who is ready is a matter of records, and those are made up."""

    def check_token(self, request: SimRequest) -> None:
        """A token that is made up is passed on."""

    def check_end(self, request: SimRequest, effect: FinishRequest) -> None:
        assert request.finished is None, f"{request.id} ended twice"


def be_lied_to(seed: int, n_inputs: int, tally: Tally) -> None:
    """What can be read, whatever it says, and frames that are a member's next but for a bit."""
    siege = Siege(seed, tally)
    swarm, rng = siege.swarm, siege.rng
    swarm.safety = Bounds(swarm)
    for number in range(n_inputs):
        siege.keep_busy()
        swarm.run(swarm.now + rng.random() * PAUSE_S)
        host, good = siege._good()
        given = damage.damaged(rng, good)
        if good.door == CONTROL and rng.random() < 0.5:
            given = Input(CONTROL, (damage.of_wrong_type(rng, good.parts[0]),))
        try:
            swarm.knock(host, given)
        except Exception as error:
            path = corpus.save_failed(given, f"a lie to {host}, seed {seed}, input {number}")
            raise AssertionError(f"be_lied_to({seed}), input {number}, kept in {path}") from error
        tally.note(given, HARMLESS, Counter())
    swarm.run(swarm.now + ANSWER_S)
