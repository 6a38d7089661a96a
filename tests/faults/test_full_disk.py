"""T5: disks that are full, or fill up while chunks come: of a node, and of the downloader."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.announced import announced, whole_chunks
from tests.faults.smalldisk import SmallDisks, ext4, fill, tmpfs
from tests.faults.tracing import needs_strace, tampered
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, make_file, sha256_of
from tests.integration.test_interrupted import held_put
from tests.waiting import wait_for

SETTINGS = {
    "chunking.chunk_size": "1MiB",
    "chunking.min_file_size_for_distribution": "8MiB",
    "node.reserve": "1MiB",
}
_DISK = 64 * MIB


@pytest.fixture(scope="module")
def trio_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisks]:
    root = tmp_path_factory.mktemp("full")
    with ext4(root / "disk", _DISK) as disk:
        homes = {"A": disk / "home"}
        homes["A"].mkdir()
        with SmallDisks(root / "cluster", SETTINGS, homes) as cluster:
            cluster.start_nodes("A", "B", "C")
            yield cluster


@pytest.fixture
def trio(trio_cluster: SmallDisks) -> Iterator[SmallDisks]:
    """A lies on a disk of 64 MB, B and C do not."""
    yield trio_cluster
    (disk_of(trio_cluster) / "ballast").unlink(missing_ok=True)
    for name in trio_cluster.client.names():
        trio_cluster.client.run("rm", "--yes", "--", name)
    trio_cluster.mend()


def empty_the_trash(cluster: Cluster) -> None:
    """Of A: what lies there would make room for chunks that are to find none."""
    node = cluster.nodes["A"]
    wait_for(lambda: node.chunks() == {}, PATIENCE_S, "removed chunks are in the trash")
    node.process.end()
    for path in (node.store / "trash").iterdir():
        shutil.rmtree(path)
    cluster.restart("A")


def disk_of(cluster: Cluster) -> Path:
    return cluster.nodes["A"].home.parent


def check_no_false_row(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        assert announced(cluster, node) <= whole_chunks(node)


def test_a_file_that_does_not_fit_is_refused_before_a_byte_is_sent(trio: SmallDisks, folder: Path) -> None:
    source, node = make_file(folder / "large.bin", 200 * MIB), trio.nodes["A"]
    trio.stop("B")
    trio.stop("C")
    result = trio.client.put(source.path, "--min-peers", "1", code=8)
    assert "A" in result.last["message"] or "room" in result.last["message"], result.stderr
    assert node.chunks() == {}
    for name in ("B", "C"):
        trio.restart(name)


def test_with_too_few_disks_left_the_upload_ends_clearly_or_goes_on_when_there_is_space(
    trio: SmallDisks, folder: Path
) -> None:
    source = make_file(folder / "pair.bin", 60 * MIB)
    trio.stop("C")
    put, _ = held_put(trio, source.path)
    ballast = fill(disk_of(trio), MIB)
    put.answer("y\n")
    event = put.until(lambda e: e.get("event") in ("waiting", "error", "done"))
    ballast.unlink()
    if event["event"] == "waiting":
        event = put.until("done", 10.0)
        assert put.result().code == 0
    else:
        result = put.result().expect(8)
        assert "A" in result.stderr.replace(":", " ").split() or "room" in result.stderr, result.stderr
        # The tracker learns of the space by A's next heartbeat.
        wait_for(lambda: trio.client.put(source.path, code=None).code == 0, 20.0, "the upload goes on")
    check_no_false_row(trio)
    trio.client.get("pair.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
    trio.restart("C")


@pytest.mark.row("U6")
def test_a_disk_that_fills_up_after_the_plan_gets_its_chunks_placed_elsewhere(
    trio: SmallDisks, folder: Path
) -> None:
    empty_the_trash(trio)
    source, node = make_file(folder / "filled.bin", 60 * MIB), trio.nodes["A"]
    put, plan = held_put(trio, source.path)
    share = next(peer["chunks"] for peer in plan["peers"] if peer["name"] == "A")
    assert share >= 15
    fill(disk_of(trio), 8 * MIB)
    put.answer("y\n")
    put.result().expect(0)
    hashes = trio.client.info("filled.bin")["chunks_hashes"]
    assert len(node.holds(hashes)) < share
    check_no_false_row(trio)
    trio.client.get("filled.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


@pytest.mark.row("U5")
@needs_strace
def test_a_disk_that_is_full_at_the_write_itself_announces_nothing(trio: SmallDisks, folder: Path) -> None:
    """Another program may take the space between a chunk's reservation and its writing."""
    source, node = make_file(folder / "overtaken.bin", 30 * MIB), trio.nodes["A"]
    with tampered(node.process, folder / "trace", "pwrite64:error=ENOSPC:when=20+"):
        result = trio.client.put(source.path, code=None)
    assert result.code in (0, 8), str(result)
    assert "INJECTED" in (folder / "trace").read_text()
    check_no_false_row(trio)
    trio.client.put(source.path)
    trio.client.get("overtaken.bin", folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256


# -- the downloader ---------------------------------------------------------------------------


@pytest.mark.row("D10")
def test_a_download_to_a_full_disk_is_kept_and_goes_on_when_there_is_space(
    small: Cluster, folder: Path
) -> None:
    """D10"""
    source = make_file(folder / "target.bin", 24 * MIB)
    small.client.put(source.path)
    with tmpfs(folder / "disk", _DISK) as disk:
        ballast, target = fill(disk, 10 * MIB), disk / "copy"
        result = small.client.get("target.bin", target, code=8)
        assert str(disk) in result.stderr
        assert len(result.stderr.splitlines()) == 1
        job_id = result.last.get("job_id")
        assert target.with_name("copy.zjob").exists(), "the job is kept"
        ballast.unlink()
        again = small.client.get("target.bin", target)
        assert job_id in (None, again.of("plan")[0]["job_id"])
        assert sha256_of(target) == source.sha256
        assert [path.name for path in disk.iterdir()] == ["copy"]


@pytest.mark.row("D10")
@needs_strace
def test_a_disk_that_fills_up_in_mid_download_keeps_what_is_there(small: Cluster, folder: Path) -> None:
    """D10: space that was promised can be gone, on file systems that promise too much."""
    source, target = make_file(folder / "middle.bin", 8 * MIB), folder / "out" / "copy"
    target.parent.mkdir()
    small.client.put(source.path)
    inject = "inject=pwrite64:error=ENOSPC:when=40+"
    strace = ["strace", "-D", "-f", "-q", "-o", str(folder / "trace"), "-e", "trace=pwrite64", "-e", inject]
    full = small.join("full", prefix=strace)
    result = full.get("middle.bin", target, code=8)
    assert str(target) in result.stderr
    full.prefix = ()
    again = full.get("middle.bin", target)
    assert 0 < again.of("plan")[0]["chunks_kept"] < 128
    assert again.last["bytes_received"] < source.size
    assert sha256_of(target) == source.sha256
    assert list(target.parent.iterdir()) == [target]
