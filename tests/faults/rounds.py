"""Rounds of kills and hangs: one victim, one moment of a transfer, one check of the end.

Used by the fault tests (a few rounds) and by scripts/soak (hundreds). Every moment is
drawn from a seed, over the length that such a transfer was measured to take. A transfer
that was over before its moment is no round and is begun anew.
"""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.cluster import MIB, PATIENCE_S, Cluster, Event, Process, Source, make_file, sha256_of

CHUNK = MIB
BUDGET = 8 * CHUNK
#: Many small chunks, and a window of few of them.
SETTINGS = {
    "chunking.chunk_size": "1MiB",
    "chunking.min_file_size_for_distribution": "96MiB",
    "chunking.resume_check_interval": 3600,  # so that only events bring a waiting job on
    "transfer.receive_budget": "8MiB",
    "node.trash_keep_s": 1,
}
WIDE_SIZE = 160 * MIB + 12345
SOLE_SIZE = 95 * MIB
#: Reads of a node that are no chunks: its index, its manifests, /proc.
_OTHER_READS = MIB
#: So long a hang or an absence may last: shorter and longer than a lease.
_PAUSES = (0.1, 0.5, 1.0, 2.0, 4.0)
_TRIES = 20

KILL, HANG = "kill -9", "hang"
VICTIMS = ("one source", "the only source", "all sources", "the tracker", "the downloader", "the uploader")


@dataclass(frozen=True)
class Figures:
    victim: str
    fault: str
    #: share of the transfer's length at which it was hit
    moment: float
    #: share of the file that was on disk then, where the round looked
    done: float | None
    #: how long the victim was away
    pause_s: float
    #: from the end of the pause to the end of the transfer
    recovery_s: float
    #: payload that was fetched or sent twice
    again: int

    def __str__(self) -> str:
        done = "" if self.done is None else f" ({self.done:.0%} on disk)"
        return (
            f"{self.fault} of {self.victim} at {self.moment:.0%}{done}, away {self.pause_s:g} s, "
            f"complete {self.recovery_s:.2f} s later, {self.again / MIB:.2f} MiB again"
        )


def histogram(shares: Sequence[float], bins: int = 10) -> str:
    """How many of `shares` (0 to 1) fell into each tenth."""
    counts = [0] * bins
    for share in shares:
        counts[min(int(share * bins), bins - 1)] += 1
    return " ".join(f"{at * 100 // bins}%:{count}" for at, count in enumerate(counts))


