"""What libzmq tells of a socket's connections."""

from __future__ import annotations

from itertools import count

import zmq

_numbers = count(1)


def monitor_of(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """The socket that such events come on.

    NOTE: under a name of its own.  pyzmq would name it after the socket's descriptor, which comes
    again as soon as that is closed, while the name is given up a moment later.
    """
    return socket.get_monitor_socket(events, f"inproc://monitor-{next(_numbers)}")
