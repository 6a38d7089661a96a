"""A real cluster for tests: `python -m zchunk` processes on 127.0.0.1, homes in one folder.

Everything waits for a line, an event or a condition, each with a deadline. Only processes
started here are ever signalled, by their pid. What the tests know of a node's disk is the
folder HOME/node/store/chunks/ab/<sha256>.
"""

from __future__ import annotations

import hashlib
import json
import os
import pty
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zchunk
from tests.waiting import wait_for
from zchunk.clock import SystemClock
from zchunk.config import Settings
from zchunk.errors import TrackerUnreachable
from zchunk.protocol.messages import PeerRecord
from zchunk.tracker.members.membership import Membership
from zchunk.transport.auth import parse_token

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024**2
GIB = 1024**3
#: Root reads everything; behind this it is a user like others, who may not read what
#: belongs to NOBODY alone or what nobody may read.
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
NOBODY = 65534
#: Everything that should take a second or two gets this long on a busy machine.
PATIENCE_S = 60.0
_SAMPLE_S = 0.05
#: In the log of a process that met a bug and went on.
_BUG = "could not be handled (a bug)"

Event = dict[str, Any]
Wanted = str | Callable[[Event], bool]


# -- files ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    path: Path
    size: int
    sha256: str

    def piece(self, offset: int, length: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)


