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
threads. This file is long because what a kill leaves, and what the next run makes of it, are the two
sides of each of its steps.
"""

from __future__ import annotations

import base64
import binascii
import errno
import io
import itertools
import json
import mmap
import os
import re
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from zchunk.clock import Clock, SystemClock, iso_utc
from zchunk.content import hashing, zeros
from zchunk.content.manifest import MAX_BYTES, Manifest, parse
from zchunk.errors import (
    AlreadyRunning,
    ChunkCorrupt,
    ManifestInvalid,
    NotAllowed,
    NotFound,
    StorageFailure,
    TargetExists,
    ZchunkError,
)
from zchunk.node.download import target_lock
from zchunk.node.download.target import beside, check_regular, mode_of, put_in_place
from zchunk.node.download.target_lock import Held, TargetLock
from zchunk.system import disk, json_files
from zchunk.system.file_owners import owner_name

JOB_VERSION = 1
PART, JOB, LOCK = ".zpart", ".zjob", ".zlock"
MAX_NAME_BYTES = 200

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_TEMP = ".zjob.tmp"  # one writer per target, so one name: the next save takes a stray one away
_ASIDE = ".aside-"
#: Who only looks whether a target is worked on holds its lock for a moment.
_LOOK_S = 0.2
#: It becomes the name of a file, and a journal may lie in a folder that others write to.
_JOB_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_READ_BYTES = 1024 * 1024
#: Bytes of a .zjob: the largest manifest in base64, and every other chunk of it in place.
_MAX_JOURNAL = 2 * MAX_BYTES


@dataclass(frozen=True)
class JobInfo:
    """What a .zjob says. `completed` is a hint; the manifest is checked against `file_id`."""

    job_id: str
    file_id: str
    name: str
    size: int
    chunk_size: int
    target: str
    state: str
    created_at: str
    completed: frozenset[int]
    manifest: Manifest


# -- the job's journal ----------------------------------------------------------------


def load_job(path: Path) -> JobInfo | None:
    """The job of a .zjob file; None where there is none or it cannot be trusted."""
    try:
        return _job(json_files.read(path, _MAX_JOURNAL, follow=False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ManifestInvalid):
        return None


def _job(raw: Any) -> JobInfo:
    """Raises ValueError, KeyError, TypeError or ManifestInvalid for anything but a job."""
    if raw["version"] != JOB_VERSION:
        raise ValueError("a job of another version")
    texts = {key: raw[key] for key in ("job_id", "file_id", "name", "target", "state", "created_at")}
    if not all(isinstance(text, str) and text for text in texts.values()):
        raise TypeError("a job's texts")
    if not _JOB_ID.fullmatch(texts["job_id"]):
        raise ValueError("a job's id")
    json_files.text(texts["created_at"])
    json_files.text(texts["state"])
    manifest = parse(_decode(raw["manifest"]), raw["file_id"])
    if (raw["size"], raw["chunk_size"], raw["name"]) != (manifest.size, manifest.chunk_size, manifest.name):
        raise ValueError("a job of another manifest")
    completed = frozenset(_indexes(raw["completed"], len(manifest.chunks)))
    return JobInfo(
        size=manifest.size, chunk_size=manifest.chunk_size, completed=completed, manifest=manifest, **texts
    )


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("a job's manifest") from error


def _ranges(indexes: Iterable[int]) -> list[list[int]]:
    """`{0, 1, 2, 7}` -> `[[0, 2], [7, 7]]`: both ends belong to it."""
    found: list[list[int]] = []
    for index in sorted(indexes):
        if found and found[-1][1] == index - 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return found


def _indexes(ranges: Any, count: int) -> Iterator[int]:
    last = -1
    for first, end in ranges:
        if not (isinstance(first, int) and isinstance(end, int) and last < first <= end < count):
            raise ValueError("a job's ranges")
        last = end
        yield from range(first, end + 1)


# -- names ----------------------------------------------------------------------------

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
#: control characters, lone surrogates, line and paragraph separators
_INVISIBLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: what a name may not end with: dots, and spaces of any script
_ENDS = "." + "".join(filter(str.isspace, map(chr, range(0x3001))))
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
_OURS = (PART, JOB, LOCK)


def safe_target_name(name: str) -> str:
    """The last part of a file's name, made safe: no separator, control or direction
    character, no name Windows reserves, no dot or space at its end (so not dots alone), none
    that our own files beside a target have; never empty, at most 200 bytes UTF-8."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    kept = "".join(c for c in last if unicodedata.category(c) not in _INVISIBLE and c not in _BIDI)
    safe = kept.lstrip().rstrip(_ENDS) or "download"
    if _RESERVED.fullmatch(safe.split(".")[0].rstrip()):
        safe = f"_{safe}"
    safe = _shorten(safe)
    return f"{safe}_" if safe.lower().endswith(_OURS) else safe


def _shorten(name: str) -> str:
    limit = MAX_NAME_BYTES - 1  # room for the "_" behind a name like ours
    if len(name.encode()) <= limit:
        return name
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix.encode()) > 20:
        stem, dot, suffix = name, "", ""
    room = limit - len((dot + suffix).encode())
    cut = stem.encode()[:room].decode(errors="ignore").rstrip(_ENDS)
    return f"{cut}{dot}{suffix}"


