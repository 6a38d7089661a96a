"""node/job_events.py: the objects that programs get of a job (SPEC, "Machine-readable output")."""

from __future__ import annotations

import json

from zchunk.errors import NoSpace, TooFewPeers
from zchunk.node.job_events import (
    Downloaded,
    Failed,
    MissingPeer,
    Preparing,
    Progress,
    RefusingPeer,
    Resumed,
    Waiting,
)

JOB = "0123abcd"
PEER = "a" * 32
ROW = {"peer_id": PEER, "name": "LAB-PC3", "chunks": 3, "last_seen": None, "reason": "offline"}
SINCE = "2026-01-31T14:02:06.000Z"


def waiting(*, busy: bool = False) -> Waiting:
    missing = (MissingPeer(PEER, "LAB-PC3", 3, None, "offline"),)
    return Waiting(job_id=JOB, missing=missing, waiting_since=SINCE, chunks_missing=3, busy=busy)


def test_what_is_not_known_is_left_out() -> None:
    assert Progress(
        job_id=JOB, chunks_completed=1, chunks_count=3, bytes=10, size=30, bytes_per_second=5
    ).to_json() == {
        "event": "progress",
        "job_id": JOB,
        "chunks_completed": 1,
        "chunks_count": 3,
        "bytes": 10,
        "size": 30,
        "bytes_per_second": 5,
    }
    assert "job_id" not in Resumed(job_id=None, peer_id=PEER, name="LAB-PC3").to_json(), "a read is no job"


def test_what_is_null_where_it_is_not_known() -> None:
    assert Preparing(job_id=None, target="/f", size=1, bytes_checked=0).to_json()["job_id"] is None
    done = Downloaded(
        job_id=None,
        file_id="f" * 64,
        name="f",
        size=1,
        sha256=None,
        seconds=0.0,
        chunks_count=1,
        target="/f",
        bytes_received=0,
        bytes_received_by_peer={},
        already=True,
    ).to_json()
    assert (done["job_id"], done["sha256"], done["already"]) == (None, None, True)
    assert "chunks_read_back" not in done


def test_waiting_names_its_peers() -> None:
    assert waiting().to_json() == {
        "event": "waiting",
        "job_id": JOB,
        "missing_peers": [PEER],
        "missing": [ROW],
        "waiting_since": SINCE,
        "chunks_missing": 3,
    }


def test_who_waits_for_a_turn_misses_nobody() -> None:
    told = waiting(busy=True).to_json()
    assert (told["missing_peers"], told["busy_peers"], told["missing"]) == ([], [PEER], [ROW])


def test_details_of_a_tracker_stand_in_for_nothing() -> None:
    error = TooFewPeers("2 needed", event="done", chunks_missing=0, online=1)
    told = Waiting(
        job_id=JOB,
        missing=(),
        waiting_since=SINCE,
        chunks_missing=3,
        refusing=(RefusingPeer(PEER, "LAB-PC3", "full"),),
        message="2 needed",
        details=error.details,
    ).to_json()
    assert (told["event"], told["chunks_missing"], told["online"]) == ("waiting", 3, 1)
    assert told["refusing"] == [{"peer_id": PEER, "name": "LAB-PC3", "reason": "full"}]
    assert json.loads(json.dumps(told)) == told, "lists, as JSON has them"


def test_an_error_is_told_as_it_is() -> None:
    error = NoSpace("full", job_id=JOB)
    assert Failed(job_id=JOB, error=error).to_json() == error.to_json()
