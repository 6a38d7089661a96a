"""A command that waits says nothing new, draws nothing, and sleeps."""

from __future__ import annotations

import itertools
import os
import pty
import threading
import time
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, Cluster, Process, Source, make_file
from tests.waiting import wait_for

pytestmark = pytest.mark.alone

#: How long a command is looked at, and what of our threads may wake in this time.
LOOK_S = 6.0
WAKES_A_SECOND = 5.0
#: of that time; ticks are 10 ms
MOST_CPU = 0.01
#: longer than the window whose speed is shown: what is quiet so long has nothing left to draw
QUIET_S = 4.0


@pytest.fixture(scope="module")
def source(bench_cluster: Cluster, sources: Path) -> Source:
    source = make_file(sources / "waiting.bin", 4 * MIB)
    bench_cluster.client.put(source.path)
    return source


def threads(pid: int) -> dict[str, tuple[int, int]]:
    """Thread id -> voluntary switches and CPU ticks; libzmq's own are left out."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        ticks = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
        if not status["Name"].strip().startswith("ZMQ"):
            found[task.name] = int(status["voluntary_ctxt_switches"]), sum(map(int, ticks))
    return found


def check_asleep(process: Process) -> None:
    before, began = threads(process.pid), time.monotonic()
    assert not process.ends_within(LOOK_S), str(process)
    after, took = threads(process.pid), time.monotonic() - began
    each = {t: (s - before.get(t, (0, 0))[0], c - before.get(t, (0, 0))[1]) for t, (s, c) in after.items()}
    wakes, ticks = (sum(column) for column in zip(*each.values(), strict=True))
    assert wakes <= WAKES_A_SECOND * took, each
    assert ticks / os.sysconf("SC_CLK_TCK") <= max(MOST_CPU * took, 0.05), each


def test_a_get_that_waits_sleeps_and_says_nothing(bench: Cluster, source: Source, folder: Path) -> None:
    bench.kill("A")
    getting = bench.client.start("get", source.path.name, "-o", folder / "x")
    getting.until("waiting")
    getting.until(lambda event: event.get("event") == "progress" and event["bytes_per_second"] == 0)
    assert not getting.ends_within(1.0)
    check_asleep(getting)
    bench.restart("A")
    getting.result().expect(0)
    lines = [event for event in getting.events if event["event"] == "progress"]
    at_rest = [event for event in lines if event["bytes_per_second"] == 0 and event["chunks_completed"] < 64]
    assert len(at_rest) <= 3, "one line when nothing moves any more"
    same = [one for one, other in itertools.pairwise(lines) if one == other]
    assert not same, "each says something new"


def test_on_a_terminal_a_get_that_waits_draws_nothing(
    bench: Cluster, source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    bench.kill("A")
    master, slave = pty.openpty()
    drawn: list[tuple[float, bytes]] = []

    def read() -> None:
        try:
            while piece := os.read(master, 65536):
                drawn.append((time.monotonic(), piece))
        except OSError:  # the terminal's other side is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    getting = bench.client.start("get", source.path.name, "-o", folder / "x", json=False, err=slave)
    os.close(slave)

    def settled() -> bool:
        shown = b"".join(piece for _, piece in drawn)
        return b"waiting" in shown and time.monotonic() - drawn[-1][0] > QUIET_S

    wait_for(settled, 60, "nothing moves any more")
    rested = time.monotonic()
    check_asleep(getting)
    awake = time.monotonic()
    bench.restart("A")
    assert getting.wait() == 0
    reader.join(10)
    os.close(master)
    assert [piece for at, piece in drawn if rested < at < awake] == []
    text = b"".join(piece for _, piece in drawn)
    assert b"A is back: continuing" in text
    assert b"\x1b[" in text, "it was a terminal"


def test_a_put_that_waits_for_peers_sleeps(bench: Cluster, source: Source) -> None:
    bench.kill("A")
    words = ("--yes", "--wait", "--min-peers", "3", "--name", "later", source.path)
    putting = bench.client.start("put", *words)
    putting.until("waiting")
    check_asleep(putting)
    bench.restart("A")
    putting.result().expect(0)


def test_who_follows_events_sleeps_between_them(bench: Cluster) -> None:
    following = bench.client.start("events", "--since", "0")
    following.until(lambda event: event.get("topic") == "peer.up")
    assert not following.ends_within(1.0)
    check_asleep(following)
