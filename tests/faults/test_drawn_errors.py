"""A dozen of what `tests/sim/test_refusals.py` does in simulated thousands, with real processes: calls
of a node, the tracker or a command fail for a while. Then nothing is damaged or lost, everyone still
runs, and what failed said so in words and succeeds when it is tried again.

`ZCHUNK_TEST_SEED` draws another dozen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.faults.announced import announced, whole_chunks
from tests.faults.conftest import Figure
from tests.faults.drawn import Fault, drawn
from tests.faults.tracing import injected, needs_strace, tampered
from tests.integration.cluster import (
    MIB,
    PATIENCE_S,
    Client,
    Cluster,
    Node,
    Process,
    Result,
    Source,
    make_file,
    sha256_of,
)
from tests.waiting import wait_for
from zchunk.errors import BY_CODE, IntegrityError

pytestmark = needs_strace

SEED = int(os.environ.get("ZCHUNK_TEST_SEED", "176"))
DOZEN = list(drawn(12, Random(f"errors {SEED}")))
#: A trouble lasts so long at most, from its first strike on.
_LASTS_S = 1.5
_SIZE = 2 * MIB
#: What an error that the system gave is never called.
_DAMAGE = {code for code, kind in BY_CODE.items() if issubclass(kind, IntegrityError)}


@pytest.fixture
def trio(small: Cluster) -> Iterator[Cluster]:
    """The nodes A, B, C; A starts again after each test, so that its disk is good again."""
    yield small
    small.nodes["A"].process.end()
    small.restart("A")


class Story:
    """A file that is there, which is read, and one that is put, while something fails."""

    def __init__(self, cluster: Cluster, folder: Path, fault: Fault) -> None:
        self.cluster, self.fault = cluster, fault
        self.log = folder / "trace"
        self.kept = make_file(folder / f"kept-{fault}", _SIZE)
        self.new = make_file(folder / f"new-{fault}", _SIZE)
        (folder / "out").mkdir()
        self.target = folder / "out" / "copy"
        self.rng = Random(f"lengths {SEED} {fault}")
        cluster.client.put(self.kept.path)
        self.hashes = cluster.client.info(self.kept.path.name)["chunks_hashes"]
        self.held = {node.name: node.holds(self.hashes) for node in cluster.nodes.values()}

    # -- while it lasts

    def run(self) -> None:
        with self.trouble():
            put = self.client("put").start("put", "--yes", self.new.path)
            get = self.client("get").start("get", "-o", self.target, "--", self.kept.path.name)
            self.lasts(put, get)
        self.revive()
        self.put_ended(put.result())
        self.get_ended(get.result())

    def trouble(self) -> AbstractContextManager[None]:
        servers = {"node": self.cluster.nodes["A"].process, "tracker": self.cluster.tracker.process}
        if self.fault.who in servers:
            return tampered(servers[self.fault.who], self.log, self.fault.inject)
        return _nothing()

    def client(self, command: str) -> Client:
        client = self.cluster.client
        return Client(client.cluster, client.home, self.strace() if command == self.fault.who else ())

    def strace(self) -> list[str]:
        """Before a command: its calls on the files that it reads or writes fail, all the time."""
        ours = [self.target.with_name(self.target.name + end) for end in ("", ".zpart", ".zjob", ".zjob.tmp")]
        paths = [self.new.path, self.target.parent, *ours]
        words = ["strace", "-D", "-f", "-q", "-y", "-o", str(self.log), "-e", f"trace={self.fault.calls}"]
        return [*words, "-e", f"inject={self.fault.inject}", *(f"--trace-path={path}" for path in paths)]

    def lasts(self, put: Process, get: Process) -> None:
        """From the first strike on for a drawn time, or as long as the commands run."""
        wait_for(
            lambda: injected(self.log) or not (put.alive or get.alive), PATIENCE_S, f"{self.fault} strikes"
        )
        put.ends_within(self.rng.uniform(0.0, _LASTS_S))
        assert injected(self.log), f"{self.fault} never struck"

    # -- once it is over

    def revive(self) -> None:
        """libzmq and libsodium end their process where they get no memory, in words."""
        node = self.cluster.nodes["A"]
        if self.fault.calls == "mmap" and not node.process.alive:
            assert "OUT OF MEMORY" in node.process.stderr
            self.cluster.restart("A")

    def put_ended(self, result: Result) -> None:
        if not succeeded(result):
            self.cluster.client.put(self.new.path)

    def get_ended(self, result: Result) -> None:
        if not succeeded(result) and not self.target.exists():
            self.get(self.kept)
        assert sha256_of(self.target) == self.kept.sha256
        self.target.unlink()

    def get(self, source: Source) -> None:
        self.cluster.client.get(source.path.name, self.target)
        assert sha256_of(self.target) == source.sha256

    def verify(self) -> None:
        self.get(self.new)
        assert os.listdir(self.target.parent) == ["copy"], "nothing is left of what failed"
        assert self.cluster.tracker.process.alive
        for node in self.cluster.nodes.values():
            self.verify_node(node)

    def verify_node(self, node: Node) -> None:
        assert node.process.alive, node.process.stderr
        assert node.holds(self.hashes) == self.held[node.name]
        assert not list((node.store / "trash").glob("corrupt/*")), "a sound chunk was set apart"
        wait_for(
            lambda: self.held[node.name] <= announced(self.cluster, node) <= whole_chunks(node),
            PATIENCE_S,
            f"{node.name} and the tracker agree",
        )


def succeeded(result: Result) -> bool:
    """Else it failed in words, which call nothing damaged."""
    assert "Traceback" not in result.stderr, str(result)
    if result.code == 0:
        return True
    assert result.last["message"], str(result)
    assert result.last["code"] not in {"unexpected", *_DAMAGE}, str(result)
    return False


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@pytest.mark.row("D10")
@pytest.mark.parametrize("fault", DOZEN, ids=str)
def test_calls_that_fail_for_a_while_cost_nothing(
    trio: Cluster, folder: Path, fault: Fault, record_property: Figure
) -> None:
    story = Story(trio, folder, fault)
    story.run()
    record_property("figures", f"seed {SEED}: {injected(story.log)} calls failed of {fault}")
    story.verify()
