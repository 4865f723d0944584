"""Records that one peer owns, settings that the last writer wins; push and repair."""

from __future__ import annotations

import random

from edgeshard_p2p.core.effects import Effect
from edgeshard_p2p.core.gossip import (
    COUNTER_MAX,
    RECORDS_PER_DELTA,
    VERSIONS_AT_ONCE,
    Gossip,
)
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.member import NEWS_FANOUT
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import Delta, Digest
from edgeshard_p2p.core.records import (
    DeviceRecord,
    FailuresRecord,
    HeldRecord,
    LinksRecord,
    Record,
    Setting,
)
from tests.core.parts import TIMING, A, B, C, dead, gossip, membership, sent

HELD, HELD_LATER = HeldRecord(oldest_live=1), HeldRecord(oldest_live=2)
SLOW = DeviceRecord(True, 1000, None, False)


def take(into: Gossip, delta: Delta, m: Membership | None = None) -> None:
    into.on_delta(delta, m or membership(B, C, me=into.me))


def records(*made: Record) -> Delta:
    return Delta(made, ())


# --- records --------------------------------------------------------------------------------


def test_own_record_is_pushed_when_it_changes_and_only_then() -> None:
    g, m = gossip(), membership(B, C)
    pushed = sent(g.publish(HELD, m), Delta)
    assert pushed == [(to, records(Record(A, 1, HELD))) for to in "bc"]
    assert g.publish(HELD, m) == []
    assert sent(g.publish(HELD_LATER, m), Delta)[0][1] == records(Record(A, 2, HELD_LATER))


def test_push_reaches_a_bounded_number() -> None:
    g = gossip()
    m = membership(*(PeerId(f"p{k}", 1) for k in range(20)))
    hosts = [to for to, _ in sent(g.publish(HELD, m), Delta)]
    assert len(set(hosts)) == NEWS_FANOUT


def test_newer_version_of_a_kind_wins_in_any_order() -> None:
    made = [Record(B, 3, HELD), Record(B, 7, HELD_LATER), Record(B, 5, SLOW), Record(B, 6, HELD)]
    for seed in range(10):
        g = gossip()
        random.Random(seed).shuffle(made)
        for record in made:
            take(g, records(record))
        assert g.of(B, HeldRecord) == HELD_LATER
        assert g.of(B, DeviceRecord) == SLOW
        assert g.of(B, LinksRecord) is None


def test_own_records_are_not_taken_from_others() -> None:
    g, m = gossip(), membership(B)
    g.publish(HELD, m)
    take(g, records(Record(A, 99, HELD_LATER)), m)
    assert g.of(A, HeldRecord) == HELD


def test_records_of_unknown_lives_are_not_taken() -> None:
    g, m = gossip(), membership(B)
    take(g, records(Record(PeerId("b", 2), 1, HELD), Record(PeerId("x", 1), 1, HELD)), m)
    assert g.records == {}


def test_records_of_the_dead_are_kept_while_they_are_remembered() -> None:
    g, m = gossip(), membership(B)
    m.apply(dead(B), 0.0)
    take(g, records(Record(B, 1, HELD)), m)
    assert g.of(B, HeldRecord) == HELD


def test_records_of_lives_that_are_over_are_forgotten() -> None:
    g, m = gossip(), membership(B, C)
    g.publish(HELD, m)
    take(g, records(Record(B, 1, HELD), Record(C, 1, HELD)))
    before = g.revision
    g.forget_except([C])
    assert sorted(g.records) == [A, C]
    assert g.revision > before


def test_revision_rises_only_with_what_is_new() -> None:
    g = gossip()
    take(g, records(Record(B, 2, HELD)))
    before = g.revision
    take(g, records(Record(B, 2, HELD), Record(B, 1, HELD_LATER)))
    take(g, Delta((), (Setting("batch", 1, B, 0),)))
    assert g.revision == before


# --- settings -------------------------------------------------------------------------------


def test_last_writer_wins_in_any_order() -> None:
    made = [
        Setting("batch", 1, PeerId("z", 9), 5),
        Setting("batch", 3, A, 6),
        Setting("batch", 3, B, 7),
        Setting("batch", 0, C, 8),
        Setting("context", 1, A, 100),
    ]
    for seed in range(20):
        g = gossip()
        random.Random(seed).shuffle(made)
        for one in made:
            g.take_setting(one)
        assert (g.setting("batch"), g.setting("context")) == (7, 100)


def test_setting_here_goes_over_what_was_set() -> None:
    g, m = gossip(), membership(B)
    g.take_setting(Setting("batch", 4, B, 2))
    ((to, delta),) = sent(g.set("batch", 3, m), Delta)
    assert (to, delta.settings) == ("b", (Setting("batch", 5, A, 3),))


def test_default_yields_to_whatever_was_set() -> None:
    g, m = gossip(), membership(B)
    assert g.set("batch", 3, m, is_default=True)
    assert g.setting("batch") == 3
    g.take_setting(Setting("batch", 1, B, 5))
    assert g.set("batch", 7, m, is_default=True) == []
    assert g.setting("batch") == 5


