"""From records to the planner's snapshot: the same whatever the order, and who is left out."""

from __future__ import annotations

from random import Random

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import Delta
from edgeshard_p2p.core.plan import Goal, Link, RowTimes
from edgeshard_p2p.core.planner import choose
from edgeshard_p2p.core.records import (
    DeviceRecord,
    Failure,
    FailuresRecord,
    HeldRecord,
    LinkFigures,
    LinksRecord,
    Record,
    RecordValue,
    Setting,
    UnitTimes,
)
from edgeshard_p2p.core.settings import SettingValue
from edgeshard_p2p.core.view import View, view
from tests.core.parts import (
    MODEL,
    A,
    B,
    C,
    D,
    alive,
    dead,
    gossip,
    left,
    membership,
    suspect,
)

TIMES = (UnitTimes(1, 10, 200, 300),)
DEVICE = DeviceRecord(True, 5000, MODEL.digest, True, "", "fp32", "exact", TIMES, TIMES)
LINKS = LinksRecord((LinkFigures("a", 5, 1, 100), LinkFigures("b", 6, 1, 100)))


def seen(
    records: list[tuple[PeerId, RecordValue]],
    m: Membership | None = None,
    settings: tuple[tuple[str, SettingValue], ...] = (),
) -> View:
    m = m or membership(B, C)
    known = gossip(m.me.peer)
    known.take_setting(Setting("model", 1, A, MODEL))
    for key, setting in settings:
        known.take_setting(Setting(key, 1, A, setting))
    for version, (owner, value) in enumerate(records, start=1):
        if owner == m.me.peer:
            known.publish(value, m)
        else:
            known.on_delta(Delta((Record(owner, version, value),), ()), m)
    return view(m, known, tile_rows=4)


def all_three(**changed: RecordValue) -> list[tuple[PeerId, RecordValue]]:
    """Everyone's device record, those of ``changed`` replaced."""
    return [(peer, changed.get(peer.name, DEVICE)) for peer in (A, B, C)]


def planned(made: View) -> list[str]:
    assert made.snapshot is not None
    return [device.peer.name for device in made.snapshot.devices]


def test_nobody_has_named_a_model() -> None:
    made = view(membership(B), gossip(), 4)
    assert (made.snapshot, made.excluded) == (None, {})
    assert "--model" in made.waiting_for


def test_device_and_links_are_taken_as_their_owners_say() -> None:
    made = seen([*all_three(), (B, LINKS), (C, HeldRecord((UnitRange(2, 4),)))])
    assert made.snapshot is not None
    _, b, c = made.snapshot.devices
    assert (b.peer, b.is_source, b.budget_bytes) == (B, True, 5000)
    assert b.unit_us == (10, 200, 200, 200, 200, 300)
    assert (b.held, c.held) == ((), (UnitRange(2, 4),))
    assert made.snapshot.links == (Link("b", "a", 5, 1, 100),)  # None to itself.


def test_times_of_more_rows_and_of_chunks_come_along_and_change_no_choice() -> None:
    rows = tuple(UnitTimes(n, 10, 150 + 50 * n, 300) for n in (1, 8))
    chunks = tuple(UnitTimes(n, 20, 90 * n, 400) for n in (32, 128))
    measured = replace(DEVICE, decode=rows, prefill=chunks)
    made = seen([*all_three(b=measured), (B, LINKS)]).snapshot
    assert made is not None
    a, b, _ = made.devices
    assert b.unit_us == a.unit_us == (10, 200, 200, 200, 200, 300)
    assert b.decode == (RowTimes(8, (10, 550, 550, 550, 550, 300)),)
    assert [times.rows for times in b.prefill] == [32, 128]
    assert b.decode_us(8)[1] == 550
    assert b.prefill_us(128) == (20, 11520, 11520, 11520, 11520, 400)
    # All peers plan one token at a time, whoever has measured more.
    plain = seen([*all_three(), (B, LINKS)]).snapshot
    assert plain is not None
    assert plain.id != made.id
    assert replace(choose(plain), snapshot_id=made.id) == choose(made)


def test_order_of_news_does_not_matter() -> None:
    records = [
        *all_three(),
        (B, LINKS),
        (C, LINKS),
        (C, HeldRecord((UnitRange(0, 2),))),
        (B, FailuresRecord((Failure("no_edge", C, A),))),
    ]
    settings: list[tuple[str, SettingValue]] = [("batch", 3), ("context", 64), ("dtype", "fp32")]
    ids = set()
    for seed in range(30):
        rng = Random(seed)
        rng.shuffle(records)
        rng.shuffle(settings)
        news = [alive(B), alive(C), suspect(C)]
        rng.shuffle(news)
        m = membership()
        m.apply_all((*news, alive(B), alive(C)), 0.0)
        made = seen(records, m, tuple(settings)).snapshot
        assert made is not None
        ids.add(made.id)
    assert len(ids) == 1


