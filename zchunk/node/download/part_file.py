"""A download on disk: `<target>.zpart`, `<target>.zjob`, and the last step to `<target>`.

The .zpart has the file's full length from the start, each chunk at its place, plain also of
an encrypted file. The .zjob is a JSON journal: which file, which job, which chunks are in
place; no key, and nothing that only a key tells. Bytes on disk are the truth (`scan`), the
journal is a hint and says which file the bytes are of: a .zpart without a .zjob of the same
file id counts for nothing and is moved aside, never deleted.

What each kill leaves, and what the next run makes of it:
- a .zjob alone (before the .zpart, or after the final rename): the job goes on from
  nothing; `remove_leftovers` takes it away where the target is complete;
- both: the job goes on with every chunk that `scan` finds whole;
- a `.zlock` nobody holds: taken over. It is held by the process, not by the file.

May not happen here: a journal that vouches for data which is not durable; a second
writer of one target; a sync tried again after it failed; an open descriptor across the
final rename.

One thread writes (`write_chunk`); `mark` and `save` may be called from another one.
Callers: the client opens it; runner.py, sinks.py and running_digest.py use it, through their worker
threads. job_info.py has the journal, leftovers.py what earlier downloads left.
"""

from __future__ import annotations

import base64
import errno
import itertools
import json
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from zchunk.clock import Clock, SystemClock, iso_utc
from zchunk.content import hashing, zeros
from zchunk.content.manifest import Manifest
from zchunk.errors import (
    ChunkCorrupt,
    NotAllowed,
    NotFound,
    StorageFailure,
    TargetExists,
    ZchunkError,
)
from zchunk.node.download.job_info import JOB_VERSION, JobInfo, as_ranges, load_job
from zchunk.node.download.leftovers import delete_ours, lock_target
from zchunk.node.download.part_names import ASIDE, JOB, NOFOLLOW, PART, TEMP
from zchunk.node.download.target import beside, check_regular, mode_of, put_in_place
from zchunk.node.download.target_lock import TargetLock
from zchunk.system import disk


def has_part(target: Path) -> bool:
    return os.path.lexists(beside(target, PART))


# -- opening --------------------------------------------------------------------------


def open_part(
    target: Path, manifest: Manifest, job_id: str, *, replaces: bool = False, clock: Clock | None = None
) -> PartFile:
    """Begins the download of `manifest` to `target`, or goes on with it, whichever the files
    beside the target say; then `PartFile.job_id` is the earlier job's. `replaces`: a file that
    is at the target at the end, too.

    On return the journal is durable and all space is taken. Raises AlreadyRunning (details:
    the other's `job_id`), TargetExists (no regular file), NotFound (no such folder), NotAllowed,
    NoSpace (retryable: the job is kept), StorageFailure.
    """
    _check_target(target)
    lock = lock_target(target)
    try:
        job = _own_job(target, manifest, lock)
        if job is not None:
            return PartFile(target, manifest, job.job_id, job.created_at, set(job.completed), lock, replaces)
        created_at = iso_utc((clock or SystemClock()).wall())
        return PartFile(target, manifest, job_id, created_at, set(), lock, replaces)
    except BaseException:
        lock.release()
        raise


def _check_target(target: Path) -> None:
    with disk.storage_errors(target, "checking"):
        if target.is_dir():
            raise TargetExists(f"{target} is a folder: give the name of a file in it", target=str(target))
        if not target.parent.is_dir():
            raise NotFound(f"the folder {target.parent} does not exist: create it first", target=str(target))
        with suppress(FileNotFoundError):
            check_regular(target, os.lstat(target))


def _own_job(target: Path, manifest: Manifest, lock: TargetLock) -> JobInfo | None:
    """The job to go on with. What belongs to another one is moved aside first."""
    part, path = beside(target, PART), beside(target, JOB)
    job = load_job(path)
    is_ours = job is not None and job.file_id == manifest.file_id and _is_ours(path, lock)
    if is_ours and (not os.path.lexists(part) or _is_ours(part, lock)):
        return job
    if is_ours:
        _move_aside(target, (PART,))
        return job
    _move_aside(target, (PART, JOB))
    return None


