"""Whoever has devices emulated may be killed, and then cannot put anything right.  A process of its
own outlives it: once its stdin ends, it ends and removes what bears that run's name.

    processes             that have it in their environment, with what they started
    control groups        and whatever is in them
    network namespaces
    a directory

After a run that has put right everything itself there is nothing of these.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psutil

from edgeshard_p2p.control_groups import GroupError, remove_named

RUN = "EDGESHARD_RUN"
"""In the environment of all that belongs to a run: its name."""
TIMEOUT_S = 20.0


_RUNS = count(1)


@contextmanager
def janitor(directory: Path) -> Iterator[str]:
    """For as long as this lasts, and after it once.  Gives the name of a run, which no other one
    has, of this process or of others; with a hyphen after it, namespaces and groups begin so."""
    run = f"edgeshard-{os.getpid()}-{next(_RUNS)}"
    process = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, run, str(directory)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # A terminal's Ctrl-C is not for it.
    )
    try:
        yield run
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def sweep(name: str, directory: Path) -> None:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(RUN) == name:
                process.kill()
    with suppress(GroupError):
        remove_named(f"{name}-")
    named = Path("/run/netns")
    for namespace in named.glob(f"{name}-*") if named.exists() else ():
        subprocess.run(["ip", "netns", "del", namespace.name], timeout=TIMEOUT_S, check=False)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.read()
    sweep(sys.argv[1], Path(sys.argv[2]))
