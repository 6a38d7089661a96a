"""Every message between zchunk processes, defined once; docs/reference/protocol.md has the conversations.

Each class is frozen and checked: one that breaks its field types or limits cannot be built,
on either side (msgspec.ValidationError).
A class's `TYPE` is its name on the wire. Fields of type `Payload` do not travel in the header
but as frames of their own behind it, in the order of their definition. Requests name their
`REPLY`; the other possible answer to any request is an `ErrorReply`.

Units: bytes for sizes, seconds for durations, milliseconds since 1970 UTC for
`*_ms`. Tables are columns of little-endian integers (`columns.py`), since a file may
have 100,000 chunks.

The comments in front of fields are their meanings in docs/reference/protocol.md (scripts/reference).
This file is long because no message is anywhere else.
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
    #: one of the table "Error codes"; treat an unknown one as `unexpected`
    code: Annotated[str, Meta(max_length=64)]
    #: one line for people: what happened, to which peer or file, what to do; up to 4,000 characters are
    #: sent
    message: Annotated[str, Meta(max_length=4096)]
    #: facts for programs, by code; may be empty
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
    #: unique among nodes
    name: Label
    #: always `node`
    role: Role
    #: `up`, `down`, `left` (it said goodbye), `offline-store` (up, but its disk is offline), `revoked`
    #: (it may still run); `draining` is reserved and not sent yet
    status: Status
    #: the number of the node's start; higher is newer
    incarnation: Count
    #: where its ROUTER is, `tcp://host:port`, to be tried in order
    endpoints: Addresses
    #: maximum bytes of chunks that it stores
    capacity: Count
    #: bytes of chunks it would still take, as of its last heartbeat
    free: Count
    #: how many it holds, as of its last heartbeat
    chunks: Count
    #: its last hello or heartbeat
    last_seen_ms: Millis
    #: its present CURVE key, which a connecting socket must expect; nil where the tracker knows none
    public_key: HexId | None = None
    #: files that it holds chunks of and the tracker does not know, as of its last heartbeat
    files_unknown: Count = 0
    #: its status is `down` only as far as is known: the tracker has just started and the node has a lease
    #: to say hello, or it is saying hello now. A `peer.up` or `peer.down` follows
    unsure: bool = False
    #: why it takes no chunks at present, and what to do: its disk failed, or is mounted read-only, say.
    #: It serves those it has. Empty where it takes chunks
    refuses: Reason = ""


class MemberRecord(Record, frozen=True):
    """A member of the cluster, cut off or not. `public_key` is the one that it has now."""

    peer_id: PeerId
    name: Label
    role: Role
    #: the key it has now
    public_key: HexId
    #: no socket admits the key
    revoked: bool


class FileRecord(Record, frozen=True):
    """FileInfo of SPEC "Data" without its per-chunk lists."""

    #: SHA-256 of the manifest's canonical bytes
    file_id: HexId
    #: any text: it is data, never a path
    name: Name
    #: bytes of the file
    size: Count
    #: SHA-256 of the whole content; nil for an encrypted file
    sha256: Hash | None
    chunk_size: Count
    #: 0 for an empty file
    chunks_count: Count
    #: copies of each chunk that were asked for
    replicas: Count
    #: uploaded as a distributed file
    is_chunked: bool
    #: its copies lay on 2 peers or more when it was committed
    is_distributed: bool
    #: how few peers together held all chunks then
    minimum_peers_required: Count
    #: when it was committed
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
    #: yours from now on
    peer_id: PeerId
    name: Label
    role: Role
    #: the tracker's store, see "Garbage"
    store_id: Annotated[str, Meta(max_length=64)]
    #: addresses of the PUB socket, to be tried in order
    events: Addresses


class Join(Request, frozen=True):
    """Sent once under the token's key: makes `public_key` a member with the token's role."""

    TYPE: ClassVar[str] = "join"
    REPLY: ClassVar[type[Message]] = Joined
    #: the newcomer's own key, which it keeps for good
    public_key: Key
    #: printable; unique among nodes that are not revoked
    name: Label


class MembersChanged(Request, frozen=True):
    """A command on the tracker's home has changed the list of members there. Answered when that is
    in force. It comes by a Unix socket in that home; sockets of the network do not know it."""

    TYPE: ClassVar[str] = "members_changed"
    REPLY: ClassVar[type[Message]] = Ok


class Members(Message, frozen=True):
    """A page of the allow list, by peer id; ask again with `next_page` unless it is ""."""

    TYPE: ClassVar[str] = "members"
    #: by peer id, revoked ones too; up to 1,000 are sent
    members: Annotated[tuple[MemberRecord, ...], Meta(max_length=2_000)]
    #: empty at the end
    next_page: Annotated[str, Meta(max_length=64)]


class GetMembers(Request, frozen=True):
    """Whom may a node let in? Asked after registration and after a gap in the events."""

    TYPE: ClassVar[str] = "get_members"
    REPLY: ClassVar[type[Message]] = Members
    #: empty for the first page, else the `next_page` before
    page: Annotated[str, Meta(max_length=64)]


class KeyKnown(Message, frozen=True):
    """Whose key it is, or None: nobody's, or that of a member who was cut off."""

    TYPE: ClassVar[str] = "key_known"
    #: the member whose present key it is; nil for an unknown key, a replaced one, and that of a revoked
    #: member
    member: MemberRecord | None


