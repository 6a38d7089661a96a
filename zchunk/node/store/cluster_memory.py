"""The cluster a chunk store belongs to, and how far it has seen it (SPEC R8).

Kept in `cluster.json`, not in the index alone, since it cannot be rebuilt from anything; and in
the index too, so that a file that was lost, or put back from a backup, is not believed against it.
Responsible for whose deletions may be obeyed; who obeys them is `chunk_store.py`, the one
caller, which holds its index lock.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from zchunk.errors import ForeignStore
from zchunk.node.store.chunk_index import ChunkIndex
from zchunk.node.store.store_folder import damaged, read_json
from zchunk.system import disk, json_files

_STORE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: of the index
_SETTING = "cluster"

#: (store id, commit number)
_Seen = tuple[str, int]


class ClusterMemory:
    """Changes only by `remember`, and never to another cluster."""

    def __init__(self, path: Path, index: ChunkIndex) -> None:
        """Raises StorageFailure for a damaged file."""
        self._path = path
        self._index = index
        self._seen = _later(_read(path), _parsed(index.setting(_SETTING), path))

    @property
    def store_id(self) -> str | None:
        return self._seen[0] if self._seen else None

    @property
    def commit_number(self) -> int:
        return self._seen[1] if self._seen else 0

    def check(self, store_id: str) -> None:
        """Raises ForeignStore unless it is the store remembered, or the first one."""
        if not _STORE_ID.fullmatch(store_id):
            raise ForeignStore("the tracker's store id is not a store id")
        if self.store_id not in (None, store_id):
            raise ForeignStore(f"this node's chunks belong to store {self.store_id}, not to {store_id}")

    def remember(self, store_id: str, commit_number: int) -> None:
        """Durable on return. Raises ForeignStore, also for a number lower than before,
        NoSpace (retryable), StorageFailure; what is believed is then as it was."""
        self.check(store_id)
        if commit_number < self.commit_number:
            text = f"the tracker's database is at commit {commit_number}"
            raise ForeignStore(
                f"{text}, but this node has seen {self.commit_number}: was it restored from a backup?"
            )
        if self._seen != (store_id, commit_number):
            memory = json.dumps({"store_id": store_id, "commit_number": commit_number})
            disk.write_durable(self._path, memory.encode())
            self._index.set_setting(_SETTING, memory)
            self._seen = (store_id, commit_number)


def _later(file: _Seen | None, index: _Seen | None) -> _Seen | None:
    """Of the same cluster the higher number, else what the file says, where there is one."""
    if file is None or index is None or file[0] != index[0]:
        return file or index
    return max(file, index)


def _read(path: Path) -> _Seen | None:
    with disk.storage_errors(path, "checking"):
        if not disk.is_there(path):
            return None
    return _memory(read_json(path), path)


def _parsed(text: str | None, path: Path) -> _Seen | None:
    if text is None:
        return None
    try:
        return _memory(json_files.parse(text.encode()), path)
    except ValueError:
        raise damaged(path) from None


def _memory(value: Any, path: Path) -> _Seen:
    try:
        memory = json_files.record(value)
        store_id = json_files.text(memory["store_id"], _STORE_ID.pattern)
        return store_id, json_files.count(memory["commit_number"])
    except (KeyError, ValueError):
        raise damaged(path) from None
