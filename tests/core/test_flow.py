"""The edges of a plan at one peer: frames that leave, arrive, come twice, do not fit, are lost."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.edges import WINDOW, Due, EdgeKind
from edgeshard_p2p.core.effects import CloseEdge, DropTensor, Effect, Send, SendFrame
from edgeshard_p2p.core.events import FrameReceived
from edgeshard_p2p.core.flow import DTYPE_CODES, Flow, Frame, refuse
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import (
    EdgeAnswer,
    FrameAck,
    FrameHeader,
    FrameKind,
    FrameRefused,
    Open,
    RowGroupHeader,
)
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import TensorRef
from tests.core.parts import MODEL, PLAN, TIMING, A, B, C, membership, of, sent, some

GROUP = RowGroupHeader(0, 1, 1, 0, 3, 0, 6, 0)
TENSOR = TensorRef(1, 96)
HIDDEN = Frame(FrameKind.HIDDEN, (GROUP,), 9, 1234, TENSOR)
OPEN = Frame(FrameKind.OPEN, (GROUP,), body=Open(Sampling(), 0, 1))
RELEASE = Frame(FrameKind.RELEASE, (GROUP,))
ENTRY, INNER, RETURN = 0, 1, 2
"""Indices of the plan's edges: a -> b, b -> c, c -> a."""


def flow_of(me: PeerId, plan: Plan = PLAN) -> Flow:
    others = [peer for peer in (A, B, C) if peer != me]
    return Flow(plan, MODEL, me, membership(*others, me=me), TIMING, {"last": 0}, lambda *_: 0.0)


def opened(me: PeerId = A) -> Flow:
    """With its outgoing edges answered, and its incoming ones opened in epoch 7."""
    flow = flow_of(me)
    for effect in of(SendFrame, flow.open_edges(0.0)):
        header = effect.header
        flow.on_answer(EdgeAnswer(PLAN.id, header.edge, header.epoch), 0.0)
    for index in flow.in_:
        flow.on_frame(received(index, Frame(FrameKind.EDGE, ()), 0), 0.0)
    return flow


def received(
    index: int, frame: Frame, sequence: int, epoch: int = 7, **other: Any
) -> FrameReceived:
    senders = {ENTRY: A, INNER: B, RETURN: C}
    dtype, shape = 0, tuple[int, ...]()
    if frame.kind is FrameKind.HIDDEN:
        dtype, shape = DTYPE_CODES["fp32"], (frame.n_rows, MODEL.hidden_size)
    if frame.kind is FrameKind.TOKENS:
        dtype, shape = DTYPE_CODES["int32"], (len(frame.tokens),)
    header = FrameHeader(
        version=1,
        kind=frame.kind,
        sender=senders[index].tag,
        plan=bytes.fromhex(PLAN.id),
        edge=index,
        epoch=epoch,
        sequence=sequence,
        acked=0,
        micro_batch=frame.micro_batch,
        service_us=frame.service_us,
        numerics=4,
        dtype=dtype,
        shape=shape,
        groups=frame.groups,
    )
    header = replace(header, **other)
    return FrameReceived(header, frame.tensor, frame.tokens, frame.body)


def acks(effects: list[Effect]) -> list[tuple[int, int]]:
    return [(ack.acked, ack.credit) for _, ack in sent(effects, FrameAck)]


# --- sending --------------------------------------------------------------------------------


def test_each_outgoing_edge_is_opened_in_an_epoch_of_its_own() -> None:
    flow = flow_of(C)
    (opening,) = of(SendFrame, flow.open_edges(0.0))
    header = opening.header
    assert (opening.to.host, header.kind, header.edge) == ("a", FrameKind.EDGE, RETURN)
    assert (header.epoch, header.sequence) == (1, 0)
    assert flow.open_edges(0.0) == []
    assert not flow.all_open()
    before = flow.revision
    flow.on_answer(EdgeAnswer(PLAN.id, RETURN, 1), 0.0)
    assert flow.all_open()
    assert flow.revision > before
    assert flow.epochs == {"last": 1}


