"""The whole core of one peer: coming in, conflicts, prompts, and input that makes no sense."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core import messages as msg
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.peer import CoreConfig, PeerCore
from edgeshard_p2p.core.records import HeldRecord, Record, Setting
from edgeshard_p2p.core.report import report
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.settings import SettingValue
from edgeshard_p2p.core.source import REQUESTS_MAX
from edgeshard_p2p.core.work import Job
from tests.core.parts import (
    MODEL,
    PLAN,
    TIMING,
    A,
    B,
    C,
    address,
    alive,
    dead,
    identity,
    of,
    request,
    sent,
)

OTHER_MODEL = replace(MODEL, name="other", digest="1" * 64)


def core_of(me: PeerId = A, **options: Any) -> PeerCore:
    wishes: dict[str, SettingValue] = {"model": MODEL}
    given = {"wishes": wishes, "join": (address("b"),), **options}
    core = PeerCore(CoreConfig(identity(me), True, 10**9, 4, **given), Random(1))
    core.handle(ev.Started(), 0.0)
    return core


def hear(core: PeerCore, sender: PeerId, message: Any, now: float = 0.1) -> list[fx.Effect]:
    return core.handle(ev.MessageReceived(sender, message), now)


def welcome(*settings: Setting, from_: PeerId = B, uptime_ms: int = 0) -> msg.Welcome:
    return msg.Welcome(identity(from_), 0, 0, (), settings, uptime_ms)


def deadlines_asked(core: PeerCore, monkeypatch: pytest.MonkeyPatch) -> list[PeerCore]:
    """One entry for each time that all are asked for their deadlines."""
    asked: list[PeerCore] = []
    of_members = Membership.next_deadline

    def counted(members: Membership) -> float | None:
        asked.append(core)
        return of_members(members)

    monkeypatch.setattr(Membership, "next_deadline", counted)
    return asked


def test_next_deadline_stands_while_frames_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_of()
    hear(core, B, welcome())
    hear(core, B, msg.Ping(1, ()))  # By now what the newcomer has changed is dealt with.
    asked = deadlines_asked(core, monkeypatch)
    deadline = core.next_deadline()
    assert deadline is not None
    soon = deadline - core.timing.resend_s / 2
    ack = msg.FrameAck(PLAN.id, 0, 1, 1, 9, 0)
    for _ in range(3):
        hear(core, B, ack, soon)
        assert core.is_steady
        assert core.next_deadline() == deadline
    assert len(asked) == 1
    hear(core, B, msg.Ping(1, ()), soon)
    assert not core.is_steady
    core.next_deadline()
    core.handle(ev.DeadlineReached(), deadline)
    later = core.next_deadline()
    assert later is not None
    assert later > deadline
    assert len(asked) > 1


def test_deadline_that_is_far_off_does_not_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is sent may be due for being sent again before it."""
    core = core_of()
    asked = deadlines_asked(core, monkeypatch)
    deadline = core.next_deadline()
    assert deadline is not None
    ack = msg.FrameAck(PLAN.id, 0, 1, 1, 9, 0)
    hear(core, B, ack, deadline - 2 * core.timing.resend_s)
    assert not core.is_steady
    core.next_deadline()
    assert len(asked) == 2


def submit(core: PeerCore, n_tokens: int = 3, now: float = 5.0) -> list[fx.Effect]:
    prompt = tuple(range(n_tokens))
    event = ev.PromptSubmitted("client", prompt, 5, Sampling(), frozenset())
    return core.handle(event, now)


def alone(**options: Any) -> PeerCore:
    """A peer that has seeded its settings, and has its model."""
    core = core_of(join=(), **options)
    core.handle(ev.ModelOpened(MODEL.digest, MODEL), 0.1)
    core.handle(ev.DeadlineReached(), TIMING.seed_delay_s)
    return core


# --- settings -------------------------------------------------------------------------------


def test_no_order_of_words_makes_a_pass_larger_than_the_batch() -> None:
    core = alone()
    assert core.wishes.why_not("micro_batch", 4) == ""
    assert "batch is 4" in core.wishes.why_not("micro_batch", 5)  # Nobody has set one: 4.
    core.handle(ev.SettingAsked("batch", 8), 2.0)
    assert core.wishes.why_not("micro_batch", 5) == ""
    core.handle(ev.SettingAsked("micro_batch", 5), 2.0)
    assert "5 rows to a pass cannot be" in core.wishes.why_not("batch", 4)
    assert core.wishes.why_not("batch", 5) == ""


