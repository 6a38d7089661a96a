"""Sizes at the edges, names, questions, refusals: each command's exit code and what is left
behind (SPEC U1, U2, "Command line")."""

from __future__ import annotations

import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import (
    MIB,
    PATIENCE_S,
    UNPRIVILEGED,
    Client,
    Cluster,
    Event,
    Node,
    Process,
    Result,
    Source,
    make_file,
    sha256_of,
    wait_for,
)
from tests.integration.conftest import SMALL
from zchunk.content.manifest import kept_bytes

CHUNK = 64 * 1024
THRESHOLD = MIB
_numbers = itertools.count()


def fresh(folder: Path, size: int) -> Source:
    """A file whose name no other test of this session has."""
    return make_file(folder / f"file{next(_numbers)}.bin", size)


def primaries(info: Event) -> Counter[str]:
    return Counter(info["distribution_map"].values())


# -- sizes ----------------------------------------------------------------------------------


@pytest.mark.row("U1")
@pytest.mark.parametrize(
    "size", [0, 1, CHUNK, THRESHOLD - 1, THRESHOLD, THRESHOLD + 1, THRESHOLD + 5 * CHUNK + 123]
)
def test_sizes(size: int, bench: Cluster, folder: Path) -> None:
    """U1: under the threshold on one peer, from it on over several."""
    source, client = fresh(folder, size), bench.client
    done = client.put(source.path).last
    info = client.info(source.path.name)
    count = -(-size // CHUNK)
    distributed = size >= THRESHOLD
    for answer in (done, info):
        assert (answer["size"], answer["sha256"]) == (size, source.sha256)
        assert (answer["chunks_count"], answer["is_chunked"]) == (count, distributed)
        assert answer["is_distributed"] is distributed
    assert done["bytes_sent"] == size
    on_disk = {peer_id: held for peer_id, held in bench.on_disk(info["chunks_hashes"]).items() if held}
    assert len(on_disk) == (3 if distributed else min(1, count))
    assert set().union(*on_disk.values()) == set(info["chunks_hashes"])
    sizes = [path.stat().st_size for peer_id, held in on_disk.items()
             for path in map(bench.node_of(peer_id).chunk_path, held)]  # fmt: skip
    assert sorted(sizes) == sorted([CHUNK] * (size // CHUNK) + [size % CHUNK] * (size % CHUNK > 0))
    target = folder / "out" / "copy"
    target.parent.mkdir()
    got = client.get(source.path.name, target).last
    assert (got["bytes_received"], got["sha256"]) == (size, source.sha256)
    assert target.read_bytes() == source.path.read_bytes()
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.row("U1")
def test_a_small_file_goes_to_the_own_node(bench: Cluster, folder: Path) -> None:
    """U1: the node whose home the command uses, or the one that is named; never guessed."""
    for name in ("A", "B", "C"):
        source = fresh(folder, 100_000)
        done = bench.client.put(source.path, settings={"client.own_node": name}).last
        assert done["peers"] == [bench.nodes[name].peer_id]
    source = fresh(folder, 100_000)
    done = Client(bench, bench.nodes["B"].home).put(source.path).last
    assert done["peers"] == [bench.nodes["B"].peer_id]


# -- strategies -----------------------------------------------------------------------------


@pytest.mark.row("U4")
@pytest.mark.parametrize("strategy", ["round_robin", "contiguous"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_even_shares(strategy: str, replicas: int, bench: Cluster, folder: Path) -> None:
    """U4: even within one chunk; each chunk on `replicas` different peers."""
    source = fresh(folder, 50 * CHUNK + 1000)
    options = ["--strategy", strategy, "--replicas", str(replicas)]
    put = bench.client.put(source.path, *options)
    info = bench.client.info(source.path.name)
    (plan,) = put.of("plan")
    assert (plan["strategy"], plan["replicas"], info["replicas"]) == (strategy, replicas, replicas)
    assert put.last["bytes_sent"] == replicas * source.size
    copies: dict[int, list[str]] = {}
    for row in info["chunks"]:
        copies.setdefault(row["chunk_index"], []).append(row["peer_id"])
    assert [len(peers) for peers in copies.values()] == [replicas] * 51
    assert all(len(set(peers)) == replicas for peers in copies.values()), "on different peers"
    total = Counter(peer_id for peers in copies.values() for peer_id in peers)
    assert max(total.values()) - min(total.values()) <= 1
    assert total == {peer["peer_id"]: peer["chunks"] for peer in plan["peers"]}
    if replicas == 1:
        assert plan["map"] == info["distribution_map"]
    assert all(plan["map"][str(index)] in peers for index, peers in copies.items())
    assert {peer_id: len(held) for peer_id, held in bench.on_disk(info["chunks_hashes"]).items()} == total
    if strategy == "contiguous":
        order = [plan["map"][str(index)] for index in range(51)]
        assert len([peer for peer, _ in itertools.groupby(order)]) == 3, "one run per peer"


def test_the_plan_says_what_is_lost_with_a_peer(bench: Cluster, folder: Path) -> None:
    """U9"""
    once = bench.client.put(fresh(folder, 30 * CHUNK).path).of("plan")[0]
    assert [row["chunks_lost"] for row in once["consequence"]] == [10, 10, 10]
    twice = bench.client.put(fresh(folder, 30 * CHUNK).path, "--replicas", "2").of("plan")[0]
    assert [row["chunks_lost"] for row in twice["consequence"]] == [0, 0, 0]


# -- room -----------------------------------------------------------------------------------

CAPACITIES = {"A": 4 * MIB, "B": 8 * MIB, "C": 16 * MIB}


@pytest.mark.row("U4")
def test_the_plan_follows_free_space_and_a_full_cluster_refuses(
    tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> None:
    with Cluster(tmp_path_factory.mktemp("room"), SMALL) as cluster:
        nodes = [cluster.start_node(n, "--capacity", str(size)) for n, size in CAPACITIES.items()]
        client = cluster.client

        def free() -> dict[str, int]:
            return {row["name"]: row["free"] for row in client.run("peers").last}

        def taken(node: Node) -> int:
            manifests = (node.store / "manifests").glob("*")
            return sum(node.chunks().values()) + sum(kept_bytes(path.stat().st_size) for path in manifests)

        def put(size: int, *options: str) -> dict[str, int]:
            """Chunks of a new file by node, once its space is no longer told as free."""
            source = fresh(folder, size)
            client.put(source.path, *options)
            left = {node.name: CAPACITIES[node.name] - taken(node) for node in nodes}
            wait_for(lambda: free() == left, PATIENCE_S, f"the tracker knows that {left} is left")
            shares = primaries(client.info(source.path.name))
            return {node.name: shares[node.peer_id] for node in nodes}

        assert free() == CAPACITIES
        shares = put(7 * MIB, "--strategy", "balanced")
        assert {name: round(count / 16) for name, count in shares.items()} == {"A": 1, "B": 2, "C": 4}
        assert all(abs(count - 16 * (1, 2, 4)[at]) <= 1 for at, count in enumerate(shares.values()))
        # A has about 3 MiB left: the others take what does not fit there.
        room = free()["A"] // CHUNK
        shares = put(13 * MIB)
        assert shares["A"] == room
        assert abs(shares["B"] - shares["C"]) <= 1
        # Only C and a little of B are left: more than that on two peers is refused.
        before = [node.chunks() for node in nodes]
        result = client.put(fresh(folder, 9 * MIB).path, code=8)
        assert result.last["code"] == "no_space"
        assert all(name in result.stderr for name in ("B", "C"))
        assert [node.chunks() for node in nodes] == before, "nothing was stored"
        assert len(client.ls()) == 2
        assert sum(put(THRESHOLD // 2).values()) == 8, "a file that still fits"


@pytest.mark.row("U2")
def test_too_few_peers(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> None:
    """U2"""
    with Cluster(tmp_path_factory.mktemp("few"), SMALL) as cluster:
        client, source = cluster.client, fresh(folder, 2 * MIB)
        nobody = client.put(source.path, code=3).last
        assert (nobody["online"], nobody["needed"]) == ([], 2)
        alone = cluster.start_node("alone")
        small = fresh(folder, 1000)
        assert client.put(small.path).last["peers"] == [alone.peer_id], "one is enough for a small file"
        result = client.put(source.path, code=3)
        error = result.last
        assert (error["code"], error["online"], error["needed"]) == ("too_few_peers", ["alone"], 2)
        for word in ("1 peer", "alone", "2"):
            assert word in error["message"]
        assert list(alone.chunks().values()) == [1000]
        assert client.names() == [small.path.name]

        put = client.start("put", "--yes", "--wait", source.path)
        waiting = put.until("waiting")
        assert (waiting["online"], waiting["needed"], waiting["chunks_missing"]) == (["alone"], 2, 32)
        second = cluster.start_node("second")
        done = put.result().expect(0).last
        assert sorted(done["peers"]) == sorted([alone.peer_id, second.peer_id])

        error = client.put(source.path, "--name", "x", "--replicas", "3", code=3).last
        assert (sorted(error["online"]), error["needed"]) == (["alone", "second"], 3)
        error = client.put(source.path, "--name", "x", "--min-peers", "4", code=3).last
        assert error["needed"] == 4
        assert "x" not in client.names()


# -- names ----------------------------------------------------------------------------------

NAMES = {
    """it's "quoted".bin""": """it's "quoted".bin""",
    "new\nline.bin": "newline.bin",
    "Größe 大きい é.bin": "Größe 大きい é.bin",
    "../x": "x",
    "/etc/passwd": "passwd",
    "..": "download",
    "--yes": "--yes",
    "\x1b[31mred\\slash": "slash",
}


@pytest.mark.row("S4")
def test_names_are_data_and_targets_are_safe(bench: Cluster, folder: Path) -> None:
    client = bench.client
    here = folder / "in" / "here"
    here.mkdir(parents=True)
    for name, safe in NAMES.items():
        source = make_file(folder / "source", 1000)
        done = client.put(source.path, f"--name={name}").last
        assert done["name"] == name
        result = client.run("get", "--", name, cwd=here)
        assert result.last["name"] == name
        assert [path.name for path in here.iterdir()] == [safe]
        assert sorted(path.name for path in folder.rglob("*")) == sorted(["in", "here", "source", safe])
        assert sha256_of(here / safe) == source.sha256
        (here / safe).unlink()
    assert set(NAMES) <= set(client.names())
    text = client.run("ls", json=False)
    assert "\x1b" not in "".join(text.lines)
    assert "/etc/passwd" in "".join(text.lines)
    removed = {"../x", "new\nline.bin", "--yes"}
    for name in removed:
        client.run("rm", "--yes", "--", name)
    assert not removed & set(client.names())


def test_names_that_are_no_utf8_are_refused(bench: Cluster, folder: Path) -> None:
    """Two of them would have become the same name."""
    client = bench.client
    for name in (b"caf\xe9.txt", b"caf\xe8.txt"):
        path = folder / os.fsdecode(name)
        source = make_file(path, 3000)
        result = client.put(path, code=2)
        assert "not valid UTF-8; choose another name with --name" in result.stderr
        client.put(path, "--name", f"coffee {name[-5]}")
        client.get(f"coffee {name[-5]}", folder / "copy", "--force")
        assert sha256_of(folder / "copy") == source.sha256
    assert not [name for name in client.names() if "caf" in name]


@pytest.mark.parametrize("path", ["/proc/cpuinfo", "/proc/version", "/sys/kernel/fscaps"])
def test_what_has_no_size_of_its_own_is_refused(bench: Cluster, path: str) -> None:
    result = bench.client.put(Path(path), code=2)
    assert f"{path} has another size than it reports: copy its content to a file" in result.stderr
    assert Path(path).name not in bench.client.names()


def test_two_files_of_one_name(bench: Cluster, folder: Path) -> None:
    older, newer = fresh(folder, 3000), fresh(folder, 4000)
    client = bench.client
    ids = [client.put(source.path, "--name", "twins").last["file_id"] for source in (older, newer)]
    assert [row["file_id"] for row in client.ls() if row["name"] == "twins"] == ids[::-1], "newest first"
    client.get("twins", folder / "copy")
    assert sha256_of(folder / "copy") == newer.sha256
    client.get(ids[0][:12], folder / "old copy")
    assert sha256_of(folder / "old copy") == older.sha256
    result = client.run("rm", "--yes", "twins", code=2)
    assert result.last["code"] == "ambiguous_name"
    assert sorted(result.last["candidates"]) == sorted(ids)
    assert all(file_id[:12] in result.stderr for file_id in ids)
    client.run("rm", "--yes", ids[1])
    client.get("twins", folder / "copy again")
    assert sha256_of(folder / "copy again") == older.sha256
    client.run("rm", "--yes", "twins")
    assert client.run("get", "twins", code=9).last["code"] == "not_found"


# -- what cannot be put ---------------------------------------------------------------------


def test_what_cannot_be_put(bench: Cluster, folder: Path) -> None:
    client = bench.join("humble", prefix=UNPRIVILEGED)
    secret = make_file(folder / "secret", 1000).path
    secret.chmod(0)
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    for path, code in ((secret, 7), (folder, 2), (pipe, 2), (folder / "absent", 9)):
        result = client.put(path, code=code)
        assert str(path) in result.last["message"]
        assert len(result.stderr.splitlines()) == 1
    assert not {"secret", "pipe", "absent", folder.name} & set(client.names())


def test_where_a_download_cannot_go(bench: Cluster, folder: Path) -> None:
    client = bench.join("humble too", prefix=UNPRIVILEGED)
    source = fresh(folder, 1000)
    client.put(source.path)
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    client.get(source.path.name, locked / "copy", code=7)
    client.get(source.path.name, folder / "absent" / "copy", code=9)
    assert not list(locked.iterdir())


# -- questions ------------------------------------------------------------------------------


def test_a_question_needs_a_terminal(bench: Cluster, folder: Path) -> None:
    source, client = fresh(folder, 2 * MIB), bench.client
    result = client.run("put", source.path, code=2)
    assert "--yes" in result.stderr
    assert source.path.name not in client.names()
    client.put(source.path)
    assert "--yes" in client.run("rm", source.path.name, code=2).stderr
    assert source.path.name in client.names()


def test_the_questions_at_a_terminal(bench: Cluster, folder: Path) -> None:
    source, client = fresh(folder, 2 * MIB), bench.client

    def ask(answer: str, *words: Any) -> Result:
        process = client.start(*words, terminal=True, json=False)
        wait_for(lambda: "?" in process.stderr, PATIENCE_S, "the question")
        process.answer(f"{answer}\n")
        return process.result()

    no = ask("n", "put", source.path).expect(130)
    for word in ("A", "B", "C", source.path.name, "2.1 MB"):
        assert word in no.stderr + "".join(no.lines)
    assert source.path.name not in client.names()
    yes = ask("y", "put", source.path).expect(0)
    assert yes.lines[-1] == client.info(source.path.name)["file_id"]
    ask("n", "rm", source.path.name).expect(130)
    assert source.path.name in client.names()
    ask("y", "rm", source.path.name).expect(0)
    assert source.path.name not in client.names()


# -- targets --------------------------------------------------------------------------------


def test_a_target_with_other_content_is_not_touched(bench: Cluster, folder: Path) -> None:
    source, client = fresh(folder, 2 * MIB), bench.client
    client.put(source.path)
    target = folder / "out" / "copy"
    target.parent.mkdir()
    target.write_text("mine")
    result = client.get(source.path.name, target, code=2)
    assert result.last["code"] == "target_exists"
    assert target.read_text() == "mine"
    forced = client.get(source.path.name, target, "--force").last
    assert (forced["event"], forced["bytes_received"]) == ("done", source.size)
    assert sha256_of(target) == source.sha256
    same = client.get(source.path.name, target).last
    assert (same["event"], same["bytes_received"], same["already"]) == ("done", 0, True)
    assert (same["sha256"], same["size"]) == (source.sha256, source.size)
    assert list(target.parent.iterdir()) == [target]


# -- putting again --------------------------------------------------------------------------


@pytest.mark.row("U7")
def test_the_same_file_again_sends_nothing(bench: Cluster, folder: Path) -> None:
    """U7"""
    source, client = fresh(folder, 2 * MIB), bench.client
    first, second = client.put(source.path).last, client.put(source.path).last
    assert (first["bytes_sent"], second["bytes_sent"]) == (source.size, 0)
    assert first["file_id"] == second["file_id"]
    assert (first["already"], second["already"]) == (False, True)
    assert client.names().count(source.path.name) == 1


@pytest.mark.row("U7")
def test_another_version_sends_only_what_changed(bench: Cluster, folder: Path) -> None:
    """U7"""
    source, client = fresh(folder, 50 * CHUNK), bench.client
    client.put(source.path)
    with open(source.path, "r+b") as file:
        file.seek(20 * CHUNK + 5)
        file.write(os.urandom(100))
    assert client.put(source.path).last["bytes_sent"] == CHUNK


# -- the tracker is not there ---------------------------------------------------------------


@contextmanager
def tracker_away(cluster: Cluster) -> Iterator[None]:
    cluster.stop_tracker(signal.SIGKILL)
    yield
    cluster.start_tracker()
    cluster.await_all_up()


def test_a_tracker_that_is_not_there_is_told_within_5_s(bench: Cluster, folder: Path) -> None:
    source, client = fresh(folder, 2 * MIB), bench.client
    client.put(source.path)
    tokens = [bench.token("client"), bench.token("node")]
    stray = Client(bench, folder)

    def starts() -> Iterator[Process]:
        yield client.start("ls")
        yield client.start("peers")
        yield client.start("info", source.path.name)
        yield client.start("rm", "--yes", source.path.name)
        yield client.start("put", "--yes", "--name", "y", source.path)
        yield client.start("get", source.path.name, "-o", folder / "copy")
        yield stray.start("join", tokens[0])
        yield stray.start("node", "--join", tokens[1], "--bind", "127.0.0.1:0", "--name", "Z", json=False)

    with tracker_away(bench):
        waiting = starts()
        while pair := list(itertools.islice(waiting, 2)):  # two at a time: a processor each
            for result in [process.result() for process in pair]:
                result.expect(6)
                assert result.seconds < 5.0, str(result)
                assert bench.tracker.endpoint in result.stderr
                assert len(result.stderr.splitlines()) == 1
                if result.args[0] != "node":
                    assert (result.last["code"], result.last["exit_code"]) == ("tracker_unreachable", 6)
    assert source.path.name in client.names()
    with bench.frozen(bench.tracker.process):
        result = client.run("ls", code=6)
        assert result.seconds < 5.0
        assert bench.tracker.endpoint in result.stderr
