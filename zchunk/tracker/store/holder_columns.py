"""Who holds each chunk of a file, packed in columns: made of rows, and mended where rows changed.
Pure.

A row is (chunk index, stored_at_ms, peer's key). Columns go by peer id, and name no peer
that holds nothing of the file. A chunk with one holder, as most have, takes no work of its
own: of 100,000 each microsecond is a tenth of a second.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from zchunk.protocol import columns

Row = tuple[int, int, int]


class HolderColumns(NamedTuple):
    """As in `listing.LocatedRows`."""

    peer_ids: tuple[str, ...]
    holder_counts: bytes
    holder_peers: bytes
    holder_times: bytes

    @property
    def chunks(self) -> int:
        return len(self.holder_counts) // 2


class ColumnsBuilder:
    """Takes the chunks of a file from the first to the last, a run of them at a time."""

    def __init__(self, peer_ids: Mapping[int, str]) -> None:
        """`peer_ids` by key, of whoever may be named."""
        self._ordered = tuple(sorted(peer_ids.values()))
        rank_of = {peer_id: rank for rank, peer_id in enumerate(self._ordered)}
        self._ranks = {key: rank_of[peer_id] for key, peer_id in peer_ids.items()}
        self._counts, self._peers, self._times = array("H"), array("H"), array("Q")

    def add(self, run: range, rows: Iterable[Row]) -> None:
        """All rows of the chunks `run`, in any order."""
        ranks = self._ranks
        ordered = sorted([(index, stored_at, ranks[key]) for index, stored_at, key in rows])
        if [row[0] for row in ordered] == list(run):
            self._counts.extend([1] * len(run))
        else:
            counts = [0] * len(run)
            for index, _, _ in ordered:
                counts[index - run.start] += 1
            self._counts.extend(counts)
        self._times.extend([row[1] for row in ordered])
        self._peers.extend([row[2] for row in ordered])

    def built(self) -> HolderColumns:
        return _packed(self._ordered, self._counts, self._peers, self._times)


def mended(
    before: HolderColumns, changed: Sequence[int], rows: Iterable[Row], peer_ids: Mapping[int, str]
) -> HolderColumns:
    """`before`, but the chunks `changed`, ascending, have `rows` and no others."""
    fresh = _by_chunk(rows, peer_ids)
    named = {peer_id for copies in fresh.values() for _, peer_id in copies}
    ordered = tuple(sorted(named.union(before.peer_ids)))
    rank_of = {peer_id: rank for rank, peer_id in enumerate(ordered)}
    old_counts, old_peers, old_times = _unpacked(before, [rank_of[peer_id] for peer_id in before.peer_ids])
    counts, peers, times = old_counts[:], array("H"), array("Q")
    chunk = copy = 0  # what was taken over of the old columns
    for index in changed:
        end = copy + sum(old_counts[chunk:index])
        copies = fresh.get(index, [])
        peers += old_peers[copy:end]
        times += old_times[copy:end]
        peers.extend([rank_of[peer_id] for _, peer_id in copies])
        times.extend([stored_at for stored_at, _ in copies])
        counts[index] = len(copies)
        chunk, copy = index + 1, end + old_counts[index]
    return _packed(ordered, counts, peers + old_peers[copy:], times + old_times[copy:])


def _by_chunk(rows: Iterable[Row], peer_ids: Mapping[int, str]) -> dict[int, list[tuple[int, str]]]:
    """(stored_at_ms, peer id) of each copy, in order."""
    ordered = sorted((index, stored_at, peer_ids[key]) for index, stored_at, key in rows)
    return {index: [row[1:] for row in group] for index, group in groupby(ordered, itemgetter(0))}


def _unpacked(packed: HolderColumns, ranks: Sequence[int]) -> tuple[array[int], array[int], array[int]]:
    """Counts, peers and times; place `p` of the packed peers becomes `ranks[p]`."""
    peers = columns.unpack(2, packed.holder_peers)
    if list(ranks) != list(range(len(ranks))):
        peers = array("H", [ranks[place] for place in peers])
    return columns.unpack(2, packed.holder_counts), peers, columns.unpack(8, packed.holder_times)


def _packed(
    ordered: Sequence[str], counts: array[int], peers: array[int], times: array[int]
) -> HolderColumns:
    used = sorted(set(peers))
    if len(used) < len(ordered):
        place = {rank: at for at, rank in enumerate(used)}
        peers = array("H", [place[rank] for rank in peers])
    packed = columns.pack(2, counts), columns.pack(2, peers), columns.pack(8, times)
    return HolderColumns(tuple(ordered[rank] for rank in used), *packed)
