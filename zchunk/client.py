"""The Python API: the engine of the commands, for other programs.

    with zchunk.Client(home="~/.local/share/zchunk") as client:
        for record in client.ls():
            print(record.name, record.size)
        client.get("scan.tif", "scan.tif")

A client is a member without storage: a control plane and a bulk plane, each in a
thread of its own. All methods block; they raise `zchunk.errors.ZchunkError`. Several threads
may use one client at the same time; a process that was forked needs a client of its own.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import ValidationError

from zchunk.clock import SystemClock, iso_utc
from zchunk.config import Settings
from zchunk.config import load as load_settings
from zchunk.content.encryption import Lock, Secret, head_of, open_manifest
from zchunk.content.manifest import chunk_count
from zchunk.errors import (
    ClientClosed,
    ForeignProcess,
    IntegrityError,
    InvalidUsage,
    KeyNeeded,
    NotAllowed,
    NotFound,
    PeersUnsure,
    TargetExists,
    TooFewPeers,
    TrackerUnreachable,
    UnknownMessage,
    ZchunkError,
)
from zchunk.node import views
from zchunk.node.bulk.location import Location, location
from zchunk.node.bulk.plane import BULK_IO_THREADS, BulkPlane
from zchunk.node.control.event_feed import Missed
from zchunk.node.control.hello_wait import HelloWait, PlanPatience
from zchunk.node.control.plane import ControlPlane
from zchunk.node.download.part_file import open_part, remove_leftovers, safe_target_name, target_has_content
from zchunk.node.download.preparing import Preparing
from zchunk.node.download.runner import Download
from zchunk.node.download.target import check_regular, followed
from zchunk.node.home.membership import check_transport, identity_of, of_home, own_node
from zchunk.node.job_events import Downloaded
from zchunk.node.jobs.blocking import OnEvent, run, take_pending
from zchunk.node.jobs.control import KeptJob
from zchunk.node.jobs.desk import JobDesk
from zchunk.node.jobs.records import JobRecord, JobStatus, book_of
from zchunk.node.manager import DistributedChunkManager, PutOptions, file_name
from zchunk.node.planes import bulk_plane, control_plane
from zchunk.node.upload.source_file import SourceFile
from zchunk.node.upload.upload_keys import Encryption, UploadKeys
from zchunk.protocol.messages import (
    Abandon,
    Event,
    FileRecord,
    Files,
    GetSnapshot,
    ListFiles,
    Locate,
    Located,
    Message,
    PeerRecord,
    Plan,
    Planned,
    Remove,
    Removed,
    Request,
    Snapshot,
)
from zchunk.runtime.blocking_calls import Call, Calls, ShutOut
from zchunk.runtime.loop import Loop, LoopThread, ThreadWorkers
from zchunk.system import disk
from zchunk.system.os_errors import check_descriptors
from zchunk.transport.zeromq import ZmqTransport

if TYPE_CHECKING:
    from zchunk.node.reading.file_object import ChunkStream

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
#: A passphrase or key, or what is called for it when a file turns out to be encrypted.
Unlock = Secret | Callable[[Lock], Secret]

#: A large file's plan, manifest or listing may take the tracker a while.
_REQUEST_S = 30.0
#: Its planes and their connections to the tracker have 32, a job has its door with 3 and up to 8
#: files, each node that it talks to 4.
DESCRIPTORS = 48
#: `close` waits so long for the jobs of other threads to keep what they have.
_CLOSE_S = 10.0


@dataclass(frozen=True)
class _Reply:
    """Of the tracker; one of both is None."""

    message: Message | None
    error: ZchunkError | None


@dataclass(frozen=True)
class _Seen:
    """An event of the cluster."""

    event: dict[str, Any]


@dataclass(frozen=True)
class _NewsOfPeers:
    """See `Client._news_of_peers`."""


class PlannedUpload:
    """A plan to confirm: `run` carries it out, `abandon` drops it."""

    def __init__(
        self,
        client: Client,
        source: SourceFile,
        name: str,
        plan: Plan,
        planned: Planned,
        options: PutOptions,
    ) -> None:
        self._client = client
        self._source = source
        self.name = name
        self.options = options
        self.plan = plan
        self.planned = planned

    @property
    def size(self) -> int:
        return self._source.size

    @property
    def chunks_count(self) -> int:
        return chunk_count(self.size, self.plan.chunk_size)

    def shares(self) -> tuple[views.PeerShare, ...]:
        """Each peer's part."""
        return views.peer_shares(self.plan, self.planned)

    def plan_event(self) -> dict[str, Any]:
        """The `plan` event of SPEC "Machine-readable output"."""
        encrypted = self.options.encrypt is not None
        return views.plan_event(self.name, self.plan, self.planned, encrypted=encrypted)

    def run(self, on_event: OnEvent | None = None) -> dict[str, Any]:
        """Uploads; returns the `done` event. Raises ZchunkError; Ctrl-C leaves it resumable."""
        client = self._client
        try:
            encryption = self._encryption()
            with client.job() as call:
                upload = client.manager.distribute_chunks(
                    source=self._source,
                    name=self.name,
                    plan=self.plan,
                    planned=self.planned,
                    emit=call.emit,
                    encryption=encryption,
                )
                done = run(call, client.bulk.loop, upload.start, upload.stop, on_event)
            if encryption is not None:
                client.upload_keys.forget(self._source.path)
            return done
        finally:
            self._source.close()

    def _encryption(self) -> Encryption | None:
        if self.options.encrypt is None:
            return None
        return self._client.upload_keys.begin(
            self._source.path, self.options.encrypt, hide_name=self.options.hide_name
        )

    def abandon(self) -> None:
        """Drops the plan: others may use the space that it reserved."""
        self._source.close()
        self._client.ask(Abandon(upload_id=self.plan.upload_id), 1.0)


