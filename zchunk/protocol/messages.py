"""Every message between zchunk processes, defined once. docs/protocol.md describes them.

Each class is frozen and checked: one that breaks its field types or limits cannot be built,
on either side (msgspec.ValidationError).
A class's `TYPE` is its name on the wire. Fields of type `Payload` do not travel in the header
but as frames of their own behind it, in the order of their definition. Requests name their
`REPLY`; the other possible answer to any request is an `ErrorReply`.

Units: bytes for sizes, seconds for durations, milliseconds since 1970 UTC for
`*_ms`. Tables are columns of little-endian integers (`columns.py`), since a file may
have 100,000 chunks.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import cache
from math import isfinite
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

import msgspec
from msgspec import Meta, Struct, ValidationError

from zchunk.clock import MAX_PERIOD_S, MAX_WALL_MS, MIN_PERIOD_S
from zchunk.strategy import MAX_COPIES

#: Version 1. A reader ignores unknown keys of a known type, refuses unknown types.
PROTOCOL_VERSION = 1


class _PayloadMarker:
    """Marks a field that is a frame of its own."""


PAYLOAD = _PayloadMarker()

Payload = Annotated[Any, PAYLOAD]  # bytes-like; never inspected by the codec
#: what a database column, and an integer of most languages, can hold
MAX_COUNT = 2**63 - 1
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Millis = Annotated[int, Meta(ge=0, le=MAX_WALL_MS)]
Copies = Annotated[int, Meta(ge=1, le=MAX_COPIES)]
#: Between two signs of life, or until one is missed. Ranges keep out NaN and infinity too.
Period = Annotated[float, Meta(ge=MIN_PERIOD_S, le=MAX_PERIOD_S)]
Rate = Annotated[float, Meta(ge=0.0, le=1e18)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
HexId = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
PeerId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
UploadId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Name = Annotated[str, Meta(max_length=4096)]
Label = Annotated[str, Meta(min_length=1, max_length=64)]
#: characters of what a node says of itself
MAX_REASON = 1_000
Reason = Annotated[str, Meta(max_length=MAX_REASON)]
#: characters of an endpoint, `tcp://` and port with it
MAX_ADDRESS = 300
#: chunks that a node is asked to check at once
MAX_DOUBTS = 1_000
#: digests that one `find_chunks` may ask about
MAX_FIND = 4096
#: holders of one chunk that its answer names at most
MAX_FOUND_HOLDERS = 32
Address = Annotated[str, Meta(min_length=1, max_length=MAX_ADDRESS)]
Addresses = Annotated[tuple[Address, ...], Meta(max_length=16)]
JobId = Annotated[str, Meta(pattern=r"^[0-9A-Za-z_-]{1,64}\Z")]
Strategy = Annotated[str, Meta(pattern=r"^(round_robin|contiguous|balanced)\Z")]
Role = Annotated[str, Meta(pattern=r"^(node|client|observer)\Z")]
Status = Annotated[str, Meta(pattern=r"^(up|down|left|draining|offline-store|revoked)\Z")]


M = TypeVar("M", bound="Message")


#: how deep lists and records of free form may nest
_MAX_DEPTH = 8


def is_fact(value: Any, depth: int = 0) -> bool:
    """Whether JSON and msgpack hold this alike: such facts travel in errors and events."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    if isinstance(value, float):
        return isfinite(value)
    if depth == _MAX_DEPTH:
        return False
    if isinstance(value, dict):
        return all(
            isinstance(key, str) and is_fact(key) and is_fact(item, depth + 1) for key, item in value.items()
        )
    return isinstance(value, (list, tuple)) and all(is_fact(item, depth + 1) for item in value)


#: What JSON can say (`is_fact`). Whoever has such a field checks it by `_check_facts`.
Facts = dict[str, Any]


def _check_facts(name: str, value: dict[str, Any]) -> None:
    if not is_fact(value):
        raise ValidationError(f"`$.{name}` has values that JSON does not have, or is nested too deeply")


#: Whether what is being built has been checked.
_is_checked: ContextVar[bool] = ContextVar("is_checked", default=False)


def decoded(values: dict[str, Any], cls: type[M]) -> M:
    """A message of what came off the wire, where texts are UTF-8. Raises ValidationError.

    It is checked while it is converted, and what its classes check by themselves is only what
    that cannot (`_check_facts`)."""
    token = _is_checked.set(True)
    try:
        return msgspec.convert(values, cls)
    finally:
        _is_checked.reset(token)


