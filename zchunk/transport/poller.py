"""What a loop waits on: libzmq's sockets, descriptors of the system, a wake-up from other threads.

libzmq's sockets are waited on by their descriptors. (Its own poll asks each of them what it has,
twice a turn, and a process at rest does little else.) Such a descriptor tells of what comes until
its socket is used next, be it to send: what is there by then is found by asking only.

What may not happen here: a wait while one of the sockets has something.
"""

from __future__ import annotations

import contextlib
import select
import socket as os_socket
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import zmq

from zchunk.transport.base import Socket
from zchunk.transport.guard.cpu_timer import timer

_POLLIN = int(zmq.POLLIN)
#: In `Edged.news`: the first of `pollable`.
RAW = 1
#: The system takes no more at a time; whoever wakes up for nothing waits again.
_LONGEST_MS = 2**31 - 1


def has_message(raw: zmq.Socket[bytes]) -> bool:
    """To ask costs a third of the exception that there is none, and less than to read an option."""
    return bool(zmq.zmq_poll([(raw, _POLLIN)], 0))


@runtime_checkable
class Pollable(Protocol):
    """A socket of a loop that can be waited on."""

    def pollable(self) -> Sequence[zmq.Socket[bytes] | int]:
        """libzmq's sockets, and descriptors that are ready as long as something is there."""


class Edged:
    """A `Pollable` over sockets of libzmq's."""

    #: One bit for each of `pollable`: it may have something. Whoever uses one of them sets its bit,
    #: and clears it when it was asked and has nothing any more.
    news = -1
    #: The first of them has something, as far as is known: to receive it is to ask.
    is_told = False

    def pollable(self) -> Sequence[zmq.Socket[bytes] | int]:
        raise NotImplementedError

    def has_news(self) -> bool:
        """Whether one of them has something that its descriptor does not tell of."""
        for at, raw in enumerate(self.pollable()):
            if self.news >> at & 1 and isinstance(raw, zmq.Socket) and has_message(raw):
                return True
        self.news = 0
        return False


class ZmqPoller:
    """The wake-up is a pair of plain sockets and not an inproc one: any thread may wake,
    and a ZeroMQ socket must stay with one thread."""

    def __init__(self) -> None:
        # Of the same use here, and the latter is everywhere.
        self._poller = select.poll() if hasattr(select, "poll") else zmq.Poller()
        #: descriptor -> whose it is, and its bit
        self._owner: dict[int, tuple[Socket, int]] = {}
        self._edged: dict[Edged, Socket] = {}
        self._wake_receiver, self._wake_sender = os_socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._poller.register(self._wake_receiver.fileno(), _POLLIN)

    def register(self, socket: Socket) -> None:
        for at, fd in enumerate(_descriptors(socket)):
            self._owner[fd] = (socket, 1 << at)
            self._poller.register(fd, _POLLIN)
        if isinstance(socket, Edged):
            self._edged[socket] = socket

    def unregister(self, socket: Socket) -> None:
        for fd in _descriptors(socket):
            del self._owner[fd]
            self._poller.unregister(fd)
        if isinstance(socket, Edged):
            del self._edged[socket]

    def wait(self, timeout_s: float | None) -> list[Socket]:
        found: dict[Socket, None] = {}
        for edged, socket in self._edged.items():
            if edged.news and edged.has_news():
                found[socket] = None
        # Rounded up: waking a millisecond early would find the deadline not yet due.
        timeout = None if timeout_s is None else int(timeout_s * 1000) + 1 if timeout_s > 0 else 0
        timeout = None if timeout is None else min(timeout, _LONGEST_MS)
        ready = self._poller.poll(0 if found else timeout)
        timer.turned()
        for fd, _ in ready:
            owner = self._owner.get(fd)
            if owner is None:
                self._drain_wakes()
                continue
            socket, bit = owner
            if isinstance(socket, Edged):
                socket.news |= bit
                socket.is_told |= bit == RAW
            found[socket] = None
        return list(found)

    def wake(self) -> None:
        # A full pipe means that a wake-up is pending anyway.
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_sender.send(b"!")

    def close(self) -> None:
        self._wake_sender.close()
        self._wake_receiver.close()

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_receiver.recv(4096):
                pass


def _descriptors(socket: Socket) -> list[int]:
    assert isinstance(socket, Pollable)
    return [raw if isinstance(raw, int) else int(raw.get(zmq.FD)) for raw in socket.pollable()]
