"""Transfers over cables of a known speed come near what the cables carry (SPEC D3, U6).

A small file once, against bounds that leave room for a busy machine; `scripts/bench lan`
measures.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.conftest import Figure
from tests.faults.rawcopy import raw_copy
from tests.faults.speeds import NODES, SLOW, USUAL, Run, Speeds, speeds
from tests.integration.cluster import MIB
from tests.integration.lan import lan_of

pytestmark = pytest.mark.alone

_SIZE = 48 * MIB
_CHUNK = "1MiB"
#: As few chunks fit the memory as with the sizes that come with zchunk.
_SETTINGS = {"chunking.chunk_size": _CHUNK, "transfer.receive_budget": "6MiB"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speeds]:
    with lan_of() as lan, speeds(tmp_path_factory.mktemp("speeds"), lan, _SIZE, _SETTINGS) as lab:
        yield lab


def told(run: Run, record_property: Figure) -> None:
    record_property("figures", f"{run.seconds:.2f} s, ratio {run.ratio:.2f}, bytes {dict(run.by_peer)}")


def test_a_cable_carries_what_it_is_said_to() -> None:
    size = 12 * MIB
    with lan_of() as lan:
        lan.limit("there", USUAL)
        for sender, receiver in (("here", "there"), ("there", "here")):
            megabits = size * 8 / 1e6 / raw_copy(lan, sender, receiver, size)
            assert 0.85 * USUAL < megabits < USUAL, f"from {sender}"


@pytest.mark.row("D3")
def test_three_holders_are_used_to_the_full(lab: Speeds, record_property: Figure) -> None:
    (run,) = lab.three_holders(1, _CHUNK)
    told(run, record_property)
    assert set(run.by_peer) == set(NODES)
    assert run.ratio > 0.75


def test_an_upload_uses_its_uplink_to_the_full(lab: Speeds, record_property: Figure) -> None:
    (run,) = lab.upload(1, _CHUNK)
    told(run, record_property)
    assert run.ratio > 0.75


@pytest.mark.row("D3")
def test_a_slow_holder_does_not_hold_up_the_end(lab: Speeds, record_property: Figure) -> None:
    (run,) = lab.slow_holder(1, _CHUNK)
    told(run, record_property)
    # What it could send in the time of the others, and as much again that is sent twice.
    assert run.by_peer.get("C", 0) < 3 * _SIZE * SLOW / (2 * USUAL)
    assert run.ratio > 0.7
