"""One peer, from its configuration to its end: opens what it needs, runs the driver, cleans up."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import TYPE_CHECKING, Any

import psutil
import uvloop
import zeroconf

from edgeshard_p2p.config import PeerConfig
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.effects import Stop
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import Address, Identity
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.peer import CoreConfig, PeerCore
from edgeshard_p2p.model import known_specs, library
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.library import LocalModel
from edgeshard_p2p.model.tiles import EXACT_TILE_ROWS
from edgeshard_p2p.net.discovery import Discovery, is_loopback, lan_address
from edgeshard_p2p.net.security import Security, open_security, read_secrets
from edgeshard_p2p.net.shaper import ShapedTransport
from edgeshard_p2p.net.transport import Callbacks, Transport
from edgeshard_p2p.runtime.driver import Driver, Restart
from edgeshard_p2p.runtime.shape import ShapeFile
from edgeshard_p2p.runtime.state import State, default_directory, default_name
from edgeshard_p2p.tables import TopologyError

if TYPE_CHECKING:
    from edgeshard_p2p.runtime.model_host import ModelHost

log = logging.getLogger("edgeshard")

MEMORY_SHARE = 0.8
"""Of what is available at the start, where no --memory is given."""
LATER_BYTES = 128 * 2**20
"""What transformers takes, which is imported once this peer listens (120 MiB of release 5)."""
HEADROOM_BYTES = 128 * 2**20
"""For activations, buffers and sockets, beside weights and KV."""
DESCRIPTORS = 8_192
ALONE_S = 5.0
LOOK_S = 0.1
"""Between two looks at whether the shape of links is another one."""
LEAVE_S = 0.3
"""For the farewell to leave the sockets."""


class PeerError(Exception):
    """Why a peer does not start, in one line.  ``exit_code`` 1 failed, 2 wrong usage."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Given:
    """The model that the operator named."""

    model: LocalModel
    spec: ModelSpec


def run_peer(config: PeerConfig, unusable: dict[str, str]) -> Stop:
    """Run until stopped; what ended it.  ``unusable`` names dtypes that this machine cannot
    compute in, and why.  Raises the operator's errors of the parts it opens."""
    security = _security(config)
    advertised = _advertised(config)
    _allow_descriptors()
    state = State(config.state_dir or default_directory(config.listen.port))
    try:
        budget_bytes = _budget(config.memory_bytes)
        given = _open_given(config.model)
        generation = 0
        while True:
            host = cache(partial(_model_host, config.device, unusable))
            life = _Life(config, security, advertised, state, given, budget_bytes, generation)
            try:
                return uvloop.run(life.run(host))
            except Restart as restart:
                generation = restart.generation
                log.warning("an earlier life of this name went further: restarting as its next")
    finally:
        state.close()


