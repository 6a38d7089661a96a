"""What a command prints has no say in its work: stdout and stderr full, closed, hung up, stuck.

A server goes on without its terminal, log and stdout; a transfer is complete whatever becomes of
its progress. A result that is lost is a failure of the command whose result it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.integration.cluster import MIB, Cluster, Process, Source, make_file, sha256_of
from tests.waiting import wait_for

SIZE = 2 * MIB
NO_SPACE = 8


@contextmanager
def full() -> Iterator[int]:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def gone() -> Iterator[int]:
    """A pipe whose reader has closed it."""
    read, write = os.pipe()
    os.close(read)
    try:
        yield write
    finally:
        os.close(write)


@contextmanager
def hung_up() -> Iterator[int]:
    """A terminal that is not there any more."""
    master, slave = pty.openpty()
    os.close(master)
    try:
        yield slave
    finally:
        os.close(slave)


@contextmanager
def stuck() -> Iterator[int]:
    """A pipe that is full, and whose reader reads nothing."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, bytes(4096))
    try:
        yield write
    finally:
        os.close(read)
        os.close(write)


Outlet = Callable[[], AbstractContextManager[int]]
BROKEN = [full, gone, hung_up]


@pytest.fixture(scope="module")
def source(bench_cluster: Cluster, sources: Path) -> Source:
    source = make_file(sources / "output.bin", SIZE)
    bench_cluster.client.put(source.path)
    return source


def command(
    cluster: Cluster, name: str, *args: str | Path, out: int | None = None, err: int | None = None
) -> Process:
    words = [name, "--home", str(cluster.client.home), *map(str, args)]
    return cluster.spawn(words, out=out, err=err)


# -- transfers --------------------------------------------------------------------------


@pytest.mark.parametrize("outlet", [*BROKEN, stuck])
def test_a_get_does_not_need_its_stderr(bench: Cluster, source: Source, folder: Path, outlet: Outlet) -> None:
    with outlet() as fd:
        assert command(bench, "get", source.path.name, "-o", folder / "x", err=fd).wait() == 0
    assert sha256_of(folder / "x") == source.sha256


@pytest.mark.parametrize("outlet", BROKEN)
def test_a_put_does_not_need_its_stderr(bench: Cluster, folder: Path, outlet: Outlet) -> None:
    made = make_file(folder / f"{outlet.__name__}.bin", SIZE)
    with outlet() as fd:
        assert command(bench, "put", "--yes", made.path, err=fd).wait() == 0
    assert made.path.name in bench.client.names()


@pytest.mark.parametrize(("outlet", "code"), [(full, NO_SPACE), (gone, 0), (hung_up, 1)])
def test_a_get_with_json_is_complete_though_nobody_can_be_told(
    bench: Cluster, source: Source, folder: Path, outlet: Outlet, code: int
) -> None:
    with outlet() as fd:
        getting = command(bench, "get", "--json", source.path.name, "-o", folder / "x", out=fd)
        assert getting.wait() == code
    assert sha256_of(folder / "x") == source.sha256
    lines = getting.stderr.splitlines()
    assert len(lines) == (code != 0), "one line where the output was lost"


@pytest.mark.parametrize(("outlet", "code"), [(full, NO_SPACE), (gone, 0), (hung_up, 1)])
def test_a_put_with_json_is_complete_though_nobody_can_be_told(
    bench: Cluster, folder: Path, outlet: Outlet, code: int
) -> None:
    made = make_file(folder / f"json-{outlet.__name__}.bin", SIZE)
    with outlet() as fd:
        assert command(bench, "put", "--json", "--yes", made.path, out=fd).wait() == code
    assert made.path.name in bench.client.names()


@pytest.mark.parametrize("outlet", [*BROKEN, stuck])
def test_an_interrupted_get_without_stderr_keeps_its_part(
    bench: Cluster, source: Source, folder: Path, outlet: Outlet
) -> None:
    bench.kill("A")
    with outlet() as fd:
        getting = command(bench, "get", source.path.name, "-o", folder / "x", err=fd)
        wait_for((folder / "x.zjob").exists, 20, "the job is begun")
        assert getting.end(signal.SIGHUP) == 130
    bench.restart("A")
    bench.client.get(source.path.name, folder / "x")
    assert sha256_of(folder / "x") == source.sha256


# -- results ----------------------------------------------------------------------------

RESULTS = [
    ("ls",),
    ("ls", "--json"),
    ("info", "output.bin"),
    ("info", "--json", "output.bin"),
    ("cat", "output.bin"),
    ("cat", "--length", "10", "output.bin"),
    ("peers",),
    ("peers", "--json"),
    ("jobs", "--json"),
    ("events", "--since", "0"),
    ("events", "--since", "0", "--json"),
    ("--help",),
    ("--version",),
]


