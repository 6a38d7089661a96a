"""tracker/state/peer_records.py: a node's record is as of its last heartbeat, and is not made for each."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from zchunk.protocol.messages import PeerRecord
from zchunk.tracker.state import peer_records
from zchunk.tracker.state.peer_records import PeerRecords

A, B = "a" * 32, "b" * 32


def record(peer_id: str, **more: Any) -> PeerRecord:
    fields = {"free": 100, "chunks": 1, "last_seen_ms": 1000, **more}
    return PeerRecord(
        peer_id=peer_id,
        name="node",
        role="node",
        status=fields.pop("status", "up"),
        incarnation=1,
        endpoints=("tcp://a:1",),
        capacity=1000,
        **fields,
    )


@pytest.fixture
def records() -> PeerRecords:
    made = PeerRecords()
    made[A], made[B] = record(A), record(B)
    return made


def test_a_record_is_as_of_the_last_heartbeat(records: PeerRecords) -> None:
    records.heard(A, 90, 2, 2000)
    records.heard(A, 80, 3, 3000)
    heard = record(A, free=80, chunks=3, last_seen_ms=3000)
    assert records[A] == heard
    assert records[A] is records[A]
    assert list(records.values()) == [heard, record(B)]


def test_a_record_that_is_put_is_newer_than_what_was_heard(records: PeerRecords) -> None:
    records.heard(A, 90, 2, 2000)
    records[A] = record(A, free=5, status="down")
    assert records[A] == record(A, free=5, status="down")


def test_what_is_gone_is_not_heard_of(records: PeerRecords) -> None:
    records.heard(A, 90, 2, 2000)
    del records[A]
    assert list(records) == [B]
    assert len(records) == 1
    assert records.get(A) is None
    records[A] = record(A)
    assert records[A] == record(A)


def test_a_heartbeat_makes_no_record(records: PeerRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(
        peer_records, "replace", lambda old, **changes: (made.append(1), replace(old, **changes))[1]
    )
    for beat in range(100):
        records.heard(A, beat, beat, beat)
        assert records.status(A) == "up"
        assert records.files_unknown(A) == 0
    assert made == []
    assert records[A].free == 99
    assert made == [1]
