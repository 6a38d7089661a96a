"""Key files and files with a passphrase: made and read, never kept anywhere else."""

from __future__ import annotations

import logging
import os
import secrets
import stat
from pathlib import Path

from zchunk.content.encryption import KEY_BYTES, KeyFile, Passphrase
from zchunk.errors import InvalidUsage, NotFound, TargetExists
from zchunk.system import disk

log = logging.getLogger(__name__)

#: More than this is no passphrase; a wrong path should not be read to its end.
_MAX_BYTES = 64 * 1024


def make_key_file(path: Path) -> KeyFile:
    """32 random bytes, readable by the owner only, durable on return. Never replaces a file.
    Raises TargetExists, NotFound (no such folder), NotAllowed, NoSpace, StorageFailure."""
    key = KeyFile(secrets.token_bytes(KEY_BYTES))
    with disk.storage_errors(path, "creating the key file"):
        _write_new(path, key.key)
    return key


def _write_new(path: Path, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise TargetExists(f"{path} exists; a key file is never replaced: choose another name") from None
    try:
        disk.write_at(None, fd, data, 0)
        disk.sync_file(fd)
        disk.sync_folder(path.absolute().parent)
    except OSError:
        disk.discard(path)  # else it is in the way of the next try
        raise
    finally:
        os.close(fd)


def read_key_file(path: Path) -> KeyFile:
    """Raises NotFound (lost), InvalidUsage (no key file), NotAllowed, StorageFailure."""
    data = _read(path, "the key file")
    if len(data) != KEY_BYTES:
        raise InvalidUsage(f"{path} is not a key file: it has {len(data):,} bytes instead of {KEY_BYTES}")
    return KeyFile(data)


def read_passphrase(path: Path) -> Passphrase:
    """The file's text without the line end behind it. Raises as `read_key_file` does."""
    return passphrase_of(_read(path, "the passphrase file"), str(path))


def passphrase_of(data: bytes, where: str) -> Passphrase:
    """Raises InvalidUsage for what is no passphrase in one line of UTF-8."""
    try:
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InvalidUsage(f"the passphrase in {where} is not UTF-8 text") from None
    if "\n" in text:
        raise InvalidUsage(f"{where} has several lines; a passphrase is one line")
    return Passphrase(text)


def _read(path: Path, what: str) -> bytes:
    try:
        with disk.storage_errors(path, f"reading {what}"), open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                log.warning("other users can read %s; protect it with `chmod 600`", path)
            return file.read(_MAX_BYTES)
    except NotFound:
        raise NotFound(f"{what} {path} does not exist") from None
