"""A tracker's home with members and a store of many chunks, made before the tracker starts.

Through the product's own classes, so that what is there is what a tracker would have
written. The bytes of the chunks exist nowhere: digests are random.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zchunk.clock import SystemClock
from zchunk.content.manifest import IDENTITY, ChunkRow, Manifest
from zchunk.protocol.columns import split_hashes
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.store.store import TrackerStore
from zchunk.transport.auth import make_key, new_key_pair
from zchunk.transport.keys import KeyPair

CHUNK_SIZE = 64 * 1024
#: chunks of each file that fills the store
FILE_CHUNKS = 100
#: nodes that hold what fills the store
HOLDERS = 20
CAPACITY = 10**15


@dataclass(frozen=True)
class Simulated:
    """A node: who it is, and what it says of its inventory."""

    key: KeyPair
    peer_id: str
    chunks: int
    digest: bytes


@dataclass(frozen=True)
class Home:
    folder: Path
    nodes: tuple[Simulated, ...]
    client: KeyPair
    watcher: KeyPair


def manifest_of(name: str, chunks: int) -> Manifest:
    """A file of random digests."""
    digests = split_hashes(os.urandom(64 * chunks), 2 * chunks)
    pairs = zip(digests[::2], digests[1::2], strict=True)
    rows = tuple(ChunkRow(CHUNK_SIZE, IDENTITY, sha256, blake3, None) for sha256, blake3 in pairs)
    return Manifest(name, CHUNK_SIZE * chunks, hashlib.sha256(name.encode()).digest(), CHUNK_SIZE, rows)


def kept(folder: Path, stores: Path, nodes: int, chunks: int) -> Home:
    """As `make`, but a copy of what was made before, which is kept in `stores`."""
    template = stores / f"{nodes}-{chunks}"
    if not (template / "home").exists():
        shutil.rmtree(template, ignore_errors=True)
        home = make(template, nodes, chunks)
        (template / "home").write_bytes(pickle.dumps(home))
    shutil.copytree(template, folder)
    made: Home = pickle.loads((template / "home").read_bytes())
    return replace(made, folder=folder)


def make(folder: Path, nodes: int, chunks: int, file_chunks: int = FILE_CHUNKS) -> Home:
    """`folder` becomes a tracker's home: so many nodes, a client, an observer, and `chunks` in
    files of `file_chunks`, on HOLDERS of the nodes."""
    keys = [new_key_pair() for _ in range(nodes)]
    client, watcher = new_key_pair(), new_key_pair()
    (folder / "tracker").mkdir(parents=True, mode=0o700)
    make_key(folder / "tracker" / "key.json")  # else its key would count as lost
    members = Membership(folder / "tracker" / "members.json", SystemClock())
    for at, key in enumerate(keys):
        members.add_member(key.public, f"PC-{at}", "node")
    members.add_member(client.public, "you", "client")
    members.add_member(watcher.public, "watcher", "observer")
    store = TrackerStore.open(str(folder / "tracker" / "tracker.sqlite"), SystemClock())
    try:
        _fill(store, keys, chunks, file_chunks)
        known = {peer.peer_id: peer for peer in store.peers()}
    finally:
        store.close()
    told = [(key, known[key.peer_id]) for key in keys]
    simulated = tuple(
        Simulated(key, key.peer_id, peer.inventory_count, peer.inventory_digest) for key, peer in told
    )
    return Home(folder, simulated, client, watcher)


def _fill(store: TrackerStore, keys: Sequence[KeyPair], chunks: int, file_chunks: int) -> None:
    peers = [key.peer_id for key in keys]
    with store.batch():
        for at, peer_id in enumerate(peers):
            endpoint = f"tcp://10.0.{at // 250}.{at % 250 + 1}:7710"
            store.save_peer(peer_id, f"PC-{at}", 1, [endpoint], CAPACITY, CAPACITY, store.now_ms(), False)
    files = [f"file-{number}" for number in range(chunks // file_chunks)]
    holders = peers[:HOLDERS]
    for first in range(0, len(files), 100):
        with store.batch():
            _add_files(store, holders, files[first : first + 100], file_chunks)


def _add_files(store: TrackerStore, holders: Sequence[str], names: Sequence[str], file_chunks: int) -> None:
    manifests = [manifest_of(name, file_chunks) for name in names]
    hashes = [row.sha256 for manifest in manifests for row in manifest.chunks]
    for at, peer_id in enumerate(holders):
        store.add_holdings(peer_id, hashes[at :: len(holders)], store.now_ms())
    for manifest in manifests:
        store.commit_file(
            manifest, replicas=1, min_peers=2, distributed=True, live=holders, now_ms=store.now_ms()
        )
