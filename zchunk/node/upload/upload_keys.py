"""The keys of encrypted uploads that are under way: `ROLE/uploads`, a file for each source.

An upload that was interrupted must go on with the key it began with, else all that it stored
would be sent again. What is kept of the key is its head, as it will stand in the manifest:
the key wrapped by the user's secret. So the file is worth nothing to who finds it; who runs
the upload again gives the secret again. Given another one, the upload begins anew, with a
fresh key: what is readable by one secret is never made with a key that another one opens.

A file that changed meanwhile is no danger: see content/encryption.py on nonces. Once the file is
published its key is forgotten here, so each put of a file has its own.

Callers: the client, in the thread that runs the upload.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from zchunk.clock import Clock, SystemClock
from zchunk.content import encryption
from zchunk.content.encryption import FileKey, Head, Secret
from zchunk.content.manifest import Manifest
from zchunk.errors import ManifestInvalid, WrongKey, ZchunkError
from zchunk.system import disk, json_files

log = logging.getLogger(__name__)

STATE_VERSION = 1
#: What nodes stored for an upload they keep for a day; its key is of no use much longer.
KEEP_S = 7 * 86400.0
_SUFFIX = ".json"


class Encryption:
    """How one upload encrypts its file."""

    def __init__(self, head: Head, key: FileKey, *, hide_name: bool = False) -> None:
        self.key = key
        self._head = head
        self._hide_name = hide_name

    def manifest(self, plain: Manifest) -> Manifest:
        """What is published, of one with the true name and SHA-256 and the plain digests."""
        return encryption.encrypt_manifest(plain, self._head, self.key, hide_name=self._hide_name)


class UploadKeys:
    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        """`folder` is made when it is needed, for its owner only."""
        self._folder = folder
        self._clock = clock or SystemClock()

    def begin(self, source: Path, secret: Secret, *, hide_name: bool = False) -> Encryption:
        """The key for an upload of `source`: the one of an earlier try that this secret opens,
        else a fresh one. Durable on return, so that a later try can go on, where the home's
        disk takes it. Takes a moment for a passphrase."""
        head = self._load(source)
        if head is not None:
            try:
                return Encryption(head, encryption.unlock(head, secret, source.name), hide_name=hide_name)
            except WrongKey:
                log.info("an earlier upload of %s used another key: starting over", source)
        head, key = encryption.new_key(secret)
        try:
            self._save(source, head)
        except ZchunkError as error:
            log.warning("an interrupted upload of this file will start over: %s", error.message)
        return Encryption(head, key, hide_name=hide_name)

    def forget(self, source: Path) -> None:
        """The file is published: the next put of it has a key of its own. What cannot be
        deleted is logged."""
        disk.discard(self._path(source))
        self._prune()

    def _load(self, source: Path) -> Head | None:
        path = self._path(source)
        try:
            return _head(json_files.read(path), source)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ManifestInvalid) as error:
            log.warning("the upload key %s cannot be read, starting over: %s", path, error)
            return None

    def _save(self, source: Path, head: Head) -> None:
        path = self._path(source)
        with disk.storage_errors(path, "writing"):
            disk.private_folder(self._folder)
        kept = {
            "version": STATE_VERSION,
            "source": str(source.absolute()),
            "head": base64.b64encode(head.encode()).decode(),
        }
        disk.write_durable(path, json.dumps(kept).encode(), mode=0o600)

    def _path(self, source: Path) -> Path:
        name = hashlib.sha256(str(source.absolute()).encode("utf-8", "surrogateescape")).hexdigest()
        return self._folder / f"{name[:32]}{_SUFFIX}"

    def _prune(self) -> None:
        """Deletes what is left of uploads that nobody ran again."""
        before = self._clock.wall() - KEEP_S
        with suppress(OSError, ZchunkError):
            for path in self._folder.glob(f"*{_SUFFIX}"):
                if path.stat().st_mtime < before:
                    disk.discard(path)


def _head(raw: Any, source: Path) -> Head:
    if raw["version"] != STATE_VERSION or raw["source"] != str(source.absolute()):
        raise ValueError("it is of another version, or of another file")
    try:
        return encryption.parse_head(base64.b64decode(raw["head"], validate=True))
    except binascii.Error as error:
        raise ValueError("its head is damaged") from error
