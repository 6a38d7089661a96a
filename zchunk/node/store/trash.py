"""What a store has set aside, by day, until it is purged.

    trash/<date>-<store id>/<sha256>           removed by that tracker's order
    trash/<date>-<store id>/<file id>.manifest
    trash/corrupt/<date>-<sha256>              damaged
    trash/corrupt/<date>-<file id>.manifest

Responsible for moving files here durably, for counting them, and for deleting them for
good. What may be removed is decided by `chunk_store.py`, `reconcile.py` and
`manifest_folder.py`, the callers, who hold the store's index lock.

What lies in trash/corrupt when the store is opened is unsettled: it was found damaged by an
earlier run, whose word is not taken for it. May not happen here: something unsettled purged.
"""

from __future__ import annotations

import os
from datetime import date, datetime, timezone
from pathlib import Path

from zchunk.clock import Clock
from zchunk.system import disk

#: How the name of a manifest ends, in the trash.
MANIFEST = ".manifest"
_CORRUPT = "corrupt"


class Trash:
    """Not thread-safe. Files that are not named as above are others': neither counted nor purged."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """The folder exists. Raises StorageFailure, NotAllowed."""
        self._folder = folder
        self._clock = clock
        entries = self.entries()
        with disk.storage_errors(folder, "listing"):
            #: of all `entries`
            self.bytes = sum(entry.stat().st_size for entry, _ in entries)
        self._unsettled = {entry for entry, _ in entries if entry.parent.name == _CORRUPT}

    def entries(self) -> list[tuple[Path, date]]:
        """Files in the trash with their day, oldest first."""
        with disk.storage_errors(self._folder, "listing"):
            files = [p for folder in self._folder.iterdir() if folder.is_dir() for p in folder.iterdir()]
            dated = [(p, day) for p in files if p.is_file() and (day := _day_of(p)) is not None]
        return sorted(dated, key=lambda item: (item[1], str(item[0])))

    # -- what an earlier run found damaged

    def unsettled(self) -> list[Path]:
        return sorted(self._unsettled)

    def is_unsettled(self, path: Path) -> bool:
        return path in self._unsettled

    def settle(self, path: Path) -> None:
        """It was looked at, and may be purged in its time."""
        self._unsettled.discard(path)

    def take_out(self, path: Path, to: Path) -> None:
        """Moves a file back to where it came from, durably; `to` is not there. StorageFailure."""
        with disk.storage_errors(to, "restoring"):
            size = path.stat().st_size
            os.replace(path, to)
            self.bytes -= size
            self.sync({to.parent, path.parent})

    # -- in

    def day_folder(self, store_id: str, now_wall: float) -> Path:
        """`trash/<date>-<store id>`, made if needed; `sync` it afterwards."""
        return self._made(self._folder / f"{_day(now_wall)}-{store_id}")

    def corrupt_path(self, name: str) -> Path:
        """Where a damaged file of that name goes; `sync_corrupt` afterwards."""
        folder, day = self._made(self._folder / _CORRUPT), _day(self._clock.wall())
        path = folder / f"{day}-{name}"
        # What is unsettled is not overwritten: it may be whole.
        return folder / f"{day}-again-{name}" if path in self._unsettled else path

    def _made(self, folder: Path) -> Path:
        with disk.storage_errors(folder, "creating"):
            folder.mkdir(exist_ok=True)
        return folder

    def move(self, source: Path, to: Path) -> bool:
        """False: it has gone already. Raises OSError. Not durable before both folders are
        synced."""
        try:
            size = source.stat().st_size
            replaced = to.stat().st_size if disk.is_there(to) else 0
            os.replace(source, to)
        except FileNotFoundError:
            return False
        self.bytes += size - replaced
        return True

    def sync(self, folders: set[Path]) -> None:
        """Moves between these folders are durable on return. Raises OSError."""
        for folder in sorted(folders | {self._folder}):
            disk.sync_folder(folder)

    def sync_corrupt(self, source: Path) -> None:
        """Moves from folder `source` to trash/corrupt are durable on return. StorageFailure."""
        with disk.storage_errors(source, "syncing"):
            self.sync({source, self._folder / _CORRUPT})

    def set_apart(self, path: Path, suffix: str = "") -> None:
        """Moves a damaged file to trash/corrupt, durably. Raises StorageFailure."""
        with disk.storage_errors(path, "setting aside"):
            self.move(path, self.corrupt_path(path.name + suffix))
        self.sync_corrupt(path.parent)

    # -- out, for good

    def purge_before(self, wall: float) -> int:
        """What was trashed on a day before that moment's; returns its bytes."""
        day = datetime.fromtimestamp(wall, tz=timezone.utc).date()
        old = [entry for entry, trashed in self._purgeable() if trashed < day]
        freed = sum(self._delete(entry) for entry in old)
        self._remove_empty()
        return freed

    def purge_bytes(self, wanted: int) -> None:
        """At least that many, if there are, and no file more than it takes; oldest first."""
        for entry, _ in self._purgeable():
            if wanted <= 0:
                break
            wanted -= self._delete(entry)
        self._remove_empty()

    def _purgeable(self) -> list[tuple[Path, date]]:
        return [(entry, day) for entry, day in self.entries() if entry not in self._unsettled]

    def _delete(self, entry: Path) -> int:
        with disk.storage_errors(entry, "purging"):
            size = entry.stat().st_size
            entry.unlink()
        self.bytes -= size
        return size

    def _remove_empty(self) -> None:
        with disk.storage_errors(self._folder, "purging"):
            for folder in self._folder.iterdir():
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def _day(wall: float) -> str:
    return datetime.fromtimestamp(wall, tz=timezone.utc).date().isoformat()


def _day_of(path: Path) -> date | None:
    """The UTC day it was trashed, from its folder's name or, in trash/corrupt, its own."""
    dated = path.name if path.parent.name == _CORRUPT else path.parent.name
    try:
        return date.fromisoformat(dated[:10])
    except ValueError:
        return None
