"""A request to end that leaves time to put right what was begun."""

from __future__ import annotations

import signal
from typing import NoReturn


def end_on_term() -> None:
    """SIGTERM as Ctrl-C, once, for the whole of this process."""

    def end(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
