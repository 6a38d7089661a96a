"""Files with holes: a disk image of which little is written. What is not there is not read, sent,
written, and takes no disk, by real processes; a small disk (root only)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import zchunk
from tests.faults.smalldisk import ext4
from tests.integration.cluster import GIB, MIB, Cluster, Event, Source, sha256_of
from zchunk.config import Settings

CHUNK = 10 * MIB
#: Where an image of 2 GiB holds something, 4 MiB in all: at its begin, across the end of a chunk, at
#: its end.
PLACES = {0: MIB, 100 * CHUNK - MIB: 2 * MIB, 2 * GIB - MIB: MIB}
TOUCHED = [0, 99, 100, 204]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With the settings that come with zchunk."""
    with Cluster(tmp_path_factory.mktemp("holes")) as cluster:
        cluster.start_nodes("A", "B", "C")
        yield cluster


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a disk that knows holes."""
    return tmp_path_factory.mktemp("folder")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("image") / "disk.img"
    with open(path, "wb") as file:
        file.truncate(2 * GIB)
        for offset, length in PLACES.items():
            file.seek(offset)
            file.write(os.urandom(length))
    assert used(path) == 4 * MIB
    return Source(path, 2 * GIB, sha256_of(path))


@pytest.fixture(scope="module")
def done(cluster: Cluster, image: Source) -> Event:
    """The upload's end; and what it cost."""
    put = cluster.client.put(image.path)
    done = put.last
    assert done["sha256"] == image.sha256
    assert done["chunks_count"] == 205
    return dict(done)


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_one_chunk_of_zeros_is_stored_for_all(cluster: Cluster, done: Event) -> None:
    zeros = hashlib.sha256(bytes(CHUNK)).hexdigest()
    info = cluster.client.info("disk.img")
    data = [index for index, sha256 in enumerate(info["chunks_hashes"]) if sha256 != zeros]
    assert data == TOUCHED
    last = 2 * GIB - 204 * CHUNK
    assert done["bytes_sent"] == 3 * CHUNK + last + CHUNK
    stored = [size for node in cluster.nodes.values() for size in node.chunks().values()]
    assert sum(stored) == done["bytes_sent"]


def test_a_small_disk_takes_a_large_image(cluster: Cluster, image: Source, done: Event, folder: Path) -> None:
    with ext4(folder / "disk", 500 * MIB) as disk:
        get = cluster.client.get("disk.img", disk / "copy")
        plan = get.of("plan")[0]
        assert (plan["chunks_kept"], plan["chunks_of_zeros"]) == (0, 201)
        assert get.last["bytes_received"] == done["bytes_sent"] - CHUNK
        copy = disk / "copy"
        assert (copy.stat().st_size, sha256_of(copy)) == (image.size, image.sha256)
        assert 4 * MIB <= used(copy) <= 5 * MIB
        assert cluster.client.get("disk.img", copy).last["already"]


def test_a_disk_that_is_too_small_for_what_is_there_is_said(
    cluster: Cluster, done: Event, folder: Path
) -> None:
    with ext4(folder / "disk", 32 * MIB) as disk:
        result = cluster.client.get("disk.img", disk / "copy", code=8)
        assert f"{done['bytes_sent'] - CHUNK} bytes" in result.stderr
        assert result.of("progress") == []


def test_one_that_was_stopped_goes_on(cluster: Cluster, image: Source, done: Event, folder: Path) -> None:
    info = cluster.client.info("disk.img")
    node = cluster.node_of(info["distribution_map"]["99"])
    cluster.kill(node.name)
    target = folder / "copy"
    partial = cluster.client.get("disk.img", target, "--no-wait", code=4).last
    mine = [i for i in TOUCHED if info["distribution_map"][str(i)] == node.peer_id]
    assert partial["chunks_completed"] == 205 - len(mine)
    assert used(target.with_name("copy.zpart")) <= 4 * MIB + len(mine) * CHUNK
    cluster.restart(node.name)
    get = cluster.client.get("disk.img", target)
    assert get.of("plan")[0]["chunks_kept"] == 4 - len(mine)
    assert sha256_of(target) == image.sha256
    assert 4 * MIB <= used(target) <= 5 * MIB


def test_zeros_are_read_while_nobody_is_there(cluster: Cluster, image: Source, done: Event) -> None:
    """By a file object, which was opened before."""
    with zchunk.Client(cluster.client.home, Settings()) as api, api.open("disk.img", wait=False) as file:
        for name in cluster.nodes:
            cluster.kill(name)
        file.seek(50 * CHUNK - 5)
        assert file.read(MIB) == bytes(MIB)
        file.seek(150 * CHUNK)
        assert file.read(3 * CHUNK) == bytes(3 * CHUNK)
        assert file.raw.bytes_received == 0  # type: ignore[attr-defined]
    cluster.mend()


@pytest.mark.parametrize("options", [(), ("--encrypt",)])
def test_one_that_is_encrypted(cluster: Cluster, done: Event, folder: Path, options: tuple[str, ...]) -> None:
    """The ciphertext tells nothing, so all of it is stored; who has the key gets the holes."""
    path, secret = folder / f"small{len(options)}.img", folder / "passphrase"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
        file.seek(20 * MIB)
        file.write(os.urandom(MIB))
    secret.write_text("pale blue dot")
    secret.chmod(0o600)
    key = ("--passphrase-file", str(secret)) if options else ()
    sent = cluster.client.put(path, *options, *key).last["bytes_sent"]
    assert sent >= 64 * MIB if options else sent == CHUNK + 4 * MIB, "the zeros of a chunk are stored"
    got = cluster.client.get(path.name, folder / "copy", *key).last
    assert got["bytes_received"] == CHUNK + (16 if options else 0)
    assert sha256_of(folder / "copy") == sha256_of(path)
    assert MIB <= used(folder / "copy") <= 2 * MIB


def test_zeros_that_were_written_become_holes(cluster: Cluster, folder: Path) -> None:
    """Also blocks within a chunk."""
    path = folder / "written.bin"
    block = os.urandom(128 * 1024)
    path.write_bytes((block + bytes(len(block))) * 200 + bytes(2 * CHUNK))
    cluster.client.put(path)
    assert used(path) >= 70 * MIB
    cluster.client.get(path.name, folder / "copy")
    assert sha256_of(folder / "copy") == sha256_of(path)
    assert 25 * MIB <= used(folder / "copy") <= 26 * MIB
