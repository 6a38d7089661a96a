"""A cluster whose members are each on a PC of their own, on a LAN of network namespaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lan as rig
import pytest
from lan import Lan

import zchunk
from tests.integration.cluster import Cluster
from zchunk.config import Settings


@contextmanager
def lan_of(*switches: str) -> Iterator[Lan]:
    """Skips where namespaces are not allowed."""
    with ExitStack() as stack:
        try:
            lan = stack.enter_context(rig.lan_of(*switches))
        except rig.NotAllowed as error:
            pytest.skip(f"needs network namespaces ({error})")
        yield lan


class LanCluster(Cluster):
    """Each member on its PC; the tracker's is "tracker"."""

    def __init__(self, root: Path, lan: Lan, settings: Mapping[str, Any], switch: str = "lan") -> None:
        super().__init__(root, settings)
        self.lan = lan
        self._switch = switch

    def place(self, name: str) -> tuple[tuple[str, ...], str]:
        return self.lan.prefix(name), self.lan.address(name, self._switch)

    def watcher(self) -> zchunk.Client:
        return self.lan.on("watcher", lambda: zchunk.Client(self.client.home, Settings()))
