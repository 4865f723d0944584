"""A request to end that leaves time to put right what was begun."""

from __future__ import annotations

import signal
from typing import NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def end_on_term() -> None:
    """SIGTERM as Ctrl-C, and either only once, for the whole of this process: a second one would
    end what puts things right."""

    def end(*_: object) -> NoReturn:
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in NUMBERS:
        signal.signal(number, end)
