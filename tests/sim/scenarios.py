"""Small stories for single guards, which random histories reach too rarely. Each takes a
folder and a seed, and ends with the verification of every scenario, `Cluster.verify`.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from tests.sim.cluster import CHUNK, SETTINGS, Cluster, Outcome, SimNode
from zchunk.errors import StaleIncarnation
from zchunk.protocol.messages import Offer
from zchunk.transport.memory import Faults


def _put(cluster: Cluster, path: Path, **options: Any) -> str:
    """The file's id, once it is put; in that moment the tracker knows where all of it is."""
    outcome = cluster.client().put(path, **options)
    cluster.run(lambda: outcome.ended, f"the upload of {path.name}")
    file_id: str = outcome.expect_done()["file_id"]
    cluster.check_published(file_id)
    return file_id


def _finish(cluster: Cluster, outcome: Outcome, target: Path, path: Path) -> None:
    cluster.run(lambda: outcome.ended, f"the download of {path.name}", limit_s=120)
    outcome.expect_done()
    assert target.read_bytes() == path.read_bytes(), f"seed {cluster.seed}: {path.name} differs"


def _stop(cluster: Cluster, *nodes: SimNode) -> None:
    for node in nodes:
        node.crash()
    cluster.run(lambda: not any(node.is_up() for node in nodes), "their leases to end", limit_s=30)


def _start(cluster: Cluster, *nodes: SimNode) -> None:
    for node in nodes:
        node.start()
    cluster.run(lambda: all(node.is_up() for node in nodes), "them to be up", limit_s=60)


def noise(root: Path, seed: int) -> None:
    """Lines and memory that flip bits, on the way in and on the way out. Of chunks alone:
    the manifest of so few is too small to be hit, and an upload ends where one is."""
    cluster = Cluster(root, seed, faults=Faults(corrupt=0.03))
    path = cluster.make_file("noise.bin", 6 * CHUNK + 5)
    _put(cluster, path, replicas=2)
    reader = cluster.client()
    for number in range(4):
        target = root / f"got{number}"
        _finish(cluster, reader.get(path.name, target), target, path)
    cluster.verify({path.name: path})


def lateness(root: Path, seed: int) -> None:
    """Answers that come when their peer counts as stalled, and another was asked instead."""
    impatient = {**SETTINGS, "transfer": {**SETTINGS["transfer"], "request_timeout_s": 0.7}}
    cluster = Cluster(root, seed, settings=impatient)
    path = cluster.make_file("late.bin", 50 * CHUNK)
    _put(cluster, path, replicas=2)
    cluster.network.faults = Faults(delay_min=0.001, delay_max=0.8, double=0.02)
    target = root / "got"
    outcome = cluster.client().get(path.name, target)
    _finish(cluster, outcome, target, path)
    cluster.verify({path.name: path})


def partial_partition(root: Path, seed: int) -> None:
    """The tracker sees everybody, but the reader cannot reach one node: its chunks come from
    their other holder, or are waited for, by name, until the line is mended."""
    cluster = Cluster(root, seed)
    doubled = cluster.make_file("doubled.bin", 20 * CHUNK)
    single = cluster.make_file("single.bin", 20 * CHUNK)
    _put(cluster, doubled, replicas=2)
    _put(cluster, single)
    reader, away = cluster.client(), cluster.rng.choice(cluster.nodes)
    if cluster.rng.random() < 0.5:  # in mid-transfer: its connection stands, and is silent
        reader.get(doubled.name, root / "warm")
        cluster.run_for(cluster.rng.uniform(0.0, 0.1))
    cluster.network.cut(reader.host.name, away.name)
    _finish(cluster, reader.get(doubled.name, root / "got1"), root / "got1", doubled)
    waits = reader.get(single.name, root / "got2")
    cluster.run(lambda: bool(_waiting_for(waits)), "the job to name whom it cannot reach", limit_s=5)
    assert _waiting_for(waits) == [(away.name, "unreachable")]
    cluster.run_for(cluster.rng.uniform(0.0, 5.0))
    cluster.network.heal()
    cluster.run(lambda: waits.ended, "the rest, once the line is mended", limit_s=5)
    _finish(cluster, waits, root / "got2", single)
    cluster.verify({doubled.name: doubled, single.name: single})


def _waiting_for(outcome: Outcome) -> list[tuple[str, str]]:
    """(name, reason) of whom a download said last that it waits for."""
    told = [event for event in outcome.events if event["event"] == "waiting"]
    return [(row["name"], row["reason"]) for row in told[-1]["missing"]] if told else []


