"""The tracker's kill -9 and start in the middle of a download, as one round (T13)."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from tests.faults.proxy import Proxy
from tests.integration.cluster import MIB, Cluster, Event, Process, make_file, sha256_of
from tests.waiting import wait_for

SETTINGS = {
    "chunking.chunk_size": "256KiB",
    "chunking.min_file_size_for_distribution": "8MiB",
    "chunking.resume_check_interval": 3600,
}
NODES = ("A", "B", "C")
_SIZE = 48 * MIB
#: Of each node: so that a download takes four seconds, and the tracker's start falls into it.
_BYTES_PER_SECOND = 4 * MIB
#: What the issue asks for, and what a busy machine may add.
VIEW_S, BUSY_S = 2.0, 3.0
_MORE = 12


@dataclass(frozen=True)
class Restart:
    #: chunks that came while there was no tracker
    meanwhile: int
    #: from the tracker's `ready` until it names every node as up, and the file
    view_s: float
    #: of the whole download
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.meanwhile} chunks came without a tracker, its view was right {self.view_s:.2f} s "
            f"after its start, the download took {self.seconds:.2f} s"
        )


def slow_nodes(root: Path, stack: ExitStack) -> tuple[Cluster, list[Proxy]]:
    """Three nodes behind proxies, which `Restarts` makes as slow as a slow network."""
    proxies = []
    cluster = stack.enter_context(Cluster(root, SETTINGS))
    for name in NODES:
        bind = f"127.0.0.1:{_free_port()}"
        proxies.append(stack.enter_context(Proxy(bind)))
        cluster.start_node(name, "--bind", bind, "--advertise", proxies[-1].address)
    return cluster, proxies


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port: int = taken.getsockname()[1]
    return port


class Restarts:
    def __init__(self, cluster: Cluster, proxies: list[Proxy], folder: Path) -> None:
        self.cluster = cluster
        self._target = folder / "copy"
        self._source = make_file(folder / "file.bin", _SIZE)
        cluster.client.put(self._source.path)
        for proxy in proxies:
            proxy.slow_down(_BYTES_PER_SECOND)

    def run(self) -> Restart:
        get = self.cluster.client.start("get", "file.bin", "-o", self._target)
        before = _progress(get, 1)
        self.cluster.stop_tracker(signal.SIGKILL)
        after = _progress(get, before + _MORE)
        self.cluster.start_tracker()
        view_s = self._await_view()
        assert get.alive, "the tracker was back in the middle of it"
        result = get.result().expect(0)
        self._target.replace(self._target.with_name("earlier"))
        assert not result.of("waiting"), "the sources were there all the time"
        assert result.last["bytes_received"] == self._source.size
        assert sha256_of(self._target.with_name("earlier")) == self._source.sha256
        return Restart(after - before, view_s, result.seconds)

    def _await_view(self) -> float:
        began = time.monotonic()
        wait_for(self._view_is_right, VIEW_S + BUSY_S, "the new tracker's view is right")
        return time.monotonic() - began

    def _view_is_right(self) -> bool:
        return self.cluster.statuses() == dict.fromkeys(NODES, "up")


def _progress(get: Process, chunks: int) -> int:
    """Waits until so many chunks are done, and says how many are."""

    def enough(event: Event) -> bool:
        return event.get("event") == "progress" and event["chunks_completed"] >= chunks

    done: int = get.until(enough)["chunks_completed"]
    return done
