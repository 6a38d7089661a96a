"""The tracker's process: sockets, store thread, start and end. Decisions are `core`'s."""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from zchunk import addresses, disk, jsonfiles
from zchunk.clock import Clock, Now, read
from zchunk.config import Settings
from zchunk.disconnects import Disconnects
from zchunk.errors import (
    AlreadyRunning,
    InvalidUsage,
    NotAllowed,
    NotFound,
    StorageFailure,
    UnknownMessage,
    ZchunkError,
)
from zchunk.homestate import HomeState, is_there
from zchunk.interfaces import interface_addresses
from zchunk.knocks import Knocks
from zchunk.locks import FileLock, Timeout, locked
from zchunk.loop import Loop, contained
from zchunk.misuse import Misuse
from zchunk.outstanding import Outstanding, Ticket
from zchunk.protocol import wire
from zchunk.protocol.messages import ErrorReply, MembersChanged, Message, Ok
from zchunk.refusals import Refusals
from zchunk.tracker import commanddoor
from zchunk.tracker import gate as gates
from zchunk.tracker.actions import Action, CutOff, LookAtMembers, Publish, Reply, Sender, Work, is_own
from zchunk.tracker.core import TrackerCore
from zchunk.tracker.gate import admitted
from zchunk.tracker.membership import Membership
from zchunk.tracker.requests.presence import Timing
from zchunk.tracker.store import TrackerStore
from zchunk.tracker.storemark import StoreMark
from zchunk.tracker.storequeue import StoreQueue
from zchunk.transport.auth import Token, load_key, make_key, new_key_pair
from zchunk.transport.base import (
    Arrival,
    BoundSocket,
    Delivery,
    Gate,
    Knock,
    Received,
    Socket,
    SocketOptions,
    Suspects,
    Transport,
)
from zchunk.transport.keys import CurveServer, KeyPair
from zchunk.transport.selftest import Door, prove_closed

log = logging.getLogger(__name__)

CONTROL = SocketOptions(max_frame_bytes=wire.MAX_REQUEST_FRAME_BYTES, heartbeats=True)
#: What comes here are subscriptions: short, and a few. A handshake is the longest frame.
EVENTS = SocketOptions(max_frame_bytes=512, send_mark=10_000, receive_mark=16, heartbeats=True)

#: A disk that stays full is told of so often.
_PROBLEM_S = 60.0

Outcome = tuple[Any, ZchunkError | None]


class StoreRunner(Protocol):
    """Where `Work` runs: a thread, or in a simulation at once."""

    def submit(
        self,
        run: Callable[[TrackerStore], Any],
        done: Callable[[Outcome], None],
        reader: str | bytes | None = None,
    ) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    run: Callable[[TrackerStore], Any]
    done: Callable[[Outcome], None]