def missed_events(root: Path, seed: int) -> None:
    """Downloads wait for two peers; that the first one is back, the reader is not told."""
    cluster = Cluster(root, seed)
    path = cluster.make_file("events.bin", 9 * CHUNK)
    _put(cluster, path)
    reader = cluster.client()
    for number in range(2):
        first, second = cluster.rng.sample(cluster.nodes, 2)
        _stop(cluster, first, second)
        target = root / f"got{number}"
        outcome = reader.get(path.name, target)
        cluster.run_for(cluster.rng.uniform(0.5, 2.0))
        cluster.network.cut(reader.host.name, "tracker")
        _start(cluster, first)
        cluster.run_for(cluster.rng.uniform(0.1, 0.5))
        cluster.network.heal()
        _start(cluster, second)
        _finish(cluster, outcome, target, path)
    cluster.verify({path.name: path})


def death(root: Path, seed: int) -> None:
    """A node dies for good while it is being sent to: the upload goes on without it (U6)."""
    cluster = Cluster(root, seed, nodes=4)
    path = cluster.make_file("death.bin", 24 * CHUNK)
    outcome = cluster.client().put(path)
    cluster.run_for(cluster.rng.uniform(0.0, 0.1))
    victim = cluster.rng.choice(cluster.nodes)
    victim.crash()
    cluster.run(lambda: outcome.ended, "the upload without the dead node", limit_s=60)
    outcome.expect_done()
    cluster.verify({path.name: path})


def copied_home(root: Path, seed: int) -> None:
    """A node's home was copied to another PC, and an old state of it starts there too."""
    cluster = Cluster(root, seed)
    path = cluster.make_file("copied.bin", 9 * CHUNK)
    _put(cluster, path)
    original = cluster.nodes[0]
    _stop(cluster, original)
    copy = root / "copy"
    shutil.copytree(original.folder, copy)
    _start(cluster, original)
    for _ in range(cluster.rng.randrange(1, 3)):
        _stop(cluster, original)
        _start(cluster, original)
    twin = SimNode(cluster, "twin", membership=original.membership, folder=copy)
    cluster.run(lambda: bool(twin.refusals), "the copy to be refused", limit_s=20)
    assert isinstance(twin.refusals[0], StaleIncarnation)
    twin.crash()
    cluster.verify({path.name: path})


def put_back(root: Path, seed: int) -> None:
    """A node's home is put back from a backup of some starts ago: it has chunks of a file that was
    removed since, and not those of one that was put since."""
    cluster = Cluster(root, seed)
    removed, kept = cluster.make_file("removed.bin", 9 * CHUNK), cluster.make_file("kept.bin", 9 * CHUNK)
    removed_id = _put(cluster, removed)
    node = cluster.nodes[0]
    _stop(cluster, node)
    backup = root / "backup"
    shutil.copytree(node.folder, backup)
    for _ in range(cluster.rng.randrange(1, 4)):
        _start(cluster, node)
        _stop(cluster, node)
    _start(cluster, node)
    _put(cluster, kept, replicas=2)
    outcome = cluster.client().remove(removed_id)
    cluster.run(lambda: outcome.ended, "the removal")
    cluster.run_for(cluster.rng.uniform(0.0, 2.0))
    before = node.parts.registration.incarnation
    node.crash()
    if cluster.rng.random() < 0.5:  # else it is back before its lease has ended
        cluster.run(lambda: not node.is_up(), "its lease to end", limit_s=30)
    if cluster.rng.random() < 0.5:
        cluster.crash_tracker()
        cluster.start_tracker(port=7700)
    shutil.rmtree(node.folder)
    shutil.copytree(backup, node.folder)
    node.start()
    cluster.run(lambda: node.is_up() or bool(node.refusals), "it to be up", limit_s=60)
    while node.refusals:  # somebody starts it again, as its service does
        assert isinstance(node.refusals[0], StaleIncarnation)
        node.crash()
        cluster.run_for(1.0)
        node.start()
        cluster.run(lambda: node.is_up() or bool(node.refusals), "it to be up", limit_s=60)
    assert node.parts.registration.incarnation > before, f"seed {seed}: a number of an earlier start"
    cluster.verify({kept.name: kept})
    kept_at = root / "again"
    shutil.copytree(node.folder / "store" / "chunks", kept_at)
    assert not [c for c in kept_at.glob("*/*") if hashlib.sha256(c.read_bytes()).hexdigest() != c.name]