class Record(Struct, frozen=True):
    """A part of messages, or a message. Checked when it is built."""

    def __post_init__(self) -> None:
        if _is_checked.get():
            return
        msgspec.convert(self, _checked_fields(type(self)), from_attributes=True)
        for name in _text_fields(type(self)):
            value = getattr(self, name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not is_fact(text):
                    raise ValidationError(f"`$.{name}` is not text")


@cache
def _checked_fields(cls: type[Record]) -> type[Struct]:
    """The fields of `cls` without its own checks."""
    hints = get_type_hints(cls, include_extras=True)
    return msgspec.defstruct(cls.__name__, [(name, hints[name]) for name in cls.__struct_fields__])


@cache
def _text_fields(cls: type[Record]) -> tuple[str, ...]:
    """Those of `cls` that may hold texts."""
    hints = get_type_hints(cls)
    return tuple(name for name in cls.__struct_fields__ if "str" in str(hints[name]))


class Message(Record, frozen=True):
    TYPE: ClassVar[str]


class Request(Message, frozen=True):
    REPLY: ClassVar[type[Message]]


# -- answers that several requests share ----------------------------------------------


class Ok(Message, frozen=True):
    """Done; nothing to tell."""

    TYPE: ClassVar[str] = "ok"


class ErrorReply(Message, frozen=True):
    """The request was refused or failed; `code` is one of errors.BY_CODE."""

    TYPE: ClassVar[str] = "error"
    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=4096)]
    details: Facts

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_facts("details", self.details)


class Probe(Message, frozen=True):
    """Asks nothing and tells nothing: a ROUTER sends it, under request id 0, to learn from
    its socket whether the connection still stands. Whoever gets one ignores it."""

    TYPE: ClassVar[str] = "probe"


# -- parts ----------------------------------------------------------------------------


class PeerRecord(Record, frozen=True):
    """What the tracker knows of a storing node. `endpoints` are tried in order; whoever
    connects there expects `public_key` (None where the tracker knows none)."""

    peer_id: PeerId
    name: Label
    role: Role
    status: Status
    incarnation: Count
    endpoints: Addresses
    capacity: Count
    free: Count
    chunks: Count
    last_seen_ms: Millis
    public_key: HexId | None = None
    #: files that it keeps the manifests of, and the tracker does not know (see `Heartbeat`)
    files_unknown: Count = 0
    #: it is `down` only as far as is known: the tracker has just started, or the node is saying
    #: hello. Whether it is up shows within a lease: an event follows
    unsure: bool = False
    #: why it takes no chunks at present, and what to do; empty where it takes them
    refuses: Reason = ""


class MemberRecord(Record, frozen=True):
    """A member of the cluster, cut off or not. `public_key` is the one that it has now."""

    peer_id: PeerId
    name: Label
    role: Role
    public_key: HexId
    revoked: bool


class FileRecord(Record, frozen=True):
    """FileInfo of SPEC "Data" without its per-chunk lists."""

    file_id: HexId
    name: Name
    size: Count
    sha256: Hash | None
    chunk_size: Count
    chunks_count: Count
    replicas: Count
    is_chunked: bool
    is_distributed: bool
    minimum_peers_required: Count
    created_at_ms: Millis


R = TypeVar("R", PeerRecord, MemberRecord)


def record_in(value: Any, cls: type[R]) -> R | None:
    """The record that an event tells of in one of its fields; None where it is none."""
    if not isinstance(value, dict):
        return None
    try:
        return msgspec.convert(value, cls)
    except ValidationError:
        return None


Peers = Annotated[tuple[PeerRecord, ...], Meta(max_length=10_000)]


# -- membership, presence: anyone -> tracker --------------------------------------------


class Joined(Message, frozen=True):
    TYPE: ClassVar[str] = "joined"
    peer_id: PeerId
    name: Label
    role: Role
    store_id: Annotated[str, Meta(max_length=64)]
    events: Addresses


class Join(Request, frozen=True):
    """Sent once under the token's key: makes `public_key` a member with the token's role."""

    TYPE: ClassVar[str] = "join"
    REPLY: ClassVar[type[Message]] = Joined
    public_key: Key
    name: Label


