"""Input that cannot be read, by the connection that it came on.

CURVE keys follow from the shared secret, so they tell swarms apart and not devices: what can be
told apart, and refused, is a connection.  Frames come by PUSH and PULL, which have no way to tell
whose they are; they are only counted.
"""

from __future__ import annotations

from collections import OrderedDict

OFFENCES_MAX = 32
"""From then on nothing of this connection is read."""
TRACKED_MAX = 1_024
"""Connections with an offence; beyond, the one that offended longest ago is forgotten."""


class Offences:
    def __init__(self) -> None:
        self._by_connection: OrderedDict[bytes, int] = OrderedDict()

    def is_refused(self, connection: bytes) -> bool:
        return self._by_connection.get(connection, 0) >= OFFENCES_MAX

    def note(self, connection: bytes) -> bool:
        """One more; True when with it the connection is refused."""
        n = self._by_connection.pop(connection, 0) + 1
        self._by_connection[connection] = n
        if len(self._by_connection) > TRACKED_MAX:
            self._by_connection.popitem(last=False)
        return n == OFFENCES_MAX
