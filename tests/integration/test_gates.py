"""Who is let in at each socket, as a stranger sees it: bare pyzmq, no zchunk transport
(SPEC S2, S4). Each refusal comes within two seconds, and nothing else comes."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import pytest
import zmq

from tests.integration.cluster import PATIENCE_S
from tests.integration.doors import DOORS, SILENCE_S, Doors, add_member
from tests.integration.raw import REFUSED_WITHIN_S, new_keys, silent
from tests.waiting import wait_for

BEAT = {
    "incarnation": 0,
    "free": 0,
    "chunks": 0,
    "load": 0.0,
    "store_online": True,
    "files_unknown": 0,
    "refuses": "",
}


# -- keys -------------------------------------------------------------------------------


@pytest.mark.row("S2")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("who", ["unknown", "revoked", "replaced", "expired"])
def test_a_key_that_is_nobodys_is_refused_in_the_handshake(doors: Doors, door: str, who: str) -> None:
    with doors.line(door, doors.keys[who]) as line:
        assert line.outcome() == "refused"
        assert time.monotonic() - line.opened < REFUSED_WITHIN_S
        assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in line.watch()


@pytest.mark.parametrize("door", DOORS)
def test_a_member_is_let_in(doors: Doors, door: str) -> None:
    with doors.inside(door, doors.keys["member"]) as line:
        if door == "tracker":
            assert line.ask("get_snapshot")["t"] == "snapshot"
        elif door == "node":
            assert line.ask("acknowledge", received=0)["t"] == "acknowledged"
        else:
            assert line.arrival(PATIENCE_S), "a tick"


def test_a_handshake_that_is_none_comes_to_nothing(doors: Doors) -> None:
    """Without a key at all, and with the key of another server."""
    with ExitStack() as stack:
        lines = [
            stack.enter_context(doors.line(door, keys, new_keys().public))
            for door in DOORS
            for keys in (None, doors.keys["member"])
        ]
        for line in lines:
            assert line.outcome() == "broken"
            assert time.monotonic() - line.opened < REFUSED_WITHIN_S
        silent(lines, SILENCE_S)
        for line in lines:
            assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in line.watch(), "and not at a later attempt"


@pytest.mark.row("S2")
def test_nothing_comes_to_who_was_refused(doors: Doors) -> None:
    with ExitStack() as stack:
        lines = [
            stack.enter_context(doors.line(door, doors.keys[who]))
            for door in DOORS
            for who in ("unknown", "revoked")
        ]
        for line in lines:
            if line.raw.type == zmq.DEALER:
                line.shout("get_snapshot")
        assert {line.outcome() for line in lines} == {"refused"}
        silent(lines, SILENCE_S)


# -- a token's key ------------------------------------------------------------------------


@pytest.mark.row("S2")
def test_a_tokens_key_comes_in_where_one_joins_and_nowhere_else(doors: Doors) -> None:
    token = doors.keys["token"]
    for door in ("events", "node"):
        with doors.line(door, token) as line:
            assert line.outcome() == "refused"
            assert time.monotonic() - line.opened < REFUSED_WITHIN_S
    with doors.inside("tracker", token) as line:
        for kind in ("get_snapshot", "heartbeat", "list_files"):
            requests: dict[str, dict[str, Any]] = {"heartbeat": BEAT, "list_files": {"page": ""}}
            values = requests.get(kind, {})
            assert line.refusal(kind, **values) == "not_allowed"
        assert line.refusal("rotate_key", public_key=new_keys().public) == "not_allowed"
        joined = new_keys()
        reply = line.ask("join", public_key=joined.public, name="raw")
        assert (reply["t"], reply["f"]["peer_id"]) == ("joined", joined.peer_id)
        assert reply["f"]["role"] == "client"
        assert line.refusal("get_snapshot") == "not_allowed", "it made a member, and is none"
    with doors.inside("tracker", joined) as line:
        assert line.ask("get_snapshot")["t"] == "snapshot"
        assert line.refusal("join", public_key=new_keys().public, name="more") == "token_refused"


def test_a_member_that_joined_a_moment_ago_is_let_in_by_a_node(doors: Doors) -> None:
    for number in range(20):
        joined = new_keys()
        add_member(doors.cluster, joined.public, f"fresh-{number}")
        with doors.line("node", joined) as line:
            assert line.outcome() == "in"
            assert line.ask("acknowledge", received=0)["t"] == "acknowledged"


# -- versions and roles -------------------------------------------------------------------


@pytest.mark.parametrize("door", ["tracker", "node"])
@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_of_the_protocol_is_told(doors: Doors, door: str, version: object) -> None:
    with doors.inside(door, doors.keys["member"]) as line:
        sent = time.monotonic()
        request_id = line.send("acknowledge", header={"v": version}, received=0)
        reply = line.reply(request_id)
        assert reply["f"]["code"] == "unsupported_version"
        assert "release" in reply["f"]["message"]
        assert time.monotonic() - sent < REFUSED_WITHIN_S


UPLOAD = {"upload_id": "ab" * 16}
FILE = {"file_id": "0" * 64}
BLOCK = {"sha256": bytes(32), "offset": 0, "length": 1, "received": 0}
PLAN = {
    **UPLOAD,
    **{"size": 1, "chunk_size": 65536, "distribute": False, "replicas": 1, "min_peers": 1},
    **{"strategy": "balanced", "own_peer": None, "avoid": (), "held_peers": ()},
}
HELLO = {
    **{"incarnation": 1, "instance": "0" * 16, "bound": "127.0.0.1", "port": 9, "advertise": ()},
    **{"interfaces": (), "capacity": 1, "free": 1, "chunks": 0, "inventory_digest": bytes(32), "refuses": ""},
}
COMMIT = {**UPLOAD, **FILE, "replicas": 1, "min_peers": 1, "distribute": False}
OFFER = {**UPLOAD, "sha256": bytes(32), "blake3": bytes(32), "size": 1}
#: (door, who, request, its fields, its payload frames)
WRONG_ROLE = [
    ("tracker", "observer", "plan", PLAN, 2),
    ("tracker", "observer", "commit", COMMIT, 1),
    ("tracker", "observer", "remove", FILE, 0),
    ("tracker", "observer", "find_chunks", {}, 1),
    ("tracker", "observer", "check_key", {"public_key": bytes(32)}, 0),
    ("tracker", "member", "hello", HELLO, 0),
    ("tracker", "member", "stored", UPLOAD, 1),
    ("tracker", "member", "inventory", {"page": 0, "last": True}, 1),
    ("tracker", "member", "get_members", {"page": ""}, 0),
    ("tracker", "member", "release", {}, 1),
    ("node", "observer", "get_block", BLOCK, 0),
    ("node", "observer", "offer", OFFER, 0),
    ("node", "observer", "put_manifest", {**UPLOAD, **FILE}, 1),
    ("node", "observer", "conclude", UPLOAD, 0),
]


@pytest.mark.row("S2")
@pytest.mark.parametrize(
    ("door", "who", "kind", "values", "frames"), WRONG_ROLE, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_role_goes_so_far_and_no_farther(
    doors: Doors, door: str, who: str, kind: str, values: dict[str, object], frames: int
) -> None:
    with doors.inside(door, doors.keys[who]) as line:
        sent = time.monotonic()
        assert line.refusal(kind, *[b""] * frames, **values) == "not_allowed"
        assert time.monotonic() - sent < REFUSED_WITHIN_S


# -- identity -----------------------------------------------------------------------------


@pytest.mark.row("S2")
def test_a_claim_in_the_message_is_nobodys(doors: Doors) -> None:
    """Under CURVE who sent a message is who has the key, whatever stands in its header."""
    claim = {"from": doors.keys["member"].peer_id}
    with (
        doors.inside("tracker", doors.keys["observer"]) as tracker,
        doors.inside("node", doors.keys["observer"]) as node,
    ):
        reply = tracker.reply(tracker.send("remove", header=claim, file_id="0" * 64))
        assert reply["f"]["code"] == "not_allowed"
        reply = node.reply(node.send("get_block", header=claim, **doors.block()))
        assert reply["f"]["code"] == "not_allowed"
    node_id = {"from": doors.cluster.nodes["A"].peer_id}
    with doors.inside("tracker", doors.keys["member"]) as line:
        reply = line.reply(line.send("goodbye", header=node_id, incarnation=1))
        assert reply["f"]["code"] == "not_allowed"
    assert doors.cluster.statuses()["A"] == "up"


@pytest.mark.row("S2")
@pytest.mark.parametrize("door", ["tracker", "node"])
def test_who_forges_a_routing_id_receives_nothing_meant_for_another(doors: Doors, door: str) -> None:
    ask, values = ("get_snapshot", {}) if door == "tracker" else ("get_block", doors.block())
    with doors.inside(door, doors.keys["member"]) as honest:
        for key in ("member", "observer"):
            with doors.inside(door, doors.keys[key], routing_id=b"mine") as forger:
                forger.send(ask, **values)
                assert honest.ask(ask, **values)["t"] in ("snapshot", "block")
                wait_for(lambda line=forger: line.ended, 2.0, "its line has ended")  # type: ignore[misc]
                assert forger.arrival(0.0) is None