class MembersChanged(Request, frozen=True):
    """A command on the tracker's home has changed the list of members there. Answered when that is
    in force. It comes by a Unix socket in that home; sockets of the network do not know it."""

    TYPE: ClassVar[str] = "members_changed"
    REPLY: ClassVar[type[Message]] = Ok


class Members(Message, frozen=True):
    """A page of the allow list, by peer id; ask again with `next_page` unless it is ""."""

    TYPE: ClassVar[str] = "members"
    members: Annotated[tuple[MemberRecord, ...], Meta(max_length=2_000)]
    next_page: Annotated[str, Meta(max_length=64)]


class GetMembers(Request, frozen=True):
    """Whom may a node let in? Asked after registration and after a gap in the events."""

    TYPE: ClassVar[str] = "get_members"
    REPLY: ClassVar[type[Message]] = Members
    page: Annotated[str, Meta(max_length=64)]


class KeyKnown(Message, frozen=True):
    """Whose key it is, or None: nobody's, or that of a member who was cut off."""

    TYPE: ClassVar[str] = "key_known"
    member: MemberRecord | None


class CheckKey(Request, frozen=True):
    """A node was asked to let this key in, and does not know it."""

    TYPE: ClassVar[str] = "check_key"
    REPLY: ClassVar[type[Message]] = KeyKnown
    public_key: Key


class RotateKey(Request, frozen=True):
    """From now on `public_key` is the sender's key, and the present one is nobody's. The
    peer id stays. Sent under the present key; idempotent under either."""

    TYPE: ClassVar[str] = "rotate_key"
    REPLY: ClassVar[type[Message]] = Ok
    public_key: Key


class Welcome(Message, frozen=True):
    """Registered. With `inventory_wanted` the node sends its inventory next; only then
    does the cluster hear of it as up. `incarnation` is the number by which this start is known:
    a higher one than the hello's where the node's home was put back from a backup. The node
    keeps it, and says it from then on."""

    TYPE: ClassVar[str] = "welcome"
    epoch: Annotated[str, Meta(max_length=64)]
    seq: Count
    heartbeat_interval_s: Period
    lease_s: Period
    store_id: Annotated[str, Meta(max_length=64)]
    commit_number: Count
    endpoints: Addresses
    inventory_wanted: bool
    incarnation: Count


class Hello(Request, frozen=True):
    """A storing node is there: after its start, and after each new connection.

    `incarnation` is raised once per process start (see `Welcome`); `instance` is drawn anew for each process
    and tells two apart that run from copies of one home. The node's ROUTER listens at `port`
    on `bound` (a wildcard or one address); `advertise` overrides what the tracker sees,
    `interfaces` are the machine's own addresses for when it sees only loopback.
    `inventory_digest` is the sum of the stored chunks' SHA-256 modulo 2^256, big-endian.
    """

    TYPE: ClassVar[str] = "hello"
    REPLY: ClassVar[type[Message]] = Welcome
    incarnation: Count
    instance: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    bound: Address
    port: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    advertise: Addresses
    interfaces: Addresses
    capacity: Count
    free: Count
    chunks: Count
    inventory_digest: Hash
    refuses: Reason


class Inventory(Request, frozen=True):
    """One page of what a node holds: SHA-256 digests (32 bytes each) in ascending order
    over all pages. Page 0 starts over; the page with `last` ends it."""

    TYPE: ClassVar[str] = "inventory"
    REPLY: ClassVar[type[Message]] = Ok
    page: Count
    last: bool
    hashes: Payload


class Beat(Message, frozen=True):
    """The tracker's sign of life: a subscriber that has not seen (epoch, seq) asks."""

    TYPE: ClassVar[str] = "beat"
    epoch: Annotated[str, Meta(max_length=64)]
    seq: Count


class Heartbeat(Request, frozen=True):
    """A node's or client's sign of life. A client's numbers are zero. `store_online` is false
    while the disk with the node's chunks is away: it is then there, and of no use.
    `files_unknown`: of the files it keeps manifests of, how many this tracker does not know,
    as `FindFiles` found: not zero after a tracker's database was lost or an older one put back.
    `refuses`: why it takes no chunks at present, though it serves those it has; else empty."""

    TYPE: ClassVar[str] = "heartbeat"
    REPLY: ClassVar[type[Message]] = Beat
    incarnation: Count
    free: Count
    chunks: Count
    load: Rate  # bytes per second served and stored lately
    store_online: bool
    files_unknown: Count
    refuses: Reason


