"""A cable that was pulled and is put back: how soon a download that waits has new bytes.

PCs are network namespaces behind a bridge; the cable is a port of it (scripts/lan.py).
In each round the node is cut off until the tracker calls it down, a download begins that
lacks its chunks, and the cable is put back.
"""

from __future__ import annotations

from pathlib import Path

from lan import NotAllowed, lan_of
from servers import Failed

from benchmarks.figures import Figure
from tests.integration.cluster import MIB, make_file, sha256_of
from tests.integration.lan import LanCluster

SETTINGS = {"chunking.min_file_size_for_distribution": "1MiB", "chunking.resume_check_interval": 3600}
GOAL_MS = 1500


def measure(root: Path, rounds: int) -> Figure | str:
    """The figure; or why it cannot be had here."""
    figure = Figure("cable back -> first new chunk on disk", GOAL_MS)
    try:
        with lan_of() as lan, LanCluster(root / "lan", lan, SETTINGS) as office:
            office.start_nodes("A", "B")
            source = make_file(root / "cable.bin", 80 * MIB)
            office.client.put(source.path)
            for _ in range(rounds):
                figure.add(_round(office, source.sha256, root / "cable-copy.bin"))
    except NotAllowed as reason:
        return f"needs network namespaces ({reason})"
    return figure


def _round(office: LanCluster, sha256: str, target: Path) -> float:
    office.lan.pull("A")
    office.await_status("A", "down")
    get = office.client.start("get", "cable.bin", "-o", target)
    waiting = get.until("waiting")
    office.lan.plug("A")
    plugged = get.seconds
    have = waiting["chunks_completed"]
    get.until(lambda event: event.get("event") == "progress" and event["chunks_completed"] > have)
    took = get.seconds - plugged
    get.result().expect(0)
    if sha256_of(target) != sha256:
        raise Failed("the file differs")
    target.unlink()
    office.await_all_up()
    return took