class CheckKey(Request, frozen=True):
    """A node was asked to let this key in, and does not know it."""

    TYPE: ClassVar[str] = "check_key"
    REPLY: ClassVar[type[Message]] = KeyKnown
    #: the key
    public_key: Key


class RotateKey(Request, frozen=True):
    """From now on `public_key` is the sender's key, and the present one is nobody's. The
    peer id stays. Sent under the present key; idempotent under either."""

    TYPE: ClassVar[str] = "rotate_key"
    REPLY: ClassVar[type[Message]] = Ok
    #: the new key
    public_key: Key


class Welcome(Message, frozen=True):
    """Registered. With `inventory_wanted` the node sends its inventory next; only then
    does the cluster hear of it as up. `incarnation` is the number by which this start is known:
    a higher one than the hello's where the node's home was put back from a backup. The node
    keeps it, and says it from then on."""

    TYPE: ClassVar[str] = "welcome"
    #: random id of this run of the tracker; compare for equality only
    epoch: Annotated[str, Meta(max_length=64)]
    #: the last event's number
    seq: Count
    #: send heartbeats this often
    heartbeat_interval_s: Period
    #: how long a node counts as up without one
    lease_s: Period
    store_id: Annotated[str, Meta(max_length=64)]
    #: raised by each commit and each removal
    commit_number: Count
    #: the addresses of you that others get
    endpoints: Addresses
    #: send your inventory now
    inventory_wanted: bool
    #: the number by which this start is known. Higher than the hello's where the tracker has seen newer
    #: starts and none of them is up, as after a home was restored from a backup: keep it, and send it
    #: from now on
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
    #: raised by one at each start of the process, kept on disk; the same for all hellos of one start,
    #: unless a `welcome` gives another
    incarnation: Count
    #: 16 random hex digits of each process: two that run from copies of one home differ in it
    instance: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    #: what the node's ROUTER is bound to: a host, or `*`
    bound: Address
    #: its port
    port: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    #: addresses that its owner wants announced, `host` or `host:port`; they replace all others
    advertise: Addresses
    #: the machine's own addresses, for a wildcard
    interfaces: Addresses
    #: as in PeerRecord
    capacity: Count
    free: Count
    #: how many chunks it holds
    chunks: Count
    #: the sum of the SHA-256 of all chunks it holds, as 256-bit big-endian numbers, modulo 2^256; 32 zero
    #: bytes for none
    inventory_digest: Hash
    #: as in PeerRecord
    refuses: Reason


class Inventory(Request, frozen=True):
    """One page of what a node holds: SHA-256 digests (32 bytes each) in ascending order
    over all pages. Page 0 starts over; the page with `last` ends it."""

    TYPE: ClassVar[str] = "inventory"
    REPLY: ClassVar[type[Message]] = Ok
    #: 0, 1, 2, ... each after the answer to the one before
    page: Count
    #: the last page
    last: bool
    #: SHA-256 digests, 32 bytes each, ascending over all pages
    hashes: Payload


class Beat(Message, frozen=True):
    """The tracker's sign of life: a subscriber that has not seen (epoch, seq) asks."""

    TYPE: ClassVar[str] = "beat"
    epoch: Annotated[str, Meta(max_length=64)]
    #: the last event's number: a subscriber that does not receive it shortly after has lost events
    seq: Count


