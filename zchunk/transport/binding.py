"""Binds a socket to an address of this PC: a number, a name or an interface, in both families."""

from __future__ import annotations

import socket as os_socket

import zmq

from zchunk.errors import InvalidUsage
from zchunk.system import addresses
from zchunk.system.file_limit import is_want
from zchunk.transport import name_lookup
from zchunk.transport.name_lookup import name_in


def bind_at(raw: zmq.Socket[bytes], address: str) -> str:
    """Bind and return the endpoint with the port that was taken."""
    try:
        number = _number_to_bind(address)
        if _is_ipv4(number):
            raw.setsockopt(zmq.IPV6, 0)  # else the endpoint reads ::ffff:127.0.0.1
        _bind_dual_stack(raw, number)
    except zmq.ZMQError as error:
        if is_want(OSError(error.errno, "")):
            raise
        hint = "another program uses it" if error.errno == zmq.EADDRINUSE else str(error.strerror)
        raise InvalidUsage(f"cannot listen on {address}: {hint}; choose another with --bind") from None
    return raw.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _number_to_bind(address: str) -> str:
    """libzmq knows interfaces by their names too, and looks up no other. Raises InvalidUsage."""
    name = name_in(address)
    if name is None or any(name == interface for _, interface in os_socket.if_nameindex()):
        return address
    numbers = name_lookup.look_up(name)
    if not numbers:
        raise InvalidUsage(
            f"cannot listen on {address}: the name {name} does not resolve on this PC; use an IP address or *"
        )
    return addresses.HostPort(numbers[0], addresses.parse(address).port).tcp


def _is_ipv4(address: str) -> bool:
    host = address.removeprefix("tcp://").rpartition(":")[0]
    return host.replace(".", "").isdigit()


def _bind_dual_stack(raw: zmq.Socket[bytes], address: str) -> None:
    try:
        raw.bind(address)
    except zmq.ZMQError as error:
        if "//*:" not in address or error.errno == zmq.EADDRINUSE:
            raise
        # A PC with IPv6 switched off: the wildcard is then IPv4's.
        raw.setsockopt(zmq.IPV6, 0)
        raw.bind(address)