def test_lone_peer_seeds_its_wishes_after_a_while_and_once() -> None:
    core = core_of(wishes={"model": MODEL, "batch": 3})
    core.handle(ev.DeadlineReached(), TIMING.seed_delay_s - 0.1)
    assert core.gossip.all_settings() == ()
    core.handle(ev.DeadlineReached(), TIMING.seed_delay_s)
    assert [(s.key, s.counter, s.value) for s in core.gossip.all_settings()] == [
        ("batch", 1, 3),
        ("model", 1, MODEL),
    ]
    before = core.gossip.all_settings()
    core.handle(ev.DeadlineReached(), 10.0)
    assert core.gossip.all_settings() == before


def test_newcomer_takes_what_is_set_and_seeds_the_rest() -> None:
    core = core_of(wishes={"model": MODEL, "batch": 3, "context": 64})
    effects = hear(core, B, welcome(Setting("model", 1, B, MODEL), Setting("batch", 1, B, 8)))
    assert not of(fx.Stop, effects)
    values = {s.key: (s.counter, s.value) for s in core.gossip.all_settings()}
    assert values == {"model": (1, MODEL), "batch": (1, 8), "context": (1, 64)}


@pytest.mark.parametrize(
    ("key", "wish", "theirs"),
    [("model", MODEL, OTHER_MODEL), ("dtype", "bf16", "fp32"), ("numerics", "fast", "exact")],
)
def test_contradiction_in_what_matters_ends_the_newcomer_naming_both(
    key: str, wish: SettingValue, theirs: SettingValue
) -> None:
    core = core_of(wishes={key: wish})
    (stop,) = of(fx.Stop, hear(core, B, welcome(Setting(key, 1, B, theirs))))
    assert stop.exit_code == 2
    assert f"--{key}" in stop.text
    for value in (wish, theirs):
        name = value if isinstance(value, str) else value.name  # type: ignore[union-attr]
        assert name in stop.text


def test_same_model_by_another_name_is_no_contradiction() -> None:
    core = core_of()
    renamed = replace(MODEL, name="elsewhere")
    assert not of(fx.Stop, hear(core, B, welcome(Setting("model", 1, B, renamed))))


def test_peer_without_a_wish_takes_anything() -> None:
    core = core_of(wishes={})
    assert not of(fx.Stop, hear(core, B, welcome(Setting("model", 1, B, OTHER_MODEL))))
    assert core.gossip.setting("model") == OTHER_MODEL


def test_running_peer_never_ends_over_a_heal() -> None:
    core = core_of()
    hear(core, B, welcome())
    assert core.gossip.setting("model") == MODEL
    effects = hear(core, C, welcome(Setting("model", 9, C, OTHER_MODEL), from_=C))
    assert not of(fx.Stop, effects)
    assert core.gossip.setting("model") == OTHER_MODEL


def test_of_two_that_start_at_once_exactly_one_yields() -> None:
    """Both have seeded before they meet; the later writer's word stands, the other ends."""
    first, second = core_of(A), core_of(B, wishes={"model": OTHER_MODEL}, join=(address("a"),))
    for core in (first, second):
        core.handle(ev.DeadlineReached(), TIMING.seed_delay_s)
    to_first = welcome(*second.gossip.all_settings(), from_=B)
    to_second = welcome(*first.gossip.all_settings(), from_=A)
    stops = [of(fx.Stop, hear(first, B, to_first)), of(fx.Stop, hear(second, A, to_second))]
    assert [len(stop) for stop in stops] == [1, 0]
    assert second.gossip.setting("model") == OTHER_MODEL


def test_newcomer_takes_back_what_it_seeded_before_it_met_an_older_swarm() -> None:
    core = core_of(wishes={"batch": 3}, join=())
    core.handle(ev.DeadlineReached(), TIMING.seed_delay_s)
    hear(core, B, welcome(Setting("batch", 1, A, 8), uptime_ms=60_000), 2.0)
    assert core.gossip.setting("batch") == 8
    core = core_of(join=())
    core.handle(ev.DeadlineReached(), TIMING.seed_delay_s)
    older = welcome(Setting("model", 1, PeerId("Z", 1), OTHER_MODEL), uptime_ms=60_000)
    (stop,) = of(fx.Stop, hear(core, B, older, 2.0))
    assert stop.exit_code == 2


PIN = "a:0-2,b:2-6"


def test_pin_for_a_time_is_lifted_by_whoever_set_it() -> None:
    core = alone()
    core.handle(ev.SettingAsked("pin", PIN, for_s=30), 2.0)
    assert core.next_deadline() is not None
    core.handle(ev.DeadlineReached(), 31.9)
    assert core.gossip.setting("pin") == PIN
    core.handle(ev.DeadlineReached(), 32.0)
    assert core.gossip.setting("pin") == ""
    counter = core.gossip.settings["pin"].counter
    core.handle(ev.DeadlineReached(), 99.0)
    assert core.gossip.settings["pin"].counter == counter


