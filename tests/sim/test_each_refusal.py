"""Each place of the product that calls its system, refused once, in a short story that comes by all of
them: a node, a client and the tracker start, store, read, check themselves, remove."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest

from tests.sim.cluster import CHUNK, simulated_disk
from tests.sim.refusals import CALLS, NUMBERS, SHORT, SHORTENED, Site
from tests.sim.refused import Refused, said_in_words

#: The places are dealt out to so many tests, and each has so many of the errors, drawn.
ERRORS = int(os.environ.get("ZCHUNK_ERRORS", "1"))
PARTS = 16 * ERRORS
SEED = int(os.environ.get("ZCHUNK_SEED", "1"))


class Day(Refused):
    """The same each time, but for what is refused."""

    def run(self) -> None:
        with self.watched():
            self.put_one("first", 3 * CHUNK + 5)
            self.put_one("second", 2 * CHUNK)
            self.get_all()
            self.damage()
            self.get_all()
            self.restart_all()
            self.get_all()
            self.remove("second")
            self.cluster.run_for(3.0)
            self.finish()
        self.verify()

    def put_one(self, name: str, size: int) -> None:
        path = self.cluster.make_file(name, size)
        path.write_bytes(path.read_bytes() + bytes(2 * CHUNK))  # holes
        self.put_file(path, replicas=2)
        self.finish_put(name)

    def get_all(self) -> None:
        for name in sorted(self.files):
            target = self.cluster.root / f"got-{name}"
            self.finish_get(name, target, self.reader.get(name, target))
            target.unlink()

    def restart_all(self) -> None:
        for node in self.cluster.nodes:
            self.restart_node(node)
            if not node.alive:
                node.start()
        self.cluster.run_for(3.0)
        self.restart_tracker()
        if not self.cluster.tracker_host.alive:
            self.cluster.start_tracker(port=7700)
        self.cluster.run_for(3.0)

    def damage(self) -> None:
        """Of one chunk; its node hears that it could not be read."""
        node = next(node for node in reversed(self.cluster.nodes) if node.store.count)
        sha256 = node.store.hashes()[0]
        path = node.folder / "store" / "chunks" / sha256.hex()[:2] / sha256.hex()
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)
        with node.host.acts():
            node.parts.registration.unreadable(sha256)
        self.cluster.run_for(2.0)

    def remove(self, name: str) -> None:
        for _ in range(2):
            removed = self.writer.remove(self.ids[name])
            self.cluster.run(lambda: removed.ended, f"the removal of {name}")  # noqa: B023
            if removed.error is None or removed.error.code == "not_found":
                break
            said_in_words(removed.error)
        del self.files[name]


def day(root: Path, once: tuple[Site, int | str] | None = None) -> Day:
    folder = root / "day"
    folder.mkdir()
    try:
        made = Day(folder, SEED, nodes=3, once=once)
        made.run()
    finally:
        shutil.rmtree(folder)
    return made


def errors_for(site: Site, rng: Random) -> list[int | str]:
    call = site[1]
    return rng.sample((*NUMBERS, SHORT) if call in SHORTENED else NUMBERS, ERRORS)


def drawn(sites: Iterable[Site], rng: Random) -> list[Site]:
    """Of each line of the product in each kind of process one place: nodes are alike."""
    of_line = defaultdict(list)
    for site in sites:
        host, call, file, line = site
        of_line[host.rstrip("0123456789") if len(host) > 1 else "node", call, file, line].append(site)
    return [rng.choice(alike) for alike in of_line.values()]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    with pytest.MonkeyPatch.context() as patch:
        simulated_disk(patch)
        return drawn(day(tmp_path_factory.mktemp("day")).refusals.sites, Random(f"places {SEED}"))


def test_the_story_comes_by_every_call(places: list[Site]) -> None:
    assert {call for _, call, _, _ in places} == set(CALLS)


@pytest.mark.row("D8")
@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_refused_once_at_any_place_costs_nothing(root: Path, places: list[Site], part: int) -> None:
    rng, hits = Random(f"errors {SEED} {part}"), 0
    for site in places[part::PARTS]:
        for error in errors_for(site, rng):
            try:
                hits += day(root, (site, error)).refusals.hits.total()
            except BaseException as failure:
                failure.add_note(f"refused once: {site} with {error}")
                raise
    print(f"seed {SEED}, part {part}: {hits} refusals")
    assert hits > len(places[part::PARTS]) * ERRORS * 0.9, "the story comes by each of them again"
