"""A whole cluster in one process: real tracker, nodes and clients on `transport.memory`,
one `ManualClock`, one seed. Nothing here waits: time moves from event to event.

`Cluster.run(until)` steps until a condition holds, and fails with the seed when it does
not within the given simulated time or a number of steps. Crashes drop a process's loops,
sockets and work under way, and keep its disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
from msgspec import structs

from zchunk import config
from zchunk.clock import ManualClock
from zchunk.content import hashing
from zchunk.content.encryption import Secret, open_manifest
from zchunk.errors import ZchunkError
from zchunk.node import build as node_build
from zchunk.node.build import node_parts
from zchunk.node.bulk.location import location
from zchunk.node.control.plane import ControlPlane
from zchunk.node.download.part_file import PartFile, open_part
from zchunk.node.download.runner import Download
from zchunk.node.home.membership import Identity, Membership
from zchunk.node.job_events import Done, Failed, JobEvent
from zchunk.node.manager import DistributedChunkManager, PutOptions
from zchunk.node.planes import bulk_plane, control_plane
from zchunk.node.registration import NodeRegistration
from zchunk.node.serving.chunk_server import ChunkServer
from zchunk.node.store import own_store
from zchunk.node.store.chunk_store import ChunkStore
from zchunk.node.upload import source_file as source
from zchunk.node.upload.source_file import SourceFile
from zchunk.node.upload.upload_keys import Encryption
from zchunk.protocol import columns
from zchunk.protocol.messages import Locate, Plan, Remove, Request
from zchunk.runtime.loop import Loop
from zchunk.system import disk
from zchunk.system.os_errors import as_ours
from zchunk.tracker.process import Tracker
from zchunk.tracker.store.store import TrackerStore
from zchunk.transport.base import Arrival, Socket
from zchunk.transport.keys import peer_id_of
from zchunk.transport.memory import Faults, MemoryPoller, MemoryTransport, Network

CHUNK = 64 * 1024
#: More events than this in one wait are a loop without end, however little time they take.
MAX_STEPS = 100_000
#: What every simulated disk has free: the real one's changes while a seed runs.
FREE_BYTES = 10**12
SETTINGS: dict[str, dict[str, Any]] = {
    "chunking": {
        "chunk_size": CHUNK,
        "min_file_size_for_distribution": 2 * CHUNK,
        "resume_check_interval": 5,
    },
    "node": {"reserve": 0, "capacity": "1GiB"},
    "transfer": {"block_size_min": 16 * 1024, "block_size_max": 32 * 1024, "receive_budget": 6 * CHUNK},
}


class _Strict(Loop):
    """A bug in the handling of a message fails the simulation, and is no peer's affair."""

    def _contain(self, socket: Socket, received: Arrival, error: Exception) -> None:
        raise error


def _no_bug(error: ZchunkError) -> None:
    """As `loop.contained` tells one to whoever asked."""
    assert type(error) is not ZchunkError, error.message


class Host:
    """One process: its loops get turns while it is alive."""

    #: whose code runs now; None while the test itself does
    acting: ClassVar[Host | None] = None

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.alive = True
        self.transport = MemoryTransport(network, name)
        self.loops: list[Loop] = []

    def loop(self, name: str) -> Loop:
        poller = self.transport.poller()
        assert isinstance(poller, MemoryPoller)
        loop = _Strict(poller, self.network.clock, f"{self.name}-{name}")
        driver = _Driver(self, loop)
        poller.on_wake = driver.wake
        driver.wake()
        self.loops.append(loop)
        return loop

    def crash(self) -> None:
        self.alive = False
        self.transport.close()

    @contextmanager
    def acts(self) -> Iterator[None]:
        """What runs inside the block is this process's doing."""
        before, Host.acting = Host.acting, self
        try:
            yield
        finally:
            Host.acting = before


class _Driver:
    """Gives a loop a turn when something arrives, and at its deadlines."""

    def __init__(self, host: Host, loop: Loop) -> None:
        self._host = host
        self._loop = loop
        self._pending = False
        self._due = float("inf")

    def wake(self) -> None:
        if not self._pending:
            self._pending = True
            self._host.network.schedule(0.0, self._turn)

    def _turn(self) -> None:
        self._pending = False
        if not self._host.alive:
            return
        with self._host.acts():
            self._loop.turn()
        deadline = self._loop.next_deadline()  # asked once: it costs more than most turns do
        now = self._host.network.clock.monotonic()
        if self._loop._posted or (deadline is not None and deadline <= now):
            self.wake()
        elif deadline is not None and (deadline < self._due or self._due <= now):
            self._due = deadline
            self._host.network.schedule(deadline - now, self._on_deadline)

    def _on_deadline(self) -> None:
        if self._due <= self._host.network.clock.monotonic() + 1e-9:
            self._due = float("inf")
        self.wake()


