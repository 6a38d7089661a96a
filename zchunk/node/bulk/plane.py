"""The bulk plane: its loop, links to nodes, memory and threads, shared by all jobs.

One writer thread writes (two threads writing one file only wait for each other), one
thread keeps running digests in order, `workers` threads verify chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zchunk.config import Settings
from zchunk.node.bulk.peer_connections import OnBusy, OnReachability, PeerConnections
from zchunk.node.control.plane import ControlPlane
from zchunk.protocol.messages import PeerRecord
from zchunk.runtime.loop import Loop, Workers

#: Of the bulk plane's ZeroMQ context: a connection's encryption runs in one of them.
BULK_IO_THREADS = 2
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
        self, *, loop: Loop, control: ControlPlane, links: PeerConnections, pools: Pools, settings: Settings
    ) -> None:
        self.loop = loop
        self.control = control
        self.links = links
        self.pools = pools
        self.settings = settings
        #: peer id -> what the tracker's events last said
        self.peers: dict[str, PeerRecord] = {}
        self._listeners: list[Callable[[PeerRecord], None]] = []
        #: peers that are up, as far as we were told, but cannot be reached from here
        self.unreachable: set[str] = set()
        #: peers that serve others before us, as they say
        self.busy: set[str] = set()
        self._reach_listeners: list[OnReachability] = []
        self._busy_listeners: list[OnBusy] = []
        links.on_reachability = self._on_reach
        links.on_busy = self._on_busy
        control.watch_peers(loop, self._on_peer, lambda: None)

    def up(self) -> dict[str, int]:
        """peer id -> incarnation of the peers that are up."""
        return {p: r.incarnation for p, r in self.peers.items() if r.status == "up"}

    def name_of(self, peer_id: str) -> str:
        """For people; the beginning of its id where nothing is known of it."""
        record = self.peers.get(peer_id)
        return record.name if record is not None else peer_id[:8]

    def listen(
        self, listener: Callable[[PeerRecord], None], on_reachability: OnReachability, on_busy: OnBusy
    ) -> None:
        """`listener(record)` runs in this loop for every change of a peer, `on_reachability(peer_id,
        reachable)` when one that is up cannot be reached from here, and when it can again,
        `on_busy(peer_id, busy)` when one says that it serves others first, and when it serves us."""
        self._listeners.append(listener)
        self._reach_listeners.append(on_reachability)
        self._busy_listeners.append(on_busy)

    def unlisten(
        self, listener: Callable[[PeerRecord], None], on_reachability: OnReachability, on_busy: OnBusy
    ) -> None:
        self._listeners.remove(listener)
        self._reach_listeners.remove(on_reachability)
        self._busy_listeners.remove(on_busy)

    def learn(self, record: PeerRecord) -> None:
        """A peer as a reply of the tracker names it: new to us, unless events told more."""
        if record.peer_id not in self.peers:
            self._on_peer(record)

    def _on_peer(self, record: PeerRecord) -> None:
        before = self.peers.get(record.peer_id)
        if before is None or (before.status, before.incarnation) != (record.status, record.incarnation):
            self.unreachable.discard(record.peer_id)  # a start anew is tried anew
        self.peers[record.peer_id] = record
        self.links.set_peer(record)
        for listener in list(self._listeners):
            listener(record)

    def _on_reach(self, peer_id: str, reachable: bool) -> None:
        (self.unreachable.discard if reachable else self.unreachable.add)(peer_id)
        for listener in list(self._reach_listeners):
            listener(peer_id, reachable)

    def _on_busy(self, peer_id: str, busy: bool) -> None:
        (self.busy.add if busy else self.busy.discard)(peer_id)
        for listener in list(self._busy_listeners):
            listener(peer_id, busy)
