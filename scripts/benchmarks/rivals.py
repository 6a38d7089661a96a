"""What users would take instead, for the same job on the same file and machine, where installed.

rsync is told to sync (--fsync), aria2 does it by itself, libtorrent does not: a sync behind the
end of a program that was not told to is timed apart. All serve the file itself from the page
cache; servers run in the background on 127.0.0.1 and end with the stack they were started with.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from servers import wait_for

from benchmarks.processes import Command, Servers, run
from benchmarks.rig import Source, say, sync
from benchmarks.series import Sample

SERVERS = 3
PIECE = 10 * 1024**2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def found(command: str) -> str | None:
    """Where it is; also where only root looks."""
    return shutil.which(command) or shutil.which(command, path="/usr/sbin:/usr/local/sbin:/sbin")


def background(words: Sequence[str], stack: ExitStack) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class Rival:
    """One program that gets the file; `start` before `get`."""

    name: str
    #: commands and modules without which it is skipped
    commands: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    #: its client has the file on the disk when it ends
    syncs = False

    def __init__(self, root: Path, source: Source) -> None:
        self.root = root
        self.source = source
        self.pids: dict[str, int] = {}
        root.mkdir()

    @classmethod
    def missing(cls) -> list[str]:
        """What is not installed."""
        absent = [name for name in cls.commands if found(name) is None]
        return absent + [name for name in cls.modules if find_spec(name) is None]

    def start(self, stack: ExitStack) -> None:
        """Its servers; they answer when this returns."""
        raise NotImplementedError

    def words(self, target: Path) -> list[str]:
        """The command that gets the file. `target` may be a name it makes in that folder."""
        raise NotImplementedError

    def get(self, target: Path) -> Sample:
        """`target` is there afterwards, and is on the disk."""
        return self.sample(self.words(target), target)

    def get_by_own_name(self, target: Path) -> Sample:
        """Of a program that names the file as its source is named."""
        folder = self.root / "got"
        folder.mkdir(exist_ok=True)
        made = folder / self.source.path.name
        sample = self.sample(self.words(made), made)
        made.rename(target)
        return sample

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Its servers stand still outside: idle, they would take a share of what others are given."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        for pid in self.pids.values():
            os.kill(pid, number)

    def sample(self, words: list[str], target: Path) -> Sample:
        with self.awake():
            ended, uses = run(words, Servers(self.pids))
        started = time.perf_counter()
        sync(target)
        synced = None if self.syncs else ended.seconds + time.perf_counter() - started
        return Sample(ended.seconds, {"client": ended.use, **uses}, synced=synced)


class Rsync(Rival):
    """One daemon; whole files, as it does by itself when the target is not there."""

    name = "rsync --fsync, one source"
    commands = ("rsync",)
    syncs = True

    def start(self, stack: ExitStack) -> None:
        self.port = free_port()
        config = self.root / "rsyncd.conf"
        (self.root / "taken").mkdir()
        owner = f"uid = {os.getuid()}\ngid = {os.getgid()}\n"
        config.write_text(
            f"use chroot = no\nport = {self.port}\naddress = 127.0.0.1\n"
            f"pid file = {self.root}/pid\nlog file = {self.root}/log\n"
            f"[file]\npath = {self.source.path.parent}\nread only = yes\n{owner}"
            f"[taken]\npath = {self.root}/taken\nread only = no\n{owner}"
        )
        words = ["rsync", "--daemon", "--no-detach", f"--config={config}"]
        self.pids = {"daemon": background(words, stack).pid}
        wait_for(lambda: answers(self.port), "rsync's daemon answers")

    def words(self, target: Path) -> list[str]:
        return [
            "rsync",
            "--fsync",
            f"rsync://127.0.0.1:{self.port}/file/{self.source.path.name}",
            str(target),
        ]

    def put(self) -> tuple[Sample, Path]:
        """The sample, and where the file is now."""
        url = f"rsync://127.0.0.1:{self.port}/taken/"
        target = self.root / "taken" / self.source.path.name
        return self.sample(["rsync", "--fsync", str(self.source.path), url], target), target


NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/errors;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {folder}/b;
    proxy_temp_path {folder}/p;
    fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u;
    scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; location / {{ root {root}; }} }}
}}
"""


