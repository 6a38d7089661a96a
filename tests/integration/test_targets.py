"""Where a download is written (SPEC D10, "Command line"): what is at the target and beside it is
what anybody may have put there."""

from __future__ import annotations

import json
import os
import shlex
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

import zchunk
from tests.integration import wrongdigest
from tests.integration.cluster import MIB, NOBODY, Cluster, Source, flip_bit, sha256_of
from tests.integration.test_edges import CHUNK, fresh
from tests.integration.test_jobs import waiting_get
from zchunk.config import Settings
from zchunk.node.download.part_file import open_part
from zchunk.node.download.target_lock import acquire
from zchunk.system.file_owners import owner_name

PRECIOUS = b"precious, and none of their business"


@pytest.fixture
def source(bench: Cluster, folder: Path) -> Source:
    source = fresh(folder, 2 * MIB)
    bench.client.put(source.path)
    return source


@pytest.fixture
def shared(folder: Path) -> Path:
    """A folder that everybody may write to."""
    path = folder / "shared"
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.fixture
def precious(folder: Path) -> Path:
    path = folder / "precious"
    path.write_bytes(PRECIOUS)
    return path


def theirs(path: Path) -> None:
    """Somebody else's; the user's own where the tests may not give files away."""
    if os.geteuid() == 0:
        os.lchown(path, NOBODY, NOBODY)


# -- beside the target ------------------------------------------------------------------------


def link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def second_name(path: Path, precious: Path) -> None:
    path.hardlink_to(precious)


def other(path: Path, precious: Path) -> None:
    path.write_bytes(b"x")


@pytest.mark.parametrize("plant", [link, second_name, other])
@pytest.mark.parametrize("suffix", [".zpart", ".zjob", ".zjob.tmp", ".zlock"])
def test_what_somebody_puts_beside_a_target_leads_nowhere(
    bench: Cluster,
    source: Source,
    shared: Path,
    precious: Path,
    suffix: str,
    plant: Callable[[Path, Path], None],
) -> None:
    planted = shared / f"out{suffix}"
    plant(planted, precious)
    if plant is not second_name:
        theirs(planted)
    refused = suffix == ".zlock" and plant is link
    result = bench.client.get(source.path.name, shared / "out", code=7 if refused else 0)
    assert precious.read_bytes() == PRECIOUS
    if refused:
        assert f"{planted} is in the way" in result.stderr
        assert planted.is_symlink()
    else:
        assert sha256_of(shared / "out") == source.sha256
        assert not planted.exists()


@pytest.mark.parametrize("plant", [link, second_name, other])
def test_a_download_that_somebody_else_began_is_not_gone_on_with(
    bench: Cluster, source: Source, shared: Path, precious: Path, plant: Callable[[Path, Path], None]
) -> None:
    """With a journal as it should be, and a part that he may write to, or that is another file."""
    with zchunk.Client(bench.client.home, Settings()) as api:
        manifest = api.locate(source.path.name).manifest
    open_part(shared / "out", manifest, "1" * 16).keep()
    part = shared / "out.zpart"
    part.unlink()
    plant(part, precious)
    for path in shared.iterdir():
        if not (path == part and plant is second_name):
            theirs(path)
    result = bench.client.get(source.path.name, shared / "out")
    assert precious.read_bytes() == PRECIOUS
    assert sha256_of(shared / "out") == source.sha256
    assert result.last["bytes_received"] == source.size
    if os.geteuid() == 0:
        assert (shared / "out").stat().st_uid == 0
        assert sorted(path.name for path in shared.iterdir()) == [
            "out",
            "out.zjob.aside-1",
            "out.zpart.aside-1",
        ]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as two users")
def test_a_download_of_another_user_is_told_as_his(bench: Cluster, source: Source, shared: Path) -> None:
    lock = acquire(shared / "out.zlock", 0.0)
    theirs(lock.path)
    try:
        result = bench.client.get(source.path.name, shared / "out", code=2)
    finally:
        lock.drop()
    assert result.last["code"] == "already_running"
    assert f"{owner_name(NOBODY)} is downloading to {shared / 'out'}" in result.stderr
    bench.client.get(source.path.name, shared / "out")
    assert [path.name for path in shared.iterdir()] == ["out"]


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [245, 246, 250, 255])
def test_a_target_whose_name_is_as_long_as_a_name_may_be(
    bench: Cluster, source: Source, folder: Path, length: int
) -> None:
    """Also where it is stopped in its middle, listed, and gone on with."""
    target = folder / "out" / ("x" * length)
    target.parent.mkdir()
    bench.kill("B")
    partial = bench.client.get(source.path.name, target, "--no-wait", code=4)
    job_id = partial.last["job_id"]
    (job,) = [job for job in bench.client.run("jobs").last if job["job_id"] == job_id]
    assert (job["state"], job["target"]) == ("paused", str(target))
    assert job["chunks_status"]["completed"] == partial.last["chunks_completed"] > 0
    bench.restart("B")
    done = bench.client.get(source.path.name, target).last
    assert (done["job_id"], sha256_of(target)) == (job_id, source.sha256)
    assert done["bytes_received"] < source.size
    assert list(target.parent.iterdir()) == [target]


