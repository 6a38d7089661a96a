"""A cluster under attack: its memory, and how fast it serves others meanwhile.

    python -m tests.hostile.rig [ATTACK ...]     the full size, to stdout as a table

To be under attack costs an attacker's processor time too, and here all share one machine. So a
speed is compared with that under the same attack upon a sink, a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.cluster import MIB, ROOT, Cluster, Process, Source, make_file
from tests.integration.raw import keys_of

PLAIN = {"security.transport": "plain"}
#: Under curve these; a member's attacks have its keys.
STRANGERS = ("garbage", "broken_greetings", "huge_frame", "connections")
OF_PLAIN = ("parts", "endless", "bursts", "trickle")
MEMBERS = ("flood", "claims", "wrong_content", "large", "unfinished", "member_parts")
OF_EVENTS = ("subscriptions",)
#: The tracker as a victim, at its other socket.
EVENTS = "events"
_ROUNDS = 3
#: Of a file, and of its chunks: above the size that is distributed.
_SIZE = 512 * MIB
SETTINGS = {"chunking.min_file_size_for_distribution": "1MiB", "chunking.chunk_size": "4MiB"}


@dataclass
class Rig:
    cluster: Cluster
    source: Source
    #: a member's keys with the key of whom it attacks, by victim; none in plain
    keys: dict[str, Path] = field(default_factory=dict)
    targets: int = 0

    def process(self, victim: str) -> Process:
        at_tracker = victim in ("tracker", EVENTS)
        return self.cluster.tracker.process if at_tracker else self.cluster.nodes[victim].process

    def endpoint(self, victim: str) -> str:
        tracker = self.cluster.tracker
        if victim == EVENTS:
            return tracker.events
        return tracker.endpoint if victim == "tracker" else self.cluster.nodes[victim].endpoint

    def get(self) -> float:
        """Bytes a second of a whole download, as the client tells them."""
        self.targets += 1
        target = self.cluster.root / f"got-{self.targets}"
        done = self.cluster.client.get(self.source.path.name, target).last
        target.unlink()
        return float(done["bytes_received"]) / float(done["seconds"])

    @contextmanager
    def under(self, attack: str, endpoint: str, victim: str, seconds: float) -> Iterator[Attack]:
        keys = self.keys.get(victim) if attack in (*MEMBERS, *OF_EVENTS) else None
        with running(attack, endpoint, seconds, keys) as attacker:
            yield attacker


@dataclass
class Attack:
    popen: subprocess.Popen[str]

    def finish(self) -> dict[str, int]:
        out, _ = self.popen.communicate(timeout=60)
        assert self.popen.returncode == 0
        told: dict[str, int] = json.loads(out)
        return told


@contextmanager
def running(attack: str, endpoint: str, seconds: float, keys: Path | None = None) -> Iterator[Attack]:
    host, _, port = endpoint.rpartition(":")
    words = [attack, host, port, str(seconds), *([str(keys)] if keys else [])]
    with python("tests.hostile.attacks", *words) as popen:
        yield Attack(popen)


@contextmanager
def sink(curve: Path | None = None) -> Iterator[str]:
    """Where it listens: it takes everything and keeps nothing."""
    with python("tests.hostile.sink", *([str(curve)] if curve else [])) as popen:
        assert popen.stdout is not None
        yield popen.stdout.readline().strip()


@contextmanager
def python(module: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    popen = subprocess.Popen(
        [sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        yield popen
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait()
        if popen.stdout is not None:
            popen.stdout.close()


def peak_since(process: Process, reset: bool = False) -> int:
    """VmHWM in bytes; `reset` lets it begin anew at what is resident now."""
    if reset:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@contextmanager
def rig(folder: Path, size: int, *, plain: bool) -> Iterator[Rig]:
    """Tracker, nodes A and B, a client that has put a file twice."""
    settings = {**SETTINGS, **(PLAIN if plain else {})}
    with Cluster(folder / "cluster", settings) as cluster:
        cluster.start_nodes("A", "B")
        source = make_file(folder / "honest.bin", size)
        cluster.client.put(source.path, "--replicas", "2")
        made = Rig(cluster, source)
        if not plain:
            made.keys = {victim: _member_keys(cluster, folder, victim) for victim in ("tracker", "A")}
            made.keys[EVENTS] = made.keys["tracker"]
        made.get()  # what is taken for good at the first use
        yield made


def _member_keys(cluster: Cluster, folder: Path, victim: str) -> Path:
    home = cluster.join(f"hostile-{victim}").home / "client"
    keys = keys_of(home)
    tracker = cluster.tracker.home / "tracker"
    server = keys_of(tracker if victim == "tracker" else cluster.nodes[victim].home / "node")
    told = {
        "public": keys.public,
        "secret": keys.secret,
        "server": server.public,
        "server_secret": server.secret,
    }
    path = folder / f"keys-{victim}.json"
    path.write_text(json.dumps({name: key.hex() for name, key in told.items()}))
    return path


@dataclass
class Figures:
    growth: dict[str, int]
    ratio: float
    pairs: list[tuple[float, float]]


def measure(made: Rig, attack: str, victim: str, rounds: int = _ROUNDS, seconds: float = 20.0) -> Figures:
    """Speeds with the attack upon the victim and upon a sink, in turn; medians."""
    watched = {name: made.process(name) for name in ("tracker", "A")}
    before = {name: peak_since(process, reset=True) for name, process in watched.items()}
    pairs = []
    server = made.keys.get(victim) if attack in MEMBERS else None
    for _ in range(rounds):
        with sink(server) as at, made.under(attack, at, victim, seconds):
            without = _speed_in_the_midst(made, attack)
        with made.under(attack, made.endpoint(victim), victim, seconds):
            under = _speed_in_the_midst(made, attack)
        pairs.append((under, without))
    growth = {name: peak_since(process) - before[name] for name, process in watched.items()}
    ratio = statistics.median(under for under, _ in pairs) / statistics.median(other for _, other in pairs)
    return Figures(growth, ratio, pairs)


def _speed_in_the_midst(made: Rig, attack: str) -> float:
    made.get()  # meanwhile the attack begins
    return made.get()


def main(*names: str) -> None:
    print("| attack | victim | tracker grows MiB | node grows MiB | speed under / without, MB/s | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for plain, attacks in ((False, STRANGERS + MEMBERS), (True, OF_PLAIN)):
        wanted = [name for name in attacks if not names or name in names]
        if wanted:
            with tempfile.TemporaryDirectory() as folder:
                os.chmod(folder, 0o755)
                with rig(Path(folder), _SIZE, plain=plain) as made:
                    _rows(made, wanted)


def _rows(made: Rig, attacks: list[str]) -> None:
    for attack in attacks:
        for victim in ("tracker", "A"):
            found = measure(made, attack, victim)
            grown = " | ".join(f"{found.growth[name] / MIB:.1f}" for name in ("tracker", "A"))
            under, without = (statistics.median(side) / 1e6 for side in zip(*found.pairs, strict=True))
            row = f"| {attack} | {victim} | {grown} | {under:.0f} / {without:.0f} | {found.ratio:.2f} |"
            print(row, flush=True)
            made.cluster.await_all_up()


if __name__ == "__main__":
    main(*sys.argv[1:])