def churn(root: Path, seed: int) -> None:
    """The same content is removed under one name while it is put under another."""
    cluster = Cluster(root, seed, faults=Faults(delay_min=0.001, delay_max=0.1))
    writer = cluster.client()
    path = cluster.make_file("churn0", 6 * CHUNK)
    removable = _put(cluster, path)
    for number in range(1, 6):
        following = path.with_name(f"churn{number}")
        following.write_bytes(path.read_bytes())
        removed = writer.remove(removable)
        cluster.run_for(cluster.rng.uniform(0.0, 0.4))
        removable = _put(cluster, following)
        cluster.run(lambda: removed.ended, "the removal")  # noqa: B023
        removed.expect_done()
        cluster.run_for(1.0)
    cluster.verify({following.name: following})


def shared_content(root: Path, seed: int) -> None:
    """Two files of one content lie on different nodes. One is removed, then the nodes of
    the other lose their disks: the first one's copies, which it names too, serve it."""
    cluster = Cluster(root, seed, nodes=4)
    cluster.rng.shuffle(cluster.nodes)
    first, second = cluster.nodes[:2], cluster.nodes[2:]
    kept = cluster.make_file("kept.bin", cluster.rng.randrange(3, 9) * CHUNK)
    removed = kept.with_name("removed.bin")
    removed.write_bytes(kept.read_bytes())
    _stop(cluster, *second)
    file_id = _put(cluster, removed)
    _start(cluster, *second)
    _stop(cluster, *first)
    _put(cluster, kept)
    _start(cluster, *first)
    outcome = cluster.client().remove(file_id)
    cluster.run(lambda: outcome.ended, "the removal")
    cluster.run_for(5.0)
    _stop(cluster, *second)
    for node in second:
        for chunk in (node.folder / "store" / "chunks").glob("*/*"):
            chunk.unlink()
    cluster.verify({kept.name: kept})


def rotten(root: Path, seed: int) -> None:
    """Bits flip on a node's disk while the only other copy is off. A download meets them and
    waits; the node checks itself when it hears of it, or when it is back from where it did
    not hear of it; the download ends with the copy that comes back (D8)."""
    cluster = Cluster(root, seed, nodes=2)
    path = cluster.make_file("rotten.bin", 6 * CHUNK)
    file_id = _put(cluster, path, replicas=2)
    bad, other = cluster.rng.sample(cluster.nodes, 2)
    damaged = cluster.rng.sample(bad.store.hashes(), cluster.rng.randrange(1, 4))
    for sha256 in damaged:
        _flip(bad, sha256, cluster.rng.randrange(8 * CHUNK))
    _stop(cluster, other)
    target = root / "got"
    outcome = cluster.client().get(path.name, target)
    _report_unheard(cluster, bad, cluster.rng.choice(["heard", "cut", "killed"]), len(damaged))
    cluster.run(lambda: not any(map(bad.store.has, damaged)), "the damaged chunks to be dropped", limit_s=30)
    for sha256 in damaged:
        assert list((bad.folder / "store" / "trash" / "corrupt").glob(f"*-{sha256.hex()}"))
    _start(cluster, other)
    _finish(cluster, outcome, target, path)
    cluster.run(lambda: _health_told(cluster) == (file_id, "degraded"), "its health to be told", limit_s=30)
    cluster.verify({path.name: path})


def _flip(node: SimNode, sha256: bytes, bit: int) -> None:
    path = node.folder / "store" / "chunks" / sha256.hex()[:2] / sha256.hex()
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _report_unheard(cluster: Cluster, node: SimNode, how: str, reports: int) -> None:
    """The reports reach the tracker, but "cut" off, or "killed", the node learns it later."""

    def told() -> bool:
        topics = [event.topic for event in cluster.tracker.server.core.events.history]
        return topics.count("chunk.corrupt") == reports

    if how == "cut":  # some reports come before the node counts as down, the others later
        cluster.run_for(0.02)
        cluster.network.cut("tracker", node.name)
        cluster.run_for(cluster.rng.uniform(0.1, 4.0))
        cluster.network.heal()
    cluster.run(told, "the reports", limit_s=30)
    if how == "killed":
        node.crash()
        cluster.run_for(cluster.rng.uniform(0.0, 5.0))
        node.start()


def _health_told(cluster: Cluster) -> tuple[str, str]:
    """The file and the health of the last event about one."""
    told = [event.fields for event in cluster.tracker.server.core.events.history if "health" in event.fields]
    return (told[-1]["file_id"], told[-1]["health"]) if told else ("", "")


