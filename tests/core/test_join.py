"""Getting in: welcome, refusals, addresses that are tried for ever."""

from __future__ import annotations

from itertools import pairwise

from edgeshard_p2p.core.effects import Effect, Log, SaveGeneration, Send, Stop
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.join import CONTACTS_MAX, Join
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import (
    WIRE_MAX,
    Address,
    Hello,
    Identity,
    MemberState,
    Refused,
    Welcome,
)
from edgeshard_p2p.core.records import Setting
from tests.core.parts import (
    TIMING,
    A,
    B,
    C,
    address,
    alive,
    dead,
    identity,
    membership,
    of,
    sent,
)

SETTINGS = (Setting("batch", 1, B, 3),)


def joined() -> Join:
    return Join(TIMING, has_met=True)


def greet(
    join: Join, members: Membership, who: Identity, wire: tuple[int, int] = (1, 1), now: float = 0.0
) -> list[Effect]:
    return join.on_hello(Hello(who, 0, *wire), SETTINGS, members, now)


# --- being called ---------------------------------------------------------------------------


def test_newcomer_is_welcomed_with_all_that_is_known() -> None:
    m = membership(B)
    effects = greet(Join(TIMING, started_at=1.0, has_met=True), m, identity(C), now=3.5)
    ((to, welcome),) = sent(effects, Welcome)
    assert to == "c"
    assert welcome.identity == identity(A)
    assert set(welcome.updates) == {alive(A), alive(B), alive(C)}
    assert welcome.settings == SETTINGS
    assert (welcome.known_generation, welcome.uptime_ms) == (0, 2_500)
    assert m.is_present(C)
    assert not sent(effects, Hello)


def test_peer_that_has_met_nobody_calls_back() -> None:
    join = Join(TIMING)
    effects = greet(join, membership(), identity(C))
    assert sent(effects, Hello) == [("c", Hello(identity(A), 0))]
    assert list(join.contacts) == [address("c")]


def test_wire_version_that_is_not_spoken_here_is_refused_by_name() -> None:
    for wire in ((WIRE_MAX + 1, WIRE_MAX + 5), (0, 0)):
        m = membership(B)
        effects = greet(joined(), m, identity(C), wire)
        ((to, refused),) = sent(effects, Refused)
        assert (to, refused.reason) == ("c", "wire_version")
        assert "c@1 speaks wire versions" in refused.detail
        assert not m.is_present(C)
    assert sent(greet(joined(), membership(), identity(C), (0, WIRE_MAX + 1)), Welcome)


def test_taken_name_is_refused_naming_its_holder() -> None:
    m = membership(B)
    for stranger in (
        identity(PeerId("b", 9), install="other", host="elsewhere"),
        identity(PeerId("a", 9), install="other", host="elsewhere"),
    ):
        ((to, refused),) = sent(greet(joined(), m, stranger), Refused)
        assert (to, refused.reason) == ("elsewhere", "name_taken")
        assert f"belongs to the peer at {stranger.peer.name}:7911" in refused.detail
    assert m.members["b"].identity == identity(B)


def test_name_of_a_dead_member_is_free_for_a_later_generation() -> None:
    m = membership(B)
    m.apply(dead(B), 0.0)
    stranger = identity(PeerId("b", 1), install="other", host="elsewhere")
    ((_, welcome),) = sent(greet(joined(), m, stranger), Welcome)
    assert welcome.known_generation == 1  # So it has to come back as at least 2.
    stranger = identity(PeerId("b", 2), install="other", host="elsewhere")
    greet(joined(), m, stranger)
    assert m.members["b"].identity == stranger


def test_returning_peer_replaces_its_old_self_at_once() -> None:
    m = membership(B)
    ((_, welcome),) = sent(greet(joined(), m, identity(PeerId("b", 2))), Welcome)
    assert m.members["b"].peer == PeerId("b", 2)
    assert welcome.known_generation == 0


def test_device_that_forgot_its_lives_is_told_of_them() -> None:
    m = membership(PeerId("b", 7))
    ((_, welcome),) = sent(greet(joined(), m, identity(PeerId("b", 2))), Welcome)
    assert welcome.known_generation == 7


# --- being answered -------------------------------------------------------------------------