@pytest.mark.parametrize("for_s", [0, 300])
def test_pin_that_was_set_anew_does_not_lapse_with_the_old_one(for_s: int) -> None:
    core = alone()
    core.handle(ev.SettingAsked("pin", PIN, for_s=30), 2.0)
    core.handle(ev.SettingAsked("pin", PIN, for_s=for_s), 3.0)
    core.handle(ev.DeadlineReached(), 40.0)
    assert core.gossip.setting("pin") == PIN


def test_pin_that_another_peer_has_set_meanwhile_stays() -> None:
    core = alone()
    core.handle(ev.SettingAsked("pin", PIN, for_s=30), 2.0)
    core.gossip.take_setting(Setting("pin", 9, B, "a:0-6"))
    core.handle(ev.DeadlineReached(), 40.0)
    assert core.gossip.setting("pin") == "a:0-6"


def test_operator_sets_a_setting_of_the_swarm() -> None:
    core = core_of()
    hear(core, B, welcome(Setting("batch", 4, B, 2)))
    effects = core.handle(ev.SettingAsked("batch", 6), 1.0)
    assert Setting("batch", 5, A, 6) in [
        setting for _, delta in sent(effects, msg.Delta) for setting in delta.settings
    ]


def test_probe_is_answered_where_its_sender_is_known_to_be() -> None:
    core = alone()
    header = msg.FrameHeader(
        1, msg.FrameKind.PROBE, B.tag, bytes(8), 0, 0, 0, 0, 0, 0, 0, 0, (), ()
    )
    probe = ev.FrameReceived(header, body=msg.ProbeBody(B, 7))
    assert not sent(core.handle(probe, 2.0), msg.LinkEcho)
    hear(core, B, msg.News((alive(B),)), 2.0)
    assert sent(core.handle(probe, 2.0), msg.LinkEcho) == [("b", msg.LinkEcho(7))]


# --- coming in ------------------------------------------------------------------------------


def test_join_address_that_refuses_for_good_ends_only_a_newcomer() -> None:
    core = core_of()
    event = ev.ContactFailed(address("b"), "secret")
    assert [stop.exit_code for stop in of(fx.Stop, core.handle(event, 0.1))] == [2]
    core = core_of()
    hear(core, B, welcome())
    assert not of(fx.Stop, core.handle(event, 0.2))
    found = core_of(join=())
    assert not of(fx.Stop, found.handle(event, 0.1))


def test_dead_member_hears_the_verdict_whatever_it_says() -> None:
    core = core_of()
    hear(core, B, welcome())
    hear(core, C, msg.News((alive(C), dead(B))))
    verdicts = sent(hear(core, B, msg.LinkEcho(99)), msg.News)
    assert ("b", msg.News((alive(A), dead(B)))) in verdicts


def test_peer_that_refutes_waits_longer_before_it_may_be_planned() -> None:
    core = alone()
    assert core._unsettled(TIMING.settle_s) == ""
    for k in range(3):
        hear(core, B, msg.News((alive(B), dead(A, k))), 1.0)
    assert core.membership.incarnation == 3
    assert core._unsettled(TIMING.settle_s * 3.9) != ""
    assert core._unsettled(TIMING.settle_s * 4) == ""


def test_leaving_ends_requests_says_so_and_stops() -> None:
    core = alone()
    hear(core, B, msg.News((alive(B),)))
    submit(core)
    effects = core.handle(ev.StopAsked(), 6.0)
    (finish,) = of(fx.FinishRequest, effects)
    assert finish.error == "a@1 is leaving the swarm"
    news = [update for _, n in sent(effects, msg.News) for update in n.updates]
    assert msg.Update(identity(A), 0, msg.MemberState.LEFT) in news
    assert of(fx.Stop, effects) == [fx.Stop(0)]
    (rejected,) = of(fx.Rejected, submit(core))
    assert "leaving" in rejected.reason


def test_who_serves_alone_learns_nothing_of_frames() -> None:
    core = alone()
    for _ in range(9):
        assert core.handle(ev.PassesTimed(5_000), 7.0) == []
    assert core.local.beside.us == 0


# --- prompts --------------------------------------------------------------------------------


def test_prompt_is_accepted_and_told_what_it_waits_for() -> None:
    effects = submit(alone())
    assert of(fx.Accepted, effects) == [fx.Accepted("client", request(1))]
    (notice,) = of(fx.RequestNotice, effects)
    assert notice.text.startswith("waiting: ")


