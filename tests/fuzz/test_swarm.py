"""Bad input at every door of a swarm that is answering prompts.

What is bad costs nobody anything: no exception, no token, no attempt of a request, and each refusal
is counted once, by kind.  ``scripts/test --campaign tests/fuzz`` tries 100,000 inputs and more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import SystemRandom

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeshard_p2p.core.edges import InEdge
from edgeshard_p2p.core.effects import Effect
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import ControlMessage, Delta, FrameHeader, Open, Ping
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.records import HeldRecord
from edgeshard_p2p.core.serving import Serving
from edgeshard_p2p.sim.simulator import SWARM
from edgeshard_p2p.wire import codec
from edgeshard_p2p.wire.client import ClientRequest, encode_request
from edgeshard_p2p.wire.codec import encode_control
from edgeshard_p2p.wire.frames import encode_body, encode_header
from tests.fuzz import corpus, damage, forgery, greed
from tests.fuzz.siege import NAMES, PAUSE_S, Siege, be_lied_to, besiege
from tests.fuzz.tally import Tally
from tests.fuzz.wired import CLIENT, CONTROL, DATA, DOORS, Input
from tests.wire.strategies import junk, values_of

AMPLIFIED_MAX = 20
"""Bytes that reading takes for each byte read."""
SPARE_BYTES = 2**16


@pytest.fixture(scope="module")
def siege(tally: Tally) -> Siege:
    """One for all that hypothesis draws: a swarm takes a while to settle."""
    return Siege(1_000, tally)


@pytest.mark.parametrize("block", range(4))
def test_bad_input_costs_nobody_anything(block: int, campaign: bool, tally: Tally) -> None:
    n_seeds, n_inputs = (13, 2_500) if campaign else (1, 1_000)
    for seed in seeds(block * n_seeds, n_seeds, campaign):
        besiege(seed, n_inputs, tally)
        tally.note_memory()


def seeds(first: int, n: int, campaign: bool) -> range:
    """The same ones each time; a campaign looks for new ones."""
    if campaign:
        first = SystemRandom().randrange(10**9)
    return range(first, first + n)


@pytest.mark.parametrize("block", range(2))
def test_liars_break_nothing(block: int, campaign: bool, tally: Tally) -> None:
    """Whoever knows the secret can end plans and requests: not peers, nor their bounds."""
    n_seeds, n_inputs = (8, 1_500) if campaign else (1, 400)
    for seed in seeds(2_000 + block * n_seeds, n_seeds, campaign):
        be_lied_to(seed, n_inputs, tally)
        tally.note_memory()


def frames_are_taken_twice(patch: pytest.MonkeyPatch) -> None:
    accepts = InEdge.accepts

    def mutant(self: InEdge, epoch: int, sequence: int) -> bool:
        is_repeat = epoch == self.epoch and 0 < sequence <= self.received
        return is_repeat or accepts(self, epoch, sequence)

    patch.setattr(InEdge, "accepts", mutant)


def anybody_speaks_of_an_edge(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Serving, "_flow_towards", lambda self, sender, plan, edge: self.flows.get(plan))


def records_free_requests_whoever_wrote_them(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: PeerCore, _: PeerId, delta: Delta, now: float) -> list[Effect]:
        self.gossip.on_delta(delta, self.membership)
        held = [(r.owner, r.value) for r in delta.records if isinstance(r.value, HeldRecord)]
        freed = [self.serving.free_below(by, value.oldest_live, now) for by, value in held]
        return [effect for effects in freed for effect in effects]

    patch.setattr(PeerCore, "_on_delta", mutant)


def nesting_is_no_error(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codec, "UNREADABLE", (msgspec.DecodeError, UnicodeDecodeError))


@pytest.mark.parametrize(
    "mutation",
    [
        frames_are_taken_twice,
        anybody_speaks_of_an_edge,
        records_free_requests_whoever_wrote_them,
        nesting_is_no_error,
    ],
)
def test_a_siege_notices(
    mutation: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "DIRECTORY", tmp_path)
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        besiege(0, 2_500, Tally())


def test_the_corpus_again(tally: Tally) -> None:
    siege = Siege(1, tally)
    kept = corpus.load()
    assert len(kept) > 30
    for one in kept:
        for host in NAMES:
            siege.keep_busy()
            siege.swarm.run(siege.swarm.now + PAUSE_S)
            before = siege.swarm.doors(host).refused()
            siege.swarm.knock(host, one.given)
            siege.check_undisturbed()
            counted = siege.swarm.doors(host).refused() - before
            expected = Counter() if one.kind == corpus.READ else Counter({one.kind: 1})
            assert one.kind == corpus.UNKNOWN or counted == expected, one.name
    siege.check_served()


def test_what_is_kept_is_what_was_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DIRECTORY", tmp_path)
    given = Input(DATA, (b"", b"\x01\x02", bytes(70) + b"\xff" * 3, b"\x91" * 5_000))
    corpus.save("name", "what it is", given, "malformed")
    corpus.save_failed(given, "seed 7")
    assert [(one.given, one.kind) for one in corpus.load()] == [
        (given, corpus.UNKNOWN),
        (given, "malformed"),
    ]


SOUP: dict[str, st.SearchStrategy[bytes]] = {
    CONTROL: junk()
    | st.builds(partial(encode_control, SWARM), values_of(PeerId), values_of(ControlMessage))
    | st.builds(partial(encode_control, forgery.FOREIGN), values_of(PeerId), values_of(Ping)),
    DATA: junk() | values_of(FrameHeader).map(encode_header) | values_of(Open).map(encode_body),
    CLIENT: junk() | values_of(ClientRequest).map(partial(encode_request, SWARM)),
}


@given(data=st.data())
def test_values_of_every_type_at_every_door(data: st.DataObject, siege: Siege) -> None:
    """What hypothesis makes of the types alone, and of well-formed nonsense."""
    siege.keep_busy()
    siege.swarm.run(siege.swarm.now + PAUSE_S)
    host, door = data.draw(st.sampled_from(NAMES)), data.draw(st.sampled_from(DOORS))
    n_parts = data.draw(st.integers(1, 4)) if door == DATA else 1
    drawn = Input(door, tuple(data.draw(SOUP[door]) for _ in range(n_parts)))
    kind = siege.verdict(host, drawn, is_repeat=False)
    if kind is None:
        siege.tally.believed += 1
        return
    siege.put(host, drawn, kind)
    siege.check_undisturbed()


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bomb", [*damage.HUGE, *damage.NESTS], ids=bytes.hex)
def test_what_is_announced_is_not_allocated(bomb: bytes) -> None:
    """However large it says that it is, reading it takes no more than a few times its own size."""
    for good in greed.one_of_each():
        part = good.parts[0]
        for place in range(0, len(part), max(1, len(part) // 12)):
            for tail in (b"", bytes(100), bomb * 2_000):
                bad = part[:place] + bomb + tail
                peak = greed.peak_bytes(Input(good.door, (bad, *good.parts[1:])))
                assert peak < AMPLIFIED_MAX * len(bad) + SPARE_BYTES, f"{peak} for {len(bad)}"


def test_the_largest_that_may_arrive(tally: Tally) -> None:
    """A full message of the smallest elements is what takes most for its size."""
    peaks = [0]
    for greedy in greed.largest():
        n_bytes = sum(map(len, greedy.parts))
        peaks.append(greed.peak_bytes(greedy))
        limit = AMPLIFIED_MAX * n_bytes + SPARE_BYTES
        assert peaks[-1] < limit, f"{peaks[-1]} for {n_bytes} bytes at the {greedy.door} door"
    tally.say(f"reading one message: at most {max(peaks) / 2**20:.1f} MiB")
