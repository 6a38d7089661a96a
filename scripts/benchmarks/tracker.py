"""A tracker with much to do: simulated nodes that send heartbeats, large files, many files.

The tracker is the real process, alone on the first CPU; the load comes from processes on
the others and speaks the real protocol. What is in its store before was put there through
its own classes. Times of answers are taken at who asked, and the longest turn of the control
loop inside the tracker.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import asking, trackerhome
from benchmarks.asking import Asker
from benchmarks.crowd import At, Crowd, Listeners
from benchmarks.trackerprocess import TrackerProcess, stay_off_the_trackers_cpu
from zchunk.system import addresses

#: heartbeats per second that the other figures are taken under
RATE = 5_000
LARGE = 100_000
SECONDS = 5.0
SMALLEST, GROWTH = 1_000, 10


@dataclass
class Line:
    """A figure; `goal` is its bound, a lower one where `more` is better."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    more: bool = False

    @property
    def held(self) -> bool:
        if self.goal is None:
            return True
        return self.value >= self.goal if self.more else self.value <= self.goal

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "value": round(self.value, 3), "held": self.held}


@dataclass
class Found:
    lines: list[Line] = field(default_factory=list)
    #: name of a curve -> (x, y) of its points
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str, goal: float | None = None, more: bool = False) -> None:
        self.lines.append(Line(name, value, unit, goal, more))

    def point(self, curve: str, x: float, y: float) -> None:
        self.curves.setdefault(curve, []).append((x, round(y, 3)))


class Rig:
    """A tracker over a store of `chunks`, and who asks it."""

    def __init__(self, folder: Path, chunks: int, options: argparse.Namespace) -> None:
        if options.stores:
            self.home = trackerhome.kept(folder, options.stores, options.nodes, chunks)
        else:
            self.home = trackerhome.make(folder, options.nodes, chunks)
        self.options = options
        self._uploads = 0
        self._published: list[bytes] = []
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        self.tracker = TrackerProcess(self.home.folder, self.options.transport)
        self._stack.callback(self.tracker.stop)
        membership = self.tracker.ready
        self.at = At(
            addresses.parse(membership["endpoint"]).tcp,
            addresses.parse(membership["events"]).tcp,
            _public_key(self.home.folder) if self.options.transport == "curve" else None,
        )

    def connect(self) -> None:
        self.crowd = Crowd(self.at, self.home.nodes)
        self._stack.callback(self.crowd.stop)
        self.calm()
        self.client = self._asker(self.home.client)
        self.holders = [self._asker(node.key) for node in self.home.nodes[:3]]

    def calm(self) -> None:
        """A heartbeat of each node a second: without any they would be called down."""
        self.crowd.rate(len(self.home.nodes))

    def listeners(self) -> Listeners:
        listeners = Listeners(self.at, self.home.watcher, self.options.subscribers)
        self._stack.callback(listeners.stop)
        return listeners

    def _asker(self, key: Any) -> Asker:
        asker = Asker(self.at, key)
        self._stack.callback(asker.close)
        return asker

    def publish(self, name: str, chunks: int) -> asking.Published:
        self._uploads += 1
        manifest = trackerhome.manifest_of(name, chunks)
        self._published = manifest.hashes
        return asking.publish(self.client, self.holders, manifest, self._uploads)

    def copy_comes(self, number: int) -> None:
        """A second copy of a chunk of the file published last; another `number`, another chunk."""
        index = len(self.holders) * number + 1  # the second holder has it
        asking.report(self.holders[0], self._uploads, self._published[index])

    def close(self) -> None:
        self._stack.close()


def _public_key(folder: Path) -> bytes:
    return bytes.fromhex(json.loads((folder / "tracker" / "key.json").read_text())["public"])


@contextmanager
def rig_of(chunks: int, options: argparse.Namespace) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="zchunk-bench-") as folder:
        rig = Rig(Path(folder) / "pc", chunks, options)
        try:
            yield rig
        finally:
            rig.close()


# -- what is measured ---------------------------------------------------------------------


