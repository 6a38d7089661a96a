"""The operations of the upload side, under the names that the specification gives them.

`DistributedChunkManager` is what a client, a node's chunk service and (later) a watched
folder use; the work itself is `upload/runner.py`'s, `serving/chunk_server.py`'s and the store's. What only an
upload needs is imported by who begins one: a node has to be there soon, and begins none.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import ValidationError

from zchunk.content import hashing
from zchunk.content.manifest import MAX_NEW_SEALED_CHUNKS, block_ranges, chunk_count, new_name_problem
from zchunk.errors import Busy, InvalidUsage, MalformedMessage, StoreOffline, ZchunkError
from zchunk.node.bulk.plane import OFFER_TIMEOUT_S, BulkPlane
from zchunk.node.control.plane import expect
from zchunk.node.job_events import Done, Failed, JobEvent
from zchunk.protocol.messages import BlockTaken, Message, Offer, Offered, PeerRecord, Plan, Planned, PutBlock

if TYPE_CHECKING:
    from zchunk.content.encryption import Secret
    from zchunk.node.bulk.job_driver import Emit
    from zchunk.node.store.chunk_store import ChunkStore
    from zchunk.node.upload.runner import Upload
    from zchunk.node.upload.source_file import SourceFile
    from zchunk.node.upload.upload_keys import Encryption

Sent = Callable[[ZchunkError | None], None]


@dataclass(frozen=True)
class PutOptions:
    """How to upload a file; None means the configuration's value."""

    name: str | None = None
    replicas: int | None = None
    strategy: str | None = None
    chunk_size: int | None = None
    min_peers: int | None = None
    #: encrypt the file for who has this secret
    encrypt: Secret | None = None
    #: of an encrypted file: show others a neutral one
    hide_name: bool = False


