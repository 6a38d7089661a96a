"""Downloads as jobs (SPEC D4, D6, D10): steered by other processes, interrupted by faults that
a user meets, listed truthfully, and gone on with.

A download is held in its middle by a node that is frozen, and the tracker with it, so that it is
not taken for down; or it waits for a node that was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import zchunk
from tests.hostile import zmtp
from tests.integration.cluster import MIB, UNPRIVILEGED, Client, Cluster, Event, Process, Source, sha256_of
from tests.integration.conftest import SMALL
from tests.integration.test_edges import fresh
from tests.waiting import wait_for
from zchunk.config import Settings
from zchunk.errors import NotFound
from zchunk.transport.unix_socket import SCHEME, LocalClient

#: A command's own start takes most of it.
SOON_S = 20.0


def jobs(client: Client) -> dict[str, Event]:
    return {job["job_id"]: job for job in client.run("jobs").last}


def waiting_get(cluster: Cluster, source: Source, target: Path, **options: Any) -> tuple[Process, str]:
    """A download that waits for node B, which is dead, with everything saved; and its job's id."""
    get = cluster.client.start("get", source.path.name, "-o", target, **options)
    job_id = get.until("plan")["job_id"]
    get.until("waiting")
    journal = target.with_name(f"{target.name}.zjob")
    # Written after the job's record, by the same thread.
    wait_for(lambda: json.loads(journal.read_text())["state"] == "waiting", SOON_S, "its journal")
    return get, job_id


@pytest.fixture
def out(folder: Path) -> Path:
    path = folder / "out"
    path.mkdir()
    return path


@pytest.fixture
def source(bench: Cluster, folder: Path) -> Source:
    source = fresh(folder, 2 * MIB)
    bench.client.put(source.path)
    return source


# -- steering ---------------------------------------------------------------------------


@pytest.mark.row("D6")
def test_a_running_download_is_paused_and_goes_on(bench: Cluster, folder: Path, out: Path) -> None:
    """D6, from another process; and a job is listed as SPEC "Data" has it."""
    source, client = fresh(folder, 8 * MIB), bench.client
    client.put(source.path)
    b = bench.nodes["B"]
    with bench.frozen(b.process, bench.tracker.process):
        get = client.start("get", source.path.name, "-o", out / "copy")
        # The tracker is asked first: it must know of nothing but that.
        bench.tracker.process.send(signal.SIGCONT)
        job_id = get.until("plan")["job_id"]
        paused = client.run("pause", job_id[:6]).last
        assert (paused["action"], paused["state"], paused["active"]) == ("pause", "paused", True)
        get.until("paused")
    bench.await_all_up()
    job = jobs(client)[job_id]
    assert (job["state"], job["auto_resume"], job["name"]) == ("paused", True, source.path.name)
    assert job["target"] == str(out / "copy")
    statuses = [row["status"] for row in job["chunks_progress"].values()]
    assert len(statuses) == job["chunks_count"] == 128
    assert {status: statuses.count(status) for status in job["chunks_status"]} == job["chunks_status"]
    assert job["chunks_status"]["pending"] > 0
    again = jobs(client)[job_id]
    assert again["chunks_status"] == job["chunks_status"], "it stands still"
    assert get.alive
    assert client.run("resume", job_id).last["active"]
    done = get.result().expect(0)
    assert done.of("continued")
    assert done.last["job_id"] == job_id
    assert sha256_of(out / "copy") == source.sha256
    assert jobs(client)[job_id]["state"] == "complete"


def test_what_is_no_order_ends_no_download(bench: Cluster, source: Source, out: Path) -> None:
    """Some sixteen bytes of an old ZMTP ended any download, when it listened at a port."""
    client = bench.client
    bench.kill("B")
    get, job_id = waiting_get(bench, source, out / "copy")
    door = client.home / "client" / "jobs" / f"{job_id}.sock"
    for said in (*zmtp.OLD, os.urandom(4096)):
        with socket.socket(socket.AF_UNIX) as line, suppress(ConnectionResetError, BrokenPipeError):
            line.settimeout(SOON_S)
            line.connect(str(door))
            line.sendall(said)
            line.shutdown(socket.SHUT_WR)
            assert line.recv(1) == b""
    assert jobs(client)[job_id]["active"]
    bench.restart("B")
    get.result().expect(0)
    assert sha256_of(out / "copy") == source.sha256


def test_what_cannot_be_answered_ends_its_connection(bench: Cluster, source: Source, out: Path) -> None:
    """It has no number that an answer could name: whoever said it would wait for its deadline."""
    bench.kill("B")
    get, job_id = waiting_get(bench, source, out / "copy")
    door = bench.client.home / "client" / "jobs" / f"{job_id}.sock"
    with (
        LocalClient(f"{SCHEME}{door}", SOON_S) as line,
        pytest.raises(NotFound, match="ended without an answer"),
    ):
        line.ask([b"no header"])
    get.end(signal.SIGINT)


