"""Transfers over cables of a known speed, each with the time that no transfer can beat.

Three nodes, a client and a tracker on a LAN (scripts/lan.py). `test_lan_speed.py` runs each
once with a small file, `scripts/bench lan` often with a large one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lan import Lan

from tests.faults.rawcopy import raw_copy
from tests.integration.cluster import Event, Source, make_file, sha256_of
from tests.integration.lan import LanCluster

NODES = ("A", "B", "C")
#: Mbit/s. Of the client, where it is not what limits.
FAST, USUAL, SLOW = 1000, 100, 10
_DISTRIBUTED = {"chunking.min_file_size_for_distribution": "1MiB"}
_PATIENCE_S = 240.0


@dataclass(frozen=True)
class Run:
    """One transfer. `bound_s` is what it is held against."""

    seconds: float
    bound_s: float
    #: with the start and end of the command's process
    command_s: float
    by_peer: Mapping[str, int]

    @property
    def ratio(self) -> float:
        """1 at the bound, less when it is missed."""
        return self.bound_s / self.seconds


@contextmanager
def speeds(root: Path, lan: Lan, size: int, settings: Mapping[str, Any]) -> Iterator[Speeds]:
    (root / "files").mkdir(parents=True)
    with LanCluster(root / "cluster", lan, settings) as office:
        office.start_nodes(*NODES)
        yield Speeds(office, root / "files", size)


class Speeds:
    """`size`: bytes of every file."""

    def __init__(self, office: LanCluster, files: Path, size: int) -> None:
        self._office = office
        self._files = files
        self._size = size
        self._made = 0

    def three_holders(self, rounds: int, chunk_size: str) -> list[Run]:
        """A third of the chunks at each of three nodes, to a receiver with a faster cable."""
        self._limit(client=FAST, **dict.fromkeys(NODES, FAST))
        with self._stored("--chunk-size", chunk_size) as source:
            self._limit(client=FAST, **dict.fromkeys(NODES, USUAL))
            bound = max(self._time_at(3 * USUAL), self._time_at(FAST))
            return [self._get(source, bound) for _ in range(rounds)]

    def slow_holder(self, rounds: int, chunk_size: str) -> list[Run]:
        """All of it at each of three nodes, one of which has a tenth of the others' speed; held
        against the time that the other two need without it."""
        self._limit(client=FAST, **dict.fromkeys(NODES, FAST))
        with self._stored("--chunk-size", chunk_size, "--replicas", "3") as source:
            self._limit(client=FAST, A=USUAL, B=USUAL, C=SLOW)
            return [self._get(source, self._time_at(2 * USUAL)) for _ in range(rounds)]

    def pair(self, rounds: int) -> list[Run]:
        """A file that lies on one node alone, against a copy over a plain connection between
        the same PCs, just before."""
        self._limit(client=FAST, **dict.fromkeys(NODES, FAST))
        with self._stored(distributed=False) as source:
            rows = self._office.client.info(source.path.name)["chunks"]
            (peer_id,) = {row["peer_id"] for row in rows}
            holder = self._office.node_of(peer_id).name
            return [self._get(source, self._raw(holder)) for _ in range(rounds)]

    def upload(self, rounds: int, chunk_size: str) -> list[Run]:
        """To three nodes with faster cables than the uploader's."""
        self._limit(client=USUAL, **dict.fromkeys(NODES, FAST))
        return [self._put_once(chunk_size) for _ in range(rounds)]

    # -- inside -------------------------------------------------------------------------

    def _raw(self, holder: str) -> float:
        return raw_copy(self._office.lan, holder, "client", self._size)

    def _time_at(self, megabits: float) -> float:
        return self._size * 8 / 1e6 / megabits

    def _limit(self, **megabits: float) -> None:
        for pc, rate in megabits.items():
            self._office.lan.limit(pc, rate)

    def _new_file(self) -> Source:
        self._made += 1
        return make_file(self._files / f"file {self._made}.bin", self._size)

    def _put(self, source: Source, *options: str, distributed: bool = True) -> tuple[Event, float]:
        settings = _DISTRIBUTED if distributed else {}
        done = self._office.client.put(source.path, *options, settings=settings, deadline_s=_PATIENCE_S)
        assert done.last["bytes_sent"] >= source.size
        return done.last, done.seconds

    @contextmanager
    def _stored(self, *options: str, distributed: bool = True) -> Iterator[Source]:
        """A new file in the cluster, removed at the end."""
        source = self._new_file()
        self._put(source, *options, distributed=distributed)
        try:
            yield source
        finally:
            self._forget(source)

    def _forget(self, source: Source) -> None:
        self._office.client.run("rm", "--yes", "--", source.path.name)
        source.path.unlink()

    def _get(self, source: Source, bound_s: float) -> Run:
        target = self._files / "copy"
        done = self._office.client.get(source.path.name, target, deadline_s=_PATIENCE_S)
        assert done.last["bytes_received"] >= source.size
        assert sha256_of(target) == source.sha256
        target.unlink()
        names = {node.peer_id: node.name for node in self._office.nodes.values()}
        by_peer = {names[peer]: count for peer, count in done.last["bytes_received_by_peer"].items()}
        return Run(done.last["seconds"], bound_s, done.seconds, by_peer)

    def _put_once(self, chunk_size: str) -> Run:
        source = self._new_file()
        done, seconds = self._put(source, "--chunk-size", chunk_size)
        self._forget(source)
        return Run(done["seconds"], self._time_at(USUAL), seconds, {})
