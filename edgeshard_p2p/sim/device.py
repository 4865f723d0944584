"""One simulated device: what survives a crash (its disk), and its present life (a core, tensors,
a compute thread).

Knows nothing of other devices or of the clock's queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import Address, Identity
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.peer import CoreConfig, PeerCore
from edgeshard_p2p.core.records import LinkFigures, UnitTimes
from edgeshard_p2p.core.work import TensorRef
from edgeshard_p2p.sim.compute import HashModel, State, embed

PORT = 7911
OPEN_S, MEASURE_S, LOAD_S = 0.01, 0.2, 0.2
ROWS_MAX = 64
"""Measured are passes up to so many."""


@dataclass(slots=True)
class SimPeer:
    name: str
    models: tuple[ModelSpec, ...]
    """Whose files are on its disk."""
    budget_bytes: int
    is_source: bool
    block_us: int
    install_id: str
    host: str
    row_us: int = 0
    """What each row of a pass takes in a block besides."""

    # Its disk.
    generation: int = 0
    known_links: tuple[LinkFigures, ...] = ()

    lived: set[PeerId] = field(default_factory=set)
    relived: set[PeerId] = field(default_factory=set)
    """Lives that it began twice, because it had lost its disk: for a while their records are
    mistaken for each other."""

    # Its present life.
    core: PeerCore | None = None
    model: HashModel = field(init=False)
    opened: ModelSpec | None = None
    tensors: dict[int, list[State]] = field(default_factory=dict)
    busy_until: float = 0.0
    life: int = 0
    """Rises at each start and crash: what belongs to an earlier life is void."""
    is_frozen: bool = False
    backlog: list[Callable[[], None]] = field(default_factory=list)
    """What came while it was frozen."""
    ringing_at: float | None = None
    """The deadline that its one timer is set for."""
    stopped: fx.Stop | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Of its last start, for the next one."""

    # Faults to come.
    loads_to_fail: int = 0
    load_takes_s: float = 0.0
    """More than usual, the next time."""
    passes_to_fail: int = 0
    stage_passes_to_fail: int = 0
    """Of its shared stage only: what runs on it goes on in another attempt."""

    _n_tensors: int = 0

    @property
    def id(self) -> PeerId:
        return PeerId(self.name, self.generation)

    @property
    def address(self) -> Address:
        return Address(self.host, PORT)

    def begin(self, now: float, rng: Random) -> PeerCore:
        """A new life, in the generation that stands on the disk."""
        self.life += 1
        if self.id in self.lived:
            self.relived.add(self.id)
        self.lived.add(self.id)
        self.is_frozen, self.stopped, self.ringing_at = False, None, None
        self.model = HashModel(self.models[0].n_units if self.models else 0)
        self.tensors, self.busy_until = {}, now
        self.backlog.clear()
        self.opened = None
        config = CoreConfig(
            me=Identity(self.id, self.install_id, self.address),
            is_source=self.is_source,
            budget_bytes=self.budget_bytes,
            tile_rows=4,
            known_links=self.known_links,
            **self.options,
        )
        self.core = PeerCore(config, rng)
        return self.core

    def end(self) -> None:
        self.life += 1
        self.core = None

    def lose_disk(self, rng: Random) -> None:
        """Only the operator's idea of its name is left."""
        self.generation, self.known_links = 0, ()
        self.install_id = f"{rng.getrandbits(64):016x}"

    # --- tensors --------------------------------------------------------------------------

    def keep(self, states: list[State]) -> TensorRef:
        self._n_tensors += 1
        self.tensors[self._n_tensors] = states
        return TensorRef(self._n_tensors, len(states) * self._spec.hidden_bytes("fp32"))

    def drop(self, effect: fx.DropTensor) -> None:
        del self.tensors[effect.tensor.id]

    # --- what the compute thread does, each with the event that comes of it -----------------

    @property
    def _spec(self) -> ModelSpec:
        assert self.opened is not None, f"{self.id} computes without a model"
        return self.opened

    def open_model(self, digest: str) -> ev.ModelOpened:
        self.opened = next((spec for spec in self.models if spec.digest == digest), None)
        detail = "" if self.opened else f"the swarm's model {digest[:12]} is not here"
        return ev.ModelOpened(digest, self.opened, detail)

    def measure(self, effect: fx.MeasureDevice) -> ev.DeviceMeasured:
        figures = tuple(self._times(rows) for rows in (1, ROWS_MAX))
        digest = self._spec.digest
        return ev.DeviceMeasured(digest, effect.dtype, effect.numerics, figures, figures)

    def _times(self, rows: int) -> UnitTimes:
        block_us = self.block_us + rows * self.row_us
        return UnitTimes(rows, max(1, block_us // 10), block_us, block_us)

    def load(self, effect: fx.LoadUnits) -> ev.UnitsLoaded | ev.LoadFailed:
        wanted = {unit for units in effect.units for unit in units}
        if self.loads_to_fail and wanted - self.model.held:
            self.loads_to_fail -= 1
            self.model.held &= wanted
            return ev.LoadFailed(effect.load, "the disk says no")
        self.model.load(effect)
        return ev.UnitsLoaded(effect.load)

    def forward_s(self, effect: fx.RunForward) -> float:
        n_rows = sum(group.rows for group in effect.groups)
        return len(effect.units) * (self.block_us + n_rows * self.row_us) * 1e-6

    def forward(self, effect: fx.RunForward) -> ev.ForwardDone | ev.ForwardFailed:
        if effect.tensors:
            states = [state for ref in effect.tensors for state in self.tensors.pop(ref.id)]
        elif effect.is_from_log:
            states = []
        else:
            states = embed(effect.tokens)
        if self._is_to_fail(effect):
            self.model.spoil(effect)
        if self.model.is_spoilt(effect):
            return ev.ForwardFailed(effect.job, "the kernel says no")
        out, tokens = self.model.forward(effect, states)
        is_head = self._spec.head_unit in effect.units
        hidden = None if is_head else self.keep(out)
        service_us = int(self.forward_s(effect) * 1e6)
        return ev.ForwardDone(effect.job, service_us, hidden, tuple(tokens) if is_head else ())

    def _is_to_fail(self, effect: fx.RunForward) -> bool:
        if self.passes_to_fail:
            self.passes_to_fail -= 1
            return True
        if self.stage_passes_to_fail and effect.job.role == "stage":
            self.stage_passes_to_fail -= 1
            return True
        return False
