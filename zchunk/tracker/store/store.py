"""The tracker's durable memory: peers, who holds which chunk, committed files, tombstones.

Responsible for what must be true together (a file names only chunks that a live peer
has confirmed; a chunk that a file names is never released; inventory digests are exact)
and for durability: what is one transaction is said here. The statements stand in
`stored_peers.py`, `chunks.py`, `holdings.py`, `commits.py`, `listing.py` and `copies.py`, the
connection in `database.py`. Not responsible for who is up: callers pass the live peers in.
`tracker/core.py` decides, its writer thread calls.

All methods block, and are called by one thread at a time. Each changing method is one
transaction; within `batch()` it is a savepoint, so that one refused change leaves the
others standing. Any method raises what `database_errors.py` makes of the database's errors
(NoSpace and Busy are retryable), and MalformedMessage for a number that no column holds.

Times are milliseconds since 1970 UTC, digests 32 raw bytes, peers and files go by their
public ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from zchunk.clock import Clock
from zchunk.protocol.messages import FileRecord
from zchunk.tracker.rules.health import Counted, Slice
from zchunk.tracker.store.chunks import Chunks
from zchunk.tracker.store.commits import Commits, Content, Removals
from zchunk.tracker.store.copies import CopyCounter
from zchunk.tracker.store.database import Database
from zchunk.tracker.store.holders import Demand
from zchunk.tracker.store.holdings import Holdings
from zchunk.tracker.store.listing import FoundRows, HealthCounts, Listing, LocatedRows
from zchunk.tracker.store.stored_peers import StoredPeer, StoredPeers

__all__ = [
    "FoundRows",
    "HealthCounts",
    "InventoryChange",
    "LocatedRows",
    "Removals",
    "StoredPeer",
    "TrackerStore",
]


@dataclass(frozen=True, slots=True)
class InventoryChange:
    """`files_touched`: committed files that named a lost chunk."""

    added: int
    lost: int
    files_touched: frozenset[str]


#: Of a change of more chunks than this it is not asked which files name them.
_MANY = 10_000

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Method = Callable[Concatenate["TrackerStore", _P], _R]


def _reading(method: _Method[_P, _R]) -> _Method[_P, _R]:
    """A public method that changes nothing."""

    @wraps(method)
    def run(self: TrackerStore, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        def once() -> _R:
            with self._database.reading():
                return method(self, *args, **kwargs)

        return self._database.again(once)

    return run


def _changing(method: _Method[_P, _R]) -> _Method[_P, _R]:
    """A public method that is one transaction, or one savepoint of a batch."""

    @wraps(method)
    def run(self: TrackerStore, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        def once() -> _R:
            self._touched = None
            try:
                with self._database.changing():
                    return method(self, *args, **kwargs)
            except BaseException:
                self._listing.remembered.clear()
                raise

        return self._database.again(once)

    return run


class TrackerStore:
    """Open one with `TrackerStore.open`, and close it."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._peers = StoredPeers(database)
        self._chunks = Chunks(database)
        self._holdings = Holdings(database, self._chunks)
        self._listing = Listing(database, self._peers)
        self._commits = Commits(database, self._peers, self._chunks, self._listing)
        self._copies = CopyCounter(database, self._peers)
        #: the chunks of the last change, and the files that name any of them
        self._touched: tuple[Sequence[bytes], list[str]] | None = None

    @classmethod
    def open(cls, path_or_url: str, clock: Clock) -> TrackerStore:
        """The store at a path (SQLite; `:memory:` too) or URL; made when it is not there.

        Raises StorageFailure when it cannot be read, UnsupportedVersion when a newer
        zchunk made it, ConfigError for a URL that is none or needs a missing driver.
        """
        return cls(Database.open(path_or_url, _now_ms(clock)), clock)

    @staticmethod
    def absence(path_or_url: str) -> str | None:
        """Why there is no store at that path or URL, in words; None where there is one. Makes
        nothing. Raises as `open` does."""
        return Database.absence(path_or_url)

    def close(self) -> None:
        """Everything committed is durable already; this lets go of the file."""
        self._database.close()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Several calls, one transaction. A refused call (NotFound, ...) that the caller
        catches inside undoes only itself; once the database fails, all is undone."""
        try:
            with self._database.batch():
                yield
        except BaseException:
            self._listing.remembered.clear()  # it may hold what was undone
            raise

    def together(self, run: Callable[[], _R]) -> _R:
        """`run` as a batch, anew while another program has the database locked."""

        def once() -> _R:
            with self.batch():
                return run()

        return self._database.again(once)

    def _touch(self, hashes: Sequence[bytes]) -> None:
        """Copies of these chunks came or went."""
        if len(hashes) > _MANY:
            self._listing.remembered.clear()
        elif len(self._listing.remembered):
            self._touched = hashes, self._listing.files_of(hashes)
            self._listing.remembered.change(self._touched[1], hashes)

    def now_ms(self) -> int:
        """The time to record with a change: wall time, read when the change is made."""
        return _now_ms(self._clock)

    @property
    def store_id(self) -> str:
        """Random, and this store's alone: nodes obey deletions of their own store only."""
        with self._database.reading():
            return self._database.meta("store_id")

    @property
    def commit_number(self) -> int:
        """Raised by each commit and each removal."""
        with self._database.reading():
            return self._commits.number

    @_changing
    def check_writable(self) -> None:
        """Raises what keeps changes from being stored, NotAllowed for one that may only be read."""
        self._database.touch()

    def check_space(self) -> None:
        """Raises NoSpace where its disk is so full that a change may fail any time."""
        self._database.check_space()

    # -- peers ------------------------------------------------------------------------

    @_changing
    def save_peer(
        self,
        peer_id: str,
        name: str,
        incarnation: int,
        endpoints: Sequence[str],
        capacity: int,
        free: int,
        last_seen_ms: int,
        left: bool,
    ) -> None:
        """Register a node or update what is known of it. Its inventory stays."""
        self._peers.save(peer_id, name, incarnation, endpoints, capacity, free, last_seen_ms, left)

    @_reading
    def peers(self) -> list[StoredPeer]:
        """Every node that ever registered, in order of its first registration."""
        return self._peers.all()

    @_reading
    def name_owner(self, name: str) -> str | None:
        """The peer of that name; should several have had it, the one seen last."""
        return self._peers.name_owner(name)

    # -- what peers hold ----------------------------------------------------------------

    @_changing
    def add_holdings(self, peer_id: str, hashes: Sequence[bytes], stored_at_ms: int) -> int:
        """The peer holds these chunks, verified and durably. Idempotent.

        Returns how many are new. A copy that was marked unavailable stays so: a node says
        `stored` of what it already has, too, unread; `mark_whole` is for what it has read.
        NotFound for an unknown peer.
        """
        added = self._holdings.add(self._peers.key(peer_id), hashes, stored_at_ms)
        if added:
            self._touch(hashes)
        return added

    @_changing
    def drop_holdings(self, peer_id: str, hashes: Sequence[bytes]) -> int:
        """The peer no longer holds these. Returns how many it was known to hold."""
        dropped = self._holdings.drop(self._peers.key(peer_id), hashes)
        if dropped:
            self._touch(hashes)
        return dropped

    @_reading
    def inventory_summary(self, peer_id: str) -> tuple[int, bytes]:
        """Count and digest (hashing.inventory_digest) of what the peer is known to hold,
        marked unavailable or not: what its hello must say for both to agree."""
        return self._holdings.inventory(self._peers.key(peer_id))

    @_changing
    def replace_inventory(self, peer_id: str, hashes: Sequence[bytes], now_ms: int) -> InventoryChange:
        """The peer holds exactly these, by its own account; `now_ms` is when it said so.

        A chunk marked unavailable stays so: a list is no new verification.
        """
        added, lost = self._holdings.replace(self._peers.key(peer_id), hashes, now_ms)
        self._touch([*added, *lost])
        return InventoryChange(len(added), len(lost), frozenset(self._listing.files_of(lost)))

    @_changing
    def mark_unavailable(self, peer_id: str, sha256: bytes) -> bool:
        """The peer's copy is damaged and counts no more until the peer has checked it, or lost it
        and stored it anew. Returns whether it counted until now."""
        marked = self._holdings.mark_unavailable(self._peers.key(peer_id), sha256)
        self._touch([sha256])
        return marked

    @_changing
    def mark_whole(self, peer_id: str, hashes: Sequence[bytes]) -> list[bytes]:
        """The peer has checked these copies and they count again, if it is known to hold
        them. Returns those that did not count until now."""
        again = self._holdings.mark_whole(self._peers.key(peer_id), hashes)
        self._touch(again)
        return again

    @_reading
    def counts_on(self, peer_id: str, sha256: bytes) -> bool:
        """Whether the peer's copy counts: False for one marked unavailable. NotFound when the
        peer is not known to hold the chunk."""
        return self._holdings.counts_on(self._peers.key(peer_id), sha256)

    @_reading
    def unavailable_on(self, peer_id: str, limit: int) -> list[bytes]:
        """Chunks of which the peer's copy is marked unavailable, ascending."""
        return self._holdings.unavailable(self._peers.key(peer_id), limit)

    @_changing
    def release(self, peer_id: str, hashes: Sequence[bytes]) -> list[bytes]:
        """Those of `hashes` that the peer may delete, since no committed file names them.

        From then on the tracker does not count on them: rows vanish before the bytes do.
        """
        key = self._peers.key(peer_id)
        asked = list(dict.fromkeys(hashes))
        needed = self._listing.named(asked)
        free = [chunk_hash for chunk_hash in asked if chunk_hash not in needed]
        self._holdings.drop(key, free)
        return free

    @_reading
    def find_chunks(self, hashes: Sequence[bytes], live: Collection[str], limit: int) -> FoundRows:
        """For each of `hashes`, in their order, the peers of `live` with an available copy,
        whichever files name it: the `limit` earliest, then lowest ids, first."""
        return self._listing.find_chunks(hashes, live, limit)

    # -- files --------------------------------------------------------------------------

    @_changing
    def commit_file(
        self,
        manifest: Content,
        *,
        replicas: int,
        min_peers: int,
        distributed: bool,
        live: Collection[str],
        now_ms: int,
    ) -> tuple[FileRecord, bool]:
        """Make the file visible: all or nothing (SPEC U5). Returns it, and whether it was
        visible before; then only its demands (replicas, min_peers, distributed) may rise.

        Raises NotYetStored (retryable) unless each chunk has an available copy on a peer
        of `live`, and TooFewPeers (retryable) where those copies of a distributed file
        lie on fewer than `min_peers` of them, or than it has copies of chunks.
        """
        return self._commits.commit(manifest, Demand(replicas, min_peers, distributed), live, now_ms)

    @_reading
    def resolve(self, name_or_id: str, unique: bool) -> FileRecord:
        """The file of exactly that name (the newest of several), else the one whose id is
        or begins with that (8 hex digits at least).

        Raises AmbiguousName (`details["candidates"]`: file ids, newest first) for several
        ids, and with `unique` for several files of that name; NotFound for none.
        """
        return self._listing.resolve(name_or_id, unique)

    @_reading
    def files_among(self, file_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Those that are files now, and those that were and were removed; ascending."""
        return self._listing.files_among(file_ids)

    @_reading
    def locate(self, file_id: str) -> LocatedRows:
        """Manifest and available holders of a file; NotFound when it is not there."""
        return self._listing.locate(file_id)

    @_reading
    def list_files(self, page: str, limit: int = 1000) -> tuple[list[FileRecord], str]:
        """A page of all files, newest first, and the next page's name; "" is the first
        page, and what follows the last. Files that come and go do not shift the pages.
        MalformedMessage for a page that this never gave out."""
        return self._listing.page(page, limit)

    @_reading
    def files_of(self, hashes: Sequence[bytes]) -> list[str]:
        """Ids of the committed files that name any of these chunks, sorted."""
        if self._touched is not None and self._touched[0] is hashes:
            return list(self._touched[1])
        return self._listing.files_of(hashes)

    @_reading
    def files_on(self, peer_id: str) -> list[str]:
        """Ids of the committed files of which the peer has an available chunk, sorted."""
        return self._listing.files_on(peer_id)

    @_reading
    def health_counts(self, file_id: str, live: Collection[str]) -> HealthCounts:
        """How many chunks there are, can be read from `live`, and have too few copies there."""
        return self._listing.health_counts(file_id, live)

    @_reading
    def count_copies(self, asked: Slice) -> Counted:
        """A bounded part of the question how healthy all files are, see `rules/health.py`."""
        return self._copies.count(asked)

    @_changing
    def remove_file(self, file_id: str, now_ms: int) -> int:
        """The file goes, a tombstone stays. Returns the removal's commit number; the same
        again for a file removed before. NotFound for one that never was."""
        self._listing.remembered.forget([file_id])
        return self._commits.remove(file_id, now_ms)

    @_reading
    def removals(self, since: int, limit: int = 1000) -> Removals:
        """Files removed after commit `since`, oldest first, unless committed again since."""
        return self._commits.removals(since, limit)


def _now_ms(clock: Clock) -> int:
    return int(clock.wall() * 1000)
