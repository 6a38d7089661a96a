"""The members, and of each node what others are shown of it. Pure.

What may not happen here: a record that says `up` before the event that tells of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from msgspec.structs import replace

from zchunk.errors import NotAllowed
from zchunk.protocol.messages import PeerRecord
from zchunk.tracker.actions import Ask
from zchunk.tracker.members.member_list import Member, MemberList
from zchunk.tracker.rules.liveness import Liveness
from zchunk.tracker.state.peer_records import PeerRecords

#: the status of a node that is there without its disk
OFFLINE = "offline-store"


class Peers:
    def __init__(self, listed: MemberList, liveness: Liveness) -> None:
        #: the allow list, as the cluster was told
        self.listed = listed
        self.liveness = liveness
        self.records = PeerRecords()
        #: bytes per second that each node served and stored lately
        self.loads: dict[str, float] = {}
        #: peers whose change is being stored: how many events of each are still to come
        self.untold: Counter[str] = Counter()

    def member(self, ask: Ask) -> Member:
        """Who asks. Raises NotAllowed for anybody else."""
        member = self.listed.member(ask.peer_id)
        if member is None or member.revoked:
            raise NotAllowed(
                "this PC is not a member of the cluster; join with a token "
                "(`zchunk token` on the tracker's PC prints one)"
            )
        return member

    def show(self, record: PeerRecord) -> PeerRecord:
        """Others see this of it from now on; returns what they see."""
        member = self.listed.member(record.peer_id)
        if member is not None and member.revoked:
            record = replace(record, status="revoked", unsure=False)
        self.records[record.peer_id] = record
        return record

    def live(self) -> frozenset[str]:
        """Peers whose chunks can be had: up, as the cluster was told, and with their store."""
        return frozenset(p for p in self.liveness.up() if self.records.status(p) == "up")

    def online(self) -> list[PeerRecord]:
        return [self.records[peer_id] for peer_id in sorted(self.live())]

    def unsure(self, avoid: Collection[str]) -> list[str]:
        """Names of the nodes that may be up, for all that this tracker has heard yet, without
        those of `avoid`."""
        unsure = [r for r in self.records.values() if r.unsure and r.peer_id not in avoid]
        return sorted(record.name for record in unsure)

    def undecided(self) -> Iterator[str]:
        """Ids of which the cluster will be told whether they are up."""
        return iter(sorted((self.liveness.unsure() | self.untold.keys()) & self.records.keys()))

    def named(self, peer_ids: Collection[str]) -> tuple[PeerRecord, ...]:
        return tuple(self.records[peer_id] for peer_id in peer_ids)
