"""`scripts/bench range`: reads of 1 MiB at random places of a file on three nodes.

They go through `zchunk.Client.open` in this process, one after the other; a read never touches a
chunk that an earlier one may have left in memory. Before each the floor does the same: one thread
reads the whole chunk from the page cache, takes its SHA-256, and slices. Each round begins with
a new client, whose first read also asks the tracker and connects; it has a row of its own.
`zchunk cat` is timed as a whole process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from servers import ZCHUNK, Failed

import zchunk
from benchmarks import rig
from benchmarks.figures import quantile
from benchmarks.processes import Command
from benchmarks.series import print_rows
from zchunk.config import Settings, load
from zchunk.content.manifest import chunk_count, chunk_length
from zchunk.node.reading.file_object import RangeFile
from zchunk.node.reading.read_ahead import chunks_of, room_for

NODES = 3
LENGTH = 1024**2
CHUNK = Settings().chunking.chunk_size
#: chunks that an open file keeps in memory
ROOM = room_for(Settings().transfer.receive_budget, CHUNK)


# -- pure -------------------------------------------------------------------------------


def cold_offsets(rng: random.Random, size: int, chunk_size: int, length: int, room: int) -> Iterator[int]:
    """Random places for reads of `length` bytes, none of which touches a chunk that one of the
    reads before it may have left in memory, where `room` chunks are, or the one behind it."""
    if chunk_count(size, chunk_size) < 4 * room:
        raise Failed(f"the file is too small: it must have {4 * room} chunks")
    recent: deque[int] = deque(maxlen=2 * room)
    while True:
        offset = rng.randrange(size - length + 1)
        touched = chunks_of(offset, length, size, chunk_size)
        if not set(recent).intersection(touched):
            recent.extend((*touched, touched[-1] + 1))
            yield offset


@dataclass
class Reads:
    """Latencies of one way of reading; each read gives `length` bytes."""

    name: str
    length: int
    seconds: list[float] = field(default_factory=list)
    #: bytes of whole chunks that were read or fetched for it; 0 where nobody knows
    moved: int = 0
    #: VmHWM of the command, bytes; 0 where it is this process
    peak: int = 0

    def add(self, seconds: float, moved: int) -> None:
        self.seconds.append(seconds)
        self.moved += moved

    def as_json(self, floor: Reads) -> dict[str, Any]:
        total = sum(self.seconds)
        return {
            "name": self.name,
            "reads": len(self.seconds),
            "median_ms": round(1000 * median(self.seconds), 2),
            "p99_ms": round(1000 * quantile(self.seconds, 0.99), 2),
            "max_ms": round(1000 * max(self.seconds), 2),
            "payload_megabytes_per_s": round(len(self.seconds) * self.length / total / 1e6, 1),
            "chunks_megabytes_per_s": round(self.moved / total / 1e6, 1) if self.moved else None,
            "floor_over_this": self._ratio(floor),
            "peak_bytes": self.peak or None,
        }

    def _ratio(self, floor: Reads) -> float | None:
        """Of reads of the same length."""
        if self.length != floor.length:
            return None
        return round(median(floor.seconds) / median(self.seconds), 3)


HEAD = ["", "reads", "median ms", "p99 ms", "MB/s read", "MB/s of chunks", "floor/it", "peak MB"]


def table(all_reads: Sequence[Reads], floor: Reads) -> list[list[str]]:
    return [HEAD, *(cells(reads.as_json(floor)) for reads in all_reads)]


def cells(row: dict[str, Any]) -> list[str]:
    moved, ratio = row["chunks_megabytes_per_s"], row["floor_over_this"]
    return [
        row["name"],
        str(row["reads"]),
        f"{row['median_ms']:.1f}",
        f"{row['p99_ms']:.1f}",
        f"{row['payload_megabytes_per_s']:.0f}",
        "" if moved is None else f"{moved:.0f}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
    ]


# -- measuring --------------------------------------------------------------------------


class Floor:
    """One thread that reads whole chunks from the page cache, takes their SHA-256, and slices."""

    def __init__(self, source: rig.Source) -> None:
        self.reads = Reads("floor: chunk from the page cache, SHA-256, 1 MiB of it", LENGTH)
        self._size = source.size
        self._fd = os.open(source.path, os.O_RDONLY)

    def __enter__(self) -> Floor:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def timed(self, offset: int) -> tuple[bytes, int]:
        started = time.perf_counter()
        data, moved = self.read(offset)
        self.reads.add(time.perf_counter() - started, moved)
        return data, moved

    def read(self, offset: int) -> tuple[bytes, int]:
        """(1 MiB, how many bytes its chunks have)."""
        parts, moved = [], 0
        for index in chunks_of(offset, LENGTH, self._size, CHUNK):
            begin = index * CHUNK
            chunk = os.pread(self._fd, chunk_length(self._size, CHUNK, index), begin)
            hashlib.sha256(chunk).digest()
            parts.append(chunk[max(0, offset - begin) : offset + LENGTH - begin])
            moved += len(chunk)
        return b"".join(parts), moved


def received(file: io.BufferedReader) -> int:
    assert isinstance(file.raw, RangeFile)
    return file.raw.bytes_received


class Way:
    """Reads in one transport."""

    def __init__(self, lab: rig.Lab, size: int) -> None:
        self.lab = lab
        name = f"zchunk, {lab.transport}"
        self.reads = Reads(f"{name}: 1 MiB of an open file", LENGTH)
        self.first = Reads(f"{name}: new client, open, 1 MiB", LENGTH)
        self.cat = Reads(f"{name}: `zchunk cat` of 1 MiB, whole command", LENGTH)
        self.all = Reads(f"{name}: `zchunk cat` of all of it to /dev/null, whole command", size)
        self._settings = load(None, {"security": {"transport": lab.transport}}, environ={})

    def round(self, bench: rig.Bench, offsets: Sequence[int], floor: Floor) -> None:
        """The first offset by a new client, the others by its open file."""
        first, *others = offsets
        expected, _ = floor.read(first)
        started = time.perf_counter()
        with (
            zchunk.Client(self.lab.cluster.home, self._settings) as client,
            client.open(rig.NAME) as file,
        ):
            file.seek(first)
            check(file.read(LENGTH), expected)
            self.first.add(time.perf_counter() - started, received(file))
            for offset in others:
                self._one(file, offset, floor)
        self._cat(self.cat, bench.target, "--offset", str(first), "--length", str(LENGTH))
        check(bench.target.read_bytes(), expected)

    def _one(self, file: io.BufferedReader, offset: int, floor: Floor) -> None:
        expected, moved = floor.timed(offset)
        before, started = received(file), time.perf_counter()
        file.seek(offset)
        data = file.read(LENGTH)
        took = time.perf_counter() - started
        self.reads.add(took, received(file) - before)
        check(data, expected)
        if received(file) - before != moved:
            raise Failed(f"a read fetched {received(file) - before} bytes where its chunks have {moved}")

    def cat_all(self) -> None:
        self._cat(self.all, Path(os.devnull))

    def _cat(self, reads: Reads, target: Path, *options: str) -> None:
        command = [*ZCHUNK, "cat", rig.NAME, *options, "--home", str(self.lab.cluster.home)]
        words = ["sh", "-c", 'target=$1; shift; exec "$@" >"$target"', "sh", str(target), *command]
        ended = Command(words, self.lab.env).wait()
        reads.add(ended.seconds, 0)
        reads.peak = max(reads.peak, ended.use.peak)


def check(data: bytes, expected: bytes) -> None:
    if data != expected:
        raise Failed("a read returned other bytes")


def main(arguments: list[str]) -> int:
    parser = rig.parser("range", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="each with a new client (5)")
    parser.add_argument("--reads", type=int, default=41, help="in a round, its first one among them (41)")
    parser.add_argument("--seed", type=int, default=1, help="of the offsets (1)")
    options = parser.parse_args(arguments)
    settings = rig.settings_of(options, rounds=options.rounds, reads=options.reads, nodes=NODES)
    rng = random.Random(options.seed)
    with rig.bench(options) as bench, Floor(bench.source) as floor:
        ways = [Way(lab, options.size) for lab in bench.labs(NODES)]
        offsets = cold_offsets(rng, options.size, CHUNK, LENGTH, ROOM)
        for way in ways:
            way.lab.put(bench.source)
        for number in range(options.rounds + 1):
            for way in ways:
                way.round(bench, [next(offsets) for _ in range(options.reads)], floor)
            if number == 0:  # it warms up
                forget([floor.reads, *(reads for way in ways for reads in (way.reads, way.first, way.cat))])
        for way in ways:
            way.cat_all()
        show(options.json, settings, floor.reads, ways)
    return 0


def forget(all_reads: Sequence[Reads]) -> None:
    for reads in all_reads:
        reads.seconds.clear()
        reads.moved = 0


def show(as_json: bool, settings: dict[str, Any], floor: Reads, ways: Sequence[Way]) -> None:
    everything = [floor]
    for way in ways:
        everything += [way.reads, way.first, way.cat, way.all]
    if as_json:
        figures = [reads.as_json(floor) for reads in everything]
        print(json.dumps({"bench": "range", "settings": settings, "figures": figures}))
        return
    print("range: " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    print_rows(table(everything, floor))