def test_frame_names_everything_that_its_receiver_checks() -> None:
    flow = opened(A)
    (frame,) = of(SendFrame, flow.offer(flow.find(EdgeKind.ENTRY, 0, 0), HIDDEN, 0.0))
    header = frame.header
    assert (frame.to.host, frame.tensor) == ("b", TENSOR)
    assert (header.plan_id, header.edge, header.epoch, header.sequence) == (PLAN.id, ENTRY, 1, 1)
    assert (header.sender, header.numerics, header.micro_batch) == (A.tag, 4, 9)
    assert (header.dtype, header.shape, header.groups) == (1, (3, 8), (GROUP,))
    assert header.service_us == 1234


def test_frames_wait_for_the_edge_to_open() -> None:
    flow = flow_of(A)
    flow.open_edges(0.0)
    assert flow.offer(flow.find(EdgeKind.ENTRY, 0, 0), OPEN, 0.0) == []
    effects = flow.on_answer(EdgeAnswer(PLAN.id, ENTRY, 1), 0.1)
    assert [f.header.kind for f in of(SendFrame, effects)] == [FrameKind.OPEN]


def test_tensor_is_kept_until_it_is_confirmed() -> None:
    flow = opened(A)
    spec = flow.find(EdgeKind.ENTRY, 0, 0)
    flow.offer(spec, HIDDEN, 0.0)
    resent = of(SendFrame, flow.tick(TIMING.resend_s))
    assert [frame.tensor for frame in resent] == [TENSOR]
    assert flow.on_ack(FrameAck(PLAN.id, ENTRY, 1, 1, 9), 1.0) == [DropTensor(TENSOR)]
    assert flow.on_ack(FrameAck(PLAN.id, ENTRY, 1, 1, 9), 1.0) == []


def test_chunk_is_ahead_until_it_is_computed() -> None:
    flow = opened(A)
    spec = flow.onward(A, 0)
    assert HIDDEN.is_chunk
    assert flow.chunks_ahead(spec) == 0
    flow.offer(spec, HIDDEN, 0.0)
    flow.on_ack(FrameAck(PLAN.id, ENTRY, 1, 1, 9), 0.0)
    assert flow.chunks_ahead(spec) == 1
    flow.on_ack(FrameAck(PLAN.id, ENTRY, 1, 1, 10, 1), 0.0)
    assert flow.chunks_ahead(spec) == 0


def test_computed_chunk_is_told_at_once() -> None:
    flow = opened(B)
    flow.on_frame(received(ENTRY, HIDDEN, 1), 0.0)
    ((due, _),) = flow.arrived
    ((_, ack),) = sent(flow.consumed(due), FrameAck)
    assert (ack.acked, ack.credit, ack.chunks) == (1, 1 + WINDOW, 1)


def test_edge_to_oneself_costs_no_frame() -> None:
    plan = replace(PLAN, stages=(replace(PLAN.stages[0], peer=A), PLAN.stages[1]))
    flow = flow_of(A, plan)
    spec = flow.find(EdgeKind.ENTRY, 0, 0)
    assert flow.offer(spec, HIDDEN, 0.0) == []
    assert list(flow.arrived) == [(Due(spec), HIDDEN)]
    assert [edge.kind for edge in flow.outgoing()] == [EdgeKind.INNER]
    assert flow.consumed(Due(spec)) == []


# --- receiving ------------------------------------------------------------------------------


def test_opening_is_answered_and_confirmed() -> None:
    flow = flow_of(B)
    effects = flow.on_frame(received(ENTRY, Frame(FrameKind.EDGE, ()), 0), 0.0)
    assert sent(effects, EdgeAnswer) == [("a", EdgeAnswer(PLAN.id, ENTRY, 7))]
    assert acks(effects) == [(0, WINDOW)]
    again = flow.on_frame(received(ENTRY, Frame(FrameKind.EDGE, ()), 0), 0.0)
    assert sent(again, EdgeAnswer)
    assert flow.on_frame(received(ENTRY, Frame(FrameKind.EDGE, ()), 0, epoch=6), 0.0) == []


