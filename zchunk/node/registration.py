"""A node's process: its store, its two planes, its registration at the tracker."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from zchunk.config import Settings
from zchunk.errors import HelloFirst, NotFound, ZchunkError
from zchunk.node.control.plane import ControlPlane, Registrar
from zchunk.node.serving.chunk_server import ChunkServer, HeldMemory
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.upkeep.claim_check import ClaimCheck
from zchunk.node.upkeep.garbage import GarbageCollector
from zchunk.node.upkeep.self_check import SelfCheck
from zchunk.node.upkeep.unknown_files import UnknownFiles
from zchunk.protocol import wire
from zchunk.protocol.messages import (
    MAX_COUNT,
    MAX_REASON,
    Event,
    Heartbeat,
    Hello,
    Inventory,
    Message,
    ReportHeld,
    Stored,
    Welcome,
)
from zchunk.runtime.loop import Workers
from zchunk.system import addresses, disk, json_files
from zchunk.system.interfaces import interface_addresses
from zchunk.transport.fd_source import FdSource

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
_REPORT_AGAIN_S = 1.0
_HELLO_AGAIN_S = 1.0
#: An upload id for reports that belong to none.
_NO_UPLOAD = "0" * 32
_INVENTORY_PAGE = 50_000  # digests per message
_REPORT_PAGE = 10_000
#: The machine's own addresses are looked at this often where the system does not tell of changes;
#: a change is announced.
_ADDRESSES_S = 5.0
_INCARNATION = "incarnation.json"
_AWAY = "the store %s is offline: connect its disk; until then this node serves and accepts no chunks"
_BACK = "the store %s is online again"


def raise_incarnation(folder: Path) -> int:
    """The number of this start: one more than the last, durable on return. Without a last one, or
    with a damaged file, it is the first again: the tracker tells a higher one, see `Welcome`.
    Raises as `disk.storage_errors` does."""
    path = folder / _INCARNATION
    try:
        with disk.storage_errors(path, "reading"):
            last = json_files.count(json_files.record(json_files.read(path))["incarnation"], MAX_COUNT - 1)
    except NotFound:
        last = 0
    except (ValueError, KeyError):
        log.warning("%s is damaged; this start gets its number from the tracker", path)
        last = 0
    keep_incarnation(folder, last + 1)
    return last + 1


def keep_incarnation(folder: Path, number: int) -> None:
    """Durable on return. Raises as `disk.write_durable` does."""
    disk.write_durable(folder / _INCARNATION, json.dumps({"incarnation": number}).encode())


@dataclass
class _Reports:
    """Chunks that became durable and that the tracker has not confirmed to know of."""

    by_upload: dict[str, list[bytes]] = field(default_factory=dict)
    under_way: bool = False

    def add(self, upload_id: str, sha256: bytes) -> None:
        self.by_upload.setdefault(upload_id, []).append(sha256)

    def take(self, most: int) -> tuple[str, list[bytes]]:
        """Up to `most` chunks of one upload; they are here no more."""
        upload_id = next(iter(self.by_upload))
        hashes = self.by_upload.pop(upload_id)
        if len(hashes) > most:
            self.by_upload[upload_id] = hashes[most:]
        return upload_id, hashes[:most]


class NodeRegistration(Registrar):
    """Keeps the tracker informed: hello, inventory, heartbeats, what was stored.

    Lives in the control loop; `stored` and `unreadable` may be called from the bulk loop.
    """

    def __init__(
        self,
        *,
        store: ChunkStore,
        service: ChunkServer,
        workers: Workers,
        settings: Settings,
        peer_id: str,
        bound: str,
        port: int,
        incarnation: int,
        keep_incarnation: Callable[[int], None],
        interfaces: Callable[[], list[str]] = interface_addresses,
        on_registered: Callable[[], None],
        on_refused: Callable[[ZchunkError], None],
    ) -> None:
        self._store = store
        self._service = service
        self._workers = workers
        self._settings = settings
        self._peer_id = peer_id
        self._bound = bound
        self._port = port
        self.incarnation = incarnation
        self._keep_incarnation = keep_incarnation
        self._instance = secrets.token_hex(8)
        self._store_was_online = True
        self._list_interfaces = interfaces
        self._on_registered = on_registered
        self._on_refused = on_refused
        self._reports = _Reports()
        self._registered = False
        #: how many inventories the tracker was sent, and whether the last may be outdated
        self._inventories = 0
        self._hello_again = False
        self._last_moved = 0
        self._last_status = 0.0
        self._announced: list[str] = []
        self._addresses_at: float | None = None
        self._report_at: float | None = None
        self._hello_at: float | None = None
        self.control: ControlPlane
        self.garbage: GarbageCollector
        self.self_check: SelfCheck
        self.unknown_files: UnknownFiles
        self.claim_check: ClaimCheck

    def attach(self, control: ControlPlane) -> None:
        self.control = control
        self._addresses_at = control.loop.clock.monotonic() + _ADDRESSES_S
        self.garbage = GarbageCollector(
            loop=control.loop,
            control=control,
            store=self._store,
            workers=self._workers,
            trash_keep_s=self._settings.node.trash_keep_s,
            inventory=self._inventory,
            on_kept=self._kept,
            on_outdated=self._outdated,
        )
        self.self_check = SelfCheck(
            loop=control.loop,
            control=control,
            store=self._store,
            workers=self._workers,
            inventory=self._inventory,
            on_kept=self._kept,
            on_outdated=self._outdated,
        )
        self.claim_check = ClaimCheck(
            loop=control.loop,
            control=control,
            store=self._store,
            workers=self._workers,
            on_dropped=self.garbage.collect,
        )
        self.unknown_files = UnknownFiles(
            loop=control.loop,
            control=control,
            store=self._store,
            workers=self._workers,
            on_known=self._known_again,
        )
        control.loop.add_timed(self)

    # -- Timed: addresses that change under us ----------------------------------------

    def deadline(self) -> float | None:
        times = (self._addresses_at, self._report_at, self._hello_at)
        return min((at for at in times if at is not None), default=None)

    def on_time(self, now: float) -> None:
        if self._report_at is not None and self._report_at <= now:
            self._report_at = None
            self._report()
        if self._hello_at is not None and self._hello_at <= now:
            self._hello_at = None
            self._say_hello()
        if self._addresses_at is not None and self._addresses_at <= now:
            self._addresses_at = now + _ADDRESSES_S
            self._look_at_addresses()

    def follow_interfaces(self, bell: FdSource) -> None:
        """`bell` rings when an address of this PC may have changed."""
        self._addresses_at = None
        self.control.loop.add_socket(bell, lambda _: self._look_at_addresses())

    def _look_at_addresses(self) -> None:
        if self._registered and self._interfaces() != self._announced:
            self._say_hello()
            log.info("this PC's addresses changed; notifying the tracker")

    def _inventory(self) -> int | None:
        """The number of the last one that the tracker was given; None while it may be given one."""
        return self._inventories if self._registered else None

    def _interfaces(self) -> list[str]:
        """The machine's addresses; the last known ones when they cannot be listed now."""
        try:
            return self._list_interfaces()
        except OSError as error:
            log.warning("this PC's addresses cannot be listed: %s", error)
            return self._announced

    # -- Registrar --------------------------------------------------------------------

    def hello(self) -> Hello:
        self._registered = self._hello_again = False
        self._announced = self._interfaces()
        log.info("registering with the tracker")
        free, refuses = self._room()
        bound = self._bound if not addresses.is_wildcard(self._bound) else "*"
        return Hello(
            incarnation=self.incarnation,
            instance=self._instance,
            bound=bound,
            port=self._port,
            advertise=tuple(self._settings.node.advertise),
            interfaces=tuple(self._announced[:16]),
            capacity=self._capacity(free),
            free=free,
            chunks=self._store.count,
            inventory_digest=self._store.digest,
            refuses=refuses,
        )

    def status(self) -> Heartbeat:
        now, moved = self.control.loop.clock.monotonic(), self._service.bytes_moved
        load = (moved - self._last_moved) / max(now - self._last_status, 1e-3)
        if now - self._last_status >= 1.0:
            self._last_moved, self._last_status = moved, now
        free, refuses = self._room()
        return Heartbeat(
            incarnation=self.incarnation,
            free=free,
            chunks=self._store.count,
            load=load,
            store_online=self._is_store_online(),
            files_unknown=self.unknown_files.unknown,
            refuses=refuses,
        )

    def _is_store_online(self) -> bool:
        online = self._store.online
        if online != self._store_was_online:
            self._store_was_online = online
            log.log(*((logging.INFO, _BACK) if online else (logging.WARNING, _AWAY)), self._store.root)
        return online

    def registered(self, welcome: Welcome) -> None:
        self._renumber(welcome.incarnation)
        self._workers.submit(
            lambda: self._store.seen_store(welcome.store_id, welcome.commit_number),
            lambda _, error: self._store_accepted(welcome, error),
        )

    def _renumber(self, number: int) -> None:
        """Of more starts than this home knows of: it was put back from a backup."""
        if number <= self.incarnation:
            return
        log.warning(
            "the tracker has seen newer starts of this node: its home was restored from a backup, or"
            " incarnation.json was lost; this start now has number %d",
            number,
        )
        self.incarnation = number

        def kept(_: None, error: ZchunkError | None) -> None:
            if error is not None:  # then the tracker tells it again at the next start
                log.warning("%s", error.message)

        self._workers.submit(lambda: self._keep_incarnation(number), kept)

    def refused(self, error: ZchunkError) -> None:
        self._on_refused(error)

    def caught_up(self) -> None:
        self.garbage.collect()
        self.self_check.check()

    def event(self, event: Event) -> None:
        if event.topic == "file.removed":
            self.garbage.collect()
        elif event.topic == "file.distributed":
            self.claim_check.distributed(event.fields.get("file_id"))
        elif event.topic == "chunk.corrupt" and event.fields.get("peer_id") == self._peer_id:
            self.self_check.check()

    # -- registration -----------------------------------------------------------------

    def _store_accepted(self, welcome: Welcome, error: ZchunkError | None) -> None:
        self.garbage.allowed = error is None
        if error is not None:
            # Not fatal: the node serves what it has and obeys no deletion (SPEC R8).
            log.warning("%s", error.message)
            self.unknown_files.begin(welcome)
            self.claim_check.end()
        else:
            self.unknown_files.end()
            self.claim_check.begin()
        if welcome.inventory_wanted:
            hashes = self._store.hashes()
            self._inventories += 1
            pages = [hashes[at : at + _INVENTORY_PAGE] for at in range(0, len(hashes), _INVENTORY_PAGE)]
            self._send_inventory(pages or [[]], 0)
        else:
            self._up()

    def _known_again(self) -> None:
        """The tracker, of which it was not sure, may order deletions after all."""
        self.garbage.allowed = True
        self.garbage.collect()
        self.claim_check.begin()

    def _send_inventory(self, pages: list[list[bytes]], at: int) -> None:
        last = at == len(pages) - 1
        page = Inventory(page=at, last=last, hashes=b"".join(pages[at]))

        def answer(_: Message | None, error: ZchunkError | None) -> None:
            if error is not None:
                self._hello_after(error)
                log.warning("the tracker did not accept the inventory: %s", error.message)
            elif last:
                self._up()
            else:
                self._send_inventory(pages, at + 1)

        self.control.request(page, _TIMEOUT_S, self.control.loop, answer)

    def _hello_after(self, error: ZchunkError) -> None:
        """At once where that was all that lacked; a tracker that is at its limit, or whose disk fails,
        is given a pause."""
        if isinstance(error, HelloFirst):
            self._say_hello()
        else:
            self._hello_at = self.control.loop.clock.monotonic() + _HELLO_AGAIN_S

    def _up(self) -> None:
        self._registered = True
        self._on_registered()
        log.info("registered")
        if self._hello_again:
            self._say_hello()
            return
        self._report()
        self.garbage.collect()
        self.self_check.check()

    def _outdated(self) -> None:
        """The hello's digest shows it, so the tracker asks for an inventory again."""
        self._hello_again = True
        if self._registered:
            self._say_hello()

    def _say_hello(self) -> None:
        self.control.say_hello()

    # -- what was stored ----------------------------------------------------------------

    def stored(self, upload_id: str, sha256: bytes) -> None:
        """A chunk is durable here: the tracker must know. From any thread."""

        def add() -> None:
            self._reports.add(upload_id, sha256)
            self._report()

        self.control.loop.post(add)

    def unreadable(self, sha256: bytes) -> None:
        """A chunk that is held here could not be read. From any thread."""
        self.control.loop.post(lambda: self.self_check.suspect(sha256))

    def held(self, held: HeldMemory, name: str) -> None:
        """A member keeps memory of this node without progress: it is logged, and the cluster hears
        of it. `name`: the member's, where it is known. From any thread."""
        log.warning(
            "%s has held %.1f of %.1f MB of this node's memory for %s without progress for %.1f s; others are"
            " still served",
            name or held.member,
            held.size / 1e6,
            held.budget / 1e6,
            held.purpose,
            held.seconds,
        )
        message = ReportHeld(
            member=held.member,
            purpose=held.purpose,
            size=held.size,
            budget=held.budget,
            seconds=held.seconds,
        )
        # A hint for people: one that is lost is no loss.
        self.control.loop.post(
            lambda: self.control.request(message, _TIMEOUT_S, self.control.loop, lambda reply, error: None)
        )

    def _kept(self, hashes: list[bytes]) -> None:
        for sha256 in hashes:
            self._reports.add(_NO_UPLOAD, sha256)
        self._report()

    def _report(self) -> None:
        """One report at a time: what comes meanwhile goes together in the next."""
        if self._reports.under_way or not self._reports.by_upload or not self._registered:
            return
        upload_id, hashes = self._reports.take(_REPORT_PAGE)
        self._reports.under_way = True

        def answer(_: Message | None, error: ZchunkError | None) -> None:
            self._reports.under_way = False
            if error is not None:
                for sha256 in hashes:
                    self._reports.add(upload_id, sha256)
                self._report_at = self.control.loop.clock.monotonic() + _REPORT_AGAIN_S
                log.info("reporting stored chunks again: %s", error.message)
            else:
                self._report()

        message = Stored(upload_id=upload_id, hashes=b"".join(hashes))
        self.control.request(message, _TIMEOUT_S, self.control.loop, answer)

    # -- numbers ------------------------------------------------------------------------

    def _room(self) -> tuple[int, str]:
        """Bytes of chunks that are still taken here; and why none are, at present, if so."""
        try:
            return self._store.free(), ""
        except ZchunkError as error:
            return 0, wire.sendable(error.message, MAX_REASON)

    def _capacity(self, free: int) -> int:
        return self._store.capacity if self._store.capacity is not None else self._store.used + free
