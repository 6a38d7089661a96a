"""Peers that misbehave at random, at every socket that listens, while others work.

    python -m tests.hostile.misbehaving TOLD SECONDS     the peers: a process of its own (see `Told`)

Strangers say what `strangers.py` draws at the tracker, its events, a node, a running job's door and
the tracker's door for commands. Members, a client and a node, say what `limits.py` draws. All of it
comes from one seed: what a connection says depends on that and on its number alone. They come from
other addresses than those who work, so that limits by address are their own.
"""

from __future__ import annotations

import json
import random
import re
import socket
import statistics
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import zmq

from tests.hostile import limits, strangers, zmtp
from tests.hostile.rig import PLAIN, SETTINGS, Attack, python
from tests.integration.cluster import MIB, PATIENCE_S, Cluster, Process, Source, make_file, sha256_of
from tests.integration.raw import Keys, Line, keys_of, new_keys
from tests.waiting import wait_for
from zchunk.protocol import wire
from zchunk.protocol.messages import Request, RotateKey, SteerJob

CURVE_AND_PLAIN = ("curve", "plain")
#: Connections that each stranger leaves open; together more than a Unix socket takes.
_OPEN = 16
#: At each door, one connection after the other.
_STRANGERS = 3
#: Messages a second of each member, and connections a second of strangers.
_RATE = 40.0
_PER_LINE = 20
_EACH = 12
_HEARD_S = 0.05
#: What no log may hold: a traceback, or a bug in the words of the loop and of whoever ends by one.
_BUG = re.compile(r"Traceback|a bug|unexpected \w+|Assertion")


# -- the peers: a process of their own ----------------------------------------------------------


@dataclass(frozen=True)
class Door:
    name: str
    at: str
    #: hex; "" in plain transport
    server: str


@dataclass(frozen=True)
class Member:
    role: str
    peer_id: str
    public: str
    secret: str


@dataclass(frozen=True)
class Told:
    """What the peers are told of whom they are set upon."""

    seed: int
    doors: list[Door]
    #: Unix sockets
    local: list[str]
    members: list[Member]
    job_id: str
    #: what exists, by field; digests in hex
    known: dict[str, list[Any]]

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> Told:
        told = json.loads(path.read_text())
        told["doors"] = [Door(**one) for one in told["doors"]]
        told["members"] = [Member(**one) for one in told["members"]]
        return cls(**told)


