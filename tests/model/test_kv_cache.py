"""Slots: what stays when they are moved, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny import request

from edgeshard_p2p.model.errors import KvError
from edgeshard_p2p.model.kv_cache import KEY_BLOCK, KvCache


def filled(n_slots: int = 3, context: int = 100) -> KvCache:
    """Requests 0 and 2 open, 10 and 12 positions cached in blocks 1 and 2."""
    cache = KvCache(2, 8, torch.float32)
    cache.reserve([1, 2], n_slots, context)
    for sequence in (0, 1, 2):
        cache.open(request(sequence))
    for sequence, length in ((0, 10), (2, 12)):
        for block in (1, 2):
            slot = cache.slots(block)[cache.slot_of(request(sequence))]
            slot[:, :, :length] = sequence + 1 + block / 10
            cache.extend(request(sequence), block, length)
    cache.release(request(1))
    return cache


def holds(cache: KvCache, sequence: int, block: int, length: int) -> bool:
    cached = cache.cached(request(sequence), block)
    return cached.shape[2] == length and bool((cached == sequence + 1 + block / 10).all())


@pytest.mark.parametrize(("n_slots", "context"), [(2, 100), (3, 100), (5, 100), (2, 300), (5, 20)])
def test_what_is_cached_stays_when_slots_change(n_slots: int, context: int) -> None:
    cache = filled()
    cache.reserve([2, 3], n_slots, context)
    for sequence, length in ((0, 10), (2, 12)):
        assert holds(cache, sequence, 1, length)
        assert holds(cache, sequence, 2, length)
        assert cache.cached_len(request(sequence), 3) == 0
    positions = -(-context // KEY_BLOCK) * KEY_BLOCK
    assert cache.bytes() == 3 * n_slots * 2 * 2 * positions * 8 * 4


def test_free_slots_and_freed_positions_are_zero() -> None:
    cache = filled()
    cache.truncate(request(0), 1, 4)
    assert holds(cache, 0, 1, 4)
    assert holds(cache, 0, 2, 10)
    assert not cache.slots(1)[cache.slot_of(request(0))][:, :, 4:].any()
    slot = cache.slot_of(request(2))
    cache.release(request(2))
    assert not cache.slots(1)[slot].any()


def test_what_was_not_reserved_is_refused() -> None:
    cache = filled()
    cache.open(request(7))
    with pytest.raises(KvError, match="all 3 are taken"):
        cache.open(request(8))
    with pytest.raises(KvError, match="open already"):
        cache.open(request(7))
    with pytest.raises(KvError, match="not open"):
        cache.cached_len(request(8), 1)
    with pytest.raises(KvError, match="3 requests are open, 2 slots"):
        cache.reserve([1], 2, 100)
    with pytest.raises(KvError, match="12 positions are cached"):
        cache.reserve([1], 3, 11)
    assert holds(cache, 2, 1, 12)


def test_a_dropped_block_is_forgotten() -> None:
    cache = filled()
    before = cache.bytes()
    cache.drop([1])
    assert cache.bytes() == before // 2
    with pytest.raises(KvError, match="no KV is reserved for block 1"):
        cache.slots(1)
    cache.reserve([1], 3, 100)
    assert cache.cached_len(request(0), 1) == 0
    assert holds(cache, 0, 2, 10)
    cache.release(request(0))
    cache.release(request(0))
