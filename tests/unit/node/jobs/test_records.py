"""node/jobs/records.py (SPEC "DownloadJob", D6, D10): records of downloads, and what is true of one."""

from __future__ import annotations

import json
import os
import random
import stat
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from zchunk.content.manifest import IDENTITY, ChunkRow, Manifest
from zchunk.errors import AmbiguousName, NoSpace, NotFound
from zchunk.node import views
from zchunk.node.download.part_file import PartFile, open_part
from zchunk.node.download.reports import partial
from zchunk.node.job_events import MissingPeer, Waiting
from zchunk.node.jobs.records import KEEP_OVER, JobBook, JobRecord, book_of, standing
from zchunk.system import disk

CHUNK = 65536
SIZE = 3 * CHUNK + 1000
JOB, OTHER = "0123456789abcdef", "01ff456789abcdef"
DATA = random.Random(1).randbytes(SIZE)
PIECES = [DATA[at : at + CHUNK] for at in range(0, SIZE, CHUNK)]
MANIFEST = Manifest(
    "film.mkv",
    SIZE,
    sha256(DATA).digest(),
    CHUNK,
    tuple(ChunkRow(len(p), IDENTITY, sha256(p).digest(), blake3(p).digest(), None) for p in PIECES),
)
PEER = "a" * 32


def record(target: Path, job_id: str = JOB, **fields: Any) -> JobRecord:
    values: dict[str, Any] = {
        "job_id": job_id,
        "file_id": MANIFEST.file_id,
        "name": "film.mkv",
        "size": SIZE,
        "chunks_count": 4,
        "target": str(target),
        "created_at": "2026-01-31T14:02:05.123Z",
        "auto_resume": True,
    }
    return JobRecord(**{**values, **fields})


def begun(target: Path, *held: int, job_id: str = JOB) -> PartFile:
    part = open_part(target, MANIFEST, job_id)
    for index in held:
        part.write_chunk(index, PIECES[index])
        part.mark(index)
    part.save()
    return part


@pytest.fixture
def book(tmp_path: Path) -> JobBook:
    return JobBook([tmp_path / "client" / "jobs", tmp_path / "node" / "jobs"])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "film.mkv"


# -- records ----------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_saved(book: JobBook, target: Path) -> None:
    full = record(
        target,
        state="waiting",
        missing_peers=(PEER,),
        missing_names=("LAB-PC3",),
        waiting_since="2026-01-31T14:02:06.000Z",
        reason="why",
        endpoint="unix:/run/a",
    )
    book.save(full)
    assert book.load(JOB) == full
    assert book.all() == [full]


def test_only_the_user_can_read_it(book: JobBook, target: Path) -> None:
    before = os.umask(0)
    try:
        book.save(record(target))
    finally:
        os.umask(before)
    path = book.folders[0] / f"{JOB}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_saving_is_durable(book: JobBook, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(disk, "sync_file", lambda fd: synced.append("file"))
    monkeypatch.setattr(disk, "sync_folder", lambda path: synced.append(path.name))
    book.save(record(target))
    assert synced == ["file", "jobs"]
    assert [path.name for path in book.folders[0].iterdir()] == [f"{JOB}.json"]


def test_a_full_disk_leaves_the_earlier_record(
    book: JobBook, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.save(record(target))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "sync_file", full)
    with pytest.raises(NoSpace):
        book.save(record(target, state="complete"))
    assert book.all() == [record(target)]


def test_a_run_that_ended_can_be_reached_by_nobody(target: Path) -> None:
    running = record(target, endpoint="unix:/run/a")
    ended = running.ended("failed", "2026-02-01T00:00:00.000Z", "why")
    assert ended.endpoint is None
    assert (ended.state, ended.reason) == ("failed", "why")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace(JOB, OTHER),
        lambda text: text.replace('"state": "running"', '"state": 5'),
        lambda text: text.replace('"file_id"', '"fileid"'),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_record_is_passed_over(book: JobBook, target: Path, damage: Any) -> None:
    book.save(record(target))
    book.save(record(target, "f" * 16))
    path = book.folders[0] / f"{JOB}.json"
    path.write_text(damage(path.read_text()))
    assert [found.job_id for found in book.all()] == ["f" * 16]
    assert book.load(JOB) is None