class Goodbye(Request, frozen=True):
    """A clean stop: the node is `left`, not `down`."""

    TYPE: ClassVar[str] = "goodbye"
    REPLY: ClassVar[type[Message]] = Ok
    incarnation: Count


class Snapshot(Message, frozen=True):
    """All storing nodes as of event `seq` of this tracker run, published at `events`."""

    TYPE: ClassVar[str] = "snapshot"
    epoch: Annotated[str, Meta(max_length=64)]
    seq: Count
    events: Addresses
    peers: Peers
    #: peers of which a tracker that has just started does not know yet whether they are up:
    #: a `peer.up` or `peer.down` follows for each
    unsure: Annotated[tuple[PeerId, ...], Meta(max_length=10_000)]


class GetSnapshot(Request, frozen=True):
    TYPE: ClassVar[str] = "get_snapshot"
    REPLY: ClassVar[type[Message]] = Snapshot


class EventRecord(Record, frozen=True):
    """An event of the tracker's history; its epoch is the list's."""

    topic: Annotated[str, Meta(max_length=64)]
    seq: Count
    time_ms: Millis
    fields: Facts

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_facts("fields", self.fields)


EventRecords = Annotated[tuple[EventRecord, ...], Meta(max_length=1_000)]


class EventList(Message, frozen=True):
    """Events in order, from the first that the tracker still has; up to `seq` there are
    more when the last one is below it. Of another epoch than was asked for: none."""

    TYPE: ClassVar[str] = "event_list"
    epoch: Annotated[str, Meta(max_length=64)]
    seq: Count
    events: EventRecords


class GetEvents(Request, frozen=True):
    """The events of run `epoch` after `since`: those that a subscriber missed. The tracker
    keeps the latest 10,000 of its run."""

    TYPE: ClassVar[str] = "get_events"
    REPLY: ClassVar[type[Message]] = EventList
    epoch: Annotated[str, Meta(max_length=64)]
    since: Count


# -- upload: client -> tracker, node -> tracker ----------------------------------------


class Planned(Message, frozen=True):
    """A placement. `assignment` holds for each chunk of the request `replicas` indexes
    into `peers` (u16, little-endian). A peer that only keeps the manifest (empty file)
    stands in `peers` without a chunk."""

    TYPE: ClassVar[str] = "planned"
    strategy: Strategy
    distributed: bool
    replicas: Copies
    peers: Peers
    assignment: Payload


class Plan(Request, frozen=True):
    """Where to put the chunks of a file of `size` bytes, or, with `only`, some of them.

    `own_peer` is the client's own node. `avoid` are peers that have just failed it.
    `distribute` is the client's decision by its threshold. `only` (u32 indexes) asks
    anew for single chunks; `held` then gives, as `assignment` does with 0xFFFF for
    none, indexes into `held_peers` of the copies that stay, so that no peer gets two.
    """

    TYPE: ClassVar[str] = "plan"
    REPLY: ClassVar[type[Message]] = Planned
    upload_id: UploadId
    size: Count
    chunk_size: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    distribute: bool
    replicas: Copies
    min_peers: Copies
    strategy: Strategy
    own_peer: PeerId | None
    avoid: Annotated[tuple[PeerId, ...], Meta(max_length=10_000)]
    held_peers: Annotated[tuple[PeerId, ...], Meta(max_length=10_000)]
    only: Payload
    held: Payload


class Stored(Request, frozen=True):
    """A node holds these chunks verified and durably, for `upload_id`. Idempotent.
    `hashes` are 32-byte SHA-256 digests."""

    TYPE: ClassVar[str] = "stored"
    REPLY: ClassVar[type[Message]] = Ok
    upload_id: UploadId
    hashes: Payload


class Committed(Message, frozen=True):
    """The file is visible. `already` where it was so before."""

    TYPE: ClassVar[str] = "committed"
    file: FileRecord
    already: bool


class Commit(Request, frozen=True):
    """All or nothing: publish the file of `manifest` (SPEC U5). Idempotent. Refused as
    `not_yet_stored` unless each chunk has a confirmed copy on a peer that is up, and
    as `too_few_peers` where fewer than `min_peers` peers hold a distributed file."""

    TYPE: ClassVar[str] = "commit"
    REPLY: ClassVar[type[Message]] = Committed
    upload_id: UploadId
    replicas: Copies
    min_peers: Copies
    distribute: bool
    file_id: HexId
    manifest: Payload


