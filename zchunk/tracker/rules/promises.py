"""What uploads under way were promised of the space of peers, and for how long. Pure.

A node's `free` in its heartbeat shrinks as it stores; without promises two uploads planned in
the same second would both count on the same free space. A promise lives while there is a sign
of its upload: the connection that asked for it stands and is heard, or the upload says so by
another one (`renew`). Where the connection ended it lasts a little longer, for an upload that
comes back; its own member is not held up by that.

The same put run again counts on what the nodes hold of it: they keep it under lease.

What may not happen here: space kept for who is gone, or is no member any more; a promise of
an upload that is alive lost, but for what its member has beyond its share while nothing of its
uploads is stored.

Times are monotonic seconds, sizes are bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Uploads of one member whose space is promised at a time; of more, the oldest's is not.
MAX_PROMISES = 1_000
#: Interrupted puts of one member of which it is known what is stored.
MAX_LEFT = 100
#: A promise ends so long after the last sign of its upload,
SILENT_S = 120.0
#: and so long after its connection ended.
GONE_S = 30.0
#: A member of whose uploads nothing was stored for so long has no more than its share.
STUCK_S = 300.0
#: Nodes keep the chunks of an interrupted put so long.
LEFT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Asker:
    """An upload, and by which connection its member asks for space. `anew`: for all of the file."""

    upload_id: str
    member: str
    connection: bytes
    size: int
    chunk_size: int
    anew: bool = True


@dataclass(slots=True)
class _Promise:
    asker: Asker
    #: by which there was the last sign of it
    connection: bytes = b""
    ends: float = 0.0
    #: that connection ended
    gone: bool = False
    #: peer -> bytes promised and not yet stored
    peers: dict[str, int] = field(default_factory=dict)
    #: peer -> bytes that this upload has stored there
    stored: Counter[str] = field(default_factory=Counter)
    #: peer -> bytes that the same put had stored there before
    there: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Member:
    #: when something of its uploads was stored last, or when it was first promised something
    moved: float
    #: when it was last promised something, or was no more
    last: float
    promises: int = 0


@dataclass(frozen=True, slots=True)
class _Left:
    """What an interrupted put has stored. `ends`: when nodes give it up."""

    stored: Counter[str]
    ends: float


class Promises:
    def __init__(self) -> None:
        #: upload id -> what it was promised, in the order of their first plans
        self._promises: dict[str, _Promise] = {}
        #: connection -> the uploads that asked by it
        self._by: dict[bytes, set[str]] = {}
        self._members: dict[str, _Member] = {}
        #: member -> (size, chunk size) of a file -> what its last put has stored
        self._left: dict[str, dict[tuple[int, int], _Left]] = {}

    def __len__(self) -> int:
        return len(self._promises)

    # -- plans ------------------------------------------------------------------------

    def taken(self, asker: Asker, free: Mapping[str, int], now: float) -> Counter[str]:
        """Bytes per peer that are not for this upload. Less than zero where the same put has stored
        more there than others were promised. `free`: bytes per peer."""
        held: dict[str, Counter[str]] = {asker.member: Counter()}
        for upload_id, promise in self._promises.items():
            own = promise.asker.member == asker.member
            if upload_id != asker.upload_id and not (own and promise.gone):
                held.setdefault(promise.asker.member, Counter()).update(promise.peers)
        total: Counter[str] = Counter()
        for member, peers in held.items():
            if member != asker.member and self._members[member].moved + STUCK_S <= now:
                peers = Counter({p: min(size, free.get(p, 0) // len(held)) for p, size in peers.items()})
            total.update(peers)
        if asker.anew:
            known = self._promises.get(asker.upload_id)  # its plan is asked for again
            total.subtract(known.there if known is not None else self._stored_before(asker))
        return total

    def add(self, asker: Asker, peers: Mapping[str, int], now: float) -> None:
        """A plan was made; a further one of the same upload (some chunks anew) adds to the first."""
        promise = self._promises.get(asker.upload_id) or self._begin(asker, now)
        if promise.asker.member != asker.member:
            return
        self._bind(promise, asker.connection, now)
        for peer_id, size in peers.items():
            promise.peers[peer_id] = max(promise.peers.get(peer_id, 0), size)

    def _begin(self, asker: Asker, now: float) -> _Promise:
        there = self._stored_before(asker)
        for upload_id in list(self._interrupted(asker)):
            self._end(upload_id, now)
        self._left.get(asker.member, {}).pop((asker.size, asker.chunk_size), None)
        member = self._members.setdefault(asker.member, _Member(now, now))
        if member.promises >= MAX_PROMISES:
            self._end(next(u for u, p in self._promises.items() if p.asker.member == asker.member), now)
        member.promises += 1
        promise = self._promises[asker.upload_id] = _Promise(asker, there=there)
        return promise

    def _bind(self, promise: _Promise, connection: bytes, now: float) -> None:
        """A sign of the upload came by that connection."""
        self._unbind(promise)
        promise.connection, promise.gone, promise.ends = connection, False, now + SILENT_S
        self._by.setdefault(connection, set()).add(promise.asker.upload_id)

    def _unbind(self, promise: _Promise) -> None:
        uploads = self._by.get(promise.connection, set())
        uploads.discard(promise.asker.upload_id)
        if not uploads:
            self._by.pop(promise.connection, None)

    # -- the same put again -----------------------------------------------------------

    def _interrupted(self, asker: Asker) -> Iterator[str]:
        """Uploads whose connection ended, of what seems to be the same file."""
        for upload_id, promise in self._promises.items():
            if promise.gone and _same_put(promise.asker, asker):
                yield upload_id

    def _stored_before(self, asker: Asker) -> Counter[str]:
        found = [_all_stored(self._promises[upload_id]) for upload_id in self._interrupted(asker)]
        left = self._left.get(asker.member, {}).get((asker.size, asker.chunk_size))
        return _most([*found, *([left.stored] if left is not None else [])])

    def _leave(self, promise: _Promise, now: float) -> None:
        stored, asker = _all_stored(promise), promise.asker
        if not stored:
            return
        of_member = self._left.setdefault(asker.member, {})
        known = of_member.pop((asker.size, asker.chunk_size), None)
        stored = _most([stored, known.stored] if known is not None else [stored])
        of_member[asker.size, asker.chunk_size] = _Left(stored, now + LEFT_S)
        if len(of_member) > MAX_LEFT:
            del of_member[next(iter(of_member))]

    # -- signs of uploads -------------------------------------------------------------

    def stored(self, upload_id: str, peer_id: str, chunks: int, now: float) -> None:
        """A node told of so many chunks that it holds for the upload."""
        promise = self._promises.get(upload_id)
        if promise is None:
            return
        promise.ends = max(promise.ends, now + (GONE_S if promise.gone else SILENT_S))
        self._members[promise.asker.member].moved = now
        size = chunks * promise.asker.chunk_size
        promise.stored[peer_id] += size
        if peer_id in promise.peers:
            promise.peers[peer_id] = max(0, promise.peers[peer_id] - size)

    def heard(self, connection: bytes, now: float) -> None:
        """There is somebody at its other end."""
        for upload_id in self._by.get(connection, ()):
            self._promises[upload_id].ends = now + SILENT_S

    def renew(self, upload_id: str, member: str, connection: bytes, now: float) -> None:
        """The upload goes on, perhaps by another connection than before."""
        promise = self._promises.get(upload_id)
        if promise is not None and promise.asker.member == member:
            self._bind(promise, connection, now)

    def gone(self, connection: bytes, now: float) -> None:
        """The connection ended."""
        for upload_id in self._by.pop(connection, ()):
            promise = self._promises[upload_id]
            promise.gone, promise.ends = True, now + GONE_S

    # -- ends -------------------------------------------------------------------------

    def committed(self, upload_id: str, now: float) -> None:
        promise = self._promises.get(upload_id)
        if promise is not None:
            promise.stored, promise.there = Counter(), Counter()  # of the file's from now on
            self._end(upload_id, now)

    def abandon(self, upload_id: str, member: str, now: float) -> None:
        """It will not be committed."""
        promise = self._promises.get(upload_id)
        if promise is not None and promise.asker.member == member:
            self._end(upload_id, now)

    def revoke(self, member: str, now: float) -> None:
        """It is no member any more."""
        for upload_id in [u for u, p in self._promises.items() if p.asker.member == member]:
            self._end(upload_id, now)
        self._left.pop(member, None)

    def expire(self, now: float) -> None:
        for upload_id in [u for u, promise in self._promises.items() if promise.ends <= now]:
            self._end(upload_id, now)
        # Remembered for a while, so that nobody is new again by asking anew.
        for member in [m for m, s in self._members.items() if not s.promises and s.last + STUCK_S <= now]:
            del self._members[member]
        for member, left in list(self._left.items()):
            for file in [file for file, one in left.items() if one.ends <= now]:
                del left[file]
            if not left:
                del self._left[member]

    def _end(self, upload_id: str, now: float) -> None:
        promise = self._promises.pop(upload_id)
        self._unbind(promise)
        self._leave(promise, now)
        member = self._members[promise.asker.member]
        member.promises, member.last = member.promises - 1, now


def _same_put(one: Asker, other: Asker) -> bool:
    return (one.member, one.size, one.chunk_size) == (other.member, other.size, other.chunk_size)


def _all_stored(promise: _Promise) -> Counter[str]:
    """What was there is told of again when it is offered again."""
    return _most([promise.stored, promise.there])


def _most(counts: list[Counter[str]]) -> Counter[str]:
    most: Counter[str] = Counter()
    for count in counts:
        most |= count
    return most
