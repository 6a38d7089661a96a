"""node/jobs/control.py and node/jobs/desk.py (SPEC D6): a running download that others steer, on
real sockets, and what its record says in every moment."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import msgpack
import pytest
from msgspec import structs

from tests.hostile import zmtp
from tests.unit.node.jobs.test_blocking import DONE
from tests.unit.node.jobs.test_records import JOB, MANIFEST, OTHER, PEER, begun, record
from tests.waiting import wait_for
from zchunk.clock import SystemClock
from zchunk.errors import (
    AlreadyRunning,
    Cancelled,
    Interrupted,
    InvalidUsage,
    MalformedMessage,
    NoSpace,
    NotAllowed,
    NotFound,
    PartialDownload,
    PeerUnreachable,
    StorageFailure,
    UnknownMessage,
    ZchunkError,
)
from zchunk.node.download import leftovers
from zchunk.node.download.actions import JobState
from zchunk.node.download.job_info import load_job
from zchunk.node.download.part_file import PartFile
from zchunk.node.job_events import Failed, JobEvent, MissingPeer, Waiting
from zchunk.node.jobs import control as jobs_control
from zchunk.node.jobs import desk as jobs_desk
from zchunk.node.jobs.control import KeptJob, steer
from zchunk.node.jobs.desk import JobDesk
from zchunk.node.jobs.records import JobBook, JobRecord
from zchunk.protocol import wire
from zchunk.protocol.messages import ErrorReply, GetSnapshot, SteerJob
from zchunk.runtime.loop import Loop, LoopThread, ThreadWorkers
from zchunk.transport.unix_socket import MAX_BYTES, LocalClient
from zchunk.transport.zeromq import ZmqTransport

PATIENCE_S = 30.0


def waiting(*, busy: bool = False) -> Waiting:
    return Waiting(
        job_id=JOB,
        missing=(MissingPeer(PEER, "LAB-PC3", 3, None, "busy" if busy else "offline"),),
        waiting_since="2026-01-31T14:02:06.000Z",
        chunks_missing=3,
        busy=busy,
    )


class FakeDownload:
    """Obeys at once; ends when it is told to, by `end`."""

    def __init__(self, kept: KeptJob, part: PartFile) -> None:
        self.kept = kept
        self.part = part
        self.state = JobState.RUNNING
        self.waiting_since: float | None = None
        self.orders: list[str] = []
        self.too_late = False

    def start(self) -> None:
        self.orders.append("start")

    def stop(self, error: ZchunkError | None = None) -> None:
        self.orders.append("stop")
        self.end(error or Interrupted("interrupted"))

    def pause(self) -> None:
        self._order("pause")
        self._enter(JobState.PAUSED)

    def resume(self) -> None:
        self._order("resume")
        self._enter(JobState.RUNNING)

    def cancel(self) -> None:
        self._order("cancel")
        self.state = JobState.CANCELLED

    def chunk_statuses(self) -> list[tuple[str, str | None]]:
        return [("completed", PEER), ("downloading", PEER), ("pending", None), ("failed", None)]

    def missing_names(self) -> dict[str, str]:
        return {PEER: "LAB-PC3"} if self.state is JobState.WAITING else {}

    def end(self, error: ZchunkError | None) -> None:
        if isinstance(error, Cancelled):
            self.part.abandon()
        else:
            self.part.keep()
        self.kept.emit(DONE if error is None else Failed(job_id=JOB, error=error))

    def _order(self, order: str) -> None:
        if self.too_late:
            raise InvalidUsage("too late")
        self.orders.append(order)

    def _enter(self, state: JobState) -> None:
        self.state = state
        self.kept.state_changed(state)


class Rig:
    """A process that runs one job, in a thread; and a desk, as another process has it."""

    def __init__(self, root: Path) -> None:
        self.events: list[JobEvent] = []
        self.target = root / "out" / "film.mkv"
        self.target.parent.mkdir(exist_ok=True)
        self.book = JobBook([root / "client" / "jobs"])
        self.desk = JobDesk(self.book)
        self.transport, clock = ZmqTransport(), SystemClock()
        self.loop = Loop(self.transport.poller(), clock, "bulk")
        writing = ThreadWorkers(self.loop, 1, "writing")
        self.loop.on_close(writing.close)
        self.failures: list[BaseException] = []
        self.thread = LoopThread(self.loop, self.failures.append)
        bulk: Any = SimpleNamespace(loop=self.loop, pools=SimpleNamespace(writing=writing, hashing=writing))
        self.kept = KeptJob(
            bulk=bulk,
            book=self.book,
            record=record(self.target),
            emit=self.events.append,
        )
        self.part = begun(self.target, 0)
        self.download = FakeDownload(self.kept, self.part)
        self.kept.attach(self.download)
        self.thread.start()

    def start(self) -> JobRecord:
        """Returns the record of the run."""
        self.loop.post(self.kept.start)
        wait_for(lambda: self.download.orders, PATIENCE_S, "the download to be started")
        return self.book.find(JOB)

    def run(self, call: Any) -> None:
        """In the loop's thread; returns when it is done."""
        done = threading.Event()

        def run() -> None:
            call()
            done.set()

        self.loop.post(run)
        assert done.wait(PATIENCE_S)

    def await_end(self) -> JobEvent:
        wait_for(lambda: self.events, PATIENCE_S, "the end to be told")
        return self.events[-1]

    def close(self) -> None:
        self.thread.stop()
        self.part.keep()
        self.transport.close()
        assert self.failures == []


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