def test_frames_arrive_once_and_in_order() -> None:
    flow = opened(B)
    second = Frame(FrameKind.HIDDEN, (GROUP,), 2, tensor=TensorRef(2, 96))
    effects = flow.on_frame(received(ENTRY, second, 2), 0.0)
    assert effects[0] == DropTensor(TensorRef(2, 96))
    assert acks(effects) == [(0, WINDOW)]
    assert acks(flow.on_frame(received(ENTRY, HIDDEN, 1), 0.0)) == [(1, WINDOW)]
    repeat = flow.on_frame(received(ENTRY, HIDDEN, 1), 0.0)
    assert repeat[0] == DropTensor(TENSOR)
    assert acks(repeat) == [(1, WINDOW)]
    flow.on_frame(received(ENTRY, second, 2), 0.0)
    assert [frame.micro_batch for _, frame in flow.arrived] == [9, 2]


def test_credit_is_renewed_before_it_runs_out() -> None:
    flow = opened(B)
    spec = flow.find(EdgeKind.ENTRY, 0, 0)
    told: list[int] = []
    for k in range(1, 3 * WINDOW):
        told += [credit for _, credit in acks(flow.on_frame(received(ENTRY, RELEASE, k), 0.0))]
        told += [credit for _, credit in acks(flow.consumed(Due(spec, 7)))]
        assert max(told) > k, "the sender may always send the next one"
    assert max(told) <= 3 * WINDOW - 1 + WINDOW


def test_credit_does_not_depend_on_what_can_wait() -> None:
    """All acknowledgements that can wait may be on hold: the sender hears of every fourth frame."""
    flow = opened(B)
    spec = flow.find(EdgeKind.ENTRY, 0, 0)
    credit, waited = WINDOW, 0
    for k in range(1, 5 * WINDOW):
        assert k <= credit, "the sender may always send the next one"
        effects = [*flow.on_frame(received(ENTRY, RELEASE, k), 0.0), *flow.consumed(Due(spec, 7))]
        told = of(Send, effects)
        waited += sum(effect.can_wait for effect in told)
        credit = max([credit, *(ack for _, ack in acks([e for e in told if not e.can_wait]))])
    assert waited == 5 * WINDOW - 1


def test_repeat_is_answered_at_once() -> None:
    """Its sender has not heard, and waits."""
    flow = opened(B)
    assert [e.can_wait for e in of(Send, flow.on_frame(received(ENTRY, HIDDEN, 1), 0.0))] == [True]
    assert [e.can_wait for e in of(Send, flow.on_frame(received(ENTRY, HIDDEN, 1), 0.0))] == [False]


def test_consuming_alone_renews_the_credit() -> None:
    flow = opened(B)
    spec = flow.find(EdgeKind.ENTRY, 0, 0)
    for k in range(1, WINDOW + 1):
        flow.on_frame(received(ENTRY, RELEASE, k), 0.0)
    told = [acks(flow.consumed(Due(spec, 7))) for _ in range(WINDOW)]
    assert [ack for ack in told if ack] == [[(8, WINDOW + 4)], [(8, 2 * WINDOW)]]


def test_frame_of_an_edge_that_began_anew_here_is_refused() -> None:
    flow = flow_of(B)
    effects = flow.on_frame(received(ENTRY, HIDDEN, 4), 0.0)
    assert effects[0] == DropTensor(TENSOR)
    ((to, refused),) = sent(effects, FrameRefused)
    assert (to, refused.reason, refused.epoch) == ("a", "edge_not_open", 7)


