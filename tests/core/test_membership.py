"""SWIM: which news is believed, how a member is probed, and who may refute."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from edgeshard_p2p.core.effects import Effect, Log, SaveGeneration, Send
from edgeshard_p2p.core.events import ConnectionLost
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.member import NEWS_FANOUT
from edgeshard_p2p.core.membership import (
    BELIEVABLE_MAX,
    SILENT_AFTER,
    UPDATES_PER_MESSAGE,
    Membership,
)
from edgeshard_p2p.core.messages import Ack, MemberState, Nack, News, Ping, PingReq, Update
from tests.core.parts import (
    TIMING,
    A,
    B,
    C,
    D,
    address,
    alive,
    dead,
    identity,
    left,
    membership,
    of,
    sent,
    suspect,
    update,
)

ALIVE, SUSPECT, DEAD, LEFT = MemberState
B2 = PeerId("b", 2)
PERIOD_S, ACK_S, VERDICT_S = TIMING.probe_period_s, TIMING.ack_timeout_s, TIMING.suspicion_s
GONE_S = TIMING.gone_suspicion_s


def belief(m: Membership, name: str = "b") -> tuple[int, int, MemberState]:
    member = m.members[name]
    return member.peer.generation, member.incarnation, member.state


def tick_until(m: Membership, now: float) -> list[Effect]:
    """Every deadline in time; what the last one brings."""
    effects: list[Effect] = []
    while (due := m.next_deadline()) is not None and due <= now:
        effects = m.tick(due)
    return effects


# --- which news is believed -----------------------------------------------------------------


@pytest.mark.parametrize("known", [alive(B, 1), suspect(B, 1), dead(B, 1), left(B, 1)], ids=str)
@pytest.mark.parametrize("state", MemberState)
@pytest.mark.parametrize("incarnation", [0, 1, 2])
def test_belief_gives_way_only_to_a_newer_one(
    known: Update, state: MemberState, incarnation: int
) -> None:
    m = membership(B)
    m.apply(known, 0.0)
    m.apply(update(B, incarnation, state), 1.0)
    is_newer = (incarnation, state) > (1, known.state) and known.state is not LEFT
    assert belief(m) == ((1, incarnation, state) if is_newer else (1, 1, known.state))


@pytest.mark.parametrize("known", [alive(B, 5), suspect(B, 5), dead(B, 5), left(B, 5)], ids=str)
def test_higher_generation_replaces_whatever_was_believed(known: Update) -> None:
    m = membership(B)
    m.apply(known, 0.0)
    m.changes.clear()
    m.apply(alive(B2, 0), 1.0)
    assert belief(m) == (2, 0, ALIVE)
    assert [(c.was, c.replaced) for c in m.changes] == [(None, B)]
    m.apply(dead(B, 99), 2.0)
    assert belief(m) == (2, 0, ALIVE)


def test_order_of_the_news_does_not_matter() -> None:
    news = [alive(B, 0), suspect(B, 0), alive(B, 1), dead(B, 1), alive(B2, 0)]
    for order in permutations(news):
        m = membership(B)
        for one in order:
            m.apply(one, 0.0)
        assert belief(m) == (2, 0, ALIVE)


def test_unknown_departure_is_no_news() -> None:
    m = membership()
    for one in (dead(B), left(B)):
        assert m.apply(one, 0.0) == []
    assert m.members == {}
    m.apply(suspect(B), 0.0)
    assert belief(m) == (1, 0, SUSPECT)


def test_numbers_that_were_made_up_are_not_believed() -> None:
    m = membership(B)
    for one in (
        alive(B, BELIEVABLE_MAX + 1),
        alive(PeerId("b", BELIEVABLE_MAX + 1)),
        dead(A, 2**48),
    ):
        assert m.apply(one, 0.0) == []
    assert (belief(m), m.incarnation) == ((1, 0, ALIVE), 0)


def test_same_news_again_changes_nothing() -> None:
    m = membership(B)
    first = m.apply(suspect(B), 1.0)
    assert [type(effect) for effect in first] == [Log]
    assert m.apply(suspect(B), 2.0) == []
    assert m.members["b"].since == 1.0


def test_other_device_of_the_name_waits_until_the_first_is_gone() -> None:
    m = membership(B)
    other = alive(B2, install="other", host="elsewhere")
    m.apply(other, 0.0)
    assert m.members["b"].identity == identity(B)
    m.apply(dead(B), 1.0)
    m.apply(alive(B, 7, install="other", host="elsewhere"), 2.0)
    assert belief(m) == (1, 0, DEAD)  # Not a later life.
    m.apply(other, 3.0)
    assert m.members["b"].identity == other.identity
    assert belief(m) == (2, 0, ALIVE)


# --- what is said of this peer itself -------------------------------------------------------


@pytest.mark.parametrize("accusation", [suspect(A, 3), dead(A, 3)], ids=str)
def test_accusation_is_refuted_with_a_higher_incarnation(accusation: Update) -> None:
    m = membership(B, C)
    effects = m.apply(accusation, 0.0)
    assert m.incarnation == 4
    assert sorted(sent(effects, News)) == [(name, News((alive(A, 4),))) for name in "bc"]


def test_old_accusation_and_praise_raise_nothing() -> None:
    m = membership(B)
    m.incarnation = 4
    for one in (suspect(A, 3), dead(A, 0), alive(A, 9)):
        assert m.apply(one, 0.0) == []
    assert m.incarnation == 4


def test_incarnation_of_others_is_passed_on_as_it_is() -> None:
    m = membership(B, C)
    m.apply(suspect(B, 2), 0.0)
    assert m.all_updates() == (alive(A, 0), suspect(B, 2), alive(C, 0))


def test_later_life_of_oneself_is_outlived() -> None:
    m = membership(B)
    assert m.apply(alive(PeerId("a", 5)), 0.0) == [SaveGeneration(6)]
    assert m.apply(dead(PeerId("a", 0), 9), 0.0) == []  # An earlier one is nobody's business.
    assert m.apply(alive(PeerId("a", 5), install="other", host="elsewhere"), 0.0) == []


# --- probing --------------------------------------------------------------------------------


def probed(m: Membership, now: float) -> tuple[str, Ping]:
    ((host, ping),) = sent(m.tick(now), Ping)
    return host, ping


def test_answered_probe_leaves_no_trace() -> None:
    m = membership(B)
    _, ping = probed(m, 0.0)
    assert m.on_ack(B, Ack(ping.nonce, B, ()), 0.1) == []
    assert of(Send, m.tick(ACK_S)) == []
    assert belief(m) == (1, 0, ALIVE)


def test_every_member_is_probed_in_each_round() -> None:
    m = membership(B, C, D)
    for round_ in range(3):
        hosts = []
        for k in range(3):
            now = (3 * round_ + k) * PERIOD_S
            host, ping = probed(m, now)
            m.on_ack(m.members[host].peer, Ack(ping.nonce, m.members[host].peer, ()), now)
            hosts.append(host)
        assert sorted(hosts) == ["b", "c", "d"]


def test_silent_member_is_asked_for_by_others_then_suspected_then_dead() -> None:
    m = membership(B)
    _, ping = probed(m, 0.0)
    m.apply(alive(C), 0.0)
    assert m.next_deadline() == ACK_S
    asked = m.tick(ACK_S)
    assert [(to, req.nonce, req.target) for to, req in sent(asked, PingReq)] == [
        ("c", ping.nonce, "b")
    ]
    # The next probe begins meanwhile; it cannot speed up the first one's end.
    effects = tick_until(m, 2 * PERIOD_S)
    assert belief(m) == (1, 0, SUSPECT)
    assert sorted(sent(effects, News)) == [(to, News((suspect(B),))) for to in "bc"]
    tick_until(m, 2 * PERIOD_S + VERDICT_S)
    assert belief(m) == (1, 0, DEAD)
    assert [member.peer for member in m.present()] == [C]


def test_refutation_ends_the_suspicion() -> None:
    m = membership(B)
    m.apply(suspect(B, 0), 0.0)
    m.apply(alive(B, 1), 1.0)
    m.tick(VERDICT_S)
    m.tick(2 * VERDICT_S)
    assert belief(m)[2] is not DEAD


def test_suspect_is_told_of_the_suspicion() -> None:
    m = membership(B)
    m.apply(suspect(B), 0.0)
    m._rumours.clear()
    _, ping = probed(m, 0.0)
    assert suspect(B) in ping.updates


def test_helper_probes_and_passes_the_answer_on() -> None:
    helper = membership(A, B, me=C)
    effects = helper.on_ping_req(A, PingReq(77, "b", ()), 0.0)
    ((to, ping),) = sent(effects, Ping)
    assert to == "b"
    assert helper.on_ping_req(A, PingReq(78, "nobody", ()), 0.0) == []
    ((to, ack),) = sent(helper.on_ack(B, Ack(ping.nonce, B, ()), 0.1), Ack)
    assert (to, ack.nonce, ack.target) == ("a", 77, B)


def test_suspect_among_many_is_told_at_once() -> None:
    """By chance alone it might hear of it too late to refute."""
    m = membership(*(PeerId(f"p{k:02}", 1) for k in range(40)))
    for k in range(40):
        told = [to for to, _ in sent(m.broadcast(suspect(PeerId(f"p{k:02}", 1))), News)]
        assert f"p{k:02}" in told
        assert len(set(told)) == len(told) <= NEWS_FANOUT + 1


def test_helper_that_hears_nothing_suspects_nobody() -> None:
    helper = membership(A, B, me=C)
    helper.on_ping_req(A, PingReq(77, "b", ()), 0.0)
    assert helper.next_deadline() == PERIOD_S
    effects = helper.tick(PERIOD_S)
    assert of(Log, effects) == []
    assert belief(helper) == (1, 0, ALIVE)


def test_answer_through_a_helper_counts_and_names_the_silent() -> None:
    m = membership(B, C)
    for k in range(SILENT_AFTER):
        assert m.silent() == ()
        now = 10.0 * k
        effects = m.tick(now)
        while not (found := [(h, p) for h, p in sent(effects, Ping) if h == "b"]):
            now += PERIOD_S
            ((host, ping),) = sent(effects, Ping)
            m.on_ack(m.members[host].peer, Ack(ping.nonce, m.members[host].peer, ()), now)
            effects = m.tick(now)
        m.on_ack(C, Ack(found[0][1].nonce, B, ()), now)
    assert m.silent() == ("b",)
    assert belief(m) == (1, 0, ALIVE)


def test_other_life_at_the_address_does_not_answer_for_the_one_probed() -> None:
    m = membership(B)
    _, ping = probed(m, 0.0)
    m.on_ack(B2, Ack(ping.nonce, B2, ()), 0.1)
    tick_until(m, 2 * PERIOD_S)
    assert belief(m) == (1, 0, SUSPECT)


def test_late_and_unasked_answers_change_nothing() -> None:
    m = membership(B)
    assert m.on_ack(B, Ack(4711, B, ()), 0.0) == []
    _, ping = probed(m, 0.0)
    m.on_ack(B, Ack(ping.nonce, B, ()), 0.1)
    assert m.on_ack(B, Ack(ping.nonce, B, ()), 0.2) == []


def test_ping_is_answered_to_known_peers_only() -> None:
    m = membership(B)
    ((to, ack),) = sent(m.on_ping(B, Ping(5, ()), 0.0), Ack)
    assert (to, ack.nonce, ack.target) == ("b", 5, A)
    assert m.on_ping(C, Ping(6, ()), 0.0) == []
    assert sent(m.on_ping(C, Ping(7, (alive(C),)), 0.0), Ack)[0][0] == "c"


def test_dead_member_that_speaks_hears_the_verdict() -> None:
    m = membership(B)
    assert m.verdict_on(B) == []
    m.apply(dead(B, 3), 0.0)
    assert m.verdict_on(B) == [Send(address("b"), News((alive(A), dead(B, 3))))]
    assert m.verdict_on(B2) == []


# --- connections that end -------------------------------------------------------------------


def lost(peer: PeerId, is_refused: bool = True) -> ConnectionLost:
    return ConnectionLost(address(peer.name), is_refused)


def asked_nonce(effects: list[Effect]) -> int:
    """Of the question about b that these effects put to helpers."""
    nonces = {req.nonce for _, req in sent(effects, PingReq) if req.target == "b"}
    assert len(nonces) == 1
    return nonces.pop()


def test_refused_peer_asks_others_at_once_and_suspects_nobody_by_itself() -> None:
    m = membership(B, C, D)
    effects = m.on_connection_lost(lost(B), 0.0)
    assert sorted(to for to, _ in sent(effects, PingReq)) == ["c", "d"]
    assert belief(m) == (1, 0, ALIVE)
    assert sent(m.on_connection_lost(lost(B), 0.0), PingReq) == []  # They are being asked.


def test_peer_whose_end_two_have_seen_is_soon_dead() -> None:
    m = membership(B, C)
    nonce = asked_nonce(m.on_connection_lost(lost(B), 0.0))
    assert sent(m.on_nack(C, Nack(nonce, B), 0.1), News)
    assert belief(m) == (1, 0, SUSPECT)
    tick_until(m, 0.1 + GONE_S - 0.01)
    assert belief(m) == (1, 0, SUSPECT)
    tick_until(m, 0.1 + GONE_S)
    assert belief(m) == (1, 0, DEAD)


def test_with_nobody_to_ask_its_own_word_has_to_do() -> None:
    m = membership(B)
    m.on_connection_lost(lost(B), 0.0)
    assert belief(m) == (1, 0, SUSPECT)
    tick_until(m, GONE_S)
    assert belief(m) == (1, 0, DEAD)


def test_two_that_end_at_once_are_no_help_for_each_other() -> None:
    m = membership(B, C)
    m.on_connection_lost(lost(B), 0.0)
    m.on_connection_lost(lost(C), 0.0)
    tick_until(m, 2 * GONE_S)
    assert (belief(m, "b")[2], belief(m, "c")[2]) == (DEAD, DEAD)


def test_one_that_others_reach_lives_on_behind_its_firewall() -> None:
    m = membership(B, C)
    nonce = asked_nonce(m.on_connection_lost(lost(B), 0.0))
    m.on_ack(C, Ack(nonce, B, ()), 0.1)
    assert m.on_nack(C, Nack(nonce, B), 0.2) == []
    assert belief(m) == (1, 0, ALIVE)
    assert not m.members["b"].is_refused


def test_refutation_ends_the_short_suspicion_too() -> None:
    m = membership(B, C)
    nonce = asked_nonce(m.on_connection_lost(lost(B), 0.0))
    m.on_nack(C, Nack(nonce, B), 0.1)
    m.apply(alive(B, 1), 0.2)
    m.apply(suspect(B, 1), 0.3)  # By somebody else, and for the usual time.
    assert m._belief_ends_at(m.members["b"]) == 0.3 + VERDICT_S


def test_word_of_a_helper_alone_shortens_nothing() -> None:
    m = membership(B, C)
    _, ping = probed(m, 0.0)
    while ping.nonce not in m._probes or m._probes[ping.nonce].target != B:
        m.on_ack(C, Ack(ping.nonce, C, ()), 0.0)
        _, ping = probed(m, m.next_deadline() or 0.0)
    assert m.on_nack(C, Nack(ping.nonce, B), 0.1) == []
    assert belief(m) == (1, 0, ALIVE)


def test_end_that_is_no_refusal_is_a_reason_to_ask_only() -> None:
    m = membership(B, C)
    nonce = asked_nonce(m.on_connection_lost(lost(B, is_refused=False), 0.0))
    m.on_nack(C, Nack(nonce, B), 0.1)
    assert belief(m) == (1, 0, ALIVE)


@pytest.mark.parametrize("event", [lost(C), lost(PeerId("x", 1))], ids=["dead", "unknown"])
def test_end_of_a_connection_to_nobody_present_is_no_news(event: ConnectionLost) -> None:
    m = membership(B)
    m.apply(alive(C), 0.0)
    m.apply(dead(C), 0.0)
    assert m.on_connection_lost(event, 0.0) == []


def test_helper_tells_when_it_gets_no_answer_and_at_once_when_it_is_refused() -> None:
    helper = membership(A, B, me=C)
    helper.on_ping_req(A, PingReq(77, "b", ()), 0.0)
    assert ("a", Nack(77, B)) in sent(helper.tick(PERIOD_S), Nack)
    helper.on_ping_req(A, PingReq(78, "b", ()), 1.0)
    assert sent(helper.on_connection_lost(lost(B), 1.1), Nack) == [("a", Nack(78, B))]
    assert sent(helper.on_ping_req(A, PingReq(79, "b", ()), 1.2), Nack) == [("a", Nack(79, B))]


# --- late timers, and who looks after whom ---------------------------------------------------


def test_time_in_which_a_peer_did_not_run_does_not_count_against_others() -> None:
    m = membership(B, C)
    m.apply(suspect(B), 0.0)
    m.tick(0.0)
    stopped_s = 10 * VERDICT_S
    m.tick(ACK_S + stopped_s)
    assert belief(m) == (1, 0, SUSPECT)
    assert belief(m, "c") == (1, 0, ALIVE)
    tick_until(m, stopped_s + VERDICT_S - 0.01)
    assert belief(m) == (1, 0, SUSPECT)
    tick_until(m, stopped_s + VERDICT_S + 0.01)
    assert belief(m) == (1, 0, DEAD)


def test_neighbours_in_the_circle_are_probed_in_every_period() -> None:
    others = [PeerId(f"p{k}", 1) for k in range(20)]
    m = membership(*others)
    m.circle = ("a", "p3", "p5", "p7")
    for k in range(5):
        hosts = [to for to, _ in sent(m.tick(k * PERIOD_S), Ping)]
        assert {"p3", "p7"} <= set(hosts)
        assert len(hosts) == len(set(hosts)) <= 3
        for nonce, probe in list(m._probes.items()):
            m.on_ack(probe.target, Ack(nonce, probe.target, ()), k * PERIOD_S)
    m.apply(dead(others[3]), 3.0)
    assert {"p5", "p7"} <= {to for to, _ in sent(m.tick(5 * PERIOD_S), Ping)}


def test_news_goes_to_the_circle_first() -> None:
    m = membership(*(PeerId(f"p{k:02}", 1) for k in range(30)))
    m.circle = ("a", "p03", "p05", "p29")
    told = [to for to, _ in sent(m.broadcast(suspect(PeerId("p07", 1))), News)]
    assert {"p03", "p05", "p29"} <= set(told)
    assert len(set(told) - {"p07"}) == len(told) - 1 == NEWS_FANOUT


# --- departures and rumours -----------------------------------------------------------------


def test_departure_is_told_at_once_and_forgotten_in_time() -> None:
    m = membership(B, C)
    assert sorted(sent(m.leave(), News)) == [(to, News((left(A),))) for to in "bc"]
    m.apply(left(B), 10.0)
    m.tick(10.0 + TIMING.forget_s - 0.01)
    assert belief(m) == (1, 0, LEFT)
    m.tick(10.0 + TIMING.forget_s)
    assert "b" not in m.members


def test_rumour_is_told_some_times_and_then_no_more() -> None:
    m = membership(*(PeerId(f"p{k}", 1) for k in range(14)))
    m.apply(suspect(PeerId("p3", 1)), 0.0)
    told = 0
    for k in range(100):
        ((_, ack),) = sent(m.on_ping(PeerId("p0", 1), Ping(k, ()), 0.0), Ack)
        assert ack.updates[0] == alive(A)
        told += suspect(PeerId("p3", 1)) in ack.updates
    assert told == 12  # 3 log2(16)


def test_message_carries_few_rumours_and_the_least_told_first() -> None:
    peers = [PeerId(f"p{k:02}", 1) for k in range(20)]
    m = membership(*peers)
    for peer in peers:
        m.apply(suspect(peer), 0.0)
    heard: list[str] = []
    for k in range(3):
        ((_, ack),) = sent(m.on_ping(peers[0], Ping(k, ()), 0.0), Ack)
        assert len(ack.updates) <= 1 + UPDATES_PER_MESSAGE
        heard += [one.identity.peer.name for one in ack.updates[1:]]
    assert set(heard[: len(peers)]) == {peer.name for peer in peers}


def test_rumours_are_bounded_by_the_members() -> None:
    m = membership(B, C)
    rng = random.Random(3)
    for k in range(500):
        m.apply(update(rng.choice((B, C)), k, rng.choice((ALIVE, SUSPECT))), 0.0)
    assert set(m._rumours) <= {"b", "c"}