# -- what is at the target --------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    """As /dev/null is, which must not be tried on; a pipe where the tests may not make one."""
    if os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        os.mkfifo(path)


def door(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, chdir(path.parent):
        listener.bind(path.name)


@pytest.mark.parametrize("make", [pipe, device, door])
@pytest.mark.parametrize("options", [(), ("--force",)])
def test_what_is_no_file_is_never_replaced(
    bench: Cluster, source: Source, folder: Path, make: Callable[[Path], None], options: tuple[str, ...]
) -> None:
    target = folder / "out" / "odd"
    target.parent.mkdir()
    make(target)
    before = target.lstat()
    for path in (target, target.with_name("link")):
        result = bench.client.get(source.path.name, path, *options, code=2)
        assert result.last["code"] == "target_exists"
        assert "not a file: choose another target" in result.stderr
        assert "--force" not in result.stderr
        if path == target:
            path.with_name("link").symlink_to(target)
    after = target.lstat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert sorted(path.name for path in target.parent.iterdir()) == ["link", "odd"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_of_the_user_is_written_through(
    bench: Cluster, source: Source, folder: Path, there: bool
) -> None:
    real, link = folder / "disk" / "real", folder / "out" / "link"
    for path in (real, link):
        path.parent.mkdir()
    link.symlink_to("../disk/real")
    if there:
        real.write_bytes(b"older")
        result = bench.client.get(source.path.name, link, code=2)
        assert result.last["code"] == "target_exists"
        assert "--force" in result.stderr
    options = ["--force"] if there else []
    done = bench.client.get(source.path.name, link, *options).last
    assert done["target"] == str(real)
    assert link.is_symlink()
    assert sha256_of(real) == source.sha256
    assert [*link.parent.iterdir(), *real.parent.iterdir()] == [link, real]
    assert bench.client.get(source.path.name, link).last["already"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as two users")
@pytest.mark.parametrize("options", [(), ("--force",)])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_of_somebody_else_is_refused(
    bench: Cluster, source: Source, shared: Path, precious: Path, there: bool, options: tuple[str, ...]
) -> None:
    link = shared / "out"
    link.symlink_to(precious if there else precious.with_name("new"))
    theirs(link)
    result = bench.client.get(source.path.name, link, *options, code=2)
    assert f"{link} is a link of {owner_name(NOBODY)}" in result.stderr
    assert precious.read_bytes() == PRECIOUS
    assert not precious.with_name("new").exists()
    assert list(shared.iterdir()) == [link]


def test_a_link_to_a_folder_takes_the_file(bench: Cluster, source: Source, folder: Path) -> None:
    real, link = folder / "disk", folder / "link"
    real.mkdir()
    link.symlink_to(real)
    bench.client.get(source.path.name, link)
    assert sha256_of(real / source.path.name) == source.sha256


def test_who_may_not_read_what_is_replaced_may_not_read_the_new_one(
    bench: Cluster, source: Source, folder: Path
) -> None:
    target = folder / "out"
    target.write_bytes(b"older")
    target.chmod(0o600)
    bench.kill("B")
    bench.client.get(source.path.name, target, "--force", "--no-wait", code=4)
    assert folder.joinpath("out.zpart").stat().st_mode & 0o777 == 0o600
    bench.restart("B")
    bench.client.get(source.path.name, target, "--force")
    assert target.stat().st_mode & 0o777 == 0o600
    assert sha256_of(target) == source.sha256


@pytest.mark.parametrize("make", [other, link, pipe])
def test_what_was_made_meanwhile_stays(
    bench: Cluster,
    source: Source,
    folder: Path,
    precious: Path,
    make: Callable[[Path, Path], None] | Callable[[Path], None],
) -> None:
    """The download waits for a node while the user makes something at its target."""
    target = folder / "out" / "copy"
    target.parent.mkdir()
    bench.kill("B")
    get, job_id = waiting_get(bench, source, target)
    make(target) if make is pipe else make(target, precious)  # type: ignore[call-arg]
    before = target.lstat()
    bench.restart("B")
    result = get.result().expect(2)
    assert (result.last["code"], result.last["job_id"]) == ("target_exists", job_id)
    assert "is not replaced: move it away" in result.stderr
    after = target.lstat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (
        after.st_ino,
        after.st_size,
        after.st_mtime_ns,
    )
    assert precious.read_bytes() == PRECIOUS
    (job,) = [job for job in bench.client.run("jobs").last if job["job_id"] == job_id]
    assert (job["state"], job["active"], job["chunks_status"]["completed"]) == ("failed", False, 32)
    target.rename(folder / "away")
    done = bench.client.run("resume", job_id).last
    assert (done["bytes_received"], sha256_of(target)) == (0, source.sha256)
    assert list(target.parent.iterdir()) == [target]


def test_what_was_made_meanwhile_is_replaced_by_force(bench: Cluster, source: Source, folder: Path) -> None:
    target = folder / "out"
    bench.kill("B")
    get = bench.client.start("get", source.path.name, "-o", target, "--force")
    get.until("waiting")
    target.write_bytes(b"made meanwhile")
    target.chmod(0o640)
    bench.restart("B")
    get.result().expect(0)
    assert sha256_of(target) == source.sha256
    assert target.stat().st_mode & 0o777 == 0o640


# -- stdout -----------------------------------------------------------------------------------


def to_stdout(cluster: Cluster, *args: str, code: int = 0, cwd: Path | None = None) -> tuple[bytes, str]:
    """What `zchunk get` writes, and what it says."""
    words = [sys.executable, "-m", "zchunk", "get", "--home", str(cluster.client.home), *args]
    done = subprocess.run(words, capture_output=True, timeout=60, cwd=cwd)
    said = done.stderr.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    return done.stdout, said


@pytest.mark.parametrize("output", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("options", [(), ("--force",)])
def test_a_file_goes_to_stdout(
    bench: Cluster, source: Source, folder: Path, output: str, options: tuple[str, ...]
) -> None:
    here = folder / "here"
    here.mkdir()
    data, said = to_stdout(bench, source.path.name, "-o", output, *options, cwd=here)
    assert data == source.path.read_bytes()
    assert "is complete and verified: 2.1 MB, 2.1 MB received" in said
    assert list(here.iterdir()) == []
    assert bench.client.ls()[0]["file_id"] in said


def test_stdout_that_is_a_file_is_written_to_and_not_replaced(
    bench: Cluster, source: Source, folder: Path
) -> None:
    out = folder / "out"
    words = [sys.executable, "-m", "zchunk", "get", "--home", str(bench.client.home), "-o", "/dev/stdout"]
    with out.open("wb") as file:
        number = os.fstat(file.fileno()).st_ino
        assert subprocess.run([*words, source.path.name], stdout=file, timeout=60).returncode == 0
    assert (out.stat().st_ino, sha256_of(out)) == (number, source.sha256)


def test_a_file_may_be_named_as_a_dash(bench: Cluster, source: Source, folder: Path) -> None:
    here = folder / "here"
    here.mkdir()
    data, _ = to_stdout(bench, source.path.name, "-o", "./-", cwd=here)
    assert data == b""
    assert sha256_of(here / "-") == source.sha256


def test_json_and_content_do_not_meet_on_stdout(bench: Cluster, source: Source) -> None:
    data, said = to_stdout(bench, source.path.name, "-o", "-", "--json", code=2)
    (line,) = data.splitlines()
    assert json.loads(line)["code"] == "usage"
    assert "cannot both go to stdout" in said


def test_nothing_unverified_goes_to_stdout(bench: Cluster, source: Source) -> None:
    """A node's copy has a flipped bit, and it is the only one."""
    info = bench.client.info(source.path.name)
    node = bench.node_of(info["distribution_map"]["20"])
    flip_bit(node.chunk_path(info["chunks_hashes"][20]), 1000)
    data, said = to_stdout(bench, source.path.name, "-o", "-", code=5)
    assert data == source.piece(0, 20 * CHUNK)
    assert node.name in said
    assert "complete" not in said


@pytest.mark.row("D5")
def test_what_is_not_the_whole_that_was_promised_is_said(bench: Cluster, folder: Path) -> None:
    source = fresh(folder, 200_000)
    liar = bench.join("wrong digest", prefix=(sys.executable, wrongdigest.__file__))
    liar.put(source.path)
    data, said = to_stdout(bench, source.path.name, "-o", "-", code=5)
    assert data == source.path.read_bytes()
    assert "the file's SHA-256 does not match" in said
    assert "complete" not in said


def test_who_has_read_enough_ends_it_without_a_word(bench: Cluster, source: Source) -> None:
    words = [sys.executable, "-m", "zchunk", "get", "--home", str(bench.client.home), "-o", "-"]
    line = f"set -o pipefail; {shlex.join([*words, source.path.name])} | head -c 100000"
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, source.piece(0, 100000))
    assert b"complete" not in done.stderr


def test_without_a_holder_stdout_ends_before_its_chunk(bench: Cluster, source: Source) -> None:
    holders = bench.client.info(source.path.name)["distribution_map"]
    node = bench.kill(bench.node_of(holders["5"]).name)
    first = min(int(index) for index, peer in holders.items() if peer == node.peer_id)
    data, said = to_stdout(bench, source.path.name, "-o", "-", "--no-wait", code=4)
    assert data == source.piece(0, first * CHUNK)
    assert node.name in said
