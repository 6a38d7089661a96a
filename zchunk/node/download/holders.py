"""Where the chunks of a file are by now: the tracker is asked, and its news of a removal heard.

Called by `fetcher.py`, in the bulk loop. What may not happen here: an answer about another file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from zchunk.errors import NotFound, ZchunkError
from zchunk.node.bulk.job_driver import Log
from zchunk.node.bulk.location import location
from zchunk.node.bulk.plane import BulkPlane
from zchunk.node.control.plane import expect
from zchunk.protocol.messages import Event, Locate, Located, Message, PeerRecord

#: Whether the file is still there: a tracker that is away is not waited for longer.
CHECK_S = 5.0


@dataclass(frozen=True)
class Found:
    """Per chunk its peer ids, and what the tracker says of these."""

    holders: Sequence[Sequence[str]]
    peers: Collection[PeerRecord]


class Gone:
    """The tracker knows of no such file (any more)."""


#: None: the tracker did not say.
Where = Found | Gone | None


class Holders(Protocol):
    """Finds out where the chunks of one fetch are."""

    def ask(self, timeout_s: float, answer: Callable[[Where], None]) -> None: ...

    def watch(self, on_doubt: Callable[[], None]) -> None:
        """`on_doubt` hears when it is worth to `ask`, until `unwatch`."""

    def unwatch(self) -> None: ...


class HoldersOfFile:
    def __init__(self, bulk: BulkPlane, file_id: str, log: Log) -> None:
        self._bulk = bulk
        self._log = log
        self._file_id = file_id
        self._stop_watching: Callable[[], None] | None = None

    def ask(self, timeout_s: float, answer: Callable[[Where], None]) -> None:
        ask = Locate(name_or_id=self._file_id, unique=False)
        self._bulk.control.request(
            ask, timeout_s, self._bulk.loop, lambda reply, error: answer(self._where(reply, error))
        )

    def _where(self, reply: Message | None, error: ZchunkError | None) -> Where:
        found = expect(Located, reply, error)
        if isinstance(found, NotFound):
            return Gone()
        if isinstance(found, ZchunkError):
            return None
        try:
            where = location(found, self._file_id)
        except ZchunkError as problem:
            self._log.warning("the tracker's answer cannot be used: %s", problem.message)
            return None
        return Found(where.holder_ids(), where.peers.values())

    def watch(self, on_doubt: Callable[[], None]) -> None:
        """The removal of the file; an event is a hint: it may have been put again."""

        def on_event(event: Event) -> None:
            if event.topic == "file.removed" and event.fields.get("file_id") == self._file_id:
                on_doubt()

        self._stop_watching = self._bulk.control.watch_events(
            self._bulk.loop, on_event, lambda missed: on_doubt()
        )

    def unwatch(self) -> None:
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None