class Heartbeat(Request, frozen=True):
    """A node's or client's sign of life. A client's numbers are zero. `store_online` is false
    while the disk with the node's chunks is away: it is then there, and of no use.
    `files_unknown`: of the files it keeps manifests of, how many this tracker does not know,
    as `FindFiles` found: not zero after a tracker's database was lost or an older one put back.
    `refuses`: why it takes no chunks at present, though it serves those it has; else empty."""

    TYPE: ClassVar[str] = "heartbeat"
    REPLY: ClassVar[type[Message]] = Beat
    #: the node's; 0 for a client
    incarnation: Count
    free: Count
    chunks: Count
    #: bytes per second served and stored lately; not used by the tracker yet
    load: Rate
    #: false while the disk with the node's chunks is offline: its status becomes `offline-store`,
    #: published as `peer.updated`, and no client is sent there. A client sends true
    store_online: bool
    #: how many files that the node keeps manifests of this tracker does not know, by `find_files`. A
    #: change is published as `peer.updated`
    files_unknown: Count
    #: as in PeerRecord. Such a node gets no place in a plan. A change is published as `peer.updated`
    refuses: Reason


class Goodbye(Request, frozen=True):
    """A clean stop: the node is `left`, not `down`."""

    TYPE: ClassVar[str] = "goodbye"
    REPLY: ClassVar[type[Message]] = Ok
    #: an older one changes nothing
    incarnation: Count


class Snapshot(Message, frozen=True):
    """All storing nodes as of event `seq` of this tracker run, published at `events`."""

    TYPE: ClassVar[str] = "snapshot"
    epoch: Annotated[str, Meta(max_length=64)]
    #: events up to this one are in `peers`
    seq: Count
    #: where the PUB socket is now, as in `joined`; it may have moved since you joined
    events: Addresses
    #: every node that ever registered
    peers: Peers
    #: ids of peers of which a tracker that has just started does not know yet whether they are up;
    #: `peers` calls them `down`. A `peer.up` or `peer.down` follows for each; a member that knew one as
    #: up, in the same incarnation, continues to use it meanwhile
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
    #: the tracker's present run; where it is not the one asked for, `events` is empty
    epoch: Annotated[str, Meta(max_length=64)]
    #: the last event of this run; ask again while the last one you got is below it
    seq: Count
    #: in order: maps of `topic`, `seq`, `time_ms` and `fields`; 500 are sent at once. Where the first is
    #: not `since` + 1, those before it are gone
    events: EventRecords


class GetEvents(Request, frozen=True):
    """The events of run `epoch` after `since`: those that a subscriber missed. The tracker
    keeps the latest 10,000 of its run."""

    TYPE: ClassVar[str] = "get_events"
    REPLY: ClassVar[type[Message]] = EventList
    #: the run whose events you want
    epoch: Annotated[str, Meta(max_length=64)]
    #: those with a higher seq
    since: Count


# -- upload: client -> tracker, node -> tracker ----------------------------------------


class Planned(Message, frozen=True):
    """A placement. `assignment` holds for each chunk of the request `replicas` indexes
    into `peers` (u16, little-endian). A peer that only keeps the manifest (empty file)
    stands in `peers` without a chunk."""

    TYPE: ClassVar[str] = "planned"
    strategy: Strategy
    distributed: bool
    #: the width of `assignment`
    replicas: Copies
    #: those that get something; for an empty file the one that keeps its manifest
    peers: Peers
    #: u16 column: for each chunk of the request `replicas` indexes into `peers`, 0xFFFF where no new copy
    #: is due
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
    #: random, one per upload
    upload_id: UploadId
    #: bytes of the file
    size: Count
    #: must be what the manifest will say
    chunk_size: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    #: spread it; else all of it is stored on one peer (with replicas: on each of that many peers)
    distribute: bool
    #: copies of each chunk, on different peers
    replicas: Copies
    #: a distributed file is refused with fewer
    min_peers: Copies
    strategy: Strategy
    #: the client's own node: preferred for a file that is not distributed
    own_peer: PeerId | None
    #: peers that just refused
    avoid: Annotated[tuple[PeerId, ...], Meta(max_length=10_000)]
    #: see `held`
    held_peers: Annotated[tuple[PeerId, ...], Meta(max_length=10_000)]
    #: empty: the whole file. Else a u32 column: a new plan for these chunks only
    only: Payload
    #: with `only`: for each of these chunks `replicas` entries (u16) into `held_peers`, 0xFFFF for none:
    #: the copies that stay
    held: Payload


