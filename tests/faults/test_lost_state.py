"""A part of a home's state is gone while the rest is there: nobody takes that for a first start."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.cluster import PATIENCE_S, Client, Cluster, Result, make_file
from tests.integration.conftest import SMALL
from tests.waiting import wait_for


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    """Two nodes and a file, of a tracker that a test may damage."""
    with Cluster(folder / "cluster", SMALL) as made:
        made.start_nodes("A", "B")
        made.client.put(make_file(folder / "kept.bin", 3 * 1024**2).path)
        yield made


def run(cluster: Cluster, *words: str | Path) -> Result:
    return cluster.spawn([*map(str, words)]).result()


def refused(result: Result, *words: str) -> None:
    """In one line that says what is missing and what to do."""
    assert result.code == 2, str(result)
    assert result.lines == [], "not ready"
    (line,) = result.stderr.strip().splitlines()
    for word in ("restore it from a backup", *words):
        assert word in line, line


def start_tracker(cluster: Cluster, *options: str) -> Result:
    """One that is expected to refuse."""
    at = cluster.tracker
    words: list[str | Path] = ["tracker", "--home", at.home, "--bind", at.endpoint, "--events", at.events]
    return run(cluster, *words, *options)


def names(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if not name.endswith(".lock")}


def take(path: Path) -> Callable[[], None]:
    """The file, with what belongs to it, is gone; the returned function puts it back."""
    aside = path.parent.parent / "aside"
    aside.mkdir()
    for part in path.parent.glob(f"{path.name}*"):
        shutil.move(part, aside / part.name)

    def put_back() -> None:
        for part in aside.iterdir():
            shutil.move(part, path.parent / part.name)
        aside.rmdir()

    return put_back


# -- the tracker --------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["nothing", "an empty file", "a database without tables"])
def test_a_tracker_without_its_database_does_not_begin_a_new_cluster(cluster: Cluster, left: str) -> None:
    cluster.stop_tracker()
    path = cluster.tracker.home / "tracker" / "tracker.sqlite"
    put_back = take(path)
    if left == "an empty file":
        path.touch()
    elif left == "a database without tables":
        # As a running tracker's file is, copied without its `-wal`.
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = wal")
    before = names(path.parent)
    refused(start_tracker(cluster), str(path), "--new-database")
    node_id = cluster.nodes["A"].peer_id
    refused(run(cluster, "peers", "revoke", node_id, "--yes", "--home", cluster.tracker.home), str(path))
    assert names(path.parent) == before, "nothing was made"
    if left != "nothing":
        path.unlink()
    put_back()
    cluster.start_tracker()
    assert cluster.client.names() == ["kept.bin"]


def test_an_empty_database_is_begun_where_that_is_asked_for(cluster: Cluster, folder: Path) -> None:
    refuses = start_tracker(cluster, "--new-database")
    assert (refuses.code, "another tracker is already running" in refuses.stderr) == (2, True)
    cluster.stop_tracker()
    refuses = start_tracker(cluster, "--new-database")
    assert refuses.code == 2
    assert "--new-database is for one that is lost" in refuses.stderr, "what is there is never replaced"
    take(cluster.tracker.home / "tracker" / "tracker.sqlite")
    at = cluster.tracker
    words: list[str | Path] = [
        "--home",
        at.home,
        "--bind",
        at.endpoint,
        "--events",
        at.events,
        "--new-database",
    ]
    at.process = cluster.spawn(["tracker", *map(str, words)])
    at.process.ready()
    cluster.await_all_up()

    def strangers() -> dict[str, int]:
        return {name: record.files_unknown for name, record in cluster.records().items()}

    wait_for(lambda: strangers() == {"A": 1, "B": 1}, PATIENCE_S, "the nodes have asked for their files")
    for options in ((), ("--json",)):
        listed = run(cluster, "ls", "--home", cluster.client.home, *options).expect(0)
        (line,) = listed.stderr.splitlines()
        assert line.startswith("2 nodes hold chunks of files that this tracker does not know: A, B"), line
        assert "".join(listed.lines) in ("", "[]")
    errors = [line for line in at.process.stderr.splitlines() if " ERROR " in line]
    assert {"A holds chunks of 1 files" in "".join(errors), "B holds" in "".join(errors)} == {True}, errors
    # Put again they are known; which the nodes find out when they look the next time.
    cluster.client.put(folder / "kept.bin")
    cluster.stop_tracker()
    cluster.start_tracker()
    cluster.await_all_up()
    wait_for(lambda: strangers() == {"A": 0, "B": 0}, PATIENCE_S, "they are known again")
    assert run(cluster, "ls", "--home", cluster.client.home).expect(0).stderr == ""


def test_a_node_that_lost_its_memory_of_the_cluster_finds_out_whether_it_may_delete(
    cluster: Cluster, folder: Path
) -> None:
    """And meanwhile deletes nothing: a tracker with an older database would have it do so."""
    cluster.client.put(make_file(folder / "removed.bin", 2 * 1024**2).path)
    for name in ("A", "B"):
        cluster.stop(name)
        store = cluster.nodes[name].store
        (store / "cluster.json").unlink()
        with closing(sqlite3.connect(store / "index.sqlite")) as index, index:
            # One of an earlier release has no copy of it.
            assert index.execute("DELETE FROM _setting WHERE key = 'cluster'").rowcount == 1
    cluster.client.run("rm", "--yes", "removed.bin")
    cluster.restart("A")
    kept = {row["chunk_hash"] for row in cluster.client.info("kept.bin")["chunks"]}
    node = cluster.nodes["A"]
    wait_for(lambda: set(node.chunks()) <= kept, PATIENCE_S, "what was removed is freed")
    assert (node.store / "cluster.json").exists()


def test_a_tracker_without_its_key_makes_no_other(cluster: Cluster) -> None:
    cluster.stop_tracker()
    path = cluster.tracker.home / "tracker" / "key.json"
    put_back = take(path)
    refused(start_tracker(cluster), str(path), "--new-key")
    refused(run(cluster, "token", "--home", cluster.tracker.home), str(path))
    assert not path.exists()
    put_back()
    cluster.start_tracker()
    assert cluster.client.names() == ["kept.bin"], "its members know it"


def test_another_key_is_made_where_that_is_asked_for(cluster: Cluster, folder: Path) -> None:
    cluster.stop_tracker()
    take(cluster.tracker.home / "tracker" / "key.json")
    at = cluster.tracker
    words: list[str | Path] = ["--home", at.home, "--bind", at.endpoint, "--events", at.events, "--new-key"]
    at.process = cluster.spawn(["tracker", *map(str, words)])
    at.process.ready()
    assert cluster.client.run("ls", code=7).last["code"] == "wrong_server"
    newcomer = Client(cluster, folder)
    newcomer.run("join", cluster.token("client"))
    assert newcomer.names() == ["kept.bin"]


def test_without_its_list_of_members_a_tracker_forgets_nobody(cluster: Cluster) -> None:
    """While it runs, and at its next start."""
    path = cluster.tracker.home / "tracker" / "members.json"
    put_back = take(path)
    home = cluster.tracker.home
    for command in (["token"], ["tokens"], ["peers", "list", "--all"], ["peers", "allow", "A"]):
        refused(run(cluster, *command, "--home", home), str(path), "--new-members")
    assert cluster.client.names() == ["kept.bin"]
    cluster.stop_tracker()
    refused(start_tracker(cluster), str(path), "--new-members")
    assert not path.exists()
    put_back()
    cluster.start_tracker()
    cluster.await_all_up()
    assert all(node.process.alive for node in cluster.nodes.values())


def test_an_empty_list_is_begun_where_that_is_asked_for(cluster: Cluster, folder: Path) -> None:
    cluster.stop_tracker()
    take(cluster.tracker.home / "tracker" / "members.json")
    at = cluster.tracker
    words: list[str | Path] = [
        "--home",
        at.home,
        "--bind",
        at.endpoint,
        "--events",
        at.events,
        "--new-members",
    ]
    at.process = cluster.spawn(["tracker", *map(str, words)])
    at.process.ready()
    assert "zchunk node --join" in at.process.stderr, "as at the first start"
    newcomer = Client(cluster, folder)
    newcomer.run("join", cluster.token("client"))
    assert newcomer.names() == ["kept.bin"]


def test_a_first_start_that_failed_is_no_loss(folder: Path) -> None:
    """The port was taken: there is a key, and a database, but it was no cluster yet."""
    with Cluster(folder / "cluster") as other:
        home = folder / "new"
        for bind, code in ((other.tracker.endpoint, 2), ("127.0.0.1:0", None)):
            process = other.spawn(["tracker", "--home", str(home), "--bind", bind])
            if code is not None:
                assert process.result().code == code
        process.ready()
        assert "zchunk node --join" in process.stderr


# -- members ------------------------------------------------------------------------------


def start_node(cluster: Cluster, name: str, *options: str) -> Result:
    """One that is expected to refuse."""
    return run(cluster, "node", "--home", cluster.nodes[name].home, "--bind", "127.0.0.1:0", *options)


def test_a_node_without_its_key_makes_no_other(cluster: Cluster) -> None:
    cluster.stop("A")
    path = cluster.nodes["A"].home / "node" / "key.json"
    put_back = take(path)
    refused(start_node(cluster, "A"), str(path), "--join - --new-key")
    token = cluster.token()
    refused(start_node(cluster, "A", "--join", token), str(path), "--join - --new-key")
    refused(run(cluster, "ls", "--home", cluster.nodes["A"].home), str(path))
    assert not path.exists()
    put_back()
    cluster.restart("A")
    cluster.client.get("kept.bin", cluster.client.home / "copy", "--no-wait")


def test_a_node_whose_key_is_lost_goes_on_as_another_member(cluster: Cluster) -> None:
    cluster.stop("A")
    node = cluster.nodes["A"]
    assert start_node(cluster, "A", "--new-key").code == 2, "it takes a token"
    token = cluster.token()
    still_there = start_node(cluster, "A", "--join", token, "--new-key")
    assert (still_there.code, "move it away first" in still_there.stderr) == (2, True)
    take(node.home / "node" / "key.json")
    run(cluster, "peers", "revoke", "A", "--yes", "--home", cluster.tracker.home).expect(0)
    words: list[str] = ["node", "--home", str(node.home), "--bind", "127.0.0.1:0", "--join", token]
    anew = cluster.spawn([*words, "--name", "A-again", "--new-key"])
    assert anew.ready()["peer_id"] != node.peer_id
    wait_for(lambda: cluster.statuses().get("A-again") == "up", PATIENCE_S, "it is up")
    cluster.client.get("kept.bin", cluster.client.home / "copy", "--no-wait")
    anew.end()
    again = cluster.spawn(["node", "--home", str(node.home)])
    again.ready()
    again.end()


def test_a_node_without_its_membership_says_how_it_is_had_again(cluster: Cluster) -> None:
    cluster.stop("A")
    node = cluster.nodes["A"]
    path = node.home / "node" / "membership.json"
    take(path)
    refused(start_node(cluster, "A"), str(path), "zchunk node --join -")
    words = [
        "node",
        "--home",
        str(node.home),
        "--bind",
        "127.0.0.1:0",
        "--join",
        cluster.token(),
    ]
    again = cluster.spawn([*words, "--name", "A"])
    assert again.ready()["peer_id"] == node.peer_id
    again.end()


def test_a_node_that_lost_its_options_does_not_take_all_of_the_disk(cluster: Cluster) -> None:
    cluster.stop("A")
    node = cluster.nodes["A"]
    first = cluster.spawn(["node", "--home", str(node.home), "--capacity", "100MB"])
    first.ready()
    first.end()
    take(node.home / "node" / "options.json")
    result = run(cluster, "node", "--home", node.home)
    assert result.code == 2
    assert "options.json is missing" in result.stderr
    assert "--capacity" in result.stderr
    again = cluster.spawn(["node", "--home", str(node.home), "--bind", node.endpoint, "--capacity", "90MB"])
    again.ready()
    wait_for(lambda: cluster.records()["A"].capacity == 90 * 10**6, PATIENCE_S, "it has room for 90 MB")
    again.end()


@pytest.mark.parametrize("name", ["key.json", "membership.json"])
def test_a_client_that_lost_a_part_is_not_a_newcomer(cluster: Cluster, name: str) -> None:
    home = cluster.client.home
    path = home / "client" / name
    put_back = take(path)
    for words in (["ls"], ["peers"], ["rm", "--yes", "kept.bin"]):
        refused(run(cluster, *words, "--home", home), str(path), "zchunk join -")
    assert not path.exists()
    put_back()
    assert cluster.client.names() == ["kept.bin"]


def test_a_client_whose_key_is_lost_joins_as_another(cluster: Cluster) -> None:
    home = cluster.client.home
    before = cluster.client.run("join", cluster.token("client")).last["peer_id"]
    take(home / "client" / "key.json")
    token = cluster.token("client")
    refused(run(cluster, "join", token, "--home", home), "--new-key")
    after = cluster.client.run("join", token, "--new-key").last["peer_id"]
    assert after != before
    assert cluster.client.names() == ["kept.bin"]
