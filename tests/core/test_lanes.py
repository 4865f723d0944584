"""Rows that wait: what goes together, what takes turns, what keeps its order."""

from __future__ import annotations

from random import Random

import pytest

from edgeshard_p2p.core.lanes import IN_FLIGHT_MAX, Lane, Lanes, Waiting
from tests.core.parts import A, B, request

STAGE: Lane = ("stage", "a" * 16)
ENTRY: Lane = ("entry", "a" * 16)


def row(lanes: Lanes[str], work: str, sequence: int, lane: Lane = STAGE, n_rows: int = 1) -> None:
    lanes.put(lane, work, [request(sequence)], n_rows, is_chunk=False)


def chunk(lanes: Lanes[str], work: str, sequence: int, lane: Lane = STAGE) -> None:
    lanes.put(lane, work, [request(sequence)], 128, is_chunk=True)


def works(taken: list[Waiting[str]]) -> list[str]:
    return [waiting.work for waiting in taken]


def take(lanes: Lanes[str], rows_max: int = 8) -> list[str]:
    return works(lanes.take(lambda _: rows_max, lambda _: True))


def test_what_has_come_goes_together() -> None:
    lanes = Lanes[str]()
    assert take(lanes) == []
    for sequence, work in enumerate("abc", 1):
        row(lanes, work, sequence)
    assert take(lanes) == ["a", "b", "c"]
    assert take(lanes) == []


@pytest.mark.parametrize(("rows_max", "first"), [(0, ""), (1, "a"), (3, "a"), (4, "ab")])
def test_no_more_than_asked_for_but_for_what_came_in_one_piece(rows_max: int, first: str) -> None:
    lanes = Lanes[str]()
    row(lanes, "a", 1, n_rows=2)
    row(lanes, "b", 2, n_rows=2)
    row(lanes, "c", 3)
    assert take(lanes, rows_max) == list(first)


def test_lanes_do_not_mix_and_the_oldest_comes_first() -> None:
    lanes = Lanes[str]()
    row(lanes, "a", 1)
    row(lanes, "b", 2, ENTRY)
    row(lanes, "c", 3)
    assert [take(lanes), take(lanes)] == [["a", "c"], ["b"]]


def test_rows_and_chunks_take_turns() -> None:
    lanes = Lanes[str]()
    chunk(lanes, "A", 1)
    chunk(lanes, "B", 1)
    order = []
    for number in range(6):
        row(lanes, f"r{number}", 2 + number)
        taken = lanes.take(lambda _: 8, lambda _: True)
        order.append("+".join(works(taken)))
        lanes.begun("stage", number, taken[0].is_chunk)
        lanes.ended("stage", number)
    assert order == ["A", "r0+r1", "B", "r2+r3", "r4", "r5"]


def test_rows_that_were_here_before_a_chunk_go_before_the_next_one() -> None:
    """However many passes that takes."""
    lanes = Lanes[str]()
    for sequence, work in enumerate("ABC", 1):
        chunk(lanes, work, sequence)
    order = [take(lanes)]
    for number in range(5):
        row(lanes, f"r{number}", 10 + number)
    order += [take(lanes, 2) for _ in range(6)]
    assert order == [["A"], ["r0", "r1"], ["B"], ["r2", "r3"], ["r4"], ["C"], []]


def test_one_chunk_at_a_time_and_few_passes() -> None:
    lanes = Lanes[str]()
    for sequence, work in enumerate("ABC", 1):
        chunk(lanes, work, sequence)
    assert take(lanes) == ["A"]
    lanes.begun("stage", 1, is_chunk=True)
    assert take(lanes) == []
    row(lanes, "r", 4)
    assert take(lanes, 2) == []  # It may grow while the chunk is computed.
    row(lanes, "s", 5)
    assert take(lanes, 2) == ["r", "s"]
    lanes.begun("stage", 2, is_chunk=False)
    row(lanes, "t", 4)
    assert IN_FLIGHT_MAX == 2
    assert take(lanes, 1) == []
    lanes.ended("entry", 1)  # Another role's.
    assert take(lanes) == []
    lanes.ended("stage", 1)
    assert take(lanes) == ["B"]


