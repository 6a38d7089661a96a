"""A cluster's three sockets, and keys of all sorts to try there (`raw.py`)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from tests.integration.cluster import PATIENCE_S, Cluster, make_file
from tests.integration.raw import Keys, Line, keys_in, keys_of, new_keys
from tests.waiting import wait_for
from zchunk.clock import SystemClock
from zchunk.tracker.members.admin_socket import members_changed
from zchunk.tracker.members.membership import Membership

DOORS = ("tracker", "events", "node")
#: Long enough for a tick of the tracker's events.
SILENCE_S = 1.2
_CHUNK = 64 * 1024


@dataclass
class Doors:
    """The three sockets of a cluster, and keys of all sorts to try there."""

    cluster: Cluster
    tracker_key: bytes
    node_key: bytes
    keys: dict[str, Keys]
    #: that node A holds, of 64 KiB
    chunk: str

    def line(self, door: str, keys: Keys | None, server_key: bytes | None = None, **options: Any) -> Line:
        at, known = {
            "tracker": (self.cluster.tracker.endpoint, self.tracker_key),
            "events": (self.cluster.tracker.events, self.tracker_key),
            "node": (self.cluster.nodes["A"].endpoint, self.node_key),
        }[door]
        kind = zmq.SUB if door == "events" else zmq.DEALER
        return Line(kind, at, keys, server_key or known, **options)

    def inside(self, door: str, keys: Keys, **options: Any) -> Line:
        line = self.line(door, keys, **options)
        assert line.outcome() == "in"
        return line

    def block(self, offset: int = 0) -> dict[str, Any]:
        """The fields of a request for a part of the chunk that node A holds."""
        return {"sha256": bytes.fromhex(self.chunk), "offset": offset, "length": 1000, "received": 0}


def allow_list(cluster: Cluster) -> Membership:
    return Membership(cluster.tracker.home / "tracker" / "members.json", SystemClock())


def add_member(cluster: Cluster, public_key: bytes, name: str) -> None:
    """A client; as after a join, the tracker knows it when this returns."""
    allow_list(cluster).add_member(public_key, name, "client")
    members_changed(cluster.tracker.home / "tracker", PATIENCE_S)


def set_revoked(cluster: Cluster, peer_id: str, revoked: bool) -> None:
    """What `zchunk peers revoke` and `allow` do, without the time that a process takes to start."""
    listed = allow_list(cluster)
    if revoked:
        listed.revoke(peer_id)
    else:
        listed.allow(peer_id)
    members_changed(cluster.tracker.home / "tracker", PATIENCE_S)


def expired_token(cluster: Cluster) -> Keys:
    token = cluster.token("client", "--expires", "1s")
    made = time.time()  # or before: its process may take a while to end
    wait_for(lambda: time.time() > made + 1.0, PATIENCE_S, "the token has expired")
    return keys_in(token)


def replaced_key(cluster: Cluster) -> Keys:
    client = cluster.join("rotated")
    old = keys_of(client.home / "client")
    client.run("rotate-key")
    assert keys_of(client.home / "client") != old
    return old


@contextmanager
def opened(cluster: Cluster, folder: Path) -> Iterator[Doors]:
    """`cluster` has a node A."""
    source = make_file(folder / "seen.bin", 4 * _CHUNK)
    cluster.client.put(source.path, "--replicas", "2")
    source.path.unlink()
    keys = {
        "member": keys_of(cluster.client.home / "client"),
        "observer": keys_of(cluster.join("onlooker", "observer").home / "client"),
        "unknown": new_keys(),
        "replaced": replaced_key(cluster),
        "token": keys_in(cluster.token("client")),
        "expired": expired_token(cluster),
        "revoked": keys_of(cluster.join("revoked").home / "client"),
    }
    set_revoked(cluster, keys["revoked"].peer_id, True)
    membership = json.loads((cluster.client.home / "client" / "membership.json").read_text())
    node = cluster.nodes["A"]
    yield Doors(
        cluster=cluster,
        tracker_key=bytes.fromhex(membership["tracker_key"]),
        node_key=keys_of(node.home / "node").public,
        keys=keys,
        chunk=next(name for name, size in node.chunks().items() if size == _CHUNK),
    )
