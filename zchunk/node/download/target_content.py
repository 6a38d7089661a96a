"""A target before a download: its name made safe, and whether it is the file already."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path

from zchunk.content import hashing
from zchunk.content.manifest import Manifest
from zchunk.node.download.part_names import OURS
from zchunk.system import disk

MAX_NAME_BYTES = 200
_READ_BYTES = 1024 * 1024


# -- names ----------------------------------------------------------------------------

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
#: control characters, lone surrogates, line and paragraph separators
_INVISIBLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: what a name may not end with: dots, and spaces of any script
_ENDS = "." + "".join(filter(str.isspace, map(chr, range(0x3001))))
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)


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
    return f"{safe}_" if safe.lower().endswith(OURS) else safe


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
