"""Every parser of bytes that come from the network, the disk or a person, as a function of bytes.

A target's `run` parses, uses what came out as its readers do, and compares it with what it
becomes when it is written and parsed again. It may raise the target's errors and nothing else.
The Hypothesis tests beside this file and `scripts/fuzz` drive the same targets.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgpack
from msgspec.structs import asdict

from zchunk import config
from zchunk.clock import ManualClock, iso_utc
from zchunk.content import encryption, manifest
from zchunk.content.manifest import TAG_BYTES, ChunkRow, Manifest
from zchunk.errors import (
    ConfigError,
    InvalidUsage,
    MalformedMessage,
    ManifestInvalid,
    StorageFailure,
    TokenRefused,
    UnknownMessage,
    UnsupportedVersion,
    ZchunkError,
)
from zchunk.node import views
from zchunk.node.bulk.location import found_holders, location
from zchunk.node.download import job_info, target_content
from zchunk.node.home import membership, options
from zchunk.node.jobs import records as jobs_records
from zchunk.node.registration import raise_incarnation
from zchunk.node.serving import allow_list
from zchunk.node.store.chunk_index import ChunkIndex
from zchunk.node.store.cluster_memory import ClusterMemory
from zchunk.node.store.store_folder import StoreFolder, create
from zchunk.protocol import columns, wire
from zchunk.protocol.messages import (
    PAYLOAD_FIELDS,
    ChunksFound,
    ErrorReply,
    Event,
    FileRecord,
    GetBlock,
    Inventory,
    Located,
    Ok,
    PeerRecord,
    Plan,
    PutBlock,
    Snapshot,
    Welcome,
    record_in,
)
from zchunk.system import addresses
from zchunk.system.home_state import HomeState
from zchunk.tracker.home import load_endpoints
from zchunk.tracker.members.membership import Membership
from zchunk.transport.auth import Token, load_or_make_key, parse_token
from zchunk.transport.keys import KeyPair, peer_id_of

Seeds = Callable[[], Sequence[bytes]]


@dataclass(frozen=True)
class Target:
    """`run(data)` returns, or raises one of `errors`; anything else is a finding."""

    name: str
    run: Callable[[bytes], Any]
    errors: tuple[type[ZchunkError], ...]
    seeds: Seeds

    def check(self, data: bytes) -> bool:
        """Whether `data` was taken. Errors name what is wrong in a line that can be shown."""
        refusal = None
        try:
            self.run(data)
        except self.errors as error:
            refusal = error
        if refusal is not None:
            assert len(refusal.message) < 6000
            assert wire.encode(wire.error_reply(refusal)), "it can be told to whoever sent it"
        return refusal is None


# -- the network ------------------------------------------------------------------------------

PEER = PeerRecord(
    peer_id="a" * 32,
    name="A",
    role="node",
    status="up",
    incarnation=3,
    endpoints=("tcp://10.0.0.1:7710",),
    capacity=10**12,
    free=10**11,
    chunks=7,
    last_seen_ms=1_700_000_000_000,
)
ROWS = tuple(ChunkRow(65536, "identity", bytes([i]) * 32, bytes([i + 1]) * 32, None) for i in range(3))
MANIFEST = Manifest("a film.mkv", 3 * 65536, b"s" * 32, 65536, ROWS)
FILE = FileRecord(
    file_id=MANIFEST.file_id,
    name=MANIFEST.name,
    size=MANIFEST.size,
    sha256=MANIFEST.sha256,
    chunk_size=MANIFEST.chunk_size,
    chunks_count=3,
    replicas=1,
    is_chunked=True,
    is_distributed=True,
    minimum_peers_required=2,
    created_at_ms=1_700_000_000_000,
)
LOCATED = Located(
    file=FILE,
    peers=(PEER,),
    manifest=MANIFEST.canonical,
    holder_counts=columns.pack(2, [1, 1, 1]),
    holder_peers=columns.pack(2, [0, 0, 0]),
    holder_times=columns.pack(8, [1, 2, 3]),
)
FOUND = ChunksFound(peers=(PEER,), holder_counts=columns.pack(2, [1, 0]), holder_peers=columns.pack(2, [0]))
MESSAGES: tuple[Any, ...] = (
    Ok(),
    ErrorReply(code="busy", message="later", details={"peer_ids": ("a",), "n": 3}),
    Snapshot(epoch="e", seq=5, events=("tcp://10.0.0.1:7701",), peers=(PEER,), unsure=()),
    Event(topic="peer.up", epoch="e", seq=6, time_ms=9, fields={"peer": asdict(PEER), "reason": "hello"}),
    GetBlock(sha256=b"h" * 32, offset=0, length=65536, received=0),
    PutBlock(upload_id="b" * 32, sha256=b"h" * 32, offset=4096, data=b"x" * 10),
    Inventory(page=0, last=True, hashes=b"h" * 64),
    Plan(
        upload_id="b" * 32,
        size=10**10,
        chunk_size=65536,
        distribute=True,
        replicas=2,
        min_peers=2,
        strategy="balanced",
        own_peer=None,
        avoid=("c" * 32,),
        held_peers=(),
        only=b"",
        held=b"",
    ),
    Welcome(
        epoch="e",
        seq=0,
        heartbeat_interval_s=1.0,
        lease_s=3.0,
        store_id="s",
        commit_number=0,
        endpoints=("tcp://10.0.0.1:7710",),
        inventory_wanted=False,
        incarnation=1,
    ),
    LOCATED,
    FOUND,
)


def joined(frames: Sequence[Any]) -> bytes:
    """Frames as one string of bytes: of each its length (u32), then itself."""
    return b"".join(len(frame).to_bytes(4, "big") + bytes(frame) for frame in frames)


def parted(data: bytes) -> list[bytes]:
    """The inverse; of what remains anything goes, since frames have no form to keep."""
    frames: list[bytes] = []
    at = 0
    while at < len(data) and len(frames) < 12:
        length = int.from_bytes(data[at : at + 4], "big")
        frames.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return frames


def _wire(data: bytes) -> None:
    envelope = wire.decode(parted(data))
    message = envelope.message
    again = wire.decode(wire.encode(message, envelope.request_id, envelope.claim))
    assert again == envelope
    if isinstance(message, ErrorReply):
        json.dumps(wire.raised(message).to_json(), allow_nan=False).encode()
    if isinstance(message, Event):
        json.dumps(message.fields, allow_nan=False)
        iso_utc(message.time_ms / 1000)
        record = record_in(message.fields.get("peer"), PeerRecord)
        assert record is None or iso_utc(record.last_seen_ms / 1000)


def _tables(data: bytes) -> None:
    """What the tracker says of a file's holders, by a client that checks it."""
    message = wire.decode(parted(data)).message
    if isinstance(message, Located):
        where = location(message, message.file.file_id)
        assert len(where.holder_ids()) == len(where.manifest.chunks) == len(where.live_copies())
        where.distribution_map()
        [iso_utc(at / 1000) for row in where.holders for _, at in row]
    elif isinstance(message, ChunksFound):
        assert len(found_holders(message, 2)) == 2
    else:
        for name in PAYLOAD_FIELDS[type(message)]:
            column = columns.unpack(2, getattr(message, name))
            columns.rows(column, 2)
            columns.split_hashes(getattr(message, name))