class StoreThread:
    """One writer. Works that wait together share one transaction and so one sync; their
    outcomes are told only after it is on disk."""

    def __init__(self, store: TrackerStore, loop: Loop) -> None:
        self._store = store
        self._loop = loop
        self._queue: StoreQueue[_Waiting] = StoreQueue()
        self._closing = False
        #: guards both, and tells of news in them
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tracker-store", daemon=True)
        self._thread.start()

    def submit(
        self,
        run: Callable[[TrackerStore], Any],
        done: Callable[[Outcome], None],
        reader: str | bytes | None = None,
    ) -> None:
        """`reader`: who asks, where it only reads."""
        with self._news:
            self._queue.add(_Waiting(run, done), reader)
            self._news.notify()

    def close(self) -> None:
        """Does what waits, then ends."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(timeout=10)
        self._store.close()

    def _take(self) -> list[_Waiting]:
        with self._news:
            self._news.wait_for(lambda: self._closing or len(self._queue))
            return self._queue.take()

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._run_batch(batch)
        except BaseException as error:  # noqa: BLE001 - handed to the loop, which ends with it
            failure = error
            self._loop.post(lambda: _raise(failure))

    def _run_batch(self, batch: list[_Waiting]) -> None:
        outcomes = _outcomes(self._store, [one.run for one in batch])
        for one, outcome in zip(batch, outcomes, strict=True):
            self._loop.post(lambda done=one.done, outcome=outcome: done(outcome))  # type: ignore[misc]


def _outcomes(store: TrackerStore, runs: Sequence[Callable[[TrackerStore], Any]]) -> list[Outcome]:
    """Of all in one transaction. Where the database fails (its disk is full, it is locked) nothing of
    them is there: then each by itself, since those that only read may well succeed."""
    try:
        return store.together(lambda: [_attempt(store, run) for run in runs])
    except ZchunkError as error:
        if len(runs) == 1:
            return [(None, error)]
        return [outcome for run in runs for outcome in _outcomes(store, [run])]


def _weight(frames: Sequence[wire.Buffer]) -> int:
    """Bytes that a request holds while it is worked on. What its header became is larger."""
    return sum(map(len, frames)) + 15 * len(frames[0])


def _attempt(store: TrackerStore, run: Callable[[TrackerStore], Any]) -> Outcome:
    try:
        return run(store), None
    except ZchunkError as error:
        return None, error


def _raise(error: BaseException) -> None:
    raise error


#: part of a tracker's home -> (option that makes it anew, what that means)
PARTS = {
    "key": ("--new-key", "every member then joins again, with a new token"),
    "members": ("--new-members", "nobody is a member then: every PC joins again, with a new token"),
    "database": (
        "--new-database",
        "files that are stored now are not listed then, and their chunks stay on the nodes",
    ),
}
_KEY, _MEMBERS, _ENDPOINTS = "key.json", "members.json", "endpoints.json"
_DATABASE = "tracker.sqlite"
#: What an earlier release left beside each part (homestate.py).
_TRACES = {
    "key": (_MEMBERS, _DATABASE, _ENDPOINTS),
    "members": (_ENDPOINTS,),
    "database": (_MEMBERS, _ENDPOINTS),
}


class TrackerFiles:
    """What lies in HOME/tracker: key, allow list, store. Each is made at the tracker's first
    start; later its absence is a loss, and StateLost says what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = HomeState(folder, _TRACES)

    def key(self) -> KeyPair:
        path = self.folder / _KEY
        key = load_key(path)
        if key is None:
            self._check_first("key", f"{path} is missing")
            key = make_key(path)
        return key

    def membership(self, clock: Clock) -> Membership:
        """It has no file before the first token is made."""
        path = self.folder / _MEMBERS
        if not is_there(path):
            self._check_first("members", f"the list of members {path} is missing")
        return Membership(path, clock)

    def store(self, settings: Settings, clock: Clock) -> TrackerStore:
        """Raises as `TrackerStore.open` does."""
        at = self._database(settings)
        if (absence := TrackerStore.absence(at)) is not None:
            self._check_first("database", absence)
        return TrackerStore.open(at, clock)

    def begin(self, settings: Settings, anew: Collection[str]) -> None:
        """To be called by a tracker's start, before it makes anything. `anew`: those of `PARTS`
        that were lost and are to be made anew; InvalidUsage for one that is there."""
        there = {
            "key": lambda: is_there(self.folder / _KEY),
            "members": lambda: is_there(self.folder / _MEMBERS),
            "database": lambda: TrackerStore.absence(self._database(settings)) is None,
        }
        for part in anew:
            if there[part]():
                raise InvalidUsage(
                    f"{PARTS[part][0]} is for a lost one, and this tracker has it; move it away first"
                )
        self._state.forget(*anew)

    def note(self, *parts: str) -> None:
        """These of `PARTS` are there from now on."""
        self._state.note(*parts)

    @property
    def has_run(self) -> bool:
        return is_there(self.folder / _ENDPOINTS) or self._state.was_made("key")

    def _database(self, settings: Settings) -> str:
        return settings.tracker.database or str(self.folder / _DATABASE)

    def _check_first(self, part: str, loss: str) -> None:
        option, meaning = PARTS[part]
        self._state.check_first(
            part,
            f"{loss}, though this tracker has run before: put a copy of it back, or start the tracker once"
            f" with `zchunk tracker {option}` ({meaning})",
        )

    def lock(self) -> FileLock:
        """Held while a tracker runs on this home; AlreadyRunning where one does."""
        with disk.storage_errors(self.folder, "locking"):
            disk.private_folder(self.folder)
            try:
                return locked(self.folder / "tracker.lock")
            except Timeout:
                raise AlreadyRunning(f"another tracker runs on {self.folder}; stop it first") from None


