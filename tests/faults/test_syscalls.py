"""T2: a node is killed at the system calls with which it makes a chunk durable.

Between any two calls: what is announced is whole on the disk, and a start clears away what
is not. scripts/soak takes every call; here the index's many writes are taken by samples,
others than the last time.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from tests.faults.conftest import Figure
from tests.faults.syscalls import CALLS, Writer, one_writer
from tests.faults.tracing import needs_strace

pytestmark = needs_strace

#: Every so many-th call is taken.
_STEPS = {"pwrite64": 6}


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    root, folder = tmp_path_factory.mktemp("writer"), tmp_path_factory.mktemp("written")
    with one_writer(root, folder) as writer:
        yield writer


@pytest.mark.row("U5")
@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_call_announces_no_chunk_that_is_not_whole(
    call: str, writer: Writer, seed: int, record_property: Figure
) -> None:
    step = _STEPS.get(call, 1)
    first = random.Random(f"{seed} {call}").randint(1, step)
    kills = 0
    for number in itertools.count(first, step):
        if not writer.killed_at(call, number):
            break
        kills += 1
    assert kills, f"storing a chunk never calls {call}"
    record_property("figures", f"seed {seed}: killed at {kills} of its calls of {call}")