class SimWorkers:
    """Work runs at once when its (simulated) time comes; one thread keeps its order."""

    def __init__(self, host: Host, loop: Loop, threads: int) -> None:
        self._host = host
        self._loop = loop
        self._ordered = threads == 1
        self._free_at = 0.0

    def submit(self, work: Callable[[], Any], done: Callable[[Any, ZchunkError | None], None]) -> None:
        network = self._host.network
        now = network.clock.monotonic()
        start = max(now, self._free_at) if self._ordered else now
        self._free_at = start + network.rng.uniform(0.0005, 0.005)
        network.schedule(self._free_at - now, lambda: self._run(work, done))

    def close(self) -> None:
        pass

    def _run(self, work: Callable[[], Any], done: Callable[[Any, ZchunkError | None], None]) -> None:
        if not self._host.alive:
            return
        try:
            with self._host.acts():
                value = work()
        except (OSError, MemoryError) as error:
            refused = as_ours(error)
            self._loop.post(lambda: done(None, refused))
        except ZchunkError as error:
            _no_bug(error)
            problem = error
            self._loop.post(lambda: done(None, problem))
        else:
            self._loop.post(lambda: done(value, None))


class SimStoreRunner:
    """The tracker's store thread; what it committed survives a crash."""

    def __init__(self, host: Host, store: TrackerStore, loop: Loop) -> None:
        self._workers = SimWorkers(host, loop, 1)
        self._store = store

    def submit(
        self, run: Callable[[TrackerStore], Any], done: Callable[[Any], None], reader: Any = None
    ) -> None:
        def work() -> Any:
            with self._store.batch():
                try:
                    return run(self._store), None
                except ZchunkError as error:
                    _no_bug(error)
                    return None, error

        self._workers.submit(work, lambda outcome, error: done(outcome if error is None else (None, error)))

    def close(self) -> None:
        self._store.close()


class SimClient:
    """Puts and gets as the API does, without blocking: results come as events."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.host = Host(cluster.network, name)
        self.membership = cluster.enrol(name, "client")
        self.folder = cluster.root / name
        self.folder.mkdir(exist_ok=True)
        self.loop = self.host.loop("bulk")
        control_loop = self.host.loop("control")
        self.control: ControlPlane = control_plane(
            loop=control_loop,
            transport=self.host.transport,
            membership=self.membership,
            identity=Identity(self.membership.peer_id, None),
            settings=cluster.settings,
        )
        self.bulk = bulk_plane(
            loop=self.loop,
            control=self.control,
            transport=self.host.transport,
            identity=Identity(self.membership.peer_id, None),
            settings=cluster.settings,
            make_workers=lambda loop, threads, name: SimWorkers(self.host, loop, threads),
        )
        self.manager = DistributedChunkManager(bulk=self.bulk, keep_at=self.folder / "manifests")

    def ask(self, message: Request, timeout_s: float = 30.0) -> Outcome:
        """A request to the tracker; the outcome is filled when it comes."""
        outcome = Outcome()
        with self.host.acts():
            self.control.request(message, timeout_s, self.loop, outcome.settle)
        return outcome

    def plan(self, size: int, options: PutOptions | None = None) -> Plan:
        """What an upload asks for, by this cluster's settings."""
        plan = self.manager.plan_request(size, options or PutOptions(), None)
        return structs.replace(plan, upload_id=f"{self.cluster.rng.getrandbits(128):032x}")

    def put(
        self,
        path: Path,
        replicas: int | None = None,
        strategy: str | None = None,
        encryption: Encryption | None = None,
    ) -> Outcome:
        outcome = Outcome()
        with self.host.acts(), outcome.of_command():
            source = SourceFile(path)
        if outcome.ended:
            return outcome
        plan = self.plan(source.size, PutOptions(replicas=replicas, strategy=strategy))

        def planned(reply: Any, error: ZchunkError | None) -> None:
            if error is not None:
                outcome.settle(None, error)
                return
            self.manager.distribute_chunks(
                source=source,
                name=path.name,
                plan=plan,
                planned=reply,
                emit=outcome.emit,
                encryption=encryption,
            ).start()

        self.control.request(plan, 30.0, self.loop, planned)
        return outcome

    def get(self, name: str, target: Path, wait: bool = True) -> Outcome:
        outcome = Outcome()

        def located(reply: Any, error: ZchunkError | None) -> None:
            if error is not None:
                outcome.settle(None, error)
                return
            where = location(reply, name)
            if where.manifest.sealed is not None:
                assert self.cluster.secret is not None
                where = replace(where, manifest=open_manifest(where.manifest, self.cluster.secret))
            job_id = f"{self.cluster.rng.getrandbits(64):016x}"
            with outcome.of_command():
                part = open_part(target, where.manifest, job_id, clock=self.cluster.clock)
            if outcome.ended:
                return
            _check_marks(part, self.cluster.seed)
            outcome.part = part
            outcome.download = Download(
                bulk=self.bulk,
                where=where,
                part=part,
                wait=wait,
                emit=outcome.emit,
                auto_resume=self.cluster.settings.chunking.auto_resume_downloads,
            )
            outcome.download.start()

        self.control.request(Locate(name_or_id=name, unique=False), 30.0, self.loop, located)
        return outcome

    def remove(self, file_id: str) -> Outcome:
        return self.ask(Remove(file_id=file_id))


