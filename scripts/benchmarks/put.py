"""`scripts/bench put`: a file to three nodes, next to its floor and to what else there is.

A round is: floor, zchunk, rivals; after the last round there is one more floor. Before each
upload every chunk of the file gets other content: what the nodes hold is not sent again. What
was put is removed after each run, and is gone from the disks before the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from servers import wait_for

from benchmarks import rig, rivals
from benchmarks.series import Sample, Series

NODES = 3


def empty(lab: rig.Lab) -> None:
    """Nothing of the file is left on any node: removed chunks go to the trash, and from there
    here, since they would fill the disk."""
    lab.start("rm", "--yes", rig.NAME).wait()
    stores = [lab.cluster.root / name / "node" / "store" for name in lab.cluster.nodes]
    wait_for(lambda: not files(stores, "chunks"), "the removed chunks are in the trash")
    for path in files(stores, "trash"):
        path.unlink()


def files(stores: list[Path], folder: str) -> list[Path]:
    return [path for store in stores for path in (store / folder).rglob("*") if path.is_file()]


def main(arguments: list[str]) -> int:
    parser = rig.timed_parser("put", __doc__)
    rivals.add_option(parser)
    options = parser.parse_args(arguments)
    settings = rig.settings_of(options, rounds=options.rounds, nodes=NODES)
    kinds = () if options.no_rivals else (rivals.Rsync,)
    with rig.bench(options) as bench:
        source = bench.source
        ways: list[tuple[Series, Callable[[], Sample]]] = []
        for lab in bench.labs(NODES):
            ways.append((Series(f"zchunk put, {lab.transport}", options.size), partial(put, lab, source)))
        for rival in rivals.started(bench.root, source, bench.stack, kinds):
            ways.append((Series("rsync --fsync, to one", options.size), partial(send, rival, source)))
        series = [one for one, _ in ways]
        for number in range(options.rounds + 1):
            source.renew()
            bench.floor()
            for one, way in ways:
                one.samples.append(way())
            if number == 0:
                bench.warmed_up(series)
        bench.floor()
        bench.show("put", settings, series)
    return 0


def put(lab: rig.Lab, source: rig.Source) -> Sample:
    sample = lab.put(source)
    empty(lab)
    return sample


def send(rival: rivals.Rival, source: rig.Source) -> Sample:
    assert isinstance(rival, rivals.Rsync)
    sample, target = rival.put()
    rig.take(target, source, rival.name)
    return sample