def heartbeats(rig: Rig, found: Found) -> None:
    rig.crowd.rate(RATE)
    before, begun = rig.tracker.note(), time.monotonic()
    time.sleep(SECONDS)
    told, seconds, after = rig.crowd.report(), time.monotonic() - begun, rig.tracker.note()
    found.add(
        f"heartbeats answered, {RATE} sent per second",
        told["answered"] / told["seconds"],
        "1/s",
        0.98 * RATE,
        more=True,
    )
    _latency("heartbeat -> answer", told, found)
    found.add("tracker's share of its core", 100 * (after["cpu_s"] - before["cpu_s"]) / seconds, "%")
    _turn("heartbeats alone", after, found)
    rig.crowd.rate(float("inf"))
    before = rig.tracker.note()
    time.sleep(SECONDS)
    told = rig.crowd.report()
    found.add("heartbeats answered, as many as go", told["answered"] / told["seconds"], "1/s")
    found.add("share of a core that the simulated nodes took then", 100 * told["cpu"], "%")
    rig.calm()


def _latency(name: str, told: dict[str, float], found: Found) -> None:
    for share in ("median", "p99", "max"):
        found.add(f"{name}, {share}", told[f"{share}_ms"], "ms")


def _turn(name: str, note: dict[str, float], found: Found) -> None:
    found.add(f"{name}: longest turn of the control loop", note["longest_turn_ms"], "ms", 50)


def large_file(rig: Rig, found: Found, rate: float, where: str) -> None:
    """Publish, locate; what they do to heartbeats and to the loop meanwhile."""
    name = f"large-{where}"
    rig.crowd.rate(rate)
    rig.tracker.note()
    published = rig.publish(name, LARGE)
    _busy(rig, found, f"registration, {where}", rate)
    found.add(f"plan of {LARGE:,} chunks, {where}", 1000 * published.plan, "ms")
    found.add(f"{LARGE:,} chunks reported as stored, {where}", 1000 * published.stored, "ms")
    found.add(f"publish of {LARGE:,} chunks, {where}", 1000 * published.commit, "ms", 1000)
    rig.crowd.report()
    rig.tracker.note()
    first = asking.locate(rig.client, name, LARGE)
    times = [asking.locate(rig.client, name, LARGE) for _ in range(rig.options.rounds)]
    changed = []
    for number in range(rig.options.rounds):
        rig.copy_comes(number)
        changed.append(asking.locate(rig.client, name, LARGE))
    _busy(rig, found, f"locate, {where}", rate)
    found.add(f"first locate of {LARGE:,} chunks, {where}", 1000 * first, "ms", 100)
    found.add(f"the same, a copy came just before, {where}, median", 1000 * median(changed), "ms", 100)
    found.add(f"locate of {LARGE:,} chunks, {where}, median", 1000 * median(times), "ms", 100)
    found.add(f"locate of {LARGE:,} chunks, {where}, max", 1000 * max(times), "ms")
    rig.calm()


def _busy(rig: Rig, found: Found, name: str, rate: float) -> None:
    told, note = rig.crowd.report(), rig.tracker.note()
    _turn(name, note, found)
    if rate == RATE:
        found.add(f"{name}: heartbeats answered", told["answered"] / told["seconds"], "1/s")
        _latency(f"{name}: heartbeat -> answer", told, found)


def files(rig: Rig, found: Found) -> None:
    rig.tracker.note()
    count, times = asking.listing(rig.client)
    found.add(f"listing of {count:,} files, all pages", 1000 * sum(times), "ms")
    found.add("a page of 1,000 files, median", 1000 * median(times), "ms")
    _turn("listing", rig.tracker.note(), found)


def events(rig: Rig, found: Found) -> None:
    listeners, count = rig.listeners(), rig.options.subscribers
    times = []
    for _ in range(20):
        listeners.expect("peer.updated", 2)
        sent = rig.crowd.toggle(2)
        times.append(listeners.done() - sent)
    found.add(f"event -> the last of {count} subscribers, median", 1000 * median(times), "ms")
    found.add(f"event -> the last of {count} subscribers, max", 1000 * max(times), "ms")
    rig.tracker.note()
    burst = 500
    listeners.expect("peer.updated", burst)
    sent = rig.crowd.toggle(burst)
    found.add(f"events to {count} subscribers, none lost", burst / (listeners.done() - sent), "1/s")
    _turn(f"{burst} events", rig.tracker.note(), found)
    listeners.stop()


def start(rig: Rig, found: Found, chunks: int) -> None:
    found.add(f"start until ready, {chunks:,} chunks in the store", 1000 * rig.tracker.start_s, "ms")


def memory(rig: Rig, found: Found, when: str) -> None:
    found.add(f"highest memory (VmHWM), {when}", rig.tracker.note()["peak_mb"], "MB", 200)


