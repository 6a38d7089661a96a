"""The store of a node's home, and that it is the one that this node had before.

The home keeps the store's id outside of the store: a store's folder may be a disk of its own,
and one that is not mounted leaves an empty folder, in which a new store would be made and
filled on the wrong disk. Called when a node starts (`node/build.py`), under the node's lock.
"""

from __future__ import annotations

import json
from pathlib import Path

from zchunk.clock import Clock
from zchunk.errors import StorageFailure, StoreOffline
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.store.store_folder import MARKER
from zchunk.system import disk, json_files

_FILE = "store.json"
#: Of a node that has started before. Earlier releases kept no store's id.
_STARTED = "incarnation.json"
_UUID = "[0-9a-f]{32}"
_ANYWAY = "start once with --new-store to use the store found, or a new one"


def open_store(
    folder: Path, *, capacity: int | None, reserve: int, clock: Clock, other: bool = False
) -> ChunkStore:
    """The store in HOME/node, `folder`; made at the node's first start. `other`: also where it is
    another one than before, or none, and is to be this node's from now on.

    Raises StoreOffline for a store that is missing or another one, and as `ChunkStore` does.
    """
    root, kept = folder / "store", None if other else _kept(folder)
    has_one = not other and (kept is not None or _is_there(folder / _STARTED))
    if has_one and not _is_there(root / MARKER):
        raise _missing(root)
    store = ChunkStore.create_or_open(root, capacity=capacity, reserve=reserve, clock=clock)
    try:
        if kept not in (None, store.uuid):
            raise _another(root)
        if kept is None:
            disk.write_durable(folder / _FILE, json.dumps({"uuid": store.uuid}).encode())
    except BaseException:
        store.close()
        raise
    return store


def _kept(folder: Path) -> str | None:
    """The id that this home keeps; None where it keeps none yet."""
    path = folder / _FILE
    if not _is_there(path):
        return None
    try:
        with disk.storage_errors(path, "reading"):
            return json_files.text(json_files.record(json_files.read(path))["uuid"], _UUID)
    except (KeyError, ValueError):
        raise StorageFailure(f"{path} is damaged; restore it from a backup, or {_ANYWAY}") from None


def _is_there(path: Path) -> bool:
    """Raises as `storage_errors` does."""
    with disk.storage_errors(path, "checking"):
        return disk.is_there(path)


def _missing(root: Path) -> StoreOffline:
    text = f"this node's store {root} is missing: is its disk mounted? If the store is lost, {_ANYWAY}"
    return StoreOffline(text, path=str(root))


def _another(root: Path) -> StoreOffline:
    text = f"the store {root} is not this node's own: is the right disk mounted? If so, {_ANYWAY}"
    return StoreOffline(text, path=str(root))
