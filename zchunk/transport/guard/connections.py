"""Looks at the connections of this process's bound sockets, and ends those that `rules` names.

libzmq tells neither how many there are nor what it holds of them, so the operating system is
asked: descriptors of this process (`/proc/self/fd`), and TCP_INFO of each. A thread of its own
looks, since a flood keeps the loops busy. Nothing comes in without work of this process, so it
sleeps while there is none (`cpu_timer.py`). Without /proc (not Linux) nothing is limited here.

What may not happen here: a thread that ends before `close`, since then nothing is limited any
more; a connection taken for something else because it could not be looked at.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from zchunk.errors import Busy, ZchunkError
from zchunk.limits.refusal_log import RefusalLog
from zchunk.system import addresses, file_limit
from zchunk.transport.guard import descriptors
from zchunk.transport.guard.cpu_timer import timer
from zchunk.transport.guard.descriptors import Descriptor
from zchunk.transport.guard.rules import MIB, End, Guard, Limits, Seen

log = logging.getLogger(__name__)

_WHY = {
    "connections": "a connection was closed: there are too many",
    "held": "a connection was closed: it sent too much of an unfinished message",
}
_FOLDER = "/proc/self/fd"
#: So many are tried where they cannot be listed.
_NUMBERS = 65_536
_MEMORY = "/proc/self/statm"
_PAGE = mmap.PAGESIZE
_LOOK_S = 0.025
#: While somebody holds something: what came before that look is little.
_BUSY_LOOK_S = 0.01
#: So often at least all descriptors are listed. In between that is done when their number
#: changed, or the process grew: else who was there is who is there.
_LIST_S = 0.1
_GREW = 4 * MIB
#: A look pauses so many times as long as it took: it takes a small share of a processor.
_PAUSES = 20
#: The share of a processor below which a process is at rest.
_REST = 0.02
#: Of ZMTP and CURVE around a frame, at most.
_FRAME_BYTES = 80
#: tcp_info.tcpi_bytes_received
_INFO_BYTES = 136
_RECEIVED_AT = 128
#: Memory is given back once this many connections went, and not more often than that.
_TRIM_AFTER = 100
_TRIM_S = 5.0


class Delivered:
    """Bytes of messages handed on, by descriptor. One thread adds, another takes."""

    def __init__(self) -> None:
        self._bytes: Counter[int] = Counter()

    def add(self, number: int, frames: int, size: int) -> None:
        self._bytes[number] += size + frames * _FRAME_BYTES

    def take(self) -> Counter[int]:
        taken, self._bytes = self._bytes, Counter()
        return taken


@dataclass(slots=True)
class _Accepted:
    port: int
    which: Descriptor


@dataclass(slots=True)
class _Door:
    guard: Guard
    delivered: Delivered


class _Work:
    """What others than the calling thread have done in this process since the last time."""

    def __init__(self) -> None:
        self._at, self._used = time.monotonic(), self._others()

    def was_little(self) -> bool:
        at, used = time.monotonic(), self._others()
        took, worked = at - self._at, used - self._used
        self._at, self._used = at, used
        return worked < _REST * took

    @staticmethod
    def _others() -> float:
        return time.process_time() - time.thread_time()


class Connections:
    """Of one context's bound sockets."""

    def __init__(self) -> None:
        #: ended by us since the start
        self.ended = 0
        self._doors: dict[int, _Door] = {}
        #: None for a descriptor that is no connection of ours
        self._accepted: dict[tuple[int, int], _Accepted | None] = {}
        self._refusals, self._failures = RefusalLog(), RefusalLog()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        #: when descriptors were listed, how many there were, and the process's memory then
        self._listed_at = 0.0
        self._listed = 0
        self._resident_then = 0
        self._gone = 0
        self._trimmed_at = 0.0

    def watch(self, endpoint: str, limits: Limits) -> Delivered:
        """From now on the connections at `endpoint` (`tcp://host:port`) are looked at."""
        door = _Door(Guard(limits), Delivered())
        self._doors = {**self._doors, addresses.parse(endpoint).port: door}
        share = file_limit.for_connections() // len(self._doors)
        for each in self._doors.values():
            each.guard.at_most(share)
        if self._thread is None and os.path.isdir(_FOLDER):
            self._thread = threading.Thread(target=self._run, name="connections", daemon=True)
            self._thread.start()
        return door.delivered

    def close(self) -> None:
        self._stop.set()
        timer.wake()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        may_sleep, work, pause = timer.claim(), _Work(), _LOOK_S
        while not self._stop.wait(pause):
            began = time.thread_time()
            has_looked = self._try_to_look(time.monotonic())
            # Without trimming: it takes long, and the next look would come too late.
            wished = _BUSY_LOOK_S if self._busy else _LOOK_S
            pause = max(wished, _PAUSES * (time.thread_time() - began))
            if self._gone >= _TRIM_AFTER and time.monotonic() >= self._trimmed_at + _TRIM_S:
                self._trim(time.monotonic())
            at_rest = work.was_little() and has_looked and not self._busy and self._gone < _TRIM_AFTER
            if at_rest and may_sleep:
                self._sleep()
                pause = 0.0
        timer.release()

    def _sleep(self) -> None:
        """Descriptors are listed no sooner for it: a list is worth as much as before."""
        began = time.monotonic()
        timer.wait()
        self._listed_at += time.monotonic() - began

    def _try_to_look(self, now: float) -> bool:
        """Looks again soon where this one failed: descriptors or memory may be short."""
        try:
            self.look(now)
        except Exception as error:  # noqa: BLE001 - see above
            line = self._failures.note(ZchunkError(f"{type(error).__name__}: {error}"), None, now)
            if line is not None:
                log.error("connections could not be checked, trying again: %s", error)
            return False
        return True

    def look(self, now: float) -> None:
        found = self._find(now)
        for port, door in self._doors.items():
            mine = found.get(port, [])
            by_number = door.delivered.take()
            brought = {seen.key: by_number[seen.key[0]] for seen in mine if seen.key[0] in by_number}
            for end in door.guard.look(mine, brought, now):
                self._end(end, now)

    def _end(self, end: End, now: float) -> None:
        accepted = self._accepted[end.key]
        assert accepted is not None
        self.ended += 1  # first: the other side knows as soon as it is shut down
        descriptors.shut_down(accepted.which)
        self._refusals.log(Busy(_WHY[end.why]), end.address, now, log.warning)

    def _trim(self, now: float) -> None:
        """What connections took, glibc keeps for itself otherwise."""
        self._gone, self._trimmed_at = 0, now
        with suppress(AttributeError):
            _libc().malloc_trim(0)

    # -- what the operating system knows ------------------------------------------------

    def _find(self, now: float) -> dict[int, list[Seen]]:
        """The connections at each port."""
        count, resident = os.stat(_FOLDER).st_size, _resident()  # a count of 0 before Linux 6.2
        same = 0 < count == self._listed and now < self._listed_at + _LIST_S
        if same and resident < self._resident_then + _GREW and not self._busy:
            with suppress(OSError, LookupError):
                return self._seen_again()
        self._listed_at, self._listed, self._resident_then = now, count, resident
        return self._list()

    @property
    def _busy(self) -> bool:
        return any(door.guard.busy for door in self._doors.values())

    def _seen_again(self) -> dict[int, list[Seen]]:
        """Raises OSError or LookupError where one of them is gone."""
        found: dict[int, list[Seen]] = {}
        for key, accepted in self._accepted.items():
            if accepted is not None:
                if os.fstat(key[0]).st_ino != key[1]:
                    raise LookupError
                self._add(found, key, accepted)
        return found

    def _list(self) -> dict[int, list[Seen]]:
        before, self._accepted = self._accepted, {}
        found: dict[int, list[Seen]] = {}
        for number in _numbers():
            with suppress(OSError):
                key = (number, os.fstat(number).st_ino)
                accepted = before.pop(key) if key in before else self._identify(number)
                self._accepted[key] = accepted
                if accepted is not None:
                    self._add(found, key, accepted)
        self._gone += sum(accepted is not None for accepted in before.values())
        return found

    def _add(self, found: dict[int, list[Seen]], key: tuple[int, int], accepted: _Accepted) -> None:
        seen = Seen(key, accepted.which.other_end[0], _received(key[0]))
        found.setdefault(accepted.port, []).append(seen)

    def _identify(self, number: int) -> _Accepted | None:
        name = descriptors.own_end(number)
        if name is None or name[1] not in self._doors:
            return None
        which = descriptors.descriptor(number)
        return _Accepted(name[1], which) if which is not None else None


def _numbers() -> Iterable[int]:
    """Of this process's descriptors; where there is none left to list them with, all there may be."""
    try:
        return map(int, os.listdir(_FOLDER))
    except OSError as error:
        if not file_limit.is_want(error):
            raise
        return range(min(_NUMBERS, file_limit.limit() or _NUMBERS))


def _received(number: int) -> int:
    """Bytes that came by this connection, as TCP_INFO has it; 0 where it is none."""
    info, size = ctypes.create_string_buffer(_INFO_BYTES), ctypes.c_uint32(_INFO_BYTES)
    failed = _libc().getsockopt(number, socket.IPPROTO_TCP, socket.TCP_INFO, info, ctypes.byref(size))
    if failed or size.value < _INFO_BYTES:
        return 0
    return int(struct.unpack_from("<Q", info, _RECEIVED_AT)[0])


@cache
def _libc() -> ctypes.CDLL:
    """Where connections are looked at: those that only connect do without, and other systems."""
    return ctypes.CDLL(None)


def _resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(os.pread(_memory(), 128, 0).split()[1]) * _PAGE


@cache
def _memory() -> int:
    """A descriptor that stays open."""
    return os.open(_MEMORY, os.O_RDONLY | os.O_CLOEXEC)
