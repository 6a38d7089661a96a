"""One zchunk.Client and several threads: each gets its own results, and hears of the end."""

from __future__ import annotations

import os
import queue
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import zchunk
from tests.integration.cluster import MIB, Client, Cluster, Source, make_file, sha256_of
from tests.waiting import wait_for
from zchunk.config import load
from zchunk.errors import ClientClosed, ForeignProcess, ZchunkError

COUNT = 6


def open_client(home: Client) -> zchunk.Client:
    chunking = {"chunk_size": 65536, "min_file_size_for_distribution": MIB}
    return zchunk.Client(home.home, load(None, {"chunking": chunking}, environ={}))


@pytest.fixture
def api(bench: Cluster) -> Iterator[zchunk.Client]:
    with open_client(bench.client) as client:
        yield client


@pytest.fixture(scope="module")
def files(bench_cluster: Cluster, sources: Path) -> list[Source]:
    made = [make_file(sources / f"thread-{n}.bin", MIB + n * 100_000) for n in range(COUNT)]
    for source in made:
        bench_cluster.client.put(source.path)
    return made


def waits(run: Callable[[], Any]) -> Future[Any]:
    """Runs in a thread that ends with the process, however it hangs."""
    future: Future[Any] = Future()

    def thread() -> None:
        try:
            future.set_result(run())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            future.set_exception(error)

    threading.Thread(target=thread, daemon=True).start()
    return future


# -- at the same time ---------------------------------------------------------------------


def test_gets_of_a_pool_return_their_own_results(
    api: zchunk.Client, files: list[Source], folder: Path
) -> None:
    def get(number: int) -> tuple[int, dict[str, Any]]:
        return number, api.get(files[number % COUNT].path.name, folder / str(number))

    with ThreadPoolExecutor(COUNT) as pool:
        for number, done in pool.map(get, range(30)):
            source = files[number % COUNT]
            assert (done["name"], done["size"], done["sha256"]) == (
                source.path.name,
                source.size,
                source.sha256,
            )
            assert done["target"] == str(folder / str(number))
            assert sha256_of(folder / str(number)) == source.sha256


def test_everything_at_once(bench: Cluster, api: zchunk.Client, files: list[Source], folder: Path) -> None:
    """Puts, gets, ranges, listings, a stream of events: one client for all."""
    new = [make_file(folder / f"at-once-{n}.bin", MIB + n) for n in range(4)]
    seen: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    following = threading.Event()

    def follow() -> None:
        for event in api.events():
            seen.put(event)
            following.set()

    def read(source: Source) -> None:
        rng = random.Random(source.sha256)
        with api.open(source.path.name) as file:
            for _ in range(10):
                offset = rng.randrange(source.size - 1000)
                file.seek(offset)
                assert file.read(1000) == source.piece(offset, 1000)

    def get(source: Source) -> None:
        assert api.get(source.path.name, folder / f"got-{source.path.name}")["sha256"] == source.sha256

    def put(source: Source) -> None:
        assert api.put(source.path)["sha256"] == source.sha256

    def look(source: Source) -> None:
        assert api.locate(source.path.name).file.size == source.size
        assert {s.path.name for s in files} <= {record.name for record in api.ls()}

    waits(follow)
    work = [(read, s) for s in files] + [(get, s) for s in files] + [(look, s) for s in files]
    work += [(put, s) for s in new]
    random.Random(9).shuffle(work)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(run, source) for run, source in work]:
            done.result(60)
    told = {seen.get(timeout=20)["topic"] for _ in new}
    assert "file.distributed" in told


def test_a_get_in_the_midst_of_another(api: zchunk.Client, files: list[Source], folder: Path) -> None:
    inner: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        if not inner:
            inner.append(api.get(files[1].path.name, folder / "inner"))

    outer = api.get(files[0].path.name, folder / "outer", on_event=on_event)
    assert (outer["sha256"], inner[0]["sha256"]) == (files[0].sha256, files[1].sha256)
    assert sha256_of(folder / "outer") == files[0].sha256
    assert sha256_of(folder / "inner") == files[1].sha256


