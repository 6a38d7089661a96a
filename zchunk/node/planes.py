"""Puts the two planes of a node or a client together, on any transport and clock.

The same functions build what runs in real processes and what a simulation drives. What only a
node has is in `build.py`: a command must not import a store to fetch a file.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from zchunk.config import Settings
from zchunk.node.bulk.peer_connections import PeerConnections
from zchunk.node.bulk.plane import BulkPlane, Pools
from zchunk.node.control.plane import CONTROL, ControlPlane, Registrar
from zchunk.node.control.session import Session
from zchunk.node.home.membership import Identity, Membership
from zchunk.runtime.loop import Loop, Workers
from zchunk.transport.base import Transport

MakeWorkers = Callable[[Loop, int, str], Workers]


def control_plane(
    *,
    loop: Loop,
    transport: Transport,
    membership: Membership,
    identity: Identity,
    settings: Settings,
    registrar: Registrar | None = None,
) -> ControlPlane:
    curve = identity.to_server(bytes.fromhex(membership.tracker_key))
    session = Session(
        storing=registrar is not None,
        heartbeat_s=settings.tracker.heartbeat_interval_s,
        lease_s=settings.tracker.lease_s,
        # Jitter differs between peers, and is the same for one peer in a simulation.
        rng=Random(membership.peer_id),
        where=", ".join(membership.tracker),
    )
    return ControlPlane(
        loop=loop,
        session=session,
        subscribe=lambda endpoints: transport.subscriber(endpoints, CONTROL, curve),
        events_at=membership.events,
        connect=lambda: transport.dealer(membership.tracker, CONTROL, curve),
        identity=identity,
        registrar=registrar,
    )


def bulk_plane(
    *,
    loop: Loop,
    control: ControlPlane,
    transport: Transport,
    identity: Identity,
    settings: Settings,
    make_workers: MakeWorkers,
) -> BulkPlane:
    pools = Pools(
        hashing=make_workers(loop, settings.transfer.workers, "hashing"),
        writing=make_workers(loop, 1, "writing"),
        digesting=make_workers(loop, 1, "digesting"),
    )
    loop.on_close(pools.close)
    links = PeerConnections(loop, transport, identity)
    return BulkPlane(loop=loop, control=control, links=links, pools=pools, settings=settings)
