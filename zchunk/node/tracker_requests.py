"""Requests to the tracker from any thread: each waits for its answer.

Many threads may ask at the same time; each request has a call of its own
(runtime/blocking_calls.py). Callers: the client, upload_plans.py.

What may not happen here: an answer taken that is about another file than was asked for; a wait for a
tracker that is not there of more than seconds, unless it was asked for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from msgspec import ValidationError

from zchunk.clock import SystemClock
from zchunk.config import Settings
from zchunk.errors import (
    IntegrityError,
    NotFound,
    PeersUnsure,
    TooFewPeers,
    TrackerUnreachable,
    UnknownMessage,
    ZchunkError,
)
from zchunk.node.bulk.location import Location, location
from zchunk.node.control.event_feed import Missed
from zchunk.node.control.hello_wait import HelloWait, PlanPatience
from zchunk.node.control.plane import ControlPlane
from zchunk.protocol.messages import (
    Event,
    FileRecord,
    Files,
    GetSnapshot,
    ListFiles,
    Locate,
    Located,
    Message,
    PeerRecord,
    Remove,
    Removed,
    Request,
    Snapshot,
)
from zchunk.runtime.blocking_calls import Call, Calls, ShutOut

M = TypeVar("M", bound=Message)
T = TypeVar("T")

#: A large file's plan, manifest or listing may take the tracker a while.
_REQUEST_S = 30.0


@dataclass(frozen=True)
class _Reply:
    """Of the tracker; one of both is None."""

    message: Message | None
    error: ZchunkError | None


@dataclass(frozen=True)
class _NewsOfPeers:
    """See `TrackerRequests._news_of_peers`."""


class TrackerRequests:
    """What one process asks its tracker. Raises TrackerUnreachable, and the tracker's errors."""

    def __init__(self, *, control: ControlPlane, calls: Calls, settings: Settings, where: str) -> None:
        """`where`: the tracker's address, for people."""
        self._control = control
        self._calls = calls
        self._settings = settings
        self._where = where
        self._answered_once = False

    # -- what is asked ----------------------------------------------------------------

    def peers(self) -> tuple[PeerRecord, ...]:
        """All storing nodes, by name."""
        snapshot = self.expect(GetSnapshot(), Snapshot)
        return tuple(sorted(snapshot.peers, key=lambda record: (record.name, record.peer_id)))

    def files(self) -> Iterator[FileRecord]:
        """All files, newest first; the next page is fetched while the caller reads this one."""
        self._check_tracker()
        with self._calls.call() as call:
            self._send(ListFiles(page=""), _REQUEST_S, call)
            more = True
            while more:
                files = _of_kind(self._reply(call, _REQUEST_S), Files)
                more = files.next_page != ""
                if more:
                    self._send(ListFiles(page=files.next_page), _REQUEST_S, call)
                yield from files.files

    def locate(self, name_or_id: str, unique: bool = False, *, settled: bool = False) -> Location:
        """A file's manifest and holders. `settled`: where the tracker has just started, give
        holders a lease to say hello. Raises NotFound, AmbiguousName, IntegrityError."""
        where, hellos = self._locate(name_or_id, unique), HelloWait()
        if not (settled and _is_unsure(where)):
            return where
        with self._calls.call() as call, self._news_of_peers(call) as due:
            lease_s = self._settings.tracker.lease_s
            while hellos.waits(_is_unsure(where), lease_s, SystemClock().monotonic()):
                _await_news(call, hellos.deadline())
                due.clear()
                where = self._locate(name_or_id, unique)
        return where

    def _locate(self, name_or_id: str, unique: bool) -> Location:
        try:
            ask = Locate(name_or_id=name_or_id, unique=unique)
        except ValidationError:
            raise NotFound(
                f"no file has the name or id {name_or_id[:60]!r}; `zchunk ls` lists the files"
            ) from None
        return location(self.expect(ask, Located), name_or_id)

    def remove(self, file_id: str) -> Removed:
        try:
            ask = Remove(file_id=file_id.lower())
        except ValidationError:
            raise NotFound(f"{file_id[:80]!r} is not a file id; `zchunk ls` lists the ids") from None
        removed = self.expect(ask, Removed)
        if removed.file_id != ask.file_id:
            raise IntegrityError(
                f"the tracker was asked to remove {ask.file_id}, but removed {removed.file_id};"
                " `zchunk ls` lists the files"
            )
        return removed

    def patiently(
        self, ask: Callable[[], T], patience: PlanPatience, on_refused: Callable[[TooFewPeers], None]
    ) -> T:
        """What `ask` returns, as soon as there are enough peers for it, within the patience; asked
        again by their events. `on_refused` hears why not yet, each time that it is another reason."""
        said: str | None = None
        with self._calls.call() as call, self._news_of_peers(call) as due:
            while True:
                due.clear()
                try:
                    return ask()
                except TooFewPeers as error:
                    if not patience.waits(error, SystemClock().monotonic()):
                        raise
                    why = "unsure" if isinstance(error, PeersUnsure) else error.message
                    if why != said:
                        on_refused(error)
                    said = why
                except TrackerUnreachable:
                    # It was there before: when it is back, the session tells.
                    if said is None or not patience.for_peers:
                        raise
                _await_news(call, patience.deadline())

    def events(self, since: int | None) -> Generator[Event | Missed, None, None]:
        """What happens in the cluster, without end: see `Client.events`."""
        self.expect(GetSnapshot(), Snapshot)
        with self._calls.call() as call:
            stop = self._control.watch_events(self._control.loop, call.emit, call.emit, since)
            try:
                while True:
                    event = call.next()
                    if isinstance(event, ShutOut):
                        raise event.why
                    if isinstance(event, Event | Missed):
                        yield event
            finally:
                stop()

    # -- one request --------------------------------------------------------------------

    def expect(self, message: Request, kind: type[M]) -> M:
        """Raises UnknownMessage where the answer is of another kind."""
        self._check_tracker()
        return _of_kind(self.ask(message, _REQUEST_S), kind)

    def ask(self, message: Request, timeout_s: float) -> Message:
        with self._calls.call() as call:
            self._send(message, timeout_s, call)
            return self._reply(call, timeout_s)

    def _check_tracker(self) -> None:
        """A tracker that is not there is told within seconds, whatever is asked."""
        if not self._answered_once:
            self.ask(GetSnapshot(), self._settings.client.tracker_timeout_s)

    def _send(self, message: Request, timeout_s: float, call: Call) -> None:
        self._control.request(
            message, timeout_s, self._control.loop, lambda reply, error: call.emit(_Reply(reply, error))
        )

    def _reply(self, call: Call, timeout_s: float) -> Message:
        """To what `_send` sent."""
        try:
            while not isinstance(event := call.next(timeout_s + 1.0), _Reply):
                pass
        except queue.Empty:
            raise TrackerUnreachable(f"the tracker at {self._where} does not answer") from None
        if event.error is not None:
            raise event.error
        self._answered_once = True
        assert event.message is not None
        return event.message

    # -- news -------------------------------------------------------------------------

    @contextmanager
    def _news_of_peers(self, call: Call) -> Iterator[threading.Event]:
        """In the block the call is told when a peer is up, or is known not to be, or the view of all
        is complete anew: once, until what is yielded is cleared."""
        due = threading.Event()

        def news(record: PeerRecord | None = None) -> None:
            if (record is None or not record.unsure) and not due.is_set():
                due.set()
                call.emit(_NewsOfPeers())

        stop = self._control.watch_peers(self._control.loop, news, news)
        try:
            yield due
        finally:
            stop()


def _await_news(call: Call, deadline: float | None) -> None:
    """Until the call is told something, or the time has come. Raises why we are shut out."""
    timeout = None if deadline is None else max(0.0, deadline - SystemClock().monotonic())
    with suppress(queue.Empty):
        if isinstance(event := call.next(timeout), ShutOut):
            raise event.why


def _is_unsure(where: Location) -> bool:
    return any(record.unsure for record in where.peers.values())


def _of_kind(reply: Message, kind: type[M]) -> M:
    if not isinstance(reply, kind):
        raise UnknownMessage(f"the tracker answered with {reply.TYPE!r} instead of {kind.TYPE!r}")
    return reply
