"""Listings of many files: the first line as soon as that of a few, memory for a page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks import trackerhome

from tests.integration.cluster import MIB, Client, Cluster

pytestmark = pytest.mark.alone

FEW, MANY = 100, 3000


@dataclass
class Listed:
    first_s: float
    peak: int
    output: bytes


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Client]]:
    """Clients of trackers with so many files."""
    with (
        Shelf(tmp_path_factory.mktemp("few"), FEW) as few,
        Shelf(tmp_path_factory.mktemp("many"), MANY) as many,
    ):
        yield {FEW: few.client, MANY: many.client}


class Shelf(Cluster):
    """A tracker that knows many files, each of one chunk, whose nodes are not there."""

    def __init__(self, root: Path, count: int) -> None:
        super().__init__(root)
        trackerhome.make(root / "tracker-home", nodes=2, chunks=count, file_chunks=1)


def listed(client: Client, *words: str) -> Listed:
    command = [sys.executable, "-m", "zchunk", "ls", "--home", str(client.home), *words]
    began, first_s, peak, pieces = time.monotonic(), 0.0, 0, []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 65536):
            first_s = first_s or time.monotonic() - began
            peak = max(peak, peak_of(process.pid))
            pieces.append(piece)
    assert process.returncode == 0
    return Listed(first_s, peak, b"".join(pieces))


def peak_of(pid: int) -> int:
    """VmHWM. (What `wait4` tells is also that of the process which started it.)"""
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["table", "json"])
def test_a_long_listing_begins_as_soon_as_a_short_one_in_as_much_memory(
    homes: dict[int, Client], words: tuple[str, ...]
) -> None:
    few = [listed(homes[FEW], *words) for _ in range(3)]
    many = [listed(homes[MANY], *words) for _ in range(3)]
    assert max(each.peak for each in many) - max(each.peak for each in few) < 4 * MIB
    assert min(each.first_s for each in many) < 1.7 * min(each.first_s for each in few)
    names = {f"file-{number}" for number in range(MANY)}
    if words:
        rows = json.loads(many[0].output)
        assert (len(rows), {row["name"] for row in rows}) == (MANY, names)
    else:
        lines = many[0].output.decode().splitlines()
        assert lines[0].split() == ["NAME", "SIZE", "CHUNKS", "COPIES", "CREATED", "ID"]
        assert (len(lines), {line.split()[0] for line in lines[1:]}) == (MANY + 1, names)


def test_a_listing_whose_reader_has_enough_asks_for_no_further_page(homes: dict[int, Client]) -> None:
    line = f"{sys.executable} -m zchunk ls --home {homes[MANY].home} | head -n 2"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == 2
