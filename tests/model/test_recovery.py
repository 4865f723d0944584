"""After a loss the KV and the logits have the bits of an undisturbed run.

The peers are simulated, with the real core and codec; what they compute is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tiny import PROMPT, opened, request, shard
from torch import Tensor

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.plan import Workload, kv_bytes, weight_bytes
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import CacheKey, RowGroup
from edgeshard_p2p.model.checkpoint import Checkpoint
from edgeshard_p2p.model.engine import Engine
from edgeshard_p2p.runtime.model_host import ModelHost
from edgeshard_p2p.sim import checks
from edgeshard_p2p.sim.device import SimPeer
from edgeshard_p2p.sim.request import SimRequest
from edgeshard_p2p.sim.simulator import Simulator

TILE_ROWS = 4
CONTEXT = 72
N_TOKENS = 24
NAMES = "abcde"

Logits = dict[int, Tensor]
"""By position of the token that is drawn from them."""


@dataclass
class Lone:
    """One engine that nobody disturbs: its tokens, and what it has at every position."""

    checkpoint: Checkpoint
    n_units: int = 0
    logits: Logits = field(default_factory=dict)
    ids: list[int] = field(default_factory=lambda: list(PROMPT))

    def __post_init__(self) -> None:
        self.n_units = self.checkpoint.spec.n_units
        self._units = UnitRange(0, self.n_units)
        self._engine = shard(self.checkpoint, self._units, tile_rows=TILE_ROWS)
        self._engine.open(request(1))
        self._length = 0

    def tokens(self, n: int) -> list[int]:
        while len(self.ids) < len(PROMPT) + n:
            rows = self.ids[self._length :]
            group = RowGroup(request(1), self._length, len(rows), Sampling())
            logits = self._engine.logits(self._units, [group], torch.tensor(rows))
            self._length = len(self.ids)
            self.logits[self._length] = logits[0]
            self.ids.append(int(logits[0].argmax()))
        return self.ids[len(PROMPT) : len(PROMPT) + n]

    def kv(self, unit: int, length: int) -> Tensor:
        return self._engine.cached(request(1), unit)[:, :, :length]


class RealModel:
    """What a peer's compute thread does, under the interface of the simulator's own model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.host = ModelHost("cpu", {})
        self.host._checkpoints[checkpoint.spec.digest] = checkpoint
        self.keys: set[CacheKey] = set()
        """Open slots."""

    def open(self, effect: fx.OpenCache) -> None:
        self.host.open_cache(effect)
        self.keys.discard(effect.adopts or effect.key)
        self.keys.add(effect.key)

    def release(self, effect: fx.ReleaseCache) -> None:
        self.host.release_cache(effect)
        self.keys.discard(effect.key)


@dataclass
class RealPeer(SimPeer):
    checkpoint: Checkpoint | None = None
    n_from_log: int = 0
    """Passes of rows that were logged here."""

    def begin(self, now: float, rng: Random) -> PeerCore:
        core = super().begin(now, rng)
        assert self.checkpoint is not None
        self.model: Any = RealModel(self.checkpoint)
        return core

    def load(self, effect: fx.LoadUnits) -> ev.UnitsLoaded | ev.LoadFailed:
        self.model.host.load(effect, lambda _: None)
        return ev.UnitsLoaded(effect.load)

    def forward(self, effect: fx.RunForward) -> ev.ForwardDone | ev.ForwardFailed:
        self.n_from_log += effect.is_from_log
        given: Any = [torch.stack(self.tensors.pop(t.id)) for t in effect.tensors]  # type: ignore[arg-type]
        passed = self.model.host.forward(effect, given)
        hidden = None
        if passed.hidden is not None:
            hidden = self.keep(list(passed.hidden.rows.clone()))
        return ev.ForwardDone(effect.job, passed.service_us, hidden, passed.tokens)