class Peers:
    """All that are set upon one cluster, each in a thread, for so many seconds."""

    def __init__(self, told: Told, seconds: float) -> None:
        self._told = told
        self._seconds, self._end = seconds, 0.0
        self._corpus = limits.corpus(told.seed, _EACH)
        self._requests = [message for message in self._corpus if isinstance(message, Request)]
        self._known = limits.Known({name: [*map(_bytes, some)] for name, some in told.known.items()})
        self.done: Counter[str] = Counter()
        self.failures: list[BaseException] = []

    def run(self) -> None:
        acts: list[Callable[[], None]] = []
        for number in range(_STRANGERS):
            acts += [partial(self._strangers, door, number) for door in self._told.doors]
            acts += [partial(self._local, path, number) for path in self._told.local]
        for door in self._told.doors:
            acts += [partial(self._member, door, member) for member in self._told.members]
            acts += [partial(self._knocks, door)] * bool(door.server)
        self._end = time.monotonic() + self._seconds
        threads = [threading.Thread(target=self._kept, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def _kept(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self.failures.append(error)

    def _numbers(self, what: str) -> Iterator[random.Random]:
        """For each connection a source of its own, at the usual rate, until the time is over."""
        number, due = 0, time.monotonic()
        while time.monotonic() < self._end:
            yield random.Random(f"{self._told.seed} {what} {number}")
            self.done[what] += 1
            number += 1
            due = max(due + 1 / _RATE, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))

    def _frames(self, rng: random.Random, member: Member | None = None) -> list[bytes]:
        """Of any message, a request mostly. In plain transport it says whose it is."""
        message = rng.choice(self._requests if rng.random() < 0.9 else self._corpus)
        message = limits.varied(rng, message, self._known)
        if isinstance(message, RotateKey) and member is not None:
            message = RotateKey(public_key=bytes.fromhex(member.public))  # to another: it is out for good
        request_id = rng.choice((0, 1, rng.getrandbits(63), 2**63 - 1))
        claim = member.peer_id if member is not None and not self._told.doors[0].server else None
        return [bytes(frame) for frame in wire.encode(message, request_id, claim)]

    # -- strangers --

    def _strangers(self, door: Door, number: int) -> None:
        host, _, port = door.at.rpartition(":")

        def connect() -> socket.socket:
            return zmtp.connect((host, int(port)), source="127.0.0.7")

        self._say(f"strangers {number} at {door.name}", connect, strangers.script, self._frames)

    def _local(self, path: str, number: int) -> None:
        def connect() -> socket.socket:
            line = socket.socket(socket.AF_UNIX)
            line.settimeout(3.0)
            try:
                line.connect(path)
            except OSError:
                line.close()
                raise
            return line

        name = Path(path).parent.name
        self._say(
            f"strangers {number} at the door in {name}", connect, strangers.local_script, self._local_frames
        )

    def _say(
        self,
        what: str,
        connect: Callable[[], socket.socket],
        script: Callable[[random.Random, strangers.Messages], strangers.Script],
        frames: strangers.Messages,
    ) -> None:
        with ExitStack() as stack:
            lines: deque[socket.socket] = deque()
            stack.callback(lambda: [line.close() for line in lines])
            for rng in self._numbers(what):
                if len(lines) >= _OPEN:
                    lines.popleft().close()
                with suppress(OSError):
                    lines.append(connect())
                    _play(lines[-1], script(rng, frames))

    def _local_frames(self, rng: random.Random) -> list[bytes]:
        """At times about the job that is there; to be cancelled is not what it stands there for."""
        if rng.random() < 0.2:
            frames = wire.encode(SteerJob(job_id=self._told.job_id, action="show"), 1)
            return [bytes(frame) for frame in frames]
        return self._frames(rng)

    # -- members --

    def _member(self, door: Door, member: Member) -> None:
        """Some messages by each connection, whose name may be one of its own choice."""
        keys = Keys(bytes.fromhex(member.public), bytes.fromhex(member.secret)) if door.server else None
        line: Line | None = None
        with ExitStack() as stack:
            stack.callback(lambda: line and line.__exit__(None, None, None))
            left = 0
            for rng in self._numbers(f"{member.role} at {door.name}"):
                if not left or line is None:
                    if line is not None:
                        line.__exit__(None, None, None)
                    left, line = _PER_LINE, self._line(rng, door, keys)
                left -= 1
                if door.name == "events":
                    line.raw.subscribe(rng.randbytes(rng.choice((0, 1, 30, 500))))
                with suppress(zmq.ZMQError):
                    line.raw.send_multipart(self._frames(rng, member), zmq.DONTWAIT)
                while rng.random() < 0.9 and (frames := line.arrival(0.01)) is not None:
                    self.done[f"answer {_kind_of(frames[0])}"] += 1
                line.watch()

    def _knocks(self, door: Door) -> None:
        """By keys that nobody knows."""
        for rng in self._numbers(f"unknown keys at {door.name}"):
            with self._line(rng, door, new_keys()) as line:
                line.raw.poll(250)

    def _line(self, rng: random.Random, door: Door, keys: Keys | None) -> Line:
        usual, other = (zmq.SUB, zmq.SUB) if door.name == "events" else (zmq.DEALER, zmq.REQ)
        kind = usual if rng.random() < 0.9 else other
        name = rng.choice((b"me", b"i" * 255)) if rng.random() < 0.1 and kind != zmq.SUB else None
        server = bytes.fromhex(door.server) if door.server else None
        return Line(kind, f"127.0.0.8:0;{door.at}", keys, server, routing_id=name)


def _play(line: socket.socket, script: strangers.Script) -> None:
    line.settimeout(1.0)
    for step in script:
        if isinstance(step, bytes):
            line.sendall(step)
        else:
            time.sleep(step)  # the peer's own silence
    line.settimeout(_HEARD_S)
    with suppress(TimeoutError):
        line.recv(65536)


def _kind_of(header: bytes) -> str:
    with suppress(ValueError, KeyError, TypeError):
        told = msgpack.unpackb(header)
        return str(told["f"]["code"] if told["t"] == "error" else told["t"])
    return "of another kind"


def _bytes(value: Any) -> Any:
    """Digests and keys are bytes in messages, and hex in JSON."""
    return bytes.fromhex(value[2:]) if isinstance(value, str) and value.startswith("0x") else value


def main(told: str, seconds: str) -> None:
    peers = Peers(Told.read(Path(told)), float(seconds))
    peers.run()
    print(json.dumps(dict(peers.done)), flush=True)


# -- who they are set upon ------------------------------------------------------------------------


@dataclass
class Site:
    """A tracker, a node, a client that works and one whose download waits for another node."""

    cluster: Cluster
    source: Source
    held: Process
    held_source: Source
    job_id: str
    told: Path
    rounds: int = 0

    def work(self) -> dict[str, float]:
        """Seconds that an honest member's commands take."""
        self.rounds += 1
        client, name = self.cluster.client, f"mine-{self.rounds}"
        mine = make_file(self.cluster.root / name, MIB // 2)
        target = self.cluster.root / f"got-{self.rounds}"
        done = {
            "put": client.put(mine.path),
            "get": client.get(self.source.path.name, target),
            "ls": client.run("ls"),
            "jobs": client.run("jobs"),
        }
        assert sha256_of(target) == self.source.sha256
        assert name in [row["name"] for row in done["ls"].last]
        [job] = [row for row in done["jobs"].last if row["job_id"] == self.job_id]
        assert (job["state"], job["active"], job["reason"]) == ("waiting", True, None)
        mine.path.unlink()
        target.unlink()
        return {what: result.seconds for what, result in done.items()}

    def check(self) -> None:
        """Whoever was there is there, and met no bug."""
        tracker, node = self.cluster.tracker.process, self.cluster.nodes["A"].process
        for name, process in {"the tracker": tracker, "the node": node, "the download": self.held}.items():
            assert process.alive, f"{name} ended: {process}"
            found = _BUG.search(process.stderr)
            assert found is None, f"{name} met a bug ({found[0]}): {process.stderr[-5000:]}"
        wait_for(lambda: self.cluster.statuses().get("A") == "up", PATIENCE_S, "node A is up")

    def finish(self) -> None:
        """What waited goes on, and everybody ends as usual."""
        self.check()
        self.cluster.restart("B")
        self.held.result().expect(0)
        assert sha256_of(self.cluster.root / "held-copy") == self.held_source.sha256
        for process in (self.cluster.nodes["A"].process, self.cluster.tracker.process):
            assert process.end() == 0, str(process)
            assert _BUG.search(process.stderr) is None, process.stderr


@dataclass(frozen=True)
class Outcome:
    alone: list[dict[str, float]]
    meanwhile: list[dict[str, float]]
    done: dict[str, int]

    @property
    def said(self) -> int:
        """Connections of strangers, and messages of members."""
        return sum(self.done.values()) - self.answers

    @property
    def answers(self) -> int:
        """That the members took; those of strangers nobody counts."""
        return sum(count for what, count in self.done.items() if what.startswith("answer"))

    def slowest(self) -> float:
        return max(seconds for each in self.meanwhile for seconds in each.values())

    def ratios(self) -> dict[str, float]:
        """Median seconds of each command, by those without such peers."""
        return {
            what: statistics.median(each[what] for each in self.meanwhile)
            / statistics.median(each[what] for each in self.alone)
            for what in self.alone[0]
        }

    def __str__(self) -> str:
        ratios = " ".join(f"{what} {ratio:.2f}" for what, ratio in self.ratios().items())
        return (
            f"{self.said} connections and messages, {self.answers} answers;"
            f" {len(self.meanwhile)} rounds of commands, of their usual time {ratios}, slowest"
            f" {self.slowest():.1f} s"
        )


def misbehave(site: Site, seconds: float, rounds: int = 2) -> Outcome:
    """They are set upon `site`, which works on meanwhile. Without them it works so many rounds before,
    and as many after: other work of the machine is in all three."""
    site.work()  # what is taken for good at the first use
    alone = [site.work() for _ in range(rounds)]
    meanwhile: list[dict[str, float]] = []
    with python("tests.hostile.misbehaving", str(site.told), str(seconds)) as popen:
        while popen.poll() is None or not meanwhile:
            try:
                meanwhile.append(site.work())
            finally:
                site.check()  # it says more, where a command failed since a server ended
        done = Attack(popen).finish()
    alone += [site.work() for _ in range(rounds)]
    return Outcome(alone, meanwhile, done)


@contextmanager
def site_of(root: Path, transport: str, seed: int, prefix: Sequence[str] = ()) -> Iterator[Site]:
    """`prefix` of the node's and the tracker's command."""
    settings = {**SETTINGS, **(PLAIN if transport == "plain" else {})}
    root.parent.chmod(0o755)  # a node may be another user's
    cluster = Cluster(root, settings)
    cluster.tracker_prefix = prefix
    with cluster:
        cluster.start_nodes("A", "B", prefix=prefix)
        sizes = {"honest": 4 * MIB, "decoy": 4 * MIB, "held": 16 * MIB}
        source, decoy, held = (make_file(root / name, size) for name, size in sizes.items())
        cluster.client.put(source.path, "--replicas", "2")
        cluster.client.put(decoy.path, "--replicas", "2")
        job, job_id = _held(cluster, held)
        told = _told(cluster, transport, seed, decoy, job_id).write(root / "told.json")
        yield Site(cluster, source, job, held, job_id, told)


def _held(cluster: Cluster, source: Source) -> tuple[Process, str]:
    """A download that waits for B, which has some of its chunks alone."""
    cluster.client.put(source.path)
    cluster.kill("B")
    job = cluster.client.start("get", "-o", cluster.root / "held-copy", source.path.name)
    job_id = job.until("plan")["job_id"]
    job.until("waiting")
    return job, str(job_id)


def _told(cluster: Cluster, transport: str, seed: int, decoy: Source, job_id: str) -> Told:
    tracker, node = cluster.tracker, cluster.nodes["A"]
    is_curve = transport == "curve"
    at_tracker = keys_of(tracker.home / "tracker").public.hex() if is_curve else ""
    at_node = keys_of(node.home / "node").public.hex() if is_curve else ""
    doors = [
        Door("tracker", tracker.endpoint, at_tracker),
        Door("events", tracker.events, at_tracker),
        Door("node", node.endpoint, at_node),
    ]
    members = [_joined(cluster, role) for role in ("client", "node")]
    local = [
        cluster.client.home / "client" / "jobs" / f"{job_id}.sock",
        tracker.home / "tracker" / "tracker.sock",
    ]
    known = _known(cluster, decoy, members)
    return Told(seed, doors, list(map(str, local)), members, job_id, known)


def _joined(cluster: Cluster, role: str) -> Member:
    home = cluster.join(f"hostile-{role}", role).home / "client"
    keys = keys_of(home)
    peer_id = json.loads((home / "membership.json").read_text())["peer_id"]
    return Member(role, peer_id, keys.public.hex(), keys.secret.hex())


def _known(cluster: Cluster, decoy: Source, members: list[Member]) -> dict[str, list[Any]]:
    """A file that may be removed, and what it is made of; members; and what one of them has begun."""
    info = cluster.client.info(decoy.path.name)
    hashes = [f"0x{sha256}" for sha256 in info["chunks_hashes"]]
    return {
        "sha256": hashes,
        "hashes": ["0x" + "".join(one.removeprefix("0x") for one in hashes), *hashes],
        "file_id": [info["file_id"]],
        "file_ids": [f"0x{info['file_id']}"],
        "name_or_id": [info["file_id"], decoy.path.name, info["file_id"][:8]],
        "peer_id": [node.peer_id for node in cluster.nodes.values()] + [one.peer_id for one in members],
        "upload_id": ["1" * 32, "2" * 32],
        "public_key": [f"0x{one.public}" for one in members],
        "incarnation": [0, 1, 2],
        "size": [1, 4096, 4 * MIB],
        "chunk_size": [65536, 4 * MIB],
        "replicas": [1, 2, 3],
        "min_peers": [1, 2],
        "offset": [0, 1, 65536],
        "length": [1, 65536, 4 * MIB],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
