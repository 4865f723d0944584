"""The loop: the next event or deadline goes into the core, the effects come out and are done.

Performing never waits: everything slow is started here and comes back as an event.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from edgeshard_p2p.control_groups import usable_cores
from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.messages import FrameAck, FrameHeader, Refused
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.work import TensorRef
from edgeshard_p2p.model.cpu_quota import cpu_share
from edgeshard_p2p.model.errors import COMPUTE_ERRORS
from edgeshard_p2p.model.library import LocalModel
from edgeshard_p2p.net.offences import OFFENCES_MAX
from edgeshard_p2p.net.transport import Transport
from edgeshard_p2p.runtime.afterwards import READS_S, Afterwards
from edgeshard_p2p.runtime.arrivals import Arrivals
from edgeshard_p2p.runtime.beside import BesideClock
from edgeshard_p2p.runtime.clients import Clients
from edgeshard_p2p.runtime.compute import Compute
from edgeshard_p2p.runtime.loop_lag import LoopLag
from edgeshard_p2p.runtime.opening import Opening
from edgeshard_p2p.runtime.plan_worker import PlanWorker
from edgeshard_p2p.runtime.state import Profile, State, alone_on_this_machine
from edgeshard_p2p.runtime.tensors import Computed, Passed, Received
from edgeshard_p2p.wire.client import ClientRequest
from edgeshard_p2p.wire.codec import encode_control
from edgeshard_p2p.wire.frames import Buffer, encode_body, encode_header, encode_probe

if TYPE_CHECKING:
    from edgeshard_p2p.runtime.model_host import ModelHost

log = logging.getLogger("edgeshard")

WAITS_TO_MEASURE = "another peer on this machine is measuring itself: waiting for it"
LEVELS = logging.getLevelNamesMapping()


class Restart(Exception):
    """This life is over; begin a later one."""

    def __init__(self, generation: int) -> None:
        super().__init__(generation)
        self.generation = generation


class Driver:
    """``host``: called on the compute thread, the first time for seconds."""

    def __init__(
        self,
        core: PeerCore,
        transport: Transport,
        host: Callable[[], ModelHost],
        state: State,
        swarm_keys: tuple[bytes, ...],
        device: str,
        given: LocalModel | None,
    ) -> None:
        self.core = core
        self.ended: asyncio.Future[fx.Stop] = asyncio.get_running_loop().create_future()
        self.clients = Clients(core, transport, self.post, self._counters, self._stand_still)
        self.arrivals = Arrivals(
            core.me,
            swarm_keys,
            self.post,
            self._keep_received,
            self._on_request,
            self.clients.answer,
        )
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._host = host
        self._state = state
        self._swarm_keys = swarm_keys
        self._device = device
        self._compute = Compute(COMPUTE_ERRORS, self._on_bug)
        self._lag = LoopLag()
        self._cores = usable_cores()
        self._beside = BesideClock(
            lambda us: self.post(ev.PassesTimed(us)), lambda: self._compute.n_turns, self._cores
        )
        self._planner = PlanWorker(lambda choice: self.post(ev.PlanComputed(choice)))
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: deque[ev.Event] = deque()
        self._is_handling = False
        self._afterwards = Afterwards(core, self._send_now, self.post)
        opening = Opening(core, self.clients, self._compute, host, given, self.post, self._progress)
        self._tensors: dict[int, Computed | Received] = {}
        self._n_tensors = 0
        self._performers: dict[type, Callable[[Any], None]] = {
            fx.Send: self._send,
            fx.SendFrame: self._send_frame,
            fx.SendProbe: self._send_probe,
            fx.CloseEdge: lambda e: transport.close_edge(bytes.fromhex(e.plan), e.edge),
            fx.OpenModel: opening.open,
            fx.MeasureDevice: self._measure,
            fx.ComputePlan: lambda effect: self._planner.ask(effect.snapshot),
            fx.LoadUnits: self._load,
            fx.OpenCache: lambda effect: self._touch_cache(lambda: host().open_cache(effect)),
            fx.ReleaseCache: lambda effect: self._touch_cache(lambda: host().release_cache(effect)),
            fx.RunForward: self._forward,
            fx.DropTensor: self._drop_tensor,
            fx.Accepted: self.clients.accepted,
            fx.Rejected: self.clients.rejected,
            fx.EmitToken: self.clients.emit,
            fx.RequestNotice: self.clients.notice,
            fx.FinishRequest: self.clients.finish,
            fx.SaveGeneration: self._save_generation,
            fx.SaveLinks: lambda effect: state.save_links(effect.links),
            fx.SavePassTime: lambda effect: state.save_pass_us(self._cores, effect.us),
            fx.Log: lambda effect: log.log(LEVELS[effect.level.upper()], effect.text),
            fx.Stop: self._stop,
        }

    # --- life -----------------------------------------------------------------------------

    async def open(self) -> None:
        # A callback that raises is a bug, and ends the peer.
        self._loop.set_exception_handler(self._on_callback_failed)
        await self._planner.open()
        self.spawn(self._planner.run(), name="planner")
        self.spawn(self.clients.call(), name="call on clients")
        self.spawn(self._lag.run(), name="loop lag")
        self.spawn(self._beside.run(), name="what passes take besides")

    async def close(self) -> None:
        self._afterwards.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._compute.close()
        await self._planner.close()

    def spawn(self, coroutine: Any, name: str) -> None:
        """Run a task that belongs to this peer; its failure is the peer's."""
        task: asyncio.Task[None] = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._on_bug(task.exception() or RuntimeError(task.get_name()))

    def _on_callback_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._on_bug(context.get("exception") or RuntimeError(context["message"]))

    def _on_bug(self, bug: BaseException) -> None:
        if not self.ended.done():
            self.ended.set_exception(bug)

    def _stop(self, effect: fx.Stop) -> None:
        if not self.ended.done():
            self.ended.set_result(effect)

    def _save_generation(self, effect: fx.SaveGeneration) -> None:
        self._on_bug(Restart(effect.generation))

    # --- events and effects ---------------------------------------------------------------

    def post(self, event: ev.Event) -> None:
        """Hand an event to the core.  One that comes up while another is handled waits."""
        self._events.append(event)
        if self._is_handling or self.ended.done():
            return
        if self.arrivals.is_deaf and not isinstance(event, ev.StopAsked):
            return
        self._is_handling = True
        try:
            while self._events:
                for effect in self.core.handle(self._events.popleft(), time.monotonic()):
                    self._performers[type(effect)](effect)
        finally:
            self._is_handling = False
        self._afterwards.after_events()

    def _stand_still(self, for_s: float) -> None:
        """As a device that froze: what arrives is lost, what is done in here waits."""
        if self.arrivals.is_deaf:
            return
        log.warning("standing still for %.0f s, as asked by a client", for_s)
        self.arrivals.is_deaf = True
        self._loop.call_later(for_s, self._go_on)

    def _go_on(self) -> None:
        self.arrivals.is_deaf = False
        self._loop.call_later(READS_S, self.post, ev.DeadlineReached())

    # --- what arrives ---------------------------------------------------------------------

    def refusal(self) -> bytes:
        """For a connection that keeps sending what cannot be read."""
        text = f"{OFFENCES_MAX} messages of this connection could not be read; none is from now on"
        log.warning("a connection is refused: %s", text)
        refused = Refused("malformed", text)
        return encode_control(self._swarm_keys[0], self.core.me, refused)

    def _keep_received(self, header: FrameHeader, payload: Buffer) -> TensorRef:
        return self._keep(Received(payload, header.dtype, header.shape))

    def _keep(self, tensor: Computed | Received) -> TensorRef:
        self._n_tensors += 1
        self._tensors[self._n_tensors] = tensor
        return TensorRef(self._n_tensors, len(tensor.payload))

    def _on_request(self, identity: bytes, request: ClientRequest) -> None:
        self.clients.on_request(identity, request, self.spawn)

    def _drop_tensor(self, effect: fx.DropTensor) -> None:
        del self._tensors[effect.tensor.id]

    def _counters(self) -> dict[str, dict[str, Any]]:
        """What was not taken, by kind: of what arrived, and of what was to be sent; what was held
        up on purpose (empty: nothing is); how long the compute thread has worked so far; and how
        late the loop was."""
        refused = self.arrivals.refused + self.core.serving.refused
        return {
            "refused": dict(refused),
            "dropped": dict(self._transport.dropped),
            "shaping": dict(self._transport.shaping),
            "compute": {"busy_us": int(self._compute.busy_s * 1e6)},
            "loop": {"lag_ms": self._lag.told()},
        }

    # --- sending --------------------------------------------------------------------------

    def _send(self, effect: fx.Send) -> None:
        message = effect.message
        if isinstance(message, FrameAck):
            self._afterwards.acknowledge(effect, message)
        else:
            self._send_now(effect)

    def _send_now(self, effect: fx.Send) -> None:
        data = encode_control(self._swarm_keys[0], self.core.me, effect.message)
        self._transport.send_control(effect.to, data)

    def _send_frame(self, effect: fx.SendFrame) -> None:
        payload: Buffer = b""
        if effect.tensor is not None:
            payload = self._tensors[effect.tensor.id].payload
        elif effect.tokens:
            payload = struct.pack(f"<{len(effect.tokens)}i", *effect.tokens)
        elif effect.body is not None:
            payload = encode_body(effect.body)
        header = effect.header
        self._transport.send_frame(
            header.plan, header.edge, header.epoch, effect.to, [encode_header(header), payload]
        )

    def _send_probe(self, effect: fx.SendProbe) -> None:
        parts = encode_probe(self.core.me, effect.nonce, effect.n_bytes)
        self._transport.send_probe(effect.to, parts)

    # --- the compute thread ---------------------------------------------------------------

    def _measure(self, effect: fx.MeasureDevice) -> None:
        opened = self.core.local.opened
        assert opened is not None
        digest = opened.digest
        share = f"{cpu_share():.3g}"  # Of a core, as figures are kept by it.
        how = (effect.dtype, effect.numerics, effect.tile_rows, self._device, share)
        key = "-".join([digest[:16], *map(str, how)])

        def work() -> Profile:
            with alone_on_this_machine(partial(self._progress, WAITS_TO_MEASURE)):
                measured = self._host().measure(
                    digest, effect.dtype, effect.tile_rows, self._progress
                )
            self._state.save_profile(key, measured)
            return measured

        def on_done(profile: Profile) -> None:
            self.post(
                ev.DeviceMeasured(
                    digest,
                    effect.dtype,
                    effect.numerics,
                    profile.decode,
                    profile.prefill,
                    self._state.pass_us(self._cores),
                    profile.rested_us,
                )
            )

        known = self._state.profile(key)
        if known is not None:
            on_done(known)
            return
        self._compute.submit(work, on_done, lambda e: self.post(ev.MeasureFailed(str(e))))

    def _load(self, effect: fx.LoadUnits) -> None:
        self._compute.submit(
            lambda: self._host().load(effect, self._progress),
            lambda _: self.post(ev.UnitsLoaded(effect.load)),
            lambda error: self.post(ev.LoadFailed(effect.load, str(error))),
        )

    def _touch_cache(self, work: Callable[[], None]) -> None:
        # A slot that cannot be opened shows at the request's first pass, which then fails.
        self._compute.submit(work, lambda _: None, lambda error: log.error("KV: %s", error))

    def _forward(self, effect: fx.RunForward) -> None:
        given = [self._tensors.pop(tensor.id) for tensor in effect.tensors]

        def work() -> Passed:
            begun_s = time.thread_time()
            passed = self._host().forward(effect, [tensor.tensor() for tensor in given])
            self._beside.passed(time.thread_time() - begun_s)
            return passed

        def on_done(passed: Passed) -> None:
            hidden = self._keep(passed.hidden) if passed.hidden is not None else None
            self.post(ev.ForwardDone(effect.job, passed.service_us, hidden, passed.tokens))

        def on_error(error: Exception) -> None:
            self.post(ev.ForwardFailed(effect.job, str(error)[:200]))

        self._compute.submit(work, on_done, on_error)

    def _progress(self, text: str) -> None:
        """From the compute thread."""
        self._compute.call(log.info, text)