@pytest.mark.parametrize(
    "bad",
    [
        received(ENTRY, HIDDEN, 1, numerics=8),
        received(ENTRY, HIDDEN, 1, dtype=2),
        received(ENTRY, HIDDEN, 1, shape=(4, 8)),
        received(ENTRY, HIDDEN, 1, shape=(3, 9)),
        received(ENTRY, HIDDEN, 1, groups=(replace(GROUP, source_index=1),)),
        received(ENTRY, Frame(FrameKind.HIDDEN, (GROUP,)), 1),
        received(ENTRY, Frame(FrameKind.OPEN, (GROUP,)), 1),
        received(ENTRY, Frame(FrameKind.TOKENS, (GROUP,), tokens=(5,)), 1),
    ],
    ids=["tile", "dtype", "rows", "width", "source", "no tensor", "no body", "direction"],
)
def test_frame_that_does_not_fit_is_refused_and_not_counted(bad: FrameReceived) -> None:
    flow = opened(B)
    effects = flow.on_frame(bad, 0.0)
    ((to, refused),) = sent(effects, FrameRefused)
    assert (to, refused.reason) == ("a", "does_not_fit")
    assert len(of(DropTensor, effects)) == (bad.tensor is not None)
    assert not flow.arrived
    assert acks(flow.on_frame(received(ENTRY, HIDDEN, 1), 0.0)) == [(1, WINDOW)]


def test_tokens_travel_only_back_and_one_for_each_group() -> None:
    flow = opened(A)
    few = Frame(FrameKind.TOKENS, (GROUP, GROUP), tokens=(5,))
    right = Frame(FrameKind.TOKENS, (GROUP,), tokens=(5,))
    assert sent(flow.on_frame(received(RETURN, few, 1), 0.0), FrameRefused)
    strange = Frame(FrameKind.TOKENS, (GROUP,), tokens=(MODEL.vocab_size,))
    for frame in (HIDDEN, OPEN, RELEASE, strange):
        assert sent(flow.on_frame(received(RETURN, frame, 1), 0.0), FrameRefused)
    flow.on_frame(received(RETURN, right, 1), 0.0)
    assert [frame.tokens for _, frame in flow.arrived] == [(5,)]


def test_frame_of_an_edge_that_does_not_end_here_is_refused() -> None:
    ((_, refused),) = sent(opened(B).on_frame(received(RETURN, HIDDEN, 1), 0.0), FrameRefused)
    assert refused.reason == "not_my_edge"


def test_frame_of_somebody_else_on_an_edge_is_refused() -> None:
    flow = opened(B)
    for frame, sequence in ((HIDDEN, 1), (Frame(FrameKind.EDGE, ()), 0)):
        effects = flow.on_frame(received(ENTRY, frame, sequence, epoch=9, sender=C.tag), 0.0)
        ((to, refused),) = sent(effects, FrameRefused)
        assert (to, refused.reason) == ("c", "not_my_edge")
    assert flow.in_[ENTRY].epoch == 7


def test_refusal_goes_only_to_a_member() -> None:
    event = received(ENTRY, HIDDEN, 1)
    assert refuse(event.header, "no_such_plan", membership(me=B)) == []
    ((to, refused),) = sent(refuse(event.header, "no_such_plan", membership(A, me=B)), FrameRefused)
    assert (to, refused) == ("a", FrameRefused(PLAN.id, ENTRY, 7, 1, "no_such_plan"))


# --- losing ---------------------------------------------------------------------------------


def test_silent_edge_is_given_up_with_what_it_carried_and_opened_anew() -> None:
    flow = opened(A)
    spec = flow.find(EdgeKind.ENTRY, 0, 0)
    flow.offer(spec, HIDDEN, 0.0)
    effects: list[Effect] = []
    while not flow.lost:
        now = some(flow.next_deadline())
        effects = flow.tick(now)
    assert effects == [CloseEdge(PLAN.id, ENTRY)]
    (lost,) = flow.lost
    assert (lost.spec, lost.frames, lost.was_open) == (spec, [HIDDEN], True)
    assert not flow.all_open()
    (opening,) = of(SendFrame, flow.open_edges(6.0))
    assert opening.header.epoch == 2


