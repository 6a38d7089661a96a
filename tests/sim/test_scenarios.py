"""Random histories of a cluster on a faulty network, each ended by the same verification.

`ZCHUNK_SEED=123 pytest tests/sim -k history` replays one; `ZCHUNK_SEEDS=1000` runs more.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.sim.cluster import CHUNK, Cluster, Outcome, SimClient
from zchunk.transport.memory import Faults

SEEDS = (
    [int(os.environ["ZCHUNK_SEED"])]
    if "ZCHUNK_SEED" in os.environ
    else range(int(os.environ.get("ZCHUNK_SEEDS", "30")))
)
FAULTS = Faults(delay_min=0.0002, delay_max=0.03, loss=0.01, double=0.02, corrupt=0.01)


class History:
    """One seed's story: files are put, read and removed while processes die and lines are cut."""

    def __init__(self, root: Path, seed: int) -> None:
        self.cluster = Cluster(root, seed, nodes=4)
        self.cluster.network.faults = FAULTS
        self.rng = self.cluster.rng
        self.writer: SimClient = self.cluster.client()
        self.reader: SimClient = self.cluster.client()
        self.files: dict[str, Path] = {}
        self.ids: dict[str, str] = {}
        self.gets: list[tuple[str, Path, Outcome]] = []
        self.targets = 0

    def run(self) -> None:
        steps = [
            self.put,
            self.put,
            self.get,
            self.get_while_away,
            self.crash_node,
            self.crash_tracker,
            self.cut,
            self.remove,
            self.rest,
        ]
        self.put()
        for _ in range(6):
            self.rng.choice(steps)()
        self.end()

    def put(self) -> None:
        cluster = self.cluster
        name = f"file{len(self.ids)}"
        path = cluster.make_file(name, self.rng.randrange(1, 12 * CHUNK))
        if self.files and self.rng.random() < 0.5:
            shared = self.rng.choice(sorted(self.files.values()))
            path.write_bytes(shared.read_bytes()[: 4 * CHUNK] + path.read_bytes())
        outcome = self.writer.put(
            path,
            replicas=self.rng.choice([1, 1, 2]),
            strategy=self.rng.choice(["round_robin", "contiguous", "balanced"]),
        )
        if self.rng.random() < 0.5:
            cluster.run_for(self.rng.uniform(0, 0.3))
            self.rng.choice([self.crash_node, self.cut, self.crash_tracker])()
        cluster.run_for(20)
        if not outcome.ended:  # it waits for peers that are away (SPEC U6)
            self.heal()
        cluster.run(lambda: outcome.ended, f"the upload of {name}")
        self.ids[name] = name
        if outcome.error is None:
            self.files[name] = path
            self.ids[name] = outcome.value["file_id"]
            cluster.check_published(self.ids[name])
            return
        # It may fail (a tracker that stays away too long), but then nothing is published,
        # and run again it works.
        assert outcome.error.retryable, repr(outcome.error)
        self.heal()
        again = self.writer.put(path)
        cluster.run(lambda: again.ended, f"the second upload of {name}")
        self.ids[name] = again.expect_done()["file_id"]
        self.files[name] = path

    def get(self) -> None:
        if not self.files:
            return
        name = self.rng.choice(sorted(self.files))
        self.targets += 1  # a download replaces no file that is there
        target = self.cluster.root / f"got{self.targets}"
        self.gets.append((name, target, self.reader.get(name, target)))
        self.cluster.run_for(self.rng.uniform(0, 1))

    def get_while_away(self) -> None:
        """It waits for a node, which comes back at some time, at the latest in the end."""
        node = self.rng.choice(self.cluster.nodes)
        if node.alive:
            node.crash()
        self.cluster.run_for(self.rng.uniform(2, 6))
        self.get()
        if self.rng.random() < 0.7:
            self.cluster.run_for(self.rng.uniform(0, 8))
            node.start()

    def crash_node(self) -> None:
        node = self.rng.choice(self.cluster.nodes)
        if node.alive:
            node.crash()
        self.cluster.run_for(self.rng.uniform(0, 6))
        if self.rng.random() < 0.7:
            node.start()

    def crash_tracker(self) -> None:
        self.cluster.crash_tracker()
        self.cluster.run_for(self.rng.uniform(0, 5))
        self.cluster.start_tracker(port=7700)

    def cut(self) -> None:
        hosts = [
            "tracker",
            *(n.name for n in self.cluster.nodes),
            self.reader.host.name,
            self.writer.host.name,
        ]
        one, other = self.rng.sample(hosts, 2)
        self.cluster.network.cut(one, other)
        self.cluster.run_for(self.rng.uniform(0, 5))
        if self.rng.random() < 0.6:
            self.cluster.network.heal()

    def remove(self) -> None:
        # Not while a download needs it: it would rightly end with "not found".
        self.finish_gets()
        if not self.files:
            return
        name = self.rng.choice(sorted(self.files))
        outcome = self.writer.remove(self.ids[name])
        self.cluster.run(lambda: outcome.ended, f"the removal of {name}")
        outcome.expect_done()
        del self.files[name]

    def rest(self) -> None:
        self.cluster.run_for(self.rng.uniform(0, 10))

    def heal(self) -> None:
        self.cluster.network.heal()
        for node in self.cluster.nodes:
            if not node.alive:
                node.start()
        self.cluster.run(lambda: all(n.is_up() for n in self.cluster.nodes), "every node up")

    def finish_gets(self) -> None:
        """Downloads end by themselves once every peer is back (SPEC D4)."""
        self.heal()
        for name, target, outcome in self.gets:
            self.cluster.run(lambda outcome=outcome: outcome.ended, f"the download of {name}")  # type: ignore[misc]
            if outcome.error is not None:
                assert outcome.error.retryable, repr(outcome.error)
            else:
                assert target.read_bytes() == self.files[name].read_bytes(), (
                    f"seed {self.cluster.seed}: {name}"
                )
        self.gets = []

    def end(self) -> None:
        self.finish_gets()
        counts = self.cluster.network.counts
        self.cluster.verify(self.files)
        print(f"seed {self.cluster.seed}: {dict(counts)}, {self.cluster.steps} steps")
        assert all(counts[what] for what in ("lost", "doubled", "reordered")), f"no faults: {counts}"


@pytest.mark.row("U6", "D3", "D8", "D9", "S1")
@pytest.mark.parametrize("seed", SEEDS)
def test_history(root: Path, seed: int) -> None:
    History(root, seed).run()
    shutil.rmtree(root / "files")
