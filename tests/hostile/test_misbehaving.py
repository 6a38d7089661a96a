"""Peers that misbehave at random cost nobody else anything: no process ends, nobody waits, no log
has a traceback. `scripts/soak --only peers` goes on for longer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.misbehaving import CURVE_AND_PLAIN, misbehave, site_of

pytestmark = [pytest.mark.alone, pytest.mark.slow]
Figure = Callable[[str, object], None]
_SECONDS = 8.0
#: It ends as soon as it is noticed.
_MUTANT_SECONDS = 40.0
#: A command's own start is most of what it takes, on a busy machine too.
_SOON_S = 10.0
_SEED = int(os.environ.get("ZCHUNK_SEED", time.time_ns() % 10**9))


@pytest.mark.parametrize("transport", CURVE_AND_PLAIN)
def test_others_notice_nothing(
    tmp_path: Path, transport: str, record_property: Callable[[str, object], None]
) -> None:
    with site_of(tmp_path / "site", transport, _SEED) as site:
        print(f"ZCHUNK_SEED={_SEED} says the same again")
        outcome = misbehave(site, _SECONDS)
        record_property("figures", f"seed {_SEED}: {outcome}")
        assert outcome.slowest() <= _SOON_S, str(outcome)
        assert outcome.answers > 20, outcome.done
        site.finish()


@pytest.mark.parametrize(
    ("mutation", "transport", "found"),
    [
        ("old_protocols", "plain", "the (node|tracker) ended"),
        ("bug_in_a_handler", "curve", "the node met a bug"),
        ("no_boundary", "curve", "the node ended"),
    ],
)
def test_it_is_noticed_when_a_guard_is_missing(
    tmp_path: Path, mutation: str, transport: str, found: str
) -> None:
    prefix = (sys.executable, "-m", "tests.hostile.mutated", mutation)
    with (
        pytest.raises(AssertionError, match=found),
        site_of(tmp_path / "site", transport, _SEED, prefix) as site,
    ):
        misbehave(site, _MUTANT_SECONDS, rounds=1)