def _is_ours(path: Path, lock: TargetLock) -> bool:
    """What another user has made, or has a name of, may change at any time."""
    try:
        return lock.owns(os.lstat(path))
    except FileNotFoundError:
        return False


def _move_aside(target: Path, suffixes: tuple[str, ...]) -> None:
    """Keeps what we may not use as `<name>.aside-N`, the pair under one number."""
    found = [suffix for suffix in suffixes if os.path.lexists(beside(target, suffix))]
    if not found:
        return
    number = next(n for n in itertools.count(1) if not _aside_taken(target, n))
    with disk.storage_errors(target, "moving an older download aside for"):
        for suffix in found:
            os.rename(beside(target, suffix), beside(target, f"{suffix}{ASIDE}{number}"))
        disk.sync_folder(target.parent)


def _aside_taken(target: Path, number: int) -> bool:
    return any(os.path.lexists(beside(target, f"{suffix}{ASIDE}{number}")) for suffix in (PART, JOB))


# -- the part file --------------------------------------------------------------------


class PartFile:
    """One download's files, open for its one writer; made by `open_part`.

    It ends by exactly one of `finish`, `keep` and `abandon`; leaving a `with` block keeps.
    """

    def __init__(
        self,
        target: Path,
        manifest: Manifest,
        job_id: str,
        created_at: str,
        hint: set[int],
        lock: TargetLock,
        replaces: bool,
    ) -> None:
        self.target = target
        self.manifest = manifest
        self.job_id = job_id
        self.created_at = created_at
        #: DownloadJob.state, written by the next `save`
        self.state = "running"
        #: why nothing more is written or vouched for: a sync failed
        self.flag: str | None = None
        self._part, self._job = beside(target, PART), beside(target, JOB)
        self._temp = beside(target, TEMP)
        self._lock = lock
        #: a file at the target is replaced
        self._replaces = replaces
        self._guard = threading.Lock()  # for _completed
        self._saving = threading.Lock()  # one journal at a time
        self._completed = hint
        #: chunks that hold nothing but zeros: holes, which nobody needs to send
        self.zeros = zeros.zero_chunks(manifest)
        #: nothing can be in it that is worth a look
        self.is_new = False
        self._encoded = base64.b64encode(manifest.canonical).decode()
        self._writer: disk.DirectWriter | None = None
        self._open()

    def _open(self) -> None:
        # The journal first: a .zpart alone would be nobody's, and moved aside.
        self.is_new = not os.path.lexists(self._part)
        if self.is_new:
            self._completed = set(self.zeros)
            self._write_journal(self._completed)
        # Never what somebody puts there in this moment.
        writer = disk.DirectWriter(self._part, NOFOLLOW | (os.O_CREAT | os.O_EXCL if self.is_new else 0))
        try:
            self._check_ours(os.fstat(writer.fd))
            self._take_mode(writer.fd, 0o600)
            self._take_space(writer.fd)
        except BaseException:
            writer.close()
            raise
        self._writer = writer

    def _take_space(self, fd: int) -> None:
        """For what is still to be written; blocks of zeros in what is there stay holes."""
        m = self.manifest
        runs = zeros.data_runs(m, self._completed | self.zeros)
        holes = sum(m.length(index) for index in self.zeros)
        disk.preallocate(fd, m.size, self._part, runs, holes)

    def _take_mode(self, fd: int, more: int = 0) -> None:
        """Who may not read what is at the target may not read what replaces it. `more`: what we
        need to go on with it."""
        mode = mode_of(self.target) if self._replaces else None
        if mode is not None:
            with suppress(PermissionError):  # a disk without permissions, as FAT
                os.fchmod(fd, mode | more)

    def _check_ours(self, found: os.stat_result) -> None:
        if not self._lock.owns(found):
            raise NotAllowed(
                f"{self._part} is not a private file of this user: remove it, or choose another target (-o)",
                path=str(self._part),
            )

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keep()

    @property
    def closed(self) -> bool:
        """Whether it has ended, by whatever way."""
        return self._writer is None

    @property
    def completed(self) -> frozenset[int]:
        """Chunks that are marked; before `scan` what the journal claims."""
        with self._guard:
            return frozenset(self._completed)

    # reading

    def scan(self, progress: Callable[[int, int], None] | None = None) -> set[int]:
        """The chunks that are whole on disk, by BLAKE3 of their plain bytes; marks exactly those.
        Those of zeros are, afterwards.

        Reads from the disk itself, not what memory has of it, and skips what was never
        written. `progress(chunks looked at, chunks)` is called after each, and may raise to end
        it: then nothing is marked anew. A chunk that cannot be read is not there. Raises
        StorageFailure when the data does not sync.
        """
        self._sync()
        disk.drop_cache(self._open_writer.fd)
        count = len(self.manifest.chunks)
        found = set()
        with mmap.mmap(-1, self.manifest.chunk_size) as memory, memoryview(memory) as buffer:
            for index in range(count):
                if self._is_whole(index, buffer):
                    found.add(index)
                elif index in self.zeros:
                    self._make_zeros(self.manifest.offset(index), self.manifest.length(index))
                    found.add(index)
                if progress is not None:
                    progress(index + 1, count)
        with self._guard:
            self._completed = set(found)
        return found

    def _is_whole(self, index: int, buffer: memoryview) -> bool:
        fd, offset, length = self._open_writer.fd, self.manifest.offset(index), self.manifest.length(index)
        expected = self.manifest.chunks[index].plain_digest
        if not disk.has_data(fd, offset, length):
            return index in self.zeros
        if expected is None:
            return False
        with buffer[:length] as view:
            try:
                got = disk.read_into(fd, view, offset)
            except OSError:
                return False  # fetched again, which may mend the sector
            return got == length and hashing.blake3(view) == expected

    def read_chunk(self, index: int, into: memoryview) -> memoryview:
        """The chunk's plain bytes, as a slice of `into`, or zeros where it is a hole; not verified.

        Raises ChunkCorrupt where the file ends before them, StorageFailure."""
        [view] = self.read_parts(index, into[: self._length_of(index)])
        return view

    def read_parts(self, index: int, into: memoryview) -> Iterator[memoryview]:
        """As `read_chunk`, in order, as much at a time as `into` holds. Each is valid until the next."""
        length = self._length_of(index)
        if self._is_hole(index):
            yield zeros.view(length)
            return
        for at in range(0, length, len(into)):
            view = into[: min(len(into), length - at)]
            with disk.storage_errors(self._part, "reading"):
                got = disk.read_into(self._open_writer.fd, view, self.manifest.offset(index) + at)
            if got != len(view):
                raise ChunkCorrupt(f"chunk {index} in {self._part} is truncated", chunk_index=index)
            yield view

    def _is_hole(self, index: int) -> bool:
        m = self.manifest
        return index in self.zeros and not disk.has_data(
            self._open_writer.fd, m.offset(index), m.length(index)
        )

    # writing

    def write_chunk(self, index: int, data: disk.Writable) -> None:
        """Writes a chunk's plain bytes at their place, past the page cache where possible; its
        blocks of zeros become holes. Durable after `save` or `finish`. Raises NoSpace
        (retryable), StorageFailure."""
        view = memoryview(data)
        if view.nbytes != self._length_of(index):
            raise ValueError(f"chunk {index} has {self._length_of(index)} bytes")
        self._check_flag()
        offset, at = self.manifest.offset(index), 0
        for begin, length in zeros.zero_runs(view):
            self._open_writer.write_at(view[at:begin], offset + at)
            self._make_zeros(offset + begin, length)
            at = begin + length
        self._open_writer.write_at(view[at:], offset + at)

    def _make_zeros(self, offset: int, length: int) -> None:
        """The range reads as zeros; a hole, where the file system has such."""
        writer = self._open_writer
        with disk.storage_errors(self._part, "writing"):
            if disk.make_hole(writer.fd, offset, length):
                return
        writer.write_at(zeros.view(length), offset)

    def mark(self, index: int) -> None:
        """The chunk was verified and `write_chunk` returned: the next `save` vouches for it."""
        self._length_of(index)
        with self._guard:
            self._completed.add(index)

    def unmark(self, index: int) -> None:
        """The chunk turned out bad (SPEC D7): to be fetched again."""
        with self._guard:
            self._completed.discard(index)

    def save(self) -> None:
        """On return the marked chunks and the journal that names them are durable, in this
        order. Raises NoSpace (retryable: the earlier journal stands), StorageFailure: what
        was written since the last save is lost, nothing more is written, `scan` in the next
        run finds out what is there."""
        with self._saving:
            marked = set(self.completed)  # before the sync: it covers these, perhaps not later ones
            self._sync()
            self._write_journal(marked)

    def _write_journal(self, completed: set[int]) -> None:
        m = self.manifest.public
        job = {
            "version": JOB_VERSION,
            "job_id": self.job_id,
            "file_id": m.file_id,
            "name": m.name,
            "size": m.size,
            "chunk_size": m.chunk_size,
            "target": str(self.target.absolute()),
            "state": self.state,
            "created_at": self.created_at,
            "completed": as_ranges(completed),
            "manifest": self._encoded,
        }
        disk.write_durable(self._job, json.dumps(job).encode(), temp=self._temp, mode=0o666)

    def _sync(self) -> None:
        self._check_flag()
        try:
            self._open_writer.sync()
        except ZchunkError as error:  # whatever it is called: the data may be lost
            self.flag = error.message
            raise

    # ending

    def finish(self) -> None:
        """The part becomes the target: on return the file is durable under its name, and
        journal and lock are gone. With `replaces` it replaces a file at the target, and
        keeps its mode. The caller has verified every chunk and the whole.

        Raises TargetExists (something is there that is not to be replaced), NotFound (the folder
        or the .zpart was removed meanwhile), NoSpace, NotAllowed, StorageFailure. The job is then
        kept as by `keep`.
        """
        try:
            self._seal()
            with disk.storage_errors(self.target, "moving the finished download to"):
                self._put_in_place()
                disk.sync_folder(self.target.parent)
            disk.discard(self._job)
            disk.discard(self._temp)
        finally:
            self.keep()

    def _put_in_place(self) -> None:
        try:
            put_in_place(self._part, self.target, self._replaces)
        except TargetExists:
            self._write_journal(set(self.completed))  # all of it is durable already
            raise

    def _seal(self) -> None:
        """Length set, all bytes durable, nothing open."""
        writer = self._open_writer
        try:
            with disk.storage_errors(self._part, "finishing"):
                if not os.path.samestat(os.fstat(writer.fd), os.lstat(self._part)):
                    raise FileNotFoundError(errno.ENOENT, "replaced by another file")
                os.ftruncate(writer.fd, self.manifest.size)
                self._take_mode(writer.fd)
            self._sync()
        finally:
            self._close_writer()

    def keep(self) -> None:
        """Ends here and leaves .zpart and .zjob for the next run; `save` first, so that the
        journal is up to date. A second call, or one after an end, does nothing."""
        self._close_writer()
        self._lock.release()

    def abandon(self) -> None:
        """Ends here and deletes .zpart and .zjob; durable on return. Raises NotAllowed,
        StorageFailure; what could not be deleted stays a job."""
        self._close_writer()
        try:
            delete_ours(self.target)
        finally:
            self.keep()

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    @property
    def _open_writer(self) -> disk.DirectWriter:
        if self._writer is None:
            raise RuntimeError("the part file was closed")
        return self._writer

    def _check_flag(self) -> None:
        if self.flag is not None:
            text = f"{self._part} cannot be written any more: {self.flag}; run the download again to continue"
            raise StorageFailure(text, path=str(self._part))

    def _length_of(self, index: int) -> int:
        if not 0 <= index < len(self.manifest.chunks):
            raise IndexError(f"no chunk {index} of {len(self.manifest.chunks)}")
        return self.manifest.length(index)
