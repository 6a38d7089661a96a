"""The poll loop of one plane: frames, posted calls and deadlines, one thread.

Shells put sockets with handlers, and `Timed` objects (usually around a pure machine),
into a loop. A handler never blocks: work that hashes, reads or writes goes to
`Workers` and comes back as a posted call. A simulation drives the same loops with
`turn` instead of `run`.

What may not happen here: a loop that ends because one peer's message could not be handled. That
costs the peer its connection. Deadlines and posted calls are our own: a bug in one of these ends
the loop.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar

from zchunk.clock import Clock
from zchunk.errors import ZchunkError
from zchunk.limits.fair_queue import FairQueue
from zchunk.limits.refusal_log import RefusalLog
from zchunk.runtime import log_ids
from zchunk.system.os_errors import as_ours
from zchunk.transport.base import Arrival, Poller, Received, Socket

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[[Arrival], None]
Done = Callable[[T | None, ZchunkError | None], None]

#: Messages taken from one socket before the others get their turn.
_BURST = 16
#: A turn so long is told in the log, and a longer one after that if it is longer by `_TOLD_AGAIN`.
_LONG_TURN_S = 0.05
_TOLD_AGAIN = 1.25


class Timed(Protocol):
    """Something that wants to be woken."""

    def deadline(self) -> float | None:
        """Monotonic time of the next wish, None for none."""

    def on_time(self, now: float) -> None: ...


class Loop:
    """One thread's event loop. Only `post`, `fail`, `stop` and `failure` are for other threads."""

    def __init__(self, poller: Poller, clock: Clock, name: str) -> None:
        self.clock = clock
        self.name = name
        #: why `run` ended, when it was a bug and not `stop`
        self.failure: BaseException | None = None
        #: how long a turn has kept everything else waiting at most, seconds
        self.longest_turn_s = 0.0
        self._log_from_s = _LONG_TURN_S
        self._poller = poller
        self._handlers: dict[Socket, Handler] = {}
        self._timed: list[Timed] = []
        self._posted: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._bugs = RefusalLog()
        self._closers: list[Callable[[], None]] = []

    def add_socket(self, socket: Socket, handler: Handler) -> None:
        self._handlers[socket] = handler
        self._poller.register(socket)

    def remove_socket(self, socket: Socket) -> None:
        """Stops listening to it and closes it."""
        if self._handlers.pop(socket, None) is not None:
            self._poller.unregister(socket)
            socket.close()

    def add_timed(self, timed: Timed) -> None:
        self._timed.append(timed)

    def remove_timed(self, timed: Timed) -> None:
        self._timed.remove(timed)

    def on_close(self, closer: Callable[[], None]) -> None:
        """Called in this loop's thread when it ends, before its sockets close."""
        self._closers.append(closer)

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` in this loop's thread, soon. From any thread."""
        self._posted.append(call)
        self._poller.wake()

    def fail(self, error: ZchunkError) -> None:
        """`run` ends with `error`, soon. From any thread, and from any handler."""
        self.post(lambda: _raise(error))

    def stop(self) -> None:
        """From any thread: `run` returns after the turn under way."""
        self._stopping = True
        self._poller.wake()

    def run(self) -> None:
        """Turn until `stop`; a bug ends the loop and is kept in `failure`."""
        try:
            deadline = self.next_deadline()
            while not self._stopping:
                deadline = self.turn(self._until(deadline))
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.close()

    def timeout(self) -> float | None:
        """Seconds until the next deadline; 0 when something is posted."""
        return self._until(self.next_deadline())

    def _until(self, deadline: float | None) -> float | None:
        if self._posted:
            return 0.0
        return None if deadline is None else max(0.0, deadline - self.clock.monotonic())

    def next_deadline(self) -> float | None:
        earliest = None
        for timed in self._timed:  # after every turn of every loop: twice as fast as `min` of them
            deadline = timed.deadline()
            if deadline is not None and (earliest is None or deadline < earliest):
                earliest = deadline
        return earliest

    def turn(self, timeout_s: float | None = 0.0) -> float | None:
        """Deal with what is there: sockets, then posted calls, then deadlines. Returns the next one.

        In this order, because a lease must not end while its heartbeat waits unread.
        """
        ready = self._poller.wait(timeout_s)
        began = self.clock.monotonic()
        for socket in ready:
            self._receive(socket)
        for _ in range(len(self._posted)):
            self._posted.popleft()()
        deadline = self._on_time()
        took = self.clock.monotonic() - began
        if took > self.longest_turn_s:
            self._longest(took)
        return deadline

    def _on_time(self) -> float | None:
        """What is due. Returns the next deadline, for which nobody is asked twice where nothing was."""
        now, first, was_due = self.clock.monotonic(), None, False
        for timed in list(self._timed):
            deadline = timed.deadline()
            if deadline is None:
                continue
            if deadline <= now:
                was_due = True
                timed.on_time(now)
                now = self.clock.monotonic()
            elif first is None or deadline < first:
                first = deadline
        return self.next_deadline() if was_due else first

    def _longest(self, took: float) -> None:
        """A handler that blocks is a fault, or the machine was: either way it can be seen."""
        self.longest_turn_s = took
        if took >= self._log_from_s:
            self._log_from_s = took * _TOLD_AGAIN
            log.info("the %s loop was busy for %.0f ms, longer than before", self.name, 1000 * took)

    def close(self) -> None:
        for closer in self._closers:
            closer()
        for socket in list(self._handlers):
            self.remove_socket(socket)
        self._poller.close()

    def _receive(self, socket: Socket) -> None:
        for _ in range(_BURST):
            handler = self._handlers.get(socket)
            received = socket.receive() if handler is not None else None
            if handler is None or received is None:
                return
            try:
                handler(received)
            except Exception as error:  # noqa: BLE001 - see above
                self._contain(socket, received, error)

    def _contain(self, socket: Socket, received: Arrival, error: Exception) -> None:
        """A message that could not be handled ends its connection; the others go on."""
        line = self._bugs.note(_bug(error), _sender(received), self.clock.monotonic())
        if line is not None:
            log.error("%s: a message could not be handled (a bug): %s", self.name, line, exc_info=error)
        if socket in self._handlers:
            socket.reject(received)


def _bug(error: Exception) -> ZchunkError:
    return ZchunkError(f"unexpected {type(error).__name__}: {error}")


def _sender(received: Arrival) -> str:
    if not isinstance(received, Received):
        return str(received)[:200]
    member = f"member {received.peer_id}" if received.peer_id is not None else "not a member"
    return f"{received.address} ({member}, connection {received.connection.hex()})"


def contained(work: Callable[P, T]) -> Callable[P, T]:
    """Work that a peer asked for: a bug in it is an error for whoever asked, and ends no loop. What it
    logs, in whatever thread, is about the request that is handled now."""
    request = log_ids.ongoing()

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return log_ids.during(request, lambda: guarded(*args, **kwargs))

    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except ZchunkError:
            raise
        except (OSError, MemoryError) as error:
            log.warning("the operating system refused a request: %s", error, exc_info=error)
            raise as_ours(error) from error
        except Exception as error:
            log.error("a request could not be handled (a bug)", exc_info=error)
            raise _bug(error) from error

    return run


class Workers(Protocol):
    """Runs blocking work elsewhere; its outcome comes back into the loop."""

    def submit(self, work: Callable[[], T], done: Done[T]) -> None:
        """`done(value, None)`, or `done(None, error)` for a ZchunkError."""

    def close(self) -> None: ...


class ThreadWorkers:
    """A small thread pool. What the operating system refuses is an error of that work alone, also
    where it has no words for it. Work that fails with anything else but a ZchunkError is a bug and
    ends the loop."""

    def __init__(self, loop: Loop, threads: int, name: str) -> None:
        self._loop = loop
        self._name = name
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def submit(self, work: Callable[[], T], done: Done[T]) -> None:
        self._pool.submit(self._run, work, done)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, work: Callable[[], T], done: Done[T]) -> None:
        try:
            value = work()
        except ZchunkError as error:
            self._loop.post(lambda error=error: done(None, error))  # type: ignore[misc]
        except (OSError, MemoryError) as error:
            log.warning(
                "the operating system refused work of the %s threads: %s", self._name, error, exc_info=error
            )
            problem = as_ours(error)
            self._loop.post(lambda: done(None, problem))
        except BaseException as error:  # noqa: BLE001 - handed on to the loop, which ends with it
            self._loop.post(lambda error=error: _raise(error))  # type: ignore[misc]
        else:
            self._loop.post(lambda: done(value, None))


def _raise(error: BaseException) -> Any:
    raise error


class FairWorkers:
    """Workers for whom members take turns: the work of one does not wait behind all that another
    has asked for. Lives in the loop of `workers`, who have up to `at_once` works at a time."""

    def __init__(self, workers: Workers, at_once: int) -> None:
        self._workers = workers
        self._idle = at_once
        self._turns: FairQueue[tuple[Callable[[], Any], Done[Any]]] = FairQueue()

    def submit(self, who: Hashable, work: Callable[[], T], done: Done[T]) -> None:
        """As `Workers.submit`, for a member."""
        self._turns.add(who, (work, done))
        self._advance()

    def _advance(self) -> None:
        while self._idle and len(self._turns):
            self._idle -= 1
            self._begin(*self._turns.next())

    def _begin(self, work: Callable[[], Any], done: Done[Any]) -> None:
        def ended(value: Any, error: ZchunkError | None) -> None:
            self._idle += 1
            self._advance()  # before what comes of it: a thread waits
            done(value, error)

        self._workers.submit(work, ended)


class LoopThread:
    """A loop running in a thread of its own. `on_failure` hears of a bug in it."""

    def __init__(self, loop: Loop, on_failure: Callable[[BaseException], None]) -> None:
        self.loop = loop
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._run, name=loop.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Asks the loop to end and waits for it. One that was never started only closes."""
        self.loop.stop()
        if self._thread.ident is None:
            self.loop.close()
        else:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:  # noqa: BLE001 - the owner decides; nothing is swallowed
            self._on_failure(error)