@pytest.mark.parametrize(("n_tokens", "why"), [(0, "empty"), (256, "the swarm's context is 256")])
def test_impossible_prompt_is_rejected(n_tokens: int, why: str) -> None:
    (rejected,) = of(fx.Rejected, submit(alone(), n_tokens))
    assert why in rejected.reason


def test_too_many_requests_are_rejected_with_a_time_to_retry() -> None:
    core = alone()
    for _ in range(REQUESTS_MAX):
        assert of(fx.Accepted, submit(core))
    (rejected,) = of(fx.Rejected, submit(core))
    assert rejected.retry_ms > 0


def test_prompt_at_a_peer_without_a_model_is_rejected() -> None:
    (rejected,) = of(fx.Rejected, submit(core_of(wishes={})))
    assert "cannot serve" in rejected.reason


def test_prompt_at_no_source_names_one() -> None:
    config = CoreConfig(identity(A), False, 10**9, 4)
    core = PeerCore(config, Random(1))
    core.handle(ev.Started(), 0.0)
    (rejected,) = of(fx.Rejected, submit(core))
    assert "a@1 is not a source; the swarm has no source" in rejected.reason


# --- input that makes no sense --------------------------------------------------------------

STRANGE: list[msg.ControlMessage] = [
    msg.Hello(identity(C), 0, 9, 9),
    msg.Ack(99, C, ()),
    msg.Ping(1, ()),
    msg.PingReq(1, "nobody", ()),
    msg.News(()),
    msg.Digest((), "", True),
    msg.Delta((Record(C, 1, HeldRecord(oldest_live=9)),), (Setting("no_such", 9, C, 1),)),
    msg.LinkEcho(77),
    msg.EdgeAnswer(PLAN.id, 0, 1),
    msg.FrameAck(PLAN.id, 0, 1, 5, 9),
    msg.FrameRefused(PLAN.id, 0, 1, 5, "no_such_plan"),
    msg.AttemptRefused(request(5), 1, 0, "missing_kv"),
    msg.SlotAsk(PLAN.id, request(1, B), 1, 0, False),
    msg.SlotAnswer(PLAN.id, request(1), 1, "granted"),
    msg.SlotReturn(PLAN.id, request(1, B), 1),
]


@pytest.mark.parametrize("message", STRANGE, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("sender", [A, B, PeerId("stranger", 3)], ids=str)
def test_message_that_nobody_expects_is_survived(
    message: msg.ControlMessage, sender: PeerId
) -> None:
    core = alone()
    for _ in range(2):
        assert not of(fx.Stop, hear(core, sender, message, 2.0))
    core.handle(ev.DeadlineReached(), 3.0)


@pytest.mark.parametrize(
    "event",
    [
        ev.LoadFailed(9, "x"),
        ev.UnitsLoaded(9),
        ev.RequestCancelled(request(9)),
        ev.ForwardDone(Job(PLAN.id, "stage", 9), 1, None),
        ev.ForwardFailed(Job(PLAN.id, "stage", 9), "x"),
        ev.MeasureFailed("x"),
        ev.ModelOpened("1" * 64, None, "x"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_result_that_nobody_waits_for_is_survived(event: ev.Event) -> None:
    assert not of(fx.Stop, alone().handle(event, 2.0))


def test_deadlines_are_always_ahead_once_they_are_dealt_with() -> None:
    core = alone()
    now = 2.0
    for _ in range(200):
        deadline = core.next_deadline()
        assert deadline is not None
        now = max(now, deadline)
        core.handle(ev.DeadlineReached(), now)
        assert (core.next_deadline() or 0) > now


# --- what it says of itself -----------------------------------------------------------------


def test_report_of_a_peer_that_waits() -> None:
    core = alone()
    hear(core, B, msg.News((alive(B, 2),)), 2.0)
    submit(core)
    told = report(core)
    assert (told["self"]["name"], told["self"]["is_source"]) == ("a", True)
    assert [(m["name"], m["incarnation"], m["state"]) for m in told["members"]] == [
        ("a", 0, "alive"),
        ("b", 2, "alive"),
    ]
    assert (told["plan"]["plan_id"], told["plan"]["state"]) == (None, "none")
    assert told["plan"]["waiting_for"]
    assert told["settings"] == {"model": "tiny 000000000000"}
    (asked,) = told["requests"]
    assert (asked["request"], asked["state"]) == ("a@1#1", "waiting for a plan")
    by_name = {profile["name"]: profile for profile in told["profiles"]}
    assert by_name["b"]["why_not"] == "nothing heard of it yet"
    assert by_name["a"]["has_model"] is True