class Stored(Request, frozen=True):
    """A node holds these chunks verified and durably, for `upload_id`. Idempotent.
    `hashes` are 32-byte SHA-256 digests."""

    TYPE: ClassVar[str] = "stored"
    REPLY: ClassVar[type[Message]] = Ok
    #: the upload for which they were stored
    upload_id: UploadId
    #: SHA-256 digests, 32 bytes each
    hashes: Payload


class Committed(Message, frozen=True):
    """The file is visible. `already` where it was so before."""

    TYPE: ClassVar[str] = "committed"
    file: FileRecord
    #: the same file was there before; `replicas`, `min_peers` and `is_chunked` may have risen
    already: bool


class Commit(Request, frozen=True):
    """All or nothing: publish the file of `manifest` (SPEC U5). Idempotent. Refused as
    `not_yet_stored` unless each chunk has a confirmed copy on a peer that is up, and
    as `too_few_peers` where fewer than `min_peers` peers hold a distributed file."""

    TYPE: ClassVar[str] = "commit"
    REPLY: ClassVar[type[Message]] = Committed
    upload_id: UploadId
    #: recorded with the file
    replicas: Copies
    min_peers: Copies
    #: recorded as `is_chunked`
    distribute: bool
    #: SHA-256 of the manifest: what is damaged on its way is refused
    file_id: HexId
    #: the canonical bytes
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
    #: holders, all of them up
    peers: Peers
    #: u16 column, one entry for each digest asked about, in that order: how many holders are named (up to
    #: 32)
    holder_counts: Payload
    #: u16 column, chunk after chunk, the earliest stored first: indexes into `peers`
    holder_peers: Payload


class FindChunks(Request, frozen=True):
    """Who holds these chunks already (SPEC U7)? `hashes` are 32-byte SHA-256 digests, up to
    MAX_FIND of them. A hint: a node named may have dropped its copy since."""

    TYPE: ClassVar[str] = "find_chunks"
    REPLY: ClassVar[type[Message]] = ChunksFound
    #: SHA-256 digests, 32 bytes each, up to 4,096
    hashes: Payload


# -- files: client -> tracker -----------------------------------------------------------


class Located(Message, frozen=True):
    """A file's manifest and holders. Chunk i has `holder_counts[i]` (u16) entries, in
    order of storing, in `holder_peers` (u16 indexes into `peers`) and `holder_times`
    (u64, milliseconds)."""

    TYPE: ClassVar[str] = "located"
    file: FileRecord
    #: all holders, up or not
    peers: Peers
    #: the canonical bytes. Check that their SHA-256 is `file.file_id`, and that this is the id, or begins
    #: with the digits, or the file has the name, that you asked for
    manifest: Payload
    #: u16 column, one entry for each chunk: how many copies are known
    holder_counts: Payload
    #: u16 column, chunk after chunk, the earliest stored first: indexes into `peers`
    holder_peers: Payload
    #: u64 column, beside `holder_peers`: when each copy was stored, in milliseconds
    holder_times: Payload


class Locate(Request, frozen=True):
    """By name (the newest of that name), else by file id or a prefix of 8 or more
    digits. With `unique` a name of several files is refused (`ambiguous_name`)."""

    TYPE: ClassVar[str] = "locate"
    REPLY: ClassVar[type[Message]] = Located
    #: 64 hex digits, in either case: the file of that id, and no other, also where an earlier file has
    #: them for a name. Else an exact name (of several files of that name the one that was committed
    #: last), else the first 8 or more hex digits of an id
    name_or_id: Name
    #: refuse a name that several files have
    unique: bool


class Files(Message, frozen=True):
    """A page of the listing, newest first; ask again with `next_page` unless it is ""."""

    TYPE: ClassVar[str] = "files"
    #: newest first: in the order of their commits, independent of the clock; up to 1,000 are sent
    files: Annotated[tuple[FileRecord, ...], Meta(max_length=2_000)]
    #: empty at the end
    next_page: Annotated[str, Meta(max_length=200)]


class ListFiles(Request, frozen=True):
    TYPE: ClassVar[str] = "list_files"
    REPLY: ClassVar[type[Message]] = Files
    #: empty for the first page, else the `next_page` before
    page: Annotated[str, Meta(max_length=200)]


