"""Who could serve a file's chunks right now, and whether that is enough to commit it.

The rule of SPEC U5, and nothing else: `commits.py` says chunk by chunk what the database
knows and asks for the verdict. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zchunk.consequence import minimum_peers
from zchunk.errors import NotYetStored, TooFewPeers


@dataclass(frozen=True, slots=True)
class Demand:
    """What the uploader asks of a file besides its content."""

    replicas: int
    min_peers: int
    distributed: bool


class Holders:
    """The live holders of each of a file's `total` chunks; `name` is how messages call it."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        #: distinct sets of holders: many chunks, few sets
        self._sets: set[frozenset[str]] = set()
        self._missing: list[int] = []

    def note(self, holders: Mapping[int, tuple[str, ...]]) -> None:
        """Of some chunks, by index, the live ones with an available copy."""
        self._sets.update(map(frozenset, set(holders.values()) - {()}))
        self._missing += [index for index, peers in holders.items() if not peers]

    @property
    def peers(self) -> list[str]:
        return sorted(frozenset().union(*self._sets))

    @property
    def missing(self) -> list[int]:
        """Indexes of the chunks that nobody has."""
        return sorted(self._missing)

    @property
    def spread(self) -> bool:
        return len(self.peers) >= 2

    def minimum(self) -> int:
        return minimum_peers(sorted(sorted(peers) for peers in self._sets))

    def check(self, demand: Demand) -> None:
        """Raises NotYetStored or TooFewPeers (both retryable), see `TrackerStore.commit_file`."""
        if self._missing:
            raise self._not_yet_stored()
        peers, copies = self.peers, self._total * demand.replicas
        needed = min(demand.min_peers, copies) if demand.distributed else 0
        if len(peers) < needed:
            raise TooFewPeers(
                f"{self._name} is on {len(peers)} of the peers that are up "
                f"({', '.join(peers)}), but {needed} are needed; "
                "send chunks to another peer, or wait for one",
                peer_ids=peers,
                peers_needed=needed,
            )

    def _not_yet_stored(self) -> NotYetStored:
        first = self.missing[:10]
        listed = ", ".join(map(str, first)) + (", ..." if len(self._missing) > len(first) else "")
        return NotYetStored(
            f"{len(self._missing)} of the {self._total} chunks of {self._name} have no confirmed copy "
            f"on a peer that is up (chunks {listed}); send them again, then commit",
            chunks_missing=len(self._missing),
            first_missing=first,
        )
