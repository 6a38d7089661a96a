"""T13: the tracker is killed and started again while files are on their way.

scripts/soak does it fifty times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.conftest import Figure
from tests.faults.restarts import Restarts, slow_nodes

_TIMES = 3


@pytest.fixture(scope="module")
def restarts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarts]:
    with ExitStack() as stack:
        cluster, proxies = slow_nodes(tmp_path_factory.mktemp("slow"), stack)
        yield Restarts(cluster, proxies, tmp_path_factory.mktemp("restarts"))


@pytest.mark.row("D9")
@pytest.mark.parametrize("time", range(_TIMES))
def test_a_download_does_not_stop_for_the_tracker(
    time: int, restarts: Restarts, record_property: Figure
) -> None:
    record_property("figures", str(restarts.run()))
