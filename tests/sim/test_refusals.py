"""Histories in which the operating systems of nodes, tracker and clients refuse what they are asked
for: at every call, with every error, for drawn lengths of time.

`ZCHUNK_SEED=7 pytest tests/sim -k refused_history` replays one; what must hold then, `refused.py` says.
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.refusals import KINDS, NUMBERS, SHORT
from tests.sim.refused import Refused
from tests.sim.test_scenarios import SEEDS

USUAL = 30
STEPS = 7
_LENGTHS = (0.05, 0.5, 2.0, 8.0, 25.0)


class RefusedHistory(Refused):
    """One seed's story: troubles come and go while files are put and read and processes restart."""

    def run(self) -> Counter[tuple[str, str]]:
        """What was refused: (call, error) -> how often."""
        nodes = [node.name for node in self.cluster.nodes]
        self.put()
        self.put()
        self.cluster.run_for(5.0)
        self.note_puts()
        with self.watched():
            for _ in range(STEPS):
                self.trouble(self.writer.host.name, self.reader.host.name)
                self.trouble("tracker", *nodes)
                self.trouble(*nodes)
                for _ in range(3):
                    self.get()
                self.rng.choice([self.put, self.restart])()
                self.cluster.run_for(self.rng.uniform(0.0, 6.0))
                self.note_puts()
            self.refusals.end()
            self.finish()
        self.verify()
        hits = self.refusals.hits
        print(f"seed {self.cluster.seed}: {hits.total()} refusals: {dict(sorted(hits.items()))}")
        return hits

    def trouble(self, *hosts: str) -> None:
        self.refusals.trouble(self.rng.choice(hosts), self.rng.choice(_LENGTHS))

    def restart(self) -> None:
        victim = self.rng.choice([*self.cluster.nodes, None])
        self.trouble("tracker" if victim is None else victim.name)
        if victim is None:
            self.restart_tracker()
        else:
            self.restart_node(victim)


#: What was refused in each history so far.
_STRUCK: dict[int, Counter[tuple[str, str]]] = {}


def struck(root: Path, seed: int) -> Counter[tuple[str, str]]:
    folder = root / f"refused{seed}"
    folder.mkdir()
    try:
        return RefusedHistory(folder, seed).run()
    finally:
        shutil.rmtree(folder)


@pytest.mark.row("D8")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_refused_history(root: Path, seed: int) -> None:
    _STRUCK[seed] = struck(root, seed)


def test_every_error_and_every_kind_of_call_was_among_them(root: Path) -> None:
    """In as many histories as one run of the tests has; what nothing reaches proves nothing."""
    hits: Counter[tuple[str, str]] = Counter()
    for seed in range(USUAL):
        hits += _STRUCK[seed] if seed in _STRUCK else struck(root, seed)
    assert {error for _, error in hits} == {SHORT, *(errno.errorcode[number] for number in NUMBERS)}
    calls = {call for call, _ in hits}
    assert not [kind for kind in KINDS if calls.isdisjoint(kind)]
