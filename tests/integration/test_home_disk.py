"""Commands whose home cannot be written to: they say so, and do what they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.smalldisk import fill, tmpfs
from tests.integration.cluster import MIB, UNPRIVILEGED, Client, Cluster, make_file, sha256_of
from tests.integration.conftest import SMALL

FOLDERS = ("jobs", "manifests", "uploads")


@contextmanager
def read_only(home: Path) -> Iterator[Path]:
    role = home / "client"
    role.chmod(0o500)
    try:
        yield home
    finally:
        role.chmod(0o700)


@contextmanager
def full(home: Path) -> Iterator[Path]:
    """Moved to a disk of its own, which is filled."""
    role = home / "client"
    kept = {path.name: path.read_bytes() for path in role.iterdir() if path.is_file()}
    with tmpfs(home / "disk", 4 * MIB) as disk:
        for name, data in kept.items():
            (disk / name).write_bytes(data)
            (disk / name).chmod(0o600)
        role.rename(home / "before")
        role.symlink_to(disk)
        try:
            fill(disk, 0)
            yield home
        finally:
            role.unlink()
            (home / "before").rename(role)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("homes"), SMALL) as cluster:
        cluster.start_nodes("A", "B")
        yield cluster


@pytest.fixture(params=[read_only, full])
def client(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Client]:
    make: Callable[[Path], contextmanager[Path]] = request.param  # type: ignore[valid-type]
    name = f"{make.__name__}{len(os.listdir(cluster.root))}"
    client = cluster.join(name, prefix=UNPRIVILEGED)
    with make(client.home):  # type: ignore[attr-defined]
        yield client
        written = [path for folder in FOLDERS for path in (client.home / "client" / folder).glob("*")]
        assert [path for path in written if path.stat().st_size] == [], "it could be written to"


def test_a_file_is_put_and_fetched(cluster: Cluster, client: Client, folder: Path) -> None:
    source = make_file(folder / f"{client.home.name}.bin", 2 * MIB)
    put = client.put(source.path)
    assert "the manifest of" in put.stderr
    assert "could not be kept here" in put.stderr
    get = client.get(source.path.name, folder / "copy")
    assert sha256_of(folder / "copy") == source.sha256
    assert get.stderr.count("continues without its record") == 1
    assert client.get(source.path.name, folder / "copy").last["already"]
    assert client.run("jobs").last == []
    assert client.run("ls").events
    client.run("cat", source.path.name, json=False)
    client.run("rm", "--yes", source.path.name)


def test_a_file_is_put_encrypted(client: Client, folder: Path) -> None:
    source = make_file(folder / f"{client.home.name}.secret", 2 * MIB)
    secret = folder / "passphrase"
    secret.write_text("pale blue dot")
    secret.chmod(0o600)
    put = client.put(source.path, "--encrypt", "--passphrase-file", str(secret))
    assert "an interrupted upload of this file will start over" in put.stderr
    client.get(source.path.name, folder / "copy", "--passphrase-file", str(secret))
    assert sha256_of(folder / "copy") == source.sha256


def test_a_download_that_was_stopped_goes_on(cluster: Cluster, client: Client, folder: Path) -> None:
    """By the same command: no job is known."""
    source = make_file(folder / f"{client.home.name}.bin", 2 * MIB)
    cluster.client.put(source.path)
    cluster.kill("B")
    stopped = client.get(source.path.name, folder / "copy", "--no-wait", code=4).last
    cluster.restart("B")
    done = client.get(source.path.name, folder / "copy").last
    assert done["job_id"] == stopped["job_id"]
    assert done["bytes_received"] == source.size - stopped["bytes_received"]
    assert sha256_of(folder / "copy") == source.sha256


def test_a_job_that_is_known_is_cancelled(cluster: Cluster, folder: Path) -> None:
    """Its record stays as it was; what it had is gone."""
    source = make_file(folder / "known.bin", 2 * MIB)
    client = cluster.join("known", prefix=UNPRIVILEGED)
    cluster.client.put(source.path)
    cluster.kill("B")
    client.get(source.path.name, folder / "copy", "--no-wait", code=4)
    (job,) = client.run("jobs").last
    jobs = client.home / "client" / "jobs"
    jobs.chmod(0o500)
    try:
        result = client.run("cancel", job["job_id"])
        assert result.last["state"] == "cancelled"
        assert "could not be recorded" in result.stderr
    finally:
        jobs.chmod(0o700)
    assert [path.name for path in folder.iterdir()] == ["known.bin"]
    cluster.restart("B")