class TrackerServer:
    """Carries out what `TrackerCore` decides, on one loop."""

    def __init__(
        self,
        *,
        core: TrackerCore,
        router: BoundSocket,
        publisher: BoundSocket,
        loop: Loop,
        store: StoreRunner,
        membership: Membership,
        gate: Gate | None,
    ) -> None:
        """`gate` is None in plain transport: a message's word on its sender is believed there."""
        self.core = core
        self._membership = membership
        self._gate = gate
        self._router = router
        self._publisher = publisher
        self._loop = loop
        self._store = store
        self._refusals, self._refused_keys = Refusals(), Refusals()
        self._misuse = Misuse()
        #: what was said last of our own files, and when it is said again
        self._problem_told, self._problem_again = "", 0.0
        #: why the allow list cannot be read
        self._members_problem = ""
        self._outstanding = Outstanding()
        self._disconnects = Disconnects(loop, router, self._gone)
        if gate is not None:
            Knocks(loop, gate, self._on_knock)
        loop.add_socket(router, self._on_message)
        loop.add_socket(publisher, lambda _: None)
        loop.add_timed(self)
        loop.on_close(store.close)

    @property
    def refused(self) -> int:
        """Requests that could not be read, or were answered with an error."""
        return self._refusals.count

    def listen_to_commands(self, door: Socket) -> None:
        """`door` is a Unix socket in the tracker's home (commanddoor.py)."""
        self._loop.add_socket(door, partial(self._on_command, door))

    def _on_command(self, door: Socket, received: Arrival) -> None:
        if not isinstance(received, Received):
            return
        request_id: int | None = None
        try:
            envelope = wire.decode(received.frames, wire.MAX_REQUEST_HEADER_BYTES)
            request_id = envelope.request_id
            if not isinstance(envelope.message, MembersChanged):
                raise UnknownMessage(f"{envelope.message.TYPE!r} is nothing that a command says here")
        except ZchunkError as error:
            self._answer_command(door, received, error.details.get("request_id", request_id), error)
        else:
            self._read_members(partial(self._answer_command, door, received, request_id))

    def _answer_command(
        self, door: Socket, received: Received, request_id: int | None, error: ZchunkError | None
    ) -> None:
        if request_id is None:
            door.reject(received)  # it cannot be answered
        else:
            answer: Message = Ok() if error is None else wire.error_reply(error)
            door.send(wire.encode(answer, request_id), received.connection)

    def deadline(self) -> float | None:
        return self.core.deadline()

    def on_time(self, now: float) -> None:
        self._perform(self.core.advance(self._now()))

    def _now(self) -> Now:
        return read(self._loop.clock)

    def _gone(self, connection: bytes) -> None:
        self._perform(self.core.connection_gone(connection, self._now()))

    # -- the allow list ---------------------------------------------------------------

    def _read_members(self, then: Callable[[ZchunkError | None], None]) -> None:
        """In the store's thread, since it may block; what follows of it is carried out before `then`."""

        def done(outcome: Outcome) -> None:
            listed, error = outcome
            if error is None:
                self._perform(self.core.members_changed(listed, self._now()))
            then(error)

        self._store.submit(lambda _: self._membership.refresh(), done)

    def look_at_members(self, then: Callable[[], None] = lambda: None) -> None:
        """Reads the list if it is another than last time. Until it can be read it stays as it was."""

        def looked(error: ZchunkError | None) -> None:
            if error is not None and error.message != self._members_problem:
                log.warning("the allow list stays as it was: %s", error.message)
            self._members_problem = "" if error is None else error.message
            then()

        try:
            is_current = self._membership.is_current()
        except ZchunkError as error:
            looked(error)
        else:
            if not is_current:
                self._read_members(looked)
                return
            self._perform(self.core.members_changed(self._membership.listed, self._now()))
            looked(None)

    def _on_knock(self, knock: Knock) -> None:
        if self._admitted(knock) is None:  # perhaps of a list that was put back by hand
            self.look_at_members(partial(self._answer_knock, knock))
        else:
            self._answer_knock(knock)

    def _admitted(self, knock: Knock) -> str | None:
        return admitted(self.core.peers.listed, knock.door, knock.public_key, self._now())

    def _answer_knock(self, knock: Knock) -> None:
        assert self._gate is not None
        peer_id = self._admitted(knock)
        if peer_id is None:
            error = NotAllowed(f"a key at {knock.door}")
            self._refused_keys.tell(error, knock.address, self._now().mono, log.info)
        self._gate.answer(knock, peer_id)

    # -- requests ---------------------------------------------------------------------

    def _on_message(self, received: Arrival) -> None:
        if isinstance(received, Suspects):
            self._disconnects.suspect(received.connections)
        if not isinstance(received, Received):
            return
        sender = Sender(received.connection, received.peer_id, received.address)
        request_id: int | None = None
        try:
            envelope = wire.decode(received.frames, wire.MAX_REQUEST_HEADER_BYTES)
            request_id = envelope.request_id
            if self._gate is None:
                sender = replace(sender, peer_id=envelope.claim)
            ticket = self._outstanding.begin(sender.peer_id or sender.connection, _weight(received.frames))
        except ZchunkError as error:
            request_id = error.details.get("request_id", request_id)
            if request_id is None:
                self._refused(error, sender)
            else:
                self._reply(Reply(sender.connection, request_id, wire.error_reply(error)), sender)
            return
        try:
            actions = self.core.handle(sender, request_id, envelope.message, self._now())
            self._perform(actions, ticket, sender)
        finally:
            if not ticket.works:
                self._outstanding.end(ticket)

    def _refused(self, error: ZchunkError, sender: Sender | None) -> bool:
        """Counts it. Whether the sender is cut off, and so needs no answer."""
        now = self._now().mono
        self._refusals.tell(error, sender.address if sender else None, now, log.info)
        if self._gate is None or sender is None or sender.peer_id is None:
            return False
        if cut_off := self._misuse.is_too_much(error, sender.peer_id, now):
            self._router.end(sender.peer_id)
        return cut_off

    def _problem(self, error: ZchunkError) -> None:
        """An error of our own files: those who asked are told of it without its path."""
        now = self._now().mono
        if error.message != self._problem_told or now >= self._problem_again:
            log.error("%s", error.message)
            self._problem_told, self._problem_again = error.message, now + _PROBLEM_S

    def _perform(
        self, actions: list[Action], ticket: Ticket | None = None, sender: Sender | None = None
    ) -> None:
        """`ticket` and `sender` are those of the request that led to them."""
        for action in actions:
            if isinstance(action, Reply):
                self._reply(action, sender)
            elif isinstance(action, Publish):
                event = action.event
                self._publisher.send([event.topic.encode(), *wire.encode(event)])
            elif isinstance(action, CutOff):
                self._router.end(action.peer_id)
                self._publisher.end(action.peer_id)
            elif isinstance(action, LookAtMembers):
                self.look_at_members()
            else:
                self._work(action, ticket, sender)

    def _work(self, action: Work, ticket: Ticket | None, sender: Sender | None) -> None:
        def done(outcome: Outcome) -> None:
            value, error = outcome
            if error is not None and is_own(error):
                self._problem(error)
            self._perform(action.then(value, error, self._now()), ticket, sender)
            if ticket is not None:
                ticket.works -= 1
                if not ticket.works:
                    self._outstanding.end(ticket)

        if ticket is not None:
            ticket.works += 1
        run = contained(action.run) if sender is not None else action.run
        self._store.submit(run, done, ticket.who if ticket is not None and action.reads else None)

    def _reply(self, action: Reply, sender: Sender | None) -> None:
        if isinstance(action.message, ErrorReply):
            # What another waited for may end with this request: that is not the sender's doing.
            theirs = sender if sender and sender.connection == action.connection else None
            if self._refused(wire.raised(action.message), theirs):
                return
        # A requester that is gone or full asks again: requests are idempotent.
        frames = wire.encode(action.message, action.request_id)
        if self._router.send(frames, action.connection) is Delivery.GONE:
            self._gone(action.connection)


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
            self.server.listen_to_commands(commanddoor.open_door(self.files.folder))
        except (OSError, ZchunkError) as error:
            log.warning("what commands change here is in force within a second, not at once: %s", error)

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


