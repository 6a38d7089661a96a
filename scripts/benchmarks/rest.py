"""`scripts/bench rest`: how often a tracker and three nodes wake up when nobody does anything.

A voluntary context switch is a thread that was asleep and ran. Those of libzmq's own threads (I/O
and reaper) are counted apart: its heartbeats and ours are served there. CPU time is the kernel's,
in nanoseconds, of the whole process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import rig
from benchmarks.series import print_rows

NODES = 3
#: Wake-ups a second of our own threads, and the share of a processor of the whole process.
NODE_PER_S = 5.0
CPU = 0.0015
#: So long everything is left alone before it counts.
SETTLE_S = 5.0
#: How the names of libzmq's threads begin.
_LIBZMQ = "ZMQbg"


def tracker_per_s(nodes: int) -> float:
    """It answers a heartbeat of each node each second, and publishes a tick."""
    return 2.0 + nodes


@dataclass(frozen=True)
class Thread:
    name: str
    switches: int
    run_ns: int


@dataclass(frozen=True)
class Rest:
    """One process at rest. `threads`: by name and thread id, voluntary switches a second, and the
    share of a processor."""

    own_per_s: float
    libzmq_per_s: float
    cpu: float
    threads: Mapping[str, tuple[float, float]]


def threads(pid: int) -> dict[int, Thread]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            run_ns = int((task / "schedstat").read_text().split()[0])
            switches = int(status["voluntary_ctxt_switches"])
            found[int(task.name)] = Thread(status["Name"].strip(), switches, run_ns)
    return found


def between(before: Mapping[int, Thread], after: Mapping[int, Thread], seconds: float) -> Rest:
    """Of the threads that were there all the time, and those that came."""
    found = {}
    for tid, thread in after.items():
        earlier = before.get(tid, Thread(thread.name, 0, 0))
        switches, run_ns = thread.switches - earlier.switches, thread.run_ns - earlier.run_ns
        found[f"{thread.name} {tid}"] = (switches / seconds, run_ns / 1e9 / seconds)
    libzmq = sum(rate for name, (rate, _) in found.items() if name.startswith(_LIBZMQ))
    everything = sum(rate for rate, _ in found.values())
    return Rest(everything - libzmq, libzmq, sum(cpu for _, cpu in found.values()), found)


def watch(pids: Mapping[str, int], seconds: float) -> dict[str, Rest]:
    began = time.monotonic()
    before = {name: threads(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    after = {name: threads(pid) for name, pid in pids.items()}
    took = time.monotonic() - began
    return {name: between(before[name], after[name], took) for name in pids}


def allowed(name: str, nodes: int = NODES) -> float:
    return tracker_per_s(nodes) if name == "tracker" else NODE_PER_S


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench rest", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--transport", choices=("plain", "curve"), default=rig.default_transport())
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="zchunk-bench-") as folder, ExitStack() as stack:
        lab = rig.Lab(Path(folder) / "lab", stack, options.transport, NODES, {})
        pids = {"tracker": lab.cluster.tracker.pid}
        pids |= {name: node.pid for name, node in lab.cluster.nodes.items()}
        time.sleep(SETTLE_S)
        found = watch(pids, options.seconds)
    (_print_json if options.json else _print)(options, found)
    held = all(rest.own_per_s <= allowed(name) and rest.cpu <= CPU for name, rest in found.items())
    return 0 if held else 1


def _print(options: Any, found: Mapping[str, Rest]) -> None:
    print(f"rest: {NODES} nodes, transport {options.transport}, {options.seconds:g} s")
    print_rows([["", "ours a second", "at most", "libzmq's", "CPU", "at most"], *map(_row, found.items())])
    for name, rest in found.items():
        busy = sorted(rest.threads.items(), key=lambda item: -item[1][0])
        each = (f"{thread} {rate:.2f} ({cpu:.3%})" for thread, (rate, cpu) in busy if rate)
        print(f"{name}: {', '.join(each)}")


def _row(item: tuple[str, Rest]) -> list[str]:
    name, rest = item
    numbers = [f"{rest.own_per_s:.1f}", f"{allowed(name):.0f}", f"{rest.libzmq_per_s:.1f}"]
    missed = "" if rest.own_per_s <= allowed(name) and rest.cpu <= CPU else "  missed"
    return [name, *numbers, f"{rest.cpu:.2%}", f"{CPU:.2%}{missed}"]


def _print_json(options: Any, found: Mapping[str, Rest]) -> None:
    rows = {name: vars(rest) for name, rest in found.items()}
    json.dump({"bench": "rest", "transport": options.transport, "processes": rows}, sys.stdout)
    print()
