"""zchunk/cli/jobs.py (SPEC D6): what the commands ask of a job, say, and end with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.unit.node.jobs.test_records import JOB, OTHER, record
from zchunk.cli import cli
from zchunk.cli.common import Invocation
from zchunk.errors import InvalidUsage, NotFound, PeerUnreachable
from zchunk.node.jobs import desk as jobs_desk
from zchunk.node.jobs.records import JobRecord, JobStatus, standing

Answer = Callable[[JobRecord], JobStatus]


class FakeDesk:
    """Knows the jobs JOB and OTHER; each order is answered by `answer`."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, str]] = []
        self.answer: Answer = lambda found: replace(standing(found), state="paused", active=True)

    def find(self, job_id: str) -> JobRecord:
        for known in (JOB, OTHER):
            if known.startswith(job_id):
                return record(Path("/there/film.mkv"), known)
        raise NotFound(f"this home has no job {job_id!r}")

    def all(self) -> list[JobStatus]:
        return [self.answer(self.find(JOB))]

    def _order(self, action: str, found: JobRecord) -> JobStatus:
        self.orders.append((action, found.job_id))
        return self.answer(found)

    def pause(self, found: JobRecord) -> JobStatus:
        return self._order("pause", found)

    def resume(self, found: JobRecord) -> JobStatus:
        return self._order("resume", found)

    def cancel(self, found: JobRecord) -> JobStatus:
        return self._order("cancel", found)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    desk = FakeDesk()
    monkeypatch.setattr(jobs_desk, "desk_of", lambda home: desk)
    return desk


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_a_job_must_be_named(action: str, desk: FakeDesk) -> None:
    assert run(action).exit_code == 2
    assert desk.orders == []


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_an_unknown_job_keeps_all_of_them_untouched(action: str, desk: FakeDesk) -> None:
    result = run(action, JOB, "zz", "--json")
    assert result.exit_code == 9
    assert json.loads(result.stdout)["code"] == "not_found"
    assert desk.orders == []


def test_a_job_named_twice_is_told_once(desk: FakeDesk) -> None:
    assert run("pause", JOB, JOB[:4], OTHER).exit_code == 0
    assert desk.orders == [("pause", JOB), ("pause", OTHER)]


def test_one_that_fails_does_not_keep_the_others_back(desk: FakeDesk) -> None:
    def refuse(found: JobRecord) -> JobStatus:
        if found.job_id == JOB:
            raise PeerUnreachable("it does not answer")
        return replace(standing(found), state="paused", active=True)

    desk.answer = refuse
    result = run("pause", JOB, OTHER)
    assert result.exit_code == 1
    assert [job_id for _, job_id in desk.orders] == [JOB, OTHER]
    assert OTHER in result.stderr
    assert result.stderr.endswith("zchunk: it does not answer\n")


def test_every_failure_is_said_and_the_first_is_the_exit_code(desk: FakeDesk) -> None:
    def refuse(found: JobRecord) -> JobStatus:
        raise InvalidUsage(f"{found.job_id} is over")

    desk.answer = refuse
    result = run("cancel", JOB, OTHER)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"zchunk: {OTHER} is over", f"zchunk: {JOB} is over"]


SAID: list[tuple[str, dict[str, Any], str]] = [
    ("pause", {"state": "paused", "active": True}, f"is paused, with 0 of 4 chunks; `zchunk resume {JOB}`"),
    ("pause", {"state": "paused", "active": False}, "is not running: it is paused, with 0 of 4 chunks"),
    ("pause", {"state": "failed", "active": False}, "is not running: it is failed"),
    ("resume", {"state": "running", "active": True}, "continues in the process that runs it"),
    (
        "resume",
        {"state": "waiting", "active": True, "missing_names": ("LAB-PC3",)},
        "still waits for LAB-PC3",
    ),
    ("cancel", {"state": "cancelled", "active": False}, "is cancelled; nothing is kept"),
]


@pytest.mark.parametrize(("action", "fields", "said"), SAID)
def test_what_is_said(action: str, fields: dict[str, Any], said: str, desk: FakeDesk) -> None:
    desk.answer = lambda found: replace(standing(found), **fields)
    result = run(action, JOB)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"job {JOB} (film.mkv)" in result.stderr
    assert said in result.stderr


def test_as_json_the_job_is_told_with_what_was_asked(desk: FakeDesk) -> None:
    result = run("cancel", JOB, "--json")
    told = json.loads(result.stdout)
    assert (told["event"], told["action"], told["job_id"]) == ("done", "cancel", JOB)
    assert result.stderr == ""


def test_those_that_run_go_on_where_they_are_before_others_are_run_here(
    desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.answer = lambda found: replace(standing(found), state="running", active=found.job_id == OTHER)
    ran: list[tuple[str, int]] = []

    def run_job(found: JobRecord, where: str, on_event: Any) -> dict[str, Any]:
        assert where == f"where {found.job_id} is"
        ran.append((found.job_id, len(desk.orders)))
        return {"event": "done", "job_id": found.job_id}

    class Client(SimpleNamespace):
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def interrupt(self) -> None:
            raise AssertionError("nobody pressed Ctrl-C")

    def locate_job(found: JobRecord, unlock: Any) -> str:
        return f"where {found.job_id} is"

    monkeypatch.setattr(Invocation, "client", lambda self: Client(run_job=run_job, locate_job=locate_job))
    result = run("resume", JOB, OTHER, "--json")
    assert result.exit_code == 0
    assert ran == [(JOB, 2)]
    assert [json.loads(line)["job_id"] for line in result.stdout.splitlines()] == [OTHER, JOB]


def test_the_list(desk: FakeDesk) -> None:
    assert run("jobs").stdout.splitlines()[1].split()[1:] == ["paused", "0", "of", "4", JOB[:8]]
    (listed,) = json.loads(run("jobs", "--json").stdout)
    assert listed["job_id"] == JOB


def test_no_downloads_yet(desk: FakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "all", list)
    result = run("jobs")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "zchunk get" in result.stderr
    assert json.loads(run("jobs", "--json").stdout) == []


@pytest.mark.parametrize("command", [["jobs"], ["pause", JOB], ["resume", JOB], ["cancel", JOB]])
def test_a_home_that_has_not_joined(command: list[str], tmp_path: Path) -> None:
    assert run(*command, "--home", str(tmp_path)).exit_code == 7


def test_the_exit_codes_are_in_the_help() -> None:
    shown = run("--help").stdout
    for line in ("10  cancelled", "130  interrupted", "9  not found"):
        assert line in shown
    assert "exit code 10" in " ".join(run("get", "--help").stdout.split())