def _manifest(data: bytes) -> None:
    parsed = manifest.parse(data)
    assert parsed.canonical == data
    assert manifest.parse(data, hashlib.sha256(data).hexdigest()) == parsed
    assert sum(parsed.length(index) for index in range(len(parsed.chunks))) == parsed.size
    assert parsed.stored_bytes == parsed.size
    target_content.safe_target_name(parsed.name).encode()


def _sealed(data: bytes) -> None:
    """What an encrypted file's manifest shows to everybody, by who has no key."""
    head = encryption.parse_head(data)
    assert encryption.parse_head(head.encode()) == head
    encryption.head_of(Manifest("x", 0, None, 65536, (), msgpack.packb((*head.parts, b"b" * 64))))


# -- what people type -------------------------------------------------------------------------

KEY = KeyPair(b"p" * 32, b"q" * 32)
TOKEN = Token(("tcp://10.0.0.1:7700",), b"t" * 32, "plain", "node", KEY, 1_700_000_000_000)


def _token(data: bytes) -> None:
    token = parse_token(data.decode("utf-8", "surrogateescape"))
    assert parse_token(token.encode()) == token
    iso_utc(token.expires_ms / 1000)
    [addresses.parse(address) for address in token.addresses]


def _address(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    address = addresses.parse(text)
    assert addresses.parse(str(address)) == address
    assert addresses.parse(address.tcp) == address
    address.tcp.encode("ascii")
    addresses.announced(bound=address.host, port=7710, advertise=(), seen_from=address.host, interfaces=())


def _name(data: bytes) -> None:
    name = target_content.safe_target_name(data.decode("utf-8", "surrogateescape"))
    assert name not in ("", ".", "..")
    assert not set(name) & set("/\\\0\n\x1b")
    assert len(name.encode()) <= target_content.MAX_NAME_BYTES
    assert target_content.safe_target_name(name) == name


# -- files ------------------------------------------------------------------------------------

_FOLDER = Path(tempfile.mkdtemp(prefix="zchunk-fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def _file(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _config(data: bytes) -> None:
    settings = config.load(_file("config.yaml", data), environ={})
    assert settings == config.load(_FOLDER / "config.yaml", environ={})


def _zjob(data: bytes) -> None:
    job = job_info.load_job(_file("x.zjob", data))
    if job is not None:
        assert job.manifest.file_id == job.file_id
        assert all(0 <= index < len(job.manifest.chunks) for index in job.completed)
        json.dumps([job.job_id, job.created_at, job.state]).encode()
        job.created_at.encode()


def _job_record(data: bytes) -> None:
    path = _FOLDER / "jobs" / "j1.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    book = jobs_records.JobBook([path.parent])
    record = book.load("j1")
    if record is not None:
        json.dumps(views.job(jobs_records.standing(record)))
        book.save(record)
        assert book.load("j1") == record
    assert book.all() == ([record] if record is not None else [])


def _key(data: bytes) -> None:
    pair = load_or_make_key(_file("key.json", data))
    assert len(pair.public) == len(pair.secret) == 32


def _membership(data: bytes) -> None:
    _file("membership.json", data)
    loaded = membership.load(_FOLDER)
    assert loaded is not None
    membership.save(_FOLDER, loaded)
    assert membership.load(_FOLDER) == loaded


def _members(data: bytes) -> None:
    listed = Membership(_file("members.json", data), ManualClock())
    for member in listed.listed.members.values():
        PeerRecord(
            **{**asdict(PEER), "peer_id": member.peer_id, "name": member.name or "x", "role": member.role}
        )
    for token in listed.listed.tokens.values():
        iso_utc(token.expires_ms / 1000)
    listed.free_name("A")


def _allow_list(data: bytes) -> None:
    listed = allow_list.load(_file("allowed.json", data))
    allow_list.save(_FOLDER / "allowed.json", listed.members)
    assert allow_list.load(_FOLDER / "allowed.json").members == listed.members


def _options(data: bytes) -> None:
    _file("options.json", data)
    # As `zchunk node` does: what was kept is the weakest layer of the settings.
    config.load(None, {"node": {}}, {}, {"node": options.load(_FOLDER, {})})


def _home(data: bytes) -> None:
    """Whatever it says, what was noted since is known, and nothing else raises."""
    (_FOLDER / "role").mkdir(exist_ok=True)
    _file("role/home.json", data)
    state = HomeState(_FOLDER / "role", {"key": ("other.json",)})
    state.was_made("key")
    state.note("key")
    assert state.was_made("key")
    state.forget("key")
    assert not state.was_made("key")


def _incarnation(data: bytes) -> None:
    path = _file("incarnation.json", data)
    number = raise_incarnation(_FOLDER)
    assert json.loads(path.read_bytes()) == {"incarnation": number}
    assert 1 <= number < 2**63


def _endpoints(data: bytes) -> None:
    assert load_endpoints(_file("endpoints.json", data))


class _NoCopy:
    """An index that has none of what the file says."""

    def setting(self, key: str) -> str | None:
        return None


def _cluster(data: bytes) -> None:
    memory = ClusterMemory(_file("cluster.json", data), cast(ChunkIndex, _NoCopy()))
    assert memory.store_id is None or 0 <= memory.commit_number < 2**63


def _marker(data: bytes) -> None:
    root = _FOLDER / "store"
    if not root.exists():
        create(root, ManualClock())
    (root / "zchunk-store.json").write_bytes(data)
    folder = StoreFolder(root)
    try:
        folder.read_uuid().encode("utf-8", "surrogatepass")
    finally:
        folder.release()


def _json(value: Any) -> Seeds:
    return lambda: [json.dumps(value).encode()]


def _zjob_seed() -> list[bytes]:
    body = {
        "version": 1,
        "job_id": "j1",
        "file_id": MANIFEST.file_id,
        "name": MANIFEST.name,
        "size": MANIFEST.size,
        "chunk_size": MANIFEST.chunk_size,
        "target": "/data/film.mkv",
        "state": "running",
        "created_at": "2026-01-31T14:02:05.123Z",
        "completed": [[0, 1]],
        "manifest": base64.b64encode(MANIFEST.canonical).decode(),
    }
    return [json.dumps(body).encode()]


_RECORD = {
    "version": 1,
    "job_id": "j1",
    "file_id": "f" * 64,
    "name": "film.mkv",
    "size": 10,
    "chunks_count": 1,
    "target": "/nowhere/film.mkv",
    "created_at": "2026-01-31T14:02:05.123Z",
    "auto_resume": True,
    "force": False,
    "state": "waiting",
    "missing_peers": ["a" * 32],
    "missing_names": ["A"],
    "waiting_since": None,
    "reason": "why",
    "ended_at": None,
    "endpoint": "unix:/nowhere/job.sock",
}
_HOME = {
    "peer_id": "a" * 32,
    "name": "A",
    "role": "node",
    "store_id": "s",
    "tracker": ["tcp://10.0.0.1:7700"],
    "tracker_key": "7" * 64,
    "events": ["tcp://10.0.0.1:7701"],
    "transport": "plain",
}
_MEMBERS = {
    "format": 1,
    "members": [
        {
            "peer_id": peer_id_of(bytes.fromhex("11" * 32)),
            "public_key": "11" * 32,
            "name": "A",
            "role": "node",
            "added_ms": 1_700_000_000_000,
            "revoked": False,
        }
    ],
    "tokens": [
        {
            "public_key": "22" * 32,
            "role": "client",
            "expires_ms": 1_700_000_000_000,
            "once": True,
            "used_by": ["a" * 32],
        }
    ],
}
_CONFIG = b"""chunking:
  chunk_size: 10MiB
  replicas: 2
tracker: {bind: "*:7700", advertise: [10.0.0.1, "host:7700"], lease_s: 3}
node:
  name: A
  capacity: 20GB
"""
_WIRE = (MalformedMessage, UnknownMessage, UnsupportedVersion)


def _wire_seeds() -> list[bytes]:
    return [joined(wire.encode(message, 7, "d" * 32)) for message in MESSAGES]


def _table_seeds() -> list[bytes]:
    return [joined(wire.encode(message, 7)) for message in (LOCATED, FOUND, MESSAGES[6])]


def _manifest_seeds() -> list[bytes]:
    sealed = Manifest("hidden", 0, None, 65536, (), b"sealed")
    return [MANIFEST.canonical, Manifest("empty", 0, b"e" * 32, 65536, ()).canonical, sealed.canonical]


def _sealed_seeds() -> list[bytes]:
    salt, wrapped = b"s" * encryption.SALT_BYTES, b"w" * (encryption.KEY_BYTES + TAG_BYTES)
    locks = (
        encryption.Lock(salt, cost=encryption.COST),
        encryption.Lock(salt, key_id=b"k" * encryption.KEY_ID_BYTES),
    )
    return [encryption.Head(lock, wrapped).encode() for lock in locks]


TARGETS = {
    target.name: target
    for target in (
        Target("wire", _wire, _WIRE, _wire_seeds),
        Target("tables", _tables, (*_WIRE, ManifestInvalid), _table_seeds),
        Target("manifest", _manifest, (ManifestInvalid,), _manifest_seeds),
        Target("sealed", _sealed, (ManifestInvalid,), _sealed_seeds),
        Target("token", _token, (TokenRefused,), lambda: [TOKEN.encode().encode()]),
        Target(
            "address", _address, (InvalidUsage,), lambda: [b"tcp://[::1]:7700", b"*:7700", b"a.example:1"]
        ),
        Target("name", _name, (), lambda: [b"../a/b.txt", b"con.txt", "ä\u202e.zpart".encode()]),
        Target("config", _config, (ConfigError,), lambda: [_CONFIG]),
        Target("zjob", _zjob, (), _zjob_seed),
        Target("job-record", _job_record, (), _json(_RECORD)),
        Target("key", _key, (StorageFailure,), _json({"public": "1" * 64, "secret": "2" * 64})),
        Target("membership", _membership, (StorageFailure,), _json(_HOME)),
        Target("members", _members, (StorageFailure,), _json(_MEMBERS)),
        Target(
            "allow-list",
            _allow_list,
            (),
            _json(
                [{"peer_id": "a" * 32, "name": "A", "role": "node", "public_key": "1" * 64, "revoked": False}]
            ),
        ),
        Target(
            "options", _options, (StorageFailure, ConfigError), _json({"bind": "*:7710", "capacity": 10**9})
        ),
        Target("home", _home, (), _json({"format": 1, "has": ["key", "database"]})),
        Target("incarnation", _incarnation, (), _json({"incarnation": 3})),
        Target("endpoints", _endpoints, (StorageFailure,), _json(["tcp://10.0.0.1:7700"])),
        Target("cluster", _cluster, (StorageFailure,), _json({"store_id": "s1", "commit_number": 9})),
        Target(
            "marker",
            _marker,
            (StorageFailure, UnsupportedVersion),
            _json({"version": 1, "uuid": "u", "created": "2026"}),
        ),
    )
}

#: What a target's seeds are made of: trees that one node can be replaced in.
TREES: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    **dict.fromkeys(
        (
            "zjob",
            "job-record",
            "key",
            "membership",
            "members",
            "allow-list",
            "options",
            "home",
            "incarnation",
            "endpoints",
            "cluster",
            "marker",
        ),
        (json.loads, lambda tree: json.dumps(tree).encode()),
    ),
    **dict.fromkeys(
        ("manifest", "sealed"),
        (
            lambda data: msgpack.unpackb(data, raw=False),
            lambda tree: bytes(msgpack.packb(tree, use_bin_type=True)),
        ),
    ),
    "token": (
        lambda data: msgpack.unpackb(_unbase(data), raw=False),
        lambda tree: _base(bytes(msgpack.packb(tree, use_bin_type=True))),
    ),
    **dict.fromkeys(
        ("wire", "tables"),
        (
            lambda data: [msgpack.unpackb(parted(data)[0], raw=False), *parted(data)[1:]],
            lambda tree: joined([bytes(msgpack.packb(tree[0], use_bin_type=True)), *_frames(tree[1:])]),
        ),
    ),
}


def _frames(parts: Sequence[Any]) -> list[bytes]:
    return [part if isinstance(part, bytes) else repr(part).encode() for part in parts]


def _base(data: bytes) -> bytes:
    return b"zchunk1-" + base64.urlsafe_b64encode(data).rstrip(b"=")


def _unbase(data: bytes) -> bytes:
    body = data.removeprefix(b"zchunk1-")
    return base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4))
