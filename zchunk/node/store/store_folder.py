"""The folder of a chunk store: its marker, its lock, its sub-folders.

    root/zchunk-store.json   the marker: without it the store is offline
    root/cluster.json        see `cluster_memory.py`
    root/lock                one process per store
    root/chunks/ab/<sha256>  see `chunk_files.py`
    root/manifests/<file id> see `manifest_folder.py`
    root/tmp/                what is being written
    root/trash/              see `trash.py`
    root/index.sqlite        see `chunk_index.py`
    root/closed              token of the last clean close: the index that has it is up to date

Responsible for whose folder this is and whether it is there; what lies in the sub-folders
is their modules' matter. Called by `chunk_store.py` and by those modules.

May not happen here: a marker made where a store may have been, for an unplugged disk must
look offline, not empty.
"""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from zchunk.clock import Clock, iso_utc
from zchunk.errors import AlreadyRunning, NotFound, StorageFailure, StoreOffline, UnsupportedVersion
from zchunk.system import disk, json_files
from zchunk.system.file_locks import FileLock, Timeout, locked
from zchunk.system.os_errors import reason_of

MARKER = "zchunk-store.json"
#: The names of chunks and manifests; other files in their folders are not ours.
HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

_TOKEN = re.compile(r"[0-9a-f]{32}")
_VERSION = 1
_INDEX = "index.sqlite"
_CHUNKS = "chunks"


class StoreFolder:
    """An existing store's folder, locked from here to `release`."""

    def __init__(self, root: Path) -> None:
        """Raises StoreOffline (no marker), AlreadyRunning (another process has it),
        StorageFailure, NotAllowed."""
        self.root = root
        self.chunks, self.tmp = root / _CHUNKS, root / "tmp"
        self.manifests, self.trash = root / "manifests", root / "trash"
        self.index, self.cluster = root / _INDEX, root / "cluster.json"
        self._closed = root / "closed"
        self._marker = root / MARKER
        #: of `chunks`, when the store was opened
        self._opened: tuple[int, int] | None = None
        #: set by the store when it ends all use; `check_online` then refuses
        self.closed = False
        self.check_online()
        self._lock = _lock(root)

    def release(self) -> None:
        self._lock.release()

    def check_online(self) -> None:
        """Raises StoreOffline (retryable, once the disk is back and the store opened again)."""
        if self.closed:
            raise StoreOffline(f"the store {self.root} is closed")
        try:
            os.stat(self._marker)
        except (FileNotFoundError, NotADirectoryError):
            raise self._offline(f"{MARKER} is missing; is its disk connected?") from None
        except OSError as error:
            raise self._offline(f"{MARKER} cannot be checked ({reason_of(error)})") from error

    def _offline(self, why: str) -> StoreOffline:
        return StoreOffline(f"the store {self.root} is offline: {why}", path=str(self.root))

    def check_in_place(self) -> None:
        """As `check_online`, and that `chunks` is the folder that was opened: what is missing in
        another one, under a mount that went, is not gone. Raises StoreOffline (retryable)."""
        self.check_online()
        if _identity(self.chunks) != self._opened:
            raise self._offline(f"{self.chunks} is not the same folder as before; is its disk mounted?")

    def check_writable(self) -> None:
        """Raises NotAllowed where no chunk can be written: the disk is mounted read-only (as the
        system does by itself after errors of a disk), or others own the store."""
        with disk.storage_errors(self.tmp, "writing to"):
            if not os.access(self.tmp, os.W_OK):
                number = errno.EROFS if disk.is_read_only(self.tmp) else errno.EACCES
                raise OSError(number, os.strerror(number))

    def has_marker(self) -> bool:
        return os.path.exists(self._marker)

    def read_uuid(self) -> str:
        """Raises StorageFailure for a damaged marker, UnsupportedVersion."""
        about = read_json(self._marker)
        if not isinstance(about, dict) or not isinstance(about.get("uuid"), str):
            raise damaged(self._marker)
        if about.get("version") != _VERSION:
            raise UnsupportedVersion(f"the store {self.root} was created by another version; upgrade zchunk")
        return str(about["uuid"])

    def take_closed(self) -> str | None:
        """The token of the last clean close, which is durably gone on return: from now on the store
        is in use. None where there is none, or it cannot be read: all is listed then."""
        try:
            token = self._closed.read_text("ascii")
        except (OSError, ValueError):
            token = None
        with disk.storage_errors(self._closed, "removing"):
            if disk.is_there(self._closed):
                os.unlink(self._closed)
                disk.sync_folder(self.root)
        return token if token and _TOKEN.fullmatch(token) else None

    def say_closed(self, token: str) -> None:
        """Durable on return. Raises as `storage_errors` does."""
        disk.write_durable(self._closed, token.encode())

    def prepare(self) -> None:
        """The sub-folders are there, durably, and without what a killed process was writing."""
        with disk.storage_errors(self.root, "creating folders in"):
            disk.private_folder(self.root)  # on a disk of its own, others may come to it past the home
            for folder in (self.chunks, self.tmp, self.manifests, self.trash):
                folder.mkdir(exist_ok=True)
            self._opened = _identity(self.chunks)
            # Also for folders a killed process made: they exist, perhaps not durably.
            disk.sync_folder(self.root)
            disk.sync_folder(self.chunks)
        disk.remove_temporaries(self.root)
        disk.remove_temporaries(self.manifests)
        with disk.storage_errors(self.tmp, "cleaning"):
            for name in os.listdir(self.tmp):
                os.unlink(self.tmp / name)


def _identity(folder: Path) -> tuple[int, int] | None:
    """None for a folder that is not there, or cannot be looked at."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def create(root: Path, clock: Clock) -> None:
    """The marker, durably, in a folder that holds no store yet. First of all, so that a kill
    right after never leaves a store that looks offline."""
    with disk.storage_errors(root, "making"):
        disk.private_folder(root)
        disk.sync_folder(root.parent)
    lock = _lock(root)
    try:
        with disk.storage_errors(root, "checking"):
            found = any(disk.is_there(root / name) for name in (MARKER, _INDEX, _CHUNKS))
        if found:
            return  # another process was faster, or the marker is what is missing
        about = {"version": _VERSION, "uuid": uuid.uuid4().hex, "created": iso_utc(clock.wall())}
        disk.write_durable(root / MARKER, json.dumps(about).encode())
    finally:
        lock.release()


def _lock(root: Path) -> FileLock:
    """The lock of the one process that uses the store; gone with it, also after kill -9."""
    try:
        with disk.storage_errors(root / "lock", "locking"):
            return _locked(root)
    except NotFound:
        raise StoreOffline(f"the store {root} is offline: its folder is missing") from None


def _locked(root: Path) -> FileLock:
    try:
        return locked(root / "lock")
    except Timeout:
        raise AlreadyRunning(
            f"another process uses the store {root}; stop it first", path=str(root)
        ) from None


def read_json(path: Path) -> Any:
    """Raises StorageFailure: these files are replaced whole, so a broken one is the disk's doing."""
    try:
        with disk.storage_errors(path, "reading"):
            return json_files.read(path)
    except ValueError:
        raise damaged(path) from None


def damaged(path: Path) -> StorageFailure:
    return StorageFailure(f"{path} is damaged; restore it from a backup", path=str(path))