# -- a run -------------------------------------------------------------------------------


def test_the_record_is_durable_with_its_endpoint_before_the_download_starts(rig: Rig) -> None:
    seen: list[JobRecord | None] = []
    rig.download.start = lambda: seen.append(rig.book.load(JOB))  # type: ignore[method-assign]
    rig.loop.post(rig.kept.start)
    wait_for(lambda: seen, PATIENCE_S, "the download to be started")
    assert seen[0] is not None
    door = rig.book.folders[0] / f"{JOB}.sock"
    assert seen[0].endpoint == f"unix:{door}"
    assert door.is_socket()
    assert stat.S_IMODE(door.stat().st_mode) == 0o600


def test_a_door_that_cannot_be_made_keeps_no_download_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(folder: Path, name: str) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(jobs_control, "LocalServer", refuse)
    assert rig.start().endpoint is None
    assert "Too many open files" in caplog.text


@pytest.mark.parametrize("failing", ["save", "prune"])
def test_a_run_goes_on_without_a_record_and_says_so_once(
    failing: str, rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: JobRecord) -> NoReturn:
        raise NoSpace("full")

    monkeypatch.setattr(rig.book, failing, full)
    rig.loop.post(rig.kept.start)
    wait_for(lambda: rig.download.orders, PATIENCE_S, "the download to be started")
    rig.run(rig.download.pause)
    rig.run(rig.download.resume)
    rig.run(lambda: rig.download.end(None))
    assert rig.await_end() == DONE
    assert rig.download.orders == ["start", "pause", "resume"]
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"job {JOB} continues without its record: full" in told.getMessage()


def test_a_cancellation_without_a_record_is_done_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dead(rig)

    def full(record: JobRecord) -> NoReturn:
        raise NotAllowed("read-only")

    monkeypatch.setattr(rig.book, "save", full)
    assert rig.desk.cancel(run).state == "cancelled"
    assert list(rig.target.parent.iterdir()) == []


ENDS: list[tuple[ZchunkError | None, str]] = [
    (None, "complete"),
    (Interrupted("Ctrl-C"), "paused"),
    (PartialDownload("some wait"), "paused"),
    (NoSpace("full"), "failed"),
    (StorageFailure("EIO"), "failed"),
    (Cancelled("cancelled"), "cancelled"),
]


@pytest.mark.parametrize(("error", "state"), ENDS, ids=[state for _, state in ENDS])
def test_the_end_is_told_when_its_record_is_durable(error: ZchunkError | None, state: str, rig: Rig) -> None:
    rig.start()
    records: list[JobRecord | None] = []
    emit = rig.events.append
    rig.kept._emit = lambda event: (records.append(rig.book.load(JOB)), emit(event))  # type: ignore[assignment]
    rig.run(lambda: rig.download.end(error))
    rig.await_end()
    (found,) = records
    assert found is not None
    assert (found.state, found.endpoint) == (state, None)
    assert not list(rig.book.folders[0].glob("*.sock"))
    assert found.reason == (error.message if error is not None else None)


def test_an_end_that_cannot_be_recorded_is_told_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.start()

    def full(record: JobRecord) -> NoReturn:
        raise NoSpace("full")

    monkeypatch.setattr(rig.book, "save", full)
    rig.run(lambda: rig.download.end(None))
    assert rig.await_end() == DONE


