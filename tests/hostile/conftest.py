"""The two clusters that tests attack: one for all tests of a kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.rig import Rig, rig
from tests.integration.cluster import MIB

_SIZE = 32 * MIB


@pytest.fixture(scope="package")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("hostile"), _SIZE, plain=False) as made:
        yield made


@pytest.fixture(scope="package")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("hostile-plain"), _SIZE, plain=True) as made:
        yield made
