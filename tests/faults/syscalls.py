"""Rounds that kill a node at one system call of those that make a chunk durable (T2).

Used by test_syscalls.py, which takes some of the calls, and scripts/soak, which takes all.
A chunk is announced when the tracker's database names the node as its holder.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zchunk
from tests.faults.announced import announced, leftovers, whole_chunks
from tests.faults.tracing import has_killed, tampered
from tests.integration.cluster import PATIENCE_S, Cluster, Node, Source, make_file, sha256_of
from tests.waiting import wait_for
from zchunk.config import Settings
from zchunk.errors import ZchunkError

#: All that `ChunkFiles.write`, the manifest's writing and the node's index call.
CALLS = ("mkdir", "unlink", "rename", "fdatasync", "fsync", "pwrite64")
#: One thread that stores, so that its calls are counted in their order.
SETTINGS = {"transfer.workers": 1}
_SIZE = 64 * 1024


class Upload(threading.Thread):
    """A put within this process: starting a command takes longer than all the rest."""

    def __init__(self, client: zchunk.Client, source: Source) -> None:
        super().__init__(name="upload")
        self._client, self._source = client, source
        self._outcome: dict[str, Any] | ZchunkError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._client.put(self._source.path)
        except ZchunkError as error:
            self._outcome = error

    def done(self) -> dict[str, Any]:
        self.join(PATIENCE_S)
        assert isinstance(self._outcome, dict), f"the upload: {self._outcome}"
        return self._outcome


class Writer:
    """A cluster of one node, A, and chunks that are put there."""

    def __init__(self, cluster: Cluster, client: zchunk.Client, folder: Path) -> None:
        self._cluster, self._client, self._folder = cluster, client, folder
        self._serial = 0

    @property
    def node(self) -> Node:
        return self._cluster.nodes["A"]

    def killed_at(self, call: str, number: int) -> bool:
        """Kills the node as it begins its `number`th `call` of an upload of one chunk, and
        starts it again: the upload goes on. False: it does not call so often."""
        self._serial += 1
        source = make_file(self._folder / f"{call}-{number}-{self._serial}", _SIZE)
        log = self._folder / "trace"
        with tampered(self.node.process, log, f"{call}:signal=KILL:when={number}"):
            upload = Upload(self._client, source)
            killed = _ends_before(self.node, upload)
        if not killed and has_killed(log):  # behind the upload, as strace let go of it
            self.node.process.wait()
            killed = True
        if killed:
            self._check("killed")
            self._cluster.restart("A")
        assert upload.done()["size"] == source.size
        self._check("started again")
        # The node itself may be writing at this moment, for instance what it knows of the cluster.
        wait_for(lambda: not list(leftovers(self.node)), PATIENCE_S, "a start clears away temporary files")
        target = self._folder / "copy"
        self._client.get(source.path.name, target)
        assert sha256_of(target) == source.sha256
        target.unlink()
        source.path.unlink()
        return killed

    def _check(self, when: str) -> None:
        """Every chunk under its final name is whole, and none is announced without being there."""
        said = announced(self._cluster, self.node)
        assert said <= whole_chunks(self.node), f"{when}: announced without being there"


def _ends_before(node: Node, upload: Upload) -> bool:
    """Whether the node's process ends before the upload does."""
    while upload.is_alive():
        if node.process.ends_within(0.02):
            return True
    return not node.process.alive


@contextmanager
def one_writer(root: Path, folder: Path) -> Iterator[Writer]:
    with Cluster(root, SETTINGS) as cluster:
        cluster.start_node("A")
        with zchunk.Client(cluster.client.home, Settings()) as client:
            yield Writer(cluster, client, folder)
