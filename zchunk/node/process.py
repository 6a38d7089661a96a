"""A node as a process: real sockets, threads, a clean start and end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from zchunk.clock import SystemClock
from zchunk.config import Settings
from zchunk.errors import AlreadyRunning, ZchunkError
from zchunk.node.build import node_parts
from zchunk.node.bulk.plane import BULK_IO_THREADS
from zchunk.node.home.membership import Membership
from zchunk.protocol.messages import Goodbye
from zchunk.runtime.loop import Loop, LoopThread, ThreadWorkers
from zchunk.system import disk
from zchunk.system.file_locks import FileLock, Timeout, locked
from zchunk.system.interfaces import watch_interfaces
from zchunk.transport.fd_source import FdSource
from zchunk.transport.gate_check import Door, prove_closed
from zchunk.transport.zeromq import ZmqTransport

log = logging.getLogger(__name__)

_GOODBYE_S = 1.0


class NodeProcess:
    """A node on HOME/node. `start`, wait until it is `settled`, later `stop`."""

    def __init__(
        self, folder: Path, membership: Membership, settings: Settings, *, new_store: bool = False
    ) -> None:
        """`new_store` as for `node_parts`. Raises AlreadyRunning, StoreOffline, InvalidUsage (port taken)."""
        self._lock = node_lock(folder)
        clock = SystemClock()
        # A context each, so that a heartbeat never waits for an I/O thread full of chunks.
        self._control_transport = ZmqTransport()
        self._bulk_transport = ZmqTransport(BULK_IO_THREADS)
        control_loop = Loop(self._control_transport.poller(), clock, "node-control")
        bulk_loop = Loop(self._bulk_transport.poller(), clock, "node-bulk")
        self.failure: BaseException | None = None
        #: set when `registered`, refused or failed
        self.settled = threading.Event()
        self.on_end: Callable[[], None] = lambda: None
        self.parts = node_parts(
            folder=folder,
            membership=membership,
            settings=settings,
            control_loop=control_loop,
            bulk_loop=bulk_loop,
            control_transport=self._control_transport,
            bulk_transport=self._bulk_transport,
            make_workers=ThreadWorkers,
            on_registered=self.settled.set,
            on_refused=self._on_failure,
            new_store=new_store,
        )
        watch = watch_interfaces()
        if watch is not None:
            self.parts.registration.follow_interfaces(FdSource(watch))
        self._threads = [LoopThread(bulk_loop, self._on_failure), LoopThread(control_loop, self._on_failure)]

    def start(self) -> None:
        """Raises OpenDoor where a stranger could come in; nobody hears of the node then."""
        bulk, control = self._threads
        bulk.start()
        key = self.parts.identity.key
        if key is not None:
            prove_closed([Door(self.parts.endpoint, key.public)])
        log.info("listening at %s", self.parts.endpoint)
        control.start()

    def stop(self) -> None:
        """Says goodbye, ends the planes, closes the store."""
        self._say_goodbye()
        for thread in reversed(self._threads):
            thread.stop()
        self.parts.store.close()
        for transport in (self._control_transport, self._bulk_transport):
            transport.close()
        self._lock.release()

    def _say_goodbye(self) -> None:
        said = threading.Event()
        loop = self.parts.control.loop
        message = Goodbye(incarnation=self.parts.registration.incarnation)
        self.parts.control.request(message, _GOODBYE_S, loop, lambda reply, error: said.set())
        said.wait(_GOODBYE_S)

    def _on_failure(self, error: BaseException) -> None:
        self.failure = error
        self.settled.set()
        self.on_end()
        if not isinstance(error, ZchunkError):
            log.error("a bug stopped this node", exc_info=error)


def node_lock(folder: Path) -> FileLock:
    """Held by whoever works as the node at HOME/node; AlreadyRunning where another does."""
    with disk.storage_errors(folder, "locking"):
        disk.private_folder(folder)
        try:
            return locked(folder / "node.lock")
        except Timeout:
            raise AlreadyRunning(f"another node is already running on {folder}; stop it first") from None
