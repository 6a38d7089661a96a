"""What lies in a tracker's home: its key, the allow list, the store, its addresses, and what is made of them.

What may not happen here: a part that was lost taken for one that was not there yet.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from zchunk.clock import Clock
from zchunk.config import Settings
from zchunk.errors import AlreadyRunning, InvalidUsage, NotFound, StorageFailure
from zchunk.system import addresses, disk, json_files
from zchunk.system.file_locks import FileLock, Timeout, locked
from zchunk.system.home_state import HomeState, is_there
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.store.store import TrackerStore
from zchunk.transport.auth import Token, load_key, make_key, new_key_pair
from zchunk.transport.keys import KeyPair

#: part of a tracker's home -> (option that makes it anew, what that means)
PARTS = {
    "key": ("--new-key", "every member must then join again, with a new token"),
    "members": (
        "--new-members",
        "the cluster then has no members: every PC must join again, with a new token",
    ),
    "database": (
        "--new-database",
        "the files stored so far are then not listed; their chunks stay on the nodes",
    ),
}
_KEY, _MEMBERS, _ENDPOINTS = "key.json", "members.json", "endpoints.json"
_DATABASE = "tracker.sqlite"
#: What an earlier release left beside each part (system/home_state.py).
_TRACES = {
    "key": (_MEMBERS, _DATABASE, _ENDPOINTS),
    "members": (_ENDPOINTS,),
    "database": (_MEMBERS, _ENDPOINTS),
}


class TrackerFiles:
    """What lies in HOME/tracker: key, allow list, store. Each is made at the tracker's first
    start; later its absence is a loss, and StateLost says what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = HomeState(folder, _TRACES)

    def key(self) -> KeyPair:
        path = self.folder / _KEY
        key = load_key(path)
        if key is None:
            self._check_first("key", f"{path} is missing")
            key = make_key(path)
        return key

    def membership(self, clock: Clock) -> Membership:
        """It has no file before the first token is made."""
        path = self.folder / _MEMBERS
        if not is_there(path):
            self._check_first("members", f"the list of members {path} is missing")
        return Membership(path, clock)

    def store(self, settings: Settings, clock: Clock) -> TrackerStore:
        """Raises as `TrackerStore.open` does."""
        at = self._database(settings)
        if (absence := TrackerStore.absence(at)) is not None:
            self._check_first("database", absence)
        return TrackerStore.open(at, clock)

    def begin(self, settings: Settings, anew: Collection[str]) -> None:
        """To be called by a tracker's start, before it makes anything. `anew`: those of `PARTS`
        that were lost and are to be made anew; InvalidUsage for one that is there."""
        there = {
            "key": lambda: is_there(self.folder / _KEY),
            "members": lambda: is_there(self.folder / _MEMBERS),
            "database": lambda: TrackerStore.absence(self._database(settings)) is None,
        }
        for part in anew:
            if there[part]():
                raise InvalidUsage(
                    f"{PARTS[part][0]} is for one that is lost, but this tracker has its {part}; move it away"
                    " first"
                )
        self._state.forget(*anew)

    def note(self, *parts: str) -> None:
        """These of `PARTS` are there from now on."""
        self._state.note(*parts)

    @property
    def has_run(self) -> bool:
        return is_there(self.folder / _ENDPOINTS) or self._state.was_made("key")

    def _database(self, settings: Settings) -> str:
        return settings.tracker.database or str(self.folder / _DATABASE)

    def _check_first(self, part: str, loss: str) -> None:
        option, meaning = PARTS[part]
        self._state.check_first(
            part,
            f"{loss}, but this tracker has run before: restore it from a backup, or start the tracker once"
            f" with `zchunk tracker {option}` ({meaning})",
        )

    def lock(self) -> FileLock:
        """Held while a tracker runs on this home; AlreadyRunning where one does."""
        with disk.storage_errors(self.folder, "locking"):
            disk.private_folder(self.folder)
            try:
                return locked(self.folder / "tracker.lock")
            except Timeout:
                raise AlreadyRunning(
                    f"another tracker is already running on {self.folder}; stop it first"
                ) from None


def save_endpoints(folder: Path, endpoints: tuple[str, ...]) -> None:
    disk.write_durable(folder / _ENDPOINTS, json.dumps(endpoints).encode())


def load_endpoints(path: Path) -> tuple[str, ...]:
    """Raises StorageFailure for a file that is damaged or missing: the tracker's next start makes it
    anew; else as `disk.storage_errors` does."""
    try:
        with disk.storage_errors(path, "reading"):
            endpoints = json_files.texts(json_files.read(path))
        for endpoint in endpoints:
            addresses.parse(endpoint)
    except (NotFound, ValueError, InvalidUsage):
        endpoints = ()
    if not endpoints:
        raise StorageFailure(f"{path} is missing or damaged; start the tracker once to create it again")
    return endpoints


def make_token(
    files: TrackerFiles, clock: Clock, *, role: str, expires_s: float, once: bool, transport: str
) -> Token:
    """A new join token for the tracker of this home, on its allow list from now on."""
    if not files.has_run:
        raise NotFound(f"no tracker has run on {files.folder} yet; start it once with `zchunk tracker`")
    key, endpoints = files.key(), load_endpoints(files.folder / _ENDPOINTS)
    pair = new_key_pair()
    expires_ms = int((clock.wall() + expires_s) * 1000)
    files.membership(clock).add_token(pair.public, role, expires_ms, once)
    files.note("members")
    return Token(endpoints, key.public, transport, role, pair, expires_ms)
