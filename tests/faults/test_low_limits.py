"""Few descriptors from the start, or taken by the program around: what begins works, and what cannot is
refused in one line that names the limit. Nothing hangs, nothing aborts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, ROOT, Cluster, Result, Source, make_file, sha256_of
from tests.integration.conftest import SMALL

#: From there on each command works, with three nodes.
CLIENT_WORKS = 60
TRACKER, NODE = 67, 79
#: Each command is refused.
_LOW = (6, 10, 16, 24, 32, 50)
#: It depends on the nodes that a command talks to.
_BETWEEN = (51, 53, 55, 57)
_SOON_S = 30.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("low"), SMALL) as cluster:
        cluster.start_nodes("A", "B", "C")
        yield cluster


@pytest.fixture(scope="module")
def stored(cluster: Cluster) -> Source:
    source = make_file(cluster.root / "stored", 2 * MIB)
    cluster.client.put(source.path)
    return source


def limited(cluster: Cluster, limit: int, *words: str | Path) -> Result:
    prefix = ("prlimit", f"--nofile={limit}")
    return cluster.spawn([str(word) for word in words], prefix=prefix).result(_SOON_S)


def is_refused(result: Result, limit: int) -> None:
    """In one line, in both forms."""
    error = result.last
    assert (error["event"], error["code"], error["exit_code"]) == ("error", "storage_unavailable", 1)
    assert f" of {limit} are free" in error["message"]
    assert "(RLIMIT_NOFILE), e.g. `ulimit -n 1024`" in error["message"]
    assert result.stderr == f"zchunk: {error['message']}\n"


def commands(cluster: Cluster, folder: Path, limit: int, stored: Source) -> Iterator[Result]:
    fresh = make_file(folder / f"put-{limit}", MIB)
    home = ("--json", "--home", cluster.client.home)
    yield limited(cluster, limit, "ls", *home)
    yield limited(cluster, limit, "put", "--yes", *home, fresh.path)
    yield limited(cluster, limit, "get", *home, "-o", folder / f"got-{limit}", stored.path.name)
    if (folder / f"got-{limit}").exists():
        assert sha256_of(folder / f"got-{limit}") == stored.sha256


@pytest.mark.parametrize("limit", _LOW)
def test_a_command_with_too_few_says_so(cluster: Cluster, stored: Source, tmp_path: Path, limit: int) -> None:
    for result in commands(cluster, tmp_path, limit, stored):
        is_refused(result.expect(1), limit)
    assert list(tmp_path.iterdir()) == [tmp_path / f"put-{limit}"], "nothing was begun"


@pytest.mark.parametrize("limit", _BETWEEN)
def test_a_command_with_few_works_or_says_so(
    cluster: Cluster, stored: Source, tmp_path: Path, limit: int
) -> None:
    codes = []
    for result in commands(cluster, tmp_path, limit, stored):
        codes.append(result.code)
        if result.code:
            is_refused(result.expect(1), limit)
    assert codes[0] == 0, "`ls` needs no node"


@pytest.mark.parametrize("limit", [CLIENT_WORKS, 128])
def test_a_command_with_some_works(cluster: Cluster, stored: Source, tmp_path: Path, limit: int) -> None:
    for result in commands(cluster, tmp_path, limit, stored):
        result.expect(0)


@pytest.mark.parametrize("limit", [10, 32, 48, TRACKER - 1, TRACKER])
def test_a_tracker_starts_or_says_why_not(cluster: Cluster, tmp_path: Path, limit: int) -> None:
    serves_or_says_why_not(cluster, limit, TRACKER, "tracker", "--home", tmp_path, "--bind", "127.0.0.1:0")


@pytest.mark.parametrize("limit", [10, 32, 64, NODE - 1, NODE])
def test_a_node_starts_or_says_why_not(cluster: Cluster, tmp_path: Path, limit: int) -> None:
    token = tmp_path / "token"
    token.write_text(cluster.token())
    words = ("--home", tmp_path / "home", "--bind", "127.0.0.1:0", "--name", f"few-{limit}")
    serves_or_says_why_not(cluster, limit, NODE, "node", *words, "--join", f"@{token}")


def serves_or_says_why_not(cluster: Cluster, limit: int, enough: int, *words: str | Path) -> None:
    prefix = ("prlimit", f"--nofile={limit}")
    server = cluster.spawn([str(word) for word in words], prefix=prefix)
    if limit >= enough:
        server.ready()
        assert server.end() == 0, str(server)
    else:
        result = server.result(_SOON_S).expect(1)
        assert result.stderr.startswith("zchunk: ")
        assert f" of {limit} are free: raise the limit (RLIMIT_NOFILE), e.g. `ulimit" in result.stderr
        assert result.stderr.count("\n") == 1


#: Takes all descriptors but so many, before it has a client or after; then works with it, and tells.
_PROGRAM = """
import json, os, resource, sys
from contextlib import suppress
import zchunk
from zchunk import errors

home, name, target, when, left = sys.argv[1:]
zchunk.Client  # is imported by that
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

def take():
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.dup(0))
    for fd in taken[: int(left)]:
        os.close(fd)

def tell(act):
    try:
        act()
    except errors.ZchunkError as error:
        print(json.dumps([error.code, error.message]), flush=True)
    else:
        print(json.dumps(["", ""]), flush=True)

def work():
    with zchunk.Client(home) as client:
        client.peers()
        if when == "after":
            take()
        client.get(name, target)

if when == "before":
    take()
tell(work)
"""


@pytest.mark.parametrize("left", [0, 4, 8, 24, 47, 64])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_program_that_has_taken_most_is_told(
    cluster: Cluster, stored: Source, tmp_path: Path, when: str, left: int
) -> None:
    code, message = told_by(cluster, stored.path.name, str(tmp_path / "copy"), when, str(left))
    if code:
        assert code == "storage_unavailable"
        assert "`ulimit -n" in message
        assert left < 48
    else:
        assert sha256_of(tmp_path / "copy") == stored.sha256
        assert left >= (48 if when == "before" else 16)


def told_by(cluster: Cluster, *words: str) -> Sequence[str]:
    home = str(cluster.client.home)
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, home, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_SOON_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    told: Sequence[str] = json.loads(ended.stdout)
    return told
