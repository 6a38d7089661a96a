"""What scripts/soak runs: the rounds of tests/faults, often, and a table of what they cost.

Everything lies in a temporary folder. A round that fails ends the run with its error, and
the seed repeats it. Cables are pulled where network namespaces are allowed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults import syscalls
from tests.faults.restarts import Restarts, slow_nodes
from tests.faults.rounds import HANG, KILL, SETTINGS, VICTIMS, Figures, Rounds, histogram
from tests.faults.test_cables import SETTINGS as CABLES
from tests.faults.test_cables import isolate
from tests.hostile.misbehaving import CURVE_AND_PLAIN, misbehave, site_of
from tests.integration.cluster import MIB, Cluster, make_file
from tests.integration.lan import LanCluster, lan_of

_ISOLATED_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def say(text: str) -> None:
    print(text, flush=True)


def spread(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """Median, 99th percentile (the next value above) and the highest."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, -(-99 * len(ordered) // 100) - 1)]
    found = (ordered[len(ordered) // 2], p99, ordered[-1])
    return " | ".join(f"{value:.{digits}f} {unit}" for value in found)


class Tally:
    """Counts rounds aloud, so that a long run shows that it lives."""

    def __init__(self, what: str, of: int) -> None:
        self._what, self._of, self._done = what, of, 0

    def add(self, text: object) -> None:
        self._done += 1
        print(f"{self._what} {self._done} of {self._of}: {text}", file=sys.stderr, flush=True)


@contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """For a cluster, and for files."""
    with tempfile.TemporaryDirectory(prefix="zchunk-soak-") as name:
        root = Path(name)
        (root / "files").mkdir()
        yield root / "cluster", root / "files"


# -- the parts --------------------------------------------------------------------------------


def kills(options: argparse.Namespace) -> None:
    """T1 and the kills and hangs of everybody."""
    kinds = list(itertools.product(VICTIMS, (KILL, HANG)))
    tally = Tally("kill or hang", options.rounds)
    found: list[Figures] = []
    with folders() as (root, files), Cluster(root, SETTINGS) as cluster:
        cluster.start_nodes("A", "B", "C")
        rounds = Rounds(cluster, files, options.seed)
        for number, (victim, fault) in zip(range(options.rounds), itertools.cycle(kinds), strict=False):
            found.append(rounds.run(victim, fault, rounds.rng(victim, fault, number)))
            tally.add(found[-1])
    say("\n## kill -9 and hangs\n")
    say("| fault | of | rounds | complete after: median | p99 | most | payload again: median | p99 | most |")
    say("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for victim, fault in kinds:
        own = [figures for figures in found if (figures.victim, figures.fault) == (victim, fault)]
        if own:
            took = spread([figures.recovery_s for figures in own], "s")
            again = spread([figures.again / MIB for figures in own], "MiB")
            say(f"| {fault} | {victim} | {len(own)} | {took} | {again} |")
    say(f"\nMoments, in tenths of the transfer: {histogram([figures.moment for figures in found])}")


def every_call(options: argparse.Namespace) -> None:
    """T2, at every call."""
    say("\n## kill -9 at every system call of a chunk's writing\n")
    say("| call | kills |")
    say("| --- | --- |")
    with folders() as (root, files), syscalls.one_writer(root, files) as writer:
        for call in syscalls.CALLS:
            killed = 0
            while writer.killed_at(call, killed + 1):
                killed += 1
            say(f"| {call} | {killed} |")
    say("\nNo incomplete chunk was announced, and no temporary file survived a start.")


def tracker(options: argparse.Namespace) -> None:
    """T13."""
    tally = Tally("restart", options.restarts)
    with folders() as (root, files), ExitStack() as stack:
        restarts = Restarts(*slow_nodes(root, stack), files)
        found = []
        for _ in range(options.restarts):
            found.append(restarts.run())
            tally.add(found[-1])
    say("\n## kill -9 and start of the tracker during a download\n")
    say("| | median | p99 | most |")
    say("| --- | --- | --- | --- |")
    say(f"| its view is right after | {spread([each.view_s for each in found], 's')} |")
    say(f"| chunks that arrived without it | {spread([each.meanwhile for each in found], '', 0)} |")
    say(f"| the download took | {spread([each.seconds for each in found], 's')} |")
    say(f"\n{len(found)} restarts; no download stopped.")


def cables(options: argparse.Namespace) -> None:
    """T8, up to a minute."""
    say("\n## a PC without its cable during a download\n")
    say("| whose | for | complete after the cable was back |")
    say("| --- | --- | --- |")
    with folders() as (root, files), lan_of() as lan, LanCluster(root, lan, CABLES) as office:
        office.start_nodes("A", "B")
        source = make_file(files / "file.bin", 128 * MIB)
        for seconds, pc in itertools.product(_ISOLATED_S, ("A", "client")):
            took = isolate(office, source, files / f"copy-{pc}-{seconds:g}", pc, seconds)
            (files / f"copy-{pc}-{seconds:g}").unlink()
            office.await_all_up()
            whose = "a source's" if pc == "A" else "the downloader's"
            say(f"| {whose} | {seconds:g} s | {took:.2f} s |")


def peers(options: argparse.Namespace) -> None:
    """Peers that misbehave at random, from the seed."""
    say("\n## peers that misbehave at random\n")
    say(
        "| transport | for | sent and answered | commands meanwhile, median relative to that without"
        " | slowest |"
    )
    say("| --- | --- | --- | --- | --- |")
    for transport in CURVE_AND_PLAIN:
        with folders() as (root, _), site_of(root, transport, options.seed) as site:
            outcome = misbehave(site, options.seconds, rounds=10)
            site.finish()
        ratios = ", ".join(f"{what} {ratio:.2f}" for what, ratio in outcome.ratios().items())
        say(
            f"| {transport} | {options.seconds:g} s | {outcome.said}, {outcome.answers} |"
            f" {len(outcome.meanwhile)} of each: {ratios} | {outcome.slowest():.1f} s |"
        )
    say("\nNo process ended, no log has a traceback, and the download that waited meanwhile is complete.")


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "kills": kills,
    "syscalls": every_call,
    "tracker": tracker,
    "cables": cables,
    "peers": peers,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Long fault tests, with their figures.")
    parser.add_argument("--rounds", type=int, default=200, help="kills and hangs, over all victims")
    parser.add_argument("--restarts", type=int, default=50, help="of the tracker")
    parser.add_argument("--seconds", type=float, default=120.0, help="of misbehaving peers, each transport")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="of what is drawn")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    began = time.monotonic()
    say(f"# scripts/soak, seed {options.seed}\n")
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    say(f"{os.cpu_count()} processors, {system}.")
    for name in options.only.split(","):
        try:
            PARTS[name](options)
        except pytest.skip.Exception as reason:
            say(f"\n{name}: left out, {reason}")
    say(f"\nTook {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