def test_everyone_sees_the_same() -> None:
    ids = set()
    for me in (A, B, C):
        m = membership(*(peer for peer in (A, B, C) if peer != me), me=me)
        made = seen([*all_three(), (B, LINKS)], m).snapshot
        assert made is not None
        ids.add(made.id)
    assert len(ids) == 1


def test_suspects_are_planned_and_the_departed_are_not() -> None:
    for news, expected in ((suspect(B), ["a", "b", "c"]), (dead(B), ["a", "c"])):
        m = membership(B, C)
        m.apply(news, 0.0)
        assert planned(seen(all_three(), m)) == expected
    m.apply(left(C), 0.0)
    assert planned(seen(all_three(), m)) == ["a"]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (None, "its figures have not arrived yet"),
        (replace(DEVICE, model=None), "it does not have the files of tiny"),
        (replace(DEVICE, model=None, note="the disk is full"), "the disk is full"),
        (replace(DEVICE, model="1" * 64), "it does not have the files of tiny"),
        (replace(DEVICE, eligible=False), "it is not settled yet"),
        (replace(DEVICE, eligible=False, note="it has just started"), "it has just started"),
        (replace(DEVICE, dtype="bf16"), "it is not measured for fp32 exact yet"),
        (replace(DEVICE, numerics="fast"), "it is not measured for fp32 exact yet"),
        (replace(DEVICE, decode=()), "it is not measured yet"),
    ],
)
def test_who_is_left_out_and_why(record: DeviceRecord | None, why: str) -> None:
    records = [pair for pair in all_three() if pair[0] != B]
    if record is not None:
        records.append((B, record))
    made = seen(records)
    assert planned(made) == ["a", "c"]
    assert made.excluded == {"b": why}


def test_nobody_is_ready() -> None:
    made = seen([])
    assert made.snapshot is None
    assert made.waiting_for == "no peer is ready to be planned yet"
    assert sorted(made.excluded) == ["a", "b", "c"]


def test_failures_keep_a_peer_or_a_link_out() -> None:
    both = [*all_three(), (B, LINKS), (C, LINKS)]
    cannot = FailuresRecord((Failure("cannot_load", B),))
    made = seen([*both, (B, cannot)])
    assert planned(made) == ["a", "c"]
    assert made.excluded == {"b": "it could not load its part, and is left out for a while"}
    no_edge = FailuresRecord((Failure("no_edge", C, B),))
    made = seen([*both, (C, no_edge)])
    assert made.snapshot is not None
    assert [(link.a, link.b) for link in made.snapshot.links] == [("b", "a"), ("c", "a")]
    reborn = FailuresRecord((Failure("cannot_load", PeerId("b", 0)),))
    assert planned(seen([*both, (B, reborn)])) == ["a", "b", "c"]


def test_links_to_those_who_are_not_planned_are_left_out() -> None:
    made = seen([*all_three(a=replace(DEVICE, eligible=False)), (B, LINKS), (C, LINKS)])
    assert made.snapshot is not None
    assert [(link.a, link.b) for link in made.snapshot.links] == [("c", "b")]


def test_settings_and_their_defaults() -> None:
    made = seen(all_three()).snapshot
    assert made is not None
    w = made.workload
    assert (w.dtype, w.numerics, w.tile_rows, w.context, w.batch) == ("fp32", "exact", 4, 256, 4)
    fast = replace(DEVICE, numerics="fast", dtype="bf16")
    settings: tuple[tuple[str, SettingValue], ...] = (
        ("numerics", "fast"),
        ("dtype", "bf16"),
        ("context", 32),
        ("batch", 1),
        ("first_layer", "embedding"),
    )
    made = seen(all_three(a=fast, b=fast, c=fast), settings=settings).snapshot
    assert made is not None
    w = made.workload
    assert (w.dtype, w.numerics, w.tile_rows, w.context, w.batch) == ("bf16", "fast", 0, 32, 1)
    assert w.first_layer == "embedding"


def test_records_of_those_who_are_not_members_count_for_nothing() -> None:
    known: Gossip = gossip()
    known.take_setting(Setting("model", 1, A, MODEL))
    known.on_delta(Delta((Record(D, 1, DEVICE),), ()), membership(D))
    assert view(membership(), known, 4).snapshot is None


def test_goal_is_the_swarms_settings_within_its_context() -> None:
    told: tuple[tuple[str, SettingValue], ...] = (
        ("objective", "throughput"),
        ("micro_batch", 2),
        ("context", 100),
        ("prompt", 70),
        ("generate", 50),
    )
    made = seen(all_three(), settings=told)
    assert made.snapshot is not None
    assert made.snapshot.goal == Goal("throughput", prompt=70, generate=30, micro_batch=2)
    assert "longer than the context" not in choose(made.snapshot).reason
    plain = seen(all_three())
    assert plain.snapshot is not None
    assert plain.snapshot.goal == Goal()