def test_a_home_may_be_deeper_than_the_name_of_a_socket(bench: Cluster, folder: Path, out: Path) -> None:
    source = fresh(folder, 2 * MIB)
    bench.client.put(source.path)
    client = bench.join("x" * 64)
    bench.kill("B")
    get = client.start("get", source.path.name, "-o", out / "copy")
    job_id = get.until("plan")["job_id"]
    get.until("waiting")
    assert len(str(client.home / "client" / "jobs" / f"{job_id}.sock")) > 107
    assert client.run("cancel", job_id).last["state"] == "cancelled"
    get.result().expect(10)


@pytest.mark.parametrize("same", [True, False])
def test_a_download_that_was_killed_is_not_the_one_that_runs_now(
    bench: Cluster, source: Source, folder: Path, out: Path, same: bool
) -> None:
    """Another one goes to its target, of the same file without its journal, or of another file: it
    is listed as what it is, and no order to the one reaches the other."""
    client, target = bench.client, out / "copy"
    if not same:
        other = fresh(folder, 2 * MIB)
        client.put(other.path)
    bench.kill("B")
    get, dead = waiting_get(bench, source, target)
    get.end(signal.SIGKILL)
    if same:
        target.with_name("copy.zjob").unlink()
    get, living = waiting_get(bench, source if same else other, target)
    assert dead != living
    listed = jobs(client)
    assert (listed[dead]["state"], listed[dead]["active"]) == ("failed", False)
    assert "nothing of it is left" in listed[dead]["reason"]
    assert (listed[living]["state"], listed[living]["active"]) == ("waiting", True)
    assert client.run("pause", dead).last["active"] is False
    assert jobs(client)[living]["state"] == "waiting"
    assert client.run("cancel", dead).last["state"] == "cancelled"
    assert jobs(client)[living]["active"]
    bench.restart("B")
    get.result().expect(0)
    assert sha256_of(target) == (source if same else other).sha256


@pytest.mark.row("D6")
def test_a_waiting_download_is_cancelled(bench: Cluster, source: Source, out: Path) -> None:
    """D6: nothing is left, and its command says so with an exit code of its own."""
    client = bench.client
    bench.kill("B")
    get, job_id = waiting_get(bench, source, out / "copy")
    job = jobs(client)[job_id]
    assert job["state"] == "waiting"
    assert job["missing_peers"] == [bench.nodes["B"].peer_id]
    assert job["waiting_since"] is not None
    assert client.run("cancel", job_id).last["state"] == "cancelled"
    assert list(out.iterdir()) == []
    ended = get.result().expect(10)
    assert (ended.last["code"], ended.last["job_id"]) == ("cancelled", job_id)
    assert jobs(client)[job_id]["state"] == "cancelled"
    other, other_id = waiting_get(bench, source, out / "copy")
    assert other_id != job_id
    other.close()


def test_several_jobs_at_once(bench: Cluster, source: Source, out: Path) -> None:
    client = bench.client
    bench.kill("B")
    gets = [waiting_get(bench, source, out / name) for name in ("one", "two")]
    ids = [job_id for _, job_id in gets]
    assert [job["state"] for job in client.run("pause", *ids).events] == ["paused", "paused"]
    error = client.run("cancel", ids[0], "unknown", code=9).last
    assert error["code"] == "not_found"
    assert {jobs(client)[job_id]["state"] for job_id in ids} == {"paused"}, "none was touched"
    client.run("cancel", *ids)
    for get, _ in gets:
        get.result().expect(10)
    assert list(out.iterdir()) == []


@pytest.mark.row("D4")
def test_without_auto_resume_it_waits_for_the_command(bench: Cluster, source: Source, out: Path) -> None:
    """D4"""
    client = bench.client
    bench.kill("B")
    settings = {"chunking.auto_resume_downloads": "false", "chunking.resume_check_interval": "0.2"}
    get, job_id = waiting_get(bench, source, out / "copy", settings=settings)
    still = client.run("resume", job_id).last
    assert (still["state"], still["auto_resume"]) == ("waiting", False)
    bench.restart("B")
    assert get.until("peer_back")["name"] == "B"
    assert jobs(client)[job_id]["state"] == "waiting"
    client.run("resume", job_id)
    done = get.result().expect(0)
    assert [event["peer_id"] for event in done.of("resumed")] == [bench.nodes["B"].peer_id]
    assert sha256_of(out / "copy") == source.sha256


