"""Monitors of sockets that come and go."""

from __future__ import annotations

import zmq

from edgeshard_p2p.net.monitor import monitor_of


def test_no_monitor_is_in_the_way_of_the_next_ones() -> None:
    with zmq.Context[zmq.Socket[bytes]]() as context:
        for _ in range(200):
            socket = context.socket(zmq.DEALER)
            monitor = monitor_of(socket, zmq.EVENT_CONNECTED)
            monitor.close(linger=0)
            socket.close(linger=0)
