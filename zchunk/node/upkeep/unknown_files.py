"""Which files of those that a node keeps manifests of its tracker does not know.

Asked only while the tracker's store is another one than the node has served, or an older state
of it, or the node cannot tell: else a manifest that the tracker does not know is that of an
upload, and no sign of a loss. Heartbeats carry the number to the tracker, which tells people.
Called by `node/registration.py`, in the control loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from zchunk.errors import ZchunkError
from zchunk.node.control.plane import ControlPlane, checked, expect
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.protocol.columns import split_hashes
from zchunk.protocol.messages import MAX_FIND, FilesFound, FindFiles, Message, Welcome
from zchunk.runtime.loop import Loop, Workers

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
#: Files that are put again become known: so often it is asked again.
_AGAIN_S = 600.0


class UnknownFiles:
    def __init__(
        self,
        *,
        loop: Loop,
        control: ControlPlane,
        store: ChunkStore,
        workers: Workers,
        on_known: Callable[[], None],
    ) -> None:
        """`on_known`: the node could not tell whether it is its tracker's store, and it is."""
        self._loop = loop
        self._control = control
        self._store = store
        self._workers = workers
        self._on_known = on_known
        #: how many, as was answered last; 0 while nothing is to be asked
        self.unknown = 0
        #: the tracker's store, as it introduced itself; None while nothing is to be asked
        self._welcome: Welcome | None = None
        self._again_at: float | None = None
        loop.add_timed(self)

    def deadline(self) -> float | None:
        return self._again_at

    def on_time(self, now: float) -> None:
        if self._again_at is not None and self._again_at <= now:
            self._again_at = None
            self._ask()

    def begin(self, welcome: Welcome) -> None:
        """The node has registered with a tracker of whose store it is not sure."""
        self._welcome = welcome
        self._ask()

    def end(self) -> None:
        """It has registered with its own tracker."""
        self._welcome, self._again_at, self.unknown = None, None, 0

    def _ask(self) -> None:
        self._again_at = self._loop.clock.monotonic() + _AGAIN_S
        self._ask_about(self._store.manifests(), 0, 0)

    def _ask_about(self, file_ids: list[str], at: int, unknown: int) -> None:
        """`unknown` of the files before `at` are."""
        page, asked_for = file_ids[at : at + MAX_FIND], self._welcome

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if self._welcome is not asked_for:
                return  # it has registered anew meanwhile
            try:
                found = len(set(page) - _known(reply, error))
            except ZchunkError as problem:
                log.info("could not check which files the tracker knows: %s", problem.message)
            else:
                self._answered(file_ids, at + len(page), unknown + found)

        message = FindFiles(file_ids=b"".join(map(bytes.fromhex, page)))
        self._control.request(message, _TIMEOUT_S, self._loop, answer)

    def _answered(self, file_ids: list[str], at: int, unknown: int) -> None:
        if at < len(file_ids):
            self._ask_about(file_ids, at, unknown)
            return
        self.unknown = unknown
        if unknown:
            log.error(
                "this node holds chunks of %d files that the tracker does not know: the tracker's database"
                " was lost, replaced or restored from an older copy; nothing is deleted here for now",
                unknown,
            )
        elif self._welcome is not None:
            self._adopt(self._welcome)

    def _adopt(self, welcome: Welcome) -> None:
        """It knows all of them. Of a node that lost its memory of whose store that is, so be it."""

        def done(adopted: bool | None, error: ZchunkError | None) -> None:
            if error is not None:
                log.warning("%s", error.message)
            elif adopted and self._welcome is welcome:
                self.end()
                self._on_known()

        self._workers.submit(lambda: self._store.adopt_store(welcome.store_id, welcome.commit_number), done)


def _known(reply: Message | None, error: ZchunkError | None) -> set[str]:
    """Those that are files, or were."""
    found = checked(expect(FilesFound, reply, error))
    return {
        file_id.hex()
        for file_ids in (found.file_ids, found.removed)
        for file_id in split_hashes(file_ids, MAX_FIND)
    }
