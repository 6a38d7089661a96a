"""Small stories for single guards, which random histories reach too rarely. Each takes a
folder and a seed, and ends with the verification of every scenario, `Cluster.verify`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.sim.cluster import CHUNK, SETTINGS, Cluster, Outcome, SimNode
from zchunk.errors import StaleIncarnation
from zchunk.transport.memory import Faults


def _put(cluster: Cluster, path: Path, **options: int) -> str:
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
        topics = [event.topic for event in cluster.tracker.server.core.history]
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
    told = [event.fields for event in cluster.tracker.server.core.history if "health" in event.fields]
    return (told[-1]["file_id"], told[-1]["health"]) if told else ("", "")


def slow_reports(root: Path, seed: int) -> None:
    """What nodes stored reaches the tracker late: a file is visible no sooner (U5)."""
    cluster = Cluster(root, seed, faults=Faults(delay_min=0.001, delay_max=0.3, loss=0.05))
    files = {}
    for number in range(3):
        path = cluster.make_file(f"slow{number}", cluster.rng.randrange(2, 6) * CHUNK)
        _put(cluster, path)
        files[path.name] = path
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
