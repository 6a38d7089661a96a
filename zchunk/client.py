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
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zchunk.clock import SystemClock
from zchunk.config import Settings
from zchunk.config import load as load_settings
from zchunk.content.encryption import Lock, Secret, head_of, open_manifest
from zchunk.errors import ClientClosed, InvalidUsage, KeyNeeded, TooFewPeers, ZchunkError
from zchunk.node.bulk.location import Location
from zchunk.node.bulk.plane import BULK_IO_THREADS, BulkPlane
from zchunk.node.control.plane import ControlPlane
from zchunk.node.download.target import chosen_target
from zchunk.node.download.target_content import safe_target_name
from zchunk.node.home.membership import check_fetches, check_transport, identity_of, of_home, own_node
from zchunk.node.jobs.blocking import OnEvent, run, take_pending
from zchunk.node.jobs.desk import JobDesk
from zchunk.node.jobs.records import JobRecord, JobStatus, book_of
from zchunk.node.jobs.service import JobService
from zchunk.node.manager import DistributedChunkManager, PutOptions
from zchunk.node.planes import bulk_plane, control_plane
from zchunk.node.tracker_requests import TrackerRequests
from zchunk.node.upload.upload_keys import UploadKeys
from zchunk.node.upload_plans import PlannedUpload, UploadPlans
from zchunk.protocol.messages import FileRecord, Message, PeerRecord, Removed, Request
from zchunk.runtime.blocking_calls import Calls
from zchunk.runtime.loop import Loop, LoopThread, ThreadWorkers
from zchunk.system.os_errors import check_descriptors
from zchunk.transport.zeromq import ZmqTransport

if TYPE_CHECKING:
    from zchunk.node.reading.file_object import ChunkStream

log = logging.getLogger(__name__)

__all__ = ["Client", "PlannedUpload", "Unlock"]

#: A passphrase or key, or what is called for it when a file turns out to be encrypted.
Unlock = Secret | Callable[[Lock], Secret]

#: Its planes and their connections to the tracker have 32, a job has its door with 3 and up to 8
#: files, each node that it talks to 4.
DESCRIPTORS = 48
#: `close` waits so long for the jobs of other threads to keep what they have.
_CLOSE_S = 10.0


class Client:
    """A member of a cluster, without storage. Use as a context manager; thread-safe: several
    threads may run a job each at the same time. Raises ClientClosed after `close`, in other
    threads too, and ForeignProcess after a fork."""

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
        self._calls = Calls()
        self._streams: set[ChunkStream] = set()
        self._closing = threading.Lock()
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
        where = ", ".join(self.membership.tracker)
        self._requests = TrackerRequests(
            control=self.control, calls=self._calls, settings=self.settings, where=where
        )
        self.desk = JobDesk(book_of(self.home, self.folder))
        self._service = JobService(bulk=self.bulk, desk=self.desk, membership=self.membership)
        self._uploads = UploadPlans(
            manager=DistributedChunkManager(bulk=self.bulk, keep_at=self.folder / "manifests"),
            requests=self._requests,
            calls=self._calls,
            keys=UploadKeys(self.folder / "uploads"),
            own_peer=self.own_peer,
        )
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
        if self._calls.is_foreign or not self._closing.acquire(blocking=False):
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
        return self._requests.peers()

    def ls(self) -> Iterator[FileRecord]:
        """All files, newest first; the next page is fetched while you read this one."""
        return self._requests.files()

    def locate(self, name_or_id: str, unique: bool = False, *, settled: bool = False) -> Location:
        """A file's manifest and holders, by name or id. 64 hex digits are always an id. `settled`:
        where the tracker has just started, give holders a lease to say hello. Raises
        NotFound, AmbiguousName, IntegrityError (the tracker answers with another file)."""
        return self._requests.locate(name_or_id, unique, settled=settled)

    def remove(self, file_id: str) -> Removed:
        """Removes the file with this id. Chunks that other files share stay."""
        return self._requests.remove(file_id)

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
        return self._uploads.plan(Path(path), options or PutOptions(), on_unsure)

    def plan_when_possible(
        self,
        path: str | Path,
        options: PutOptions | None = None,
        on_refused: Callable[[TooFewPeers], None] = lambda error: None,
    ) -> PlannedUpload:
        """As `plan_put`, as soon as there are enough peers for a plan: waits for their events.
        `on_refused` hears why there is none yet, each time that the reason is another one."""
        return self._uploads.plan(Path(path), options or PutOptions(), on_refused, for_peers=True)

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
        path = chosen_target(target, safe_target_name(where.manifest.name))
        record = self._service.new_download(where, path, force=force)
        return self._download(where, record, path, wait, on_event)

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

    def _download(
        self, where: Location, record: JobRecord, path: Path, wait: bool, on_event: OnEvent | None
    ) -> dict[str, Any]:
        """Runs the job in this process. `path` is the target as the caller named it."""
        emit = on_event or (lambda event: None)
        with self._calls.call(job=True) as call:
            done = self._service.at_target(
                where,
                path,
                force=record.force,
                emit=lambda event: emit(event.to_json()),
                check=lambda: take_pending(call, emit),
            )
            if done is not None:
                self._service.found_complete(record)
                return done.to_json()
            job = self._service.download(where, record, wait=wait, emit=call.emit)
            return run(call, self.bulk.loop, job.start, job.stop, on_event)

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

        check_fetches(self.membership)
        stream = ChunkStream(
            call=self._calls.begin(),
            loop=self.bulk.loop,
            manifest=where.manifest,
            room=room_of(self.bulk, where),
            make_reader=lambda emit: Reader(bulk=self.bulk, where=where, wait=wait, emit=emit),
            on_event=on_event,
            on_close=self._stream_closed,
            check=self._calls.check_process,
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
        again = self._service.download_again(where, record)
        return self._download(where, again, Path(record.target), True, on_event)

    # -- events and requests ----------------------------------------------------------

    def events(self, since: int | None = None) -> Iterator[dict[str, Any]]:
        """The events of the cluster from now on, endlessly: dicts with `topic`, `epoch`, `seq`,
        `time` (ISO 8601, the tracker's clock) and the topic's fields (docs/reference/events.md).

        `since`: start after that event of the tracker's present run; 0 starts with the oldest one that
        it keeps. Lost events are fetched; a dict with the topic `missed` reports those that the tracker
        no longer has. While the tracker is off no events come; then they continue by themselves, with
        the first event of the new run.
        Raises TrackerUnreachable when the tracker does not answer at the start, NotAllowed.
        """
        from zchunk.node import views

        with closing(self._requests.events(since)) as events:
            for event in events:
                yield views.cluster_event(event)

    def ask(self, message: Request, timeout_s: float) -> Message:
        """One request to the tracker. Raises its error, or TrackerUnreachable."""
        return self._requests.ask(message, timeout_s)

    def _on_failure(self, error: BaseException) -> None:
        self._calls.end(error)
        if isinstance(error, ZchunkError):
            return  # what the system refused: whoever waits is told
        log.error("a bug ended this client", exc_info=error)
