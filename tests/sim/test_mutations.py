"""Would the simulator notice?  Each mutation takes one rule away; some seed must fail for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core import ended, entry, planner, pool, view
from edgeshard_p2p.core.admission import Admission
from edgeshard_p2p.core.edges import InEdge, OutEdge
from edgeshard_p2p.core.effects import Effect
from edgeshard_p2p.core.flow import Flow, Frame
from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId, RequestId
from edgeshard_p2p.core.join import Join
from edgeshard_p2p.core.kept import KeptCaches
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import Ping, RowGroupHeader
from edgeshard_p2p.core.plan import Device, Plan, Snapshot
from edgeshard_p2p.core.planning import Planning
from edgeshard_p2p.core.records import Record
from edgeshard_p2p.core.request import Phase, Request, SourceStep
from edgeshard_p2p.core.rollout import Rollout
from edgeshard_p2p.core.source import SourceWork
from edgeshard_p2p.core.stage import StageWork
from edgeshard_p2p.core.work import CacheKey
from edgeshard_p2p.sim.faults import run_busy, run_chats, run_seed

SEEDS = range(120)
"""A mutation that survives all of these is one that the simulator does not see."""

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]


# --- membership and gossip ----------------------------------------------------------------------


def third_party_raises_an_incarnation(patch: Patch) -> None:
    on_ping = Membership.on_ping

    def mutant(self: Membership, sender: PeerId, ping: Ping, now: float) -> list[Effect]:
        member = self.members.get(sender.name)
        if member is not None:
            member.incarnation += 1
        return on_ping(self, sender, ping, now)

    patch.setattr(Membership, "on_ping", mutant)


def anyone_comes_back_without_a_word_of_its_own(patch: Patch) -> None:
    """DEAD gives way to ALIVE at the same incarnation."""
    patch.setattr(
        "edgeshard_p2p.core.membership.supersedes",
        lambda update, known: (
            (update.identity.peer.generation, update.incarnation)
            >= (known.peer.generation, known.incarnation)
            and update.state is not known.state
        ),
    )


def accusation_is_not_refuted(patch: Patch) -> None:
    patch.setattr(Membership, "_apply_own", lambda self, update: [])


def dead_are_not_called_on(patch: Patch) -> None:
    """A healed partition does not meet again."""
    patch.setattr(Membership, "verdict_on", lambda self, sender: [])
    patch.setattr(Join, "add", lambda self, *contact, **how: None)


def suspicion_never_ends(patch: Patch) -> None:
    patch.setattr(Membership, "_tick_suspects", lambda self, now: [])


def older_record_wins(patch: Patch) -> None:
    def mutant(self: Gossip, record: Record, membership: Membership) -> None:
        if record.owner != self.me and membership.address_of(record.owner) is not None:
            self.records.setdefault(record.owner, {})[type(record.value)] = record
            self.revision += 1

    patch.setattr(Gossip, "_take_record", mutant)


def record_is_forged_on_its_way(patch: Patch) -> None:
    take = Gossip._take_record

    def mutant(self: Gossip, record: Record, membership: Membership) -> None:
        take(self, replace(record, version=record.version + 1), membership)

    patch.setattr(Gossip, "_take_record", mutant)


# --- plans --------------------------------------------------------------------------------------


def ties_are_broken_by_the_order_of_hearing(patch: Patch) -> None:
    def in_any_order(values: Iterable[Any]) -> list[Any]:
        return list(values)

    def mutant(
        model: Any, workload: Any, devices: list[Any], links: list[Any], goal: Any, **rest: Any
    ) -> Snapshot:
        return Snapshot(model, workload, tuple(devices), tuple(links), goal, **rest)

    patch.setattr(view, "sorted", in_any_order, raising=False)
    patch.setattr(view, "snapshot", mutant)


def equals_are_told_apart_by_the_order_of_iteration(patch: Patch) -> None:
    """The planner takes devices as they come out of a set, in another order each time."""
    rng = Random(1)

    def mutant(values: Iterable[Any], key: Any = None) -> list[Any]:
        found = sorted(values, key=key)
        if found and isinstance(found[0], Device):
            rng.shuffle(found)
        return found

    for module in (pool, planner):
        patch.setattr(module, "sorted", mutant, raising=False)


def request_starts_before_all_are_ready(patch: Patch) -> None:
    def mutant(self: Planning) -> Plan | None:
        target = self.rollout.target
        return self.rollout.plans[target].plan if target and self.is_loaded(target) else None

    patch.setattr(Planning, "dispatchable", mutant)


def old_and_new_plan_always_fit(patch: Patch) -> None:
    patch.setattr(Rollout, "_fits", lambda self, plan_ids: True)


def plan_outlives_its_peers(patch: Patch) -> None:
    reconcile = Rollout.reconcile
    patch.setattr(
        Rollout,
        "reconcile",
        lambda self, held_of, is_present, edges_open: reconcile(
            self, held_of, lambda peer: True, edges_open
        ),
    )


# --- the data plane -----------------------------------------------------------------------------


def stage_takes_rows_at_any_position(patch: Patch) -> None:
    """The edge in front of it, which keeps the order, is taken away too."""
    edge_accepts_frames_that_overtook(patch)

    def mutant(self: StageWork, group: RowGroupHeader, is_alone: bool) -> str:
        return "" if self.request_of(group) in self.requests else "missing_kv"

    patch.setattr(StageWork, "_reason_against", mutant)


def source_takes_any_token_of_its_request(patch: Patch) -> None:
    """The edge in front of it, which takes each frame once, is taken away too."""
    edge_accepts_duplicates(patch)

    def mutant(self: SourceWork, plan: Plan, frame: Frame, now: float) -> list[SourceStep]:
        steps: list[SourceStep] = []
        for group, token in zip(frame.groups, frame.tokens, strict=True):
            request = self.requests.get(RequestId(self.me, group.sequence))
            if request is not None and request.plan is not None:
                steps += self._take(request, token, now)
        return steps

    patch.setattr(SourceWork, "on_tokens", mutant)


def edge_accepts_duplicates(patch: Patch) -> None:
    accepts = InEdge.accepts

    def mutant(self: InEdge, epoch: int, sequence: int) -> bool:
        is_repeat = epoch == self.epoch and 0 < sequence <= self.received
        return is_repeat or accepts(self, epoch, sequence)

    patch.setattr(InEdge, "accepts", mutant)


def edge_accepts_frames_that_overtook(patch: Patch) -> None:
    def mutant(self: InEdge, epoch: int, sequence: int) -> bool:
        if epoch != self.epoch or epoch == 0 or sequence <= self.received:
            return False
        self.received = sequence
        return True

    patch.setattr(InEdge, "accepts", mutant)


def acks_are_dropped(patch: Patch) -> None:
    patch.setattr(Flow, "on_ack", lambda self, ack, now: [])


def ack_confirms_one_frame_too_many(patch: Patch) -> None:
    on_ack = OutEdge.on_ack

    def mutant(self: Any, epoch: int, acked: int, *rest: Any) -> list[Any]:
        return on_ack(self, epoch, acked + 1, *rest)

    patch.setattr(OutEdge, "on_ack", mutant)


def sender_takes_no_heed_of_credit(patch: Patch) -> None:
    take_sendable = OutEdge.take_sendable

    def mutant(self: Any, now: float) -> list[Any]:
        self._credit = 10**6
        return take_sendable(self, now)

    patch.setattr(OutEdge, "take_sendable", mutant)


def admission_grants_one_slot_too_many(patch: Patch) -> None:
    grant_next = Admission.grant_next

    def mutant(self: Admission, now: float) -> list[Any]:
        self.slots += 1
        granted = grant_next(self, now)
        self.slots -= 1
        return granted

    patch.setattr(Admission, "grant_next", mutant)


def slots_are_not_given_back(patch: Patch) -> None:
    patch.setattr(Admission, "give_back", lambda self, request, attempt, now: None)


def release_is_not_passed_on(patch: Patch) -> None:
    def mutant(self: StageWork, request: RequestId) -> list[Effect]:
        self.requests.pop(request, None)
        return []

    patch.setattr(StageWork, "free", mutant)


def parked_request_forgets_its_tokens(patch: Patch) -> None:
    park = SourceWork._park

    def mutant(
        self: SourceWork, request: Request, text: str, now: float, keeps: bool = True
    ) -> list[SourceStep]:
        steps = park(self, request, text, now, keeps)
        request.generated.clear()
        return steps

    patch.setattr(SourceWork, "_park", mutant)


def stale_attempt_counts_for_the_present_one(patch: Patch) -> None:
    """A pass that ends late, and a refusal that comes late."""

    def mutant(self: SourceWork, request_id: RequestId, attempt: int) -> Request | None:
        request = self.requests.get(request_id)
        return request if request is not None and request.phase is Phase.RUNNING else None

    patch.setattr(SourceWork, "_running", mutant)


def _run_disturbed(seed: int) -> None:
    _run_busy_in_small_chunks(2 * seed)


def _run_sound(seed: int) -> None:
    _run_busy_in_small_chunks(2 * seed + 1)


def _run_busy_in_small_chunks(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "CHUNK_ROWS", 16)
        run_busy(seed)


# --- chats --------------------------------------------------------------------------------------


def chat_goes_on_beyond_what_is_the_same(patch: Patch) -> None:
    common = ended._common
    patch.setattr(ended, "_common", lambda a, b: min(common(a, b) + 1, len(a), len(b)))


def place_of_what_is_over_is_not_given_up(patch: Patch) -> None:
    patch.setattr(KeptCaches, "_make_room", lambda self: [])


def what_is_over_is_gone_on_from_twice(patch: Patch) -> None:
    claim = KeptCaches.claim

    def mutant(self: KeptCaches, key: CacheKey, position: int, of: RequestId) -> Any:
        kept = self._kept.get(of)
        claimed = claim(self, key, position, of)
        if kept is not None and of != key.request:
            self._kept[of] = kept
        return claimed

    patch.setattr(KeptCaches, "claim", mutant)


COMING_AND_GOING: dict[Mutation, str] = {
    third_party_raises_an_incarnation: "raised that of",
    anyone_comes_back_without_a_word_of_its_own: "went back on",
    accusation_is_not_refuted: "overwhelms|does not settle|settles again",
    dead_are_not_called_on: "does not settle",
    suspicion_never_ends: "does not settle|for ever",
    older_record_wins: "went back on",
    record_is_forged_on_its_way: "its owner",
    ties_are_broken_by_the_order_of_hearing: "one snapshot, two plans|does not settle",
    equals_are_told_apart_by_the_order_of_iteration: "one snapshot, two plans",
    request_starts_before_all_are_ready: "was never ready",
    old_and_new_plan_always_fit: "loads .* of",
    plan_outlives_its_peers: "does not settle|requests open|overrun",
    slots_are_not_given_back: "slots of",
    parked_request_forgets_its_tokens: "not \\[",
    release_is_not_passed_on: "requests open|KV of",
}
"""By the words in which the simulator complains."""

DISTURBED: dict[Mutation, str] = {
    stale_attempt_counts_for_the_present_one: "of an earlier attempt",
    stage_takes_rows_at_any_position: "cached, not",
    source_takes_any_token_of_its_request: "not \\[|goes on after its end",
    admission_grants_one_slot_too_many: "slots are granted",
}
"""What traffic among failing passes shows."""

SOUND: dict[Mutation, str] = {
    edge_accepts_duplicates: "is overrun",
    edge_accepts_frames_that_overtook: "set back",
    acks_are_dropped: "finish_reason='error'|without an end|set back",
    ack_confirms_one_frame_too_many: "finish_reason='error'|without an end|set back",
    sender_takes_no_heed_of_credit: "overrun",
}
"""What traffic over a bad network shows, where nothing else goes wrong."""

CHATS: dict[Mutation, str] = {
    chat_goes_on_beyond_what_is_the_same: "not \\[",
    place_of_what_is_over_is_not_given_up: "requests open",
    what_is_over_is_gone_on_from_twice: "no KV of|cached, not|not logged|is not open",
}
"""What prompts that go on from earlier answers show."""


SEEN_AT = {
    anyone_comes_back_without_a_word_of_its_own: 3,
    ties_are_broken_by_the_order_of_hearing: 4,
    request_starts_before_all_are_ready: 34,
    plan_outlives_its_peers: 14,
    parked_request_forgets_its_tokens: 12,
    source_takes_any_token_of_its_request: 31,
    sender_takes_no_heed_of_credit: 41,
}
"""Of mutations that few seeds see, one that did: tried first, it saves the way to it."""


def _complains(mutation: Mutation, run: Callable[[int], object], words: str) -> bool:
    for seed in dict.fromkeys([SEEN_AT.get(mutation, 0), *SEEDS]):
        try:
            run(seed)
        except AssertionError as error:
            if re.search(words, str(error)):
                return True
    return False


def _names(table: dict[Mutation, str]) -> list[str]:
    return [mutation.__name__ for mutation in table]


@pytest.mark.parametrize(
    ("mutation", "words"), COMING_AND_GOING.items(), ids=_names(COMING_AND_GOING)
)
def test_faults_notice(mutation: Mutation, words: str, monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    assert _complains(mutation, run_seed, words)


@pytest.mark.parametrize(("mutation", "words"), DISTURBED.items(), ids=_names(DISTURBED))
def test_disturbed_traffic_notices(mutation: Mutation, words: str, monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    assert _complains(mutation, _run_disturbed, words)


@pytest.mark.parametrize(("mutation", "words"), CHATS.items(), ids=_names(CHATS))
def test_chats_notice(mutation: Mutation, words: str, monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    assert _complains(mutation, run_chats, words)


@pytest.mark.parametrize(("mutation", "words"), SOUND.items(), ids=_names(SOUND))
def test_sound_traffic_notices(mutation: Mutation, words: str, monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    assert _complains(mutation, _run_sound, words)
