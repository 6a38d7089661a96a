"""Reads of ranges (SPEC D11) on a simulated cluster: what they fetch, whom they believe, what
they wait for, and how much memory they take."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sim.cluster import CHUNK, Cluster, SimClient, SimNode
from tests.sim.test_encrypted import SECRET, make_cluster
from tests.sim.test_encrypted import put as put_encrypted
from zchunk.content.encryption import open_manifest
from zchunk.errors import IntegrityError, PartialDownload, ZchunkError
from zchunk.node.bulk.location import Location, location
from zchunk.node.job_events import JobEvent
from zchunk.node.reading.range_reader import Reader
from zchunk.protocol.messages import Locate
from zchunk.transport.memory import Faults

NAME = "film.mkv"
COUNT = 12
SIZE = (COUNT - 1) * CHUNK + 100
#: transfer.receive_budget of the simulation
BUDGET = 6 * CHUNK
ROOM = 5


class Reads:
    """Somebody who reads chunks, one after the other."""

    def __init__(self, cluster: Cluster, path: Path, *, wait: bool = True) -> None:
        self.cluster = cluster
        self.plain = path.read_bytes()
        self.client: SimClient = cluster.client()
        self.events: list[dict[str, Any]] = []
        #: chunks that were asked for, by peer id
        self.asked: dict[str, Counter[int]] = {}
        self.where = self._located()
        self.wait = wait
        self.reader = self.made()
        self._count_blocks()

    def _emit(self, event: JobEvent) -> None:
        self.events.append(event.to_json())

    def made(self) -> Reader:
        return Reader(bulk=self.client.bulk, where=self.where, wait=self.wait, emit=self._emit)

    def _located(self) -> Location:
        asked = self.client.ask(Locate(name_or_id=NAME, unique=False))
        self.cluster.run(lambda: asked.ended, "the manifest")
        where = location(asked.value, NAME)
        if where.manifest.sealed is not None:
            where = replace(where, manifest=open_manifest(where.manifest, SECRET))
        return where

    def _count_blocks(self) -> None:
        hashes = {row.sha256: index for index, row in enumerate(self.where.manifest.chunks)}
        get_block = self.client.bulk.links.get_block

        def counted(peer_id: str, sha256: bytes, *args: Any) -> None:
            self.asked.setdefault(peer_id, Counter())[hashes[sha256]] += 1
            get_block(peer_id, sha256, *args)

        self.client.bulk.links.get_block = counted  # type: ignore[assignment, method-assign]

    @property
    def touched(self) -> set[int]:
        return {index for counts in self.asked.values() for index in counts}

    def begin(self, *chunks: int) -> list[tuple[bytes | None, ZchunkError | None]]:
        """The answer, once it has come."""
        answers: list[tuple[bytes | None, ZchunkError | None]] = []

        def answer(view: memoryview | None, error: ZchunkError | None) -> None:
            answers.append((bytes(view) if view is not None else None, error))

        self.reader.need(chunks, answer)
        self._check_memory()
        return answers

    def read(self, *chunks: int) -> bytes:
        answers = self.begin(*chunks)
        self.cluster.run(lambda: bool(answers), f"chunk {chunks[0]}")
        self._check_memory()
        ((data, error),) = answers
        if error is not None:
            raise error
        assert data == self.plain[chunks[0] * CHUNK :][:CHUNK], f"seed {self.cluster.seed}: wrong bytes"
        return data

    def _check_memory(self) -> None:
        assert self.reader._fetcher._pool.reserved <= BUDGET + CHUNK
        assert self.reader._job.begun_bytes <= BUDGET

    def holders(self, index: int) -> list[str]:
        return [peer_id for peer_id, _ in self.where.holders[index]]

    def node(self, peer_id: str) -> SimNode:
        return next(node for node in self.cluster.nodes if node.membership.peer_id == peer_id)


def held(
    root: Path, seed: int = 1, *, replicas: int = 1, faults: Faults | None = None
) -> tuple[Cluster, Path]:
    cluster = Cluster(root, seed)
    path = cluster.make_file(NAME, SIZE)
    put = cluster.client().put(path, replicas=replicas)
    cluster.run(lambda: put.ended, "the upload")
    put.expect_done()
    if faults is not None:
        cluster.network.faults = faults
    return cluster, path


def lies(node: SimNode) -> None:
    """Its disk is good, what it sends is not."""
    read_block = node.store.read_block

    def wrong(*args: Any, **options: Any) -> memoryview:
        block: memoryview = read_block(*args, **options)
        block[0] ^= 0xFF
        return block

    node.store.read_block = wrong


@pytest.mark.row("D11")
def test_only_the_chunks_that_are_needed_are_asked_for_and_each_once(root: Path) -> None:
    reads = Reads(*held(root))
    for index in (7, COUNT - 1, 0, 7):
        reads.read(index)
    assert reads.touched == {0, 7, COUNT - 1}
    assert sum(reads.reader.received_from.values()) == 2 * CHUNK + 100
    assert reads.reader._job.deadline() is None, "who reads nothing is not woken"


def test_what_is_read_on_in_order_comes_from_all_nodes_at_once(root: Path) -> None:
    reads = Reads(*held(root))
    reads.begin(*range(ROOM))
    assert len(reads.asked) == 3
    for index in range(COUNT):
        reads.read(*range(index, min(COUNT, index + ROOM)))
    assert sum(reads.reader.received_from.values()) == SIZE


def test_what_was_read_last_is_in_memory_and_what_was_read_long_ago_is_not(root: Path) -> None:
    reads = Reads(*held(root))
    for index in range(ROOM + 1):
        reads.read(index)
    before = sum(reads.reader.received_from.values())
    for index in range(1, ROOM + 1):
        reads.read(index)
    assert sum(reads.reader.received_from.values()) == before
    reads.read(0)
    assert sum(reads.reader.received_from.values()) == before + CHUNK


@pytest.mark.row("D11")
def test_a_node_that_lies_is_found_out_and_another_is_asked(root: Path) -> None:
    reads = Reads(*held(root, replicas=2))
    for index in range(COUNT):
        liar = reads.node(reads.holders(index)[0])
        if index == 0:
            lies(liar)
        reads.read(index)
    corrupt = [event for event in reads.events if event["event"] == "corrupt"]
    assert {event["peer_id"] for event in corrupt} <= {reads.holders(0)[0]}
    assert corrupt


def test_a_chunk_that_is_wrong_everywhere_is_an_error_and_the_others_are_read(root: Path) -> None:
    reads = Reads(*held(root))
    (holder,) = reads.holders(4)
    bad = [index for index in range(COUNT) if reads.holders(index) == [holder]]
    good = [index for index in range(COUNT) if index not in bad]
    lies(reads.node(holder))
    for _ in range(2):
        with pytest.raises(IntegrityError, match=f"holder .{reads.node(holder).name}.") as raised:
            read_again(reads, 4)
        assert raised.value.details["peers"] == [holder]
        read_again(reads, good[0])


def read_again(reads: Reads, index: int) -> None:
    """As a `ChunkStream` does: another reader for one that a failure has ended."""
    if reads.reader.ended:
        assert reads.begin(index) == [(None, None)]
        reads.reader = reads.made()
    reads.read(index)


def test_what_is_fetched_ahead_may_fail_without_a_word(root: Path) -> None:
    reads = Reads(*held(root))
    bad, good = 4, next(i for i in range(COUNT) if reads.holders(i) != reads.holders(4))
    lies(reads.node(reads.holders(bad)[0]))
    reads.read(good, bad)
    reads.cluster.run_for(30.0)
    with pytest.raises(IntegrityError):
        read_again(reads, bad)


@pytest.mark.parametrize("wait", [True, False])
def test_a_holder_that_is_off(root: Path, wait: bool) -> None:
    reads = Reads(*held(root), wait=wait)
    (holder,) = reads.holders(4)
    other = next(index for index in range(COUNT) if reads.holders(index) != [holder])
    node = reads.node(holder)
    node.crash()
    peers = reads.client.bulk.peers
    reads.cluster.run(lambda: holder in peers and peers[holder].status == "down", "the news")
    answers = reads.begin(4, other)
    if not wait:
        ((_, error),) = answers
        assert isinstance(error, PartialDownload)
        assert error.details == {"missing_peers": [holder], "chunk_index": 4, "offset": 4 * CHUNK}
        assert f"from byte {4 * CHUNK:,} on" in error.message
        assert node.name in error.message
        reads.read(other)
        return
    reads.cluster.run_for(60.0)
    assert not answers
    (waiting,) = [event for event in reads.events if event["event"] == "waiting"]
    assert (waiting["missing_peers"], waiting["chunks_missing"]) == ([holder], 1)
    assert waiting["missing"][0]["name"] == node.name
    node.start()
    reads.cluster.run(lambda: bool(answers), "the chunk")
    assert answers[0][0] == reads.plain[4 * CHUNK : 5 * CHUNK]
    assert reads.events[-1]["event"] == "resumed"


def test_who_goes_elsewhere_does_not_wait_any_more(root: Path) -> None:
    reads = Reads(*held(root))
    (holder,) = reads.holders(4)
    other = next(index for index in range(COUNT) if reads.holders(index) != [holder])
    reads.node(holder).crash()
    answers = reads.begin(4)
    reads.read(other)
    reads.cluster.run_for(30.0)
    assert answers == []


def test_a_node_that_dies_in_the_middle_is_replaced_by_another_holder(root: Path) -> None:
    reads = Reads(*held(root, replicas=2))
    answers = reads.begin(4)
    reads.cluster.run(lambda: bool(reads.asked), "a request")
    (asked,) = reads.asked
    reads.node(asked).crash()
    reads.cluster.run(lambda: bool(answers), "the chunk", limit_s=20.0)
    assert answers[0][0] == reads.plain[4 * CHUNK : 5 * CHUNK]


def test_an_encrypted_file_is_decrypted_chunk_by_chunk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = make_cluster(root, 1, monkeypatch)
    path = cluster.make_file(NAME, SIZE)
    put_encrypted(cluster, path)
    reads = Reads(cluster, path)
    for index in (COUNT - 1, 3):
        reads.read(index)
    assert sum(reads.reader.received_from.values()) == CHUNK + 100 + 2 * 16


def test_the_end_gives_all_memory_back(root: Path) -> None:
    reads = Reads(*held(root))
    for index in range(3):
        reads.read(index)
    reads.begin(5, 6, 7)
    reads.reader.stop()
    reads.reader.stop()
    reads.cluster.run_for(5.0)
    assert reads.reader._fetcher._pool.reserved == 0
    assert reads.begin(1) == [(None, None)]


@pytest.mark.row("D11")
@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_the_bytes_are_right(root: Path, seed: int) -> None:
    """Random places, in order and not, over a bad network, while nodes come and go."""
    faults = Faults(delay_min=0.0002, delay_max=0.03, loss=0.01, double=0.02, corrupt=0.01)
    cluster, path = held(root, seed, replicas=1 + seed % 2, faults=faults)
    reads, rng = Reads(cluster, path), cluster.rng
    at = 0
    for _ in range(25):
        at = (at + 1) % COUNT if rng.random() < 0.6 else rng.randrange(COUNT)
        ahead = range(at + 1, min(COUNT, at + 1 + rng.randrange(ROOM)))
        node = rng.choice(cluster.nodes)
        if not node.alive:
            node.start()
        elif rng.random() < 0.2:
            node.crash()
            cluster.network.schedule(rng.uniform(0.0, 5.0), lambda node=node: node.alive or node.start())  # type: ignore[misc]
        if rng.random() < 0.2:
            reads.begin(*[rng.randrange(COUNT)])
            cluster.run_for(rng.uniform(0.0, 0.05))
        if reads.reader.ended:
            reads.reader = reads.made()
        reads.read(at, *ahead)
    cluster.verify({NAME: path})
