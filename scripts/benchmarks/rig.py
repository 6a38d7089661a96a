"""What get, put, swarm and memory share: the options, the file, a cluster for each transport,
one `zchunk get` or `put` as users run it, and the floors in between.

All of it lies in one temporary folder on one disk. Nothing is dropped from the page cache:
what is read was read before, in the round that warms up and is not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import ZCHUNK, Cluster, Failed, make_file

from benchmarks import plots
from benchmarks.floors import KINDS, floor
from benchmarks.processes import Command, Ended, Servers, Use
from benchmarks.series import Sample, Series, print_json, print_table
from zchunk.config import Settings, parse_size
from zchunk.errors import ZchunkError

TRANSPORTS = {"plain": ("plain",), "curve": ("curve",), "both": ("plain", "curve")}
NAME = "random.bin"


# -- options ----------------------------------------------------------------------------


def size_of(text: str) -> int:
    try:
        return parse_size(text)
    except ZchunkError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """What all take."""
    made = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=about)
    made.add_argument("--size", type=size_of, default="1.5GB", help="of the file (1.5GB)")
    made.add_argument("--transport", choices=TRANSPORTS, default=default_transport())
    made.add_argument("--json", action="store_true", help="JSON instead of the table")
    return made


def timed_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """What those take that measure seconds."""
    made = parser(name, about)
    made.add_argument("--rounds", type=int, default=5, help="runs that count, after one that does not")
    made.add_argument("--plots", type=Path, metavar="DIR", help="write a bar chart there, as SVG and PNG")
    return made


def default_transport() -> str:
    return Settings().security.transport


def settings_of(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What the figures hold for. Raises Failed where a setting is not the default: only the
    transport may be another, and only by the option that names it."""
    changed = sorted(key for key in os.environ if key.startswith("ZCHUNK_"))
    if changed:
        raise Failed(f"figures are of the defaults: take {', '.join(changed)} out of the environment")
    return {
        "transport": options.transport,
        "default_transport": default_transport(),
        "sync": "every chunk, file and folder",
        "verification": "SHA-256 of every chunk and of the file",
        "size": options.size,
        **more,
        **small(options.size),
    }


def small(size: int) -> dict[str, str]:
    """What a file must have to be distributed though it is small: not the default, so it is
    shown with the settings."""
    if size >= Settings().chunking.min_file_size_for_distribution:
        return {}
    return {"ZCHUNK_CHUNKING__MIN_FILE_SIZE_FOR_DISTRIBUTION": str(size)}


# -- the file ---------------------------------------------------------------------------


@dataclass
class Source:
    path: Path
    size: int
    sha256: str

    def renew(self) -> None:
        """Other content in every chunk, so that an upload has to send all of it again."""
        step = Settings().chunking.chunk_size
        with self.path.open("r+b") as file:
            for offset in range(0, self.size, step):
                file.seek(offset)
                file.write(os.urandom(min(16, self.size - offset)))
            os.fsync(file.fileno())
        self.sha256 = sha256_of(self.path)


def make_source(folder: Path, size: int) -> Source:
    """Random bytes, on the disk: its writing does not go on behind what is measured."""
    path = folder / NAME
    make_file(path, size)
    sync(path)
    return Source(path, size, sha256_of(path))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def take(target: Path, source: Source, what: str) -> None:
    """Compares and removes what was made; what it left unwritten is on the disk by then."""
    sync(target)
    if sha256_of(target) != source.sha256:
        raise Failed(f"{what}: the file differs")
    target.unlink()


# -- clusters ---------------------------------------------------------------------------