def test_to_wait_for_a_turn_is_told_and_is_no_waiting_job(rig: Rig) -> None:
    rig.start()
    event = waiting(busy=True)
    rig.run(lambda: rig.kept.emit(event))
    assert rig.events == [event]
    assert rig.book.find(JOB).state == "running"


def test_waiting_is_recorded_with_its_peers(rig: Rig) -> None:
    rig.start()
    event = waiting()
    rig.run(lambda: rig.kept.emit(event))
    found = wait_for(lambda: rig.book.find(JOB).state == "waiting" and rig.book.find(JOB), PATIENCE_S, "it")
    assert (found.missing_peers, found.missing_names) == ((PEER,), ("LAB-PC3",))
    assert rig.events == [event]


# -- orders -----------------------------------------------------------------------------------


def test_pause_resume_and_show_are_answered_with_the_job_as_it_is_then(rig: Rig) -> None:
    rig.start()
    found = rig.desk.find(JOB)
    assert [rig.desk.status(found).state, rig.desk.pause(found).state] == ["running", "paused"]
    assert rig.desk.status(found).state == "paused"
    now = rig.desk.resume(found)
    assert (now.state, now.active) == ("running", True)
    assert rig.download.orders == ["start", "pause", "resume"]
    assert now.chunks_status == {"pending": 1, "downloading": 1, "completed": 1, "failed": 1}
    assert now.chunks_progress == {
        "0": {"status": "completed", "peer_id": PEER},
        "1": {"status": "downloading", "peer_id": PEER},
        "2": {"status": "pending", "peer_id": None},
        "3": {"status": "failed", "peer_id": None},
    }


def test_show_tells_for_whom_it_waits_and_since_when(rig: Rig) -> None:
    rig.start()
    rig.download.state, rig.download.waiting_since = JobState.WAITING, 1_700_000_000.5
    now = rig.desk.status(rig.desk.find(JOB))
    assert (now.missing_peers, now.missing_names) == ((PEER,), ("LAB-PC3",))
    assert now.waiting_since == "2023-11-14T22:13:20.500Z"


def test_a_cancellation_is_answered_when_nothing_is_left(rig: Rig) -> None:
    rig.start()
    answered: list[Any] = []
    asking = threading.Thread(target=lambda: answered.append(rig.desk.cancel(rig.desk.find(JOB))))
    asking.start()
    wait_for(lambda: "cancel" in rig.download.orders, PATIENCE_S, "the order")
    assert rig.desk.status(rig.desk.find(JOB)).state == "cancelled", "it is still busy with it"
    assert not answered
    rig.run(lambda: rig.download.end(Cancelled("cancelled")))
    asking.join(PATIENCE_S)
    assert (answered[0].state, answered[0].chunks_completed) == ("cancelled", 0)
    assert list(rig.target.parent.iterdir()) == []
    assert rig.desk.find(JOB).state == "cancelled"


def test_what_the_process_could_not_delete_is_tried_again_by_whoever_cancels(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.start()
    caught: list[ZchunkError] = []

    def cancel() -> None:
        try:
            rig.desk.cancel(rig.desk.find(JOB))
        except ZchunkError as error:
            caught.append(error)

    def refuse(target: Path, job_id: str) -> NoReturn:
        raise NotAllowed("deleting is not permitted")

    monkeypatch.setattr(leftovers, "discard_job", refuse)
    asking = threading.Thread(target=cancel)
    asking.start()
    wait_for(lambda: "cancel" in rig.download.orders, PATIENCE_S, "the order")
    rig.run(lambda: rig.download.end(NotAllowed("deleting is not permitted")))
    asking.join(PATIENCE_S)
    assert [error.message for error in caught] == ["deleting is not permitted"]
    assert rig.desk.status(rig.desk.find(JOB)).state == "failed", "and is still a job"
    monkeypatch.undo()
    assert rig.desk.cancel(rig.desk.find(JOB)).state == "cancelled"
    assert list(rig.target.parent.iterdir()) == []


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_an_order_that_comes_too_late_is_refused(action: str, rig: Rig) -> None:
    rig.start()
    rig.download.too_late = True
    with pytest.raises(InvalidUsage, match="too late"):
        getattr(rig.desk, action)(rig.desk.find(JOB))
    assert rig.download.orders == ["start"]


# -- who may ---------------------------------------------------------------------------------


def test_another_job_s_order_is_refused(rig: Rig) -> None:
    run = rig.start()
    with pytest.raises(NotFound):
        steer(replace(run, job_id=OTHER), "cancel", PATIENCE_S)
    assert rig.download.orders == ["start"]


GARBAGE = {
    **dict(zip(zmtp.OLD_IDS, zmtp.OLD, strict=True)),
    "ZMTP 3": zmtp.greeting(b"NULL") + zmtp.ready(),
    "noise": b"\xff\x00garbage",
    "no frames": msgpack.packb(["text"]),
    "nothing": msgpack.packb([]),
    "empty frames": msgpack.packb([b""] * 5),
    "many frames": msgpack.packb([b"x"] * 9),
    "a large frame": msgpack.packb([bytes(MAX_BYTES + 1)]),
    "a frame without an end": msgpack.packb([bytes(MAX_BYTES)])[:-1],
    "half a frame": msgpack.packb([bytes(1000)])[:500],
}


@pytest.mark.row("D6")
@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE)
def test_garbage_costs_its_own_connection(said: bytes, rig: Rig) -> None:
    run = rig.start()
    assert run.endpoint is not None
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(PATIENCE_S)
        line.connect(run.endpoint.removeprefix("unix:"))
        with suppress(BrokenPipeError, ConnectionResetError):
            line.sendall(said)
            line.sendall(b"and more, in any case")
            line.shutdown(socket.SHUT_WR)
            assert line.recv(1) == b""
    assert rig.desk.status(rig.desk.find(JOB)).state == "running"
    assert rig.download.orders == ["start"]