class Lab:
    """Five peers, of which three and the source hold the model; the prompt is put to the first."""

    def __init__(self, path: Path) -> None:
        self.checkpoint = opened(path)
        spec = self.checkpoint.spec
        self.lone = Lone(self.checkpoint)
        self.swarm = Simulator(3)
        self.swarm.spec = spec
        workload = Workload("fp32", "exact", TILE_ROWS, CONTEXT, batch=1)
        two_blocks = UnitRange(1, 3)
        part = weight_bytes(spec, two_blocks, "fp32", False)
        part += kv_bytes(spec, two_blocks, workload, 1)
        ends = weight_bytes(spec, UnitRange(0, 1), "fp32", False)
        for name in NAMES:
            budget = (part + ends) * 10 // 9
            self.swarm.peers[name] = RealPeer(
                name,
                (spec,),
                budget,
                name == "a",
                1000,
                name * 16,
                name,
                checkpoint=self.checkpoint,
            )
        for name in NAMES:
            wishes = {"model": spec, "context": CONTEXT}
            self.swarm.start(name, join=("a",) if name != "a" else (), wishes=wishes)
        self.swarm.run(5.0)
        assert self.swarm.run_until(lambda: checks.is_settled(self.swarm), 60.0)
        assert len(self.stages()) >= 3, self.stages()

    def stages(self) -> list[str]:
        core = self.swarm.peers["a"].core
        assert core is not None
        plan = core.planning.rollout.active_plan()
        return [stage.peer.name for stage in plan.stages] if plan is not None else []

    def submit(self) -> SimRequest:
        asked = self.swarm.submit("a", tuple(PROMPT), N_TOKENS)
        asked.oracle = self.lone  # type: ignore[assignment]
        return asked

    def runs_to(self, asked: SimRequest, n_tokens: int) -> None:
        assert self.swarm.run_until(lambda: len(asked.tokens) >= n_tokens, 60.0), asked

    def check_kv(self) -> int:
        """Every block that any peer holds of the request has the bits of the undisturbed run;
        how many blocks."""
        n_blocks = 0
        for peer in self.swarm.lives():
            engine: Engine = peer.model.host._engine
            for key in peer.model.keys:
                for unit in engine.held():
                    if not engine.spec.is_block(unit) or unit not in engine._kv[key.role].blocks():
                        continue
                    cached = engine.cached(key, unit)
                    length = cached.shape[2]
                    assert torch.equal(cached, self.lone.kv(unit, length)), f"{peer.id} {unit}"
                    n_blocks += 1 if length else 0
        return n_blocks


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Logits]:
    """All logits from which a peer has drawn, by the position of the token."""
    logits_of, by_position = Engine._logits, Logits()

    def record(self: Engine, groups: Any, hidden: Tensor, wanted: Any) -> Tensor:
        logits = logits_of(self, groups, hidden, wanted)
        for group, row in zip(wanted, logits, strict=True):
            if group.key != request(1):
                by_position[group.position + group.rows] = row.clone()
        return logits

    monkeypatch.setattr(Engine, "_logits", record)
    return by_position


MOMENTS = {"in the prompt": 0, "at the first token": 1, "in the middle": 9, "at a tile's end": 11}
"""Tokens that have come; the prompt has 37, a tile 4 rows."""


@pytest.mark.parametrize("n_tokens", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("lost", [(0,), (1,), (-1,), (0, 1)], ids=str)
def test_bits_are_those_of_an_undisturbed_run(
    model_path: Callable[[str], Path], drawn: Logits, lost: tuple[int, ...], n_tokens: int
) -> None:
    lab = Lab(model_path("llama"))
    asked = lab.submit()
    lab.runs_to(asked, n_tokens)
    if not n_tokens:
        lab.swarm.run(lab.swarm.now + 0.003)
    stages = lab.stages()
    for stage in lost:
        lab.swarm.crash(stages[stage])
    lab.runs_to(asked, n_tokens + 4)
    assert lab.check_kv() == 6
    lab.runs_to(asked, N_TOKENS)
    assert asked.tokens == lab.lone.tokens(N_TOKENS)
    for position, logits in drawn.items():
        assert torch.equal(logits, lab.lone.logits[position]), position
    assert len(drawn) == N_TOKENS
    # In the prompt it depends on how far it was; later nothing but what was lost is computed again.
    n_from_log = sum(peer.n_from_log for peer in lab.swarm.peers.values())
    assert n_from_log or not n_tokens
    assert lab.swarm.run_until(lambda: asked.finished is not None, 10.0)
    assert asked.finished is not None
    assert asked.finished.stats.failovers == 1