class Lab:
    """A tracker and nodes of one transport, with a home for commands."""

    def __init__(
        self, root: Path, stack: ExitStack, transport: str, nodes: int, settings: Mapping[str, str]
    ) -> None:
        self.transport = transport
        root.mkdir()
        chosen = {} if transport == default_transport() else {"ZCHUNK_SECURITY__TRANSPORT": transport}
        self.cluster = Cluster(root, stack, {**chosen, **settings})
        for number in range(1, nodes + 1):
            self.cluster.start_node(f"PC-{number}")
        self.cluster.join()

    @property
    def env(self) -> dict[str, str]:
        return self.cluster.env

    @property
    def servers(self) -> Servers:
        nodes = {name: node.pid for name, node in self.cluster.nodes.items()}
        return Servers({**nodes, "tracker": self.cluster.tracker.pid})

    def home(self, name: str) -> Path:
        """Another member, a client."""
        home = self.cluster.root / name
        command = [*ZCHUNK, "join", self.cluster.token("client"), "--home", str(home)]
        Command(command, self.env).wait()
        return home

    def start(self, *words: str, home: Path | None = None) -> Command:
        return Command([*ZCHUNK, *words, "--home", str(home or self.cluster.home), "--json"], self.env)

    def start_get(self, target: Path, home: Path | None = None) -> Command:
        return self.start("get", NAME, "-o", str(target), home=home)

    def get(self, target: Path) -> Sample:
        return self._sample("bytes_received", "get", NAME, "-o", str(target))

    def put(self, source: Source) -> Sample:
        return self._sample("bytes_sent", "put", str(source.path), "--yes")

    def _sample(self, moved: str, *words: str) -> Sample:
        """Raises Failed also when not all of the file went over the wire."""
        servers = self.servers
        servers.begin()
        ended = self.start(*words).wait()
        uses = servers.end()
        done = done_of(ended)
        if done[moved] != done["size"]:
            raise Failed(f"zchunk {words[0]} moved {done[moved]} of {done['size']} bytes")
        return Sample(ended.seconds, {"client": ended.use, **uses}, done["seconds"])


def done_of(ended: Ended) -> dict[str, Any]:
    done: dict[str, Any] = json.loads(ended.output.splitlines()[-1])
    return done


# -- a benchmark ------------------------------------------------------------------------


class Bench:
    """The folder, the file, and the floors."""

    def __init__(self, root: Path, stack: ExitStack, options: argparse.Namespace, size: int) -> None:
        self.root = root
        self.stack = stack
        self.options = options
        self.source = make_source(root, size)
        self.target = root / "copy.bin"
        self.floors = {kind: Series(f"floor, {kind}", size) for kind in KINDS}

    def labs(self, nodes: int) -> list[Lab]:
        """One for each transport that was asked for."""
        return [self.lab(name, nodes) for name in TRANSPORTS[self.options.transport]]

    def lab(self, transport: str, nodes: int) -> Lab:
        settings = small(self.source.size) if nodes > 1 else {}
        return Lab(self.root / transport, self.stack, transport, nodes, settings)

    def floor(self) -> None:
        """One run of each kind. A file system without O_DIRECT has one kind."""
        for kind, series in list(self.floors.items()):
            try:
                run = floor(self.source.path, self.target, kind)
            except OSError as error:
                say(f"{series.name}: left out, {error.strerror}")
                del self.floors[kind]
                continue
            if run.sha256 != self.source.sha256:
                raise Failed("the floor read another file")
            take(self.target, self.source, series.name)
            series.samples.append(Sample(run.seconds, {"floor": Use(run.cpu_s, 0)}))

    @property
    def fastest(self) -> Series:
        """The floor that everything is held against."""
        return min(self.floors.values(), key=lambda series: series.median)

    def warmed_up(self, series: Sequence[Series]) -> None:
        """Forgets the first round."""
        for one in (*self.floors.values(), *series):
            one.samples.clear()

    def show(self, name: str, settings: Mapping[str, Any], series: Sequence[Series]) -> None:
        everything = [*self.floors.values(), *series]
        if self.options.plots is not None:
            title = f"zchunk {name}: {self.options.size / 1e9:.2f} GB, {settings['nodes']} nodes, one machine"
            say(f"plot: {plots.chart(title, everything, self.options.plots, name)}")
        if self.options.json:
            print_json(name, settings, everything, self.fastest)
            return
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in settings.items()))
        print_table(everything, self.fastest)


@contextmanager
def bench(options: argparse.Namespace, size: int | None = None) -> Iterator[Bench]:
    """Everything is stopped and removed at the end. `size`: another than the options say."""
    with tempfile.TemporaryDirectory(prefix="zchunk-bench-") as folder, ExitStack() as stack:
        yield Bench(Path(folder), stack, options, options.size if size is None else size)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