class Outcome:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.value: Any = None
        self.error: ZchunkError | None = None
        self.ended = False
        self.part: Any = None
        self.download: Any = None

    @contextmanager
    def of_command(self) -> Iterator[None]:
        """An error in the block is what the command ends with (`cli.main`)."""
        try:
            yield
        except ZchunkError as error:
            self.settle(None, error)
        except (OSError, MemoryError) as error:
            self.settle(None, as_ours(error))

    def settle(self, value: Any, error: ZchunkError | None) -> None:
        self.value, self.error, self.ended = value, error, True

    def emit(self, told: JobEvent) -> None:
        event = told.to_json()
        self.events.append(event)
        if isinstance(told, Done):
            self.settle(event, None)
        elif isinstance(told, Failed):
            self.settle(None, told.error)

    def expect_done(self) -> Any:
        assert self.ended, "not ended"
        assert self.error is None, repr(self.error)
        return self.value


class SimNode:
    def __init__(
        self,
        cluster: Cluster,
        name: str,
        *,
        membership: Membership | None = None,
        folder: Path | None = None,
    ) -> None:
        """A new member on a new disk, unless it is to be one that there is already."""
        self.cluster = cluster
        self.name = name
        self.folder = folder or cluster.root / name / "node"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.membership = membership or cluster.enrol(name, "node")
        self.host: Host
        self.parts: Any = None
        self.start()

    @property
    def alive(self) -> bool:
        return self.host.alive

    def start(self) -> None:
        """Raises what a process would end with, in words; it is not alive then."""
        self.host = Host(self.cluster.network, self.name)
        try:
            with self.host.acts(), opened_stores() as opened:
                self._start()
        except BaseException:
            self.host.crash()
            for store in opened:
                _drop(store)
            raise

    def _start(self) -> None:
        self.refusals: list[ZchunkError] = []
        overrides = self.cluster.overrides
        overrides = {**overrides, "node": {"bind": f"{self.name}:0", **overrides.get("node", {})}}
        self.parts = node_parts(
            folder=self.folder,
            membership=self.membership,
            settings=config.load(None, overrides, environ={}),
            control_loop=self.host.loop("control"),
            bulk_loop=self.host.loop("bulk"),
            control_transport=self.host.transport,
            bulk_transport=self.host.transport,
            make_workers=lambda loop, threads, name: SimWorkers(self.host, loop, threads),
            interfaces=list,
            on_registered=lambda: None,
            on_refused=self.refusals.append,
        )

    @property
    def store(self) -> Any:
        return self.parts.store

    def crash(self) -> None:
        """kill -9: the store is not closed, only what the operating system would end ends."""
        self.host.crash()
        _drop(self.store)

    def is_up(self) -> bool:
        """In its latest start: of the one before a quick crash the lease may still run."""
        return self.cluster.tracker_knows(self.membership.peer_id, self.parts.registration.incarnation)