def _allow_descriptors() -> None:
    """A peer has some ten descriptors for each other one: more than some systems start with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _security(config: PeerConfig) -> Security:
    secrets = read_secrets(config.secret_file) if config.secret_file is not None else ()
    if not secrets and not is_loopback(config.listen.host):
        raise PeerError(
            f"without a secret a peer listens on loopback only, not on {config.listen.host}; "
            "make one with: edgeshard secret > swarm.secret, and give every peer "
            "--secret-file swarm.secret",
            exit_code=2,
        )
    return open_security(config.swarm, secrets)


def _resolved(address: Address) -> Address:
    """With a numeric host.  NOTE: ZeroMQ would look the name up on its one I/O thread, again at
    each try, and a slow name server would hold up everything else."""
    try:
        return Address(socket.gethostbyname(address.host), address.port)
    except OSError as error:
        raise PeerError(f"cannot find {address.host}: {error.strerror}", 2) from error


def _advertised(config: PeerConfig) -> Address:
    host = config.advertise or config.listen.host
    if host == "0.0.0.0":
        found = lan_address()
        if found is None:
            raise PeerError("this device has no network address; give --advertise HOST", 2)
        host = found
    return _resolved(Address(host, config.listen.port))


def _open_given(name_or_path: str | None) -> Given | None:
    if name_or_path is None:
        return None
    model = library.resolve(name_or_path, log.info)
    digest = library.manifest_digest(model.path, log.info)
    return Given(model, known_specs.of(model, digest) or _read_spec(model, digest))


def _read_spec(model: LocalModel, digest: str) -> ModelSpec:
    from edgeshard_p2p.model.checkpoint import open_checkpoint

    spec = open_checkpoint(model.path, digest, model.name).spec
    known_specs.keep(spec)
    return spec


def _model_host(device: str, unusable: dict[str, str]) -> ModelHost:
    try:
        from edgeshard_p2p.runtime.model_host import ModelHost
    except ImportError as error:
        raise ModelError(f"what computes cannot be imported: {error}") from error
    return ModelHost(device, unusable)


def _budget(memory_bytes: int | None) -> int:
    """Bytes for weights and KV: what the process may use, less what it uses by itself.

    NOTE: called before a model is opened, so that it does not matter what that imports."""
    base_bytes: int = psutil.Process().memory_info().rss + LATER_BYTES
    if memory_bytes is None:
        memory_bytes = int(psutil.virtual_memory().available * MEMORY_SHARE)
    budget_bytes = memory_bytes - base_bytes - HEADROOM_BYTES
    if budget_bytes <= 0:
        need_mib = (base_bytes + HEADROOM_BYTES) // 2**20
        raise PeerError(f"--memory is too small: a peer needs {need_mib} MiB before any layer", 2)
    return budget_bytes


class _Life:
    """One generation of this peer."""

    def __init__(
        self,
        config: PeerConfig,
        security: Security,
        advertised: Address,
        state: State,
        given: Given | None,
        budget_bytes: int,
        at_least_generation: int,
    ) -> None:
        identity = state.begin_life(at_least_generation)
        name = config.name or default_name(identity.install_id)
        me = Identity(PeerId(name, identity.generation), identity.install_id, advertised)
        wishes: dict[str, Any] = dict(config.settings)
        if given is not None:
            wishes["model"] = given.spec
        core_config = CoreConfig(
            me=me,
            is_source=config.source,
            budget_bytes=budget_bytes,
            tile_rows=EXACT_TILE_ROWS,
            join=tuple(_resolved(address) for address in config.join),
            wishes=wishes,
            min_members=config.min_members,
            standby=config.standby,
            known_links=state.links(),
        )
        self.core = PeerCore(core_config, Random())
        self._config = config
        self._security = security
        self._state = state
        self._given = given
        self._me = me

    async def run(self, host: Callable[[], ModelHost]) -> Stop:
        callbacks = Callbacks(
            on_peer=lambda data: self.driver.arrivals.on_peer(data),
            on_client=lambda identity, data: self.driver.arrivals.on_client(identity, data),
            on_frame=lambda parts: self.driver.arrivals.on_frame(parts),
            on_contact_failed=lambda address, reason: self.driver.post(
                ev.ContactFailed(address, reason)
            ),
            on_connection_lost=lambda address, is_refused: self.driver.post(
                ev.ConnectionLost(address, is_refused)
            ),
            refusal=lambda: self.driver.refusal(),
        )
        self.transport = self._open_transport(callbacks)
        model = self._given.model if self._given is not None else None
        self.driver = Driver(
            self.core,
            self.transport,
            host,
            self._state,
            self._security.swarm_keys,
            self._config.device,
            model,
        )
        discovery = self._discovery()
        try:
            await self.driver.open()
            await self.transport.open()
            self._greet()
            self.driver.post(ev.Started())
            self._on_signals()
            if discovery is not None:
                await self._discover(discovery)
            stop = await self.driver.ended
            await asyncio.sleep(LEAVE_S)
            return stop
        finally:
            if discovery is not None:
                await discovery.close()
            await self.driver.close()
            await self.transport.close()

    def _open_transport(self, callbacks: Callbacks) -> Transport:
        listen, path = self._config.listen, self._config.shape
        if path is None:
            return Transport(listen, self._security, callbacks)
        file = ShapeFile(path)
        try:
            shaped = ShapedTransport(listen, self._security, callbacks, file.read())
        except TopologyError as error:
            raise PeerError(str(error), 2) from None
        loop = asyncio.get_running_loop()

        def look() -> None:
            lanes = file.news()
            if lanes is not None:
                shaped.reshape(lanes)
                log.info("links are shaped anew")
            loop.call_later(LOOK_S, look)

        loop.call_later(LOOK_S, look)
        log.warning("links are emulated: what is sent is held up as %s says", path)
        return shaped

    def _greet(self) -> None:
        me, config = self._me, self._config
        role = "source" if config.source else "no source"
        budget_mib = self.core.config.budget_bytes // 2**20
        log.info(
            "%s listens on %s (swarm %s, %s, %d MiB for layers)",
            me.peer,
            me.address,
            config.swarm,
            role,
            budget_mib,
        )
        if not self._security.keys:
            log.info("no secret: loopback only, nothing is encrypted")

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, partial(self.driver.post, ev.StopAsked()))
        if self._given is None:
            loop.call_later(ALONE_S, self._offer_demo)

    def _offer_demo(self) -> None:
        """Alone and without a model: take the demo's when it is here, else say how to get one."""
        if self.core.join.has_met or self.core.gossip.setting("model") is not None:
            return
        names = {model.name for model in library.installed()}
        if library.DEMO_NAME not in names:
            log.warning(
                "no peer found and no model named: waiting; start with --model, "
                "or get the demo's model with: edgeshard fetch"
            )
            return
        log.info("no peer found and no model named: offering %s", library.DEMO_NAME)
        self.driver.spawn(self._open_demo(), name="offer the demo's model")

    async def _open_demo(self) -> None:
        try:
            given = await asyncio.to_thread(_open_given, library.DEMO_NAME)
        except ModelError as error:
            log.warning("%s cannot be offered: %s", library.DEMO_NAME, error)
            return
        assert given is not None
        self.driver.post(ev.SettingAsked("model", given.spec, is_default=True))

    def _discovery(self) -> Discovery | None:
        if not self._config.mdns:
            return None
        return Discovery(
            self._me.peer.name,
            self._me.address,
            self._security.swarm_keys,
            lambda address: self.driver.post(ev.PeerDiscovered(address)),
            self.driver.spawn,
        )

    async def _discover(self, discovery: Discovery) -> None:
        try:
            await discovery.open()
        except (OSError, zeroconf.Error) as error:
            log.warning("multicast discovery is not available (%s); use --join", error)