class Aria2(Rival):
    """Three nginx, a metalink with the SHA-256 of each 10 MiB, which it checks while it loads."""

    name = "aria2, three HTTP servers"
    commands = ("aria2c", "nginx")

    def start(self, stack: ExitStack) -> None:
        ports = [free_port() for _ in range(SERVERS)]
        for number, port in enumerate(ports, 1):
            folder = self.root / f"http-{number}"
            folder.mkdir()
            config = folder / "nginx.conf"
            config.write_text(NGINX.format(folder=folder, port=port, root=self.source.path.parent))
            words = [str(found("nginx")), "-p", str(folder), "-e", str(folder / "errors"), "-c", str(config)]
            self.pids[f"nginx {number}"] = background(words, stack).pid
        for port in ports:
            wait_for(partial(answers, port), "nginx answers")
        self.metalink = self.root / "file.meta4"
        self.metalink.write_text(metalink(self.source, ports))

    def words(self, target: Path) -> list[str]:
        options = ["--no-conf", "--quiet", "--split=12", "--max-connection-per-server=4"]
        options += ["--file-allocation=falloc", "--min-split-size=10M", "--disk-cache=64M"]
        return ["aria2c", *options, f"--dir={target.parent}", f"--metalink-file={self.metalink}"]

    def get(self, target: Path) -> Sample:
        return self.get_by_own_name(target)


def metalink(source: Source, ports: Sequence[int]) -> str:
    """RFC 5854."""
    urls = [f"<url>http://127.0.0.1:{port}/{source.path.name}</url>" for port in ports]
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<metalink xmlns="urn:ietf:params:xml:ns:metalink">'
        f'<file name="{source.path.name}"><size>{source.size}</size>'
        f'<pieces length="{PIECE}" type="sha-256">{"".join(_pieces(source.path))}</pieces>'
        f"{''.join(urls)}</file></metalink>\n"
    )


def _pieces(path: Path) -> list[str]:
    with path.open("rb") as file:
        pieces = iter(lambda: file.read(PIECE), b"")
        return [f"<hash>{hashlib.sha256(piece).hexdigest()}</hash>" for piece in pieces]


class Libtorrent(Rival):
    """A v2 torrent (SHA-256) and three seeders that have all of it."""

    name = "libtorrent, three seeders"
    modules = ("libtorrent",)

    def start(self, stack: ExitStack) -> None:
        self.torrent = self.root / "file.torrent"
        program = [sys.executable, "-m", "benchmarks.torrent"]
        Command([*program, "make", str(self.source.path), str(self.torrent)]).wait()
        self.ports = []
        for number in range(1, SERVERS + 1):
            words = [*program, "seed", str(self.torrent), str(self.source.path.parent)]
            process = background(words, stack)
            assert process.stdout is not None
            self.pids[f"seeder {number}"] = process.pid
            self.ports.append(process.stdout.readline().strip())

    def words(self, target: Path) -> list[str]:
        program = [sys.executable, "-m", "benchmarks.torrent", "get"]
        return [*program, str(self.torrent), str(target.parent), *self.ports]

    def get(self, target: Path) -> Sample:
        return self.get_by_own_name(target)


RIVALS: tuple[type[Rival], ...] = (Rsync, Aria2, Libtorrent)


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-rivals", action="store_true", help="zchunk and its floor alone")


def started(root: Path, source: Source, stack: ExitStack, kinds: Sequence[type[Rival]]) -> list[Rival]:
    """Those that are installed; of the others it is said that they are skipped."""
    rivals = []
    for kind in kinds:
        if missing := kind.missing():
            say(f"skipped: {kind.name}: not installed: {', '.join(missing)}")
            continue
        rival = kind(root / kind.__name__.lower(), source)
        rival.start(stack)
        rival.signal(signal.SIGSTOP)
        stack.callback(rival.signal, signal.SIGCONT)
        rivals.append(rival)
    return rivals