class Removed(Message, frozen=True):
    TYPE: ClassVar[str] = "removed"
    file_id: HexId
    #: of the removal; the same when asked again
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
    #: those that no committed file names: the tracker no longer counts on them here
    hashes: Payload


class Release(Request, frozen=True):
    """May I delete these chunks? No manifest I keep and no lease here names them."""

    TYPE: ClassVar[str] = "release"
    REPLY: ClassVar[type[Message]] = Released
    #: SHA-256 digests, 32 bytes each
    hashes: Payload


class Removals(Message, frozen=True):
    """Files removed after the asked commit number, oldest first."""

    TYPE: ClassVar[str] = "removals"
    store_id: Annotated[str, Meta(max_length=64)]
    #: what to ask from next
    commit_number: Count
    #: removed since, oldest first; not those committed again meanwhile; up to 1,000 are sent
    file_ids: Annotated[tuple[HexId, ...], Meta(max_length=10_000)]
    #: ask again at once
    more: bool


class GetRemovals(Request, frozen=True):
    TYPE: ClassVar[str] = "get_removals"
    REPLY: ClassVar[type[Message]] = Removals
    #: the commit number up to which removals are known
    since: Count


class FilesFound(Message, frozen=True):
    """`file_ids` (32 bytes each): those asked about that are files now; `removed`: those that were.
    Of the others the tracker has no record. What follows for a manifest that is no file's is valid
    only from this store, at this or a higher commit number."""

    TYPE: ClassVar[str] = "files_found"
    #: the tracker's store
    store_id: Annotated[str, Meta(max_length=64)]
    #: its commit number at that moment
    commit_number: Count
    #: those that are files, 32 bytes each
    file_ids: Payload
    #: those that were files and were removed. The number of those that are neither goes into the heartbeats
    removed: Payload


class FindFiles(Request, frozen=True):
    """A node keeps these manifests (`file_ids`, 32 bytes each, up to `MAX_FIND`): which of them are
    files, or were? Asked of those whose uploads' end it has not heard of; and of all where the
    tracker's store is not the one it knows."""

    TYPE: ClassVar[str] = "find_files"
    REPLY: ClassVar[type[Message]] = FilesFound
    #: file ids, 32 bytes each, up to 4,096
    file_ids: Payload


class Doubts(Message, frozen=True):
    """`hashes` (32 bytes each, ascending): up to `MAX_DOUBTS` chunks of which this node's
    copy was reported corrupt. It checks them and answers each by `lost` or `whole`."""

    TYPE: ClassVar[str] = "doubts"
    #: SHA-256 digests, 32 bytes each, ascending: up to 1,000 chunks. With 1,000 of them there may be
    #: more: ask again when these are answered
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
    #: SHA-256 digests, 32 bytes each. Of chunks that it is not known to hold, nothing is recorded
    hashes: Payload


class Lost(Request, frozen=True):
    """A node found that it no longer holds these chunks whole (32-byte digests)."""

    TYPE: ClassVar[str] = "lost"
    REPLY: ClassVar[type[Message]] = Ok
    #: SHA-256 digests, 32 bytes each
    hashes: Payload


class ReportCorrupt(Request, frozen=True):
    """A member received bytes from `peer_id` that are not chunk `sha256` (SPEC D8). Refused
    as `not_found` where that peer is not known to hold the chunk, as `busy` for a member
    with too many reports that no node has answered yet."""

    TYPE: ClassVar[str] = "report_corrupt"
    REPLY: ClassVar[type[Message]] = Ok
    #: the sender of the bytes
    peer_id: PeerId
    #: the chunk
    sha256: Hash


class ReportHeld(Request, frozen=True):
    """A member keeps much of this node's memory for downloads or uploads, and settles nothing of
    it, while others use that memory too. `member` is its peer id, in plain transport its address;
    of a budget of `budget` bytes it has `size`, without progress for `seconds`."""

    TYPE: ClassVar[str] = "report_held"
    REPLY: ClassVar[type[Message]] = Ok
    #: its peer id; in plain transport its address
    member: Label
    purpose: Annotated[str, Meta(pattern=r"^(downloads|uploads)\Z")]
    #: bytes that it keeps
    size: Count
    #: bytes that there are for all
    budget: Count
    #: since it settled something
    seconds: Rate


# -- chunks: client or node -> node ---------------------------------------------------------


