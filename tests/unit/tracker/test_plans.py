"""Plans of uploads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.unit.tracker.clusters import (
    CHUNK,
    NODES,
    OTHER_UPLOAD,
    UPLOAD,
    Cluster,
    beat,
    hello,
    joined,
    make_file,
    peer_id,
    plan,
    stored,
)
from zchunk.clock import read
from zchunk.content.manifest import MAX_NEW_CHUNKS, expected_bytes, kept_bytes
from zchunk.protocol import columns
from zchunk.protocol.messages import (
    MAX_FIND,
    Abandon,
    ChunksFound,
    ErrorReply,
    FindChunks,
    GetSnapshot,
    Goodbye,
    ListFiles,
    Locate,
    Ok,
    Planned,
    Renew,
    Request,
)
from zchunk.strategy import MAX_COPIES
from zchunk.tracker.rules.promises import GONE_S, SILENT_S, STUCK_S


def test_a_plan_names_peers_that_are_up(cluster: Cluster) -> None:
    cluster.up("A", "B", "C")
    cluster.ask("C", Goodbye(incarnation=1))
    reply = cluster.ask("client", plan())
    assert isinstance(reply, Planned)
    assert {peer.name for peer in reply.peers} == {"A", "B"}
    assert sorted(columns.unpack(2, reply.assignment)) == [0, 0, 1, 1]


def test_too_few_peers_are_said(cluster: Cluster) -> None:
    cluster.up("A")
    reply = cluster.ask("client", plan())
    assert isinstance(reply, ErrorReply)
    assert reply.code == "too_few_peers"
    assert "1 peer online (A)" in reply.message


FAILED = "writing /srv/store failed: Input/output error; check the disk, then restart the node"


def test_a_node_that_takes_no_chunks_gets_none_and_says_why(cluster: Cluster) -> None:
    """Not "no room", nor that files are to be removed: it has room, and nothing can be written."""
    cluster.up("A", "B", "C")
    cluster.ask("A", beat(1, free=0, refuses=FAILED))
    reply = cluster.ask("client", plan())
    assert isinstance(reply, Planned)
    assert {peer.name for peer in reply.peers} == {"B", "C"}
    refused = cluster.ask("client", plan(replicas=3))
    assert isinstance(refused, ErrorReply)
    assert refused.code == "too_few_peers"
    assert refused.message == (
        f"3 peers are needed; ready for chunks: B, C; A is up, but refuses chunks: {FAILED}"
    )
    row = {"peer_id": peer_id("A"), "name": "A", "reason": FAILED}
    assert refused.details == {"online": ["B", "C"], "needed": 3, "refusing": [row]}
    refused = cluster.ask("client", plan(replicas=3, avoid=(peer_id("A"),)))
    assert isinstance(refused, ErrorReply)
    assert "refuses" not in refused.message, "the client knows of it"


def test_without_room_elsewhere_a_node_that_takes_no_chunks_is_named(cluster: Cluster) -> None:
    cluster.up("A")
    for name in ("B", "C"):
        cluster.ask(name, hello(free=CHUNK))
    cluster.ask("A", beat(1, free=0, refuses=FAILED))
    refused = cluster.ask("client", plan())
    assert isinstance(refused, ErrorReply)
    assert refused.code == "no_space"
    assert refused.message.startswith("no space for the file: ")
    assert refused.message.endswith(f"); A is up, but refuses chunks: {FAILED}")
    assert "remove files" not in refused.message


def test_that_a_node_takes_no_chunks_is_told_when_it_changes(cluster: Cluster) -> None:
    cluster.up("A", "B")
    before = cluster.core.events.seq

    def told() -> list[tuple[str, str]]:
        events = [e for e in cluster.core.events.history if e.seq > before]
        return [(e.topic, e.fields["peer"]["refuses"]) for e in events]

    for _ in range(2):
        cluster.ask("A", beat(1, refuses=FAILED))
    assert told() == [("peer.updated", FAILED)]
    assert cluster.refused("client", plan()) == "too_few_peers"
    cluster.ask("A", beat(1))
    assert told()[1:] == [("peer.updated", "")]
    assert isinstance(cluster.ask("client", plan(size=CHUNK, distribute=False)), Planned)
    cluster.ask("A", hello(1, refuses=FAILED))  # by another connection
    assert told()[2:] == [("peer.updated", FAILED)]
    cluster.ask("A", hello(1))
    assert told()[3:] == [("peer.updated", "")]
    cluster.ask("A", beat(1, refuses=FAILED))
    cluster.ask("A", hello(2))
    assert {r.name: r.refuses for r in cluster.ask("observer", GetSnapshot()).peers} == {"A": "", "B": ""}


def test_two_uploads_do_not_count_on_the_same_free_space(cluster: Cluster) -> None:
    for name in NODES[:2]:
        cluster.ask(name, hello(free=3 * CHUNK))
    assert isinstance(cluster.ask("client", plan()), Planned)
    assert cluster.refused("client", plan(upload_id=OTHER_UPLOAD)) == "no_space"
    assert cluster.ask("client", Abandon(upload_id=UPLOAD)) == Ok()
    assert isinstance(cluster.ask("client", plan(upload_id=OTHER_UPLOAD)), Planned)


def test_an_uploads_own_promise_does_not_stand_in_its_way(cluster: Cluster) -> None:
    for name in NODES[:2]:
        cluster.ask(name, hello(free=3 * CHUNK))
    for _ in range(3):
        assert isinstance(cluster.ask("client", plan()), Planned)


def test_whoever_takes_a_chunk_has_room_for_the_manifest_too(cluster: Cluster) -> None:
    """Else it takes its chunks, refuses the manifest, and all of them go elsewhere."""
    file = make_file(chunks=(1, 2, 3, 4))
    kept = kept_bytes(len(file.canonical))
    for free, expected in ((2 * CHUNK + kept, [2, 2]), (2 * CHUNK + kept - 1, [1, 3])):
        cluster.ask("A", hello(1, free=free))
        cluster.ask("B", hello(1, free=100 * CHUNK))
        reply = cluster.ask("client", plan())
        assert isinstance(reply, Planned)
        places = Counter(reply.peers[at].name for at in columns.unpack(2, reply.assignment))
        assert [places["A"], places["B"]] == expected
        cluster.ask("client", Abandon(upload_id=UPLOAD))


def test_two_uploads_do_not_count_on_the_same_room_for_manifests(cluster: Cluster) -> None:
    kept = kept_bytes(expected_bytes(4))
    for name in NODES[:2]:
        cluster.ask(name, hello(free=4 * CHUNK + 2 * kept - 1))
    assert isinstance(cluster.ask("client", plan()), Planned)
    assert cluster.refused("client", plan(upload_id=OTHER_UPLOAD)) == "no_space"


def test_a_plan_for_single_chunks_adds_to_the_copies_that_stay(cluster: Cluster) -> None:
    cluster.up("A", "B", "C")
    reply = cluster.ask(
        "client",
        plan(
            replicas=2,
            only=columns.pack(4, [1, 3]),
            held_peers=(peer_id("A"),),
            held=columns.pack(2, [0, columns.NOBODY, 0, columns.NOBODY]),
        ),
    )
    assert isinstance(reply, Planned)
    rows = columns.rows(columns.unpack(2, reply.assignment), 2)
    names = [[reply.peers[at].name for at in row if at != columns.NOBODY] for row in rows]
    assert [len(row) for row in names] == [1, 1]
    assert {name for row in names for name in row} <= {"B", "C"}


@pytest.mark.parametrize(
    "strange",
    [
        {"only": columns.pack(4, [4])},
        {"only": b"xyz"},
        {"only": columns.pack(4, [0]), "held": b""},
        {"only": columns.pack(4, [0]), "held": columns.pack(2, [0])},
        {"only": columns.pack(4, [0]), "held": columns.pack(2, [columns.NOBODY] * 2)},
        {"only": columns.pack(4, [0]), "held": b"x"},
        {"size": 2**63 - 1, "chunk_size": CHUNK},
        {"size": 2**63 - 1, "chunk_size": 1},
        {"size": (MAX_NEW_CHUNKS + 1) * CHUNK},
        {"replicas": MAX_COPIES},
        {"min_peers": MAX_COPIES},
        {"avoid": tuple(peer_id(name) for name in NODES)},
    ],
)
def test_a_strange_plan_is_refused(cluster: Cluster, strange: dict[str, Any]) -> None:
    cluster.up("A", "B")
    assert cluster.refused("client", plan(**strange)) in {"malformed", "too_few_peers", "no_space", "usage"}


@pytest.mark.parametrize(
    "question",
    [FindChunks(hashes=b""), Locate(name_or_id="film", unique=False), ListFiles(page="")],
    ids=lambda question: question.TYPE,
)
def test_members_take_turns_at_what_they_may_ask_much_of(cluster: Cluster, question: Request) -> None:
    cluster.send("client", question)
    assert [work.reads for work in cluster.works] == [True]


@pytest.mark.row("U7")
def test_holders_that_are_up_are_found_chunk_by_chunk(cluster: Cluster) -> None:
    """U7: of any file, or of none."""
    cluster.up("A", "B", "C")
    stored(cluster, "A", [1])
    stored(cluster, "B", [1, 2], OTHER_UPLOAD)
    stored(cluster, "C", [2, 3])
    cluster.ask("C", Goodbye(incarnation=1))
    reply = cluster.ask("client", FindChunks(hashes=joined([3, 1, 2])))
    assert isinstance(reply, ChunksFound)
    assert list(columns.unpack(2, reply.holder_counts)) == [0, 2, 1]
    names = [reply.peers[at].name for at in columns.unpack(2, reply.holder_peers)]
    assert (sorted(names[:2]), names[2]) == (["A", "B"], "B")
    assert {peer.status for peer in reply.peers} == {"up"}
    cluster.ask("B", beat(1, store_online=False))
    reply = cluster.ask("client", FindChunks(hashes=joined([1, 2])))
    assert list(columns.unpack(2, reply.holder_counts)) == [1, 0], "B's disk is unplugged"


@pytest.mark.parametrize("hashes", [bytes(31), bytes(32 * (MAX_FIND + 1))], ids=["odd", "too many"])
def test_strange_questions_for_chunks_are_refused(cluster: Cluster, hashes: bytes) -> None:
    request_id = cluster.send("client", FindChunks(hashes=hashes))
    assert not cluster.works, "refused before the database is asked"
    assert cluster.answer("client", request_id).code == "malformed"  # type: ignore[union-attr]


#: of a file of 4 chunks
KEPT = kept_bytes(expected_bytes(4))


def full_but_for_one_file(cluster: Cluster) -> None:
    """A has 4 chunks free, B and C have none: a file of 4 chunks fits once."""
    for name in NODES[:2]:
        cluster.ask(name, hello(free=2 * CHUNK + KEPT))


def test_space_of_an_upload_that_was_killed_is_free_for_the_same_put_at_once(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    cluster.ask("client", plan(), b"first")
    stored(cluster, "A", [1])
    stored(cluster, "B", [2])
    for name in NODES[:2]:
        cluster.ask(name, beat(free=CHUNK + KEPT, chunks=1))
    cluster.perform(cluster.core.connection_gone(b"first", read(cluster.clock)))
    again = plan(upload_id=OTHER_UPLOAD)
    assert cluster.refused("A", again) == "no_space", "another member's"
    assert isinstance(cluster.ask("client", again, b"second"), Planned)


def test_and_for_others_when_it_did_not_come_back(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    cluster.ask("client", plan(), b"first")
    cluster.perform(cluster.core.connection_gone(b"first", read(cluster.clock)))
    assert cluster.refused("A", plan(upload_id=OTHER_UPLOAD)) == "no_space"
    beats(cluster, GONE_S)
    assert isinstance(cluster.ask("A", plan(upload_id=OTHER_UPLOAD)), Planned)


def beats(cluster: Cluster, seconds: float, free: int = 2 * CHUNK + KEPT) -> None:
    """So long the nodes say that they are there."""
    for _ in range(int(seconds)):
        cluster.advance(1.0)
        for name in NODES[:2]:
            cluster.ask(name, beat(free=free))


def test_an_upload_that_renews_by_another_connection_keeps_its_space(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    cluster.ask("client", plan(), b"first")
    cluster.perform(cluster.core.connection_gone(b"first", read(cluster.clock)))
    cluster.ask("A", Renew(upload_id=UPLOAD), b"elsewhere")
    beats(cluster, GONE_S - 5)
    assert cluster.ask("client", Renew(upload_id=UPLOAD), b"second") == Ok()
    beats(cluster, 2 * GONE_S)
    assert cluster.refused("A", plan(upload_id=OTHER_UPLOAD)) == "no_space"


def test_an_upload_whose_connection_stands_keeps_its_space(cluster: Cluster) -> None:
    """It may wait for a peer, or for an answer of who started it."""
    full_but_for_one_file(cluster)
    cluster.ask("client", plan(), b"first")
    for _ in range(3):
        beats(cluster, SILENT_S / 2)
        cluster.ask("client", beat(0, free=0), b"first")
    assert cluster.refused("client", plan(upload_id=OTHER_UPLOAD)) == "no_space"
    beats(cluster, SILENT_S)
    assert isinstance(cluster.ask("client", plan(upload_id=OTHER_UPLOAD)), Planned)


def test_space_of_a_revoked_member_is_free_at_once(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    cluster.ask("client", plan())
    late = cluster.send("client", plan(upload_id="c" * 32))
    cluster.membership.revoke(peer_id("client"))
    cluster.look_at_members()
    cluster.work()
    assert cluster.answer("client", late).code in {"no_space", "not_allowed"}  # type: ignore[union-attr]
    assert isinstance(cluster.ask("A", plan(upload_id=OTHER_UPLOAD)), Planned)


def test_a_plan_that_was_made_when_its_member_was_revoked_is_no_promise(cluster: Cluster) -> None:
    full_but_for_one_file(cluster)
    late = cluster.send("client", plan())
    cluster.membership.revoke(peer_id("client"))
    cluster.look_at_members()
    cluster.work()
    assert cluster.answer("client", late).code == "not_allowed"  # type: ignore[union-attr]
    assert isinstance(cluster.ask("A", plan(upload_id=OTHER_UPLOAD)), Planned)


def test_a_plan_for_all_there_is_leaves_others_their_share(cluster: Cluster) -> None:
    free = 8 * CHUNK + 2 * kept_bytes(expected_bytes(16))
    for name in NODES[:2]:
        cluster.ask(name, hello(free=free))
    assert isinstance(cluster.ask("client", plan(size=16 * CHUNK)), Planned)
    assert cluster.refused("A", plan(upload_id=OTHER_UPLOAD, size=8 * CHUNK)) == "no_space"
    for _ in range(int(STUCK_S / 60)):
        beats(cluster, 60, free)
        cluster.ask("client", beat(0, free=0))
    assert cluster.refused("A", plan(upload_id=OTHER_UPLOAD, size=9 * CHUNK)) == "no_space"
    assert isinstance(cluster.ask("A", plan(upload_id=OTHER_UPLOAD, size=8 * CHUNK)), Planned)
