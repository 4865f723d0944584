"""Bytes that are wrong in every way that bytes can be, made from good ones by a seeded draw."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from tests.fuzz.wired import CONTROL, DATA, Input

HUGE = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xdc\xff\xff",
    b"\xde\xff\xff",
)
"""Announcements of four billion (or 65,535) elements, pairs or bytes that never come."""
NESTS = (b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01", b"\x92\xc0")
DEPTHS = (2, 30, 200, 3_000)
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**32,
    2**48 + 1,
    2**63,
    2**64 - 1,
    1e308,
    float("nan"),
    "",
    "x" * 400,
    "../../etc",
    "\x00",
    b"",
    b"\xff" * 9,
    [],
    [[]],
    [0] * 70,
    {},
    {"type": "run"},
    msgspec.msgpack.Ext(1, b"x"),
)

Damage = Callable[[Random, bytes], bytes]


def noise(rng: Random, good: bytes) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 2, 8, 40, 300)))


def cut(rng: Random, good: bytes) -> bytes:
    return good[: rng.randrange(max(1, len(good)))]


def prolonged(rng: Random, good: bytes) -> bytes:
    return good + rng.randbytes(rng.choice((1, 2, 9)))


def changed(rng: Random, good: bytes) -> bytes:
    data = bytearray(good or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(data))
        data[place] = (
            data[place] ^ (1 << rng.randrange(8))
            if rng.random() < 0.5
            else rng.choice(b"\x00\x7f\x80\x90\xc0\xc1\xc4\xd9\xdc\xff")
        )
    return bytes(data)


def shifted(rng: Random, good: bytes) -> bytes:
    """A piece is lost, doubled, or stands elsewhere."""
    a, b = sorted(rng.randrange(len(good) + 1) for _ in range(2))
    to = rng.randrange(len(good) + 1)
    piece = good[a:b]
    rest = good if rng.random() < 0.5 else good[:a] + good[b:]
    return rest[:to] + piece + rest[to:]


def announced(rng: Random, good: bytes) -> bytes:
    place = rng.randrange(len(good) + 1)
    return good[:place] + rng.choice(HUGE) + good[place + rng.choice((0, 1, 5)) :]


def nested(rng: Random, good: bytes) -> bytes:
    place = rng.randrange(len(good) + 1)
    bomb = rng.choice(NESTS) * rng.choice(DEPTHS)
    return good[:place] + bomb + good[place + rng.choice((0, 1)) :]


def of_wrong_type(rng: Random, good: bytes) -> bytes:
    """The same shape, but for one value somewhere in it."""
    try:
        tree = msgspec.msgpack.decode(good)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return changed(rng, good)
    return msgspec.msgpack.encode(_with_wrong(rng, tree))


def _with_wrong(rng: Random, tree: Any) -> Any:
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        place = rng.randrange(len(tree))
        how = rng.random()
        if how < 0.05:
            return tree[:place] + tree[place + 1 :]
        if how < 0.1:
            return tree[: place + 1] * 2
        if how < 0.13:
            return tree * rng.choice((2, 600))
        return [*tree[:place], _with_wrong(rng, tree[place]), *tree[place + 1 :]]
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(list(tree))
        if rng.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        return tree | {key: _with_wrong(rng, tree[key])}
    if isinstance(tree, int) and not isinstance(tree, bool) and rng.random() < 0.4:
        return max(-(2**63), min(2**64 - 1, tree + rng.choice((-1, 1, 7, -(2**40), 2**40))))
    return rng.choice(WRONG)


DAMAGES: tuple[tuple[int, Damage], ...] = (
    (1, noise),
    (2, cut),
    (1, prolonged),
    (4, changed),
    (2, shifted),
    (2, announced),
    (2, nested),
    (6, of_wrong_type),
)


def damaged(rng: Random, good: Input) -> Input:
    """One part of it is damaged in one way; of a frame it may be the parts themselves."""
    if good.door == DATA and rng.random() < 0.25:
        return Input(DATA, _other_parts(rng, good.parts))
    ways, weights = [way for _, way in DAMAGES], [weight for weight, _ in DAMAGES]
    place = 0 if good.door != DATA or rng.random() < 0.7 else 1
    part = rng.choices(ways, weights)[0](rng, good.parts[place])
    return Input(good.door, (*good.parts[:place], part, *good.parts[place + 1 :]))


def _other_parts(rng: Random, parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """More, fewer or others than there should be, or a tensor of another size."""
    header, payload = parts[:2]
    return rng.choice(
        (
            (),
            (header,),
            (payload, header),
            parts + (b"",) * rng.choice((1, 2, 60)),
            (header, payload[:-1]),
            (header, payload + b"\0"),
            (header, payload * 2),
            (header, b""),
            (header, rng.randbytes(rng.choice((4, 32, 4096)))),
        )
    )


def mixed(rng: Random, one: Input, other: Input) -> Input:
    """The beginning of one and the end of another, or the payload of another."""
    if one.door == DATA:
        return Input(DATA, (one.parts[0], other.parts[-1]))
    a, b = one.parts[0], other.parts[0]
    return Input(one.door, (a[: rng.randrange(len(a) + 1)] + b[rng.randrange(len(b) + 1) :],))


def oversized(rng: Random, door: str, limits: tuple[int, int, int]) -> Input:
    """A byte beyond what may be read; the bytes themselves are shared zeros."""
    control, header, payload = limits
    if door != DATA:
        return Input(CONTROL, (bytes(control + 1),))
    return Input(DATA, rng.choice(((bytes(header + 1), b""), (b"\x90", bytes(payload + 1)))))
