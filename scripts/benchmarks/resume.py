"""How fast a download that waits goes on: from the kill of a peer to the first new byte.

A tracker and two nodes run as processes; the waiting download runs in this process, through
the Python API, so that the moments in it are known: that a `peer.up` arrived, that a request
for a waiting chunk was sent, that a new chunk is at its place in the part file (written past
the page cache where the file system takes it). The node's own moments come from its log.
Each round kills one node, waits for the news, starts a download that then lacks that node's
chunks, starts the node again, and compares the file at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from servers import Cluster, Failed, Server, make_file, wait_for

import zchunk
from benchmarks import cable
from benchmarks.figures import Figure, print_json, print_table
from zchunk.config import Settings
from zchunk.node.download.part_file import PartFile

MIB = 1024**2
FILE = "waiting.bin"
VICTIM = "PC-B"


class Moments:
    """When something first happened in this round, monotonic seconds."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}

    def clear(self) -> None:
        self._times.clear()

    def note(self, name: str) -> None:
        self._times.setdefault(name, time.monotonic())

    def get(self, name: str) -> float | None:
        return self._times.get(name)

    def __getitem__(self, name: str) -> float:
        return self._times[name]


class Subscriber(threading.Thread):
    """A tool that follows the events: notes when it hears of the victim."""

    def __init__(self, home: Path, moments: Moments) -> None:
        super().__init__(daemon=True)
        self._home = home
        self._moments = moments

    def run(self) -> None:
        with zchunk.Client(self._home) as client:
            for event in client.events(since=0):
                if event.get("name") == VICTIM:
                    self._moments.note(event["topic"])


class Download(threading.Thread):
    """One download; notes its own moments."""

    def __init__(self, client: zchunk.Client, target: Path, victim: str, moments: Moments) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._target = target
        self._victim = victim
        self._moments = moments
        self.waits = threading.Event()
        self.problem: Exception | None = None

    def run(self) -> None:
        try:
            self._client.get(FILE, self._target, on_event=self._on_event)
        except Exception as error:  # noqa: BLE001 - shown by the main thread
            self.problem = error

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "waiting":
            self.waits.set()


def instrument(client: zchunk.Client, victim: str, moments: Moments) -> None:
    """Wraps the places whose moments are wanted; they do what they did."""
    session, links, write = client.control.session, client.bulk.links, PartFile.write_chunk
    on_event, get_block = session.event, links.get_block

    def event(published: Any, now: float) -> Any:
        if published.topic == "peer.up" and published.fields.get("peer_id") == victim:
            moments.note("peer.up in the download")
        return on_event(published, now)

    def ask(peer_id: str, *rest: Any) -> None:
        if peer_id == victim:
            moments.note("request sent")
        get_block(peer_id, *rest)

    def written(part: PartFile, index: int, view: Any) -> None:
        write(part, index, view)
        moments.note("written")

    session.event = event  # type: ignore[method-assign,assignment]
    links.get_block = ask  # type: ignore[method-assign,assignment]
    PartFile.write_chunk = written  # type: ignore[method-assign,assignment]


def logged(server: Server, text: str) -> float:
    """When this start of the node logged a line with `text`, monotonic seconds to a millisecond."""
    with server.log.open("rb") as file:
        file.seek(server.log_begin)
        lines = file.read().decode().splitlines()
    for line in lines:
        match = re.match(r"(\S+ \S+),(\d{3}) ", line)
        if match and text in line:
            wall = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(match[2]) / 1000
            return wall - time.time() + time.monotonic()
    raise Failed(f"the node's log has no line {text!r}")


