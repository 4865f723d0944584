"""Which of this machine's kernels die, found out in a child process and remembered.

Some processors announce instructions that the system does not let a process use; oneDNN believes
the announcement and the process is killed (SIGILL).  A limit in the environment helps, but only if
it is set before torch is imported.  So the parent of a computing process asks here first; nothing
here imports torch except the child:

    python -m edgeshard_p2p.model.kernel_probe bf16
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import msgspec

from edgeshard_p2p.model import memo

ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
ISA_CAPS = ("", "AVX512_CORE_FP16", "AVX512_CORE_BF16", "AVX512_CORE", "AVX2", "SSE41")
"""Tried in this order; the empty one is no limit."""

_TIMEOUT_S = 120


class Verdict(msgspec.Struct, frozen=True):
    dtype: str
    is_usable: bool
    isa_cap: str = ""
    """What to set ISA_VARIABLE to before torch is imported; empty for nothing."""
    reason: str = ""
    """Where it is not usable: what became of the last try."""

    def environment(self) -> dict[str, str]:
        return {ISA_VARIABLE: self.isa_cap} if self.isa_cap else {}


def probe(dtype: str, state_dir: Path) -> Verdict:
    """The verdict on ``dtype``; takes seconds the first time, and is read from disk afterwards."""
    file = state_dir / f"kernels-{dtype}-{machine()}.json"
    verdict = memo.read(file, Verdict)
    if verdict is None:
        verdict = _try_caps(dtype)
        memo.keep(file, verdict)
    return verdict


def _try_caps(dtype: str) -> Verdict:
    reason = ""
    for cap in ISA_CAPS:
        reason = _try(dtype, cap)
        if not reason:
            return Verdict(dtype, True, cap)
    return Verdict(dtype, False, reason=reason)


def _try(dtype: str, cap: str) -> str:
    """Runs the child under one limit; empty when it lived and its numbers were right."""
    environment = {key: value for key, value in os.environ.items() if key != ISA_VARIABLE}
    environment |= {ISA_VARIABLE: cap} if cap else {}
    command = [sys.executable, "-m", __spec__.name, dtype]
    try:
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_TIMEOUT_S} s"
    if child.returncode == 0:
        return ""
    if child.returncode < 0:
        return f"killed by signal {-child.returncode}"
    lines = child.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {child.returncode}"


def machine() -> str:
    """Changes with whatever may change the verdict: processor, system, torch."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        lines = [line for line in text.splitlines() if line.startswith(("model name", "flags"))]
        processor = "".join(sorted(set(lines)))
    except OSError:
        processor = platform.processor()
    parts = [processor, platform.machine(), platform.release(), version("torch")]
    return blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def _child(dtype: str) -> None:
    """Runs each kind of kernel that a forward pass uses, and compares with plain arithmetic."""
    import torch

    from edgeshard_p2p.model.linear import Linear

    torch.manual_seed(0)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    for rows in (1, 2, 16):
        x, weight = torch.randn(rows, 128).to(kind), torch.randn(96, 128).to(kind)
        expected = x.double() @ weight.double().t()
        torch.testing.assert_close(Linear(weight)(x).double(), expected, rtol=0.05, atol=0.2)
        keys = torch.randn(3, 64, 128).to(kind)
        scores = torch.bmm(x.expand(3, rows, 128), keys.transpose(1, 2))
        exact = x.double() @ keys.double().transpose(1, 2)
        torch.testing.assert_close(scores.double(), exact, rtol=0.05, atol=0.2)


if __name__ == "__main__":
    _child(sys.argv[1])
