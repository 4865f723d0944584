"""The paper's devices and links, scaled so that one machine can stand in for them.

What is kept is ratios.  The devices' whole-model times stand to each other as in the paper; a hop
of one token takes as large a part of the slow device's token as it does there; and of the model's
blocks a device can hold the same part.

    scale      = whole-model time of the emulated AGX Orin / 140.34 ms
    rate       = the paper's * (bytes of a row here / 16 KiB) / scale
    delay      = 2.1 ms * scale, the time per message of the authors' code
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import BYTES_PER_MBIT, Link, Snapshot, Workload, kv_bytes, weight_bytes
from edgeshard_p2p.core.records import UnitTimes

AGX_MS = 140.34
"""The paper's Edge-Solo, Llama 2 7B in fp32 on one AGX Orin."""
_AGX_PROFILE_MS, _NX_PROFILE_MS, _RTX_PROFILE_MS = 173.97, 198.55, 26.07
"""The authors' published times per layer, added up."""
HEAD_GIB, BLOCK_GIB, BLOCKS = 0.488, 0.754, 32
"""Of the authors' code."""
ROW_BYTES = 16_384
"""One token's hidden state of Llama 2 7B in fp32."""
PER_MESSAGE_MS = 2.1
OTHER_MBPS = 50.0
"""Between all devices but the source and the cloud."""
HEADER_BYTES = 256
"""Of TCP and of encryption, for a message and its answer."""
RATES_MBPS = (1.0, 5.0, 10.0, 25.0, 50.0)
CLOUD = "rtx3090"


class Kind(Struct, frozen=True):
    """A class of the paper's devices."""

    name: str
    whole_ms: float
    """Of one token through the whole of Llama 2 7B."""
    usable_gib: float


AGX = Kind("AGX Orin", AGX_MS, 29.0)
NX = Kind("Orin NX", _NX_PROFILE_MS * AGX_MS / _AGX_PROFILE_MS, 14.0)
RTX = Kind("RTX 3090", _RTX_PROFILE_MS, 22.0)

DEVICES = {"agx-1": AGX, "agx-2": AGX, "nx": NX, CLOUD: RTX}
"""Of the paper's twelve, two and one, so many as fit on two cores."""
SOURCES = {"fast": "agx-1", "slow": "nx"}
"""Where prompts come in: the faster and the slower of the edge devices."""


def cores_of(kind: Kind, fastest: float) -> float:
    """The share of a core that a device has, where the fastest kind has ``fastest``."""
    return fastest * RTX.whole_ms / kind.whole_ms


def calibrated(rtx_us: int, agx_us: int, agx_cores: float, available: float) -> dict[str, float]:
    """The shares of the slower kinds, by their names, by which their whole-model times stand to
    that of the fastest as in the paper, when one with ``agx_cores`` took ``agx_us``; less for each
    where they would be more than ``available`` together."""
    agx = agx_cores * agx_us / (rtx_us * AGX.whole_ms / RTX.whole_ms)
    cores = {AGX.name: agx, NX.name: agx * AGX.whole_ms / NX.whole_ms}
    together = sum(cores.get(kind.name, 0.0) for kind in DEVICES.values())
    by = min(1.0, available / together)
    return {name: int(1000 * share * by) / 1000 for name, share in cores.items()}


def blocks_of(kind: Kind, n_blocks: int) -> int:
    """How many blocks a device can hold beside the head, as large a part as in the paper."""
    held = min(BLOCKS, int((kind.usable_gib - HEAD_GIB) / BLOCK_GIB))
    return round(n_blocks * held / BLOCKS)


def memory_bytes(kind: Kind, model: ModelSpec, workload: Workload) -> int:
    """What a device has to plan with: the embedding or the head, its blocks, and the KV of the
    workload's sequences in these.  What holds every block holds the whole model."""
    n_blocks = blocks_of(kind, model.n_blocks)
    blocks = UnitRange(1, 1 + n_blocks)
    ends = [UnitRange(0, 1), UnitRange(model.head_unit, model.n_units)]
    of_ends = [weight_bytes(model, end, workload.dtype, False) for end in ends]
    beside = sum(of_ends) if n_blocks == model.n_blocks else max(of_ends)
    of_blocks = weight_bytes(model, blocks, workload.dtype, False)
    return beside + of_blocks + kv_bytes(model, blocks, workload, workload.batch)


def slowed(figures: tuple[UnitTimes, ...], by: float) -> tuple[UnitTimes, ...]:
    """The times of a device that has so many times less of a core."""
    return tuple(
        replace(
            times,
            embedding_us=round(times.embedding_us * by),
            block_us=round(times.block_us * by),
            head_us=round(times.head_us * by),
        )
        for times in figures
    )


def scale_of(agx_us: int) -> float:
    """How many times as long as the paper's the emulated AGX Orin takes for a token."""
    return agx_us / 1e3 / AGX_MS


def bytes_per_s(paper_mbps: float, row_bytes: int, scale: float) -> int:
    return max(1, round(paper_mbps * BYTES_PER_MBIT * row_bytes / ROW_BYTES / scale))


def links(source: str, mbps: float, row_bytes: int, scale: float) -> dict[tuple[str, str], Link]:
    """By ordered pair, with ``mbps`` of the paper's between source and cloud."""
    found = {}
    for a in DEVICES:
        for b in DEVICES:
            if a != b:
                rate = mbps if {a, b} == {source, CLOUD} else OTHER_MBPS
                delay_us = round(PER_MESSAGE_MS * scale * 1e3)
                found[a, b] = Link(a, b, delay_us, 0, bytes_per_s(rate, row_bytes, scale))
    return found


def whole_us(snapshot: Snapshot) -> dict[str, int]:
    """By device, of one token through all units."""
    return {device.peer.name: sum(device.unit_us) for device in snapshot.devices}


def unlearned(snapshot: Snapshot) -> list[str]:
    """Devices that do not know yet what a pass takes of them besides its units."""
    return [device.peer.name for device in snapshot.devices if not device.pass_us]


def slower(snapshot: Snapshot, measured: dict[str, int]) -> str:
    """Who publishes other times than it measured, in words; empty: nobody."""
    known = whole_us(snapshot)
    off = {name: known[name] / us for name, us in measured.items() if known.get(name, us) != us}
    return ", ".join(f"{name} counts as {by:.1f} times as slow" for name, by in off.items())


def unsettled(
    snapshot: Snapshot, wanted: dict[tuple[str, str], Link], tolerance: float
) -> list[str]:
    """Links whose rate or delay the swarm does not know yet, as measured by its peers."""
    known = {(link.a, link.b): link for link in snapshot.links}
    return [
        f"{a} -> {b}"
        for (a, b), link in wanted.items()
        if (a, b) not in known
        or abs(known[a, b].bytes_per_s - link.bytes_per_s) > tolerance * link.bytes_per_s
        or abs(known[a, b].delay_us - link.delay_us) > _delay_tolerance_us(link)
    ]


def _delay_tolerance_us(link: Link) -> int:
    """What peers themselves take for a message, and headers that no plan counts, are in what they
    measure."""
    return link.delay_us // 2 + link.occupancy_us(HEADER_BYTES)
