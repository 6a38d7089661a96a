"""What a tracker and a node say at their start: people at a terminal are greeted and told what to
do next; a program that has started them gets `ready {json}`, and nothing else on stdout."""

from __future__ import annotations

import json
import os
import pty
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import PATIENCE_S, Cluster
from tests.waiting import wait_for
from zchunk.transport.auth import parse_token


class Terminal:
    """Stands in for stdout; `text` is what it shows."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        self._shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._shown += os.read(self._master, 65536)
            except OSError:  # the other side is closed
                return

    @property
    def lines(self) -> list[str]:
        return self._shown.decode().splitlines()

    def wait(self, text: str) -> None:
        wait_for(lambda: any(text in line for line in self.lines), PATIENCE_S, f"{text!r} on the screen")

    def close(self) -> None:
        os.close(self.slave)
        self._reader.join(PATIENCE_S)
        os.close(self._master)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("greeting")) as cluster:
        yield cluster


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def tracker_words(home: Path, *more: str) -> list[str]:
    return ["tracker", "--home", str(home), "--bind", "127.0.0.1:0", "--events", "127.0.0.1:0", *more]


def test_a_new_tracker_shows_where_it_runs_and_a_token(
    cluster: Cluster, folder: Path, terminal: Terminal
) -> None:
    process = cluster.spawn(tracker_words(folder / "t"), out=terminal.slave)
    terminal.wait("tracker running at 127.0.0.1:")
    wait_for(lambda: "stores nothing." in process.stderr, PATIENCE_S, "all is said")
    assert terminal.lines[0].endswith(" (Ctrl-C stops it)")
    assert len(terminal.lines) == 1, "and no `ready`"
    first, *_ = process.stderr.splitlines()
    assert first.startswith("This is a new cluster. On each PC that is to store chunks (this PC too), run ")
    (token,) = [line.strip() for line in process.stderr.splitlines() if line.startswith("  zchunk1-")]
    assert parse_token(token).role == "node"
    assert " INFO " not in process.stderr
    assert process.end(signal.SIGINT) == 0
    terminal.wait("tracker stopped")


def test_a_tracker_that_has_run_before_says_how_to_add_a_pc(
    cluster: Cluster, folder: Path, terminal: Terminal
) -> None:
    before = cluster.spawn(tracker_words(folder / "t"))
    before.ready()
    before.end()
    process = cluster.spawn(tracker_words(folder / "t"), out=terminal.slave)
    terminal.wait("zchunk node --join -")
    assert any(f"zchunk token --home {folder / 't'} " in line for line in terminal.lines)
    assert process.stderr == "", "a token is shown once"
    process.end()


def test_a_node_shows_where_it_runs_and_what_to_do(
    cluster: Cluster, folder: Path, terminal: Terminal
) -> None:
    home = folder / "n"
    words = ["node", "--home", str(home), "--bind", "127.0.0.1:0", "--name", "GREETED"]
    process = cluster.spawn([*words, "--join", cluster.token()], out=terminal.slave)
    terminal.wait("zchunk put")
    running, joined, *hints = terminal.lines
    assert running.startswith("node GREETED running at 127.0.0.1:")
    assert joined == (
        f"joined the cluster of {cluster.tracker.endpoint}; stores chunks in {home / 'node' / 'store'}"
    )
    assert f"zchunk peers --home {home}" in hints[0]
    assert process.stderr == ""
    assert process.end(signal.SIGINT) == 0
    terminal.wait("node GREETED stopped")


@pytest.mark.parametrize("more", [(), ("-v",)])
def test_json_is_for_programs_at_a_terminal_too(
    cluster: Cluster, folder: Path, terminal: Terminal, more: tuple[str, ...]
) -> None:
    process = cluster.spawn(tracker_words(folder / "t", "--json", *more), out=terminal.slave)
    terminal.wait("ready {")
    assert json.loads(terminal.lines[0].removeprefix("ready "))["home"] == str(folder / "t")
    assert process.end() == 0
    assert len(terminal.lines) == 1
    assert (" INFO zchunk." in process.stderr) == bool(more)


def test_a_failure_with_json_is_an_error_object(cluster: Cluster, folder: Path) -> None:
    failed = cluster.spawn(["node", "--json", "--home", str(folder / "n")]).result().expect(7)
    assert failed.last["event"] == "error"
    assert failed.last["code"] == "not_joined"
