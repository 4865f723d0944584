"""Before torch is imported: which kernels of this machine die, and the limits that save them.

NOTE: must be imported, and ``prepare`` called, before anything that imports torch.
"""

from __future__ import annotations

import logging
import os

from edgeshard_p2p.core.model_spec import DTYPE_BYTES
from edgeshard_p2p.model import kernel_probe, library

log = logging.getLogger("edgeshard")


def prepare() -> dict[str, str]:
    """Set this process's limits; the dtypes that cannot be computed here, and why.

    Takes seconds the first time on a machine, for the verdicts are found in child processes."""
    directory = library.cache_dir() / "kernels"
    if not directory.exists():
        log.info("trying this machine's kernels, once (a few seconds)")
    unusable: dict[str, str] = {}
    for dtype in sorted(DTYPE_BYTES):
        verdict = kernel_probe.probe(dtype, directory)
        os.environ.update(verdict.environment())
        if not verdict.is_usable:
            unusable[dtype] = verdict.reason
            log.warning("this machine cannot compute in %s: %s", dtype, verdict.reason)
    return unusable