class Client:
    """A member of a cluster, without storage. Use as a context manager; thread-safe. Raises
    ClientClosed after `close`, in other threads too, and ForeignProcess after a fork."""

    def __init__(self, home: str | Path, settings: Settings | None = None) -> None:
        """`home` is the folder that `zchunk join` (or `zchunk node --join`) used.

        Raises NotJoined, and StorageUnavailable when too few descriptors are left. Does not connect to
        the tracker: the first request does.
        """
        self.home = Path(home).expanduser()
        self.settings = settings or load_settings(None)
        self.folder, self.membership = of_home(self.home)
        check_transport(self.membership, self.settings)
        check_descriptors("a client", DESCRIPTORS)
        self._pid = os.getpid()
        self._calls = Calls()
        self._streams: set[ChunkStream] = set()
        self._closing = threading.Lock()
        self._answered_once = False
        clock, identity = SystemClock(), identity_of(self.folder, self.membership)
        self._control_transport = ZmqTransport()
        self._bulk_transport = ZmqTransport(BULK_IO_THREADS)
        control_loop = Loop(self._control_transport.poller(), clock, "client-control")
        bulk_loop = Loop(self._bulk_transport.poller(), clock, "client-bulk")
        self.control: ControlPlane = control_plane(
            loop=control_loop,
            transport=self._control_transport,
            membership=self.membership,
            identity=identity,
            settings=self.settings,
        )
        self.bulk: BulkPlane = bulk_plane(
            loop=bulk_loop,
            control=self.control,
            transport=self._bulk_transport,
            identity=identity,
            settings=self.settings,
            make_workers=ThreadWorkers,
        )
        # Requests are answered with it; who waits for events or a job must hear of it too.
        self.control.on_shut_out = self._calls.shut_out
        self.upload_keys = UploadKeys(self.folder / "uploads")
        self.desk = JobDesk(book_of(self.home, self.folder))
        self.manager = DistributedChunkManager(bulk=self.bulk, keep_at=self.folder / "manifests")
        self._threads = [LoopThread(loop, self._on_failure) for loop in (bulk_loop, control_loop)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the client, and the files that `open` returned. Jobs of other threads stop and keep
        what they have; calls that wait in other threads raise ClientClosed, reads of a file ValueError.
        A second call does nothing, nor does a call in a forked process."""
        if os.getpid() != self._pid or not self._closing.acquire(blocking=False):
            return
        why = ClientClosed("this client is closed; create a new zchunk.Client")
        for stream in list(self._streams):
            stream.close()
        self._calls.stop_jobs(why, _CLOSE_S)
        for thread in self._threads:
            thread.stop()
        self._calls.end(why)
        self._bulk_transport.close()
        self._control_transport.close()

    def interrupt(self) -> None:
        """Stops running transfers like Ctrl-C: they can be resumed. May be called from any thread, or
        from a signal handler; `on_event` gets an event `interrupt`."""
        self._calls.interrupt()

    # -- looking --------------------------------------------------------------------

    def peers(self) -> tuple[PeerRecord, ...]:
        """All storing nodes, by name."""
        snapshot = self._expect(GetSnapshot(), Snapshot)
        return tuple(sorted(snapshot.peers, key=lambda record: (record.name, record.peer_id)))

    def ls(self) -> Iterator[FileRecord]:
        """All files, newest first; the next page is fetched while you read this one."""
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
        """A file's manifest and holders, by name or id. 64 hex digits are always an id. `settled`:
        where the tracker has just started, give holders a lease to say hello. Raises
        NotFound, AmbiguousName, IntegrityError (the tracker answers with another file)."""
        where, hellos = self._locate(name_or_id, unique), HelloWait()
        if not (settled and self._is_unsure(where)):
            return where
        with self._calls.call() as call, self._news_of_peers(call) as due:
            lease_s = self.settings.tracker.lease_s
            while hellos.waits(self._is_unsure(where), lease_s, SystemClock().monotonic()):
                self._await_news(call, hellos.deadline())
                due.clear()
                where = self._locate(name_or_id, unique)
        return where

    def _is_unsure(self, where: Location) -> bool:
        return any(record.unsure for record in where.peers.values())

    def _locate(self, name_or_id: str, unique: bool) -> Location:
        try:
            ask = Locate(name_or_id=name_or_id, unique=unique)
        except ValidationError:
            raise NotFound(
                f"no file has the name or id {name_or_id[:60]!r}; `zchunk ls` lists the files"
            ) from None
        return location(self._expect(ask, Located), name_or_id)

    def remove(self, file_id: str) -> Removed:
        """Removes the file with this id. Chunks that other files share stay."""
        try:
            ask = Remove(file_id=file_id.lower())
        except ValidationError:
            raise NotFound(f"{file_id[:80]!r} is not a file id; `zchunk ls` lists the ids") from None
        removed = self._expect(ask, Removed)
        if removed.file_id != ask.file_id:
            raise IntegrityError(
                f"the tracker was asked to remove {ask.file_id}, but removed {removed.file_id};"
                " `zchunk ls` lists the files"
            )
        return removed

    # -- put ------------------------------------------------------------------------

    def plan_put(
        self,
        path: str | Path,
        options: PutOptions | None = None,
        on_unsure: Callable[[TooFewPeers], None] = lambda error: None,
    ) -> PlannedUpload:
        """What an upload of `path` would do; nothing is stored yet. A tracker that has just
        started does not know yet who is up: waits a lease for its nodes, and `on_unsure` hears so.

        Raises NotFound, NotAllowed or InvalidUsage for the file, TooFewPeers, NoSpace.
        """
        return self._plan_patiently(path, options, PlanPatience(), on_unsure)

    def _plan_now(self, path: str | Path, options: PutOptions | None) -> PlannedUpload:
        source, options = SourceFile(Path(path)), options or PutOptions()
        try:
            name = file_name(source.path, options)
            plan = self.manager.plan_request(source.size, options, self.own_peer())
            return PlannedUpload(self, source, name, plan, self._expect(plan, Planned), options)
        except BaseException:
            source.close()
            raise

    def plan_when_possible(
        self,
        path: str | Path,
        options: PutOptions | None = None,
        on_refused: Callable[[TooFewPeers], None] = lambda error: None,
    ) -> PlannedUpload:
        """As `plan_put`, as soon as there are enough peers for a plan: waits for their events.
        `on_refused` hears why there is none yet, each time that the reason is another one."""
        return self._plan_patiently(path, options, PlanPatience(for_peers=True), on_refused)

    def _plan_patiently(
        self,
        path: str | Path,
        options: PutOptions | None,
        patience: PlanPatience,
        on_refused: Callable[[TooFewPeers], None],
    ) -> PlannedUpload:
        said: str | None = None
        with self._calls.call() as call, self._news_of_peers(call) as due:
            while True:
                due.clear()
                try:
                    return self._plan_now(path, options)
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
                self._await_news(call, patience.deadline())

    def _await_news(self, call: Call, deadline: float | None) -> None:
        """Until the call is told something, or the time has come. Raises why we are shut out."""
        timeout = None if deadline is None else max(0.0, deadline - SystemClock().monotonic())
        with suppress(queue.Empty):
            if isinstance(event := self._next_of(call, timeout), ShutOut):
                raise event.why

    @contextmanager
    def _news_of_peers(self, call: Call) -> Iterator[threading.Event]:
        """In the block the call is told when a peer is up, or is known not to be, or the view of all
        is complete anew: once, until what is yielded is cleared."""
        due = threading.Event()

        def news(record: PeerRecord | None = None) -> None:
            if (record is None or not record.unsure) and not due.is_set():
                due.set()
                call.emit(_NewsOfPeers())

        stop = self.control.watch_peers(self.bulk.loop, news, news)
        try:
            yield due
        finally:
            stop()

    def put(
        self,
        path: str | Path,
        options: PutOptions | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """Plans and uploads a file; returns the `done` event. With `options.encrypt`, a
        `zchunk.Passphrase` or `zchunk.KeyFile`, the file is encrypted before it leaves this PC."""
        return self.plan_put(path, options).run(on_event)

    def own_peer(self) -> str | None:
        """The peer id of the own node: that of this home, or `client.own_node`."""
        named = self.settings.client.own_node
        if named is None:
            return own_node(self.home)
        for record in self.peers():
            if named in (record.name, record.peer_id):
                return record.peer_id
        raise InvalidUsage(
            f"client.own_node is {named!r}, but no node has that name or id; `zchunk peers` lists the nodes"
        )

    # -- get ------------------------------------------------------------------------

    def get(
        self,
        name_or_id: str,
        target: str | Path | None = None,
        *,
        wait: bool = True,
        force: bool = False,
        unlock: Unlock | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """Downloads a file, from all its holders at once; returns the `done` event.

        `target` defaults to the safe last part of the (true) name, in the working folder.
        `wait`: wait for missing peers; else raise PartialDownload and keep the part.
        `unlock`: the secret of an encrypted file, or a function that returns it. Raises TargetExists
        (the target has other content, without `force`), AlreadyRunning, KeyNeeded, WrongKey.
        """
        where = self.opened(self.locate(name_or_id), unlock)
        return self.get_located(where, target, wait=wait, force=force, on_event=on_event)

    def get_located(
        self,
        where: Location,
        target: str | Path | None = None,
        *,
        wait: bool = True,
        force: bool = False,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """As `get`, of what `locate` and `opened` returned. Raises TargetExists also for a target
        that is no regular file, or a link of somebody else; the user's own links are followed."""
        path = _chosen(target, safe_target_name(where.manifest.name))
        with self.job() as call:
            done = self._at_target(call, where, path, force, on_event)
            if done is not None:
                return done
            record = self._new_record(where, path, secrets.token_hex(8), force)
            return self._download(call, where, record, wait, on_event)

    def opened(self, where: Location, unlock: Unlock | None) -> Location:
        """With the manifest of an encrypted file opened: its name and SHA-256 are then the true
        ones. Others come back as they are, unless a secret was given for it: who has one expects
        what its holders made, and by a name the tracker may show another file. Takes a moment
        for a passphrase.

        Raises KeyNeeded (nothing was given), WrongKey, InvalidUsage (not encrypted),
        ManifestInvalid."""
        if where.manifest.sealed is None:
            if unlock is not None and not callable(unlock):
                raise InvalidUsage(
                    f"{where.manifest.name!r} is not encrypted, so this secret cannot be for it; omit the"
                    " secret to download it anyway"
                )
            return where
        lock = head_of(where.manifest).lock
        secret = unlock(lock) if callable(unlock) else unlock
        if secret is None:
            raise KeyNeeded(f"{where.manifest.name!r} is encrypted with {lock.text}; none was given")
        return replace(where, manifest=open_manifest(where.manifest, secret))

    def _check_fetches(self) -> None:
        """Nodes would refuse each chunk: better said at once."""
        if self.membership.role == "observer":
            raise NotAllowed(
                f"{self.membership.name} is an observer and may not download; join with a client token"
                " (`zchunk token --role client` on the tracker's PC prints one)"
            )

    def _at_target(
        self, call: Call, where: Location, path: Path, force: bool, on_event: OnEvent | None
    ) -> dict[str, Any] | None:
        """The `done` event where the target is the file already. Raises TargetExists."""
        if not os.path.lexists(path):
            return None
        emit = on_event or (lambda event: None)
        preparing = Preparing(
            lambda event: emit(event.to_json()),
            SystemClock(),
            job_id=None,
            target=str(path),
            size=where.manifest.size,
        )

        def looked_at(done: int) -> None:
            preparing.looked_at(done)
            take_pending(call, emit)

        if target_has_content(path, where.manifest, looked_at):
            remove_leftovers(path)
            return _done_already(where, path)
        check_regular(path, os.lstat(path))
        if not force:
            raise TargetExists(
                f"{path} exists and has other content; choose another target with -o, or replace it with"
                " --force"
            )
        return None

    def _new_record(self, where: Location, path: Path, job_id: str, force: bool) -> JobRecord:
        return JobRecord(
            job_id=job_id,
            file_id=where.manifest.file_id,
            name=where.manifest.name,
            size=where.manifest.size,
            chunks_count=len(where.manifest.chunks),
            target=str(path.absolute()),
            created_at=iso_utc(SystemClock().wall()),
            auto_resume=self.settings.chunking.auto_resume_downloads,
            force=force,
        )

    def _download(
        self, call: Call, where: Location, record: JobRecord, wait: bool, on_event: OnEvent | None
    ) -> dict[str, Any]:
        """Runs the job in this process; the record becomes that of what is at the target."""
        self._check_fetches()
        try:
            part = open_part(Path(record.target), where.manifest, record.job_id, replaces=record.force)
        except ZchunkError as error:
            self.desk.not_started(record, error)
            raise
        record = replace(record, job_id=part.job_id, created_at=part.created_at)
        kept = KeptJob(
            bulk=self.bulk,
            book=self.desk.book,
            record=record,
            emit=call.emit,
        )
        download = Download(
            bulk=self.bulk,
            where=where,
            part=part,
            wait=wait,
            auto_resume=record.auto_resume,
            emit=kept.emit,
            on_state=kept.state_changed,
        )
        kept.attach(download)
        return run(call, self.bulk.loop, kept.start, kept.stop, on_event)

    # -- ranges ---------------------------------------------------------------------

    def open(
        self,
        name_or_id: str,
        *,
        wait: bool = True,
        unlock: Unlock | None = None,
        on_event: OnEvent | None = None,
    ) -> io.BufferedReader:
        """A file of the cluster as a read-only, seekable binary file object; close it after use.

        It fetches only the chunks that you read, and verifies each one before it returns a byte of it;
        when you read in order, it fetches the next ones ahead. Each open file keeps chunks in memory
        up to `transfer.receive_budget` (64 MiB, or three chunks if that is more).
        `wait`: reads wait for missing peers; else they raise PartialDownload, and reads of
        available chunks still work. `unlock` as for `get`. `on_event` gets `waiting`, `resumed` and
        `corrupt` events while a read waits. Reads raise IntegrityError for a chunk that is corrupt at
        every holder. Raises as `get` does.
        """
        from zchunk.node.reading.file_object import file_object

        where = self.opened(self.locate(name_or_id), unlock)
        return file_object(self.stream(where, wait=wait, on_event=on_event))

    def stream(self, where: Location, *, wait: bool = True, on_event: OnEvent | None = None) -> ChunkStream:
        """Pieces of a file that `locate` and `opened` returned; to be closed."""
        from zchunk.node.reading.file_object import ChunkStream
        from zchunk.node.reading.range_reader import Reader, room_of

        self._check_fetches()
        self._check_process()
        stream = ChunkStream(
            call=self._calls.begin(),
            loop=self.bulk.loop,
            manifest=where.manifest,
            room=room_of(self.bulk, where),
            make_reader=lambda emit: Reader(bulk=self.bulk, where=where, wait=wait, emit=emit),
            on_event=on_event,
            on_close=self._stream_closed,
            check=self._check_process,
        )
        self._streams.add(stream)
        return stream

    def _stream_closed(self, stream: ChunkStream) -> None:
        self._streams.discard(stream)
        self._calls.leave(stream.call)

    # -- jobs -----------------------------------------------------------------------

    def jobs(self) -> list[JobStatus]:
        """The downloads of this home, newest first, also those of other processes."""
        return self.desk.all()

    def pause(self, job_id: str) -> JobStatus:
        """Pauses a running download, in whatever process it runs. `job_id` may be a unique prefix, here
        and below. Raises NotFound, InvalidUsage (too late), PeerUnreachable."""
        return self.desk.pause(self.desk.find(job_id))

    def cancel(self, job_id: str) -> JobStatus:
        """Ends a download and deletes its part. Raises as `pause` does."""
        return self.desk.cancel(self.desk.find(job_id))

    def resume(
        self, job_id: str, *, unlock: Unlock | None = None, on_event: OnEvent | None = None
    ) -> JobStatus:
        """Continues a paused download in its process; a job without a process runs here, to its end,
        with `unlock` as for `get`: a job never stores a key. Raises as `pause` and `get` do."""
        record = self.desk.find(job_id)
        found = self.desk.resume(record)
        if found.active:
            return found
        self.run_job(record, self.locate_job(record, unlock), on_event=on_event)
        return self.desk.status(self.desk.find(record.job_id))

    def locate_job(self, record: JobRecord, unlock: Unlock | None = None) -> Location:
        """The file of a job of this home, opened. Raises NotFound, and as `opened` does."""
        return self.opened(self.locate(record.file_id), unlock)

    def run_job(
        self, record: JobRecord, where: Location, *, on_event: OnEvent | None = None
    ) -> dict[str, Any]:
        """Runs a job that no process runs, of the file that `locate_job` returned; returns the
        `done` event."""
        path = Path(record.target)
        with self.job() as call:
            done = self._at_target(call, where, path, record.force, on_event)
            if done is not None:
                self.desk.completed(record)
                return done
            again = self._new_record(where, path, record.job_id, record.force)
            again = replace(again, created_at=record.created_at)
            return self._download(call, where, again, True, on_event)

    # -- events ---------------------------------------------------------------------

    def events(self, since: int | None = None) -> Iterator[dict[str, Any]]:
        """The events of the cluster from now on, endlessly: dicts with `topic`, `epoch`, `seq`,
        `time` (ISO 8601, the tracker's clock) and the topic's fields (docs/reference/events.md).

        `since`: start after that event of the tracker's present run; 0 starts with the oldest one that
        it keeps. Lost events are fetched; a dict with the topic `missed` reports those that the tracker
        no longer has. While the tracker is off no events come; then they continue by themselves, with
        the first event of the new run.
        Raises TrackerUnreachable when the tracker does not answer at the start, NotAllowed.
        """
        self._expect(GetSnapshot(), Snapshot)
        with self._calls.call() as call:
            stop = self.control.watch_events(
                self.control.loop,
                lambda event: call.emit(_Seen(_event_dict(event))),
                lambda missed: call.emit(_Seen(_missed_dict(missed))),
                since,
            )
            try:
                while True:
                    event = self._next_of(call)
                    if isinstance(event, ShutOut):
                        raise event.why
                    if isinstance(event, _Seen):
                        yield event.event
            finally:
                stop()

    # -- inside ---------------------------------------------------------------------

    @contextmanager
    def job(self) -> Iterator[Call]:
        """Around a job that this thread runs."""
        self._check_process()
        with self._calls.call(job=True) as call:
            yield call

    def ask(self, message: Request, timeout_s: float) -> Message:
        """One request to the tracker. Raises its error, or TrackerUnreachable."""
        with self._calls.call() as call:
            self._send(message, timeout_s, call)
            return self._reply(call, timeout_s)

    def _send(self, message: Request, timeout_s: float, call: Call) -> None:
        self._check_process()

        def answer(reply: Message | None, error: ZchunkError | None) -> None:
            call.emit(_Reply(reply, error))

        self.control.request(message, timeout_s, self.control.loop, answer)

    def _reply(self, call: Call, timeout_s: float) -> Message:
        """To what `_send` sent."""
        self._check_process()
        try:
            while not isinstance(event := call.next(timeout_s + 1.0), _Reply):
                pass
        except queue.Empty:
            raise TrackerUnreachable(f"the tracker at {self._where()} does not answer") from None
        if event.error is not None:
            raise event.error
        self._answered_once = True
        assert event.message is not None
        return event.message

    def _next_of(self, call: Call, timeout_s: float | None = None) -> object:
        """Raises queue.Empty after the time."""
        self._check_process()
        return call.next(timeout_s)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForeignProcess(
                f"this client belongs to process {self._pid} and does not work after a fork;"
                " create a zchunk.Client in each process"
            )

    def _expect(self, message: Request, kind: type[M]) -> M:
        self._check_tracker()
        return _of_kind(self.ask(message, _REQUEST_S), kind)

    def _check_tracker(self) -> None:
        """A tracker that is not there is told within seconds, whatever is asked."""
        if not self._answered_once:
            self.ask(GetSnapshot(), self.settings.client.tracker_timeout_s)

    def _on_failure(self, error: BaseException) -> None:
        self._calls.end(error)
        if isinstance(error, ZchunkError):
            return  # what the system refused: the caller gets it as an exception
        log.error("a bug stopped this client", exc_info=error)

    def _where(self) -> str:
        return ", ".join(self.membership.tracker)


def _of_kind(reply: Message, kind: type[M]) -> M:
    if not isinstance(reply, kind):
        raise UnknownMessage(f"the tracker answered with {reply.TYPE!r} instead of {kind.TYPE!r}")
    return reply


def _event_dict(event: Event) -> dict[str, Any]:
    own = {
        "topic": event.topic,
        "epoch": event.epoch,
        "seq": event.seq,
        "time": iso_utc(event.time_ms / 1000),
    }
    return {**own, **event.fields, **own}  # its own come first, and are not overwritten


def _missed_dict(missed: Missed) -> dict[str, Any]:
    numbers = {"seq": missed.last, "first": missed.first, "last": missed.last}
    return {"topic": "missed", "epoch": missed.epoch, "time": iso_utc(SystemClock().wall()), **numbers}


def _chosen(target: str | Path | None, name: str) -> Path:
    """The file to write; `name` is its name where the target is a folder, or was not given."""
    path = Path(name if target is None else target)
    with disk.storage_errors(path, "checking"):
        path = followed(path)
        return followed(path / name) if path.is_dir() else path


def _done_already(where: Location, path: Path) -> dict[str, Any]:
    sha256 = where.manifest.sha256
    return Downloaded(
        job_id=None,
        file_id=where.manifest.file_id,
        name=where.manifest.name,
        target=str(path),
        size=where.manifest.size,
        sha256=sha256.hex() if sha256 is not None else None,
        seconds=0.0,
        bytes_received=0,
        bytes_received_by_peer={},
        chunks_count=len(where.manifest.chunks),
        already=True,
    ).to_json()
