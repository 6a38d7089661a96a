"""What a command on the tracker's home changes about its members is in force when it returns."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.integration.cluster import PATIENCE_S, Client, Cluster, Result
from tests.integration.raw import Keys, Line, keys_in, keys_of
from tests.waiting import wait_for
from zchunk.clock import SystemClock
from zchunk.errors import NotFound
from zchunk.protocol import wire
from zchunk.protocol.messages import ErrorReply, GetSnapshot
from zchunk.tracker.members.membership import Membership
from zchunk.transport.unix_socket import SCHEME, LocalClient

ROUNDS = 5


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder / "cluster") as made:
        yield made


def run(cluster: Cluster, *words: str) -> Result:
    """On the tracker's PC."""
    return cluster.spawn([*words, "--home", str(cluster.tracker.home)]).result()


def comes_in(cluster: Cluster, keys: Keys) -> bool:
    """Whether the tracker lets that key in, at the first try."""
    tracker_key = keys_of(cluster.tracker.home / "tracker").public
    with Line(zmq.DEALER, cluster.tracker.endpoint, keys, tracker_key) as line:
        return line.outcome() == "in"


def test_who_is_allowed_comes_in_and_who_is_revoked_does_not(cluster: Cluster) -> None:
    """At once, each time: a tracker that only looked now and then would be caught at it."""
    keys = keys_of(cluster.join("member").home / "client")
    for _ in range(ROUNDS):
        run(cluster, "peers", "revoke", "member", "--yes").expect(0)
        assert not comes_in(cluster, keys)
        run(cluster, "peers", "allow", "member").expect(0)
        assert comes_in(cluster, keys)


def test_a_tokens_key_comes_in_when_it_is_made_and_not_when_it_is_withdrawn(cluster: Cluster) -> None:
    for _ in range(ROUNDS):
        keys = keys_in(cluster.token("client"))
        assert comes_in(cluster, keys)
        run(cluster, "tokens", "withdraw", "--all").expect(0)
        assert not comes_in(cluster, keys)


def test_a_tracker_that_does_not_go_on_is_said_and_the_change_stands(cluster: Cluster) -> None:
    keys = keys_of(cluster.join("member").home / "client")
    with cluster.frozen(cluster.tracker.process):
        result = run(cluster, "peers", "revoke", "member", "--yes").expect(6)
        assert "the change is saved" in result.stderr.splitlines()[-1]
        assert run(cluster, "token", "--role", "client").expect(0).lines[0].startswith("zchunk1-")
    wait_for(lambda: not comes_in(cluster, keys), PATIENCE_S, "it has seen the change")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_without_a_tracker_it_counts_from_the_next_start_on(cluster: Cluster, ending: int) -> None:
    keys = keys_of(cluster.join("member").home / "client")
    cluster.stop_tracker(ending)
    run(cluster, "peers", "revoke", "member", "--yes").expect(0)
    cluster.start_tracker()
    assert not comes_in(cluster, keys)
    run(cluster, "peers", "allow", "member").expect(0)
    assert comes_in(cluster, keys)


@pytest.mark.parametrize("frames", [[], [b""], [b"no header"], [b"\xff", b"x"]])
def test_what_is_no_order_ends_its_connection(cluster: Cluster, frames: list[bytes]) -> None:
    """And is no bug in the tracker's log, which `Cluster` looks for in the end."""
    door = cluster.tracker.home / "tracker" / "tracker.sock"
    with (
        LocalClient(f"{SCHEME}{door}", PATIENCE_S) as line,
        pytest.raises(NotFound, match="without an answer"),
    ):
        line.ask(frames)
    with LocalClient(f"{SCHEME}{door}", PATIENCE_S) as line:
        answer = wire.decode(line.ask(wire.encode(GetSnapshot(), 7)))
    assert isinstance(answer.message, ErrorReply)
    assert (answer.request_id, answer.message.code) == (7, "unknown_message")
    assert cluster.tracker.process.alive
    assert not cluster.tracker.process.met_bug


def test_a_list_that_is_put_back_by_hand_is_seen_too(cluster: Cluster) -> None:
    keys = keys_of(cluster.join("member").home / "client")
    path = cluster.tracker.home / "tracker" / "members.json"
    Membership(path, SystemClock()).revoke(keys.peer_id)
    changed_at = time.monotonic()
    wait_for(lambda: not comes_in(cluster, keys), PATIENCE_S, "it has seen the change")
    assert time.monotonic() - changed_at < 3.0


def test_a_home_that_lies_deep(folder: Path) -> None:
    """Deeper than the name of a socket may be."""
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with Cluster(deep / "cluster") as cluster:
        assert (cluster.tracker.home / "tracker" / "tracker.sock").is_socket()
        member = cluster.join("member")
        for _ in range(ROUNDS):
            run(cluster, "peers", "revoke", "member", "--yes").expect(0)
            assert not comes_in(cluster, keys_of(member.home / "client"))
            run(cluster, "peers", "allow", "member").expect(0)
            assert comes_in(cluster, keys_of(member.home / "client"))


def test_a_command_right_after_it_works(cluster: Cluster, folder: Path) -> None:
    client = Client(cluster, folder)
    client.run("join", cluster.token("client"), "--name", "member")
    run(cluster, "peers", "revoke", "member", "--yes").expect(0)
    client.run("ls", code=7)
    run(cluster, "peers", "allow", "member").expect(0)
    client.run("ls")
