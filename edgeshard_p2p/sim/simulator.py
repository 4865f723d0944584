"""The deterministic simulator: a seeded queue of events over N real PeerCores.

    swarm = Simulator(seed=7); swarm.start("a"); swarm.run(until=5.0); swarm.crash("a") ...

The same seed gives the same run, event for event.  Safety is checked after each event.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.ids import PeerId, RequestId
from edgeshard_p2p.core.messages import Address, Identity, Open, ProbeBody
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.peer import CoreConfig, PeerCore
from edgeshard_p2p.core.plan import Choice
from edgeshard_p2p.core.planner import choose
from edgeshard_p2p.core.records import UnitTimes
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import TensorRef
from edgeshard_p2p.sim.checks import check_safety
from edgeshard_p2p.sim.compute import HashModel, State, embed
from edgeshard_p2p.sim.network import Network
from edgeshard_p2p.wire.codec import decode_control, encode_control
from edgeshard_p2p.wire.frames import decode_frame, encode_body, encode_header, encode_probe

SWARM = b"simulate"
PORT = 7911


def small_model(n_blocks: int = 4) -> ModelSpec:
    return ModelSpec(
        name="hash-chain",
        digest="5" * 64,
        family="hash",
        hidden_size=8,
        vocab_size=50_000,
        max_context=256,
        embedding_params=1000,
        block_params=(1000,) * n_blocks,
        head_params=1000,
        tied_params=0,
        kv_width=8,
    )


@dataclass(slots=True)
class Finished:
    request: RequestId
    finish_reason: str
    error: str
    tokens: list[int]
    stats: fx.RequestStats


@dataclass(slots=True)
class SimPeer:
    """One device: what survives a crash, and its present life."""

    name: str
    budget_bytes: int
    is_source: bool
    block_us: int
    generation: int = 0
    core: PeerCore | None = None
    model: HashModel = field(default_factory=lambda: HashModel(0))
    tensors: dict[int, list[State]] = field(default_factory=dict)
    busy_until: float = 0.0
    life: int = 0
    """Rises at each start and crash: events of an earlier life are void."""
    is_frozen: bool = False
    stopped: fx.Stop | None = None
    emitted: dict[RequestId, list[int]] = field(default_factory=lambda: defaultdict(list))
    n_tensors: int = 0

    @property
    def id(self) -> PeerId:
        return PeerId(self.name, self.generation)


class Simulator:
    def __init__(self, seed: int, n_blocks: int = 4, loss: float = 0.0) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.network = Network(Random(seed + 1), loss=loss)
        self.spec = small_model(n_blocks)
        self.peers: dict[str, SimPeer] = {}
        self.finished: dict[RequestId, Finished] = {}
        self.prompts: dict[str, tuple[tuple[int, ...], int]] = {}
        self.requests: dict[RequestId, str] = {}
        self.rejected: dict[str, str] = {}
        self.plans: dict[str, Choice] = {}
        """Every choice by snapshot id: equal inputs must give equal plans on every peer."""
        self.log: list[str] = []
        self.n_events = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._performers: dict[type, Callable[[SimPeer, Any], None]] = {
            fx.Send: self._send,
            fx.SendFrame: self._send_frame,
            fx.SendProbe: self._send_probe,
            fx.OpenModel: self._open_model,
            fx.MeasureDevice: self._measure,
            fx.ComputePlan: self._plan,
            fx.LoadUnits: self._load,
            fx.OpenCache: lambda peer, effect: self._compute(peer, 0, peer.model.open, effect),
            fx.ReleaseCache: lambda peer, e: self._compute(peer, 0, peer.model.release, e),
            fx.RunForward: self._forward,
            fx.DropTensor: lambda peer, effect: self._drop(peer, effect.tensor),
            fx.Accepted: self._accepted,
            fx.Rejected: lambda _, effect: self.rejected.update({effect.client: effect.reason}),
            fx.EmitToken: lambda peer, e: peer.emitted[e.request].append(e.token),
            fx.FinishRequest: self._finish,
            fx.SaveGeneration: self._relive,
            fx.Stop: self._stop,
            fx.Log: lambda peer, e: self.log.append(f"{self.now:9.4f} {peer.id} {e.text}"),
        }

    # --- the operator ---------------------------------------------------------------------

    def add(
        self, name: str, budget_bytes: int = 10**9, is_source: bool = True, block_us: int = 1000
    ) -> SimPeer:
        self.peers[name] = SimPeer(name, budget_bytes, is_source, block_us)
        return self.peers[name]

    def start(self, name: str, join: tuple[str, ...] = (), **options: Any) -> None:
        """Begin a life; ``options`` go to CoreConfig."""
        peer = self.peers[name]
        peer.generation += 1
        peer.life += 1
        peer.is_frozen, peer.stopped = False, None
        peer.model = HashModel(self.spec.n_units)
        peer.tensors, peer.busy_until = {}, self.now
        identity = Identity(peer.id, _install_id(name), Address(name, PORT))
        config = CoreConfig(
            me=identity,
            is_source=peer.is_source,
            budget_bytes=peer.budget_bytes,
            tile_rows=4,
            join=tuple(Address(other, PORT) for other in join),
            **{"wishes": {"model": self.spec}, **options},
        )
        peer.core = PeerCore(config, Random(self.rng.random()))
        self._feed(peer, ev.ModelOpened(self.spec.digest, self.spec))
        self._feed(peer, ev.Started())

    def crash(self, name: str) -> None:
        peer = self.peers[name]
        peer.life += 1
        peer.core = None

    def leave(self, name: str) -> None:
        self._feed(self.peers[name], ev.StopAsked())

    def freeze(self, name: str) -> None:
        self.peers[name].is_frozen = True

    def thaw(self, name: str) -> None:
        peer = self.peers[name]
        peer.is_frozen = False
        self._arm(peer)

    def submit(self, name: str, prompt: tuple[int, ...], max_tokens: int, client: str = "") -> str:
        client = client or f"client-{len(self.prompts)}"
        self.prompts[client] = (prompt, max_tokens)
        event = ev.PromptSubmitted(client, prompt, max_tokens, Sampling(), frozenset())
        self._feed(self.peers[name], event)
        return client

    # --- the clock ------------------------------------------------------------------------

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until

    def run_while(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Run until ``condition`` fails; False when it still holds after ``limit_s``."""
        ends_at = self.now + limit_s
        while condition():
            if not self._queue or self._queue[0][0] > ends_at:
                return False
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return True

    def _at(self, time: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (time, self._order, action))

    def _later(self, peer: SimPeer, delay_s: float, event: ev.Event) -> None:
        life = peer.life
        self._at(self.now + delay_s, lambda: self._feed_life(peer, life, event))

    def _feed_life(self, peer: SimPeer, life: int, event: ev.Event) -> None:
        if peer.life != life or peer.core is None:
            return
        if peer.is_frozen:
            # A frozen process finds everything that came meanwhile when it thaws.
            self._at(self.now + 0.1, lambda: self._feed_life(peer, life, event))
            return
        self._feed(peer, event)

    def _feed(self, peer: SimPeer, event: ev.Event) -> None:
        if peer.core is None:
            return
        self.n_events += 1
        effects = peer.core.handle(event, self.now)
        for effect in effects:
            self._perform(peer, effect)
        check_safety(self)
        self._arm(peer)

    def _arm(self, peer: SimPeer) -> None:
        if peer.core is None:
            return
        deadline = peer.core.next_deadline()
        if deadline is None:
            return
        life = peer.life
        self._at(max(deadline, self.now), lambda: self._ring(peer, life, deadline))

    def _ring(self, peer: SimPeer, life: int, deadline: float) -> None:
        # Only the alarm that is still wanted rings.
        if peer.life != life or peer.core is None or peer.is_frozen:
            return
        if peer.core.next_deadline() == deadline:
            self._feed(peer, ev.DeadlineReached())

    def _perform(self, peer: SimPeer, effect: fx.Effect) -> None:
        performer = self._performers.get(type(effect))
        if performer is not None:
            performer(peer, effect)

    # --- the network ----------------------------------------------------------------------

    def _deliver(
        self, sender: SimPeer, to: Address, n_bytes: int, make: Callable[[SimPeer], ev.Event]
    ) -> None:
        receiver = self.peers.get(to.host)
        transit_s = self.network.transit_s(sender.name, to.host, n_bytes)
        if receiver is None or transit_s is None:
            return

        def arrive() -> None:
            self._feed_life(receiver, receiver.life, make(receiver))

        self._at(self.now + transit_s, arrive)

    def _send(self, peer: SimPeer, effect: fx.Send) -> None:
        data = encode_control(SWARM, peer.id, effect.message)
        sender, message = decode_control(SWARM, data)
        self._deliver(peer, effect.to, len(data), lambda _: ev.MessageReceived(sender, message))

    def _send_frame(self, peer: SimPeer, effect: fx.SendFrame) -> None:
        states = peer.tensors[effect.tensor.id] if effect.tensor is not None else []
        n_bytes = effect.tensor.n_bytes if effect.tensor is not None else 4 * len(effect.tokens)
        payload = encode_body(effect.body) if effect.body is not None else bytes(n_bytes)
        header, _, body = decode_frame([encode_header(effect.header), payload])

        def make(receiver: SimPeer) -> ev.Event:
            tensor = self._keep(receiver, states) if states else None
            return ev.FrameReceived(header, tensor, effect.tokens, body)

        self._deliver(peer, effect.to, len(payload) + 64, make)

    def _send_probe(self, peer: SimPeer, effect: fx.SendProbe) -> None:
        address = Address(peer.name, PORT)
        parts = encode_probe(peer.id, address, effect.nonce, effect.n_bytes)
        header, _, body = decode_frame(parts)
        assert isinstance(body, (ProbeBody, Open))
        self._deliver(
            peer, effect.to, effect.n_bytes, lambda _: ev.FrameReceived(header, body=body)
        )

    # --- the device -----------------------------------------------------------------------

    def _keep(self, peer: SimPeer, states: list[State]) -> TensorRef:
        peer.n_tensors += 1
        peer.tensors[peer.n_tensors] = states
        return TensorRef(peer.n_tensors, len(states) * self.spec.hidden_bytes("fp32"))

    def _drop(self, peer: SimPeer, tensor: TensorRef) -> None:
        del peer.tensors[tensor.id]

    def _open_model(self, peer: SimPeer, effect: fx.OpenModel) -> None:
        self._later(peer, 0.01, ev.ModelOpened(effect.digest, self.spec))

    def _measure(self, peer: SimPeer, effect: fx.MeasureDevice) -> None:
        figures = (UnitTimes(1, max(1, peer.block_us // 10), peer.block_us, peer.block_us),)
        event = ev.DeviceMeasured(self.spec.digest, effect.dtype, effect.numerics, figures, figures)
        self._later(peer, 0.2, event)

    def _plan(self, peer: SimPeer, effect: fx.ComputePlan) -> None:
        choice = choose(effect.snapshot)
        known = self.plans.setdefault(choice.snapshot_id, choice)
        assert known == choice, f"one snapshot, two plans: {known} and {choice}"
        self._later(peer, 0.01 + self.rng.random() * 0.05, ev.PlanComputed(choice))

    def _compute(
        self, peer: SimPeer, duration_s: float, work: Callable[[Any], Any], effect: Any
    ) -> None:
        """Queue ``work`` on the one compute thread."""
        life = peer.life
        done_at = max(peer.busy_until, self.now) + duration_s
        peer.busy_until = done_at

        def act() -> None:
            if peer.life == life:
                work(effect)

        self._at(done_at, act)

    def _load(self, peer: SimPeer, effect: fx.LoadUnits) -> None:
        def work(effect: fx.LoadUnits) -> None:
            peer.model.load(effect)
            self._later(peer, 0.0, ev.UnitsLoaded(effect.load))

        self._compute(peer, 0.2, work, effect)

    def _forward(self, peer: SimPeer, effect: fx.RunForward) -> None:
        duration_s = len(effect.units) * peer.block_us * 1e-6

        def work(effect: fx.RunForward) -> None:
            if effect.tensor is not None:
                states = peer.tensors.pop(effect.tensor.id)
            else:
                states = embed(effect.tokens)
            out, tokens = peer.model.forward(effect, states)
            is_head = self.spec.head_unit in effect.units
            hidden = None if is_head else self._keep(peer, out)
            done = ev.ForwardDone(
                effect.job, int(duration_s * 1e6), hidden, tuple(tokens) if is_head else ()
            )
            self._later(peer, 0.0, done)

        self._compute(peer, duration_s, work, effect)

    # --- the user's side ------------------------------------------------------------------

    def _accepted(self, _: SimPeer, effect: fx.Accepted) -> None:
        self.requests[effect.request] = effect.client

    def _finish(self, peer: SimPeer, effect: fx.FinishRequest) -> None:
        assert effect.request not in self.finished, f"{effect.request} ended twice"
        tokens = peer.emitted[effect.request]
        self.finished[effect.request] = Finished(
            effect.request, effect.finish_reason, effect.error, tokens, effect.stats
        )

    def _relive(self, peer: SimPeer, effect: fx.SaveGeneration) -> None:
        peer.generation = effect.generation - 1
        peer.stopped = fx.Stop(0, "restarting in a later generation")

    def _stop(self, peer: SimPeer, effect: fx.Stop) -> None:
        peer.stopped = effect
        self.crash(peer.name)


def _install_id(name: str) -> str:
    return name.encode().hex().ljust(16, "0")[:16]
