"""A damaged copy is found out and gone, and tools hear how files are (SPEC D8, I1, R9)."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from tests.integration.cluster import MIB, PATIENCE_S, Cluster, flip_bit, make_file, sha256_of
from tests.integration.conftest import SMALL
from tests.integration.raw import Line, keys_of
from tests.waiting import wait_for


class Events:
    """What the tracker publishes, in a thread: a tool with pyzmq and msgpack alone."""

    def __init__(self, line: Line) -> None:
        self.seen: list[dict[str, Any]] = []
        self._socket = line.raw
        self._stopping = threading.Event()
        self._failure: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if self._socket.poll(50):
                    self.seen.append(msgpack.unpackb(self._socket.recv_multipart()[1])["f"])
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self._failure.put(error)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        if not self._failure.empty():
            raise self._failure.get()

    def until(self, matches: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            return next(filter(matches, list(self.seen)), None)

        event: dict[str, Any] = wait_for(found, PATIENCE_S, what)
        return event

    def health_of(self, file_id: str) -> list[tuple[str, str]]:
        told = [event for event in list(self.seen) if event["fields"].get("file_id") == file_id]
        return [(e["topic"], e["fields"]["health"]) for e in told if "health" in e["fields"]]


@contextmanager
def listening(cluster: Cluster) -> Iterator[Events]:
    """Behind this every event is heard: a first one was."""
    keys, tracker = keys_of(cluster.client.home / "client"), keys_of(cluster.tracker.home / "tracker")
    with Line(zmq.SUB, cluster.tracker.events, keys, tracker.public) as line:
        events = Events(line)
        try:
            events.until(lambda event: event["topic"] == "tick", "a tick")
            yield events
        finally:
            events.close()


@pytest.fixture(scope="module")
def trio_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("trio"), SMALL) as cluster:
        cluster.start_nodes("A", "B", "C")
        yield cluster


@pytest.fixture
def trio(trio_cluster: Cluster) -> Iterator[Cluster]:
    """Like `bench`, but of this module alone: copies go for good here."""
    yield trio_cluster
    trio_cluster.mend()


def located(cluster: Cluster, file_id: str, sha256: str) -> set[str]:
    rows = cluster.client.info(file_id)["chunks"]
    return {row["peer_id"] for row in rows if row["chunk_hash"] == sha256}


@pytest.mark.row("D8")
def test_a_flipped_bit_is_found_by_its_own_node_after_a_report(trio: Cluster, folder: Path) -> None:
    source = make_file(folder / "twice.bin", 3 * MIB)
    file_id = trio.client.put(source.path, "--replicas", "2").last["file_id"]
    hashes = trio.client.info(file_id)["chunks_hashes"]
    liar = trio.nodes["B"]
    bad = sorted(liar.holds(hashes))
    for sha256 in bad:
        flip_bit(liar.chunk_path(sha256), int(sha256[:3], 16))
    with listening(trio) as events:
        result = trio.client.get(file_id, folder / "copy")
        assert sha256_of(folder / "copy") == source.sha256
        reported = sorted({hashes[event["chunk_index"]] for event in result.of("corrupt")})
        assert reported, "no chunk was asked of B"
        wait_for(lambda: not liar.holds(reported), PATIENCE_S, "B drops what it finds damaged")
        told = events.until(lambda e: e["topic"] == "file.degraded", "the file is told to be degraded")
        assert told["fields"]["file_id"] == file_id
        wait_for(
            lambda: all(liar.peer_id not in located(trio, file_id, sha256) for sha256 in reported),
            PATIENCE_S,
            "the tracker locates them there no more",
        )
        corrupt = [event["fields"] for event in events.seen if event["topic"] == "chunk.corrupt"]
        assert {(c["peer_id"], c["sha256"]) for c in corrupt} == {(liar.peer_id, s) for s in reported}
        assert {c["reports"] for c in corrupt} == {1}, "nobody else had to report it"
    info = trio.client.info(file_id)
    assert info["health"] == "degraded"
    in_trash = {path.name[11:] for path in (liar.store / "trash" / "corrupt").iterdir()}
    assert in_trash == set(reported)
    # What nobody was sent is not read again: only reports make a node look.
    assert liar.holds(bad) == set(bad) - set(reported)


@pytest.mark.row("R2")
@pytest.mark.parametrize("how", ["cut short", "gone"])
def test_a_file_that_its_node_cannot_read_is_found_without_a_report(
    how: str, trio: Cluster, folder: Path
) -> None:
    source = make_file(folder / f"{how}.bin", 3 * MIB)
    file_id = trio.client.put(source.path, "--replicas", "2").last["file_id"]
    hashes = trio.client.info(file_id)["chunks_hashes"]
    broken = trio.nodes["A"]
    damaged = sorted(broken.holds(hashes))
    for sha256 in damaged:
        if how == "gone":
            broken.chunk_path(sha256).unlink()
        else:
            os.truncate(broken.chunk_path(sha256), 100)
    with listening(trio) as events:
        trio.client.get(file_id, folder / "copy")
        assert sha256_of(folder / "copy") == source.sha256
        wait_for(
            lambda: any(broken.peer_id not in located(trio, file_id, sha256) for sha256 in damaged),
            PATIENCE_S,
            "the tracker hears of one that is lost",
        )
        wait_for(lambda: events.health_of(file_id), PATIENCE_S, "the file is told to be degraded")
        assert events.health_of(file_id) == [("file.degraded", "degraded")]


@pytest.mark.row("D8")
def test_a_node_that_was_killed_learns_of_the_report_when_it_is_back(trio: Cluster, folder: Path) -> None:
    source = make_file(folder / "away.bin", 2 * MIB)
    file_id = trio.client.put(source.path, "--replicas", "2").last["file_id"]
    hashes = trio.client.info(file_id)["chunks_hashes"]
    liar = trio.nodes["B"]
    for sha256 in sorted(liar.holds(hashes)):
        flip_bit(liar.chunk_path(sha256), 77)
    get = trio.client.start("get", file_id, "-o", folder / "copy")
    corrupt = get.until("corrupt", PATIENCE_S)
    trio.kill("B")
    get.result(PATIENCE_S).expect(0)
    assert sha256_of(folder / "copy") == source.sha256
    sha256 = hashes[corrupt["chunk_index"]]
    trio.restart("B")
    wait_for(lambda: not liar.holds([sha256]), PATIENCE_S, "B drops what it finds damaged")
    wait_for(
        lambda: liar.peer_id not in located(trio, file_id, sha256), PATIENCE_S, "it is located there no more"
    )


@pytest.mark.row("I1")
def test_a_peer_that_goes_and_returns_is_told_by_file(trio: Cluster, folder: Path) -> None:
    once, twice = make_file(folder / "once.bin", 2 * MIB), make_file(folder / "two.bin", 2 * MIB)
    one = trio.client.put(once.path).last["file_id"]
    two = trio.client.put(twice.path, "--replicas", "2").last["file_id"]
    with listening(trio) as events:
        trio.kill("C")
        wait_for(lambda: events.health_of(one) and events.health_of(two), PATIENCE_S, "both are told of")
        trio.restart("C")
        wait_for(
            lambda: len(events.health_of(one)) == len(events.health_of(two)) == 2,
            PATIENCE_S,
            "both are told of again",
        )
        assert events.health_of(one) == [("file.unavailable", "unavailable"), ("file.available", "complete")]
        assert events.health_of(two) == [("file.degraded", "degraded"), ("file.available", "complete")]
        order = [e["topic"] for e in events.seen if e["topic"] != "tick"]
        assert order.index("peer.down") < order.index("file.unavailable")


@pytest.mark.row("I1")
def test_a_restarted_tracker_tells_what_is_not_complete_once(trio: Cluster, folder: Path) -> None:
    source = make_file(folder / "kept.bin", 2 * MIB)
    file_id = trio.client.put(source.path).last["file_id"]
    trio.kill("A")
    trio.stop_tracker()
    trio.start_tracker()
    with listening(trio) as events:
        wait_for(lambda: events.health_of(file_id), PATIENCE_S, "it is told")
        trio.restart("A")
        wait_for(lambda: len(events.health_of(file_id)) == 2, PATIENCE_S, "it is told again")
        assert events.health_of(file_id) == [
            ("file.unavailable", "unavailable"),
            ("file.available", "complete"),
        ]
