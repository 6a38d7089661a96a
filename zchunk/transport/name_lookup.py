"""Numbers of host names: looked up in threads of our own, with a limit.

libzmq looks names up in its I/O threads, where a name server that does not answer holds up all
connections. So it is given numbers only. A look-up that hangs cannot be ended: its thread stays
until the system gives up, and who asks for the same name meanwhile waits for that one.

What may not happen here: a caller that waits; a thread for each question about the same name;
`told` called after `Lookup.cancel`.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable

from zchunk.errors import InvalidUsage
from zchunk.system import addresses

log = logging.getLogger(__name__)

#: A name without an answer after this is that of nobody who can be reached.
LIMIT_S = 3.0
#: What fails takes so long at least, since whoever asks would ask again at once.
_PAUSE_S = 1.0
#: Look-ups that hang at one time; further ones fail.
_MOST = 64

#: The one place where the system is asked.
getaddrinfo = socket.getaddrinfo


class _Query:
    """A thread that asks the system; it may hang."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.numbers: tuple[str, ...] = ()
        self.done = threading.Event()

    def run(self) -> None:
        try:
            found = getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
            self.numbers = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
        except (OSError, UnicodeError) as error:
            log.info("the name %s does not resolve: %s", self._host, error)
        finally:
            with _lock:
                del _running[self._host]
            self.done.set()


_lock = threading.Lock()
#: host -> who asks for it now
_running: dict[str, _Query] = {}


class Lookup:
    """One question, answered in a thread of its own: then `told` is called there, once."""

    def __init__(self, host: str, told: Callable[[], None]) -> None:
        self._host = host
        self._told = told
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._is_over = False
        #: in the system's order; none where the name does not resolve, or not in time
        self.numbers: tuple[str, ...] = ()
        threading.Thread(target=self._run, name="lookup", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Then `told` has been called."""
        with self._lock:
            return self._is_over

    def cancel(self) -> None:
        """Nothing is told any more."""
        with self._lock:
            self._cancelled.set()

    def _run(self) -> None:
        began = time.monotonic()
        numbers = look_up(self._host)
        if not numbers:
            self._cancelled.wait(max(0.0, began + _PAUSE_S - time.monotonic()))
        with self._lock:
            if not self._cancelled.is_set():
                self.numbers, self._is_over = numbers, True
                self._told()


def look_up(host: str) -> tuple[str, ...]:
    """Waits for the numbers of `host`, `LIMIT_S` at most; none where it does not resolve."""
    query = _query(host)
    if query is None:
        return ()
    if not query.done.wait(LIMIT_S):
        log.warning("no name server answers for %s within %g s", host, LIMIT_S)
    return query.numbers


def is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _query(host: str) -> _Query | None:
    """The one that is under way, or a new one; None where too many hang."""
    with _lock:
        known = _running.get(host)
        if known is not None or len(_running) >= _MOST:
            return known
        _running[host] = query = _Query(host)
    threading.Thread(target=query.run, name="getaddrinfo", daemon=True).start()
    return query


def name_in(address: str) -> str | None:
    """The host of `tcp://host:port` where it is a name; None for a number, and for no address."""
    try:
        host = addresses.parse(address).host
    except InvalidUsage:
        return None
    return None if host == addresses.WILDCARD or is_number(host) else host
