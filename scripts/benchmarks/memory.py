"""`scripts/bench memory`: the most memory (VmHWM) that each process ever had.

A file is put and fetched with 1, 3 and 20 nodes, and by 20 clients at once from one node, each
time with processes of their own. A command's memory is looked at every 40 ms until it ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks import rig
from benchmarks.processes import wait_all
from benchmarks.series import Sample, print_rows
from zchunk.config import Settings

GOAL = 200 * 10**6
SOURCES = (1, 3, 20)
CLIENTS = 20
#: bytes that each of the 20 clients fetches
SHARED = 128 * 1024**2

#: what is done -> the peak of each process, bytes
Peaks = dict[str, dict[str, int]]


def put_and_get(bench: rig.Bench, lab: rig.Lab) -> dict[str, int]:
    put, get = lab.put(bench.source), lab.get(bench.target)
    rig.take(bench.target, bench.source, "zchunk get")
    return {"put": put.uses["client"].peak, "get": get.uses["client"].peak, **servers(get)}


def servers(sample: Sample) -> dict[str, int]:
    return {name: use.peak for name, use in sample.uses.items() if name != "client"}


def many_clients(bench: rig.Bench, lab: rig.Lab) -> dict[str, int]:
    put = lab.put(bench.source)
    homes = [lab.home(f"client-{number}") for number in range(CLIENTS)]
    targets = [bench.root / f"copy-{number}.bin" for number in range(CLIENTS)]
    watched = lab.servers
    watched.begin()
    gets = [lab.start_get(target, home) for target, home in zip(targets, homes, strict=True)]
    peak = max(ended.use.peak for ended in wait_all(gets))
    for target in targets:
        rig.take(target, bench.source, "zchunk get")
    found = {name: use.peak for name, use in watched.end().items()}
    return {"put": put.uses["client"].peak, "get, the largest": peak, **found}


def measure(options: Any, transport: str) -> Peaks:
    peaks: Peaks = {}
    for nodes in SOURCES:
        # What one node may hold alone is smaller than what is distributed.
        least = Settings().chunking.min_file_size_for_distribution
        size = min(options.size, least - 1) if nodes == 1 else options.size
        with rig.bench(options, size) as bench:
            lab = bench.lab(transport, nodes)
            peaks[f"{size / 1e9:.2f} GB, {nodes} sources"] = put_and_get(bench, lab)
    with rig.bench(options, min(options.size, SHARED)) as bench:
        lab = bench.lab(transport, 1)
        peaks[f"{bench.source.size / 1e9:.2f} GB, {CLIENTS} clients at once, 1 source"] = many_clients(
            bench, lab
        )
    return peaks


def largest(peaks: Mapping[str, int]) -> dict[str, int]:
    """Nodes as one: the largest of them."""
    nodes = [peak for name, peak in peaks.items() if name.startswith("PC-")]
    rest = {name: peak for name, peak in peaks.items() if not name.startswith("PC-")}
    return {**rest, "largest node": max(nodes)}


def show(transport: str, peaks: Peaks) -> None:
    print(f"memory: VmHWM, MB; transport {transport}; goal under {GOAL / 1e6:.0f} for each process")
    for what, by_process in peaks.items():
        row = ", ".join(f"{name} {peak / 1e6:.0f}" for name, peak in largest(by_process).items())
        missed = "" if max(by_process.values()) < GOAL else "  missed"
        print_rows([[what, row + missed]])


def main(arguments: list[str]) -> int:
    options = rig.parser("memory", __doc__).parse_args(arguments)
    settings = rig.settings_of(options)
    found = {name: measure(options, name) for name in rig.TRANSPORTS[options.transport]}
    if options.json:
        print(json.dumps({"bench": "memory", "settings": settings, "goal_bytes": GOAL, "peak_bytes": found}))
    else:
        for transport, peaks in found.items():
            show(transport, peaks)
    everything = [peak for by in found.values() for row in by.values() for peak in row.values()]
    return 0 if max(everything) < GOAL else 1
