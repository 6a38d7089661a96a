"""zchunk/cli/render.py, and the JSON of files.py, put.py, get.py: hostile names, plans, jobs as shown."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from zchunk.cli import files, render, transfers
from zchunk.cli.progress import MAX_ROWS, JobView, ProgressLine
from zchunk.cli.render import PlanView, waiting_text
from zchunk.cli.table import print_table
from zchunk.cli.text import visible
from zchunk.content.manifest import IDENTITY, ChunkRow, Manifest
from zchunk.node import views
from zchunk.node.bulk.location import MAX_LISTED, Location
from zchunk.node.jobs.records import JobStatus
from zchunk.node.manager import PutOptions
from zchunk.node.views import PeerShare
from zchunk.protocol import columns
from zchunk.protocol.messages import FileRecord, PeerRecord, Plan, Planned

A, B, C = ("a" * 32, "b" * 32, "c" * 32)
HOSTILE = 'x\n\r\t\x1b[2J\x07\x9b31m\u202e\u200b\u2028\udc80"[bold red]:smile:'


def peer(peer_id: str, name: str = "", status: str = "up") -> PeerRecord:
    return PeerRecord(
        peer_id=peer_id,
        name=name or f"PC-{peer_id[0]}",
        role="node",
        status=status,
        incarnation=1,
        endpoints=("tcp://10.0.0.1:7710", "tcp://10.0.0.2:7710"),
        capacity=10**10,
        free=10**9,
        chunks=7,
        last_seen_ms=1_700_000_000_123,
    )


# -- safe text ----------------------------------------------------------------------------------


@pytest.mark.row("S4")
def test_hostile_names_are_escaped() -> None:
    shown = visible(HOSTILE)
    assert shown.isprintable()
    assert shown.startswith("x\\n\\r\\t\\x1b[2J\\x07\\x9b31m\\u202e\\u200b\\u2028\\udc80")


@pytest.mark.parametrize("name", ["scan.tif", "Übung 漢字 🙂.txt", 'a"b\\c'])
def test_plain_names_stay(name: str) -> None:
    assert visible(name) == name


def test_a_table_shows_hostile_cells_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "SIZE"), [(HOSTILE, "1 B"), ("[red]b", "22 B")], right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() and line == line.rstrip() for line in lines)
    assert "[bold red]:smile:" in lines[1]
    assert lines[2].startswith("[red]b")


def test_a_long_name_is_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME",), [("n" * 500,)])
    assert "n" * 500 in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (31_457_280, "31.5 MB"),
        (10**9, "1 GB"), (999_999_999, "1 GB"), (999_400_000, "999 MB"), (5 * 10**15, "5000 TB"),
    ],
)  # fmt: skip
def test_sizes(size: int, text: str) -> None:
    assert render.size_text(size) == text


def test_settings_are_shown_in_binary_units() -> None:
    texts = [render.binary_text(n) for n in (2**30, 10 * 2**20, 65536, 5000)]
    assert texts == ["1 GiB", "10 MiB", "64 KiB", "5,000 bytes"]


def test_durations_are_shown() -> None:
    assert [render.duration_text(s) for s in (8.4, 185, 7385)] == ["8 s", "3:05", "2:03:05"]


# -- waiting (SPEC D4) --------------------------------------------------------------------------


def waiting(chunks: int, *missing: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": "waiting",
        "missing_peers": [m["peer_id"] for m in missing],
        "missing": list(missing),
        "chunks_missing": chunks,
    }


def missing(name: str, chunks: int, seen: str | None) -> dict[str, Any]:
    return {"peer_id": A, "name": name, "chunks": chunks, "last_seen": seen}


@pytest.mark.row("D4")
def test_for_whom_a_download_waits_in_local_time() -> None:
    moment = datetime.now(timezone.utc)
    clock = moment.astimezone().strftime("%H:%M")
    event = waiting(9, missing("LAB-PC3", 9, moment.isoformat().replace("+00:00", "Z")))
    assert waiting_text(event) == f"9 chunks wait for LAB-PC3, last seen {clock}"


def test_who_waits_for_its_turn_is_told_so() -> None:
    row = {"peer_id": A, "name": "LAB-PC3", "chunks": 9, "last_seen": None, "reason": "busy"}
    assert waiting_text(waiting(9, row)) == "9 chunks wait for LAB-PC3, which is busy with others"


def test_another_day_s_time_has_its_date() -> None:
    moment = datetime.now(timezone.utc) - timedelta(days=3)
    text = waiting_text(waiting(1, missing("P", 1, moment.isoformat())))
    assert text == f"1 chunk waits for P, last seen {moment.astimezone():%Y-%m-%d %H:%M}"


def test_many_peers_and_none() -> None:
    rows = [missing(f"P{i}", i, None) for i in range(1, 8)]
    text = waiting_text(waiting(28, *rows))
    assert text.startswith("28 chunks wait for P1 (1, last seen never), P2 (2, ")
    assert text.endswith("P5 (5, last seen never) and 2 more peers")
    both = waiting_text(waiting(3, missing("P", 3, None), missing("Q", 3, None)))
    assert both == "3 chunks wait for P (3, last seen never) or Q (3, last seen never)"
    assert waiting_text(waiting(3)) == "3 chunks wait for a peer"


# -- progress -----------------------------------------------------------------------------------


def progress(completed: int, moved: int = 0, speed: int = 0) -> dict[str, Any]:
    return {
        "event": "progress",
        "chunks_completed": completed,
        "chunks_count": 10,
        "bytes": moved,
        "size": 1000,
        "bytes_per_second": speed,
    }


def plan_event(kept: int) -> dict[str, Any]:
    return {"event": "plan", "chunks_count": 10, "chunks_kept": kept}


def test_a_job_counts_kept_chunks_and_bytes_under_way() -> None:
    job = JobView(1000, 0, begun=False)
    assert (job.fraction, job.state_text, job.chunks_text) == (0, "starting", "")
    job.take(plan_event(4))
    assert job.fraction == 0.4
    job.take(progress(5, 250, 50))
    assert (job.fraction, job.state_text) == (0.65, "7 s left")
    assert job.line() == " 65%  5 of 10 chunks, 50 B/s, 7 s left"
    job.take(progress(9, 5000, 50))
    assert job.fraction == 0.99
    job.take(progress(10, 600, 50))
    assert (job.fraction, job.state_text) == (1.0, "finishing")


def test_a_job_waits_until_a_peer_is_back_or_chunks_arrive() -> None:
    job = JobView(1000, 10)
    job.take(progress(3))
    job.take(waiting(5, missing("P", 5, None)))
    job.take(progress(5))  # as many as the waiting event knew of
    assert (job.state_text, job.speed_text) == ("waiting", "")
    job.take({"event": "resumed", "peer_id": A, "name": "P"})
    assert job.waiting is None
    job.take(waiting(5, missing("P", 5, None)))
    job.take(progress(6))
    assert job.waiting is None


def test_a_paused_job_says_so_until_it_goes_on() -> None:
    job = JobView(1000, 10)
    job.take(progress(3, 300, 50))
    job.take({"event": "paused", "job_id": "1", "chunks_completed": 3, "chunks_count": 10})
    job.take(progress(4, 400, 50))  # what was on its way
    assert (job.state_text, job.speed_text) == ("paused", "")
    job.take({"event": "continued", "job_id": "1", "chunks_completed": 4, "chunks_count": 10})
    assert job.state_text == "12 s left"


def test_paused_is_said_once_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    job = JobView(1000, 10)
    event = {"event": "paused", "job_id": "0123abcd", "chunks_completed": 3, "chunks_count": 10}
    with ProgressLine(job, "get") as line:
        for now in (0.0, 60.0, 120.0):
            job.take(event)
            transfers._show_event(line, event)
            line.show(now)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("paused: `zchunk resume 0123abcd` continues")


@pytest.mark.parametrize(("auto_resume", "hint"), [(True, "Ctrl-C stops"), (False, "zchunk resume 0123abcd")])
def test_a_waiting_download_says_how_it_goes_on(
    auto_resume: bool, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    event = waiting(5, missing("P", 5, None)) | {"auto_resume": auto_resume, "job_id": "0123abcd"}
    with ProgressLine(JobView(1000, 10), "get") as line:
        transfers._show_event(line, event)
        transfers._show_event(line, {"event": "peer_back", "job_id": "0123abcd", "peer_id": A, "name": "P"})
    first, second = capsys.readouterr().err.splitlines()
    assert hint in first
    assert second == "P is back: `zchunk resume 0123abcd` continues"


# -- the table of jobs ------------------------------------------------------------------------


def job_status(state: str, **fields: Any) -> JobStatus:
    values: dict[str, Any] = {
        "job_id": "0123456789abcdef",
        "file_id": "f" * 64,
        "name": "film.mkv",
        "target": "/there/film.mkv",
        "state": state,
        "chunks_progress": None,
        "chunks_status": {"pending": 5, "downloading": 0, "completed": 1995, "failed": 0},
        "missing_peers": (),
        "waiting_since": None,
        "auto_resume": True,
        "size": 5,
        "chunks_count": 2000,
        "created_at": "2026-01-31T14:02:05.123Z",
    }
    return JobStatus(**{**values, **fields})


def test_the_table_of_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    render.job_table(
        [job_status("running", active=True), job_status("failed", name=HOSTILE, reason="no space\nleft")]
    )
    heading, one, two, empty, note = capsys.readouterr().out.splitlines()
    assert heading.split() == ["TARGET", "STATE", "CHUNKS", "JOB"]
    assert one.split() == ["/there/film.mkv", "running", "1,995", "of", "2,000", "01234567"]
    assert two.isprintable()
    assert two.startswith("/there/film.mkv (x")
    assert (empty, note) == ("", "01234567  no space\\nleft")


WAITS = {"missing_names": ("LAB-PC3",), "waiting_since": "2020-01-31T14:02:06.000Z", "active": True}


@pytest.mark.parametrize(
    ("state", "fields", "said"),
    [
        ("running", {"active": True}, []),
        ("complete", {}, []),
        ("cancelled", {}, []),
        ("waiting", WAITS, ["waiting for LAB-PC3 since 2020-01-31", "continues by itself"]),
        ("waiting", {**WAITS, "auto_resume": False}, ["LAB-PC3", "off", "`zchunk resume`"]),
        ("paused", {"active": True}, ["`zchunk resume` continues"]),
        ("paused", {}, ["interrupted: `zchunk resume` continues"]),
        ("failed", {"reason": "why"}, ["why"]),
        ("running", {"active": True, "reason": "does not answer"}, ["does not answer"]),
    ],
)
def test_why_a_job_stands(state: str, fields: dict[str, Any], said: list[str]) -> None:
    note = render.job_note(job_status(state, **fields))
    assert all(part in note for part in said)
    assert bool(note) is bool(said)


def test_an_empty_file_is_no_division_by_zero() -> None:
    assert JobView(0, 0).fraction == 1.0


def test_without_a_terminal_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    job = JobView(1000, 10)
    with ProgressLine(job, "get") as line:
        for now in (0.0, 0.1, 4.9, 5.0, 5.1):
            line.show(now)
        line.note("same\n")
        line.note("same\n")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["get   0%  0 of 10 chunks, 0 B/s"] * 2 + ["same\\n"]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_and_hostile_notes_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    job = JobView(1000, 10)
    with ProgressLine(job, "get") as line:
        job.take(progress(5, 500, 100))
        line.note("\x1b[2Jevil[/]")
        line.show(0.0)
    drawn = terminal.getvalue()
    assert "\\x1b[2Jevil[/]" in drawn
    assert "\x1b[2J" not in drawn
    assert "50%" in drawn
    assert "\x1b[3" not in drawn, "no colour"


def test_nothing_moves_on_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for term, expected in (("dumb", False), ("", False), ("xterm", True)):
        monkeypatch.setenv("TERM", term)
        assert render.moves(Terminal()) is expected


# -- the plan (SPEC U9) -------------------------------------------------------------------------


def planned(rows: Sequence[tuple[int, ...]], replicas: int, distributed: bool = True) -> Any:
    """A planned upload of 10-byte chunks, the last one of 5."""
    size = max(0, 65536 * len(rows) - 5)
    plan = Plan(
        upload_id="0" * 32,
        size=size,
        chunk_size=65536,
        distribute=distributed,
        replicas=replicas,
        min_peers=2,
        strategy="round_robin",
        own_peer=None,
        avoid=(),
        held_peers=(),
        only=b"",
        held=b"",
    )
    answer = Planned(
        strategy="round_robin",
        distributed=distributed,
        replicas=replicas,
        peers=(peer(A), peer(B), peer(C)),
        assignment=columns.pack(2, (at for row in rows for at in row)),
    )
    options = PutOptions()
    return SimpleNamespace(name="scan.tif", size=size, plan=plan, planned=answer, options=options)


def upload_plan(of: Any) -> dict[str, Any]:
    return views.plan_event(of.name, of.plan, of.planned, encrypted=False)


ONE_COPY = [(0,), (1,), (2,), (0,), (1,), (2,), (0,)]


def test_the_plan_in_json() -> None:
    event = json.loads(json.dumps(upload_plan(planned(ONE_COPY, 1))))
    assert event["event"] == "plan"
    assert event["peers"] == [
        {"peer_id": A, "name": "PC-a", "chunks": 3, "bytes": 3 * 65536 - 5},
        {"peer_id": B, "name": "PC-b", "chunks": 2, "bytes": 2 * 65536},
        {"peer_id": C, "name": "PC-c", "chunks": 2, "bytes": 2 * 65536},
    ]
    assert event["map"] == {"0": A, "1": B, "2": C, "3": A, "4": B, "5": C, "6": A}
    assert [row["chunks_lost"] for row in event["consequence"]] == [3, 2, 2]
    assert (event["is_chunked"], event["chunks_count"], event["replicas"]) == (True, 7, 1)


def test_a_large_plan_has_no_map() -> None:
    limit = MAX_LISTED
    assert "map" in upload_plan(planned([(0,)] * limit, 1))
    assert "map" not in upload_plan(planned([(0,)] * (limit + 1), 1))


def view(rows: Sequence[tuple[int, ...]], replicas: int, **changed: Any) -> PlanView:
    made = planned(rows, replicas)
    shares = tuple(s for s in views.peer_shares(made.plan, made.planned) if s.chunks)
    fields: dict[str, Any] = {
        "name": "scan.tif",
        "size": 100,
        "chunk_size": 65536,
        "chunks_count": len(rows),
        "threshold": 2**30,
        "distributed": True,
        "strategy": "round_robin",
        "replicas": replicas,
        "online": ("PC-a", "PC-b", "PC-c"),
        "shares": shares,
    }
    return PlanView(**(fields | changed))


@pytest.mark.row("U9")
def test_what_stays_readable_with_one_copy() -> None:
    first, hint = render.consequence_lines(view(ONE_COPY, 1))
    assert "4 to 5 of 7 chunks stay readable" in first
    assert "but not the whole file" in first
    assert "--replicas 2" in hint


def test_what_stays_readable_with_two_copies() -> None:
    rows = [(0, 1), (1, 2), (2, 0)]
    assert render.consequence_lines(view(rows, 2)) == [
        "With any one of these peers off, the whole file stays readable."
    ]


def test_what_stays_readable_of_a_file_on_one_peer() -> None:
    (line,) = render.consequence_lines(view([(1,), (1,)], 1, distributed=False))
    assert line == "While PC-b is off, no part of the file is readable."


@pytest.mark.row("U9")
def test_the_dialog_names_peers_shares_and_consequence(capsys: pytest.CaptureFixture[str]) -> None:
    render.plan_dialog(view(ONE_COPY, 1, name="a\nb"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "a\\nb" in err
    assert "needs distribution" in err
    assert "3 peers: PC-a, PC-b, PC-c" in err
    assert "first 0, every 3rd, 3 chunks" in err
    assert "3 of 7 chunks cannot be read" in err


def test_the_dialog_shows_copies_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    share = PeerShare(A, "PC-a", "0-9", 15, 5, 1000, 0)
    render.plan_dialog(view([(0, 1)], 2, shares=(share,)))
    lines = capsys.readouterr().err.splitlines()
    row = next(line for line in lines if line.startswith("PC-a"))
    assert row.split() == ["PC-a", "0-9", "5", "1", "kB", "everything", "stays", "readable"]


# -- info, ls, peers ----------------------------------------------------------------------------


def located(holders: list[list[tuple[str, int]]], replicas: int = 1, down: tuple[str, ...] = ()) -> Location:
    rows = tuple(ChunkRow(65536, IDENTITY, bytes([i]) * 32, bytes(32), None) for i in range(len(holders)))
    manifest = Manifest("x\ny", 65536 * len(rows), b"s" * 32, 65536, rows)
    record = FileRecord(
        file_id="f" * 64,
        name="x\ny",
        size=manifest.size,
        sha256=b"s" * 32,
        chunk_size=65536,
        chunks_count=len(rows),
        replicas=replicas,
        is_chunked=True,
        is_distributed=True,
        minimum_peers_required=2,
        created_at_ms=1_700_000_000_000,
    )
    peers = {p: peer(p, status="down" if p in down else "up") for p in (A, B, C)}
    return Location(record, manifest, peers, holders)


FILE_KEYS = {
    "file_id", "name", "size", "sha256", "created_at", "replicas", "is_chunked", "chunk_size",
    "chunks_count", "is_distributed", "minimum_peers_required",
}  # fmt: skip


def test_file_info_has_the_names_of_the_specification() -> None:
    info = views.file_info(located([[(A, 1)]]).file)
    assert set(info) == FILE_KEYS
    assert info["name"] == "x\ny"
    assert info["sha256"] == (b"s" * 32).hex()
    assert info["created_at"] == "2023-11-14T22:13:20.000Z"


def test_the_map_names_the_earliest_live_holder_then_the_lowest_id() -> None:
    where = located([[(A, 1), (B, 2)], [(C, 5), (B, 5)], [(A, 1)]], down=(A,))
    info = views.file_details(where)
    assert info["distribution_map"] == {"0": B, "1": B}
    assert set(info) == FILE_KEYS | {"chunks_hashes", "distribution_map", "chunks", "health", "encryption"}
    assert list(info["chunks_hashes"]) == [(bytes([i]) * 32).hex() for i in range(3)]
    rows = list(info["chunks"])
    assert len(rows) == 5
    assert rows[0] == {
        "file_id": "f" * 64,
        "chunk_index": 0,
        "peer_id": A,
        "chunk_hash": "00" * 32,
        "stored_at": "1970-01-01T00:00:00.001Z",
        "is_available": False,
    }


@pytest.mark.row("R9")
@pytest.mark.parametrize(("down", "health"), [((), "complete"), ((A,), "degraded"), ((A, B), "unavailable")])
def test_health(down: tuple[str, ...], health: str) -> None:
    assert views.health(located([[(A, 1), (B, 1)], [(B, 1), (C, 1)]], replicas=2, down=down)) == health


def test_an_empty_file_is_complete() -> None:
    assert views.health(located([])) == "complete"


def test_info_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    files._show_info(located([[(A, 1)], [(B, 1)]], down=(A,)))
    out = capsys.readouterr().out
    assert "x\\ny" in out
    assert "unavailable: 1 of 2 chunks wait" in out
    assert ["PC-a", "1", "down"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([[(B, 1)], []], "no peer has 1 of 2 chunks any more (upload the file again from its source)"),
        (
            [[(A, 1)], [], []],
            "1 of 3 chunks wait for a peer that is off; no peer has 2 of 3 chunks any more (upload",
        ),
    ],
)
def test_what_nobody_has_waits_for_no_peer(
    capsys: pytest.CaptureFixture[str], rows: list[list[tuple[str, int]]], why: str
) -> None:
    files._show_info(located(rows, down=(A,)))
    out = capsys.readouterr().out
    assert f"unavailable: {why}" in " ".join(out.split())


def test_peers_in_json() -> None:
    assert views.peer(peer(A, "LAB\n1")) == {
        "peer_id": A,
        "name": "LAB\n1",
        "status": "up",
        "unsure": False,
        "endpoint": "tcp://10.0.0.1:7710",
        "capacity": 10**10,
        "free": 10**9,
        "chunks": 7,
        "last_seen": "2023-11-14T22:13:20.123Z",
        "files_unknown": 0,
        "refuses": None,
    }
    refusing = replace(peer(A, "LAB"), refuses="its disk is mounted read-only")
    assert views.peer(refusing)["refuses"] == "its disk is mounted read-only"


# -- a download's peers ---------------------------------------------------------------------------


def watched() -> JobView:
    job = JobView(1000, 10)
    rows = [(A, "PC-A", 6), (B, "PC-B", 4), (C, "x" * 100, 0)]
    both = {"status": "up", "chunks": 9}
    peers = [{"peer_id": p, "name": name, "chunks_wanted": n, **both} for p, name, n in rows]
    job.take({"event": "plan", "chunks_count": 10, "chunks_kept": 0, "peers": peers})
    return job


def progressed(completed: int, **more: Any) -> dict[str, Any]:
    return {"event": "progress", "chunks_completed": completed, "bytes": 0, "bytes_per_second": 0} | more


def test_each_peer_has_its_chunks_and_their_state() -> None:
    job = watched()
    counts = {A: {"completed": 2, "in_progress": 1}, "unknown": {"completed": 1, "in_progress": 0}}
    job.take(progressed(3, peers=counts))
    assert [job.peers[p].chunks_text for p in (A, B)] == ["2 of 6 chunks", "0 of 4 chunks"]
    assert [job.peers[p].state_text for p in (A, B)] == ["1 in progress", ""]
    assert len(job.peers[C].name) <= 24
    job.take(progressed(4, peers={A: {"completed": 3, "in_progress": 0}}))
    assert job.peers[A].state_text == ""


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("unreachable", "4 waiting: cannot be reached"),
        ("offline-store", "4 waiting: its disk is offline"),
        ("unreadable", "4 waiting: cannot read them now"),
        ("refuses", "4 waiting: refuses chunks now"),
    ],
)
def test_a_peer_that_is_waited_for_says_why_until_it_is_back(reason: str, text: str) -> None:
    job = watched()
    row = {"peer_id": B, "name": "PC-B", "chunks": 4, "last_seen": None, "reason": reason}
    job.take({"event": "waiting", "chunks_missing": 4, "missing": [row]})
    assert job.peers[B].state_text == text
    assert job.peers[A].state_text == ""
    job.take({"event": "resumed", "peer_id": B, "name": "PC-B"})
    assert job.peers[B].state_text == ""


def test_an_upload_that_a_peer_refuses_says_who_and_why_and_not_that_it_is_off() -> None:
    row = {"peer_id": B, "name": "PC-B", "chunks": 4, "last_seen": None, "reason": "refuses"}
    event = {"event": "waiting", "chunks_missing": 4, "missing": [row], "message": "PC-B is up, but refuses"}
    assert waiting_text(event) == "PC-B is up, but refuses"
    away = {**row, "name": "PC-C", "reason": "unreachable"}
    assert waiting_text({**event, "missing": [row, away]}) == (
        "4 chunks wait for PC-C, which is up, but cannot be reached from here"
    )


def test_a_peer_whose_turn_was_waited_for_says_so_until_a_chunk_comes_from_it() -> None:
    job = watched()
    row = {"peer_id": B, "name": "PC-B", "chunks": 4, "last_seen": None, "reason": "busy"}
    job.take({"event": "waiting", "busy_peers": [B], "chunks_missing": 4, "missing": [row]})
    assert (job.state_text, job.peers[B].state_text) == ("waiting", "4 waiting: busy with others")
    job.take(progressed(7, peers={B: {"completed": 1, "in_progress": 1}}))
    assert (job.state_text, job.peers[B].state_text) == ("", "1 in progress")


def test_who_holds_the_memory_of_a_node_is_shown() -> None:
    fields = {"name": "LAB-PC3", "held_by_name": "laptop"}
    at = {"topic": "budget.held", "seq": 7, "time": "2020-01-31T10:00:00Z"}
    assert render.event_line(at | fields).endswith("#7 budget.held LAB-PC3 (by laptop)")


def test_rows_of_peers_under_the_bar(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """On a terminal; no more of them than fit one."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    many = [
        {"peer_id": f"{n:032x}", "name": f"PC-{n:02}", "status": "down", "chunks": 1, "chunks_wanted": 1}
        for n in range(30)
    ]
    job = JobView(1000, 30)
    with ProgressLine(job, "get") as line:
        job.take({"event": "plan", "chunks_count": 30, "chunks_kept": 0, "peers": many})
        line.show(1.0)
    drawn = capsys.readouterr().err
    assert "PC-00" in drawn
    assert "1 waiting: off" in drawn
    assert f"PC-{MAX_ROWS - 1:02}" in drawn
    assert f"PC-{MAX_ROWS:02}" not in drawn
