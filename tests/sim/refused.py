"""A cluster whose operating systems refuse things (`refusals.py`), and what holds when that is over.

No wrong byte was written or handed out; no sound copy was set apart, or told lost; what was
acknowledged is readable; every job had ended in words, or goes on by itself; who could not start
starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sim.cluster import CHUNK, Cluster, Host, Outcome, SimClient, SimNode
from tests.sim.refusals import Refusals, Site
from zchunk.errors import ZchunkError
from zchunk.node.upkeep.self_check import SelfCheck
from zchunk.system.os_errors import as_ours


class Refused:
    def __init__(
        self, root: Path, seed: int, *, nodes: int = 3, once: tuple[Site, int | str] | None = None
    ) -> None:
        self.cluster = Cluster(root, seed, nodes=nodes)
        self.rng = self.cluster.rng
        self.refusals = Refusals(self.cluster, seed, once)
        self.writer: SimClient = self.cluster.client()
        self.reader: SimClient = self.cluster.client()
        #: acknowledged: they must be readable from then on
        self.files: dict[str, Path] = {}
        self.ids: dict[str, str] = {}
        self.puts: dict[str, tuple[Path, int, Outcome]] = {}
        self.gets: list[tuple[str, Path, Outcome]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside the block calls are refused."""
        with self.refusals.applied(), no_sound_copy_is_told_lost(self.cluster):
            yield

    # -- what happens ------------------------------------------------------------------

    def put(self) -> None:
        name = f"file{len(self.ids) + len(self.puts)}"
        path = self.cluster.make_file(name, self.rng.randrange(1, 10 * CHUNK))
        if self.files and self.rng.random() < 0.5:
            shared = self.files[self.rng.choice(sorted(self.files))]
            path.write_bytes(shared.read_bytes()[: 3 * CHUNK] + bytes(CHUNK) + path.read_bytes())
        self.put_file(path, self.rng.choice([1, 1, 2]))

    def put_file(self, path: Path, replicas: int) -> None:
        self.puts[path.name] = (path, replicas, self.writer.put(path, replicas=replicas))

    def note_puts(self) -> None:
        for name, (path, _, outcome) in list(self.puts.items()):
            if outcome.ended and outcome.error is None:
                del self.puts[name]
                self.files[name], self.ids[name] = path, outcome.value["file_id"]

    def get(self) -> None:
        if self.files:
            name = self.rng.choice(sorted(self.files))
            target = self.cluster.root / f"got{len(self.gets)}"
            self.gets.append((name, target, self.reader.get(name, target)))

    def restart_node(self, node: SimNode) -> None:
        """A start may fail in words, as a person, or the system's services, would see it."""
        if node.alive:
            node.crash()
        self.cluster.run_for(self.rng.uniform(0.0, 4.0))
        with in_words():
            node.start()

    def restart_tracker(self) -> None:
        cluster = self.cluster
        if cluster.tracker_host.alive:
            cluster.crash_tracker()
        cluster.run_for(self.rng.uniform(0.0, 2.0))
        with in_words():
            cluster.start_tracker(port=7700)

    # -- when it is over ------------------------------------------------------------------

    def finish(self) -> None:
        """Whoever ended is started again, and disks that failed are looked at: then all goes on."""
        cluster = self.cluster
        if not cluster.tracker_host.alive:
            cluster.start_tracker(port=7700)
        for node in cluster.nodes:
            if node.alive and node.store.flag:
                node.crash()
            if not node.alive:
                node.start()
        cluster.run(lambda: all(node.is_up() for node in cluster.nodes), "every node up")
        cluster.run_for(3.0)  # heartbeats say that the disks are there, and what is free
        for name in sorted(self.puts):
            self.finish_put(name)
        for name, target, outcome in self.gets:
            self.finish_get(name, target, outcome)
        self.gets = []
        for node in cluster.nodes:
            self.settle(node)

    def finish_put(self, name: str) -> None:
        path, replicas, outcome = self.puts.pop(name)
        cluster = self.cluster
        cluster.run(lambda: outcome.ended, f"the upload of {name}")
        if outcome.error is not None:
            said_in_words(outcome.error)
            outcome = self.writer.put(path, replicas=replicas)
            cluster.run(lambda: outcome.ended, f"the second upload of {name}")
        self.ids[name] = outcome.expect_done()["file_id"]
        self.files[name] = path
        cluster.check_published(self.ids[name])

    def finish_get(self, name: str, target: Path, outcome: Outcome) -> None:
        cluster = self.cluster
        cluster.run(lambda: outcome.ended, f"the download of {name}")
        if outcome.error is not None:
            said_in_words(outcome.error)
        # It may be in place, whole, where the last sync of all was refused.
        if outcome.error is not None and not target.exists():
            outcome = self.reader.get(name, target)
            cluster.run(lambda: outcome.ended, f"the second download of {name}")
            outcome.expect_done()
        same = target.read_bytes() == self.files[name].read_bytes()
        assert same, f"seed {cluster.seed}: {name} has wrong bytes"

    def settle(self, node: SimNode) -> None:
        """Its doubts, which would wait for up to an hour by now, come to their turn."""
        server, now = node.parts.registration, self.cluster.clock.monotonic()
        check = server.self_check
        for pause in [*check._suspected.values(), check._apart_pause]:
            if pause is not None:
                pause.until = now
        with node.host.acts():
            check.on_time(now)
            server.garbage.collect()
        self.cluster.run(lambda: not check.busy and check.deadline() is None, f"the doubts of {node.name}")
        assert node.store.unsettled() == [], f"{node.name} has not looked at everything"

    def verify(self) -> None:
        self._no_sound_copy_was_set_apart()
        self.cluster.verify(self.files)

    def _no_sound_copy_was_set_apart(self) -> None:
        for node in self.cluster.nodes:
            for path in (node.folder / "store" / "trash" / "corrupt").glob("*"):
                digest = path.name.removesuffix(".manifest")[-64:]
                sound = hashlib.sha256(path.read_bytes()).hexdigest() == digest
                assert not sound, f"seed {self.cluster.seed}: {path} is sound"


# -- words -----------------------------------------------------------------------------------------


@contextmanager
def in_words() -> Iterator[None]:
    """An error in the block ends a process, and was told so that a person can use it."""
    try:
        yield
    except ZchunkError as error:
        said_in_words(error)
    except (OSError, MemoryError) as error:
        said_in_words(as_ours(error))  # as the command line does


def said_in_words(error: ZchunkError) -> None:
    assert type(error) is not ZchunkError, error.message
    assert error.message
    assert "\n" not in error.message
    assert "unexpected" not in error.message


@contextmanager
def no_sound_copy_is_told_lost(cluster: Cluster) -> Iterator[None]:
    """Of each chunk that a node tells lost, its disk has no sound copy in that moment."""
    answer = SelfCheck._answer

    def checked(check: SelfCheck, sha256: bytes, whole: bool, inventory: int | None) -> None:
        acting, Host.acting = Host.acting, None
        root, name = check._store.root, sha256.hex()
        paths = [root / "chunks" / name[:2] / name, *root.glob(f"trash/corrupt/*{name}")]
        sound = [p for p in paths if p.exists() and hashlib.sha256(p.read_bytes()).digest() == sha256]
        Host.acting = acting
        assert whole or not sound, f"seed {cluster.seed}: {sound} is told lost"
        answer(check, sha256, whole, inventory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SelfCheck, "_answer", checked)
        yield
