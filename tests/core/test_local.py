"""This peer's own record: what it asks for, once each, and when it may be planned."""

from __future__ import annotations

from dataclasses import replace as replaced

from msgspec.structs import replace

from edgeshard_p2p.core.effects import MeasureDevice, OpenModel
from edgeshard_p2p.core.events import DeviceMeasured, ModelOpened
from edgeshard_p2p.core.gray import Slowness
from edgeshard_p2p.core.local import LocalDevice
from edgeshard_p2p.core.records import UnitTimes
from tests.core.parts import MODEL, TIMING, WORKLOAD

TIMES = (UnitTimes(1, 10, 200, 300),)


def measured(dtype: str = "fp32") -> DeviceMeasured:
    return DeviceMeasured(MODEL.digest, dtype, "exact", TIMES, TIMES)


def opened() -> LocalDevice:
    local = LocalDevice(True, 1000, Slowness(TIMING))
    local.on_opened(ModelOpened(MODEL.digest, MODEL))
    return local


def test_model_is_opened_and_then_measured_each_once() -> None:
    local = LocalDevice(True, 1000, Slowness(TIMING))
    assert local.wants(None, None) == []
    assert local.wants(MODEL, WORKLOAD) == [OpenModel(MODEL.digest)]
    assert local.wants(MODEL, WORKLOAD) == []
    local.on_opened(ModelOpened(MODEL.digest, MODEL))
    assert local.wants(MODEL, WORKLOAD) == [MeasureDevice("fp32", "exact", 4)]
    assert local.wants(MODEL, WORKLOAD) == []
    assert local.is_measuring()
    local.on_measured(measured())
    assert not local.is_measuring()


def test_measured_peer_is_eligible_and_another_dtype_is_measured_anew() -> None:
    local = opened()
    local.wants(MODEL, WORKLOAD)
    assert local.record(MODEL, WORKLOAD, "").note == "it is measuring itself"
    local.on_measured(measured())
    record = local.record(MODEL, WORKLOAD, "")
    assert (record.eligible, record.note, record.decode) == (True, "", TIMES)
    bf16 = replace(WORKLOAD, dtype="bf16")
    assert local.wants(MODEL, bf16) == [MeasureDevice("bf16", "exact", 4)]
    record = local.record(MODEL, bf16, "")
    assert (record.eligible, record.decode) == (False, ())


def test_what_else_keeps_it_out_is_said() -> None:
    local = opened()
    local.wants(MODEL, WORKLOAD)
    local.on_measured(measured())
    record = local.record(MODEL, WORKLOAD, "it has just started")
    assert (record.eligible, record.note, record.decode) == (False, "it has just started", TIMES)


def test_missing_files_are_said_and_asked_for_once() -> None:
    local = LocalDevice(True, 1000, Slowness(TIMING))
    local.wants(MODEL, WORKLOAD)
    local.on_opened(ModelOpened(MODEL.digest, None, "no such model here"))
    assert local.wants(MODEL, WORKLOAD) == []
    record = local.record(MODEL, WORKLOAD, "")
    assert (record.model, record.eligible, record.note) == (None, False, "no such model here")
    other = replace(MODEL, digest="1" * 64)
    assert local.wants(other, WORKLOAD) == [OpenModel(other.digest)]


def test_failed_measurement_is_said() -> None:
    local = opened()
    local.wants(MODEL, WORKLOAD)
    local.on_measure_failed("out of memory")
    assert not local.is_measuring()
    record = local.record(MODEL, WORKLOAD, "")
    assert (record.eligible, record.note) == (False, "out of memory")


def test_what_passes_take_is_told_with_the_times() -> None:
    local = opened()
    local.wants(MODEL, WORKLOAD)
    assert local.record(MODEL, WORKLOAD, "").pass_us == 0
    local.on_measured(replaced(measured(), pass_us=900, rested_us=70))
    record = local.record(MODEL, WORKLOAD, "")
    assert (record.pass_us, record.rested_us) == (900, 70)
    local.slowness.percent = 250  # All of the device is slower; its slices are as long.
    record = local.record(MODEL, WORKLOAD, "")
    assert (record.pass_us, record.rested_us) == (2_250, 70)


def test_what_was_learned_in_this_life_outdoes_what_was_kept() -> None:
    local = opened()
    local.beside.us = 500
    local.wants(MODEL, WORKLOAD)
    local.on_measured(replaced(measured(), pass_us=900))
    assert local.record(MODEL, WORKLOAD, "").pass_us == 500