def test_row_does_not_overtake_a_chunk_of_its_request() -> None:
    lanes = Lanes[str]()
    chunk(lanes, "A", 1)
    row(lanes, "end of A", 1)
    row(lanes, "r", 2)
    assert take(lanes) == ["A"]
    assert take(lanes) == ["r"]
    assert take(lanes) == ["end of A"]
    row(lanes, "s", 1)
    chunk(lanes, "B", 1)
    row(lanes, "t", 2)
    assert take(lanes) == ["s", "t"]
    assert take(lanes) == ["B"]


def test_chunk_waits_for_room_where_it_goes_next_and_holds_up_its_own_request_only() -> None:
    lanes = Lanes[str]()
    chunk(lanes, "A", 1)
    chunk(lanes, "B", 2, ENTRY)
    chunk(lanes, "C", 1)
    row(lanes, "r", 3)
    assert [lanes.n_chunks(lane, A) for lane in (STAGE, ENTRY)] == [2, 1]
    assert lanes.n_chunks(STAGE, B) == 0
    is_full = STAGE.__eq__
    taken = [works(lanes.take(lambda _: 8, lambda lane: not is_full(lane))) for _ in range(3)]
    assert taken == [["B"], ["r"], []]
    assert [take(lanes), take(lanes)] == [["A"], ["C"]]


def test_lanes_do_not_wait_for_each_other() -> None:
    """A device that is its own next stage: what frees the one lane waits in the other."""
    lanes = Lanes[str]()
    chunk(lanes, "A", 1, ENTRY)
    chunk(lanes, "B", 1)
    row(lanes, "r", 1)
    assert works(lanes.take(lambda _: 8, lambda lane: lane == STAGE)) == ["B"]


def test_what_is_taken_out_of_turn_keeps_its_order() -> None:
    lanes = Lanes[str]()
    row(lanes, "a", 1)
    chunk(lanes, "B", 2)
    row(lanes, "c", 3, ENTRY)
    row(lanes, "d", 1)
    row(lanes, "e", 4)
    lanes.put(STAGE, "f", [request(1), request(2)], 2, is_chunk=False)
    row(lanes, "g", 2)
    assert lanes.take_of(STAGE, [request(9)]) == []
    assert lanes.take_of(ENTRY, [request(2)]) == []
    assert works(lanes.take_of(STAGE, [request(1), request(9)])) == ["a", "B", "d", "f"]
    assert works(lanes.take_lane(STAGE)) == ["e", "g"]
    assert take(lanes) == ["c"]
    assert take(lanes) == []


def test_two_rows_of_one_request_never_share_a_pass() -> None:
    lanes = Lanes[str]()
    row(lanes, "a", 1)
    lanes.put(STAGE, "a+b", [request(1), request(2)], 2, is_chunk=False)
    row(lanes, "b", 2)
    row(lanes, "c", 3)
    assert [take(lanes), take(lanes), take(lanes)] == [["a", "c"], ["a+b"], ["b"]]


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_lost_doubled_or_overtaken(seed: int) -> None:
    rng, lanes = Random(seed), Lanes[tuple[int, int]]()
    put: dict[int, int] = {}
    out: list[tuple[int, int]] = []
    running: list[int] = []
    for number in range(300):
        if rng.random() < 0.6:
            sequence = rng.randrange(5)
            put[sequence] = put.get(sequence, 0) + 1
            lanes.put(
                ENTRY if sequence > 2 else STAGE,
                (sequence, put[sequence]),
                [request(sequence)],
                1,
                is_chunk=rng.random() < 0.3 or put[sequence] == 1,
            )
        elif running and rng.random() < 0.6:
            lanes.ended("stage", running.pop(0))
        else:
            taken = lanes.take(lambda _: rng.randrange(4), lambda _: rng.random() < 0.7)
            out += [waiting.work for waiting in taken]
            if taken:
                running.append(number)
                lanes.begun("stage", number, taken[0].is_chunk)
    for lane in (STAGE, ENTRY):
        out += [waiting.work for waiting in lanes.take_lane(lane)]
    assert len(out) == sum(put.values())
    for sequence, n in put.items():
        assert [count for s, count in out if s == sequence] == list(range(1, n + 1))
