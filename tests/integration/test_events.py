"""`zchunk events` and `Client.events` (SPEC I1): nothing is left out, whatever happens to the tracker."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.cluster import MIB, PATIENCE_S, Cluster, make_file
from zchunk import Client as Api


def follow(bench: Cluster, *words: str) -> Any:
    """A running `zchunk events`, once it follows: its first event is one made for it."""
    return bench.client.start("events", *words)


def topics(lines: list[dict[str, Any]]) -> list[str]:
    return [line["topic"] for line in lines]


@pytest.mark.row("I1")
def test_what_happens_comes_line_by_line_until_ctrl_c(bench: Cluster, folder: Any) -> None:
    seen = follow(bench, "--since", "0")
    source = make_file(folder / "told.bin", 2 * MIB)
    done = bench.client.put(source.path)
    event = seen.until(lambda e: e.get("topic") == "file.distributed" and e["name"] == "told.bin")
    assert event["file_id"] == done.last["file_id"]
    assert (event["size"], event["is_distributed"]) == (source.size, True)
    bench.client.run("rm", "told.bin", "--yes")
    seen.until(lambda e: e.get("topic") == "file.removed")
    seen.send(signal.SIGINT)
    result = seen.result().expect(0)
    numbers = [line["seq"] for line in result.events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert {line["epoch"] for line in result.events} == {event["epoch"]}
    assert all(line["time"].endswith("Z") for line in result.events)
    assert "Traceback" not in result.stderr


def test_topics_choose(bench: Cluster, folder: Any) -> None:
    peers = follow(bench, "--since", "0", "--topic", "peer")
    removed = follow(bench, "--since", "0", "--topic", "file.removed", "--topic", "peer.up")
    bench.client.put(make_file(folder / "chosen.bin", 100).path)
    bench.client.run("rm", "chosen.bin", "--yes")
    removed.until(lambda e: e.get("topic") == "file.removed")
    bench.stop("C")
    peers.until(lambda e: e.get("topic") == "peer.down" and e["name"] == "C")
    for job in (peers, removed):
        job.send(signal.SIGTERM)
    assert set(topics(peers.result().events)) <= {"peer.up", "peer.down", "peer.updated"}
    assert set(topics(removed.result().events)) == {"file.removed", "peer.up"}


def test_events_go_on_when_the_tracker_is_started_anew(bench: Cluster) -> None:
    seen = follow(bench, "--since", "0")
    first = seen.until(lambda e: e.get("topic") == "peer.up")
    bench.stop_tracker(signal.SIGKILL)
    bench.start_tracker()
    back = seen.until(lambda e: e.get("topic") == "peer.up" and e["epoch"] != first["epoch"])
    bench.await_all_up()
    seen.send(signal.SIGINT)
    lines = seen.result().expect(0).events
    later = [line["seq"] for line in lines if line["epoch"] == back["epoch"]]
    assert later == list(range(1, len(later) + 1)), "the new run from its first event"


def test_a_reader_that_has_enough_ends_it_without_a_word(bench: Cluster) -> None:
    command = [sys.executable, "-m", "zchunk", "events", "--since", "0", "--json"]
    command += ["--home", str(bench.client.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["topic"] == "peer.up"
        process.stdout.close()
        bench.stop("C")  # something to write
        bench.restart("C")
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == b""


def test_without_a_tracker_it_is_said_within_seconds(bench: Cluster) -> None:
    bench.stop_tracker()
    result = bench.client.run("events", code=6)
    assert bench.tracker.endpoint in result.stderr


def test_three_lines_of_python(bench: Cluster) -> None:
    bench.stop("C")
    bench.restart("C")
    with Api(bench.client.home) as client:
        seen = list(itertools.islice(client.events(since=0), 3))
        for event in client.events(since=seen[1]["seq"]):
            assert event["seq"] == seen[2]["seq"]
            break
        assert not client._calls._open
    assert set(topics(seen)) <= {"peer.up", "peer.down", "peer.updated"}