# -- the target -----------------------------------------------------------------------


def target_has_content(
    target: Path, manifest: Manifest, progress: Callable[[int], None] = lambda done: None
) -> bool:
    """Whether the target is already the file: by size, then by SHA-256 of all of it, when
    `progress(bytes looked at)` is called now and then. False where only a key holder knows the
    SHA-256. Raises NotAllowed, StorageFailure."""
    with disk.storage_errors(target, "reading"):
        try:
            with open(target, "rb", opener=_open_regular) as file:
                if manifest.sha256 is None or os.fstat(file.fileno()).st_size != manifest.size:
                    return False
                return _file_sha256(file, progress) == manifest.sha256
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False


def _open_regular(path: str, flags: int) -> int:
    if not stat.S_ISREG(os.lstat(path).st_mode):  # a device is not even opened
        raise IsADirectoryError(errno.EISDIR, "not a regular file", path)
    # Not blocking: if it is a pipe by now, it would wait for its other end.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _file_sha256(file: io.BufferedReader, progress: Callable[[int], None]) -> bytes:
    digest, done = hashing.FileDigest(), 0
    with memoryview(bytearray(_READ_BYTES)) as buffer:
        while got := file.readinto(buffer):
            digest.update(buffer[:got])
            done += got
            progress(done)
    return digest.digest()


def remove_leftovers(target: Path) -> None:
    """Removes a .zjob without a .zpart, and a lock file nobody holds: what a run leaves that
    is killed right after its final step; and a .zpart that is the target itself, which then has
    two names. For a target that has its content; does nothing while another process works on
    it. Any other .zpart is never touched."""
    part, job = beside(target, PART), beside(target, JOB)
    if _is_another(part, target) or not (job.exists() or beside(target, LOCK).exists()):
        return
    try:
        lock = _lock(target)
    except AlreadyRunning:
        return
    try:
        if not _is_another(part, target):
            disk.discard(part)
            disk.discard(job)
            disk.discard(beside(target, _TEMP))
    finally:
        lock.release()


def _is_another(part: Path, target: Path) -> bool:
    try:
        return not os.path.samestat(os.lstat(part), os.lstat(target))
    except FileNotFoundError:
        return os.path.lexists(part)


# -- a job that nobody works on -------------------------------------------------------


def kept_job(target: Path, file_id: str) -> JobInfo | None:
    """The job of this file whose journal lies beside the target; None where there is none.
    `completed` is empty where the .zpart is gone."""
    job = load_job(beside(target, JOB))
    if job is None or job.file_id != file_id:
        return None
    return job if os.path.isfile(beside(target, PART)) else replace(job, completed=frozenset())


def has_part(target: Path) -> bool:
    return os.path.lexists(beside(target, PART))


def discard_job(target: Path, job_id: str) -> None:
    """Deletes .zpart and .zjob of this job; durable on return. Does nothing where others'
    lie there. Raises AlreadyRunning, NotAllowed, StorageFailure."""
    if not os.path.isdir(target.parent):
        return
    lock = _lock(target)
    try:
        job = load_job(beside(target, JOB))
        if job is not None and job.job_id == job_id:
            _delete(target)
    finally:
        lock.release()


def _delete(target: Path) -> None:
    with disk.storage_errors(beside(target, PART), "deleting"), suppress(FileNotFoundError):
        # The journal last: a .zpart without one would be kept aside for ever.
        for suffix in (PART, JOB, _TEMP):
            with suppress(FileNotFoundError):
                os.unlink(beside(target, suffix))
        disk.sync_folder(target.parent)


# -- one writer per target ------------------------------------------------------------


def _lock(target: Path, wait_s: float = _LOOK_S) -> TargetLock:
    path = beside(target, LOCK)
    with disk.storage_errors(path, "locking"):
        try:
            return target_lock.acquire(path, wait_s)
        except Held as held:
            raise _already_running(target, held.owner) from None


def _already_running(target: Path, owner: int | None) -> AlreadyRunning:
    if owner is not None:
        text = f"{owner_name(owner)} is downloading to {target}: choose another target (-o)"
        return AlreadyRunning(text, job_id=None, target=str(target))
    job = load_job(beside(target, JOB))
    job_id = job.job_id if job else None
    who = f"job {job_id}" if job_id else "another job"
    return AlreadyRunning(f"{who} is already downloading to {target}", job_id=job_id, target=str(target))


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
    lock = _lock(target)
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
            os.rename(beside(target, suffix), beside(target, f"{suffix}{_ASIDE}{number}"))
        disk.sync_folder(target.parent)


def _aside_taken(target: Path, number: int) -> bool:
    return any(os.path.lexists(beside(target, f"{suffix}{_ASIDE}{number}")) for suffix in (PART, JOB))


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
        self._temp = beside(target, _TEMP)
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
        writer = disk.DirectWriter(self._part, _NOFOLLOW | (os.O_CREAT | os.O_EXCL if self.is_new else 0))
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
            "completed": _ranges(completed),
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
            _delete(self.target)
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