def slow_reports(root: Path, seed: int) -> None:
    """What a node stored reaches the tracker late, since its line is cut for less than a
    lease: a file is visible no sooner (U5)."""
    cluster = Cluster(root, seed, faults=Faults(delay_min=0.001, delay_max=0.05, loss=0.01))
    files = {}
    for number in range(3):
        path = cluster.make_file(f"slow{number}", cluster.rng.randrange(4, 9) * CHUNK)
        files[path.name] = path
        node = cluster.rng.choice(cluster.nodes)
        before = node.store.count
        outcome = cluster.client().put(path)
        cluster.run(lambda: node.store.count > before, "the node to store something")  # noqa: B023
        cluster.network.cut("tracker", node.name)
        healed = cluster.clock.monotonic() + cluster.rng.uniform(0.5, 2.0)
        while not outcome.ended and cluster.clock.monotonic() < healed:
            cluster.run_for(0.05)
        if outcome.ended:
            cluster.check_published(outcome.expect_done()["file_id"])
        cluster.network.heal()
        cluster.run(lambda: outcome.ended, f"the upload of {path.name}")  # noqa: B023
        cluster.check_published(outcome.expect_done()["file_id"])
    cluster.verify(files)


def restarts(root: Path, seed: int) -> None:
    """The tracker starts anew while nodes free chunks: what they tell it of crosses what
    it lets go."""
    cluster = Cluster(root, seed, faults=Faults(delay_min=0.001, delay_max=0.05))
    writer = cluster.client()
    for number in range(4):
        path = cluster.make_file(f"gone{number}", 4 * CHUNK)
        removed = writer.remove(_put(cluster, path))
        cluster.run(lambda: removed.ended, "the removal")  # noqa: B023
        cluster.run_for(cluster.rng.uniform(0.0, 0.2))
        cluster.crash_tracker()
        cluster.run_for(cluster.rng.uniform(0.0, 2.0))
        cluster.start_tracker(port=7700)
        cluster.run(lambda: all(node.is_up() for node in cluster.nodes), "every node up")
    cluster.run_for(5.0)
    cluster.verify({})


def dead_uploads(root: Path, seed: int) -> None:
    """An uploader leases chunks that are just being freed, and is never heard of again."""
    cluster = Cluster(root, seed, faults=Faults(delay_min=0.001, delay_max=0.1))
    writer, ghost = cluster.client(), cluster.client()
    for number in range(4):
        path = cluster.make_file(f"ghost{number}", 6 * CHUNK)
        removed = writer.remove(_put(cluster, path))
        cluster.run_for(cluster.rng.uniform(0.0, 0.4))
        upload_id = f"{cluster.rng.getrandbits(128):032x}"
        for node in cluster.nodes:
            for sha256 in node.store.hashes():
                offer = Offer(upload_id=upload_id, sha256=sha256, blake3=bytes(32), size=CHUNK)
                ghost.bulk.links.request(node.membership.peer_id, offer, 5.0, lambda reply, error: None)
        cluster.run(lambda: removed.ended, "the removal")  # noqa: B023
        cluster.run_for(1.0)
    ghost.host.crash()
    cluster.verify({})


def changing_peers(root: Path, seed: int) -> None:
    """An uploader is killed; when its upload is run again, other nodes are up. Then a new
    version is put, and others are up again. Only what no live node has is sent (U7)."""
    cluster = Cluster(root, seed, nodes=4, faults=Faults(delay_min=0.0002, delay_max=0.01))
    path = cluster.make_file("changing.bin", cluster.rng.randrange(8, 30) * CHUNK + 5)
    _swap(cluster)
    killed = cluster.client()
    killed.put(path)
    cluster.run_for(cluster.rng.uniform(0.05, 0.5))
    killed.host.crash()
    _swap(cluster)
    _put_missing(cluster, path)
    _swap(cluster)
    version = path.with_name("version.bin")
    content = bytearray(path.read_bytes())
    content[cluster.rng.randrange(len(content))] ^= 1
    version.write_bytes(content)
    _put_missing(cluster, version)
    cluster.verify({path.name: path, version.name: version})


def _swap(cluster: Cluster) -> None:
    """One node goes, and one that was away comes back with what it had."""
    away = [node for node in cluster.nodes if not node.alive]
    _stop(cluster, cluster.rng.choice([node for node in cluster.nodes if node.alive]))
    _start(cluster, *away)
    cluster.run(
        lambda: all(cluster.is_quiet(node) for node in cluster.nodes if node.alive), "every report told"
    )


