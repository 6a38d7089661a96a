"""T1: kill -9 and hangs of every party, at moments drawn over the whole transfer.

scripts/soak runs hundreds of the same rounds.
"""

from __future__ import annotations

from itertools import product

import pytest

from tests.faults.conftest import Figure
from tests.faults.rounds import HANG, KILL, VICTIMS, Rounds, histogram
from tests.integration.cluster import MIB

pytestmark = pytest.mark.alone

_ROUNDS = 10


@pytest.mark.row("D7")
@pytest.mark.timeout(300)
def test_a_killed_download_keeps_every_whole_chunk(rounds: Rounds, record_property: Figure) -> None:
    rng = rounds.rng("downloads")
    found = [rounds.run("the downloader", KILL, rng) for _ in range(_ROUNDS)]
    shares = [figures.done for figures in found if figures.done is not None]
    again = max(figures.again for figures in found) / MIB
    record_property(
        "figures",
        f"seed {rounds.seed}: killed at {histogram([f.moment for f in found])} of the time, "
        f"{histogram(shares)} of the file; at most {again:.2f} MiB fetched twice",
    )
    assert len(shares) == _ROUNDS


@pytest.mark.row("U7", "D4")
@pytest.mark.parametrize(
    ("victim", "fault"), [each for each in product(VICTIMS, (KILL, HANG)) if each != ("the downloader", KILL)]
)
def test_a_transfer_survives(victim: str, fault: str, rounds: Rounds, record_property: Figure) -> None:
    figures = rounds.run(victim, fault, rounds.rng(victim, fault))
    record_property("figures", f"seed {rounds.seed}: {figures}")