def test_edge_that_is_refused_is_not_opened_as_fast_as_it_is_answered() -> None:
    flow = opened(A)
    flow.on_refused(FrameRefused(PLAN.id, ENTRY, 1, 1, "not_loaded"), 3.0)
    assert flow.open_edges(3.0) == []
    assert flow.next_deadline() == 3.0 + TIMING.edge_retry_s
    (opening,) = of(SendFrame, flow.open_edges(3.0 + TIMING.edge_retry_s))
    assert opening.header.epoch == 2
    assert flow.next_deadline() == 3.0 + 2 * TIMING.edge_retry_s


def test_edge_that_never_opened_says_so() -> None:
    flow = flow_of(A)
    flow.open_edges(0.0)
    while not flow.lost:
        now = some(flow.next_deadline())
        flow.tick(now)
    assert [lost.was_open for lost in flow.lost] == [False]
    assert now == TIMING.edge_deadline_s


def test_refused_frame_loses_its_edge_but_not_a_later_one() -> None:
    flow = opened(A)
    flow.offer(flow.find(EdgeKind.ENTRY, 0, 0), HIDDEN, 0.0)
    assert flow.on_refused(FrameRefused(PLAN.id, ENTRY, 2, 1, "plan_retired"), 0.0) == []
    flow.on_refused(FrameRefused(PLAN.id, ENTRY, 1, 1, "plan_retired"), 0.0)
    assert [lost.frames for lost in flow.lost] == [[HIDDEN]]
    assert flow.on_refused(FrameRefused(PLAN.id, ENTRY, 1, 1, "plan_retired"), 0.0) == []


def test_refusal_does_not_end_an_edge_that_is_still_asked_for() -> None:
    flow = flow_of(A)
    flow.open_edges(0.0)
    assert flow.on_refused(FrameRefused(PLAN.id, ENTRY, 1, 0, "no_such_plan"), 0.0) == []
    assert not flow.lost


def test_frame_offered_after_the_loss_comes_back_as_lost() -> None:
    flow = opened(A)
    flow.on_refused(FrameRefused(PLAN.id, ENTRY, 1, 1, "plan_retired"), 0.0)
    flow.lost.clear()
    assert flow.offer(flow.find(EdgeKind.ENTRY, 0, 0), HIDDEN, 0.0) == []
    assert [lost.frames for lost in flow.lost] == [[HIDDEN]]


def test_releases_outlive_their_edge_and_go_first_on_the_next() -> None:
    flow = opened(A)
    spec = flow.find(EdgeKind.ENTRY, 0, 0)
    flow.offer(spec, HIDDEN, 0.0)
    flow.offer(spec, RELEASE, 0.0)
    flow.on_refused(FrameRefused(PLAN.id, ENTRY, 1, 1, "edge_not_open"), 0.0)
    assert [lost.frames for lost in flow.lost] == [[HIDDEN]]
    flow.lost.clear()
    later = replace(GROUP, sequence=2)
    flow.offer(spec, Frame(FrameKind.RELEASE, (later,)), 0.0)
    assert flow.lost == []
    flow.open_edges(1.0)
    flow.offer(spec, OPEN, 1.0)
    sent_now = of(SendFrame, flow.on_answer(EdgeAnswer(PLAN.id, ENTRY, 2), 1.0))
    kinds = [frame.header.kind for frame in sent_now]
    assert kinds == [FrameKind.RELEASE, FrameKind.RELEASE, FrameKind.OPEN]
    assert [frame.header.groups[0].sequence for frame in sent_now] == [1, 2, 1]


def test_closing_drops_what_is_still_here() -> None:
    flow = opened(A)
    spec = flow.find(EdgeKind.ENTRY, 0, 0)
    flow.offer(spec, HIDDEN, 0.0)
    flow.offer(spec, RELEASE, 0.0)
    assert flow.close() == [DropTensor(TENSOR), CloseEdge(PLAN.id, ENTRY)]
    assert flow.next_deadline() is None


def test_nothing_is_sent_to_a_peer_that_is_not_known() -> None:
    flow = Flow(PLAN, MODEL, A, membership(C), TIMING, {"last": 0}, lambda *_: 0.0)
    assert flow.open_edges(0.0) == []
