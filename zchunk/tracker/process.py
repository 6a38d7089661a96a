"""A tracker on a home folder: its parts put together."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection
from pathlib import Path

from zchunk.clock import Clock, read
from zchunk.config import Settings
from zchunk.errors import ZchunkError
from zchunk.protocol import wire
from zchunk.runtime.loop import Loop
from zchunk.system import addresses
from zchunk.system.interfaces import interface_addresses
from zchunk.tracker.core import TrackerCore
from zchunk.tracker.home import TrackerFiles, save_endpoints
from zchunk.tracker.members import admin_socket
from zchunk.tracker.members import gate as gates
from zchunk.tracker.requests.presence import Timing
from zchunk.tracker.server import TrackerServer
from zchunk.tracker.state.store_mark import StoreMark
from zchunk.tracker.store.store import TrackerStore
from zchunk.tracker.store.store_thread import StoreRunner, StoreThread
from zchunk.transport.base import BoundSocket, SocketOptions, Transport
from zchunk.transport.gate_check import Door, prove_closed
from zchunk.transport.keys import CurveServer, KeyPair

log = logging.getLogger(__name__)

CONTROL = SocketOptions(max_frame_bytes=wire.MAX_REQUEST_FRAME_BYTES, heartbeats=True)
#: What comes here are subscriptions: short, and a few. A handshake is the longest frame.
EVENTS = SocketOptions(max_frame_bytes=512, send_mark=10_000, receive_mark=16)


class Tracker:
    """A tracker on a home folder: open, serve until `loop.stop()`, close."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        clock: Clock,
        transport: Transport,
        loop: Loop | None = None,
        make_runner: Callable[[TrackerStore, Loop], StoreRunner] = StoreThread,
        anew: Collection[str] = (),
    ) -> None:
        """`anew`: parts of the home that were lost, see `PARTS`. Raises StateLost, AlreadyRunning,
        InvalidUsage (port taken), and as `TrackerStore.open` does."""
        self.files = TrackerFiles(folder)
        self._lock = self.files.lock()
        self.files.begin(settings, anew)
        self.key = self.files.key()
        self.settings = settings
        self.loop = loop or Loop(transport.poller(), clock, "tracker-control")
        self.membership = self.files.membership(clock)
        store = self.files.store(settings, clock)
        store.check_writable()
        self.files.note("key", "database", *([] if self.membership.is_new else ["members"]))
        # Before the sockets are bound: nobody may knock where nobody asks who it is.
        encrypts = settings.security.transport == "curve"
        gate = transport.gate() if encrypts else None
        router, publisher = self._sockets(transport, self.key if encrypts else None)
        self.endpoint, self.events = router.endpoint, publisher.endpoint
        core = TrackerCore(
            members=self.membership,
            peers=store.peers(),
            timing=Timing(settings.tracker.heartbeat_interval_s, settings.tracker.lease_s),
            epoch=secrets.token_hex(8),
            mark=StoreMark(store.store_id, store.commit_number),
            events_at=self.reachable_at(publisher.endpoint),
            now=read(clock),
        )
        runner = make_runner(store, self.loop)
        self.server = TrackerServer(
            core=core,
            router=router,
            publisher=publisher,
            loop=self.loop,
            store=runner,
            membership=self.membership,
            gate=gate,
        )
        self._remember_endpoint()

    def reachable_at(self, endpoint: str) -> tuple[str, ...]:
        """Addresses of `endpoint` that other PCs can use."""
        at, control = addresses.parse(endpoint), addresses.parse(self.endpoint)
        told = [addresses.advertised(entry, control.port) for entry in self.settings.tracker.advertise]
        # A router hands on the events' port as far from the other as it is bound here.
        moved = [addresses.HostPort(there.host, there.port + at.port - control.port) for there in told]
        return addresses.for_token(at.host, at.port, [str(there) for there in moved], interface_addresses())

    def listen_to_commands(self) -> None:
        """Before the loop runs: what commands on this home change is in force at once."""
        try:
            self.server.listen_to_commands(admin_socket.open_socket(self.files.folder))
        except (OSError, ZchunkError) as error:
            log.warning("changes by commands take effect within a second, not at once: %s", error)

    def prove_closed(self) -> None:
        """Once the loop runs: no stranger comes in. Raises OpenDoor."""
        if self.settings.security.transport == "curve":
            key = self.key.public
            prove_closed([Door(self.endpoint, key), Door(self.events, key, publishes=True)])

    def close(self) -> None:
        self._lock.release()

    def _sockets(self, transport: Transport, key: KeyPair | None) -> tuple[BoundSocket, BoundSocket]:
        """`key` is None in plain transport."""
        requests, events_door = (CurveServer(key, d) if key else None for d in (gates.REQUESTS, gates.EVENTS))
        bind = addresses.parse(self.settings.tracker.bind)
        router = transport.router(bind.tcp, CONTROL, requests)
        port = addresses.parse(router.endpoint).port
        if self.settings.tracker.events is not None:
            events = addresses.parse(self.settings.tracker.events)
        else:
            events = addresses.HostPort(bind.host, port + 1 if bind.port else 0)
        return router, transport.publisher(events.tcp, EVENTS, events_door)

    def _remember_endpoint(self) -> None:
        """`zchunk token` needs the addresses while the tracker runs or not."""
        save_endpoints(self.files.folder, self.reachable_at(self.endpoint))