def test_what_a_job_does_not_answer_is_refused(rig: Rig) -> None:
    run = rig.start()
    assert run.endpoint is not None
    with LocalClient(run.endpoint, PATIENCE_S) as line:
        answer = wire.decode(line.ask(wire.encode(GetSnapshot(), 7)))
    assert answer.request_id == 7
    assert isinstance(answer.message, ErrorReply)
    assert type(wire.raised(answer.message)) is UnknownMessage


def test_an_unknown_action_cannot_even_be_built() -> None:
    with pytest.raises(ValueError, match="action"):
        SteerJob(job_id=JOB, action="delete")


# -- processes that are gone, or hang ------------------------------------------------------------


def dead(rig: Rig) -> JobRecord:
    """What a kill leaves: a record with an endpoint, the socket's name, the files, and no lock."""
    run = rig.start()
    rig.run(rig.kept._leave)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(run.endpoint).removeprefix("unix:"))
    rig.part._close_writer()
    rig.part._lock.drop()
    return run


@pytest.mark.row("D6")
def test_a_dead_process_is_noticed_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    run, desk = dead(rig), rig.desk
    monkeypatch.setattr(jobs_desk, "SHOW_S", 3600.0)
    monkeypatch.setattr(jobs_desk, "ORDER_S", 3600.0)
    monkeypatch.setattr(jobs_desk, "CANCEL_S", 3600.0)
    for found in (desk.status(run), desk.pause(run), desk.resume(run), *desk.all()):
        assert (found.state, found.active, found.chunks_completed) == ("paused", False, 1)
    assert desk.cancel(run).state == "cancelled"
    assert list(rig.target.parent.iterdir()) == []
    assert desk.cancel(desk.find(JOB)).state == "cancelled"


def test_the_next_run_takes_the_name_that_a_dead_one_left(rig: Rig) -> None:
    run = dead(rig)
    rig.run(rig.kept._listen)
    assert rig.desk.status(run).active
    rig.run(rig.kept._leave)


def test_another_download_to_the_same_target_does_not_make_a_dead_one_active(rig: Rig) -> None:
    run = rig.start()
    other = replace(run, job_id=OTHER, endpoint=str(run.endpoint).replace(JOB, OTHER))
    rig.book.save(other)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(other.endpoint).removeprefix("unix:"))
    assert not rig.desk.status(other).active
    assert not rig.desk.pause(other).active
    assert rig.download.orders == ["start"]


def test_an_earlier_version_s_record_is_of_a_job_that_nothing_runs_here(rig: Rig) -> None:
    run = replace(rig.start(), endpoint="tcp://127.0.0.1:5")
    rig.book.save(run)
    assert not rig.desk.status(run).active


def test_a_process_whose_folder_was_removed_still_obeys(rig: Rig) -> None:
    run = rig.start()
    shutil.rmtree(rig.target.parent)
    assert rig.desk.status(run).active
    assert rig.desk.pause(run).state == "paused"
    assert rig.download.orders == ["start", "pause"]