class Abandon(Request, frozen=True):
    """The upload will not be committed; its reservations in plans end."""

    TYPE: ClassVar[str] = "abandon"
    REPLY: ClassVar[type[Message]] = Ok
    upload_id: UploadId


class Renew(Request, frozen=True):
    """The upload goes on: what it was promised stays so, also after its connection broke. Nothing
    where it was promised nothing. Idempotent."""

    TYPE: ClassVar[str] = "renew"
    REPLY: ClassVar[type[Message]] = Ok
    upload_id: UploadId


class ChunksFound(Message, frozen=True):
    """Who holds the chunks that were asked about, of the peers that are up. Chunk i has
    `holder_counts[i]` (u16) entries, in order of storing, in `holder_peers` (u16 indexes
    into `peers`)."""

    TYPE: ClassVar[str] = "chunks_found"
    peers: Peers
    holder_counts: Payload
    holder_peers: Payload


class FindChunks(Request, frozen=True):
    """Who holds these chunks already (SPEC U7)? `hashes` are 32-byte SHA-256 digests, up to
    MAX_FIND of them. A hint: a node named may have dropped its copy since."""

    TYPE: ClassVar[str] = "find_chunks"
    REPLY: ClassVar[type[Message]] = ChunksFound
    hashes: Payload


# -- files: client -> tracker -----------------------------------------------------------


class Located(Message, frozen=True):
    """A file's manifest and holders. Chunk i has `holder_counts[i]` (u16) entries, in
    order of storing, in `holder_peers` (u16 indexes into `peers`) and `holder_times`
    (u64, milliseconds)."""

    TYPE: ClassVar[str] = "located"
    file: FileRecord
    peers: Peers
    manifest: Payload
    holder_counts: Payload
    holder_peers: Payload
    holder_times: Payload


class Locate(Request, frozen=True):
    """By name (the newest of that name), else by file id or a prefix of 8 or more
    digits. With `unique` a name of several files is refused (`ambiguous_name`)."""

    TYPE: ClassVar[str] = "locate"
    REPLY: ClassVar[type[Message]] = Located
    name_or_id: Name
    unique: bool


class Files(Message, frozen=True):
    """A page of the listing, newest first; ask again with `next_page` unless it is ""."""

    TYPE: ClassVar[str] = "files"
    files: Annotated[tuple[FileRecord, ...], Meta(max_length=2_000)]
    next_page: Annotated[str, Meta(max_length=200)]


class ListFiles(Request, frozen=True):
    TYPE: ClassVar[str] = "list_files"
    REPLY: ClassVar[type[Message]] = Files
    page: Annotated[str, Meta(max_length=200)]


class Removed(Message, frozen=True):
    TYPE: ClassVar[str] = "removed"
    file_id: HexId
    commit_number: Count


class Remove(Request, frozen=True):
    """The file goes; chunks that nothing else needs are freed by their holders.
    Idempotent: a removed file's id is answered as removed."""

    TYPE: ClassVar[str] = "remove"
    REPLY: ClassVar[type[Message]] = Removed
    file_id: HexId


# -- garbage: node -> tracker -------------------------------------------------------------


class Released(Message, frozen=True):
    """`hashes` (32 bytes each): what this node may delete; the tracker no longer counts
    on it. Valid only from this store, at this or a higher commit number."""

    TYPE: ClassVar[str] = "released"
    store_id: Annotated[str, Meta(max_length=64)]
    commit_number: Count
    hashes: Payload


class Release(Request, frozen=True):
    """May I delete these chunks? No manifest I keep and no lease here names them."""

    TYPE: ClassVar[str] = "release"
    REPLY: ClassVar[type[Message]] = Released
    hashes: Payload


class Removals(Message, frozen=True):
    """Files removed after the asked commit number, oldest first."""

    TYPE: ClassVar[str] = "removals"
    store_id: Annotated[str, Meta(max_length=64)]
    commit_number: Count
    file_ids: Annotated[tuple[HexId, ...], Meta(max_length=10_000)]
    more: bool


class GetRemovals(Request, frozen=True):
    TYPE: ClassVar[str] = "get_removals"
    REPLY: ClassVar[type[Message]] = Removals
    since: Count


