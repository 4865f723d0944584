"""What is kept of requests without a plan gives way to whoever needs its place."""

from __future__ import annotations

from math import inf

from edgeshard_p2p.core.cached import Cached
from edgeshard_p2p.core.effects import Effect, KvPromise, LoadUnits, ReleaseCache
from edgeshard_p2p.core.ids import RequestId, UnitRange
from edgeshard_p2p.core.kept import KeptCaches
from edgeshard_p2p.core.messages import CachedUnits, LoggedRows
from edgeshard_p2p.core.work import CacheKey
from tests.core.parts import A, B, of

UNITS = UnitRange(2, 6)
CACHED = Cached((CachedUnits(UNITS, 5),), (LoggedRows(6, 0, 5),))


def request(sequence: int) -> RequestId:
    return RequestId(A, sequence)


def load(*units: int, slots: int = 2, context: int = 64, dtype: str = "fp32") -> LoadUnits:
    return LoadUnits(1, "m", dtype, 4, (), (KvPromise("stage", units, slots, context),))


class Keeper:
    def __init__(self, n: int = 0, slots: int = 2) -> None:
        self.n_open = 0
        self.kept = KeptCaches("stage", lambda: self.n_open)
        self.kept.on_load(load(2, 3, 4, 5, slots=slots))
        for sequence in range(1, n + 1):
            self.kept.keep(CacheKey(request(sequence), "stage"), CACHED, 60.0)


def released(effects: list[Effect]) -> list[int]:
    return [effect.key.request.sequence for effect in of(ReleaseCache, effects)]


def test_what_is_kept_is_had_until_its_time_is_over() -> None:
    keeper = Keeper(1)
    assert keeper.kept.of(request(1)) == CACHED
    assert keeper.kept.next_deadline() == 60.0
    assert keeper.kept.tick(59.0) == []
    assert released(keeper.kept.tick(60.0)) == [1]
    assert keeper.kept.of(request(1)) == Cached()


def test_whoever_opens_a_slot_takes_that_of_the_first_when_none_is_free() -> None:
    keeper = Keeper(2, slots=3)
    newcomer = CacheKey(request(3), "stage")
    assert keeper.kept.claim(newcomer, 0, request(3)) == ([], None)
    keeper.n_open = 1
    freed, adopts = keeper.kept.claim(newcomer, 0, request(3))
    assert (released(freed), adopts) == ([1], None)
    assert keeper.kept.claim(newcomer, 0, request(3)) == ([], None)


def test_units_that_are_dropped_take_their_kv_along() -> None:
    keeper = Keeper(1)
    assert keeper.kept.on_load(load(4, 5, 6)) == []
    kept = keeper.kept.of(request(1))
    assert kept.units == (CachedUnits(UnitRange(4, 6), 5),)
    assert kept.logs == CACHED.logs


def test_what_does_not_fit_the_next_load_goes_before_it() -> None:
    assert released(Keeper(2).kept.on_load(load(2, 3, slots=1))) == [1]
    assert released(Keeper(1).kept.on_load(load(2, 3, context=4))) == [1]
    assert released(Keeper(1).kept.on_load(load(2, 3, dtype="bf16"))) == [1]
    assert released(Keeper(1).kept.on_load(LoadUnits(1, "", "", 0, (), ()))) == [1]


def test_requests_that_are_over_are_forgotten() -> None:
    keeper = Keeper(2)
    assert released(keeper.kept.forget_below(A, 2)) == [1]
    assert keeper.kept.forget_source(B) == []
    assert released(keeper.kept.forget_source(A)) == [2]


def test_what_is_over_goes_first_and_not_by_itself() -> None:
    keeper = Keeper(1, slots=3)
    keeper.kept.keep(CacheKey(request(2), "stage"), CACHED, inf)
    assert keeper.kept.over() == {CacheKey(request(2), "stage")}
    assert keeper.kept.next_deadline() == 60.0
    assert released(keeper.kept.tick(1e9)) == [1]
    assert keeper.kept.next_deadline() is None
    assert keeper.kept.forget_below(A, 3) == []
    assert released(keeper.kept.forget_source(A)) == [2]
    keeper = Keeper(1, slots=2)
    keeper.kept.keep(CacheKey(request(2), "stage"), CACHED, inf)
    freed, _ = keeper.kept.claim(CacheKey(request(3), "stage"), 0, request(3))
    assert released(freed) == [2]


def test_logs_of_what_is_over_give_way_and_others_do_not() -> None:
    keeper = Keeper(1)
    keeper.kept.keep(CacheKey(request(2), "stage"), CACHED, inf)
    assert (keeper.kept.n_logs(), keeper.kept.n_spare_logs()) == (2, 1)
    assert released(keeper.kept.drop_spare_log()) == [2]
    assert keeper.kept.drop_spare_log() == []


def test_later_of_two_replaces_the_earlier() -> None:
    keeper = Keeper(1)
    assert released(keeper.kept.keep(CacheKey(request(1), "stage", "1" * 16), CACHED, 90.0)) == [1]
    assert keeper.kept.next_deadline() == 90.0


def test_what_a_request_goes_on_from_keeps_its_name_until_it_is_told_the_new_one() -> None:
    known_as, key = CacheKey(request(1), "stage"), CacheKey(request(1), "stage", "1" * 16)
    assert Keeper(1).kept.claim(key, 4, request(1)) == ([], known_as)
    assert Keeper(1).kept.claim(known_as, 4, request(1)) == ([], None)
    freed, adopts = Keeper(1).kept.claim(key, 0, request(1))
    assert (released(freed), adopts) == ([1], None)
