"""The socket that connects to others: one of several addresses, by number or by name."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

import zmq

from zchunk.system import addresses
from zchunk.transport.base import Arrival, Buffer, Delivery, Link, Received
from zchunk.transport.greeting import Greeting
from zchunk.transport.guard import descriptors
from zchunk.transport.monitor import LINK_EVENTS, close_monitored, next_event
from zchunk.transport.name_lookup import Lookup, name_in
from zchunk.transport.poller import RAW, Edged, has_message
from zchunk.transport.sending import NOW, send_frames

#: Handshakes that fail one after the other, at each address, before it is told: one may fail
#: because the other side was just ended. And they fail at once: a process that hangs, behind
#: a kernel that accepts for it, lets them run into their time.
_STRANGE_AFTER = 4
_AT_ONCE_S = 1.0
#: A name whose number does not answer is looked up again this often.
_LOOK_UP_AGAIN_S = 5.0


class ConnectedSocket(Edged):
    """A DEALER or SUB to one peer. It goes through the peer's addresses until one works,
    and reports its link's state between the messages.

    libzmq knows one of them at a time, and as a number: names are looked up here (name_lookup.py), when
    their turn comes and again when a connection by them is lost."""

    def __init__(self, raw: zmq.Socket[bytes], addresses: Sequence[str], *, encrypts: bool) -> None:
        self.raw = raw
        self.endpoint = ""
        self.link = Link.DOWN
        self._encrypts = encrypts
        self._addresses = deque(addresses)
        #: what libzmq connects to, and what else the address in front may lead to
        self._numbers: deque[str] = deque()
        self._lookup: Lookup | None = None
        self._looked_up_at = 0.0
        #: rung when a look-up is over; (to read from, to write to), for a peer that has a name
        self._bell: tuple[int, int] | None = None
        #: addresses in a row that did not resolve
        self._nameless = 0
        #: handshakes that failed since the last that did not
        self._failed = 0
        #: addresses that answered in another way than we speak
        self._gave_up = 0
        #: of addresses at which handshakes fail
        self._greetings: dict[str, Greeting] = {}
        self._connected_at = 0.0
        #: the descriptor of the latest connection
        self._number: int | None = None
        self._monitor = raw.get_monitor_socket(LINK_EVENTS)
        try:
            if any(name_in(address) for address in addresses):
                self._bell = _new_bell()
            self._connect()
        except BaseException:
            self.close()
            raise

    def pollable(self) -> list[zmq.Socket[bytes] | int]:
        bell = [self._bell[0]] if self._bell is not None else []
        return [self.raw, self._monitor, *bell]

    def receive(self) -> Received | Link | None:
        if self.news != RAW:
            self.news = -1  # as of a bound socket
            if (change := self._link_change() or self._look_up_over()) is not None:
                return change
            self.news = RAW
        if self.is_told or has_message(self.raw):
            self.is_told = False
            try:
                parts = self.raw.recv_multipart(NOW, copy=False)
                return Received([part.buffer for part in parts])
            except zmq.Again:
                pass
        self.news = 0
        return None

    def send(self, frames: Sequence[Buffer], connection: bytes = b"") -> Delivery:
        self.news |= RAW
        try:
            send_frames(self.raw, frames)
        except zmq.Again:
            return Delivery.FULL if self.link is Link.UP else Delivery.GONE
        return Delivery.SENT

    def reject(self, arrival: Arrival) -> None:
        if self._number is not None and (which := descriptors.descriptor(self._number)) is not None:
            descriptors.shut_down(which)

    def close(self) -> None:
        if self._lookup is not None:
            self._lookup.cancel()
        close_monitored(self.raw, self._monitor)
        for fd in self._bell or ():
            os.close(fd)
        self._bell = None

    # -- where to -----------------------------------------------------------------------

    def _connect(self) -> None:
        """To the next address that is one at all; the others are passed over."""
        for _ in range(len(self._addresses)):
            name = name_in(self._addresses[0])
            if name is not None:
                self._look_up(name)
                return
            if self._use([self._addresses[0]]):
                return
            self._addresses.rotate(-1)

    def _use(self, numbers: Sequence[str]) -> bool:
        """Connects to the first of them that is one; whether there is."""
        self._leave()
        for at, number in enumerate(numbers):
            with contextlib.suppress(zmq.ZMQError):
                self.raw.connect(number)
                self._numbers = deque(numbers[at:])
                return True
        return False

    def _leave(self) -> None:
        if self._numbers:
            with contextlib.suppress(zmq.ZMQError):  # ENOENT: libzmq gave it up by itself
                self.raw.disconnect(self._numbers[0])
        self._numbers.clear()

    def _next_address(self) -> None:
        """The present one leads nowhere, for now."""
        if self.link is Link.UP or self._lookup is not None:
            return
        if len(self._numbers) > 1:
            self._use(list(self._numbers)[1:])
        elif len(self._addresses) > 1:
            self._leave()
            self._addresses.rotate(-1)
            self._connect()
        else:
            self._look_up_again()

    def _look_up_again(self) -> None:
        """What has a name may be elsewhere by now. libzmq goes on with the number it has."""
        name = name_in(self._addresses[0])
        if name is not None and time.monotonic() >= self._looked_up_at + _LOOK_UP_AGAIN_S:
            self._look_up(name)

    def _look_up(self, name: str) -> None:
        assert self._bell is not None
        if self._lookup is None:
            self._lookup = Lookup(name, partial(_ring, self._bell[1]))

    def _look_up_over(self) -> Link | None:
        if self._lookup is None or not self._lookup.is_over:
            return None
        assert self._bell is not None
        os.read(self._bell[0], 16)
        lookup, self._lookup, self._looked_up_at = self._lookup, None, time.monotonic()
        port = addresses.parse(self._addresses[0]).port
        found = [addresses.HostPort(number, port).tcp for number in lookup.numbers]
        if self._numbers and (self.link is Link.UP or not found):
            return None  # it is connected, or the name server is away: what was known is still the best
        if found and self._numbers and self._numbers[0] == found[0]:
            self._numbers = deque(found)  # libzmq is at it
            return None
        if found and self._use(found):
            self._nameless = 0
            return None
        self._nameless += 1
        if self._nameless >= len(self._addresses):
            return Link.NAMELESS
        self._addresses.rotate(-1)
        self._connect()
        return None

    # -- what becomes of it ---------------------------------------------------------------

    def _link_change(self) -> Link | None:
        while (message := next_event(self._monitor)) is not None:
            change = self._changed(*message)
            if change is not None:
                self.link = change
                return change
        return None

    def _changed(self, event: int, value: int) -> Link | None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failed = self._gave_up = 0
            self._greetings.clear()
            return Link.UP
        if event == zmq.EVENT_DISCONNECTED:
            # That of a handshake which failed is no news.
            if self.link is not Link.UP:
                return None
            self._looked_up_at = 0.0
            self._look_up_again()
            return Link.DOWN
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return Link.REFUSED
        if event == zmq.EVENT_CONNECT_RETRIED:
            self._next_address()
        elif event == zmq.EVENT_CONNECTED:
            self._connected_at, self._number = time.monotonic(), value
        elif time.monotonic() - self._connected_at < _AT_ONCE_S:
            return self._handshake_failed(event, value)
        return None

    def _handshake_failed(self, event: int, value: int) -> Link | None:
        """libzmq does not connect again after an error of the protocol, and does after others:
        one may fail because the other side was just ended."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and self._was_last_address():
            is_mismatch = value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
            return Link.MISMATCH if is_mismatch else Link.STRANGE
        if not self._numbers:
            return None  # of an address that was left
        self._failed += 1
        address = self._numbers[0]
        self._greetings[address] = self._greetings.get(address) or Greeting(address)
        enough = self._failed >= _STRANGE_AFTER * len(self._addresses)
        return self._judged() if enough and self.link is Link.DOWN else None

    def _judged(self) -> Link | None:
        """None while an address may still say what it speaks."""
        if not all(greeting.is_over for greeting in self._greetings.values()):
            return None
        other = "NULL" if self._encrypts else "CURVE"
        said = [greeting.mechanism for greeting in self._greetings.values()]
        return Link.MISMATCH if other in said else Link.STRANGE

    def _was_last_address(self) -> bool:
        """Another address may lead to whom we look for; libzmq has given this one up."""
        self._gave_up += len(self._numbers) <= 1
        if self._gave_up >= len(self._addresses):
            return True
        self._next_address()
        return False


def _ring(fd: int) -> None:
    os.write(fd, b"!")


def _new_bell() -> tuple[int, int]:
    """A pipe, not an inproc socket: it is rung in another thread."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing
