"""Every key of config.yaml has an effect (SPEC "Configuration", PROOF "Settings").

For each key: a value that is not its default, and a function that looks at the product
running with it and with the default. Most look at a simulated cluster of real parts.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from tests.sim.cluster import FREE_BYTES, Cluster, Outcome, SimClient, simulated_disk
from tests.sim.replay import record
from zchunk import config
from zchunk.cli import servers
from zchunk.cli.joining import host_name
from zchunk.client import Client
from zchunk.clock import ManualClock
from zchunk.config import SECTIONS, Settings, keys_of
from zchunk.errors import TrackerUnreachable, ZchunkError
from zchunk.node.build import NodeParts, node_parts
from zchunk.node.home.membership import Identity, Membership, save
from zchunk.node.job_events import Downloaded
from zchunk.node.jobs import service
from zchunk.node.planes import bulk_plane
from zchunk.node.upload.assignment import assignment
from zchunk.protocol.messages import PeerRecord, Plan, Planned
from zchunk.runtime.loop import Loop
from zchunk.tracker import process as tracker_process
from zchunk.tracker.home import make_token
from zchunk.tracker.process import Tracker
from zchunk.transport.auth import Token, new_key_pair
from zchunk.transport.memory import Faults, MemoryTransport, Network

KIB, MIB, GIB = 2**10, 2**20, 2**30
Values = dict[str, dict[str, Any]]
#: Small chunks and blocks, for what is about moving them.
SMALL: Values = {
    "chunking": {"chunk_size": 64 * KIB, "min_file_size_for_distribution": 128 * KIB},
    "transfer": {"block_size_min": 16 * KIB, "block_size_max": 32 * KIB},
}
CHUNK = 64 * KIB


@dataclass
class World:
    """Where the product runs with one set of settings."""

    root: Path
    values: Values
    patch: pytest.MonkeyPatch
    opened: list[Callable[[], None]] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return config.load(None, self.values, environ={})

    def _plain(self) -> Settings:
        """In a simulated network nobody asks for keys."""
        return config.load(None, {**self.values, "security": {"transport": "plain"}}, environ={})

    def cluster(self, nodes: int = 3) -> Cluster:
        return Cluster(self.root, 1, nodes=nodes, settings=self.values)

    def tracker(self) -> Tracker:
        """One on its own, bound as the settings say."""
        clock = ManualClock()
        settings = self._plain()
        tracker = Tracker(self.root / "tracker", settings, clock, self._transport("tracker"))
        self.opened += [tracker.loop.close, tracker.close]
        return tracker

    def node(self, make_workers: Any = None) -> NodeParts:
        """One on its own, that no tracker has registered."""
        transport, clock = self._transport("node"), ManualClock()
        parts = node_parts(
            folder=self.root / "node",
            membership=MEMBERSHIP,
            settings=self.settings,
            control_loop=Loop(transport.poller(), clock, "control"),
            bulk_loop=Loop(transport.poller(), clock, "bulk"),
            control_transport=transport,
            bulk_transport=transport,
            make_workers=make_workers or (lambda loop, threads, name: Idle()),
            on_registered=lambda: None,
            on_refused=lambda error: None,
        )
        self.opened.append(parts.store.close)
        return parts

    def client(self) -> Client:
        """A client of a tracker that is not there."""
        save(self.root / "client", MEMBERSHIP)
        client = Client(self.root, self.settings)
        self.opened.append(client.close)
        return client

    def _transport(self, host: str) -> MemoryTransport:
        return MemoryTransport(Network(ManualClock(), Random(1)), host)


class Idle:
    """Workers that do nothing."""

    def submit(self, work: Any, done: Any) -> None:
        pass

    def close(self) -> None:
        pass


MEMBERSHIP = Membership(
    peer_id="1" * 32,
    name="me",
    role="client",
    store_id="2" * 32,
    tracker=("tcp://127.0.0.1:9",),
    tracker_key="3" * 64,
    events=("tcp://127.0.0.1:9",),
    transport="plain",
)

See = Callable[[World], Any]


@dataclass(frozen=True)
class Observation:
    value: Any
    default_shows: Any
    value_shows: Any
    see: See
    base: Values


OBSERVATIONS: dict[tuple[str, str], Observation] = {}


def observes(
    key: str, value: Any, *, default_shows: Any, value_shows: Any, base: Values | None = None
) -> Callable[[See], See]:
    """`see` shows one thing with the key's default and another with `value`; other keys
    are in both cases as in `base`."""

    def keep(see: See) -> See:
        section, _, name = key.partition(".")
        OBSERVATIONS[section, name] = Observation(value, default_shows, value_shows, see, base or {})
        return see

    return keep


KEYS = [(section, key) for section in SECTIONS for key in keys_of(section)]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


def _look(root: Path, observation: Observation, values: Values) -> Any:
    root.mkdir()
    merged = {name: {**observation.base.get(name, {}), **values.get(name, {})} for name in SECTIONS}
    with pytest.MonkeyPatch.context() as patch:
        simulated_disk(patch)
        world = World(root, merged, patch)
        try:
            return observation.see(world)
        finally:
            for close in reversed(world.opened):
                close()


def test_every_key_is_observed() -> None:
    assert sorted(OBSERVATIONS) == sorted(KEYS)


@pytest.mark.row("S2")
@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda name: name)
def test_a_key_has_an_effect(root: Path, section: str, key: str) -> None:
    observation = OBSERVATIONS[section, key]
    default = getattr(SECTIONS[section](), key)
    assert default != observation.value
    assert key not in observation.base.get(section, {})
    assert observation.default_shows != observation.value_shows
    assert _look(root / "default", observation, {}) == observation.default_shows
    assert _look(root / "value", observation, {section: {key: observation.value}}) == observation.value_shows


# -- chunking: what an upload plans ---------------------------------------------------------


def _planned(world: World, size: int) -> tuple[Plan, Planned | ZchunkError]:
    """What was asked for a file of that size in a cluster of three nodes, and its plan."""
    cluster = world.cluster()
    client = cluster.client()
    plan = client.plan(size)
    asked = client.ask(plan)
    cluster.run(lambda: asked.ended, "the plan")
    return plan, asked.error or asked.value


def _rows(world: World, size: int) -> list[list[str]]:
    plan, planned = _planned(world, size)
    assert isinstance(planned, Planned)
    return assignment(plan, planned)


@observes("chunking.chunk_size", MIB, default_shows=103, value_shows=1024)
def chunks_of_a_gibibyte(world: World) -> int:
    return len(_rows(world, GIB))


@observes("chunking.min_file_size_for_distribution", MIB, default_shows=1, value_shows=3)
def peers_of_a_smaller_file(world: World) -> int:
    return len({peer_id for row in _rows(world, 100 * MIB) for peer_id in row})


@observes("chunking.min_peers_for_distribution", 4, default_shows="Planned", value_shows="TooFewPeers")
def the_answer_with_three_peers(world: World) -> str:
    return type(_planned(world, GIB)[1]).__name__


@observes("chunking.distribution_strategy", "contiguous", default_shows=102, value_shows=2)
def changes_of_peer_from_chunk_to_chunk(world: World) -> int:
    rows = _rows(world, GIB)
    return sum(one != other for one, other in pairwise(rows))


@observes("chunking.replicas", 2, default_shows={1}, value_shows={2})
def copies(world: World) -> set[int]:
    return {len(set(row)) for row in _rows(world, GIB)}


# -- chunking: how downloads wait -----------------------------------------------------------


def _waiting(world: World) -> tuple[Cluster, Outcome]:
    """A download that waits for a node, with everything else there."""
    cluster = world.cluster()
    client = cluster.client()
    _put(cluster, client, "file", 9 * CHUNK)
    cluster.nodes[0].crash()
    cluster.run(lambda: not cluster.nodes[0].is_up(), "its lease to end")
    got = client.get("file", world.root / "got")
    cluster.run_for(1.0)
    return cluster, got


def _put(cluster: Cluster, client: SimClient, name: str, size: int) -> Any:
    outcome = client.put(cluster.make_file(name, size))
    cluster.run(lambda: outcome.ended, "the upload")
    return outcome.expect_done()


@observes(
    "chunking.auto_resume_downloads",
    False,
    base=SMALL,
    default_shows=("done", True),
    value_shows=("peer_back", False),
)
def the_end_of_a_download_whose_peer_comes_back(world: World) -> tuple[str, bool]:
    cluster, got = _waiting(world)
    cluster.nodes[0].start()
    cluster.run_for(60.0)
    told = [event["event"] for event in got.events if event["event"] != "progress"]
    return told[-1], _client_resumes(world)


_DONE = Downloaded(
    job_id="1",
    file_id="f" * 64,
    name="file",
    size=0,
    sha256=None,
    seconds=0.0,
    chunks_count=0,
    target="/file",
    bytes_received=0,
    bytes_received_by_peer={},
)


def _client_resumes(world: World) -> bool:
    """What the Python API, and so the command, tells the download."""
    told: list[bool] = []

    class Told:
        def __init__(self, *, auto_resume: bool, emit: Any, **_: Any) -> None:
            told.append(auto_resume)
            self.start = lambda: emit(_DONE)
            self.stop = lambda: None

    world.patch.setattr(service, "Download", Told)
    part = SimpleNamespace(job_id="1", created_at="2026-01-31T14:02:05.123Z")
    world.patch.setattr(service, "open_part", lambda *_, **__: part)
    client = world.client()
    where: Any = SimpleNamespace(
        manifest=SimpleNamespace(file_id="f", name="file", size=0, chunks=(), sealed=None)
    )
    world.patch.setattr(client, "locate", lambda name: where)
    client.get("file", world.root / "nowhere")
    return told[0]


@observes("chunking.resume_check_interval", 7, base=SMALL, default_shows=2, value_shows=8)
def looks_at_a_waiting_download_in_a_minute(world: World) -> int:
    cluster, _ = _waiting(world)
    trace = record(world.patch)
    cluster.run_for(60.0)
    return sum("> tracker locate " in line for line in trace)


# -- tracker --------------------------------------------------------------------------------


@observes("tracker.bind", "10.0.0.1:7800", default_shows="tcp://*:7700", value_shows="tcp://10.0.0.1:7800")
def where_the_tracker_answers(world: World) -> str:
    return world.tracker().endpoint


@observes("tracker.events", "10.0.0.1:7900", default_shows="tcp://*:7701", value_shows="tcp://10.0.0.1:7900")
def where_the_tracker_publishes(world: World) -> str:
    return world.tracker().events


def _told_addresses(world: World) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a token says, and what members are told of events."""
    world.patch.setattr(tracker_process, "interface_addresses", lambda: ["192.168.1.5"])
    tracker = world.tracker()
    token = make_token(tracker.files, ManualClock(), role="node", expires_s=60, once=False, transport="plain")
    return token.addresses, tracker.server.core.presence.events_at


@observes(
    "tracker.advertise",
    ["lab.example", "203.0.113.7:9000"],
    default_shows=(("tcp://192.168.1.5:7700",), ("tcp://192.168.1.5:7701",)),
    value_shows=(
        ("tcp://lab.example:7700", "tcp://203.0.113.7:9000"),
        ("tcp://lab.example:7701", "tcp://203.0.113.7:9001"),
    ),
)
def what_the_tracker_tells_of_itself(world: World) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return _told_addresses(world)


@observes("tracker.heartbeat_interval_s", 0.5, default_shows=20, value_shows=40)
def heartbeats_in_twenty_seconds(world: World) -> int:
    cluster = world.cluster(nodes=1)
    trace = record(world.patch)
    cluster.run_for(20.0)
    return sum("a > tracker heartbeat " in line for line in trace)


@observes("tracker.lease_s", 8, default_shows=3, value_shows=8)
def seconds_until_a_frozen_node_counts_as_down(world: World) -> int:
    """Its process hangs: the connection stands, and nothing comes by it."""
    cluster = world.cluster(nodes=1)
    cluster.run_for(1.5)
    cluster.nodes[0].host.alive = False
    died = cluster.clock.monotonic()
    cluster.run(lambda: not cluster.nodes[0].is_up(), "its lease to end")
    return round(cluster.clock.monotonic() - died + 0.45)


@observes(
    "tracker.database", "sqlite:///elsewhere.sqlite", default_shows=(True, False), value_shows=(False, True)
)
def where_the_database_lies(world: World) -> tuple[bool, bool]:
    world.patch.chdir(world.root)
    world.tracker()
    return (world.root / "tracker" / "tracker.sqlite").exists(), (world.root / "elsewhere.sqlite").exists()


# -- node -----------------------------------------------------------------------------------


@observes("node.bind", "10.0.0.1:7800", default_shows="tcp://*:7710", value_shows="tcp://10.0.0.1:7800")
def where_a_node_serves(world: World) -> str:
    return world.node().endpoint


def _known(world: World) -> PeerRecord:
    """A node as the tracker tells others of it."""
    cluster = world.cluster(nodes=1)
    return cluster.tracker.server.core.peers.records[cluster.nodes[0].membership.peer_id]


@observes(
    "node.advertise",
    ["lab.example:9000"],
    default_shows="tcp://a:40000",
    value_shows="tcp://lab.example:9000",
)
def where_others_find_a_node(world: World) -> str:
    return _known(world).endpoints[0]


@observes("node.name", "microscope", default_shows=host_name(), value_shows="microscope")
def the_name_a_node_joins_under(world: World) -> str:
    token = Token(("tcp://127.0.0.1:9",), bytes(32), "plain", "node", new_key_pair(), 2**47)
    named: list[str] = []

    def join(folder: Path, token: Token, name: str, settings: Settings) -> Membership:
        named.append(name)
        return MEMBERSHIP

    world.patch.setattr(servers, "join_cluster", join)
    servers._joined(world.root / "node", token, world.settings, False, False)
    return named[0]


@observes("node.capacity", "20MiB", default_shows=FREE_BYTES - GIB, value_shows=20 * MIB)
def room_on_a_node(world: World) -> int:
    record = _known(world)
    assert record.free == record.capacity
    return record.free


@observes("node.reserve", "3GiB", default_shows=FREE_BYTES - GIB, value_shows=FREE_BYTES - 3 * GIB)
def room_on_a_disk(world: World) -> int:
    return _known(world).free


@observes("node.trash_keep_s", 3600, base=SMALL, default_shows=True, value_shows=False)
def removed_chunks_are_still_there_after_two_days(world: World) -> bool:
    cluster = world.cluster(nodes=2)
    client = cluster.client()
    removed = client.remove(_put(cluster, client, "file", 4 * CHUNK)["file_id"])
    cluster.run(lambda: removed.ended, "the removal")
    trash = cluster.nodes[0].folder / "store" / "trash"
    cluster.run(lambda: not cluster.nodes[0].store.count, "the trash to fill")
    cluster.clock.advance(2 * 86400.0)
    cluster.run_for(30.0)
    return any(trash.glob("*/*"))


# -- client ---------------------------------------------------------------------------------


@observes("client.own_node", "b", default_shows=None, value_shows="b" * 32)
def where_small_files_go(world: World) -> str | None:
    client = world.client()
    records = [_record(name) for name in "abc"]
    world.patch.setattr(client, "peers", lambda: tuple(records))
    return client.own_peer()


def _record(name: str) -> PeerRecord:
    return PeerRecord(
        peer_id=name * 32,
        name=name,
        role="node",
        status="up",
        incarnation=1,
        endpoints=("tcp://10.0.0.1:7710",),
        capacity=GIB,
        free=GIB,
        chunks=0,
        last_seen_ms=0,
    )


@observes("client.tracker_timeout_s", 0.5, default_shows=Settings().client.tracker_timeout_s, value_shows=0.5)
def patience_with_a_tracker(world: World) -> float:
    patience: list[float] = []

    def ask(message: Any, timeout_s: float) -> NoReturn:
        patience.append(timeout_s)
        raise TrackerUnreachable("not there")

    client = world.client()
    world.patch.setattr(client._requests, "ask", ask)
    with pytest.raises(TrackerUnreachable):
        client.peers()
    return patience[0]


# -- security -------------------------------------------------------------------------------


@observes("security.transport", "plain", default_shows=True, value_shows=False)
def does_the_tracker_ask_for_keys(world: World) -> bool:
    """A simulated network has no gate: a tracker that wants one says so."""
    try:
        tracker = Tracker(world.root / "tracker", world.settings, ManualClock(), world._transport("tracker"))
    except NotImplementedError:
        return True
    world.opened += [tracker.loop.close, tracker.close]
    return False


