"""One pass over a file that is uploaded: chunks are read, hashed and encrypted, and stay in memory.

Called by `runner.py`, in the bulk loop; the blocking work is its threads'. What may not happen here:
a chunk's buffer given back while the running file digest still needs it; plain bytes where what is
sent is ciphertext.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from zchunk.content import hashing, zeros
from zchunk.content.encryption import encrypted_row
from zchunk.content.hashing import FileDigest
from zchunk.content.manifest import IDENTITY, TAG_BYTES, ChunkRow, Manifest, chunk_count, chunk_length
from zchunk.errors import FileChanged, StorageUnavailable
from zchunk.limits.memory_shares import room_for_chunks
from zchunk.node.bulk.job_driver import JobDriver
from zchunk.node.upload.source_file import SourceFile
from zchunk.node.upload.upload_keys import Encryption
from zchunk.protocol.messages import Plan
from zchunk.system import disk
from zchunk.system.buffers import Buffer, BufferPool


def overhead(encryption: Encryption | None) -> int:
    """Bytes that a chunk is longer as it is stored."""
    return 0 if encryption is None else TAG_BYTES


def budget(receive_budget: int, plan: Plan, encryption: Encryption | None) -> int:
    """Bytes of chunks, as they are stored, that may be in memory."""
    setting = receive_budget // (1 if encryption is None else 2)
    return room_for_chunks(setting, plan.chunk_size + overhead(encryption))


class SourcePass:
    def __init__(
        self,
        *,
        driver: JobDriver[Any],
        source: SourceFile,
        plan: Plan,
        encryption: Encryption | None,
        on_read: Callable[[int, int | None], None],
        on_digested: Callable[[int], None],
        on_rest: Callable[[], None],
    ) -> None:
        """`on_read(chunk, twin)`: it is in memory and hashed; the chunk of the same bytes that was
        hashed first, if that is another. `on_digested(chunk)`: the file's digest has taken it in.
        `on_rest`: there is nothing to digest for now."""
        self._driver = driver
        self._pools = driver.bulk.pools
        self._source = source
        self._plan = plan
        self._encryption = encryption
        self._on_read = on_read
        self._on_digested = on_digested
        self._on_rest = on_rest
        self.overhead = overhead(encryption)
        count = chunk_count(plan.size, plan.chunk_size)
        self._rows: list[ChunkRow | None] = [None] * count
        #: SHA-256 -> a chunk of these bytes; zeros, for one, come again and again
        self._first_of: dict[bytes, int] = {}
        #: chunk -> what is sent of it, until it has its copies
        self._buffers: dict[int, Buffer] = {}
        #: chunk -> its plain bytes, until the file's digest took them in; the same memory where
        #: nothing is encrypted
        self._plain: dict[int, Buffer] = {}
        receive_budget = driver.bulk.settings.transfer.receive_budget
        self._pool = self._pool_of(budget(receive_budget, plan, encryption))
        self._plain_pool = self._pool_of(receive_budget // 2)
        #: chunks that wait for memory for their plain bytes, in order
        self._unread: deque[int] = deque()
        self._digest = FileDigest()
        self._next_digest = 0
        self._digest_busy = False

    # -- what is known --------------------------------------------------------------

    def row(self, index: int) -> ChunkRow:
        """Of a chunk that was read."""
        row = self._rows[index]
        assert row is not None
        return row

    @property
    def chunks_count(self) -> int:
        return len(self._rows)

    @property
    def is_over(self) -> bool:
        """Whether the digest has taken in all of the file."""
        return self._next_digest == len(self._rows)

    @property
    def sha256(self) -> bytes:
        """The file's, once it `is_over`."""
        return self._digest.digest()

    def manifest(self, name: str) -> Manifest:
        """Once it `is_over`. In a thread. Raises FileChanged."""
        rows = tuple(row for row in self._rows if row is not None)
        manifest = Manifest(name, self._plan.size, self._digest.digest(), self._plan.chunk_size, rows)
        if self._encryption is not None:
            manifest = self._encryption.manifest(manifest)
        self._source.check_unchanged()
        return manifest

    # -- memory ---------------------------------------------------------------------

    def _pool_of(self, budget: int) -> BufferPool:
        """Each chunk is rounded up to pages."""
        return BufferPool(budget + disk.ALIGNMENT * (budget // self._plan.chunk_size + 1))

    def _reserve(self, pool: BufferPool, size: int) -> Buffer | None:
        """None: not now, or it was told that there is no memory at all."""
        try:
            return pool.try_reserve(size)
        except StorageUnavailable as error:
            self._driver.fail(error)
            return None

    def length(self, index: int) -> int:
        return chunk_length(self._plan.size, self._plan.chunk_size, index)

    def stored_view(self, index: int) -> memoryview:
        return self._buffers[index].view(self.length(index) + self.overhead)

    def _drop_plain(self, index: int) -> None:
        """Nobody needs its plain bytes any more, but who sends them."""
        plain = self._plain.pop(index)
        if self._encryption is not None:
            plain.release()
            self._read_next()

    def release(self, index: int, clean: bool) -> None:
        """It has its copies. Not `clean`: a socket may still be reading there."""
        buffer = self._buffers.pop(index)
        buffer.release() if clean else buffer.discard()

    # -- reading and hashing, once --------------------------------------------------

    def read(self, index: int) -> None:
        """The chunk has memory in the job's budget."""
        buffer = self._reserve(self._pool, self.length(index) + self.overhead)
        if self._driver.ended:
            return
        assert buffer is not None  # the job's budget is less than the pool's
        self._buffers[index] = buffer
        self._unread.append(index)
        self._read_next()

    def _read_next(self) -> None:
        """Those that have memory for their plain bytes too."""
        while self._unread and not self._driver.ended:
            index = self._unread[0]
            plain = self._buffers[index]
            if self._encryption is not None:
                found = self._reserve(self._plain_pool, self.length(index))
                if found is None:
                    return
                plain = found
            self._unread.popleft()
            self._plain[index] = plain
            self._hash(index, plain.view(self.length(index)), self.stored_view(index))

    def _hash(self, index: int, plain: memoryview, stored: memoryview) -> None:
        def work() -> ChunkRow:
            chunk_size = self._plan.chunk_size
            hole = self._source.is_hole(index, chunk_size)
            if hole:
                plain[:] = zeros.view(len(plain))
            else:
                self._source.read_chunk(index, chunk_size, plain)
            return self._row(index, plain, stored, hole=hole)

        def then(row: ChunkRow) -> None:
            if self._rows[index] not in (None, row):
                self._driver.fail(
                    FileChanged(f"{self._source.path} changed while it was being uploaded; upload it again")
                )
                return
            self._rows[index] = row
            first = self._first_of.setdefault(row.sha256, index)
            if index < self._next_digest:  # it was read again
                self._drop_plain(index)
            self._digest_next()
            self._on_read(index, first if first != index else None)

        self._driver.submit(self._pools.hashing, work, then)

    def _row(self, index: int, plain: memoryview, stored: memoryview, *, hole: bool) -> ChunkRow:
        """The chunk's row; encrypts it into `stored`, if that is asked for."""
        if self._encryption is None and hole:
            return ChunkRow(len(plain), IDENTITY, *zeros.digests(len(plain)), None)
        if self._encryption is None:
            return ChunkRow(len(plain), IDENTITY, hashing.sha256(plain), hashing.blake3(plain), None)
        return encrypted_row(*self._encryption.key.encrypt_chunk(index, self._plan.chunk_size, plain, stored))

    def _digest_next(self) -> None:
        """Feed the file's digest, in order, from chunks that are in memory."""
        index = self._next_digest
        if self._digest_busy or index >= len(self._rows) or self._rows[index] is None:
            self._on_rest()
            return
        self._digest_busy = True
        view = self._plain[index].view(self.length(index))

        def then(_: None) -> None:
            self._digest_busy = False
            self._next_digest += 1
            self._drop_plain(index)
            self._on_digested(index)
            self._digest_next()

        self._driver.submit(self._pools.digesting, lambda: self._digest.update(view), then)