class Cluster:
    def __init__(
        self,
        root: Path,
        seed: int,
        *,
        nodes: int = 3,
        faults: Faults | None = None,
        settings: dict[str, dict[str, Any]] = SETTINGS,
    ) -> None:
        """`settings` are everyone's: what is not given has its default."""
        self.seed = seed
        self.root = root
        self.rng = Random(seed)
        self.clock = ManualClock()
        self.network = Network(self.clock, self.rng, faults)
        #: events carried out so far
        self.steps = 0
        # A simulated network has no handshakes.
        settings = self.overrides = {**(settings or {}), "security": {"transport": "plain"}}
        #: of encrypted files
        self.secret: Secret | None = None
        self.settings = config.load(None, settings, environ={})
        self._database = str(root / "tracker.sqlite")
        self._members: list[tuple[bytes, str, str]] = []
        self.tracker: Tracker
        self.tracker_host: Host
        self.start_tracker(port=7700)
        self.nodes = [SimNode(self, name) for name in "abcdefgh"[:nodes]]
        self.clients: list[SimClient] = []
        self.run(lambda: all(node.is_up() for node in self.nodes), "the nodes to register")

    # -- members --------------------------------------------------------------------

    def enrol(self, name: str, role: str) -> Membership:
        public = self.rng.randbytes(32)
        self.tracker.membership.add_member(public, name, role)
        self.tracker.server.look_at_members()
        return Membership(
            peer_id=peer_id_of(public),
            name=name,
            role=role,
            store_id="",
            tracker=(self.tracker.endpoint,),
            tracker_key="",
            events=(self.tracker.events,),
            transport="plain",
        )

    def client(self) -> SimClient:
        client = SimClient(self, f"client{len(self.clients)}")
        self.clients.append(client)
        return client

    # -- the tracker ----------------------------------------------------------------

    def start_tracker(self, port: int) -> None:
        """Raises what its process would end with, in words; it is not alive then."""
        self.tracker_host = Host(self.network, "tracker")
        try:
            with self.tracker_host.acts():
                self._start_tracker(port)
        except BaseException:
            self.tracker_host.crash()
            raise

    def _start_tracker(self, port: int) -> None:
        overrides = {
            **self.overrides,
            "tracker": {"bind": f"tracker:{port}", **self.overrides.get("tracker", {})},
        }
        host = self.tracker_host
        self.tracker = Tracker(
            self.root / "tracker",
            config.load(None, overrides, environ={}),
            self.clock,
            host.transport,
            loop=host.loop("control"),
            make_runner=lambda store, loop: self._runner(host, store, loop),
        )

    def _runner(self, host: Host, store: TrackerStore, loop: Loop) -> SimStoreRunner:
        self.store = store
        return SimStoreRunner(host, store, loop)

    def crash_tracker(self) -> None:
        self.tracker_host.crash()
        self.store.close()
        self.tracker.close()

    def tracker_knows(self, peer_id: str, incarnation: int) -> bool:
        """Whether the tracker counts this start of the peer as up, and has told so."""
        core = self.tracker.server.core
        is_up = self.tracker_host.alive and core.peers.liveness.is_up(peer_id)
        is_told = is_up and core.peers.records[peer_id].status in ("up", "offline-store")
        return is_told and core.peers.liveness._peers[peer_id].incarnation == incarnation

    # -- time -----------------------------------------------------------------------

    def run(self, until: Callable[[], bool], what: str, limit_s: float = 300.0) -> None:
        """Step until the condition holds."""
        end, last_step = self.clock.monotonic() + limit_s, self.steps + MAX_STEPS
        while not until():
            if not self._step() or self.clock.monotonic() > end or self.steps > last_step:
                raise AssertionError(
                    f"seed {self.seed}: {limit_s} simulated seconds or {MAX_STEPS} steps"
                    f" did not bring {what}; {self.network.counts}"
                )

    def run_for(self, seconds: float) -> None:
        end, last_step = self.clock.monotonic() + seconds, self.steps + MAX_STEPS
        self.network.schedule(seconds, lambda: None)
        while self.clock.monotonic() < end and self._step():
            assert self.steps <= last_step, f"seed {self.seed}: {MAX_STEPS} steps took no {seconds} seconds"

    def _step(self) -> bool:
        self.steps += 1
        try:
            return self.network.step()
        except BaseException as error:
            error.add_note(f"seed {self.seed}, step {self.steps}")
            raise

    def make_file(self, name: str, size: int) -> Path:
        path = self.root / "files" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.rng.randbytes(size))
        return path

    def check_published(self, file_id: str) -> None:
        """A file is visible only when the tracker knows a holder of each chunk (SPEC U5)."""
        counts = columns.unpack(2, self.store.locate(file_id).holder_counts)
        assert all(counts), f"seed {self.seed}: published without {list(counts).count(0)} chunks"

    # -- the same verification after every scenario ---------------------------------

    def verify(self, files: dict[str, Path]) -> None:
        """Heal everything, wait until it is quiet, then: what the tracker says is true of
        the disks, every file is readable, credit adds up, nothing is orphaned."""
        self.network.heal()
        self.network.faults = Faults()
        for node in self.nodes:
            if not node.alive:
                node.start()
        self.run(lambda: all(node.is_up() for node in self.nodes), "every node up again")
        self.run(self._quiet, "the cluster to be quiet")
        self._verify_locations()
        self._verify_stores()
        self._verify_health()
        self._verify_files(files)

    def _quiet(self) -> bool:
        return all(self.is_quiet(node) for node in self.nodes)

    def is_quiet(self, node: SimNode) -> bool:
        """Nothing moves in or out of it, and the tracker knows all that it holds."""
        return self._moves_nothing(node.parts.service) and self._is_told(node.parts.registration)

    def _moves_nothing(self, service: ChunkServer) -> bool:
        moving = service._outgoing.on_the_way or service._incoming.reserved
        return not moving and not service._buffers

    def _is_told(self, server: NodeRegistration) -> bool:
        """Whether the node has told the tracker everything, and frees nothing just now."""
        reports = server._reports
        telling = reports.by_upload or reports.under_way or not server._registered
        return not telling and not server.garbage._busy and not server.self_check.busy

    def _verify_locations(self) -> None:
        """Holdings and disks agree, chunk by chunk."""
        for node in self.nodes:
            count, digest = self.store.inventory_summary(node.membership.peer_id)
            where = f"seed {self.seed}, node {node.name}"
            assert (count, digest) == (node.store.count, node.store.digest), where

    def _verify_health(self) -> None:
        """Who followed the events of this tracker knows how every file is (SPEC I1, R9)."""
        core = self.tracker.server.core
        health = core.health
        self.run(lambda: health.deadline() is None and not health._under_way, "the files to be counted")
        told = {e.fields["file_id"]: e.fields["health"] for e in core.events.history if "health" in e.fields}
        for record in self.store.list_files("")[0]:
            total, readable, low = self.store.health_counts(record.file_id, core.peers.liveness.up())
            truth = "unavailable" if readable < total else "degraded" if low else "complete"
            assert told.get(record.file_id, "complete") == truth, f"seed {self.seed}: {record.name}"

    def _verify_stores(self) -> None:
        for node in self.nodes:
            for sha256 in node.store.hashes():
                data = node.store.read_block(sha256, 0, node.store.size_of(sha256))
                assert hashlib.sha256(data).digest() == sha256, f"seed {self.seed}: a wrong chunk"
            assert not list((node.folder / "store" / "tmp").iterdir()), f"seed {self.seed}: an orphan"
            assert node.store.parts.held._reserved == 0, f"seed {self.seed}: space reserved for nothing"

    def _verify_files(self, files: dict[str, Path]) -> None:
        listed, _ = self.store.list_files("")
        assert {record.name for record in listed} == set(files), f"seed {self.seed}: other files"
        reader = self.client()
        for name, path in files.items():
            target = self.root / f"verify-{name}"
            outcome = reader.get(name, target)
            self.run(lambda outcome=outcome: outcome.ended, f"file {name} read back")  # type: ignore[misc]
            outcome.expect_done()
            assert target.read_bytes() == path.read_bytes(), f"seed {self.seed}: {name} differs"
            assert not list(self.root.glob("verify-*.z*")), f"seed {self.seed}: leftovers"
            target.unlink()


