"""This peer's own record: which model it has, how fast it is, whether it may be planned.

Knows nothing of other peers' figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeshard_p2p.core.beside import Beside
from edgeshard_p2p.core.effects import Effect, Log, MeasureDevice, OpenModel
from edgeshard_p2p.core.events import DeviceMeasured, ModelOpened
from edgeshard_p2p.core.gray import Slowness
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import Workload
from edgeshard_p2p.core.records import DeviceRecord


@dataclass(slots=True)
class LocalDevice:
    is_source: bool
    budget_bytes: int
    slowness: Slowness
    beside: Beside = field(default_factory=Beside)
    opened: ModelOpened | None = None
    measured: DeviceMeasured | None = None
    trouble: str = ""
    """Why opening or measuring failed, in words."""
    _asked_model: str | None = None
    _asked_measure: tuple[str, str, str] | None = None

    def wants(self, model: ModelSpec | None, workload: Workload | None) -> list[Effect]:
        """Open the swarm's model, then measure for its dtype and numerics; each asked once."""
        if model is None or workload is None:
            return []
        if not self._has(model):
            if self._asked_model == model.digest:
                return []
            self._asked_model = model.digest
            return [OpenModel(model.digest)]
        wanted = (model.digest, workload.dtype, workload.numerics)
        if self._asked_measure == wanted:
            return []
        self._asked_measure = wanted
        return [MeasureDevice(workload.dtype, workload.numerics, workload.tile_rows)]

    def _has(self, model: ModelSpec) -> bool:
        opened = self.opened
        return opened is not None and opened.digest == model.digest and opened.spec is not None

    def on_opened(self, event: ModelOpened) -> list[Effect]:
        self.opened = event
        self._asked_model = event.digest
        self.trouble = event.detail if event.spec is None else ""
        return [Log(self.trouble, "warning")] if self.trouble else []

    def on_measured(self, event: DeviceMeasured) -> list[Effect]:
        self.measured = event
        self.beside.us = self.beside.us or event.pass_us
        if self.opened is None or self.opened.spec is not None:
            self.trouble = ""
        block_ms = event.decode[0].block_us / 1e3
        return [Log(f"measured: one token takes {block_ms:.2f} ms per block here")]

    def on_measure_failed(self, detail: str) -> list[Effect]:
        if self.opened is None or self.opened.spec is not None:
            self.trouble = detail  # Else it says why there is nothing to measure.
        return [Log(f"measuring this device failed: {detail}", "error")]

    def is_measuring(self) -> bool:
        if self._asked_measure is None or self.trouble:
            return False
        m = self.measured
        return m is None or (m.digest, m.dtype, m.numerics) != self._asked_measure

    def is_measured_for(self, model: ModelSpec, workload: Workload) -> bool:
        wanted = (model.digest, workload.dtype, workload.numerics)
        m = self.measured
        return m is not None and (m.digest, m.dtype, m.numerics) == wanted

    def record(
        self, model: ModelSpec | None, workload: Workload | None, unsettled: str
    ) -> DeviceRecord:
        """``unsettled`` says what else keeps this peer from being planned, or nothing."""
        has_model = model is not None and self._has(model)
        is_measured = (
            model is not None and workload is not None and self.is_measured_for(model, workload)
        )
        note = self.trouble or unsettled
        if not note and has_model and not is_measured:
            note = "it is measuring itself"
        measured = self.measured if is_measured else None
        return DeviceRecord(
            is_source=self.is_source,
            budget_bytes=self.budget_bytes,
            model=model.digest if model is not None and has_model else None,
            eligible=is_measured and has_model and not unsettled,
            note=note[:300],
            dtype=measured.dtype if measured else "",
            numerics=measured.numerics if measured else "",
            decode=self.slowness.of(measured.decode) if measured else (),
            prefill=self.slowness.of(measured.prefill) if measured else (),
            pass_us=self.slowness.us(self.beside.us) if measured else 0,
            rested_us=measured.rested_us if measured else 0,
        )
