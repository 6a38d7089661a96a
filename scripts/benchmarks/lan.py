"""Transfers over cables of a known speed, against the time that no transfer can beat.

PCs are network namespaces (scripts/lan.py), their cables token buckets at both ends: a tracker,
three nodes and a client. `seconds` are those that the command reports, from its question to
the tracker to the durable file; the start and end of its process come on top (`command_median_s`).
The runs are those of tests/faults/speeds.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lan import NotAllowed, lan_of

from tests.faults.speeds import Run, Speeds, speeds

MIB = 1024**2
TRANSPORTS = ("curve", "plain")
GOAL = 0.9


@dataclass(frozen=True)
class Case:
    name: str
    what: str
    against: str
    run: Callable[[Speeds, int], list[Run]]


CASES = (
    Case(
        "spread",
        "get, 3 holders at 100 Mbit/s, chunks of 10 MiB",
        "size / 300 Mbit/s",
        lambda lab, rounds: lab.three_holders(rounds, "10MiB"),
    ),
    Case(
        "spread-fine",
        "get, 3 holders at 100 Mbit/s, chunks of 2 MiB",
        "size / 300 Mbit/s",
        lambda lab, rounds: lab.three_holders(rounds, "2MiB"),
    ),
    Case("pair", "get, one pair at 1 Gbit/s", "plain TCP copy", lambda lab, rounds: lab.pair(rounds)),
    Case(
        "put",
        "put to 3 nodes, uploader at 100 Mbit/s",
        "size / 100 Mbit/s",
        lambda lab, rounds: lab.upload(rounds, "10MiB"),
    ),
    Case(
        "slow",
        "get, holders at 100, 100, 10 Mbit/s, chunks of 10 MiB",
        "size / 200 Mbit/s",
        lambda lab, rounds: lab.slow_holder(rounds, "10MiB"),
    ),
    Case(
        "slow-fine",
        "get, holders at 100, 100, 10 Mbit/s, chunks of 2 MiB",
        "size / 200 Mbit/s",
        lambda lab, rounds: lab.slow_holder(rounds, "2MiB"),
    ),
)


@dataclass(frozen=True)
class Row:
    case: Case
    transport: str
    runs: list[Run]

    @property
    def ratio(self) -> float:
        return median(run.ratio for run in self.runs)

    @property
    def held(self) -> bool:
        return self.ratio >= GOAL

    def as_json(self) -> dict[str, Any]:
        seconds = [run.seconds for run in self.runs]
        return {
            "name": self.case.name,
            "what": self.case.what,
            "transport": self.transport,
            "rounds": len(self.runs),
            "median_s": round(median(seconds), 3),
            "min_s": round(min(seconds), 3),
            "max_s": round(max(seconds), 3),
            "command_median_s": round(median(run.command_s for run in self.runs), 3),
            "against": self.case.against,
            "bound_median_s": round(median(run.bound_s for run in self.runs), 3),
            "ratio": round(self.ratio, 3),
            "goal_ratio": GOAL,
            "held": self.held,
        }


def print_row(row: Row, width: int) -> None:
    cells = row.as_json()
    spread = f"{cells['min_s']:.2f} to {cells['max_s']:.2f}"
    print(
        f"{row.case.what:{width}}  {row.transport:5}  {cells['median_s']:>6.2f} s  {spread:>15}"
        f"  {cells['bound_median_s']:>6.2f} s {row.case.against:18}  {cells['ratio']:.3f}"
        f"{'' if row.held else '  missed'}",
        flush=True,
    )


def measure(options: argparse.Namespace, transport: str, show: Callable[[Row], None]) -> list[Row]:
    """Raises NotAllowed."""
    rows = []
    settings = {"security.transport": transport}
    with (
        tempfile.TemporaryDirectory(prefix="zchunk-bench-") as folder,
        lan_of() as lan,
        speeds(Path(folder), lan, options.size * MIB, settings) as lab,
    ):
        for case in CASES:
            if case.name in options.only:
                rows.append(Row(case, transport, case.run(lab, options.rounds)))
                show(rows[-1])
    return rows


def parsed(arguments: list[str]) -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="scripts/bench lan", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256, help="MiB of each file")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--transport", nargs="+", choices=TRANSPORTS, default=TRANSPORTS)
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    settings = {"size_mib": options.size, "sync": "always", "verification": "SHA-256", "tcp": control}
    width = max(len(case.what) for case in CASES)
    if not options.json:
        how = f"medians of {options.rounds}, every chunk verified and durable, TCP {control}"
        print(f"{options.size} MiB, {how}")
        print(f"{'':{width}}  {'':5}  {'median':>8}  {'range':>15}  {'held against':27}  ratio (goal {GOAL})")
    rows: list[Row] = []
    try:
        for transport in options.transport:
            rows += measure(options, transport, lambda row: None if options.json else print_row(row, width))
    except NotAllowed as reason:
        print(f"scripts/bench lan: left out, needs network namespaces ({reason})", file=sys.stderr)
        return 0
    if options.json:
        print(json.dumps({"bench": "lan", "settings": settings, "figures": [row.as_json() for row in rows]}))
    return 0 if all(row.held for row in rows) else 1