class Bench:
    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root = root
        self.moments = Moments()
        self.cluster = Cluster(root, stack)
        for name in ("PC-A", VICTIM):
            self.cluster.start_node(name)
        self.cluster.join()
        source = root / FILE
        make_file(source, 80 * MIB)
        self.sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
        self._spread(source)
        self.victim: str = self.cluster.nodes[VICTIM].ready["peer_id"]
        self.client = stack.enter_context(zchunk.Client(self.cluster.home))
        instrument(self.client, self.victim, self.moments)
        Subscriber(self.cluster.home, self.moments).start()
        # It follows, once it has heard what was before.
        wait_for(lambda: self.moments.get("peer.up"), "the subscriber")
        self.down = Figure("kill -9 of a peer -> peer.down at a subscriber", 150)
        self.up = Figure("node's hello sent -> peer.up at a subscriber", 50)
        self.asked = Figure("peer.up received -> request for a waiting chunk sent", 10)
        self.byte = Figure("node listening -> first new chunk on disk", 150)
        self.fetch = Figure("of these, request sent -> first new chunk on disk", None)
        self.ready = Figure("node's process started -> hello acknowledged, ready", None)
        self.start = Figure("node's process started -> first new chunk on disk", None)

    def _spread(self, source: Path) -> None:
        """Half of the chunks on each node, though the file is small."""
        import os

        os.environ["ZCHUNK_CHUNKING__MIN_FILE_SIZE_FOR_DISTRIBUTION"] = "1MiB"
        self.cluster.json("put", str(source), "--yes")
        del os.environ["ZCHUNK_CHUNKING__MIN_FILE_SIZE_FOR_DISTRIBUTION"]

    @property
    def figures(self) -> list[Figure]:
        return [self.down, self.up, self.asked, self.byte, self.fetch, self.ready, self.start]

    def round(self) -> None:
        moments, target = self.moments, self.root / "copy.bin"
        moments.clear()
        killed = self.cluster.nodes[VICTIM].kill()
        wait_for(lambda: moments.get("peer.down"), "peer.down")
        download = Download(self.client, target, self.victim, moments)
        download.start()
        if not download.waits.wait(30):
            raise Failed(f"the download does not wait: {download.problem}")
        down = moments["peer.down"]
        moments.clear()
        started = time.monotonic()
        node = self.cluster.start_node(VICTIM)
        ready = time.monotonic()
        download.join(30)
        if download.is_alive() or download.problem is not None:
            raise Failed(f"the download did not end: {download.problem}")
        if hashlib.sha256(target.read_bytes()).hexdigest() != self.sha256:
            raise Failed("the file differs")
        target.unlink()
        wait_for(lambda: moments.get("peer.up"), "peer.up")
        self.down.add(down - killed)
        self.up.add(moments["peer.up"] - logged(node, "registering with the tracker"))
        self.asked.add(moments["request sent"] - moments["peer.up in the download"])
        self.byte.add(moments["written"] - logged(node, "listening"))
        self.fetch.add(moments["written"] - moments["request sent"])
        self.ready.add(ready - started)
        self.start.add(moments["written"] - started)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench resume", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cables", type=int, default=10, help="rounds with a pulled cable")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    options = parser.parse_args(arguments)
    settings = {"transport": Settings().security.transport, "sync": "always", "verification": "SHA-256"}
    with tempfile.TemporaryDirectory(prefix="zchunk-bench-") as folder, ExitStack() as stack:
        bench = Bench(Path(folder), stack)
        bench.round()  # the first touch of everything
        for figure in bench.figures:
            figure.samples.clear()
        for _ in range(options.rounds):
            bench.round()
    figures, left_out = bench.figures, ""
    if options.cables:
        with tempfile.TemporaryDirectory(prefix="zchunk-bench-") as folder:
            found = cable.measure(Path(folder), options.cables)
        if isinstance(found, str):
            left_out = f"pulled cables: left out, {found}"
        else:
            figures = [*figures, found]
    if options.json:
        print_json("resume", settings, figures)
    else:
        print(f"{options.rounds} rounds, transport {settings['transport']}, every chunk verified and durable")
        print_table(figures)
    if left_out:
        print(left_out, file=sys.stderr)
    return 0 if all(figure.held for figure in figures) else 1