def welcomed(known_generation: int, m: Membership) -> list[Effect]:
    welcome = Welcome(identity(B), 4, known_generation, (alive(C, 2),), (), 0)
    return Join(TIMING).on_welcome(welcome, m, 0.0)


def test_welcome_brings_everyone_the_welcomer_knows() -> None:
    m = membership()
    effects = welcomed(0, m)
    assert m.all_updates() == (alive(A), alive(B, 4), alive(C, 2))
    assert not of(SaveGeneration, effects)


def test_generation_lived_before_is_outlived() -> None:
    for known, expected in ((0, []), (1, [SaveGeneration(2)]), (5, [SaveGeneration(6)])):
        assert of(SaveGeneration, welcomed(known, membership())) == expected


def test_refusal_ends_only_a_peer_that_nobody_has_welcomed() -> None:
    refused = Refused("name_taken", "the name a belongs to the peer at x:1")
    join, m = Join(TIMING), membership()
    text = f"b@1 refused this peer: {refused.detail}"
    assert join.on_refused(B, refused) == [Stop(2, text)]
    join.on_welcome(Welcome(identity(C), 0, 0, (), (), 0), m, 0.0)
    assert join.on_refused(B, refused) == [Log(text, "warning")]


# --- calling --------------------------------------------------------------------------------


def calls(join: Join, m: Membership, until: float) -> list[float]:
    times = []
    while (now := join.next_deadline()) is not None and now <= until:
        effects = join.tick(m, now)
        times += [now] * len(sent(effects, Hello))
    return times


def test_join_address_is_tried_for_ever_backing_off_to_ten_seconds() -> None:
    join = Join(TIMING)
    join.add(address("b"), 0.0, is_join=True)
    times = calls(join, membership(), 3600.0)
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert set(gaps[6:]) == {10.0}
    assert len(times) > 300


def test_operator_is_told_once_that_nobody_answers() -> None:
    join, m, told = Join(TIMING), membership(), []
    join.add(address("b"), 0.0, is_join=True)
    join.add(address("c"), 0.0)
    while (now := join.next_deadline()) is not None and now <= 600.0:
        told += of(Log, join.tick(m, now))
    assert [log.level for log in told] == ["warning"]
    assert "no answer from b:7911" in told[0].text


def test_address_of_a_present_member_is_not_called() -> None:
    join, m = Join(TIMING), membership(B)
    join.add(address("b"), 0.0, is_join=True)
    join.add(address("c"), 0.0)
    m.apply(alive(C), 0.0)
    assert calls(join, m, 60.0) == []
    assert list(join.contacts) == [address("b")]  # Found ones are forgotten, the operator's kept.
    m.apply(dead(B), 60.0)
    assert calls(join, m, 75.0) != []


def test_own_address_is_not_called() -> None:
    join = Join(TIMING)
    join.add(address("a"), 0.0, is_join=True)
    assert calls(join, membership(), 60.0) == []


def test_dead_member_is_called_for_ever() -> None:
    join, m = Join(TIMING), membership(B)
    m.apply(dead(B), 0.0)
    join.add(m.members["b"].address, 0.0)
    m.tick(TIMING.forget_s)
    assert calls(join, m, 600.0)[-1] > 580.0


def test_address_found_again_is_called_at_once() -> None:
    join, m = Join(TIMING), membership()
    join.add(address("b"), 0.0)
    calls(join, m, 100.0)
    join.add(address("b"), 100.5)
    assert join.tick(m, 100.5) == [Send(address("b"), Hello(identity(A), 0))]


def test_contacts_are_bounded() -> None:
    join = Join(TIMING)
    for port in range(1, CONTACTS_MAX + 10):
        join.add(Address("somewhere", port), 0.0)
    assert len(join.contacts) == CONTACTS_MAX


def test_hello_tells_the_incarnation() -> None:
    join, m = Join(TIMING), membership()
    m.incarnation = 3
    join.add(address("b"), 0.0)
    ((_, hello),) = sent(join.tick(m, 0.0), Hello)
    assert hello.incarnation == 3
    other = membership(A, me=B)
    other.apply(dead(A, 2), 0.0)
    joined().on_hello(hello, (), other, 0.0)
    assert other.members["a"].state is MemberState.ALIVE
