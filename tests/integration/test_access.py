"""What the commands and the servers do when they are not let in (any more): exit code 7, one
line that says what to do, no hanging (SPEC S2)."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest
import zmq

import zchunk
from tests.integration.cluster import MIB, PATIENCE_S, Client, Cluster, Process, Result, make_file, sha256_of
from tests.integration.doors import Doors, allow_list
from tests.integration.raw import REFUSED_WITHIN_S, Line, keys_in, keys_of, new_keys
from tests.integration.test_cutoff import allow, peers, revoke
from tests.waiting import wait_for
from zchunk.clock import SystemClock
from zchunk.config import Settings
from zchunk.node.control.join import join
from zchunk.transport.auth import parse_token
from zchunk.transport.keys import peer_id_of
from zchunk.transport.zeromq import ZmqTransport

pytestmark = pytest.mark.alone


@pytest.fixture(scope="session")
def start_s(guarded_cluster: Cluster) -> float:
    """What a command takes that is let in, most of it to start; doubled, for a busy machine."""
    return 2 * guarded_cluster.client.run("ls").seconds + 1.0


def shut_out(result: Result, start_s: float, code: str = "not_allowed") -> str:
    """The one line that it printed."""
    result.expect(7)
    assert result.last["code"] == code
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.seconds < start_s + REFUSED_WITHIN_S
    return result.stderr


def ended(process: Process, code: int) -> Result:
    return process.result().expect(code)


# -- cut off ------------------------------------------------------------------------------


def test_a_client_that_is_cut_off(guarded: Cluster, folder: Path, start_s: float) -> None:
    """Its events and its download end; the download goes on when it is let in again."""
    source = make_file(folder / "half.bin", 2 * MIB)
    guarded.client.put(source.path, "--replicas", "1", "--strategy", "round_robin")
    client = guarded.join("halfway")
    follower = client.start("events")
    target = folder / "target.bin"
    with guarded.frozen(guarded.nodes["B"].process):
        get = client.start("get", "half.bin", "-o", target)
        get.until("waiting")
        wait_for(lambda: client.run("jobs").last[0]["state"] == "waiting", PATIENCE_S, "half of it is there")
        revoke(guarded, "halfway")
        done = time.monotonic()
        for process in (follower, get):
            result = ended(process, 7)
            assert time.monotonic() - done < start_s + REFUSED_WITHIN_S
            assert result.last["code"] == "not_allowed"
            assert "zchunk token" in result.stderr
    assert "it was revoked" in shut_out(client.run("ls", code=None), start_s)
    shut_out(client.get("half.bin", folder / "other.bin", code=None), start_s)
    shut_out(client.put(source.path, code=None), start_s)
    job = client.run("jobs").last[0]
    allow(guarded, "halfway")
    guarded.await_all_up()
    client.run("resume", job["job_id"])
    assert sha256_of(target) == source.sha256


def test_a_node_that_is_cut_off(guarded: Cluster, folder: Path) -> None:
    """First it is told which files would stop. Its chunks count as gone until it is back."""
    source = make_file(folder / "alone.bin", 2 * MIB)
    guarded.client.put(source.path, "--replicas", "1", "--strategy", "round_robin")
    node = guarded.nodes["B"]
    held = len(node.holds(guarded.client.info("alone.bin")["chunks_hashes"]))
    assert held
    unasked = guarded.spawn(["peers", "revoke", "B", "--home", str(guarded.tracker.home)]).result().expect(2)
    assert "--yes" in unasked.stderr
    asked = guarded.spawn(
        ["peers", "revoke", "B", "--home", str(guarded.tracker.home)], terminal=True, text=None
    )
    asked.answer("n\n")
    refused = ended(asked, 130)
    assert f"alone.bin: {held} chunks" in refused.stderr
    assert node.process.alive
    follower = guarded.client.start("events")
    follower_ready(guarded, follower)
    told = peers(guarded, "revoke", "B", "--yes", "--json").expect(0)
    plan = told.events[0]
    (stopped,) = [file for file in plan["files"] if file["name"] == "alone.bin"]
    assert (plan["event"], stopped["chunks_lost"]) == ("plan", held)
    ended(node.process, 7)
    lines = [line for line in node.process.lines if line]
    assert lines[0].startswith("ready ")
    follower.until(lambda e: e.get("topic") == "member.revoked" and e["name"] == "B")
    follower.until(lambda e: e.get("topic") == "file.unavailable" and e["name"] == "alone.bin")
    assert guarded.statuses()["B"] == "revoked"
    assert guarded.client.info("alone.bin")["health"] == "unavailable"
    again = guarded.spawn(["node", "--home", str(node.home)]).result().expect(7)
    assert "it was revoked" in again.stderr
    allow(guarded, "B")
    follower.until(lambda e: e.get("topic") == "member.allowed" and e["name"] == "B")
    guarded.restart("B")
    follower.until(lambda e: e.get("topic") == "file.available" and e["name"] == "alone.bin")
    assert guarded.client.info("alone.bin")["health"] == "complete"
    follower.close()


def test_who_was_revoked_does_not_come_back_with_the_token_it_has(guarded: Cluster, folder: Path) -> None:
    """Nor does anybody else by it; who joined by it before stays."""
    token = guarded.token("client")
    homes = {name: Client(guarded, folder / name) for name in ("stays", "goes", "back")}
    for name, client in homes.items():
        client.home.mkdir()
        if name != "back":
            client.run("join", token, "--name", name)
    told = peers(guarded, "revoke", "goes", "--yes", "--json").expect(0).last
    known = guarded.spawn(["tokens", "--all", "--json", "--home", str(guarded.tracker.home)]).result().last
    assert told["tokens_withdrawn"] == [parse_token(token).key.peer_id]
    assert told["tokens_withdrawn"][0] not in {row["token_id"] for row in known}
    result = homes["back"].run("join", token, "--name", "back", code=7)
    assert result.last["code"] == "token_refused"
    homes["stays"].run("ls")
    again = peers(guarded, "revoke", "stays", "--yes").expect(0)
    assert "withdrawn" not in again.stderr, "it is gone already"


def follower_ready(cluster: Cluster, follower: Process) -> None:
    """It shows what happens from now on."""
    probes = 0

    def seen() -> bool:
        nonlocal probes
        probes += 1
        allow_list(cluster).add_member(new_keys().public, f"probe-{probes}", "client")
        try:
            follower.until(lambda e: e.get("topic") == "member.joined", 1.0)
        except AssertionError:
            return False
        return True

    wait_for(seen, PATIENCE_S, "the events are followed")


def test_a_home_whose_key_was_replaced(guarded: Cluster, start_s: float) -> None:
    client = guarded.join("swapped")
    pair = new_keys()
    text = json.dumps({"public": pair.public.hex(), "secret": pair.secret.hex()})
    (client.home / "client" / "key.json").write_text(text)
    assert "zchunk token" in shut_out(client.run("ls", code=None), start_s)


# -- the other side is another one ------------------------------------------------------------


@contextmanager
def tracker_with(cluster: Cluster, transport: str) -> Iterator[None]:
    """The tracker is started again with another transport; nobody else."""
    before = dict(cluster.settings)
    cluster.stop_tracker()
    cluster.settings["security.transport"] = transport
    try:
        cluster.start_tracker()
    finally:
        cluster.settings = before
    yield


@pytest.mark.parametrize(("joined_by", "then"), [("curve", "plain"), ("plain", "curve")])
def test_a_tracker_with_another_transport(folder: Path, start_s: float, joined_by: str, then: str) -> None:
    with Cluster(folder / "mixed", {"security.transport": joined_by}) as cluster:
        (node,) = cluster.start_nodes("N")
        cluster.settings = {}
        with tracker_with(cluster, then):
            line = shut_out(cluster.client.run("ls", code=None), start_s, "transport_mismatch")
            assert "plain" in line
            assert "curve" in line
            wait_for(lambda: "encrypted" in node.process.stderr, PATIENCE_S, "the node says why it is alone")
            assert node.process.end() == 0
            alone = cluster.spawn(["node", "--home", str(node.home)]).result().expect(7)
            assert "curve (encrypted)" in alone.stderr
        for role in ("client", "node"):
            settings = {"security.transport": then}
            if role == "client":
                result = cluster.client.run("ls", settings=settings, code=None)
            else:
                result = cluster.spawn(["node", "--home", str(node.home)], settings=settings).result()
            result.expect(2)
            assert f"security.transport is set to {then}" in result.stderr


def test_a_tracker_that_was_set_up_anew(folder: Path, start_s: float) -> None:
    with Cluster(folder / "anew") as cluster:
        (node,) = cluster.start_nodes("N")
        cluster.stop_tracker()
        shutil.rmtree(cluster.tracker.home / "tracker")
        cluster.start_tracker()
        line = shut_out(cluster.client.run("ls", code=None), start_s, "wrong_server")
        assert "another key" in line
        assert "docs/guide/security.md" in line
        wait_for(lambda: "another key" in node.process.stderr, PATIENCE_S, "the node says why it is alone")
        assert node.process.end() == 0


# -- tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["client", "node"])
def test_a_token_that_does_not_go_with_the_configuration_is_not_used_up(
    guarded: Cluster, folder: Path, role: str
) -> None:
    token, home, plain = (
        guarded.token(role, "--once"),
        folder / f"mixed-{role}",
        {"security.transport": "plain"},
    )
    home.mkdir()
    words = ["join", token] if role == "client" else ["node", "--join", token, "--bind", "127.0.0.1:0"]
    refused = guarded.spawn([*words, "--home", str(home)], settings=plain).result().expect(2)
    assert "security.transport is set to plain, but this token is for a cluster with curve" in refused.stderr
    assert Client(guarded, home).run("join", token).last["role"] == role


def test_a_token_that_was_withdrawn(doors: Doors, guarded: Cluster, folder: Path) -> None:
    token, other = guarded.token("client"), guarded.token("client")
    keys = keys_in(token)
    first, second = Client(guarded, folder / "first"), Client(guarded, folder / "second")
    first.home.mkdir()
    second.home.mkdir()
    first.run("join", token, "--name", "first")
    tracker_home = Client(guarded, guarded.tracker.home)
    (row,) = [t for t in tracker_home.run("tokens").last if t["token_id"] == peer_id_of(keys.public)]
    assert (row["role"], row["state"], row["once"]) == ("client", "open", False)
    assert row["used_by"] == [{"peer_id": member_id(first), "name": "first"}]
    with doors.inside("tracker", keys) as line:
        assert line.ask("join", public_key=new_keys().public, name="before")["t"] == "joined"
        done = tracker_home.run("tokens", "withdraw", row["token_id"][:12]).last
        withdrawn_at = time.monotonic()
        assert [entry["token_id"] for entry in done["tokens"]] == [row["token_id"]]
        wait_for(lambda: line.ended, PATIENCE_S, "its connection ends")
        assert time.monotonic() - withdrawn_at < 1.0
    result = second.run("join", token, code=7)
    assert result.last["code"] == "token_refused"
    assert "withdrawn" in result.stderr
    first.run("ls")  # who has joined stays a member
    assert row["token_id"] not in {t["token_id"] for t in tracker_home.run("tokens", "list", "--all").last}
    tracker_home.run("tokens", "withdraw", row["token_id"], code=9)
    tracker_home.run("tokens", "withdraw", code=2)
    first.run("join", other)  # that one still is good


def test_all_tokens_are_withdrawn_while_the_tracker_is_away(folder: Path) -> None:
    with Cluster(folder / "cluster") as cluster:
        token = cluster.token("client")
        cluster.client.run("info", "nothing", code=9)
        cluster.stop_tracker()
        assert "requests refused: 1;" in cluster.tracker.process.stderr
        home = Client(cluster, cluster.tracker.home)
        assert len(home.run("tokens", "withdraw", "--all").last["tokens"]) >= 2
        assert home.run("tokens", "list", "--all").last == []
        cluster.start_tracker()
        assert Client(cluster, folder).run("join", token, code=7).last["code"] == "token_refused"
        cluster.client.run("ls")


def test_a_token_that_has_expired_by_the_trackers_clock_alone(
    doors: Doors, guarded: Cluster, folder: Path
) -> None:
    token = guarded.token("client", "--expires", "1s")
    made = time.time()
    body = token.removeprefix("zchunk1-")
    fields = msgpack.unpackb(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    fields["e"] += 3_600_000
    later = base64.urlsafe_b64encode(msgpack.packb(fields)).decode().rstrip("=")
    wait_for(lambda: time.time() > made + 1.0, PATIENCE_S, "it has expired")
    result = Client(guarded, folder).run("join", f"zchunk1-{later}", code=7)
    assert result.last["code"] == "token_refused"
    assert "expired by the tracker's clock" in result.stderr


def test_who_joins_too_often_is_told_and_others_wait_their_turn(
    doors: Doors, guarded: Cluster, folder: Path
) -> None:
    token = guarded.token("client")
    ask = {"public_key": new_keys().public, "name": "eager"}
    with doors.inside("tracker", keys_in(token)) as line:
        answers = [line.ask("join", **ask) for _ in range(60)]
    codes = [answer["f"].get("code", answer["t"]) for answer in answers]
    assert set(codes) == {"joined", "busy"}
    assert codes.count("joined") <= 20 + 10, "the burst, and what comes back meanwhile"
    Client(guarded, folder).run("join", token)


# -- a new key ----------------------------------------------------------------------------


def test_a_new_key_under_the_old_id(guarded: Cluster, start_s: float) -> None:
    client = guarded.join("renewed")
    peer_id, old = member_id(client), keys_of(client.home / "client")
    follower = client.start("events")
    follower_ready(guarded, follower)
    done = client.run("rotate-key").last
    ended(follower, 7)
    new = keys_of(client.home / "client")
    assert (done["peer_id"], done["public_key"]) == (peer_id, new.public.hex())
    assert new != old
    assert stat.S_IMODE((client.home / "client" / "key.json").stat().st_mode) == 0o600
    client.run("ls")
    assert member_id(client) == peer_id
    member = allow_list(guarded).listed.members[peer_id]
    assert member.public_key == new.public


def member_id(client: Client) -> str:
    return str(json.loads((client.home / "client" / "membership.json").read_text())["peer_id"])


@pytest.mark.parametrize("taken", [False, True], ids=["not heard", "taken"])
def test_a_rotation_that_died_on_its_way_is_run_again(doors: Doors, guarded: Cluster, taken: bool) -> None:
    client = guarded.join(f"died-{taken}")
    folder = client.home / "client"
    old, peer_id, next_key = keys_of(folder), member_id(client), new_keys()
    text = json.dumps({"public": next_key.public.hex(), "secret": next_key.secret.hex()})
    (folder / "key.next.json").write_text(text)
    if taken:
        with doors.inside("tracker", old) as line:
            line.send("rotate_key", public_key=next_key.public)
            wait_for(lambda: line.ended, PATIENCE_S, "the tracker has taken it")
        refused = client.run("ls", code=7)
        assert refused.last["code"] == "not_allowed"
        assert "`zchunk rotate-key` was interrupted here; run it again" in refused.stderr
    client.run("rotate-key")
    assert keys_of(folder) == next_key
    assert not (folder / "key.next.json").exists()
    client.run("ls")
    assert allow_list(guarded).listed.members[peer_id].public_key == next_key.public


def test_a_nodes_new_key(guarded: Cluster, folder: Path) -> None:
    node = guarded.nodes["B"]
    source = make_file(folder / "kept.bin", 2 * MIB)
    guarded.client.put(source.path, "--replicas", "1", "--strategy", "round_robin")
    words = ["rotate-key", "--home", str(node.home), "--json"]
    running = guarded.spawn(words).result().expect(2)
    assert running.last["code"] == "already_running"
    guarded.stop("B")
    rotated = guarded.spawn(words).result().expect(0)
    assert rotated.last["peer_id"] == node.peer_id
    guarded.restart("B")
    guarded.await_all_up()
    target = folder / "got.bin"
    guarded.client.get("kept.bin", target)
    assert sha256_of(target) == source.sha256


# -- a node while the tracker is away -------------------------------------------------------


def test_a_node_alone_serves_whom_it_knows(doors: Doors, guarded: Cluster) -> None:
    node = guarded.nodes["A"]
    copy = node.home / "node" / "members.json"
    for secret in (copy, node.home / "node" / "key.json"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    node_key = keys_of(node.home / "node").public
    member, unknown = doors.keys["member"], doors.keys["unknown"]

    def tried(keys: object) -> tuple[str, float]:
        with Line(zmq.DEALER, node.endpoint, keys, node_key) as line:  # type: ignore[arg-type]
            return line.outcome(), time.monotonic() - line.opened

    def start_alone() -> None:
        """Not `restart`: it is ready only when a tracker has registered it."""
        node.process.end()
        words = ["node", "-v", "--home", str(node.home), "--bind", node.endpoint]
        node.process = guarded.spawn(words)
        wait_for(lambda: "listening" in node.process.stderr, PATIENCE_S, "it listens")

    guarded.stop_tracker()
    outcome, seconds = tried(unknown)
    assert outcome == "refused"
    assert seconds < REFUSED_WITHIN_S
    assert tried(member)[0] == "in"
    start_alone()
    assert tried(member)[0] == "in", "by the copy of the list"
    assert tried(doors.keys["revoked"])[0] == "refused"
    copy.write_text(copy.read_text()[:-20])
    start_alone()
    assert "cannot be read" in node.process.stderr
    assert tried(member)[0] == "refused", "a copy that is damaged is as none"
    guarded.start_tracker()
    wait_for(lambda: tried(member)[0] == "in", PATIENCE_S, "the tracker has told the list")
    wait_for(lambda: json.loads(copy.read_text()), PATIENCE_S, "the copy is whole again")
    node.process.ready()


def test_who_has_just_joined_can_put_at_once(guarded: Cluster, folder: Path) -> None:
    token = parse_token(guarded.token("client"))
    source = make_file(folder / "first.bin", 5000)
    transport = ZmqTransport()
    for number in range(20):
        home = folder / f"home-{number}"
        join(home / "client", token, f"quick-{number}", transport, SystemClock(), PATIENCE_S)
        with zchunk.Client(home, Settings()) as client:
            assert client.put(source.path)["event"] == "done"
    transport.close()
