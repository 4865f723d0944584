"""Requests put to a peer: so many at once, and what becomes of them when they are ended."""

from __future__ import annotations

import asyncio

import uvloop

from edgeshard_p2p.load.traffic import Load, Traffic
from edgeshard_p2p.wire.client import Cancel, Done, Failed, Run, Text, decode_request, encode_answer
from tests.runtime.endpoint import OPEN, Endpoint, endpoint
from tests.runtime.waiting import until_async

LOAD = Load(("once upon a time",), requests=5, concurrency=3, generate=2, seed=40)
DONE = Done("length", 4, 2, 1.0, 1.0, "a" * 16, 0, 0, 0.0)


def asked(end: Endpoint, kind: type) -> list[bytes]:
    """Who asked so, in order."""
    told = [(who, decode_request(data)[1]) for who, data in end.requests]
    return [who for who, request in told if isinstance(request, kind)]


def test_what_still_runs_is_cancelled_when_the_traffic_ends() -> None:
    async def main() -> None:
        async with endpoint() as end:
            traffic = Traffic(LOAD, [end.address], OPEN, lambda: None)
            running = asyncio.create_task(asyncio.to_thread(traffic.run))
            await until_async(lambda: len(asked(end, Run)) == 3, "three requests")
            traffic.end()
            served = await running
            await until_async(lambda: len(asked(end, Cancel)) == 3, "three cancelled")
            assert set(asked(end, Cancel)) == set(asked(end, Run))
            assert [one.error for one in served] == ["cancelled"] * 3

    uvloop.run(main())


def test_what_was_begun_is_seen_through_when_the_traffic_closes() -> None:
    async def main() -> None:
        async with endpoint() as end:
            traffic = Traffic(LOAD, [end.address], OPEN, lambda: None)
            running = asyncio.create_task(asyncio.to_thread(traffic.run))
            await until_async(lambda: len(asked(end, Run)) == 3, "three requests")
            traffic.close()
            for who in asked(end, Run):
                for answer in (Text("x", (1,)), DONE):
                    end.transport.answer_client(who, encode_answer(answer))
            served = await running
            assert [(one.index, one.error) for one in served] == [(0, ""), (1, ""), (2, "")]
            assert not asked(end, Cancel)

    uvloop.run(main())


def test_seeds_come_again_where_there_are_only_so_many() -> None:
    load = Load("", requests=5, concurrency=1, generate=1, temperature=1.0, seed=40, seeds=2)
    assert [load.sampling(index).seed for index in range(5)] == [40, 41, 40, 41, 40]


def test_each_is_answered_or_asked_again_and_has_a_seed_of_its_own() -> None:
    async def main() -> None:
        n_tokens = 0

        def on_token() -> None:
            nonlocal n_tokens
            n_tokens += 1

        async with endpoint() as end:
            traffic = Traffic(LOAD, [end.address], OPEN, on_token)
            running = asyncio.create_task(asyncio.to_thread(traffic.run))
            seen: list[bytes] = []
            while not running.done():
                await until_async(
                    lambda: running.done() or len(end.requests) > len(seen), "a request"
                )
                for who, _ in end.requests[len(seen) :]:
                    words = [Text("x", (1,)), Text("y", (2,)), DONE]
                    for answer in words if seen else [Failed("full", retry_ms=1)]:
                        end.transport.answer_client(who, encode_answer(answer))
                    seen.append(who)
            served = await running
            assert [one.error for one in served] == [""] * 5
            assert (len(seen), n_tokens) == (6, 10)
            assert [one.token_ids for one in served] == [[1, 2]] * 5
            assert sum(one.refusals for one in served) == 1
            runs = [decode_request(data)[1] for _, data in end.requests]
            seeds = {run.sampling.seed for run in runs if isinstance(run, Run)}
            assert seeds == {40, 41, 42, 43, 44}

    uvloop.run(main())
