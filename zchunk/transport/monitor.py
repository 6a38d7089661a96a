"""What libzmq tells of the connections of a socket."""

from __future__ import annotations

import struct

import zmq

from zchunk.transport.poller import has_message

LINK_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def next_event(monitor: zmq.Socket[bytes]) -> tuple[int, int] | None:
    """(event, value) of a socket's monitor that has come already. (pyzmq's own reader brings
    asyncio and ssl into each process.)"""
    if not has_message(monitor):
        return None
    head, _address = monitor.recv_multipart(zmq.DONTWAIT)
    event, value = struct.unpack("=Hi", head)
    return event, value


def close_monitored(raw: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
    # The monitor first: its unread events would outlive the socket.
    raw.disable_monitor()
    monitor.close(0)
    raw.close()