def make_file(path: Path, size: int) -> Source:
    """Random bytes, digested while they are written."""
    digest, left = hashlib.sha256(), size
    with open(path, "wb") as file:
        while left:
            piece = os.urandom(min(left, 8 * MIB))
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
    return Source(path, size, digest.hexdigest())


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flip_bit(path: Path, at: int) -> None:
    """Calling it again mends the file."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


# -- processes --------------------------------------------------------------------------


def _own_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Result:
    """A command that ended. `events` are the JSON values it printed, a line each."""

    args: tuple[str, ...]
    code: int
    lines: list[str]
    events: list[Any]
    stderr: str
    seconds: float
    peak: int

    @property
    def last(self) -> Any:
        assert self.events, f"{self} printed no JSON"
        return self.events[-1]

    def of(self, name: str) -> list[Event]:
        return [event for event in self.events if event.get("event") == name]

    def expect(self, code: int) -> Result:
        assert self.code == code, f"exit {self.code} instead of {code}\n{self}"
        assert "Traceback" not in self.stderr, str(self)
        return self

    def __str__(self) -> str:
        tail = "\n".join(self.lines[-3:])
        return f"zchunk {' '.join(map(repr, self.args))} -> {self.code}\n{tail}\n{self.stderr}"


class Process:
    """One process: its stdout as a queue of lines, its peak memory, its end."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        prefix: Sequence[str] = (),
        terminal: bool = False,
        text: str | None = None,
        out: int | None = None,
        err: int | None = None,
    ) -> None:
        """`words` are the arguments of zchunk; `prefix` stands before the interpreter.
        `terminal`: stdin is a terminal (see `answer`); `text`: stdin holds this; else it
        is empty. `out` and `err`: descriptors that stand in for stdout and stderr, of which
        nothing is read here then."""
        self.words = tuple(words)
        self.events: list[Any] = []
        self.lines: list[str] = []
        self.code: int | None = None
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._peak = 0
        self._own_peak = _own_peak()
        self._terminal, stdin = self._stdin(terminal, text)
        self._started = time.monotonic()
        self._ended_at = 0.0
        command = [*prefix, sys.executable, "-m", "zchunk", *words]
        self._popen = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE if out is None else out,
            stderr=self._stderr if err is None else err,
            env=dict(env),
            cwd=cwd,
        )
        os.close(stdin)
        self._threads = [threading.Thread(target=run) for run in (self._read, self._reap, self._watch)]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _stdin(terminal: bool, text: str | None) -> tuple[int | None, int]:
        if terminal:
            return pty.openpty()
        if text is None:
            return None, os.open(os.devnull, os.O_RDONLY)
        with tempfile.TemporaryFile() as file:
            file.write(text.encode())
            file.flush()
            file.seek(0)
            return None, os.dup(file.fileno())

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    @property
    def seconds(self) -> float:
        return (self._ended_at or time.monotonic()) - self._started

    @property
    def peak(self) -> int:
        """Bytes of resident memory at most (VmHWM)."""
        self._sample()
        return self._peak

    @property
    def stderr(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode(errors="replace")

    @property
    def met_bug(self) -> bool:
        return not self._stderr.closed and _BUG in self.stderr

    def children(self) -> list[int]:
        """Processes that this one has started and that still run."""
        found: list[int] = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
        return found

    # -- what it prints -----------------------------------------------------------------

    def next_line(self, deadline_s: float = PATIENCE_S) -> str | None:
        """The next line of stdout; None at its end."""
        try:
            line = self._queue.get(timeout=max(deadline_s, 0.001))
        except queue.Empty:
            raise AssertionError(f"silent for {deadline_s:.1f} s: {self}") from None
        if line is not None:
            self.lines.append(line)
            with suppress(ValueError):
                self.events.append(json.loads(line))
        return line

    def until(self, wanted: Wanted, deadline_s: float = PATIENCE_S) -> Event:
        """Reads on to an event of that name, or for which `wanted` is true."""
        matches = wanted if callable(wanted) else lambda event: event.get("event") == wanted
        end = time.monotonic() + deadline_s
        while True:
            known = len(self.events)
            line = self.next_line(end - time.monotonic())
            assert line is not None, f"ended without {wanted}: {self}"
            if len(self.events) > known and matches(self.events[-1]):
                found: Event = self.events[-1]
                return found

    def ready(self) -> Event:
        """What a server's `ready` line says."""
        line = self.next_line()
        assert line is not None, f"ended instead of getting ready: {self}"
        word, _, fields = line.partition(" ")
        assert word == "ready", line
        value: Event = json.loads(fields)
        return value

    def answer(self, text: str) -> None:
        """Type at its terminal."""
        assert self._terminal is not None
        os.write(self._terminal, text.encode())

    # -- its end ------------------------------------------------------------------------

    def send(self, number: int) -> None:
        """Does nothing when it has ended: its pid may be another's by now."""
        with self._guard:
            if self.code is None:
                os.kill(self.pid, number)

    def wait(self, deadline_s: float = PATIENCE_S) -> int:
        assert self._ended.wait(deadline_s), f"still runs after {deadline_s:g} s: {self}"
        assert self.code is not None
        return self.code

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends by itself before so long: how a fault waits for its moment."""
        return self._ended.wait(seconds)

    def result(self, deadline_s: float = PATIENCE_S) -> Result:
        """Reads to its end and lets go of it."""
        end = time.monotonic() + deadline_s
        while self.next_line(end - time.monotonic()) is not None:
            pass
        code = self.wait(max(1.0, end - time.monotonic()))
        found = Result(self.words, code, self.lines, self.events, self.stderr, self.seconds, self._peak)
        self.close()
        return found

    def end(self, number: int = signal.SIGTERM, deadline_s: float = 20.0) -> int:
        """Signals it and waits. A server that does not follow SIGTERM is a failure."""
        self.send(number)
        return self.wait(deadline_s)

    def close(self) -> None:
        """Ends it however it stands; a second call does nothing."""
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.send(number)
        if not self._ended.wait(10.0):
            self.send(signal.SIGKILL)
        for thread in self._threads:
            thread.join(10.0)
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        if not self._stderr.closed:
            self._stderr.close()

    # -- threads ------------------------------------------------------------------------

    def _read(self) -> None:
        for line in self._popen.stdout or ():
            self._queue.put(line.decode(errors="replace").rstrip("\n"))
        self._queue.put(None)

    def _reap(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._guard:
            _, status, usage = os.wait4(self.pid, 0)
            self.code = self._popen.returncode = os.waitstatus_to_exitcode(status)
        # Exact, but a child also inherits the peak of the process that starts it.
        if usage.ru_maxrss * 1024 > self._own_peak:
            self._peak = max(self._peak, usage.ru_maxrss * 1024)
        self._ended_at = time.monotonic()
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        with self._guard:
            if self.code is not None:
                return
            with suppress(OSError):
                for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self._peak = max(self._peak, int(line.split()[1]) * 1024)

    def __str__(self) -> str:
        stderr = "(closed)" if self._stderr.closed else self.stderr[-3000:]
        tail = "\n".join(self.lines[-3:])
        return f"zchunk {' '.join(map(repr, self.words))} (exit {self.code})\n{tail}\n{stderr}"


# -- members ----------------------------------------------------------------------------


class Client:
    """A home that has joined; `run` waits for a command's end, `start` does not."""

    def __init__(self, cluster: Cluster, home: Path, prefix: Sequence[str] = ()) -> None:
        self.cluster = cluster
        self.home = home
        self.prefix = tuple(prefix)

    def start(
        self,
        command: str,
        *args: str | Path,
        json: bool = True,
        cwd: Path | None = None,
        terminal: bool = False,
        text: str | None = None,
        settings: Mapping[str, Any] | None = None,
        err: int | None = None,
    ) -> Process:
        words = [command, "--home", str(self.home), *(["--json"] if json else []), *map(str, args)]
        return self.cluster.spawn(
            words,
            cwd=cwd or self.home,
            prefix=self.prefix,
            terminal=terminal,
            text=text,
            settings=settings,
            err=err,
        )

    def run(
        self,
        command: str,
        *args: str | Path,
        code: int | None = 0,
        deadline_s: float = PATIENCE_S,
        **options: Any,
    ) -> Result:
        """Expects exit code `code`; None takes any."""
        result = self.start(command, *args, **options).result(deadline_s)
        return result if code is None else result.expect(code)

    def put(self, path: Path, *options: str, **more: Any) -> Result:
        return self.run("put", "--yes", *options, path, **more)

    def get(self, name: str, target: Path, *options: str, **more: Any) -> Result:
        return self.run("get", "-o", target, *options, "--", name, **more)

    def info(self, name: str) -> Event:
        value: Event = self.run("info", "--", name).last
        return value

    def ls(self) -> list[Event]:
        value: list[Event] = self.run("ls").last
        return value

    def names(self) -> list[str]:
        return [row["name"] for row in self.ls()]


@dataclass
class Node:
    name: str
    home: Path
    options: tuple[str, ...]
    process: Process
    endpoint: str = ""
    peer_id: str = ""
    #: of earlier processes on this home
    earlier_peak: int = 0

    @property
    def store(self) -> Path:
        return self.home / "node" / "store"

    @property
    def peak(self) -> int:
        return max(self.earlier_peak, self.process.peak)

    def chunk_path(self, sha256: str) -> Path:
        return self.store / "chunks" / sha256[:2] / sha256

    def chunks(self) -> dict[str, int]:
        """sha256 -> size of every chunk file."""
        return {path.name: path.stat().st_size for path in (self.store / "chunks").glob("??/*")}

    def holds(self, hashes: Sequence[str]) -> set[str]:
        return {sha256 for sha256 in hashes if self.chunk_path(sha256).exists()}


@dataclass
class _Server:
    """What starts the tracker again on its home and ports."""

    home: Path
    process: Process
    endpoint: str = ""
    events: str = ""


# -- the cluster ------------------------------------------------------------------------


class Cluster:
    """A tracker, nodes and a client under `root`; leaving the block ends and removes all.

    `settings` ("chunking.chunk_size": "64KiB") hold for all processes.
    """

    running: set[Cluster] = set()  # noqa: RUF012 - all of this session, for reports of failures

    def __init__(self, root: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self.settings = dict(settings or {})
        self.nodes: dict[str, Node] = {}
        self.tracker: _Server
        #: as `prefix` of `Process`, for the tracker's next start
        self.tracker_prefix: Sequence[str] = ()
        self._processes: list[Process] = []
        self._tokens: dict[str, str] = {}
        self._watcher: zchunk.Client | None = None
        #: something was stopped, frozen or started again since all was known to be up
        self._disturbed = False

    def __enter__(self) -> Self:
        Cluster.running.add(self)
        try:
            self.start_tracker()
            self.client = self.join("client")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        bugs = [process.stderr for process in self._processes if process.met_bug]
        self.close()
        assert error is not None or not bugs, "\n".join(bugs)

    def close(self) -> None:
        Cluster.running.discard(self)
        self.reset_watcher()
        # All at once; the nodes first, since they take their leave of the tracker.
        for process in reversed(self._processes):
            process.send(signal.SIGCONT)
            if not hasattr(self, "tracker") or process is not self.tracker.process:
                process.send(signal.SIGTERM)
        for process in reversed(self._processes):
            process.close()
        shutil.rmtree(self.root)

    # -- processes ----------------------------------------------------------------------

    def place(self, name: str) -> tuple[tuple[str, ...], str]:
        """Where a member (a node's or client's name, or "tracker") runs: the words before its
        command, and the address that it binds. `lan.py` gives each a PC of its own."""
        return (), "127.0.0.1"

    def spawn(
        self,
        words: Sequence[str],
        *,
        cwd: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Process:
        env = {key: value for key, value in os.environ.items() if not key.startswith("ZCHUNK_")}
        env["PYTHONPATH"] = str(ROOT)
        for key, value in {**self.settings, **(settings or {})}.items():
            env["ZCHUNK_" + key.replace(".", "__").upper()] = str(value)
        process = Process(words, env=env, cwd=cwd or self.root, **options)
        self._processes.append(process)
        return process

    def failed(self) -> Iterator[tuple[str, str]]:
        """(name, stderr) of the servers, for the report of a failed test."""
        servers = [("tracker", self.tracker.process)] if hasattr(self, "tracker") else []
        servers += [(node.name, node.process) for node in self.nodes.values()]
        for name, process in servers:
            yield f"{self.root.name}: {name}", str(process)

    # -- tracker ------------------------------------------------------------------------

    def start_tracker(self) -> None:
        """The first time on free ports, later on the same ones."""
        known = getattr(self, "tracker", None)
        home = self.root / "tracker-home"
        prefix, host = self.place("tracker")
        bind = (known.endpoint, known.events) if known else self.first_bind(host)
        words = ["tracker", "-v", "--home", str(home), "--bind", bind[0], "--events", bind[1]]
        process = self.spawn(words, prefix=(*prefix, *self.tracker_prefix))
        self.tracker = _Server(home, process, *bind)
        ready = process.ready()
        assert ready["home"] == str(home)
        self.tracker.endpoint = ready["endpoint"].removeprefix("tcp://")
        self.tracker.events = ready["events"].removeprefix("tcp://")

    def first_bind(self, host: str) -> tuple[str, str]:
        """Where the tracker answers and where it publishes, at its first start."""
        return f"{host}:0", f"{host}:0"

    def stop_tracker(self, number: int = signal.SIGTERM) -> None:
        self._disturbed = True
        self.tracker.process.end(number)

    def token(self, role: str = "node", *options: str) -> str:
        words = ["token", "--home", str(self.tracker.home), "--role", role, *options]
        result = self.spawn(words).result().expect(0)
        assert len(result.lines) == 1
        return result.lines[0]

    def _any_token(self, role: str) -> str:
        """One for many; made anew where a revocation withdrew it."""
        listed = Membership(self.tracker.home / "tracker" / "members.json", SystemClock()).listed.tokens
        known = self._tokens.get(role)
        if known is None or parse_token(known).key.peer_id not in listed:
            self._tokens[role] = self.token(role)
        return self._tokens[role]

    # -- members ------------------------------------------------------------------------

    def join(self, name: str, role: str = "client", prefix: Sequence[str] = ()) -> Client:
        """A home that commands run on; `prefix` as in `Process`."""
        home = self.root / name
        home.mkdir()
        client = Client(self, home, (*self.place(name)[0], *prefix))
        client.run("join", self._any_token(role), "--name", name)
        return client

    def start_node(self, name: str, *options: str, prefix: Sequence[str] = ()) -> Node:
        return self.start_nodes(name, options=options, prefix=prefix)[0]

    def start_nodes(self, *names: str, options: Sequence[str] = (), prefix: Sequence[str] = ()) -> list[Node]:
        """Up when this returns: `ready` comes after the tracker has registered a node."""
        for name in names:
            home = self.node_home(name)
            words = ["--join", self._any_token("node"), "--name", name]
            before, host = self.place(name)
            process = self._node_process(home, f"{host}:0", [*words, *options], (*before, *prefix))
            self.nodes[name] = Node(name, home, tuple(options), process)
        return [self._introduced(self.nodes[name]) for name in names]

    def node_home(self, name: str) -> Path:
        """For the node alone, so that nobody else can read chunks from its disk."""
        home = self.root / f"node-{name}"
        home.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(home, NOBODY, NOBODY)
        return home

    def _node_process(
        self, home: Path, bind: str, words: Sequence[str], prefix: Sequence[str] = ()
    ) -> Process:
        return self.spawn(["node", "-v", "--home", str(home), "--bind", bind, *words], prefix=prefix)

    def _introduced(self, node: Node) -> Node:
        ready = node.process.ready()
        assert ready["name"] == node.name
        assert node.peer_id in ("", ready["peer_id"])
        node.endpoint = ready["endpoint"].removeprefix("tcp://")
        node.peer_id = ready["peer_id"]
        return node

    def restart(self, name: str) -> Node:
        """The same home and port again; ready when this returns."""
        self._disturbed = True
        node = self.nodes[name]
        assert not node.process.alive
        node.earlier_peak = max(node.earlier_peak, node.process.peak)
        node.process.close()
        prefix, _ = self.place(name)
        node.process = self._node_process(node.home, node.endpoint, node.options, prefix)
        return self._introduced(node)

    def kill(self, name: str) -> Node:
        """kill -9; returns when the tracker has noticed."""
        node = self.nodes[name]
        node.process.end(signal.SIGKILL)
        self.await_status(name, "down")
        return node

    def stop(self, name: str) -> Node:
        node = self.nodes[name]
        assert node.process.end(signal.SIGTERM) == 0, str(node.process)
        self.await_status(name, "left")
        return node

    def mend(self) -> None:
        """Everything runs and is up again, whatever a test has left."""
        if not self.tracker.process.alive:
            self._disturbed = True
            self.start_tracker()
        self.tracker.process.send(signal.SIGCONT)
        for node in self.nodes.values():
            node.process.send(signal.SIGCONT)
            if not node.process.alive:
                self.restart(node.name)
        if self._disturbed:
            self.await_all_up()
            self._disturbed = False

    # -- what the tracker says ------------------------------------------------------------

    def records(self) -> dict[str, PeerRecord]:
        """By the Python API: waiting for a status asks often, and a command takes its time."""
        if self._watcher is None:
            self._watcher = self.watcher()
        try:
            return {record.name: record for record in self._watcher.peers()}
        except TrackerUnreachable:
            return {}

    def statuses(self) -> dict[str, str]:
        return {name: record.status for name, record in self.records().items()}

    def watcher(self) -> zchunk.Client:
        """Who asks the tracker for `statuses`."""
        return zchunk.Client(self.client.home, Settings())

    def reset_watcher(self) -> None:
        """The client's home has joined anew."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def await_status(self, name: str, status: str, deadline_s: float = 20.0) -> None:
        wait_for(lambda: self.statuses().get(name) == status, deadline_s, f"{name} is {status}")

    def await_all_up(self, deadline_s: float = 20.0) -> None:
        up = dict.fromkeys(self.nodes, "up")
        wait_for(lambda: self.statuses() == up, deadline_s, "all nodes are up")

    # -- shortcuts ------------------------------------------------------------------------

    def node_of(self, peer_id: str) -> Node:
        return next(node for node in self.nodes.values() if node.peer_id == peer_id)

    def on_disk(self, hashes: Sequence[str]) -> dict[str, set[str]]:
        """peer id -> which of these chunks its disk has."""
        return {node.peer_id: node.holds(hashes) for node in self.nodes.values()}

    def peaks(self) -> dict[str, int]:
        peaks = {node.name: node.peak for node in self.nodes.values()}
        return peaks | {"tracker": self.tracker.process.peak}

    @contextmanager
    def frozen(self, *processes: Process) -> Iterator[None]:
        self._disturbed = True
        for process in processes:
            process.send(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                process.send(signal.SIGCONT)
