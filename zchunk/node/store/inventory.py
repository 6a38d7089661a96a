"""The numbers of a chunk store, in memory: what is held, what is used, what is promised.

Responsible for their agreeing with one another, so that `has` and `room` never wait for a
disk; that they agree with folder and index is the matter of `chunk_store.py`, the one
caller. Thread-safe: one lock, held for moments, inside which no other is taken. Pure
otherwise: what the disk has free, the caller says.
"""

from __future__ import annotations

import threading

from zchunk.content import hashing
from zchunk.errors import NotFound


class Inventory:
    """Chunks with their sizes; and bytes reserved for transfers.

    `capacity` bounds the bytes of all chunks and of what is kept with them, None leaves it to the
    disk; `reserve` bytes of the disk are left free.
    """

    def __init__(self, capacity: int | None, reserve: int) -> None:
        self._capacity = capacity
        self._reserve = reserve
        self._lock = threading.Lock()
        self._sizes: dict[bytes, int] = {}
        #: the sum of `_sizes`
        self._used = 0
        #: what manifests take
        self._beside = 0
        #: `hashing.inventory_digest` of the keys of `_sizes`
        self._digest = hashing.inventory_digest([])
        self._reserved = 0

    # -- chunks

    def has(self, sha256: bytes) -> bool:
        with self._lock:
            return sha256 in self._sizes

    def size_of(self, sha256: bytes) -> int:
        """Raises NotFound."""
        with self._lock:
            size = self._sizes.get(sha256)
        if size is None:
            raise not_held(sha256)
        return size

    def hashes(self) -> list[bytes]:
        """Ascending."""
        with self._lock:
            return sorted(self._sizes)

    @property
    def count(self) -> int:
        with self._lock:
            return len(self._sizes)

    @property
    def used(self) -> int:
        with self._lock:
            return self._used

    @property
    def digest(self) -> bytes:
        with self._lock:
            return self._digest

    def adopt(self, sizes: dict[bytes, int]) -> None:
        """Exactly these are held, whatever was before."""
        with self._lock:
            self._sizes = sizes
            self._used = sum(sizes.values())
            self._digest = hashing.inventory_digest(list(sizes))

    def add(self, sha256: bytes, size: int, reserved: int = 0) -> None:
        """One that is held already stays as it is. `reserved` bytes were held for it and are
        given back in the same moment: counted twice they would refuse the last chunk that fits."""
        with self._lock:
            self._reserved -= reserved
            if sha256 not in self._sizes:
                self._sizes[sha256] = size
                self._used += size
                self._digest = hashing.add_to_inventory(self._digest, [sha256])

    def remove(self, sha256: bytes) -> None:
        """It must be held."""
        with self._lock:
            self._used -= self._sizes.pop(sha256)
            self._digest = hashing.add_to_inventory(self._digest, [], [sha256])

    def keep_beside(self, size: int) -> None:
        """Manifests take so many bytes by now."""
        with self._lock:
            self._beside = size

    # -- space

    def fits(self, size: int) -> bool:
        """By capacity alone, reservations left out."""
        with self._lock:
            return self._capacity is None or self._used + self._beside + size <= self._capacity

    def room(self, on_disk: int) -> int:
        """Bytes of chunks that may still come, the disk having `on_disk` free; never negative."""
        with self._lock:
            room = on_disk - self._reserve - self._reserved
            if self._capacity is not None:
                room = min(room, self._capacity - self._used - self._beside - self._reserved)
        return max(0, room)

    def shortfall(self, size: int, on_disk: int, trash: int) -> int | None:
        """Bytes of the `trash` to purge before `size` more fit; None: purging all of it is no
        help. Capacity is a hard limit for all of it together, but trash stops no chunk."""
        with self._lock:
            short = size - (on_disk - self._reserve - self._reserved)
            if short > trash:
                return None
            if self._capacity is not None:
                over = self._used + self._beside + self._reserved + size - self._capacity
                if over > 0:
                    return None
                short = max(short, over + trash)
            return max(0, short)

    def hold(self, size: int) -> None:
        with self._lock:
            self._reserved += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self._reserved -= size


def not_held(sha256: bytes) -> NotFound:
    return NotFound(f"chunk {sha256.hex()[:12]} is not held here", chunk=sha256.hex())
