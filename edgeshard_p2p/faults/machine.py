"""What this machine has for peers that are started here: ports, models, and how much of its memory
each of them takes before any layer."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.library import DEMO_NAME, cache_dir, fetch_demo_model, resolve

EDGESHARD = (sys.executable, "-m", "edgeshard_p2p")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
FIRST_PORTS = (12_000, 30_000)
"""Below those that systems take for outgoing connections: one of these could be in the way by the
time a peer binds."""


def free_ports() -> Iterator[int]:
    """The first ones of pairs of neighbouring ports that nobody has."""
    low, high = FIRST_PORTS
    begin = random.SystemRandom().randrange(low, high, 2)
    for port in (*range(begin, high, 2), *range(low, begin, 2)):
        if _is_free(port) and _is_free(port + 1):
            yield port


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


def model_path(name: str, say: Callable[[str], None]) -> str:
    """Of a model that the operator names; the demo's is fetched where it is missing."""
    try:
        return str((fetch_demo_model(say) if name == DEMO_NAME else resolve(name)).path)
    except ModelError as error:
        raise FaultError(str(error), 1 if name == DEMO_NAME else 2) from None


def bare_mib(model: str) -> int:
    """What a peer takes here before any layer: it says so when it is given too little.  Found once
    for an installation."""
    known = cache_dir() / "bare_mib"
    installed = Path(sys.prefix, "pyvenv.cfg")
    since = installed.stat().st_mtime if installed.exists() else 0.0
    if known.exists() and known.stat().st_mtime > since:
        return int(known.read_text())
    with tempfile.TemporaryDirectory() as state_dir:
        command = [*EDGESHARD, "peer", "--memory", "1MiB", "--model", model]
        command += ["--state-dir", state_dir, "--no-mdns"]
        environment = os.environ | ONE_THREAD
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    match = re.search(r"needs (\d+) MiB before any layer", done.stderr)
    if match is None:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise FaultError(f"a peer does not start here: {last.removeprefix('edgeshard: ')}")
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(match[1])
    return int(match[1])