def _put_missing(cluster: Cluster, path: Path) -> None:
    held = {sha256 for node in cluster.nodes if node.alive for sha256 in node.store.hashes()}
    data = path.read_bytes()
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    missing = sum(len(chunk) for chunk in chunks if hashlib.sha256(chunk).digest() not in held)
    for expected in (missing, 0):
        outcome = cluster.client().put(path)
        cluster.run(lambda: outcome.ended, f"the upload of {path.name}")  # noqa: B023
        done = outcome.expect_done()
        assert done["bytes_sent"] == expected, f"seed {cluster.seed}: {path.name}"
        assert len(done["peers"]) >= 2, f"seed {cluster.seed}: {path.name} on one peer"


def one_sided(root: Path, seed: int) -> None:
    """Copies of all chunks lie on one node, where files of no other node's were put: as a
    distributed file they may not stay there alone (U4)."""
    cluster = Cluster(root, seed, faults=Faults(delay_min=0.0002, delay_max=0.01))
    data, files = cluster.rng.randbytes(cluster.rng.randrange(4, 9) * CHUNK), {}
    keeper = cluster.rng.choice(cluster.nodes)
    others = [node for node in cluster.nodes if node is not keeper]
    _stop(cluster, *others)
    for number, at in enumerate(range(0, len(data), CHUNK)):
        path = cluster.make_file(f"piece{number}", 1)
        path.write_bytes(data[at : at + CHUNK])
        files[path.name] = path
        _put(cluster, path)
    _start(cluster, *others)
    whole = cluster.make_file("whole.bin", 1)
    whole.write_bytes(data)
    files[whole.name] = whole
    outcome = cluster.client().put(whole)
    cluster.run(lambda: outcome.ended, "the upload of the whole")
    done = outcome.expect_done()
    assert len(done["peers"]) == 2, f"seed {cluster.seed}: on {done['peers']}"
    assert done["bytes_sent"] == CHUNK, f"seed {cluster.seed}: {done['bytes_sent']} bytes sent"
    cluster.verify(files)


def vanished(root: Path, seed: int) -> None:
    """Before the commit a holder starts anew and lacks a chunk that it had confirmed (U6):
    the uploader is cut off meanwhile, and hears of the new start alone."""
    cluster = Cluster(root, seed)
    path = cluster.make_file("vanished.bin", 12 * CHUNK)
    client = cluster.client()
    outcome = client.put(path)
    cluster.run(lambda: any(node.store.count for node in cluster.nodes), "the first chunk stored")
    cluster.network.cut(client.host.name, "tracker")
    cluster.run(lambda: sum(node.store.count for node in cluster.nodes) == 12, "all chunks stored")
    cluster.run_for(cluster.rng.uniform(0.0, 1.0))
    node = cluster.rng.choice(cluster.nodes)
    _stop(cluster, node)
    for chunk in cluster.rng.sample(sorted((node.folder / "store" / "chunks").glob("*/*")), 2):
        chunk.unlink()
    _start(cluster, node)
    cluster.network.heal()
    cluster.run(lambda: outcome.ended, "the upload of what has vanished", limit_s=60)
    outcome.expect_done()
    cluster.check_published(outcome.value["file_id"])
    cluster.verify({path.name: path})


def gone_before_commit(root: Path, seed: int) -> None:
    """One of two holders dies when everything is stored (U6). The uploader, cut off until then,
    may hear the commit refused before it hears why."""
    cluster = Cluster(root, seed)
    path = cluster.make_file("gone.bin", 8 * CHUNK)
    late, *holders = cluster.rng.sample(cluster.nodes, 3)
    _stop(cluster, late)
    client = cluster.client()
    outcome = client.put(path, replicas=2)
    cluster.run(lambda: any(node.store.count for node in holders), "the first chunk stored")
    cluster.network.cut(client.host.name, "tracker")
    cluster.run(lambda: all(node.store.count == 8 for node in holders), "all chunks stored")
    cluster.run_for(cluster.rng.uniform(0.0, 1.0))
    _start(cluster, late)
    _stop(cluster, holders[0])
    cluster.network.faults = Faults(delay_min=0.001, delay_max=0.5)
    cluster.network.heal()
    cluster.run(lambda: outcome.ended, "the upload without the dead node", limit_s=60)
    done = outcome.expect_done()
    assert sorted(done["peers"]) == sorted(node.membership.peer_id for node in (late, holders[1]))
    cluster.verify({path.name: path})
