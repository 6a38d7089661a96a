"""What other members have of a node while one asks for all it can, or holds what it asked for.

    python -m tests.hostile.shares [ATTACK ...]     a table to stdout

A member's fair share is what it has alone, divided by those that ask (a silent one counts as
one). Measured are whole downloads and uploads, from their plan to their last chunk, and how soon
their first bytes came. All work on one machine, so beside one that takes all it can a client has
less of the processors too: the last rows have such a one, with eight connections, beside another
member that does the same with one, and compare what the node gave to each.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.rig import running
from tests.integration.cluster import MIB, PATIENCE_S, Client, Cluster, Process, Source, make_file
from tests.integration.raw import keys_of
from tests.waiting import wait_for

HOLDERS = ("hold_downloads", "hold_uploads")
TAKERS = ("all_downloads", "all_uploads")
#: Not an attack: so many downloads whose PCs fell asleep.
ASLEEP = "two_asleep"
SETTINGS = {"chunking.min_file_size_for_distribution": "1MiB"}
#: So large blocks become by themselves, where the machine has nothing else to do.
_FAST_LINK = {"transfer.block_size_min": "10MiB"}
_ROUNDS = 5
_SIZE = 512 * MIB
#: Bytes of one attacker, while the others' are compared with them.
_MEASURED = 256 * MIB


@dataclass(frozen=True)
class Run:
    #: bytes a second, from its plan to its last chunk
    speed: float
    #: seconds from its plan to its first bytes
    first: float


@dataclass
class Shared:
    """Two nodes, a file on both, and members: the client, and those that misbehave."""

    cluster: Cluster
    source: Source
    others: list[Client]
    targets: int = 0
    sleepers: list[Process] = field(default_factory=list)

    def path(self) -> Path:
        self.targets += 1
        return self.cluster.root / f"file-{self.targets}"

    def get(self) -> Run:
        target = self.path()
        get = self.cluster.client.start("get", "-o", target, self.source.path.name)
        run = self._watched(get, "bytes_received")
        target.unlink()
        return run

    def put(self) -> Run:
        source = make_file(self.path(), self.source.size // 2)
        run = self._watched(self.cluster.client.start("put", "--yes", source.path), "bytes_sent")
        source.path.unlink()
        self.cluster.client.run("rm", "--yes", source.path.name)
        return run

    def _watched(self, job: Process, moved: str) -> Run:
        job.until("plan")
        began = time.monotonic()
        job.until(lambda event: event["event"] == "progress" and event["bytes"] > 0)
        first = time.monotonic() - began
        job.until(lambda event: event.get("chunks_completed") == event.get("chunks_count"), 180.0)
        seconds = time.monotonic() - began
        done = job.result(180.0).expect(0).last
        return Run(float(done[moved]) / seconds, first)

    @contextmanager
    def under(self, attack: str, seconds: float, by: Client | None = None) -> Iterator[None]:
        """Upon both nodes, by one member."""
        with ExitStack() as stack:
            if attack == ASLEEP:
                stack.enter_context(self._asleep())
            elif attack:
                for node in self.cluster.nodes.values():
                    at = stack.enter_context(self._keys(node.name, by or self.others[0]))
                    stack.enter_context(running(attack, node.endpoint, seconds, at))
                time.sleep(1.0)  # the attack's own beginning
            yield

    def taken(self, member: Client) -> int:
        """Bytes that this attacker, while it is under way, has had or brought so far."""
        return sum(int(path.read_text() or 0) for path in member.home.glob("*.count"))

    def rates(self, *attackers: Client) -> list[float]:
        """Bytes a second of each, who are under way together."""
        wait_for(lambda: all(map(self.taken, attackers)), PATIENCE_S, "all have begun")
        began, before = time.monotonic(), [*map(self.taken, attackers)]
        wait_for(lambda: self.taken(attackers[0]) > before[0] + _MEASURED, PATIENCE_S, "some went by")
        seconds = time.monotonic() - began
        after = map(self.taken, attackers)
        return [(now - then) / seconds for then, now in zip(before, after, strict=True)]

    @contextmanager
    def _keys(self, name: str, member: Client) -> Iterator[Path]:
        node, keys = self.cluster.nodes[name], keys_of(member.home / "client")
        told = {"public": keys.public.hex(), "secret": keys.secret.hex()}
        server = {"server": keys_of(node.home / "node").public.hex(), "chunks": node.chunks()}
        path = member.home / f"at-{name}"
        path.write_text(json.dumps(told | server))
        yield path
        path.unlink()
        path.with_suffix(".count").unlink(missing_ok=True)

    @contextmanager
    def _asleep(self) -> Iterator[None]:
        sleepers = []
        for client in self.others:
            target = self.path()
            get = client.start("get", "-o", target, self.source.path.name, settings=_FAST_LINK)
            get.until(lambda event: bool(event.get("bytes")))
            get.send(signal.SIGSTOP)
            sleepers.append((get, target))
        yield
        for get, target in sleepers:
            get.send(signal.SIGCONT)
            get.result(120.0).expect(0)
            target.unlink()


@contextmanager
def shared(folder: Path, size: int) -> Iterator[Shared]:
    with Cluster(folder / "cluster", SETTINGS) as cluster:
        cluster.start_nodes("A", "B")
        others = [cluster.join(name) for name in ("other-1", "other-2")]
        source = make_file(folder / "honest.bin", size)
        cluster.client.put(source.path)
        made = Shared(cluster, source, others)
        made.get()  # what is taken for good at the first use
        yield made


def kinds(made: Shared, attack: str) -> dict[str, Callable[[], Run]]:
    """What others do meanwhile. Each is disturbed by what is of its kind."""
    if attack.endswith("downloads") or attack == ASLEEP:
        return {"get": made.get}
    return {"put": made.put}


def share(attack: str, alone: Run, meanwhile: Run) -> float:
    """Of a fair one."""
    return (3 if attack == ASLEEP else 2) * meanwhile.speed / alone.speed


def share_of_one(made: Shared, attack: str) -> float:
    """What a member with one connection has beside one with many that does the same, of half of
    what both have."""
    many, one = made.others
    with made.under(attack, 60.0, many), made.under(attack.replace("all_", "one_"), 60.0, one):
        of_many, of_one = made.rates(many, one)
    return 2 * of_one / (of_one + of_many)


def main(*names: str) -> None:
    print("| what | others do | alone MB/s | meanwhile MB/s | of a fair share | first bytes, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with shared(Path(folder), _SIZE) as made:
            for attack in names or (*HOLDERS, *TAKERS, ASLEEP):
                for what, run in kinds(made, attack).items():
                    _row(made, attack, what, run)
                if attack in TAKERS:
                    shares = [share_of_one(made, attack) for _ in range(_ROUNDS)]
                    print(f"| {attack} | the same | | | {statistics.median(shares):.2f} | |", flush=True)


def _row(made: Shared, attack: str, what: str, run: Callable[[], Run]) -> None:
    pairs = []
    for _ in range(_ROUNDS):
        alone = run()
        with made.under(attack, 600.0):
            pairs.append((alone, run()))
    alone_speed = statistics.median(alone.speed for alone, _ in pairs) / 1e6
    speed = statistics.median(other.speed for _, other in pairs) / 1e6
    fair = statistics.median(share(attack, *pair) for pair in pairs)
    first = max(other.first for _, other in pairs)
    print(f"| {attack} | {what} | {alone_speed:.0f} | {speed:.0f} | {fair:.2f} | {first:.2f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
