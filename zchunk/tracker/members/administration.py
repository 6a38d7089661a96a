"""What is decided on the tracker's home about its members, whether the tracker runs or not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from zchunk.errors import AmbiguousName, NotFound
from zchunk.tracker.members.member_list import Member, TokenEntry
from zchunk.tracker.members.membership import Membership
from zchunk.tracker.rules.health import Slice
from zchunk.tracker.store.store import TrackerStore

#: Files that are looked at in one go.
_BATCH = 50
#: Shortest beginning of an id that names a member.
_PREFIX = 8


class Stopped(NamedTuple):
    """A file that would stop, and how many of its chunks nobody else has."""

    file_id: str
    name: str
    chunks_lost: int


def find_member(membership: Membership, text: str) -> Member:
    """By name, id, or the beginning of an id (8 digits).

    Raises NotFound, AmbiguousName (`details["candidates"]`: ids).
    """
    members = membership.listed.members.values()
    found = [m for m in members if m.name == text] or [
        m for m in members if len(text) >= _PREFIX and m.peer_id.startswith(text.lower())
    ]
    if not found:
        raise NotFound(f"no member has the name or id {text!r}; `zchunk peers list --all` lists the members")
    if len(found) > 1:
        ids = sorted(member.peer_id for member in found)
        raise AmbiguousName(f"{text!r} matches {len(found)} members: {', '.join(ids)}", candidates=ids)
    return found[0]


def find_token(membership: Membership, text: str) -> TokenEntry:
    """By its id, or the beginning of it (8 digits). Raises NotFound, AmbiguousName."""
    found = [
        t for i, t in membership.listed.tokens.items() if len(text) >= _PREFIX and i.startswith(text.lower())
    ]
    if not found:
        raise NotFound(f"no token has the id {text!r}; `zchunk tokens --all` lists the tokens")
    if len(found) > 1:
        ids = sorted(entry.key_id for entry in found)
        raise AmbiguousName(f"{text!r} matches {len(found)} tokens: {', '.join(ids)}", candidates=ids)
    return found[0]


def files_that_stop(store: TrackerStore, membership: Membership, peer_id: str) -> list[Stopped]:
    """Files that cannot be had any more without this node, however many others are up; by
    name. Those that cannot be had with it either are left out."""
    others = {m.peer_id for m in membership.listed.members.values() if m.role == "node" and not m.revoked}
    others.discard(peer_id)
    try:
        held = store.files_on(peer_id)
    except NotFound:  # it joined, and was never there
        return []
    with_it = _lost(store, held, {*others, peer_id})
    without = _lost(store, held, others)
    stopped = [
        Stopped(file_id, name, lost)
        for file_id, (name, lost) in without.items()
        if lost and not with_it[file_id][1]
    ]
    return sorted(stopped, key=lambda file: (file.name, file.file_id))


def _lost(store: TrackerStore, file_ids: Sequence[str], live: Collection[str]) -> dict[str, tuple[str, int]]:
    """file id -> (name, chunks that none of `live` has)."""
    found: dict[str, tuple[str, int]] = {}
    for at in range(0, len(file_ids), _BATCH):
        asked = Slice(frozenset(live), tuple(file_ids[at : at + _BATCH]))
        while asked.file_ids:
            counted = store.count_copies(asked)
            found |= {copies.file_id: (copies.name, copies.chunks_unavailable) for copies in counted.files}
            partial = counted.partial
            rest = counted.left if partial is None else (partial.file_id, *counted.left)
            asked = Slice(asked.live, rest, partial=partial)
    return found
