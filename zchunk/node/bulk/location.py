"""The tracker's answers to `Locate`, `FindChunks` and `Commit` as Python values. Pure.

What may not happen here: an answer taken that is about another file than was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from zchunk.clock import MAX_WALL_MS
from zchunk.content.manifest import Manifest, is_file_id, may_begin, parse
from zchunk.errors import IntegrityError, MalformedMessage
from zchunk.protocol import columns
from zchunk.protocol.messages import ChunksFound, FileRecord, Located, PeerRecord

#: Above so many chunks, events leave per-chunk lists out.
MAX_LISTED = 1000
#: Entries of the table of holders: a dozen for each chunk of the largest file.
MAX_HOLDERS = 8_000_000


@dataclass(frozen=True)
class Location:
    """A file and who holds it. `holders[i]` are chunk i's (peer id, stored_at in
    milliseconds), in order of storing."""

    file: FileRecord
    manifest: Manifest
    peers: dict[str, PeerRecord]
    holders: list[list[tuple[str, int]]]

    def holder_ids(self) -> list[list[str]]:
        return [[peer_id for peer_id, _ in chunk] for chunk in self.holders]

    def live_copies(self) -> list[int]:
        """Per chunk, how many of its holders are up."""
        return [sum(self.peers[peer_id].status == "up" for peer_id, _ in row) for row in self.holders]

    def distribution_map(self) -> dict[str, str]:
        """{chunk index: peer id}: each chunk's earliest live holder, then the lowest id
        (SPEC "Data"). A chunk without a live holder is left out."""
        chosen = {}
        for index, chunk in enumerate(self.holders):
            live = [(at, peer_id) for peer_id, at in chunk if self.peers[peer_id].status == "up"]
            if live:
                chosen[str(index)] = min(live)[1]
        return chosen


def found_holders(reply: ChunksFound, count: int) -> list[list[PeerRecord]]:
    """Per chunk asked about, `count` of them, its holders in order of storing. Raises
    MalformedMessage for tables that do not fit the question."""
    counts = columns.unpack(2, reply.holder_counts)
    peers = columns.unpack(2, reply.holder_peers)
    if len(counts) != count or sum(counts) != len(peers) or any(at >= len(reply.peers) for at in peers):
        raise MalformedMessage("the tracker's table of holders does not match the requested chunks")
    rest = iter(peers)
    return [[reply.peers[at] for at in islice(rest, length)] for length in counts]


def check_answered(asked: str, file: FileRecord) -> None:
    """`asked` is a file id, whole or its beginning, or a name. Raises IntegrityError where the
    tracker's answer is about another file; by its name a file is what the tracker says."""
    by_id = may_begin(asked, file.file_id)
    if by_id or (file.name == asked and not is_file_id(asked)):
        return
    raise IntegrityError(
        f"the tracker was asked about {_short(asked)}, but answered with another file, {file.file_id}; the"
        " answer is ignored: upgrade the tracker"
    )


def _short(asked: str) -> str:
    return repr(asked if len(asked) <= 100 else asked[:100] + "...")


def location(reply: Located, asked: str) -> Location:
    """The answer to a question about `asked`, a name or id. Raises IntegrityError where it is
    about another file, ManifestInvalid where the manifest is not that of the file id (then
    nobody but the tracker is wrong), MalformedMessage for tables that do not fit it."""
    check_answered(asked, reply.file)
    manifest = parse(bytes(reply.manifest), reply.file.file_id)
    if not _describes(reply.file, manifest):
        raise MalformedMessage("the tracker's record of the file does not match its manifest")
    if len(reply.holder_peers) > 2 * MAX_HOLDERS or len(reply.holder_times) > 8 * MAX_HOLDERS:
        raise MalformedMessage(f"the tracker's table has more than {MAX_HOLDERS} holders")
    counts = columns.unpack(2, reply.holder_counts)
    peers = columns.unpack(2, reply.holder_peers)
    times = columns.unpack(8, reply.holder_times)
    if len(counts) != len(manifest.chunks) or len(peers) != len(times) or sum(counts) != len(peers):
        raise MalformedMessage("the tracker's table of holders does not match the file")
    if any(at >= len(reply.peers) for at in peers):
        raise MalformedMessage("the tracker's table of holders names an unknown peer")
    if any(at > MAX_WALL_MS for at in times):
        raise MalformedMessage("the tracker's table of holders has an invalid time")
    holders, at = [], 0
    for count in counts:
        holders.append([(reply.peers[peers[i]].peer_id, times[i]) for i in range(at, at + count)])
        at += count
    return Location(reply.file, manifest, {p.peer_id: p for p in reply.peers}, holders)


def _describes(record: FileRecord, manifest: Manifest) -> bool:
    """Whether the two say the same where both say it. The name is the record's alone: the
    manifest has the one that the file was put under."""
    said = (record.size, record.sha256, record.chunk_size, record.chunks_count)
    return said == (manifest.size, manifest.sha256, manifest.chunk_size, len(manifest.chunks))