def test_a_get_that_fails_leaves_the_others_alone(
    api: zchunk.Client, files: list[Source], folder: Path
) -> None:
    class Ours(Exception):
        pass

    def fails(event: dict[str, Any]) -> None:
        raise Ours

    with ThreadPoolExecutor(4) as pool:
        bad = [pool.submit(api.get, files[0].path.name, folder / f"b{n}", on_event=fails) for n in range(4)]
        good = [pool.submit(api.get, files[1].path.name, folder / f"g{n}") for n in range(4)]
        assert all(isinstance(future.exception(60), Ours) for future in bad)
        assert all(future.result(60)["sha256"] == files[1].sha256 for future in good)


# -- close --------------------------------------------------------------------------------


def test_close_ends_whatever_waits_in_other_threads(
    bench: Cluster, files: list[Source], folder: Path
) -> None:
    """A node is off: a get and a read wait for it, and somebody follows the events."""
    client = open_client(bench.client)
    source = files[0]
    bench.kill("A")
    waiting = queue.SimpleQueue[str]()

    def told(event: dict[str, Any]) -> None:
        if event["event"] == "waiting":
            waiting.put("waits")

    file = client.open(source.path.name, on_event=told)
    get = waits(lambda: client.get(source.path.name, folder / "x", on_event=told))
    read = waits(lambda: file.read())
    events = waits(lambda: list(client.events()))
    for _ in range(2):
        waiting.get(timeout=20)
    client.close()
    assert isinstance(get.exception(5), ClientClosed)
    assert isinstance(events.exception(5), ClientClosed)
    assert type(read.exception(5)) is ValueError
    client.close()
    with pytest.raises(ClientClosed):
        client.peers()
    with pytest.raises(ClientClosed):
        client.get(source.path.name, folder / "y")
    # The part was closed, and is gone on with.
    bench.restart("A")
    with open_client(bench.client) as again:
        assert again.get(source.path.name, folder / "x")["sha256"] == source.sha256


def test_a_file_that_is_closed_while_another_thread_reads(bench: Cluster, files: list[Source]) -> None:
    bench.kill("B")
    with open_client(bench.client) as client:
        waiting = threading.Event()
        file = client.open(files[0].path.name, on_event=lambda event: waiting.set())
        read = waits(lambda: file.read())
        assert waiting.wait(20)
        file.close()
        assert type(read.exception(5)) is ValueError
        with pytest.raises(ValueError, match="closed"):
            file.read(1)
    bench.restart("B")


# -- fork ---------------------------------------------------------------------------------


def exit_code(run: Callable[[], None]) -> int | None:
    """Of a forked process that runs it: 0 where that raised ForeignProcess; None where it hung."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except ForeignProcess:
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the code says so
            os._exit(1)
        os._exit(2)
    ended: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        ended.extend([os.waitstatus_to_exitcode(status)] if found else [])
        return bool(ended)

    try:
        wait_for(has_ended, 10, "the child ends")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None
    return ended[0]


def test_a_client_that_is_used_after_a_fork_says_so(
    api: zchunk.Client, files: list[Source], folder: Path
) -> None:
    name = files[0].path.name
    planned = api.plan_put(files[0].path)
    events = api.events(since=0)
    next(events)
    with api.open(name) as file:
        assert file.read(10) == files[0].piece(0, 10)
        uses: list[Callable[[], Any]] = [
            api.peers,
            lambda: list(api.ls()),
            lambda: api.get(name, folder / "x"),
            lambda: api.put(files[0].path),
            planned.run,
            lambda: api.open(name),
            lambda: file.seek(MIB) and file.read(10),
            lambda: next(events),
            lambda: next(api.events()),
        ]
        assert [exit_code(use) for use in uses] == [0] * len(uses)
        # To close it there is allowed, and closes nothing here.
        assert exit_code(api.close) == 2
        assert file.read(10) == files[0].piece(10, 10)
    assert api.get(name, folder / "x")["sha256"] == files[0].sha256
    planned.abandon()


def test_a_client_of_its_own_works_after_a_fork(
    bench: Cluster, api: zchunk.Client, files: list[Source], folder: Path
) -> None:
    def own() -> None:
        with open_client(bench.client) as client:
            client.get(files[0].path.name, folder / "child")

    assert exit_code(own) == 2
    assert sha256_of(folder / "child") == files[0].sha256
    assert issubclass(ForeignProcess, ZchunkError)