def growth(chunks: int, rig: Rig, found: Found) -> None:
    """Points of the curves over the size of the store, at an idle tracker."""
    rounds = range(rig.options.rounds)
    found.point("start until ready (ms) over chunks in the store", chunks, 1000 * rig.tracker.start_s)
    first = [asking.locate(rig.client, f"file-{at}", trackerhome.FILE_CHUNKS) for at in rounds]
    found.point("locate of 100 chunks (ms) over chunks in the store", chunks, 1000 * median(first))
    pages = [asking.listing(rig.client)[1][0] for _ in range(3)]
    found.point("first page of the listing (ms) over chunks in the store", chunks, 1000 * median(pages))
    commits = [rig.publish(f"small-{at}", trackerhome.FILE_CHUNKS).commit for at in rounds]
    found.point("publish of 100 chunks (ms) over chunks in the store", chunks, 1000 * median(commits))
    found.point("memory (VmHWM, MB) over chunks in the store", chunks, rig.tracker.note()["peak_mb"])


def growth_of_files(rig: Rig, found: Found) -> None:
    for chunks in (1_000, 10_000, LARGE):
        published = rig.publish(f"grown-{chunks}", chunks)
        found.point("publish (ms) over chunks of the file", chunks, 1000 * published.commit)
        found.point("plan (ms) over chunks of the file", chunks, 1000 * published.plan)
        times = [asking.locate(rig.client, f"grown-{chunks}", chunks) for _ in range(rig.options.rounds)]
        found.point("locate (ms) over chunks of the file", chunks, 1000 * median(times))


def large_files(rig: Rig, found: Found) -> None:
    large_file(rig, found, rig.options.nodes, "idle")
    large_file(rig, found, RATE, f"at {RATE} heartbeats/s")


PARTS = {
    "heartbeats": heartbeats,
    "listing": files,
    "events": events,
    "large files": large_files,
    "growth of files": growth_of_files,
}

# -- the run --------------------------------------------------------------------------------


def main_store(options: argparse.Namespace, found: Found) -> None:
    with rig_of(options.chunks, options) as rig:
        start(rig, found, options.chunks)
        rig.connect()
        growth(options.chunks, rig, found)
        memory(rig, found, f"{options.chunks:,} chunks in the store, small requests")
        for part in options.only or PARTS:
            PARTS[part](rig, found)
            memory(rig, found, f"after {part}")


def smaller_stores(options: argparse.Namespace, found: Found) -> None:
    chunks = SMALLEST
    while chunks < options.chunks:
        with rig_of(chunks, options) as rig:
            rig.connect()
            growth(chunks, rig, found)
        chunks *= GROWTH


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench tracker", description=__doc__)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--subscribers", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=1_000_000, help="in the store")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--transport", choices=("curve", "plain"), default="curve")
    parser.add_argument("--only", action="append", choices=tuple(PARTS), help="of the largest store")
    parser.add_argument("--stores", type=Path, help="a folder in which the stores made are kept")
    parser.add_argument("--no-curves", action="store_true", help="the largest store alone")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    options = parser.parse_args(arguments)
    stay_off_the_trackers_cpu()
    found = Found()
    steps: list[Callable[[argparse.Namespace, Found], None]] = [main_store]
    if not options.no_curves:
        steps.insert(0, smaller_stores)
    for step in steps:
        step(options, found)
    if options.json:
        _print_json(options, found)
    else:
        _print_table(options, found)
    return 0 if all(line.held for line in found.lines) else 1


def _print_json(options: argparse.Namespace, found: Found) -> None:
    told = {
        "bench": "tracker",
        "settings": {**vars(options), "stores": None},
        "figures": [line.as_json() for line in found.lines],
    }
    print(json.dumps({**told, "curves": found.curves}))


def _print_table(options: argparse.Namespace, found: Found) -> None:
    print(f"{options.nodes} nodes, {options.chunks:,} chunks in the store, transport {options.transport}")
    width = max(len(line.name) for line in found.lines)
    for line in found.lines:
        bound = "" if line.goal is None else f"{'>=' if line.more else '<='} {line.goal:,.0f} {line.unit}"
        missed = "" if line.held else "  missed"
        print(f"{line.name:{width}}  {line.value:>10,.1f} {line.unit:<3}  {bound:>12}{missed}")
    for name, points in found.curves.items():
        print(f"{name}: " + ", ".join(f"{x:,.0f}: {y:,.1f}" for x, y in points))