def test_newest_first(book: JobBook, target: Path) -> None:
    for day in (3, 1, 2):
        book.save(record(target, f"{day}" * 16, created_at=f"2026-01-0{day}T00:00:00.000Z"))
    assert [found.job_id[0] for found in book.all()] == ["3", "2", "1"]


def test_the_other_role_s_jobs_are_listed_and_stay_where_they_are(tmp_path: Path, target: Path) -> None:
    JobBook([tmp_path / "node" / "jobs"]).save(record(target))
    book = book_of(tmp_path, tmp_path / "client")
    book.save(record(target, state="complete"))
    assert [found.state for found in book.all()] == ["complete"]
    assert not (tmp_path / "client").exists()
    book.save(record(target, "f" * 16))
    assert (tmp_path / "client" / "jobs" / f"{'f' * 16}.json").exists()


# -- finding ------------------------------------------------------------------------------


def test_a_job_is_found_by_a_prefix_that_is_its_alone(book: JobBook, target: Path) -> None:
    for job_id in (JOB, OTHER, "0123"):
        book.save(record(target, job_id))
    assert book.find(JOB[:6]).job_id == JOB
    assert book.find("01f").job_id == OTHER
    assert book.find("0123").job_id == "0123", "an exact id wins"
    with pytest.raises(AmbiguousName, match=JOB):
        book.find("01")


@pytest.mark.parametrize("wrong", ["", "x", JOB + "0", "../client/jobs/" + JOB, "\0", "x" * 10_000])
def test_what_no_job_begins_with(wrong: str, book: JobBook, target: Path) -> None:
    book.save(record(target))
    with pytest.raises(NotFound) as caught:
        book.find(wrong)
    assert len(caught.value.message) < 500
    assert book.load(wrong) is None


def test_no_jobs_at_all(book: JobBook) -> None:
    assert book.all() == []
    book.prune()


# -- forgetting -----------------------------------------------------------------------------


def test_the_last_jobs_that_are_over_are_kept_and_all_that_are_not(book: JobBook, target: Path) -> None:
    over = [f"{number:016x}" for number in range(KEEP_OVER + 3)]
    for number, job_id in enumerate(over):
        state = "complete" if number % 2 else "cancelled"
        book.save(record(target, job_id).ended(state, f"2026-01-01T00:00:00.{number:03d}Z"))
    for state in ("running", "paused", "failed", "waiting"):
        book.save(record(target, state, state=state))
    book.prune()
    left = {found.job_id for found in book.all()}
    assert left == {*over[3:], "running", "paused", "failed", "waiting"}


# -- what is true -----------------------------------------------------------------------------


@pytest.fixture
def kept(target: Path) -> PartFile:
    part = begun(target, 0, 2)
    part.keep()
    return part


@pytest.mark.row("D6")
@pytest.mark.parametrize("state", ["running", "waiting", "paused", "verifying"])
def test_a_job_whose_process_died_is_paused_with_what_its_journal_has(
    state: str, target: Path, kept: PartFile
) -> None:
    found = standing(record(target, state=state, endpoint="unix:/run/a"))
    assert (found.state, found.active) == ("paused", False)
    assert found.chunks_status == {"pending": 2, "downloading": 0, "completed": 2, "failed": 0}
    assert found.chunks_progress is not None
    assert [found.chunks_progress[str(i)]["status"] for i in range(4)] == [
        "completed",
        "pending",
        "completed",
        "pending",
    ]


def test_a_failed_job_keeps_its_reason_and_what_it_has(target: Path, kept: PartFile) -> None:
    found = standing(record(target).ended("failed", "2026-01-01T00:00:00.000Z", "no space left"))
    assert (found.state, found.reason, found.chunks_completed) == ("failed", "no space left", 2)


def test_an_interrupted_job_says_for_whom_it_waited(target: Path, kept: PartFile) -> None:
    found = standing(record(target, state="waiting", missing_peers=(PEER,), missing_names=("LAB-PC3",)))
    assert (found.missing_peers, found.missing_names, found.waiting_since) == ((PEER,), ("LAB-PC3",), None)