@contextmanager
def opened_stores() -> Iterator[list[ChunkStore]]:
    """Those that nodes open in the block."""
    opened: list[ChunkStore] = []

    def open_store(*args: Any, **options: Any) -> ChunkStore:
        opened.append(store := own_store.open_store(*args, **options))
        return store

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_build, "open_store", open_store)
        yield opened


def _drop(store: Any) -> None:
    """What the operating system does for a process that is killed: locks and descriptors go."""
    store.parts.readers.close()
    store.parts.index.close()
    store.parts.folder.release()


def _check_marks(part: PartFile, seed: int) -> None:
    """No chunk of the download counts as kept unless its bytes on the disk are right."""
    mark, buffer = part.mark, memoryview(bytearray(part.manifest.chunk_size))

    def checked(index: int) -> None:
        found = hashing.blake3(part.read_chunk(index, buffer))
        assert found == part.manifest.chunks[index].plain_digest, (
            f"seed {seed}: chunk {index} kept unverified"
        )
        mark(index)

    part.mark = checked  # type: ignore[method-assign]


def simulated_disk(monkeypatch: Any) -> None:
    """It need not survive a power cut (syncing costs most of the time), is as large in every
    run, and its times are exact: a source needs no pause to be sure that nobody writes to it."""
    monkeypatch.setattr(disk, "sync_file", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)
    monkeypatch.setattr(disk, "free_bytes", lambda path: FREE_BYTES)
    monkeypatch.setattr(source, "_tick", lambda status: 0.0)