class Block(Message, frozen=True):
    """Bytes of a chunk; the receiver verifies the whole chunk before it counts."""

    TYPE: ClassVar[str] = "block"
    #: the bytes; not verified by the sender
    data: Payload


class GetBlock(Request, frozen=True):
    """`length` bytes at `offset` of chunk `sha256`. `received` counts the payload bytes
    that this connection has taken in, or given up waiting for, so far: it frees the
    sender's budget."""

    TYPE: ClassVar[str] = "get_block"
    REPLY: ClassVar[type[Message]] = Block
    #: the chunk
    sha256: Hash
    offset: Count
    #: at most 16,777,216
    length: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    #: payload bytes this connection has settled so far
    received: Count


class Acknowledged(Message, frozen=True):
    """`busy`: requests of this connection wait here for memory that other members have."""

    TYPE: ClassVar[str] = "acknowledged"
    #: true: requests of this connection wait for memory that other members have now ("busy with others")
    busy: bool


class Acknowledge(Request, frozen=True):
    """No further request for now; all `received` bytes have arrived. Also asked by who waits
    for an answer, to hear whether the node is there at all."""

    TYPE: ClassVar[str] = "acknowledge"
    REPLY: ClassVar[type[Message]] = Acknowledged
    #: as in `get_block`
    received: Count


class Offered(Message, frozen=True):
    """`have`: stored already, now leased for the upload. Else memory for the whole
    chunk is reserved: send its blocks."""

    TYPE: ClassVar[str] = "offered"
    #: true: it is stored already and leased for this upload. False: send its blocks; also where the node
    #: has it and cannot read it: what comes replaces it
    have: bool


class Offer(Request, frozen=True):
    """May I send you this chunk? Answered when a buffer for all of it is free."""

    TYPE: ClassVar[str] = "offer"
    REPLY: ClassVar[type[Message]] = Offered
    upload_id: UploadId
    #: SHA-256 of its bytes
    sha256: Hash
    #: BLAKE3 of its bytes
    blake3: Hash
    #: of the chunk, at most 67,108,864
    size: Annotated[int, Meta(ge=1, le=MAX_COUNT)]


class BlockTaken(Message, frozen=True):
    """`stored`: that was the last block missing; the chunk is verified and durable."""

    TYPE: ClassVar[str] = "block_taken"
    #: true: that was the last block missing, and the chunk is verified and durable
    stored: bool


class PutBlock(Request, frozen=True):
    """Bytes at `offset` of an offered chunk, in any order."""

    TYPE: ClassVar[str] = "put_block"
    REPLY: ClassVar[type[Message]] = BlockTaken
    upload_id: UploadId
    sha256: Hash
    offset: Count
    #: at least 1 byte; no overlap with another block, but the same block once more does no harm
    data: Payload


class PutManifest(Request, frozen=True):
    """Keep this manifest durably beside the chunks of it that you hold."""

    TYPE: ClassVar[str] = "put_manifest"
    REPLY: ClassVar[type[Message]] = Ok
    upload_id: UploadId
    #: SHA-256 of the manifest
    file_id: HexId
    #: the canonical bytes
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
    #: a waiting job continues by itself when its peer is back
    auto_resume: bool
    #: chunks that are to be asked for
    pending: Count
    #: chunks that are being received, checked or written
    downloading: Count
    #: chunks that are verified and at their place
    completed: Count
    #: chunks that every holder known turned out not to have whole
    failed: Count
    #: down, and wanted chunks are nowhere else
    missing_peers: Annotated[tuple[PeerId, ...], Meta(max_length=10_000)]
    #: their names
    missing_names: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=10_000)]
    #: since when it waits
    waiting_since_ms: Millis | None
    #: for `chunk_peer`
    peers: Annotated[tuple[PeerId, ...], Meta(max_length=10_000)]
    #: u16 column, one entry for each chunk: 0 pending, 1 downloading, 2 completed, 3 failed. Empty above
    #: 1,000 chunks
    chunk_status: Payload
    #: u16 column beside it: indexes into `peers`, 0xFFFF for none
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
    `fields` are described per topic in docs/reference/events.md. A `tick` repeats the last seq."""

    TYPE: ClassVar[str] = "event"
    topic: Annotated[str, Meta(max_length=64)]
    epoch: Annotated[str, Meta(max_length=64)]
    #: one more for each event; a `tick` repeats the last one
    seq: Count
    time_ms: Millis
    #: by topic, see [events.md](events.md)
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
