"""The options that our ZeroMQ sockets have: limits, heartbeats, CURVE.

What may not happen here: an unlimited frame; a socket under CURVE that asks no gate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import zmq

from zchunk.system.file_limit import is_want
from zchunk.system.os_errors import as_ours
from zchunk.transport.base import SocketOptions
from zchunk.transport.guard.rules import Limits
from zchunk.transport.keys import CurveClient, CurveServer

#: A cable that was pulled is noticed by whoever connects within interval and timeout, by the other
#: side within the last. Each costs both sides a wake-up or two.
_HEARTBEAT_INTERVAL_MS = 1000
_HEARTBEAT_TIMEOUT_MS = 1500
_HEARTBEAT_TTL_MS = 2000
_CONNECT_TIMEOUT_MS = 400
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 500
_HANDSHAKE_MS = 3000


#: What CURVE adds to a frame: its command, flags, nonce and authenticator.
_CURVE_BYTES = 64
#: In plain transport, of a connection that was accepted. By a window that grows as the system
#: likes, a gigabyte a second comes in on loopback, and with it much between two looks at what a
#: connection holds. This is 1 Gbit/s over 1 ms to and fro.
PLAIN_WINDOW_BYTES = 128 * 1024


def set_options(
    raw: zmq.Socket[bytes], options: SocketOptions, curve: CurveServer | CurveClient | None
) -> None:
    _set_curve(raw, curve)
    raw.setsockopt(zmq.LINGER, options.linger_ms)
    raw.setsockopt(zmq.MAXMSGSIZE, options.max_frame_bytes + (_CURVE_BYTES if curve else 0))
    raw.setsockopt(zmq.SNDHWM, options.send_mark)
    raw.setsockopt(zmq.RCVHWM, options.receive_mark)
    raw.setsockopt(zmq.IPV6, 1)
    raw.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS)
    raw.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    raw.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    raw.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Strangers may have taken what was counted as free: raises StorageUnavailable then."""
    try:
        yield
    except (OSError, zmq.ZMQError) as error:
        refusal = OSError(error.errno, str(error.strerror))
        if not is_want(refusal):
            raise
        raise as_ours(refusal) from error


def limits(options: SocketOptions) -> Limits:
    """A node's senders, whose address may be one, have what it admits on the way to it, however
    busy its loop is."""
    usual = Limits()
    return Limits(
        held_of_an_address=max(usual.held_of_an_address, options.receive_bytes),
        held_by_all=max(usual.held_by_all, 2 * options.receive_bytes),
    )


def set_heartbeats(raw: zmq.Socket[bytes], options: SocketOptions) -> None:
    """Of a socket that connects to ask, and of no other: libzmq (4.3.5) aborts the process when it is time
    for a heartbeat on a connection that was lost with more of it unread than the mark. So whoever
    sends much, reads nothing and goes would end a server that sends heartbeats. What it knows of
    a cable it knows by those of the other side: they say how long to wait for the next."""
    if options.heartbeats:
        raw.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_INTERVAL_MS)
        raw.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        raw.setsockopt(zmq.HEARTBEAT_TTL, _HEARTBEAT_TTL_MS)


def _set_curve(raw: zmq.Socket[bytes], curve: CurveServer | CurveClient | None) -> None:
    if curve is None:
        return
    raw.setsockopt(zmq.CURVE_PUBLICKEY, curve.key.public)
    raw.setsockopt(zmq.CURVE_SECRETKEY, curve.key.secret)
    if isinstance(curve, CurveClient):
        raw.setsockopt(zmq.CURVE_SERVERKEY, curve.server_key)
        return
    raw.setsockopt(zmq.CURVE_SERVER, 1)


def ask_gate(raw: zmq.Socket[bytes], domain: str) -> None:
    raw.setsockopt_string(zmq.ZAP_DOMAIN, domain)
    # Else a socket lets in any key when nobody answers at the gate.
    raw.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