def test_what_a_person_sees(bench: Cluster, source: Source, out: Path) -> None:
    client = bench.client
    bench.kill("B")
    get = client.start("get", source.path.name, "-o", out / "copy", json=False, cwd=out)
    wait_for(lambda: "wait for B" in get.stderr, SOON_S, "it to wait")
    (job_id,) = [job for job in jobs(client) if job in get.stderr]
    said = client.run("pause", job_id, json=False).stderr
    assert f"`zchunk resume {job_id}` continues" in said
    wait_for(lambda: f"paused: `zchunk resume {job_id}`" in get.stderr, SOON_S, "it to say so")
    table = client.run("jobs", json=False, cwd=out).lines
    (row,) = [line for line in table if line.endswith(f" {job_id[:8]}")]
    assert row.startswith(f"copy ({source.path.name})")
    assert " paused " in row
    client.run("resume", job_id, json=False)
    client.run("cancel", job_id, json=False)
    ended = get.result().expect(10)
    assert "zchunk: cancelled; nothing of " in ended.stderr


@pytest.mark.row("I2")
def test_from_python(bench: Cluster, source: Source, out: Path) -> None:
    """I2"""
    bench.kill("B")
    get, job_id = waiting_get(bench, source, out / "copy")
    with zchunk.Client(bench.client.home, Settings()) as client:
        (job,) = [job for job in client.jobs() if job.job_id == job_id]
        assert (job.state, job.active, job.missing_names) == ("waiting", True, ("B",))
        assert client.pause(job_id).state == "paused"
        assert client.resume(job_id[:10]).state == "waiting"
        get.send(signal.SIGKILL)
        get.wait()
        bench.restart("B")
        # Nobody runs it: it is run here.
        events: list[str] = []
        done = client.resume(job_id, on_event=lambda event: events.append(event["event"]))
        assert (done.state, done.chunks_completed) == ("complete", 32)
        assert "progress" in events
        with pytest.raises(zchunk.ZchunkError, match="already complete"):
            client.cancel(job_id)
    assert sha256_of(out / "copy") == source.sha256


# -- processes that are gone, or hang ------------------------------------------------------


@pytest.mark.row("D6")
def test_a_killed_download_is_noticed_at_once_and_resumed(bench: Cluster, source: Source, out: Path) -> None:
    """D6, D7: no chunk that was kept is fetched again."""
    client = bench.client
    lost = bench.kill("B")
    get, job_id = waiting_get(bench, source, out / "copy")
    get.send(signal.SIGKILL)
    get.wait()
    job = jobs(client)[job_id]
    assert (job["state"], job["active"]) == ("paused", False)
    assert job["missing_names"] == ["B"]
    paused = client.run("pause", job_id, json=False)
    assert "is not running" in paused.stderr
    resumed = client.start("resume", job_id)
    assert resumed.until("plan")["job_id"] == job_id
    resumed.until("waiting")
    assert jobs(client)[job_id]["state"] == "waiting", "it runs again, elsewhere"
    bench.restart("B")
    done = resumed.result().expect(0).last
    assert set(done["bytes_received_by_peer"]) == {lost.peer_id}
    assert sha256_of(out / "copy") == source.sha256
    assert jobs(client)[job_id]["state"] == "complete"


def test_an_interrupted_download_says_how_to_go_on(bench: Cluster, source: Source, out: Path) -> None:
    client = bench.client
    bench.kill("B")
    get, job_id = waiting_get(bench, source, out / "copy")
    get.send(signal.SIGINT)
    ended = get.result().expect(130)
    assert f"zchunk resume {job_id}" in ended.stderr
    job = jobs(client)[job_id]
    assert (job["state"], job["active"]) == ("paused", False)
    partial = client.get(source.path.name, out / "copy", "--no-wait", code=4)
    assert partial.last["job_id"] == job_id
    assert jobs(client)[job_id]["state"] == "paused"
    assert client.run("cancel", job_id).last["state"] == "cancelled"
    assert list(out.iterdir()) == []


@pytest.mark.row("D6")
def test_a_download_that_hangs_is_told_from_one_that_is_gone(
    bench: Cluster, source: Source, out: Path
) -> None:
    client = bench.client
    bench.kill("B")
    get, job_id = waiting_get(bench, source, out / "copy")
    with bench.frozen(get):
        job = jobs(client)[job_id]
        assert (job["state"], job["active"]) == ("waiting", True)
        assert "does not answer" in job["reason"]
        error = client.run("pause", job_id, code=1).last
        assert error["code"] == "peer_unreachable"
    wait_for(lambda: jobs(client)[job_id]["reason"] is None, SOON_S, "it to answer again")
    client.run("cancel", job_id)
    get.result().expect(10)


