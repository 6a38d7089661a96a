"""`scripts/bench swarm`: several clients fetch the same file from three nodes at once.

The seconds are from before the first client's start to the last one's end, the bytes are those
of all of them, and they are held against as many floors, one after the other. Targets lie on
the same disk as everything else.
"""

from __future__ import annotations

from benchmarks import rig
from benchmarks.processes import Use, wait_all
from benchmarks.series import Sample, Series

NODES = 3


class Swarm:
    def __init__(self, bench: rig.Bench, lab: rig.Lab, clients: int) -> None:
        self._bench = bench
        self._lab = lab
        self._homes = [lab.home(f"client-{number}") for number in range(clients)]
        self.series = Series(f"{clients} x zchunk get, {lab.transport}", clients * bench.source.size)
        lab.put(bench.source)

    def round(self) -> None:
        """All targets are compared, and removed."""
        servers, source = self._lab.servers, self._bench.source
        targets = [self._bench.root / f"copy-{number}.bin" for number in range(len(self._homes))]
        servers.begin()
        gets = [self._lab.start_get(t, home) for t, home in zip(targets, self._homes, strict=True)]
        ended = wait_all(gets)
        clients = Use(sum(e.use.cpu_s for e in ended), max(e.use.peak for e in ended))
        uses = {"clients": clients, **servers.end()}
        seconds = max(get.ended_at for get in gets) - min(get.started_at for get in gets)
        inside = max(rig.done_of(e)["seconds"] for e in ended)
        self.series.samples.append(Sample(seconds, uses, inside))
        for target in targets:
            rig.take(target, source, self.series.name)


def main(arguments: list[str]) -> int:
    parser = rig.timed_parser("swarm", __doc__)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args(arguments)
    settings = rig.settings_of(options, rounds=options.rounds, nodes=NODES, clients=options.clients)
    with rig.bench(options) as bench:
        swarms = [Swarm(bench, lab, options.clients) for lab in bench.labs(NODES)]
        series = [swarm.series for swarm in swarms]
        for number in range(options.rounds + 1):
            bench.floor()
            for swarm in swarms:
                swarm.round()
            if number == 0:
                bench.warmed_up(series)
        bench.floor()
        bench.show("swarm", settings, series)
    return 0