class Rounds:
    """A cluster with the files "wide" (over A, B and C) and "sole" (whole on one of them)."""

    def __init__(self, cluster: Cluster, folder: Path, seed: int) -> None:
        self.cluster = cluster
        self.seed = seed
        self._folder = folder
        self._serial = 0
        self.wide = make_file(folder / "wide.bin", WIDE_SIZE)
        self.sole = make_file(folder / "sole.bin", SOLE_SIZE)
        #: seconds from its plan to its end
        self._put_s = self._length_of(cluster.client.put(self.wide.path).last)
        cluster.client.put(self.sole.path)
        (holder,) = set(cluster.client.info("sole.bin")["distribution_map"].values())
        self.sole_holder = cluster.node_of(holder).name
        target = folder / "first"
        self._get_s = self._length_of(cluster.client.get("wide.bin", target).last)
        target.unlink()

    @staticmethod
    def _length_of(done: Event) -> float:
        return float(done["seconds"])

    def rng(self, *what: object) -> random.Random:
        """The same for the same seed and name, whatever other rounds drew."""
        return random.Random(f"{self.seed} {what}")

    def run(self, victim: str, fault: str, rng: random.Random) -> Figures:
        """One round; every process is up again when it returns."""
        for _ in range(_TRIES):
            moment = rng.random()
            figures = self._attempt(victim, fault, moment, rng.choice(_PAUSES))
            if figures is not None:
                return figures
        raise AssertionError(f"{_TRIES} transfers were over before their moment")

    def _attempt(self, victim: str, fault: str, moment: float, pause_s: float) -> Figures | None:
        if victim == "the uploader":
            return self._uploader(fault, moment, pause_s)
        if victim == "the downloader" and fault == KILL:
            return self.kill_downloader(moment)
        return self._disturbed_get(victim, fault, moment, pause_s)

    # -- downloads ----------------------------------------------------------------------

    @contextmanager
    def _target(self) -> Iterator[Path]:
        self._serial += 1
        folder = self._folder / f"out{self._serial}"
        folder.mkdir()
        target = folder / "copy"
        yield target
        assert list(folder.iterdir()) == [target], "nothing but the file is left"
        target.unlink()
        folder.rmdir()

    def kill_downloader(self, moment: float) -> Figures | None:
        """kill -9, and the same command again: the rest is fetched, and only the rest."""
        source, client = self.wide, self.cluster.client
        with self._target() as target:
            read_before = self._bytes_read()
            get = client.start("get", source.path.name, "-o", target)
            get.until("plan")
            get.ends_within(moment * self._get_s)
            get.send(signal.SIGKILL)
            get.result()
            if target.exists():  # finished, though perhaps killed behind that
                assert client.get(source.path.name, target).last["bytes_received"] == 0
                return None
            whole = chunks_on_disk(target.with_name("copy.zpart"), source)
            second = client.get(source.path.name, target)
            assert second.of("plan")[0]["chunks_kept"] == len(whole), "no whole chunk is fetched again"
            missing = source.size - sum(chunk_length(source, index) for index in whole)
            assert second.last["bytes_received"] == missing
            again = self._bytes_read() - read_before - source.size
            assert again <= BUDGET + CHUNK + _OTHER_READS, f"{again} bytes were fetched twice"
            assert sha256_of(target) == source.sha256
        done = len(whole) / chunks_count(source)
        return Figures("the downloader", KILL, moment, done, 0.0, second.last["seconds"], max(0, again))

    def _disturbed_get(self, victim: str, fault: str, moment: float, pause_s: float) -> Figures | None:
        """The download itself lives on, and ends by itself."""
        source = self.sole if victim == "the only source" else self.wide
        length_s = self._get_s * source.size / self.wide.size
        with self._target() as target:
            get = self.cluster.client.start("get", source.path.name, "-o", target)
            get.until("plan")
            get.ends_within(moment * length_s)
            if not get.alive:
                get.result().expect(0)
                return None
            with self._away(victim, fault, get):
                get.ends_within(pause_s)
            back_after = get.seconds
            result = get.result(PATIENCE_S).expect(0)
            assert sha256_of(target) == source.sha256
        assert result.last["bytes_received"] <= source.size + BUDGET + CHUNK
        if victim in ("the tracker", "the downloader"):
            assert not result.of("waiting"), "the sources were there all the time"
        self.cluster.await_all_up()
        again = result.last["bytes_received"] - source.size
        recovery_s = max(0.0, result.seconds - back_after)
        return Figures(victim, fault, moment, None, pause_s, recovery_s, again)

    @contextmanager
    def _away(self, victim: str, fault: str, job: Process) -> Iterator[None]:
        """The victim is dead, or hangs, inside the block."""
        processes = self._processes(victim, job)
        if fault == HANG:
            with self.cluster.frozen(*processes):
                yield
            return
        for process in processes:
            process.end(signal.SIGKILL)
        yield
        if victim == "the tracker":
            self.cluster.start_tracker()
        for name in self._names(victim):
            self.cluster.restart(name)

    def _processes(self, victim: str, job: Process) -> list[Process]:
        if victim == "the tracker":
            return [self.cluster.tracker.process]
        nodes = [self.cluster.nodes[name].process for name in self._names(victim)]
        return nodes or [job]

    def _names(self, victim: str) -> list[str]:
        named = {"one source": ["B"], "the only source": [self.sole_holder], "all sources": ["A", "B", "C"]}
        return named.get(victim, [])

    def _bytes_read(self) -> int:
        """By all nodes, from their files (what comes from sockets is not counted there)."""
        return sum(_read_by(node.process.pid) for node in self.cluster.nodes.values())

    # -- uploads ------------------------------------------------------------------------

    def _uploader(self, fault: str, moment: float, pause_s: float) -> Figures | None:
        self._serial += 1
        source = make_file(self._folder / f"up{self._serial}.bin", 96 * MIB)
        try:
            length_s = self._put_s * source.size / self.wide.size
            return self._disturbed_put(source, fault, moment, pause_s, length_s)
        finally:
            source.path.unlink()

    def _disturbed_put(
        self, source: Source, fault: str, moment: float, pause_s: float, length_s: float
    ) -> Figures | None:
        put = self.cluster.client.start("put", "--yes", source.path)
        put.until("plan")
        put.ends_within(moment * length_s)
        disturb = self._kill_put if fault == KILL else self._hang_put
        figures = disturb(put, source, moment, pause_s)
        self._check_and_remove(source)
        return figures

    def _kill_put(self, put: Process, source: Source, moment: float, pause_s: float) -> Figures | None:
        put.send(signal.SIGKILL)
        if put.result().code == 0:
            return None
        stored = self._stored(source)
        already = source.path.name in self.cluster.client.names()  # killed after the commit
        second = self.cluster.client.put(source.path).last
        assert second["bytes_sent"] <= source.size - stored, "a stored chunk was sent again"
        assert not already or second["bytes_sent"] == 0
        share = stored / source.size
        return Figures("the uploader", KILL, moment, share, 0.0, second["seconds"], 0)

    def _hang_put(self, put: Process, source: Source, moment: float, pause_s: float) -> Figures | None:
        if not put.alive:
            put.result().expect(0)
            return None
        with self.cluster.frozen(put):
            put.ends_within(pause_s)
        back_after = put.seconds
        result = put.result().expect(0)
        again = result.last["bytes_sent"] - source.size
        assert again <= BUDGET + CHUNK
        return Figures("the uploader", HANG, moment, None, pause_s, result.seconds - back_after, again)

    def _stored(self, source: Source) -> int:
        """Bytes of the file whose chunks lie on some node's disk."""
        held = {name for node in self.cluster.nodes.values() for name in node.chunks()}
        return sum(len(piece) for piece, name in pieces(source) if name in held)

    def _check_and_remove(self, source: Source) -> None:
        with self._target() as target:
            self.cluster.client.get(source.path.name, target)
            assert sha256_of(target) == source.sha256
        self.cluster.client.run("rm", "--yes", source.path.name)


# -- a file and its chunks ------------------------------------------------------------------


def chunks_count(source: Source) -> int:
    return -(-source.size // CHUNK)


def chunk_length(source: Source, index: int) -> int:
    return min(CHUNK, source.size - index * CHUNK)


def pieces(source: Source) -> Iterator[tuple[bytes, str]]:
    """The bytes of each chunk, and the name of its file on a node."""
    with open(source.path, "rb") as file:
        while piece := file.read(CHUNK):
            yield piece, hashlib.sha256(piece).hexdigest()


def chunks_on_disk(part: Path, source: Source) -> set[int]:
    """Chunks whose bytes in `part` are those of the source, read here and not by zchunk."""
    found = set()
    with open(part, "rb") as have, open(source.path, "rb") as want:
        for index in range(chunks_count(source)):
            if have.read(CHUNK)[: chunk_length(source, index)] == want.read(CHUNK):
                found.add(index)
    return found


def _read_by(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar:")))
