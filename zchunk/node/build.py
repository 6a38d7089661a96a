"""Puts a node together from its parts, on any transport and clock: its store, its doors, and
the two planes that it has in common with a client (`planes.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from zchunk.config import Settings
from zchunk.errors import ZchunkError
from zchunk.node.bulk.peer_connections import BULK
from zchunk.node.control.plane import ControlPlane
from zchunk.node.home.membership import Identity, Membership, identity_of
from zchunk.node.manager import DistributedChunkManager
from zchunk.node.planes import MakeWorkers, bulk_plane, control_plane
from zchunk.node.registration import NodeRegistration, keep_incarnation, raise_incarnation
from zchunk.node.serving.access import DOOR, NodeAccess
from zchunk.node.serving.chunk_server import ChunkServer, admitted
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.store.own_store import open_store
from zchunk.protocol import wire
from zchunk.runtime.loop import Loop
from zchunk.system import addresses
from zchunk.system.interfaces import interface_addresses
from zchunk.transport.base import Transport


@dataclass
class NodeParts:
    endpoint: str
    identity: Identity
    store: ChunkStore
    control: ControlPlane
    registration: NodeRegistration
    service: ChunkServer
    manager: DistributedChunkManager


def node_parts(
    *,
    folder: Path,
    membership: Membership,
    settings: Settings,
    control_loop: Loop,
    bulk_loop: Loop,
    control_transport: Transport,
    bulk_transport: Transport,
    make_workers: MakeWorkers,
    interfaces: Callable[[], list[str]] = interface_addresses,
    on_registered: Callable[[], None],
    on_refused: Callable[[ZchunkError], None],
    new_store: bool = False,
) -> NodeParts:
    """A node on HOME/node: its store opened, its sockets bound, its planes ready to run.
    `new_store`: whatever store is there is this node's from now on, and one is made if none is."""
    identity = identity_of(folder, membership)
    store = open_store(
        folder,
        capacity=settings.node.capacity,
        reserve=settings.node.reserve,
        clock=control_loop.clock,
        other=new_store,
    )
    curve = identity.at_door(DOOR)
    # Before the socket is bound: nobody may knock where nobody asks who it is.
    gate = bulk_transport.gate() if curve is not None else None
    # What is on its way to one receiver is within the budget; libzmq tells late what it has sent.
    unread = max(BULK.unread_bytes, 2 * settings.transfer.send_budget)
    bind = addresses.parse(settings.node.bind).tcp
    options = replace(
        BULK,
        max_frame_bytes=wire.MAX_REQUEST_FRAME_BYTES,
        unread_bytes=unread,
        receive_bytes=admitted(settings.transfer.receive_budget),
    )
    router = bulk_transport.router(bind, options, curve)
    at = addresses.parse(router.endpoint)
    registration: NodeRegistration
    manager: DistributedChunkManager
    keeper: NodeAccess | None = None

    reading = make_workers(bulk_loop, settings.transfer.workers, "reading")
    storing = make_workers(bulk_loop, settings.transfer.workers, "storing")
    admitting = make_workers(bulk_loop, 1, "admitting")
    housekeeping = make_workers(control_loop, 1, "housekeeping")
    bulk_loop.on_close(reading.close)
    bulk_loop.on_close(storing.close)
    bulk_loop.on_close(admitting.close)
    control_loop.on_close(housekeeping.close)
    service = ChunkServer(
        loop=bulk_loop,
        router=router,
        store=store,
        receive_chunk=lambda *chunk: manager.receive_chunk(*chunk),
        reading=reading,
        storing=storing,
        admitting=admitting,
        threads=settings.transfer.workers,
        send_budget=settings.transfer.send_budget,
        receive_budget=settings.transfer.receive_budget,
        on_stored=lambda upload_id, sha256: registration.stored(upload_id, sha256),
        on_unreadable=lambda sha256: registration.unreadable(sha256),
        on_held=lambda held: registration.held(held, keeper.name_of(held.member) if keeper else ""),
    )
    registration = NodeRegistration(
        store=store,
        service=service,
        workers=housekeeping,
        settings=settings,
        peer_id=membership.peer_id,
        bound=at.host,
        port=at.port,
        incarnation=raise_incarnation(folder),
        keep_incarnation=partial(keep_incarnation, folder),
        interfaces=interfaces,
        on_registered=on_registered,
        on_refused=on_refused,
    )
    control = control_plane(
        loop=control_loop,
        transport=control_transport,
        membership=membership,
        identity=identity,
        settings=settings,
        registrar=registration,
    )
    registration.attach(control)
    if gate is not None:
        keeper = NodeAccess(
            loop=bulk_loop,
            gate=gate,
            router=router,
            control=control,
            path=folder / "members.json",
            workers=make_workers(bulk_loop, 1, "members"),
        )
        service.check_sender = keeper.check
    bulk = bulk_plane(
        loop=bulk_loop,
        control=control,
        transport=bulk_transport,
        identity=identity,
        settings=settings,
        make_workers=make_workers,
    )
    manager = DistributedChunkManager(bulk=bulk, keep_at=folder / "manifests", store=store)
    return NodeParts(router.endpoint, identity, store, control, registration, service, manager)