def test_a_job_whose_files_were_removed(bench: Cluster, source: Source, out: Path) -> None:
    client = bench.client
    bench.kill("B")
    get, job_id = waiting_get(bench, source, out / "copy")
    get.send(signal.SIGINT)
    get.result().expect(130)
    for path in out.iterdir():
        path.unlink()
    job = jobs(client)[job_id]
    assert (job["state"], job["chunks_status"]["completed"]) == ("failed", 0)
    assert "starts over" in job["reason"]
    bench.restart("B")
    done = client.run("resume", job_id).last
    assert (done["job_id"], done["bytes_received"]) == (job_id, source.size)
    assert sha256_of(out / "copy") == source.sha256


# -- faults in the middle (D10) -------------------------------------------------------------


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "zchunk-test", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def enlarge(path: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(path)], check=True)


def fill(path: Path) -> Path:
    """Not a byte is left; returns what to remove."""
    filler = path / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")


def failed(client: Client, job_id: str, reason: str) -> Event:
    job = jobs(client)[job_id]
    assert (job["state"], job["active"]) == ("failed", False)
    assert reason in job["reason"]
    return job


@pytest.mark.row("D10")
@needs_mount
def test_a_disk_too_small_is_said_at_once_and_resumed(bench: Cluster, source: Source, folder: Path) -> None:
    client = bench.client
    with small_disk(folder / "disk", MIB) as disk:
        error = client.get(source.path.name, disk / "copy", code=8).last
        assert error["code"] == "no_space"
        assert str(disk) in error["message"]
        failed(client, error["job_id"], "no space left")
        assert client.run("resume", error["job_id"], code=8).last["code"] == "no_space"
        enlarge(disk, 8 * MIB)
        done = client.run("resume", error["job_id"]).last
        assert done["job_id"] == error["job_id"]
        assert sha256_of(disk / "copy") == source.sha256
        assert {path.name for path in disk.iterdir()} == {"copy"}
        assert jobs(client)[error["job_id"]]["state"] == "complete"


@pytest.mark.row("D10")
@needs_mount
def test_a_disk_that_fills_up_in_the_middle(bench: Cluster, source: Source, folder: Path) -> None:
    client = bench.client
    bench.kill("B")
    with small_disk(folder / "disk", 4 * MIB) as disk:
        get, job_id = waiting_get(bench, source, disk / "copy")
        filler = fill(disk)
        client.run("pause", job_id, code=None)  # it wants to save its journal
        ended = get.result().expect(8).last
        assert (ended["code"], ended["job_id"]) == ("no_space", job_id)
        job = failed(client, job_id, "no space left")
        assert job["chunks_status"]["completed"] > 0, "what was there is kept"
        filler.unlink()
        bench.restart("B")
        done = client.run("resume", job_id).last
        assert done["bytes_received"] == source.size - ended["bytes_received"]
        assert sha256_of(disk / "copy") == source.sha256


@pytest.mark.row("D10")
def test_a_folder_that_goes_away_in_the_middle(bench: Cluster, source: Source, out: Path) -> None:
    client = bench.client
    bench.kill("B")
    get, job_id = waiting_get(bench, source, out / "copy")
    shutil.rmtree(out)
    client.run("pause", job_id, code=None)
    ended = get.result().expect(9).last
    assert (ended["code"], ended["job_id"]) == ("not_found", job_id)
    assert str(out) in ended["message"]
    failed(client, job_id, str(out))
    bench.restart("B")
    again = client.run("resume", job_id, code=9).last
    assert "create it first" in again["message"]
    out.mkdir()
    done = client.run("resume", job_id).last
    assert (done["job_id"], done["bytes_received"]) == (job_id, source.size)
    assert sha256_of(out / "copy") == source.sha256


@pytest.mark.row("D10")
def test_a_folder_that_may_not_be_written_any_more(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, out: Path
) -> None:
    with Cluster(tmp_path_factory.mktemp("locked"), SMALL) as cluster:
        cluster.start_nodes("A", "B")
        cluster.client = client = cluster.join("user", prefix=UNPRIVILEGED)
        source = fresh(folder, 2 * MIB)
        client.put(source.path)
        cluster.kill("B")
        get, job_id = waiting_get(cluster, source, out / "copy")
        os.chmod(out, 0o555)
        client.run("pause", job_id, code=None)
        ended = get.result().expect(7).last
        assert (ended["code"], ended["job_id"]) == ("not_allowed", job_id)
        job = failed(client, job_id, "not permitted")
        assert job["chunks_status"]["completed"] > 0
        assert client.run("resume", job_id, code=7).last["code"] == "not_allowed"
        os.chmod(out, 0o755)
        cluster.restart("B")
        done = client.run("resume", job_id).last
        assert done["bytes_received"] == source.size - ended["bytes_received"]
        assert sha256_of(out / "copy") == source.sha256