@pytest.mark.parametrize("words", RESULTS, ids=" ".join)
@pytest.mark.parametrize(("outlet", "code"), [(full, NO_SPACE), (gone, 0), (hung_up, 1)])
def test_a_lost_result_is_a_failure_in_words(
    bench: Cluster, source: Source, words: tuple[str, ...], outlet: Outlet, code: int
) -> None:
    home = ["--home", str(bench.client.home)]
    with outlet() as fd:
        asked = bench.spawn([*words, *home] if words[0] != "--help" else list(words), out=fd)
        assert asked.wait() == code
    if code:
        (line,) = asked.stderr.splitlines()
        assert line.startswith("zchunk: cannot write to standard output: ")
    else:
        assert asked.stderr == "", "who closes a pipe has enough"


@pytest.mark.parametrize("words", [RESULTS[0], RESULTS[3], ("get", "nothing-of-the-kind")], ids=" ".join)
def test_without_any_stream_a_command_still_has_its_exit_code(
    bench: Cluster, source: Source, words: tuple[str, ...]
) -> None:
    """Streams that were closed at the start: no file may take their place."""
    shell = 'exec "$0" "$@" <&- >&- 2>&-'
    asked = bench.spawn([*words, "--home", str(bench.client.home)], prefix=("bash", "-c", shell))
    assert asked.wait() == (9 if words[0] == "get" else 1)


# -- servers ----------------------------------------------------------------------------


@pytest.mark.parametrize("outlet", [*BROKEN, stuck])
def test_a_node_outlives_its_stderr_and_stdout(
    bench: Cluster, source: Source, folder: Path, outlet: Outlet
) -> None:
    """Each of its lines is one more chance to end: starting, a tracker that goes, its return."""
    bench.stop("A")
    node = bench.nodes["A"]
    words = ["node", "-v", "--home", str(node.home), "--bind", node.endpoint]
    with outlet() as out, outlet() as err:
        node.process.close()
        node.process = bench.spawn(words, out=out, err=err)
        bench.await_status("A", "up")
        bench.stop_tracker(signal.SIGKILL)
        bench.start_tracker()
        bench.await_all_up()
        bench.client.get(source.path.name, folder / "x")
        assert sha256_of(folder / "x") == source.sha256
        assert node.process.end(signal.SIGTERM) == 0
        bench.await_status("A", "left")
    bench.restart("A")


@pytest.mark.parametrize("outlet", [*BROKEN, stuck])
def test_a_tracker_outlives_its_stderr_and_stdout(bench: Cluster, source: Source, outlet: Outlet) -> None:
    bench.stop_tracker()
    home, bind, events = bench.tracker.home, bench.tracker.endpoint, bench.tracker.events
    words = ["tracker", "-v", "--home", str(home), "--bind", bind, "--events", events]
    with outlet() as out, outlet() as err:
        bench.tracker.process.close()
        bench.tracker.process = bench.spawn(words, out=out, err=err)
        bench.await_all_up()
        bench.kill("A")
        bench.restart("A")
        bench.await_all_up()
        assert source.path.name in bench.client.names()
        assert bench.tracker.process.end(signal.SIGTERM) == 0
    bench.start_tracker()


def test_a_hang_up_is_a_clean_stop(bench: Cluster) -> None:
    node = bench.nodes["A"]
    assert node.process.end(signal.SIGHUP) == 0
    bench.await_status("A", "left")
    bench.restart("A")
    assert bench.tracker.process.end(signal.SIGHUP) == 0
    bench.start_tracker()
    bench.await_all_up()


@pytest.mark.parametrize("who", ["tracker", "node"])
def test_a_signal_that_another_thread_takes_is_not_lost(bench: Cluster, who: str) -> None:
    """The system chooses the thread, and the main one may be about to wait for its end."""
    process = bench.tracker.process if who == "tracker" else bench.nodes["A"].process
    thread = next(tid for tid in threads_of(process.pid) if takes(process.pid, tid, signal.SIGTERM))
    assert ctypes.CDLL(None).tgkill(process.pid, thread, signal.SIGTERM) == 0
    assert process.wait() == 0
    if who == "tracker":
        bench.start_tracker()
    else:
        bench.restart("A")
    bench.await_all_up()


def threads_of(pid: int) -> list[int]:
    """But its main one."""
    return [tid for tid in map(int, os.listdir(f"/proc/{pid}/task")) if tid != pid]


def takes(pid: int, tid: int, number: int) -> bool:
    """Whether this thread does not block that signal."""
    status = Path(f"/proc/{pid}/task/{tid}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    return not blocked & 1 << (number - 1)


def test_a_hang_up_that_is_ignored_changes_nothing(bench: Cluster, folder: Path) -> None:
    """nohup, then the terminal goes with all three streams."""
    bench.stop("A")
    node = bench.nodes["A"]
    words = ["node", "-v", "--home", str(node.home), "--bind", node.endpoint]
    ignored = ("bash", "-c", 'trap "" HUP; exec "$0" "$@"')
    master, slave = pty.openpty()
    node.process.close()
    node.process = bench.spawn(words, out=slave, err=slave, prefix=ignored)
    os.close(slave)
    bench.await_status("A", "up")
    os.close(master)
    node.process.send(signal.SIGHUP)
    bench.stop_tracker(signal.SIGKILL)
    bench.start_tracker()
    bench.await_all_up()
    assert node.process.end(signal.SIGTERM) == 0
    bench.restart("A")