class FilesFound(Message, frozen=True):
    """`file_ids` (32 bytes each): those asked about that are files now; `removed`: those that were.
    Of the others the tracker has no record. What follows for a manifest that is no file's is valid
    only from this store, at this or a higher commit number."""

    TYPE: ClassVar[str] = "files_found"
    store_id: Annotated[str, Meta(max_length=64)]
    commit_number: Count
    file_ids: Payload
    removed: Payload


class FindFiles(Request, frozen=True):
    """A node keeps these manifests (`file_ids`, 32 bytes each, up to `MAX_FIND`): which of them are
    files, or were? Asked of those whose uploads' end it has not heard of; and of all where the
    tracker's store is not the one it knows."""

    TYPE: ClassVar[str] = "find_files"
    REPLY: ClassVar[type[Message]] = FilesFound
    file_ids: Payload


class Doubts(Message, frozen=True):
    """`hashes` (32 bytes each, ascending): up to `MAX_DOUBTS` chunks of which this node's
    copy was reported corrupt. It checks them and answers each by `lost` or `whole`."""

    TYPE: ClassVar[str] = "doubts"
    hashes: Payload


class GetDoubts(Request, frozen=True):
    """Which of my chunks should I check? Asked after registration, after a gap in the
    events, and when a `chunk.corrupt` names this node (SPEC D8)."""

    TYPE: ClassVar[str] = "get_doubts"
    REPLY: ClassVar[type[Message]] = Doubts


class Whole(Request, frozen=True):
    """A node has checked these chunks that were in doubt, and they are whole (32-byte
    digests): what was reported of them is void."""

    TYPE: ClassVar[str] = "whole"
    REPLY: ClassVar[type[Message]] = Ok
    hashes: Payload


class Lost(Request, frozen=True):
    """A node found that it no longer holds these chunks whole (32-byte digests)."""

    TYPE: ClassVar[str] = "lost"
    REPLY: ClassVar[type[Message]] = Ok
    hashes: Payload


class ReportCorrupt(Request, frozen=True):
    """A member received bytes from `peer_id` that are not chunk `sha256` (SPEC D8). Refused
    as `not_found` where that peer is not known to hold the chunk, as `busy` for a member
    with too many reports that no node has answered yet."""

    TYPE: ClassVar[str] = "report_corrupt"
    REPLY: ClassVar[type[Message]] = Ok
    peer_id: PeerId
    sha256: Hash


class ReportHeld(Request, frozen=True):
    """A member keeps much of this node's memory for downloads or uploads, and settles nothing of
    it, while others use that memory too. `member` is its peer id, in plain transport its address;
    of a budget of `budget` bytes it has `size`, without progress for `seconds`."""

    TYPE: ClassVar[str] = "report_held"
    REPLY: ClassVar[type[Message]] = Ok
    member: Label
    purpose: Annotated[str, Meta(pattern=r"^(downloads|uploads)\Z")]
    size: Count
    budget: Count
    seconds: Rate


# -- chunks: client or node -> node ---------------------------------------------------------


class Block(Message, frozen=True):
    """Bytes of a chunk; the receiver verifies the whole chunk before it counts."""

    TYPE: ClassVar[str] = "block"
    data: Payload


class GetBlock(Request, frozen=True):
    """`length` bytes at `offset` of chunk `sha256`. `received` counts the payload bytes
    that this connection has taken in, or given up waiting for, so far: it frees the
    sender's budget."""

    TYPE: ClassVar[str] = "get_block"
    REPLY: ClassVar[type[Message]] = Block
    sha256: Hash
    offset: Count
    length: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    received: Count


class Acknowledged(Message, frozen=True):
    """`busy`: requests of this connection wait here for memory that other members have."""

    TYPE: ClassVar[str] = "acknowledged"
    busy: bool


class Acknowledge(Request, frozen=True):
    """No further request for now; all `received` bytes have arrived. Also asked by who waits
    for an answer, to hear whether the node is there at all."""

    TYPE: ClassVar[str] = "acknowledge"
    REPLY: ClassVar[type[Message]] = Acknowledged
    received: Count


class Offered(Message, frozen=True):
    """`have`: stored already, now leased for the upload. Else memory for the whole
    chunk is reserved: send its blocks."""

    TYPE: ClassVar[str] = "offered"
    have: bool


class Offer(Request, frozen=True):
    """May I send you this chunk? Answered when a buffer for all of it is free."""

    TYPE: ClassVar[str] = "offer"
    REPLY: ClassVar[type[Message]] = Offered
    upload_id: UploadId
    sha256: Hash
    blake3: Hash
    size: Annotated[int, Meta(ge=1, le=MAX_COUNT)]