class DistributedChunkManager:
    """Lives beside a bulk plane. Methods that start something run in its loop; their outcome
    comes through the given callbacks, there."""

    def __init__(self, *, bulk: BulkPlane, keep_at: Path, store: ChunkStore | None = None) -> None:
        """`keep_at`: where the manifests of uploads are kept; `store`: this peer's chunks,
        None for a client."""
        self.bulk = bulk
        self._keep_at = keep_at
        self._store = store

    # -- deciding -------------------------------------------------------------------

    def should_distribute(self, size: int) -> bool:
        """Whether a file of `size` bytes is spread over several peers (SPEC U1)."""
        return size >= self.bulk.settings.chunking.min_file_size_for_distribution

    def get_available_peers(self) -> list[PeerRecord]:
        """Storing peers that are up, as the tracker's events last said; sorted by id."""
        return [record for _, record in sorted(self.bulk.peers.items()) if record.status == "up"]

    def plan_request(self, size: int, options: PutOptions, own_peer: str | None) -> Plan:
        """What to ask the tracker for a new upload of `size` bytes. Raises InvalidUsage for
        options that cannot be."""
        try:
            return self._plan_request(size, options, own_peer)
        except ValidationError as error:
            raise InvalidUsage(f"this upload is not possible: {error}") from None

    def _plan_request(self, size: int, options: PutOptions, own_peer: str | None) -> Plan:
        chunking = self.bulk.settings.chunking
        chunk_size = _given(options.chunk_size, chunking.chunk_size)
        _check_encryption(size, chunk_size, options)
        return Plan(
            upload_id=secrets.token_hex(16),
            size=size,
            chunk_size=chunk_size,
            distribute=self.should_distribute(size),
            replicas=_given(options.replicas, chunking.replicas),
            min_peers=_given(options.min_peers, chunking.min_peers_for_distribution),
            strategy=options.strategy or chunking.distribution_strategy,
            own_peer=own_peer,
            avoid=(),
            held_peers=(),
            only=b"",
            held=b"",
        )

    # -- uploading ------------------------------------------------------------------

    def distribute_chunks(
        self,
        *,
        source: SourceFile,
        name: str,
        plan: Plan,
        planned: Planned,
        emit: Emit,
        job_id: str | None = None,
        encryption: Encryption | None = None,
    ) -> Upload:
        """The upload that carries out an agreed plan; `start` it in the bulk loop. `encryption`
        encrypts it."""
        from zchunk.node.upload.runner import Upload

        return Upload(
            bulk=self.bulk,
            source=source,
            name=name,
            plan=plan,
            planned=planned,
            keep_at=self._keep_at,
            emit=emit,
            job_id=job_id or secrets.token_hex(8),
            encryption=encryption,
        )

    def scan_and_distribute_large_file(
        self, path: Path, emit: Emit, *, options: PutOptions | None = None, own_peer: str | None = None
    ) -> bool:
        """Distributes the file if it is large enough, without a question; False if not.

        Progress and the end come as events through `emit`. Raises NotFound, NotAllowed or
        InvalidUsage for the file.
        """
        from zchunk.node.upload.source_file import SourceFile

        source = SourceFile(path)
        if not self.should_distribute(source.size):
            source.close()
            return False
        self.upload(source, emit, options=options or PutOptions(), own_peer=own_peer)
        return True

    def upload(self, source: SourceFile, emit: Emit, *, options: PutOptions, own_peer: str | None) -> None:
        """Plans and starts in one go, whatever the size; closes `source` at the end. Not for
        files to be encrypted: making their key would hold the loop up."""
        from zchunk.node.upload.plan_request import PlanRequest

        try:
            if options.encrypt is not None:
                raise InvalidUsage("only `zchunk put` and `Client.put` encrypt files")
            name = file_name(source.path, options)
            plan = self.plan_request(source.size, options, own_peer)
        except InvalidUsage:
            source.close()
            raise

        def emitting(event: JobEvent) -> None:
            if isinstance(event, Done | Failed):
                source.close()
            emit(event)

        def planned(answer: Planned | ZchunkError) -> None:
            if isinstance(answer, ZchunkError):
                emitting(Failed(job_id=None, error=answer))
                return
            try:
                upload = self.distribute_chunks(
                    source=source, name=name, plan=plan, planned=answer, emit=emitting
                )
            except MalformedMessage as odd:
                emitting(Failed(job_id=None, error=odd))
            else:
                upload.start()

        PlanRequest(self.bulk, plan, planned).start()

    def send_chunk_to_peer(self, peer_id: str, data: bytes | memoryview, upload_id: str, sent: Sent) -> None:
        """Sends one chunk; `sent(None)` once the peer holds it verified and durably, else
        `sent(error)`. For single chunks: whole files go by `distribute_chunks`."""
        sha256 = hashing.sha256(data)
        offer = Offer(upload_id=upload_id, sha256=sha256, blake3=hashing.blake3(data), size=len(data))

        def offered(reply: Message | None, error: ZchunkError | None) -> None:
            answer = expect(Offered, reply, error)
            if isinstance(answer, ZchunkError):
                sent(answer)
            elif answer.have:
                sent(None)
            else:
                self._send_blocks(peer_id, sha256, memoryview(data), upload_id, sent)

        self.bulk.links.request(peer_id, offer, OFFER_TIMEOUT_S, offered)

    def _send_blocks(self, peer_id: str, sha256: bytes, data: memoryview, upload_id: str, sent: Sent) -> None:
        """One block after the other; the answer to the last says whether it is stored."""
        ranges = block_ranges(len(data), self.bulk.settings.transfer.block_size_min)

        def send(at: int) -> None:
            offset, length = ranges[at]
            block = PutBlock(
                upload_id=upload_id, sha256=sha256, offset=offset, data=data[offset : offset + length]
            )
            timeout_s = self.bulk.settings.transfer.request_timeout_s
            self.bulk.links.request(
                peer_id, block, timeout_s, lambda reply, error: answered(at, reply, error)
            )

        def answered(at: int, reply: Message | None, error: ZchunkError | None) -> None:
            answer = expect(BlockTaken, reply, error)
            if isinstance(answer, ZchunkError):
                sent(answer)
            elif answer.stored:
                sent(None)
            elif at + 1 == len(ranges):
                sent(Busy(f"{self.bulk.name_of(peer_id)} lost a part of the chunk; send it again"))
            else:
                send(at + 1)

        send(0)

    # -- taking in ------------------------------------------------------------------

    def receive_chunk(
        self,
        sha256: bytes,
        blake3: bytes,
        data: bytes | bytearray | memoryview,
        upload_id: str,
        reserved: int = 0,
    ) -> None:
        """Stores one chunk here. On return it is verified and durable. Blocks: call it in a
        worker thread. Raises ChunkCorrupt, NoSpace, StorageFailure, StoreOffline."""
        if self._store is None:
            raise StoreOffline("this peer stores no chunks; start a node here with `zchunk node`")
        self._store.put(sha256, blake3, data, upload_id, reserved)


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _check_encryption(size: int, chunk_size: int, options: PutOptions) -> None:
    """Raises InvalidUsage."""
    if options.encrypt is None:
        if options.hide_name:
            raise InvalidUsage("only the name of an encrypted file can be hidden")
        return
    if chunk_size > 0 and (count := chunk_count(size, chunk_size)) > MAX_NEW_SEALED_CHUNKS:
        raise InvalidUsage(
            f"the file would have {count} chunks, but an encrypted file can have at most"
            f" {MAX_NEW_SEALED_CHUNKS}; choose a larger --chunk-size"
        )


def file_name(path: Path, options: PutOptions) -> str:
    """The name a file is put under. Raises InvalidUsage for a name that no file can have: also
    for one whose bytes are no UTF-8, since two such files would get the same name."""
    name = path.name if options.name is None else options.name
    if (problem := new_name_problem(name)) is not None:
        raise InvalidUsage(f"the file cannot be named {name!r}: {problem}; choose another name with --name")
    return name