# -- transfer -------------------------------------------------------------------------------


def _peak(cluster: Cluster, ended: Callable[[], bool], measure: Callable[[], int]) -> int:
    peak = 0

    def look() -> bool:
        nonlocal peak
        peak = max(peak, measure())
        return ended()

    cluster.run(look, "the transfer")
    return peak


@observes("transfer.receive_budget", 8 * CHUNK, base=SMALL, default_shows=False, value_shows=True)
def chunks_that_come_in_fit_four_chunks_of_memory(world: World) -> bool:
    cluster = world.cluster(nodes=2)
    cluster.network.faults = Faults(delay_min=0.01, delay_max=0.02)
    put = cluster.client().put(cluster.make_file("file", 40 * CHUNK))
    service = cluster.nodes[0].parts.service
    return _peak(cluster, lambda: put.ended, lambda: service._incoming.reserved) <= 4 * CHUNK


@observes("transfer.send_budget", 32 * KIB, base=SMALL, default_shows=False, value_shows=True)
def blocks_that_go_out_fit_half_a_chunk_of_memory(world: World) -> bool:
    """Of one member; for others the node goes beyond it (tests/unit/limits/test_memory_shares.py)."""
    cluster = world.cluster(nodes=1)
    client = cluster.client()
    _put(cluster, client, "file", CHUNK)
    cluster.network.faults = Faults(delay_min=0.01, delay_max=0.02)
    began = cluster.clock.monotonic()
    gets = [client.get("file", world.root / str(at)) for at in range(3)]
    service = cluster.nodes[0].parts.service
    peak = _peak(cluster, lambda: all(get.ended for get in gets), lambda: service._outgoing.on_the_way)
    assert cluster.clock.monotonic() - began < 5, "a small budget makes it slow, not stand still"
    return peak <= 32 * KIB


def _block_sizes(world: World) -> Counter[int]:
    """How large the blocks of a download were."""
    cluster = world.cluster(nodes=1)
    client = cluster.client()
    _put(cluster, client, "file", 16 * MIB)
    trace = record(world.patch)
    got = client.get("file", world.root / "got")
    cluster.run(lambda: got.ended, "the download")
    got.expect_done()
    return Counter(int(line.rpartition(" ")[2].rstrip("]")) for line in trace if " block [" in line)


FOUR_CHUNKS: Values = {"chunking": {"chunk_size": 4 * MIB}}


@observes(
    "transfer.block_size_min", 128 * KIB, base=FOUR_CHUNKS, default_shows=256 * KIB, value_shows=128 * KIB
)
def the_first_blocks(world: World) -> int:
    return min(_block_sizes(world))


@observes("transfer.block_size_max", MIB, base=FOUR_CHUNKS, default_shows=4 * MIB, value_shows=MIB)
def the_blocks_of_a_fast_line(world: World) -> int:
    return max(_block_sizes(world))


@observes("transfer.request_timeout_s", 3, base=SMALL, default_shows=11, value_shows=4)
def seconds_until_a_lost_request_is_made_again(world: World) -> int:
    """The timeout, and the second for which a peer that ran into it is set aside."""
    cluster = world.cluster(nodes=1)
    client = cluster.client()
    _put(cluster, client, "file", CHUNK)
    trace = record(world.patch)
    got = client.get("file", world.root / "got")
    cluster.run(lambda: any(" block [" in line for line in trace), "the first block")
    cluster.network.faults = Faults(loss=1.0)
    began = cluster.clock.monotonic()
    cluster.run_for(0.5)
    cluster.network.faults = Faults()
    cluster.run(lambda: got.ended, "the download")
    got.expect_done()
    return int(cluster.clock.monotonic() - began)


@observes("transfer.workers", 5, default_shows={1, 2}, value_shows={1, 5})
def threads(world: World) -> set[int]:
    counts: set[int] = set()

    def make_workers(loop: Loop, threads: int, name: str) -> Idle:
        counts.add(threads)
        return Idle()

    parts = world.node(make_workers)
    bulk_plane(
        loop=parts.control.loop,
        control=parts.control,
        transport=world._transport("client"),
        identity=Identity(MEMBERSHIP.peer_id, None),
        settings=world.settings,
        make_workers=make_workers,
    )
    return counts