def save_endpoints(folder: Path, endpoints: tuple[str, ...]) -> None:
    disk.write_durable(folder / _ENDPOINTS, json.dumps(endpoints).encode())


def load_endpoints(path: Path) -> tuple[str, ...]:
    """Raises StorageFailure for a file that is damaged or missing: the tracker's next start makes it
    anew; else as `disk.storage_errors` does."""
    try:
        with disk.storage_errors(path, "reading"):
            endpoints = jsonfiles.texts(jsonfiles.read(path))
        for endpoint in endpoints:
            addresses.parse(endpoint)
    except (NotFound, ValueError, InvalidUsage):
        endpoints = ()
    if not endpoints:
        raise StorageFailure(f"{path} is missing or damaged; start the tracker once, which makes it anew")
    return endpoints


def make_token(
    files: TrackerFiles, clock: Clock, *, role: str, expires_s: float, once: bool, transport: str
) -> Token:
    """A new join token for the tracker of this home, on its allow list from now on."""
    if not files.has_run:
        raise NotFound(f"no tracker has run on {files.folder} yet; start it once with `zchunk tracker`")
    key, endpoints = files.key(), load_endpoints(files.folder / _ENDPOINTS)
    pair = new_key_pair()
    expires_ms = int((clock.wall() + expires_s) * 1000)
    files.membership(clock).add_token(pair.public, role, expires_ms, once)
    files.note("members")
    return Token(endpoints, key.public, transport, role, pair, expires_ms)