def test_a_job_whose_journal_was_removed_has_nothing(target: Path, kept: PartFile) -> None:
    target.with_name("film.mkv.zjob").unlink()
    found = standing(record(target, state="paused", reason="why"))
    assert (found.state, found.chunks_completed) == ("failed", 0)
    assert found.reason is not None
    assert found.reason.startswith("nothing of it is left")
    assert found.reason.endswith("starts over; it had ended with: why"), "what was kept then, is not now"
    assert JOB in found.reason


def test_a_job_whose_target_another_took_has_nothing(target: Path) -> None:
    begun(target, 0, job_id=OTHER).keep()
    assert standing(record(target)).state == "failed"
    assert standing(record(target, OTHER)).state == "paused"


def test_a_journal_without_its_part_vouches_for_nothing(target: Path, kept: PartFile) -> None:
    target.with_name("film.mkv.zpart").unlink()
    found = standing(record(target))
    assert (found.state, found.chunks_completed) == ("paused", 0)


def test_killed_right_after_the_final_rename_it_is_complete(target: Path) -> None:
    begun(target, 0, 1, 2, 3).finish()
    found = standing(record(target, state="verifying"))
    assert (found.state, found.chunks_completed) == ("complete", 4)
    assert standing(record(target, state="running")).state == "failed", "somebody else's file, perhaps"
    target.write_bytes(b"cut")
    assert standing(record(target, state="verifying")).state == "failed"


def test_killed_right_before_the_final_rename_it_is_paused_though_another_target_is_there(
    target: Path,
) -> None:
    begun(target, 0, 1, 2, 3).keep()
    target.write_bytes(DATA)
    assert standing(record(target, state="verifying")).state == "paused"


def test_what_is_over_stays_so_whatever_is_on_the_disk(target: Path, kept: PartFile) -> None:
    done = standing(record(target, state="complete"))
    assert (done.state, done.chunks_status["completed"]) == ("complete", 4)
    cancelled = standing(record(target, state="cancelled"))
    assert (cancelled.state, cancelled.chunks_status["pending"]) == ("cancelled", 4)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "", "sub/film.mkv"])
def test_a_target_that_cannot_be_looked_at_keeps_nobody_from_the_list(name: str, target: Path) -> None:
    """Its folder may be another user's by now, or its disk another one."""
    target.write_bytes(b"a file where a folder was")
    found = standing(replace(record(target), target=f"{target}/{name}"))
    assert (found.state, found.chunks_completed) == ("failed", 0)


# -- JSON ---------------------------------------------------------------------------------------

#: SPEC "Data".
DOWNLOAD_JOB = {"job_id", "file_id", "name", "target", "state", "chunks_progress", "chunks_status"}
DOWNLOAD_JOB |= {"missing_peers", "waiting_since", "auto_resume"}


def test_the_json_has_the_names_of_the_specification(target: Path, kept: PartFile) -> None:
    shown = json.loads(json.dumps(views.job(standing(record(target)))))
    assert set(shown) >= DOWNLOAD_JOB
    assert shown["chunks_progress"]["0"] == {"status": "completed", "peer_id": None}
    assert shown["target"] == str(target)


@pytest.mark.parametrize(("count", "listed"), [(1000, True), (1001, False)])
def test_above_1000_chunks_the_list_is_left_out(count: int, listed: bool, target: Path) -> None:
    shown = views.job(standing(replace(record(target), chunks_count=count)))
    assert ("chunks_progress" in shown) is listed
    assert shown["chunks_status"]["pending"] == count


def test_a_partial_download_says_how_it_goes_on_whether_its_peers_are_off_or_not() -> None:
    waiting = Waiting(
        job_id=JOB,
        missing=(
            MissingPeer(PEER, "LAB-PC3", 2, None, "unreadable"),
            MissingPeer("e" * 32, "LAB-PC4", 1, None, "offline"),
        ),
        waiting_since="2026-01-31T14:02:06.000Z",
        chunks_missing=3,
        chunks_completed=1,
        chunks_count=4,
    )
    error = partial(waiting, "1 of 4 kept")
    assert str(error) == (
        "1 of 4 kept; 3 wait for LAB-PC3, which cannot read them now, LAB-PC4:"
        f" `zchunk resume {JOB}`, or the same command, continues once they can be fetched"
    )
