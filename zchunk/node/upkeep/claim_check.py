"""Asks the tracker which of a node's manifests are files, and drops those of uploads that ended.

`claims.py` decides when, and what follows. Called by `node/registration.py`, in the control loop.

What may not happen here: an answer of one registration taken after another one; a manifest dropped
for an answer from another store than the node's, or an older state of it (SPEC R8): the store
looks at both, in the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from zchunk.errors import ZchunkError
from zchunk.node.control.plane import ControlPlane, expect
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.upkeep.claims import Claims
from zchunk.protocol.columns import split_hashes
from zchunk.protocol.messages import MAX_FIND, FilesFound, FindFiles, Message
from zchunk.runtime.loop import Loop, Workers

log = logging.getLogger(__name__)

T = TypeVar("T")

_TIMEOUT_S = 30.0


class ClaimCheck:
    def __init__(
        self,
        *,
        loop: Loop,
        control: ControlPlane,
        store: ChunkStore,
        workers: Workers,
        on_dropped: Callable[[], None],
    ) -> None:
        """`on_dropped`: manifests went, so there may be chunks that nobody needs any more."""
        self._loop = loop
        self._control = control
        self._store = store
        self._workers = workers
        self._on_dropped = on_dropped
        self._claims = Claims()
        #: number of the registration, for answers that come after another one
        self._round = 0
        loop.add_timed(self)

    def deadline(self) -> float | None:
        return self._claims.deadline()

    def on_time(self, now: float) -> None:
        at = self._claims.deadline()
        if at is not None and at <= now:
            self._claims.asked()
            self._ask(self._store.claimed_manifests())

    def begin(self) -> None:
        """The node has registered with its own tracker."""
        self._round += 1
        self._claims.registered(self._now())

    def end(self) -> None:
        """It is not sure of the tracker it has registered with."""
        self._round += 1
        self._claims.unsure()

    def distributed(self, file_id: Any) -> None:
        """A file was committed."""
        if isinstance(file_id, str) and self._store.is_claimed(file_id):
            # Where that fails it is found out when it is asked about.
            self._workers.submit(lambda: self._store.know_manifests([file_id]), lambda _, error: None)

    # -- asking -----------------------------------------------------------------------

    def _now(self) -> float:
        return self._loop.clock.monotonic()

    def _ask(self, claimed: dict[str, float]) -> None:
        if claimed:
            self._ask_page(claimed, sorted(claimed), set())
        else:
            self._claims.answered({}, (), self._now(), self._loop.clock.wall())

    def _ask_page(self, claimed: dict[str, float], rest: list[str], files: set[str]) -> None:
        """`rest` of what is claimed was not asked about yet, and `files` of the others are files."""
        page, rest, asked_in = rest[:MAX_FIND], rest[MAX_FIND:], self._round

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            if asked_in != self._round:
                return
            page_found = expect(FilesFound, reply, error)
            if isinstance(page_found, ZchunkError):
                self._fail(page_found)
                return
            self._found(page_found, lambda found: self._next(claimed, rest, files | found, page_found))

        message = FindFiles(file_ids=b"".join(map(bytes.fromhex, page)))
        self._control.request(message, _TIMEOUT_S, self._loop, answer)

    def _found(self, reply: FilesFound, then: Callable[[set[str]], None]) -> None:
        def work() -> set[str]:
            files = {file_id.hex() for file_id in split_hashes(reply.file_ids, MAX_FIND)}
            # First whether this is the store, and no older state of it: page by page, since the
            # tracker may have been started anew in between.
            self._store.seen_store(reply.store_id, reply.commit_number)
            self._store.know_manifests(files)
            return files

        self._submit(work, then)

    def _next(self, claimed: dict[str, float], rest: list[str], files: set[str], reply: FilesFound) -> None:
        if rest:
            self._ask_page(claimed, rest, files)
            return
        ended = self._claims.answered(claimed, files, self._now(), self._loop.clock.wall())
        if ended:
            self._submit(
                lambda: self._store.drop_manifests(ended, reply.store_id, reply.commit_number), self._dropped
            )

    def _dropped(self, file_ids: list[str]) -> None:
        log.info("moved %d manifests of uploads that were never committed to the trash", len(file_ids))
        self._on_dropped()

    def _submit(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        submitted_in = self._round

        def done(value: T | None, error: ZchunkError | None) -> None:
            if submitted_in != self._round:
                return
            if error is not None:
                self._fail(error)
            else:
                then(value)  # type: ignore[arg-type]

        self._workers.submit(work, done)

    def _fail(self, problem: ZchunkError | None) -> None:
        log.info("could not check which manifests belong to files: %s", problem)
        self._claims.failed(self._now())
