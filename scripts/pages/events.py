"""events.md: the fields of each topic, as the tracker makes them; the template says what they mean."""

from __future__ import annotations

import re
from pathlib import Path

from pages.template import Filler, code, meanings, table
from zchunk import tracker
from zchunk.protocol.messages import FileRecord, PeerRecord, ReportCorrupt, ReportHeld
from zchunk.tracker.members.member_list import Member
from zchunk.tracker.records import (
    corrupt_fields,
    file_fields,
    health_fields,
    held_fields,
    member_fields,
    peer_fields,
    removed_fields,
)
from zchunk.tracker.rules.health import TOPICS, Copies

_ID, _FILE = "f" * 32, "f" * 64
_PEER = PeerRecord(
    peer_id=_ID,
    name="A",
    role="node",
    status="up",
    incarnation=1,
    endpoints=(),
    capacity=0,
    free=0,
    chunks=0,
    last_seen_ms=0,
)
_MEMBER = Member(_ID, b"k" * 32, "A", "node", 0, False)
_COMMITTED = FileRecord(
    file_id=_FILE,
    name="f",
    size=0,
    sha256=None,
    chunk_size=4096,
    chunks_count=0,
    replicas=1,
    is_chunked=True,
    is_distributed=True,
    minimum_peers_required=1,
    created_at_ms=0,
)
_CORRUPT = ReportCorrupt(peer_id=_ID, sha256=b"s" * 32)
_HELD = ReportHeld(member="10.0.0.7", purpose="downloads", size=1, budget=2, seconds=3.0)

_MEMBER_TOPICS = ("member.joined", "member.revoked", "member.allowed", "member.rotated")

#: topic -> its fields, made by what the tracker makes them with
FIELDS: dict[str, list[str]] = {
    "peer.up": list(peer_fields(_PEER, reason="hello")),
    "peer.down": list(peer_fields(_PEER, reason="lease")),
    "peer.updated": list(peer_fields(_PEER)),
    "file.distributed": list(file_fields(_COMMITTED)),
    "file.removed": list(removed_fields(_FILE, 1)),
    **{topic: list(health_fields(Copies(_FILE, "f", 2, 10, 0, 1))) for topic in TOPICS},
    "chunk.corrupt": list(corrupt_fields(_ID, _CORRUPT, 1)),
    "budget.held": list(held_fields(_MEMBER, _HELD, None)),
    **{
        f"member.{what}": list(member_fields(_MEMBER)) for what in ("joined", "revoked", "allowed", "rotated")
    },
    "tick": [],
}


def published() -> set[str]:
    """The topics in the tracker's source."""
    source = "".join(path.read_text() for path in Path(tracker.__path__[0]).rglob("*.py"))
    found = set(re.findall(r'(?:events\.publish|self\._event)\("([a-z.]+)"', source))
    for pair in re.findall(r'topic = "([a-z.]+)" if .* else "([a-z.]+)"', source):
        found |= set(pair)
    return {*found, *TOPICS}


def _fields(heading: str, words: str) -> str:
    """Lines of the hole that mean several fields name them with commas."""
    said = meanings(words)
    named = [name.strip() for names in said for name in names.split(",")]
    if named != FIELDS[heading]:
        raise ValueError(f"{heading} has the fields {FIELDS[heading]}, the template names {named}")
    rows = [[", ".join(map(code, names.split(", "))), what] for names, what in said.items()]
    return table(["field", "meaning"], rows)


FILLERS: dict[str, Filler] = {"fields": _fields}