class BlockTaken(Message, frozen=True):
    """`stored`: that was the last block missing; the chunk is verified and durable."""

    TYPE: ClassVar[str] = "block_taken"
    stored: bool


class PutBlock(Request, frozen=True):
    """Bytes at `offset` of an offered chunk, in any order."""

    TYPE: ClassVar[str] = "put_block"
    REPLY: ClassVar[type[Message]] = BlockTaken
    upload_id: UploadId
    sha256: Hash
    offset: Count
    data: Payload


class PutManifest(Request, frozen=True):
    """Keep this manifest durably beside the chunks of it that you hold."""

    TYPE: ClassVar[str] = "put_manifest"
    REPLY: ClassVar[type[Message]] = Ok
    upload_id: UploadId
    file_id: HexId
    manifest: Payload


class Conclude(Request, frozen=True):
    """The upload was committed: its leases on this node end."""

    TYPE: ClassVar[str] = "conclude"
    REPLY: ClassVar[type[Message]] = Ok
    upload_id: UploadId


# -- jobs: a command -> the process that runs a download of the same home ------------------


JobStateName = Annotated[
    str, Meta(pattern=r"^(running|waiting|paused|verifying|complete|failed|cancelled)\Z")
]
#: DownloadJob's statuses of a chunk, in the order of `Job.statuses`.
CHUNK_STATUSES = ("pending", "downloading", "completed", "failed")


class Job(Message, frozen=True):
    """DownloadJob of SPEC "Data" as it is now. `pending` to `failed` count its chunks.

    `chunk_status` (u16 indexes into `CHUNK_STATUSES`) and `chunk_peer` (u16 indexes into
    `peers`, 0xFFFF for nobody) have an entry for each chunk, and none for a file of more
    than 1,000. `missing_names` are the names of `missing_peers`.
    """

    TYPE: ClassVar[str] = "job"
    job_id: JobId
    state: JobStateName
    auto_resume: bool
    pending: Count
    downloading: Count
    completed: Count
    failed: Count
    missing_peers: Annotated[tuple[PeerId, ...], Meta(max_length=10_000)]
    missing_names: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=10_000)]
    waiting_since_ms: Millis | None
    peers: Annotated[tuple[PeerId, ...], Meta(max_length=10_000)]
    chunk_status: Payload
    chunk_peer: Payload


class SteerJob(Request, frozen=True):
    """Show, pause, resume or cancel this job, by a process of the same user. The answer tells
    the job as it is then; that to `cancel` comes when nothing of it is left on the disk."""

    TYPE: ClassVar[str] = "steer_job"
    REPLY: ClassVar[type[Message]] = Job
    job_id: JobId
    action: Annotated[str, Meta(pattern=r"^(show|pause|resume|cancel)\Z")]


# -- events: tracker -> subscribers ----------------------------------------------------------


class Event(Message, frozen=True):
    """One published fact. `topic` is also the frame that subscriptions match;
    `fields` are described per topic in docs/events.md. A `tick` repeats the last seq."""

    TYPE: ClassVar[str] = "event"
    topic: Annotated[str, Meta(max_length=64)]
    epoch: Annotated[str, Meta(max_length=64)]
    seq: Count
    time_ms: Millis
    fields: Facts

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_facts("fields", self.fields)


def _subclasses(base: type[Message]) -> list[type[Message]]:
    return [cls for child in base.__subclasses__() for cls in ([child, *_subclasses(child)])]


#: wire type -> class
BY_TYPE: dict[str, type[Message]] = {cls.TYPE: cls for cls in _subclasses(Message) if "TYPE" in vars(cls)}


def _fields(cls: type[Message], payload: bool) -> tuple[str, ...]:
    kinds = cls.__annotations__  # as they are written here
    return tuple(name for name in cls.__struct_fields__ if (kinds[name] == "Payload") is payload)


#: class -> names of its payload fields, in frame order
PAYLOAD_FIELDS: dict[type[Message], tuple[str, ...]] = {cls: _fields(cls, True) for cls in BY_TYPE.values()}
#: class -> names of its header fields
HEADER_FIELDS: dict[type[Message], tuple[str, ...]] = {cls: _fields(cls, False) for cls in BY_TYPE.values()}
