"""The deterministic simulator: a seeded queue of events over N real PeerCores.

    swarm = Simulator(seed=7); swarm.add("a"); swarm.start("a"); swarm.run(until=5.0) ...

The same seed gives the same run, event for event.  Safety is checked after each event.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.edges import ACK_HELD_S
from edgeshard_p2p.core.ids import RequestId
from edgeshard_p2p.core.messages import Address, FrameKind
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.settings import SettingValue
from edgeshard_p2p.sim.attempts import touched, untouchable
from edgeshard_p2p.sim.checks import Safety
from edgeshard_p2p.sim.choices import Choices
from edgeshard_p2p.sim.compute import Oracle, small_model
from edgeshard_p2p.sim.device import LOAD_S, MEASURE_S, OPEN_S, SimPeer
from edgeshard_p2p.sim.network import Network
from edgeshard_p2p.sim.request import SimRequest
from edgeshard_p2p.wire.codec import decode_control, encode_control
from edgeshard_p2p.wire.frames import decode_frame, encode_body, encode_header, encode_probe

SWARM = b"simulate"


class Simulator:
    def __init__(self, seed: int, n_blocks: int = 4, loss: float = 0.0) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.network = Network(Random(seed + 1), loss=loss)
        self.spec = small_model(n_blocks)
        self.timer_lag_s = 0.0
        """Alarms ring up to so much too late."""
        self.peers: dict[str, SimPeer] = {}
        self.requests: dict[str, SimRequest] = {}
        """By client."""
        self.by_id: dict[RequestId, SimRequest] = {}
        self.choices = Choices(Random(seed + 2))
        self.safety = Safety(self)
        self.log: list[str] = []
        """Transitions of the peers and deeds of the operator: a run reads as a story."""
        self.n_events = 0
        self.record: list[str] | None = None
        """Every event, as text; None: not wanted."""
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
            fx.OpenCache: lambda peer, effect: self._touch(peer, peer.model.open, effect),
            fx.ReleaseCache: lambda peer, effect: self._touch(peer, peer.model.release, effect),
            fx.RunForward: self._forward,
            fx.DropTensor: lambda peer, effect: peer.drop(effect),
            fx.Accepted: self._accept,
            fx.Rejected: self._reject,
            fx.EmitToken: self._emit,
            fx.FinishRequest: self._finish,
            fx.SaveGeneration: self._relive,
            fx.SaveLinks: self._save_links,
            fx.SavePassTime: lambda *_: None,
            fx.Stop: self._stop,
            fx.Log: lambda peer, effect: self._tell(f"{peer.id} {effect.text}"),
        }

    # --- the operator ---------------------------------------------------------------------

    def add(
        self,
        name: str,
        budget_bytes: int = 10**9,
        is_source: bool = True,
        block_us: int = 1000,
        models: tuple[ModelSpec, ...] | None = None,
        host: str = "",
        row_us: int = 0,
    ) -> SimPeer:
        """A device.  ``host`` names it on the network where two peers share a name."""
        host = host or name
        install_id = host.encode().hex().ljust(16, "0")[:16]
        found = (self.spec,) if models is None else models
        peer = SimPeer(name, found, budget_bytes, is_source, block_us, install_id, host, row_us)
        self.peers[host] = peer
        return peer

    def start(self, host: str, join: tuple[str, ...] = (), **options: Any) -> None:
        """Begin a life; ``options`` go to CoreConfig."""
        peer = self.peers[host]
        given = {"wishes": {"model": peer.models[0]}} if peer.models else {}
        joined = tuple(self.peers[other].address for other in join)
        peer.options = {**given, "join": joined, **options}
        peer.generation += 1
        self._begin(peer)

    def restart(self, host: str) -> None:
        """End its life, if there is one, and begin the next as the last was begun."""
        peer = self.peers[host]
        if peer.core is not None:
            self._end(peer)
        peer.generation += 1
        self._begin(peer)

    def _end(self, peer: SimPeer) -> None:
        """The system closes the connections of a process that ends; its port refuses new ones."""
        peer.end()
        for other in self.lives():
            if self.network.are_joined(peer.host, other.host):
                self._hang_up(peer, other)

    def _hang_up(self, peer: SimPeer, other: SimPeer) -> None:
        life = other.life

        def find() -> None:
            event = ev.ConnectionLost(peer.address, is_refused=peer.core is None)
            self._feed(other, event)

        arrives_s = self.network.delay_s
        self._at(self.now + arrives_s, lambda: self._when_awake(other, life, find))

    def _begin(self, peer: SimPeer) -> None:
        core = peer.begin(self.now, Random(self.rng.random()))
        self._tell(f"{peer.id} starts")
        wish = core.config.wishes.get("model")
        if isinstance(wish, ModelSpec):
            self._feed(peer, peer.open_model(wish.digest))
        self._feed(peer, ev.Started())

    def discover(self, host: str, other: str) -> None:
        """Multicast shows ``other`` to ``host``."""
        self._later(self.peers[host], 0.0, ev.PeerDiscovered(self.peers[other].address))

    def crash(self, host: str) -> None:
        self._end(self.peers[host])
        self._tell(f"{self.peers[host].id} crashes")

    def reject(self, host: str, other: str) -> None:
        """A firewall ends and refuses the connections that ``host`` makes to ``other``."""
        self.network.cut(host, other)
        event = ev.ConnectionLost(self.peers[other].address, is_refused=True)
        self._later(self.peers[host], 0.0, event)

    def leave(self, host: str) -> None:
        self._feed(self.peers[host], ev.StopAsked())

    def freeze(self, host: str) -> None:
        self.peers[host].is_frozen = True

    def thaw(self, host: str) -> None:
        """It finds everything that came meanwhile, in order, and its alarm long due."""
        peer = self.peers[host]
        if not peer.is_frozen:
            return
        peer.is_frozen, peer.ringing_at = False, None
        for action in peer.backlog:
            self._at(self.now, action)
        peer.backlog.clear()
        self._arm(peer)

    def submit(
        self,
        host: str,
        prompt: tuple[int, ...],
        max_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
    ) -> SimRequest:
        client, n_units = f"client-{len(self.requests)}", self.spec.n_units
        oracle, life = Oracle(prompt, n_units), self.peers[host].life
        request = SimRequest(client, host, life, prompt, max_tokens, oracle, stop_ids)
        self.requests[client] = request
        event = ev.PromptSubmitted(client, prompt, max_tokens, Sampling(), stop_ids)
        self._feed(self.peers[host], event)
        return request

    def cancel(self, request: SimRequest) -> None:
        assert request.id is not None
        self._feed(self.peers[request.at], ev.RequestCancelled(request.id))

    def set(self, host: str, key: str, value: SettingValue) -> None:
        self._feed(self.peers[host], ev.SettingAsked(key, value))

    def lives(self) -> list[SimPeer]:
        return [peer for peer in self.peers.values() if peer.core is not None]

    def unended(self) -> list[SimRequest]:
        """Accepted requests whose source still lives the life in which it accepted them."""
        accepted = [r for r in self.requests.values() if r.id is not None and r.finished is None]
        alive = {(peer.host, peer.life) for peer in self.lives()}
        return [r for r in accepted if (r.at, r.life) in alive]

    # --- the clock ------------------------------------------------------------------------

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self._step()
        self.now = max(self.now, until)

    def run_until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Run until ``condition`` holds; False when it does not within ``limit_s``."""
        ends_at = self.now + limit_s
        while not condition():
            if not self._queue or self._queue[0][0] > ends_at:
                return False
            self._step()
        return True

    def _step(self) -> None:
        self.now, _, action = heapq.heappop(self._queue)
        action()

    def _at(self, time: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (time, self._order, action))

    def _when_awake(self, peer: SimPeer, life: int, action: Callable[[], None]) -> None:
        if peer.life != life or peer.core is None:
            return
        if peer.is_frozen:
            peer.backlog.append(lambda: self._when_awake(peer, life, action))
        else:
            action()

    def _later(self, peer: SimPeer, delay_s: float, event: ev.Event) -> None:
        life = peer.life
        act = lambda: self._when_awake(peer, life, lambda: self._feed(peer, event))  # noqa: E731
        self._at(self.now + delay_s, act)

    def _feed(self, peer: SimPeer, event: ev.Event) -> None:
        if peer.core is None or peer.is_frozen:
            return
        self.n_events += 1
        if self.record is not None:
            self.record.append(f"{self.now:.6f} {peer.id} {event}")
        core, life = peer.core, peer.life
        late = untouchable(core, event, self.now)
        for effect in core.handle(event, self.now):
            self._perform(peer, effect)
        assert not touched(core, late, event), f"{event} of an earlier attempt counts at {peer.id}"
        if peer.life == life:
            self.safety.check(peer, core)
            self._arm(peer)

    def _perform(self, peer: SimPeer, effect: fx.Effect) -> None:
        performer = self._performers.get(type(effect))
        # A process that ends still says its last words, and does nothing more.
        if performer is not None and (peer.core is not None or isinstance(effect, fx.Send)):
            performer(peer, effect)

    def _arm(self, peer: SimPeer) -> None:
        if peer.core is None:
            return
        deadline = peer.core.next_deadline()
        if deadline is None or deadline == peer.ringing_at:
            return
        peer.ringing_at, life = deadline, peer.life
        lag_s = self.rng.random() * self.timer_lag_s
        rings_at = max(deadline, self.now) + lag_s

        def act() -> None:
            self._when_awake(peer, life, lambda: self._ring(peer, deadline))

        self._at(rings_at, act)

    def _ring(self, peer: SimPeer, deadline: float) -> None:
        # Only the alarm that is still wanted rings.
        if peer.ringing_at != deadline:
            return
        peer.ringing_at = None
        self.safety.check_spinning(peer, self.now)
        self._feed(peer, ev.DeadlineReached())

    def _tell(self, text: str) -> None:
        self.log.append(f"{self.now:9.4f} {text}")

    # --- the network ----------------------------------------------------------------------

    def _deliver(
        self, sender: SimPeer, to: Address, n_bytes: int, make: Callable[[SimPeer], ev.Event]
    ) -> None:
        receiver = self.peers.get(to.host)
        if receiver is None:
            return

        def arrive() -> None:
            life = receiver.life
            self._when_awake(receiver, life, lambda: self._feed(receiver, make(receiver)))

        for transit_s in self.network.transits_s(sender.host, to.host, n_bytes):
            self._at(self.now + transit_s, arrive)

    def _send(self, peer: SimPeer, effect: fx.Send) -> None:
        self.safety.check_chatter(peer, effect, self.now)
        data = encode_control(SWARM, peer.id, effect.message)
        heard = ev.MessageReceived(*decode_control(SWARM, data))
        held_s = self.rng.random() * ACK_HELD_S if effect.can_wait else 0.0
        deliver = lambda: self._deliver(peer, effect.to, len(data), lambda _: heard)  # noqa: E731
        self._at(self.now + held_s, deliver)

    def _send_frame(self, peer: SimPeer, effect: fx.SendFrame) -> None:
        states = peer.tensors[effect.tensor.id] if effect.tensor is not None else []
        n_bytes = effect.tensor.n_bytes if effect.tensor is not None else 4 * len(effect.tokens)
        payload = encode_body(effect.body) if effect.body is not None else bytes(n_bytes)
        header, _, body = decode_frame([encode_header(effect.header), payload])
        if header.kind is FrameKind.EDGE:
            self.safety.check_opening(peer, header, self.now)

        def make(receiver: SimPeer) -> ev.Event:
            tensor = receiver.keep(list(states)) if states else None
            return ev.FrameReceived(header, tensor, effect.tokens, body)

        self._deliver(peer, effect.to, len(payload) + 64, make)

    def _send_probe(self, peer: SimPeer, effect: fx.SendProbe) -> None:
        header, _, body = decode_frame(encode_probe(peer.id, effect.nonce, 0))
        event = ev.FrameReceived(header, body=body)
        self._deliver(peer, effect.to, effect.n_bytes, lambda _: event)

    # --- the device -----------------------------------------------------------------------

    def _open_model(self, peer: SimPeer, effect: fx.OpenModel) -> None:
        self._compute(peer, OPEN_S, lambda: peer.open_model(effect.digest))

    def _measure(self, peer: SimPeer, effect: fx.MeasureDevice) -> None:
        self._compute(peer, MEASURE_S, lambda: peer.measure(effect))

    def _load(self, peer: SimPeer, effect: fx.LoadUnits) -> None:
        self.safety.check_memory(peer, effect)
        extra_s, peer.load_takes_s = peer.load_takes_s, 0.0
        self._compute(peer, LOAD_S + extra_s, lambda: peer.load(effect))

    def _touch(self, peer: SimPeer, work: Callable[[Any], None], effect: Any) -> None:
        self._compute(peer, 0.0, lambda: work(effect))

    def _forward(self, peer: SimPeer, effect: fx.RunForward) -> None:
        self.safety.check_forward(peer, effect)
        self._compute(peer, peer.forward_s(effect), lambda: peer.forward(effect))

    def _compute(
        self, peer: SimPeer, duration_s: float, work: Callable[[], ev.Event | None]
    ) -> None:
        """Queue ``work`` on the peer's one compute thread; what it returns happens to the core."""
        life = peer.life
        peer.busy_until = max(peer.busy_until, self.now) + duration_s

        def act() -> None:
            if (event := work()) is not None:
                self._feed(peer, event)

        self._at(peer.busy_until, lambda: self._when_awake(peer, life, act))

    def _plan(self, peer: SimPeer, effect: fx.ComputePlan) -> None:
        event = ev.PlanComputed(self.choices.of(effect.snapshot))
        self._later(peer, 0.01 + self.rng.random() * 0.05, event)

    def _save_links(self, peer: SimPeer, effect: fx.SaveLinks) -> None:
        peer.known_links = effect.links

    # --- the user's side ------------------------------------------------------------------

    def _accept(self, _: SimPeer, effect: fx.Accepted) -> None:
        request = self.requests[effect.client]
        request.id = effect.request
        self.by_id[effect.request] = request

    def _reject(self, _: SimPeer, effect: fx.Rejected) -> None:
        self.requests[effect.client].rejected = effect.reason

    def _emit(self, _: SimPeer, effect: fx.EmitToken) -> None:
        request = self.by_id[effect.request]
        request.tokens.append(effect.token)
        self.safety.check_token(request)

    def _finish(self, _: SimPeer, effect: fx.FinishRequest) -> None:
        request = self.by_id[effect.request]
        self.safety.check_end(request, effect)
        request.finished = effect

    def _relive(self, peer: SimPeer, effect: fx.SaveGeneration) -> None:
        """An earlier life went further: this one ends, and a later one begins at once."""
        self._end(peer)
        peer.generation = effect.generation
        self._at(self.now, lambda: self._begin(peer) if peer.core is None else None)

    def _stop(self, peer: SimPeer, effect: fx.Stop) -> None:
        peer.stopped = effect
        self._end(peer)
        self._tell(f"{peer.id} stops: {effect.exit_code} {effect.text}")
