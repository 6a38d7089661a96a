"""Tokens, roles and names: who becomes a member, and what members may do (SPEC S2)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.integration.cluster import PATIENCE_S, Client, Cluster, Process, Result, make_file
from tests.waiting import wait_for


def start_node(cluster: Cluster, home: Path, *words: str) -> Result:
    """A node that ends by itself, because it may not be one."""
    command = ["node", "--home", str(home), "--bind", "127.0.0.1:0", *words]
    result = cluster.spawn(command).result()
    assert result.lines == [], "not ready"
    assert len(result.stderr.splitlines()) == 1
    return result


@pytest.mark.row("S2")
def test_a_token_for_one_join(bench: Cluster, folder: Path) -> None:
    token = bench.token("client", "--once")
    first, second = Client(bench, folder / "1"), Client(bench, folder / "2")
    for client in (first, second):
        client.home.mkdir()
    first.run("join", token)
    first.run("join", token)  # its first answer may have been lost
    result = second.run("join", token, code=7)
    assert result.last["code"] == "token_refused"
    assert "zchunk token" in result.stderr
    first.run("ls")
    assert second.run("ls", code=7).last["code"] == "not_joined"


def test_a_node_remembers_its_options(folder: Path) -> None:
    with Cluster(folder / "cluster") as cluster:
        home = folder / "kept"
        words = ["node", "--home", str(home), "--bind", "127.0.0.1:0", "--name", "kept"]
        first = cluster.spawn([*words, "--capacity", "7MB", "--join", cluster.token("node", "--once")])
        first.ready()
        first.end()
        again = cluster.spawn(["node", "--home", str(home)])
        again.ready()
        (row,) = cluster.client.run("peers").last
        assert row["capacity"] == 7 * 10**6
        assert row["endpoint"].startswith("tcp://127.0.0.1:")
        again.end()
        start_node(cluster, home, "--name", "other").expect(2)


@pytest.mark.row("S2")
def test_an_expired_token(bench: Cluster, folder: Path) -> None:
    token = bench.token("client", "--expires", "1s")
    made_by = time.time()
    wait_for(lambda: time.time() > made_by + 1, PATIENCE_S, "the token has expired")
    result = Client(bench, folder).run("join", token, code=7)
    assert result.last["code"] == "token_refused"
    assert "expired" in result.stderr


def test_no_token(bench: Cluster, folder: Path) -> None:
    token = bench.token("client")
    for text in ("hello", token[:-5], "zchunk1-", token.replace("zchunk1-", "zchunk2-")):
        result = Client(bench, folder).run("join", text, code=7)
        assert result.last["code"] == "token_refused"
        start_node(bench, folder / "node", "--join", text).expect(7)


def test_a_token_of_another_cluster(bench: Cluster, folder: Path) -> None:
    """A home belongs to one cluster."""
    with Cluster(folder / "other") as other:
        token = other.token("client")
        result = bench.client.run("join", token, code=2)
        assert "another cluster" in result.stderr
        assert other.client.names() == []


def test_a_token_from_a_file_and_from_stdin(bench: Cluster, folder: Path) -> None:
    token = bench.token("client")
    path = folder / "token"
    path.write_text(f"{token}\n")
    for number, given in enumerate((f"@{path}", "-")):
        client = Client(bench, folder / str(number))
        client.home.mkdir()
        client.run("join", given, text=f" {token[:40]}\n{token[40:]}\n")
        client.run("ls")
    Client(bench, folder).run("join", f"@{folder}/absent", code=9)


@pytest.mark.parametrize("name", ["caf\udce9", "a\nb", "\x1b[31m"])
def test_a_name_that_is_no_text_or_cannot_be_shown(bench: Cluster, folder: Path, name: str) -> None:
    """The first is what a shell in another encoding than UTF-8 gives."""
    result = Client(bench, folder).run("join", bench.token("client"), "--name", name, code=2)
    assert result.last["message"].startswith("invalid name ")
    assert result.stderr.rstrip("\n").isprintable()


@pytest.mark.row("S2")
def test_an_observer_looks_and_does_nothing(bench: Cluster, folder: Path) -> None:
    source = make_file(folder / "observed.bin", 2000)
    bench.client.put(source.path)
    observer = bench.join("observer", role="observer")
    assert "observed.bin" in observer.names()
    assert observer.info("observed.bin")["health"] == "complete"
    observer.run("peers")
    for result in (
        observer.put(source.path, "--name", "no.bin", code=7),
        observer.run("rm", "--yes", "observed.bin", code=7),
    ):
        assert result.last["code"] == "not_allowed"
        assert "observer" in result.stderr
    assert "observed.bin" in bench.client.names()
    assert "no.bin" not in bench.client.names()


@pytest.mark.row("S2")
def test_a_client_is_no_node(bench: Cluster, folder: Path) -> None:
    for role in ("client", "observer"):
        result = start_node(bench, folder / role, "--join", bench.token(role), "--name", "Z")
        assert role in result.expect(7).stderr
    assert "Z" not in bench.statuses()


def test_a_node_without_a_token(bench: Cluster, folder: Path) -> None:
    assert "--join" in start_node(bench, folder).expect(7).stderr
    assert "join" in Client(bench, folder).run("ls", code=7).stderr


def test_a_node_of_the_same_name_gets_a_suggestion(bench: Cluster, folder: Path) -> None:
    token = bench.token("node")
    result = start_node(bench, folder, "--join", token, "--name", "A")
    assert "A-2" in result.expect(2).stderr
    assert bench.statuses() == {"A": "up", "B": "up", "C": "up"}


def test_one_process_per_home(bench: Cluster) -> None:
    node = bench.nodes["A"]
    result = start_node(bench, node.home)
    assert str(node.home) in result.expect(2).stderr
    words = ["tracker", "--home", str(bench.tracker.home), "--bind", "127.0.0.1:0"]
    second = bench.spawn(words).result().expect(2)
    assert str(bench.tracker.home) in second.stderr
    assert node.process.alive
    assert bench.statuses()["A"] == "up"


def test_a_port_that_is_taken(bench: Cluster, folder: Path) -> None:
    taken = bench.nodes["A"].endpoint
    words = ["node", "--home", str(folder), "--join", bench.token("node"), "--name", "Y", "--bind", taken]
    result = bench.spawn(words).result()
    assert result.code in (1, 2)
    assert taken in result.stderr
    assert bench.statuses()["A"] == "up"
    # The name is taken now, by a node that never came up: it is down.
    assert bench.statuses().get("Y") in (None, "down")


# -- the token as an argument ------------------------------------------------------------------


def arguments(process: Process) -> str:
    """What every user of the PC sees of it."""
    return Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()


def test_a_token_that_is_an_argument_is_seen_by_nobody_once_the_command_runs(folder: Path) -> None:
    with Cluster(folder / "cluster") as cluster:
        token = cluster.token("node")
        words = ["node", "--home", str(folder / "n"), "--join", token, "--bind", "127.0.0.1:0"]
        node = cluster.spawn(words)
        wait_for(lambda: token not in arguments(node), 20, "the token is gone from the arguments")
        node.ready()
        assert token[20:60] not in arguments(node)
        assert str(folder / "n") in arguments(node), "the others are still there"
        token = cluster.token("client")
        with cluster.frozen(cluster.tracker.process):
            joining = cluster.spawn(["join", "--home", str(folder / "c"), token])
            wait_for(lambda: token not in arguments(joining), 20, "the token is gone from the arguments")
            assert joining.alive


def test_a_node_asks_for_its_token(folder: Path) -> None:
    """`--join -` at a terminal: one line, not shown."""
    with Cluster(folder / "cluster") as cluster:
        words = ["node", "--home", str(folder / "n"), "--join", "-", "--name", "Y", "--bind", "127.0.0.1:0"]
        node = cluster.spawn(words, terminal=True)
        wait_for(lambda: "Join token:" in node.stderr, 20, "it asks")
        node.answer(cluster.token("node") + "\n")
        assert node.ready()["name"] == "Y"


def test_a_new_tracker_shows_no_command_with_a_token_in_it(folder: Path) -> None:
    with Cluster(folder / "cluster") as cluster:
        said = cluster.tracker.process.stderr
        (line,) = [line for line in said.splitlines() if "zchunk1-" in line]
        token = line.strip()
        assert token.startswith("zchunk1-")
        assert "`zchunk node --join -`" in said
        node = cluster.spawn(
            ["node", "--home", str(folder / "n"), "--join", "-", "--bind", "127.0.0.1:0"], text=token + "\n"
        )
        node.ready()