def test_a_process_that_hangs_is_shown_as_it_was_and_takes_no_orders(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rig.start()
    rig.run(lambda: rig.download.pause())
    wait_for(lambda: rig.book.find(JOB).state == "paused", PATIENCE_S, "its record")
    monkeypatch.setattr(jobs_desk, "SHOW_S", 0.2)
    monkeypatch.setattr(jobs_desk, "ORDER_S", 0.2)
    go_on = threading.Event()

    def busy() -> None:
        go_on.wait(PATIENCE_S)

    rig.loop.post(busy)
    try:
        run = rig.desk.find(JOB)
        found = rig.desk.status(run)
        assert (found.state, found.active) == ("paused", True)
        assert found.reason is not None
        assert f"process {os.getpid()}" in found.reason
        with pytest.raises(PeerUnreachable):
            rig.desk.resume(run)
    finally:
        go_on.set()
    assert rig.desk.status(run).active


def test_an_endpoint_that_another_job_has_by_now_is_no_answer(rig: Rig) -> None:
    """The target is being downloaded to by somebody else, who even got the same name."""
    run = rig.start()
    old = replace(run, job_id=OTHER)
    rig.book.save(old)
    assert rig.desk.status(old).state == "failed"
    assert rig.desk.cancel(old).state == "cancelled"
    assert rig.download.orders == ["start"]
    assert load_job(rig.target.with_name("film.mkv.zjob")) is not None


@pytest.mark.parametrize("wrong", [{"job_id": OTHER}, {"completed": 2}])
def test_an_answer_that_is_not_of_this_job_is_refused(
    wrong: dict[str, Any], rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rig.start()
    right = rig.kept._report
    monkeypatch.setattr(rig.kept, "_report", lambda: structs.replace(right(), **wrong))
    with pytest.raises(MalformedMessage, match=JOB):
        steer(run, "show", PATIENCE_S)


@pytest.mark.parametrize("error", [UnknownMessage, MalformedMessage, NotAllowed, NotFound])
def test_whoever_else_listens_there_is_no_answer(
    error: type[ZchunkError], rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node, a tracker, or a program that is none of ours."""
    run = rig.start()

    def other(*_: Any) -> NoReturn:
        raise error("no such thing here")

    monkeypatch.setattr(jobs_desk, "steer", other)
    assert [found.state for found in rig.desk.all()] == ["paused"]
    assert not rig.desk.pause(run).active


def test_a_job_that_somebody_has_just_taken_up_is_not_deleted_under_his_hands(rig: Rig) -> None:
    rig.book.save(record(rig.target, state="paused"))
    with pytest.raises(AlreadyRunning):
        rig.desk.cancel(rig.desk.find(JOB))
    assert rig.target.with_name("film.mkv.zpart").exists()


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_a_complete_job_takes_no_orders(action: str, rig: Rig) -> None:
    rig.book.save(record(rig.target, state="complete"))
    with pytest.raises(InvalidUsage, match="already complete"):
        getattr(rig.desk, action)(rig.desk.find(JOB))


# -- runs that never began ------------------------------------------------------------------------


def test_a_start_that_failed_is_kept_with_its_reason_under_the_earlier_job_s_id(rig: Rig) -> None:
    rig.part.keep()
    error = NoSpace("no space left")
    rig.desk.not_started(record(rig.target, OTHER), error)
    found = rig.desk.status(rig.desk.find(JOB))
    assert (found.state, found.reason, found.chunks_completed) == ("failed", "no space left", 1)
    assert error.details["job_id"] == JOB
    assert [found.job_id for found in rig.book.all()] == [JOB]


def test_a_start_that_failed_says_why_also_where_the_home_is_full_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(record: JobRecord) -> NoReturn:
        raise NoSpace("the home's disk")

    monkeypatch.setattr(rig.book, "save", full)
    rig.desk.not_started(record(rig.target, OTHER), NotAllowed("the first reason"))


def test_a_start_that_left_nothing_is_no_job(rig: Rig) -> None:
    other = rig.target.with_name("other.mkv")
    rig.desk.not_started(record(other, OTHER), NotAllowed("no"))
    rig.desk.not_started(record(rig.target, OTHER), AlreadyRunning("job runs"))
    assert rig.book.all() == []


def test_a_resumed_job_that_cannot_start_says_why(rig: Rig) -> None:
    other = rig.target.with_name("other.mkv")
    rig.book.save(record(other, state="paused"))
    rig.desk.not_started(record(other), NotFound("the folder is gone"))
    found = rig.book.find(JOB)
    assert (found.state, found.reason) == ("failed", "the folder is gone")
    assert MANIFEST.file_id == found.file_id
