"""The bulk plane: its loop, links to nodes, memory and threads, shared by all jobs.

One writer thread writes (two threads writing one file only wait for each other), one
thread keeps running digests in order, `workers` threads verify chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zchunk.config import Settings
from zchunk.loop import Loop, Workers
from zchunk.node.control import ControlPlane
from zchunk.node.links import PeerLinks
from zchunk.protocol.messages import PeerRecord

#: An upload's offer may wait at the node for memory; so long it may.
OFFER_TIMEOUT_S = 60.0
#: Requests to the tracker that a job cannot do without.
TRACKER_TIMEOUT_S = 30.0


@dataclass
class Pools:
    """Threads for blocking work. `hashing` has several threads, the others one each."""

    hashing: Workers
    writing: Workers
    digesting: Workers

    def close(self) -> None:
        for workers in (self.hashing, self.writing, self.digesting):
            workers.close()


class BulkPlane:
    def __init__(
        self, *, loop: Loop, control: ControlPlane, links: PeerLinks, pools: Pools, settings: Settings
    ) -> None:
        self.loop = loop
        self.control = control
        self.links = links
        self.pools = pools
        self.settings = settings
        #: peer id -> what the tracker's events last said
        self.peers: dict[str, PeerRecord] = {}
        self._listeners: list[Callable[[PeerRecord], None]] = []
        control.watch_peers(loop, self._on_peer, lambda: None)

    def up(self) -> dict[str, int]:
        """peer id -> incarnation of the peers that are up."""
        return {p: r.incarnation for p, r in self.peers.items() if r.status == "up"}

    def listen(self, listener: Callable[[PeerRecord], None]) -> None:
        """`listener(record)` runs in this loop for every change of a peer."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[PeerRecord], None]) -> None:
        self._listeners.remove(listener)

    def learn(self, record: PeerRecord) -> None:
        """A peer as a reply of the tracker names it: new to us, unless events told more."""
        if record.peer_id not in self.peers:
            self._on_peer(record)

    def _on_peer(self, record: PeerRecord) -> None:
        self.peers[record.peer_id] = record
        self.links.set_endpoints(record.peer_id, record.endpoints)
        for listener in list(self._listeners):
            listener(record)
