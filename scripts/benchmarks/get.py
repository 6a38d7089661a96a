"""`scripts/bench get`: a file from three nodes, next to its floor and to what else there is.

A round is: floor, zchunk, rivals; after the last round there is one more floor. `zchunk get` is
timed as a whole process, from before its start to its end; "inside" is what it says of its
transfer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import rig, rivals
from benchmarks.series import Sample, Series

NODES = 3


def main(arguments: list[str]) -> int:
    parser = rig.timed_parser("get", __doc__)
    rivals.add_option(parser)
    options = parser.parse_args(arguments)
    settings = rig.settings_of(options, rounds=options.rounds, nodes=NODES)
    kinds = () if options.no_rivals else rivals.RIVALS
    with rig.bench(options) as bench:
        ways: list[tuple[Series, Callable[[Path], Sample]]] = []
        for lab in bench.labs(NODES):
            lab.put(bench.source)
            ways.append((Series(f"zchunk get, {lab.transport}", options.size), lab.get))
        for rival in rivals.started(bench.root, bench.source, bench.stack, kinds):
            ways.append((Series(rival.name, options.size), rival.get))
        series = [one for one, _ in ways]
        for number in range(options.rounds + 1):
            bench.floor()
            for one, get in ways:
                one.samples.append(get(bench.target))
                rig.take(bench.target, bench.source, one.name)
            if number == 0:
                bench.warmed_up(series)
        bench.floor()
        bench.show("get", settings, series)
    return 0