def test_what_was_seeded_alone_can_be_taken_back() -> None:
    g, m = gossip(), membership(B)
    g.set("batch", 3, m)
    g.take_setting(Setting("context", 1, B, 64))
    g.forget_own_settings()
    assert [setting.key for setting in g.all_settings()] == ["context"]


def test_impossible_settings_are_not_believed() -> None:
    g = gossip()
    g.take_setting(Setting("batch", COUNTER_MAX + 1, B, 3))
    for key, value in (("batch", 0), ("batch", "many"), ("dtype", "fp7"), ("colour", "red")):
        g.take_setting(Setting(key, 9, B, value))
    assert g.all_settings() == ()


# --- repair ---------------------------------------------------------------------------------


MANY = [PeerId(f"p{k:03}", 1) for k in range(VERSIONS_AT_ONCE + 1)]


def members_of(one: Gossip) -> Membership:
    return membership(*(peer for peer in (A, B, C, *MANY) if peer != one.me), me=one.me)


def exchange(one: Gossip, other: Gossip, first: Digest | None = None) -> int:
    """Let ``one`` send its digest and both answer until nothing is left; the deltas sent."""
    pair = {one.me.name: one, other.me.name: other}
    digest = first or one._digest(wants_reply=True)
    queue: list[tuple[PeerId, str, object]] = [(one.me, other.me.name, digest)]
    n_deltas = 0
    while queue:
        sender, to, message = queue.pop(0)
        here, m = pair[to], members_of(pair[to])
        effects: list[Effect] = []
        if isinstance(message, Digest):
            effects = here.on_digest(sender, message, m)
        elif isinstance(message, Delta):
            n_deltas += 1
            here.on_delta(message, m)
        for kind in (Digest, Delta):
            queue += [(here.me, host, answer) for host, answer in sent(effects, kind)]
    return n_deltas


def test_digests_bring_two_peers_to_the_same() -> None:
    one, other = gossip(A), gossip(B)
    one.publish(HELD, membership())
    one.set("batch", 3, membership())
    other.publish(HELD_LATER, membership(me=B))
    other.set("context", 100, membership(me=B))
    take(other, records(Record(C, 5, SLOW), Record(C, 4, FailuresRecord())), members_of(other))
    assert exchange(one, other) > 0
    assert one.records == other.records
    assert one.settings == other.settings
    assert exchange(one, other) == 0
    assert exchange(other, one) == 0


def test_of_many_records_a_digest_goes_first() -> None:
    """It is all that is said while both have the same; what differs is mended both ways."""
    one, other = gossip(A), gossip(B)
    for here in (one, other):
        take(here, records(*(Record(peer, 1, HELD) for peer in MANY)), members_of(here))
    ((_, first),) = sent(one.tick(membership(B), 0.0), Digest)
    assert (first.versions, first.wants_reply) == ((), True)
    assert other.on_digest(A, first, members_of(other)) == []
    take(one, records(Record(MANY[7], 2, HELD_LATER)), members_of(one))
    take(other, records(Record(MANY[9], 3, HELD_LATER)), members_of(other))
    other.set("batch", 3, membership(me=B))
    ((_, second),) = sent(one.tick(membership(B), 1.0), Digest)
    assert exchange(one, other, second) > 0
    assert one.records == other.records
    assert one.setting("batch") == 3
    ((_, third),) = sent(one.tick(membership(B), 2.0), Digest)
    assert other.on_digest(A, third, members_of(other)) == []


def test_lost_push_of_one_kind_is_repaired_though_a_later_one_arrived() -> None:
    one, other = gossip(A), gossip(B)
    one.publish(HELD, membership())
    one.publish(SLOW, membership())
    take(other, records(Record(A, 2, SLOW)), members_of(other))
    exchange(one, other)
    assert other.of(A, HeldRecord) == HELD


def test_digest_of_a_stranger_is_not_answered() -> None:
    g = gossip()
    g.publish(HELD, membership())
    assert g.on_digest(B, Digest((), "", True), membership()) == []


def test_answer_is_bounded_and_the_rest_follows() -> None:
    g = gossip()
    peers = [PeerId(f"p{k:03}", 1) for k in range(RECORDS_PER_DELTA + 10)]
    m = membership(B, *peers)
    take(g, records(*(Record(peer, 1, HELD) for peer in peers)), m)
    empty = Digest((), g._settings_digest(), False)
    ((_, delta),) = sent(g.on_digest(B, empty, m), Delta)
    assert len(delta.records) == RECORDS_PER_DELTA
    other = gossip(B)
    take(other, delta, membership(*peers, me=B))
    ((_, rest),) = sent(g.on_digest(B, other._digest(False), m), Delta)
    assert not {r.owner for r in rest.records} & {r.owner for r in delta.records}


def test_one_digest_a_period_to_somebody_present() -> None:
    g, m = gossip(), membership(B)
    assert [to for to, _ in sent(g.tick(m, 0.0), Digest)] == ["b"]
    assert g.tick(m, TIMING.gossip_period_s / 2) == []
    assert g.next_deadline() == TIMING.gossip_period_s
    assert sent(g.tick(m, TIMING.gossip_period_s), Digest)
    m.apply(dead(B), 1.0)
    assert g.tick(m, 10.0) == []
