"""A node's copy of the tracker's allow list: whose key is whose, and what its owner may.

It is kept in a file, so that a node which starts while the tracker is away serves the
members it knew. A copy that cannot be read is as none: the tracker tells it again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec.structs import asdict

from zchunk.protocol.messages import MemberRecord
from zchunk.system import disk, json_files

log = logging.getLogger(__name__)

_OWNER_ONLY = 0o600


class AllowList:
    """Members by id and by key; of each the last that was heard."""

    def __init__(self, members: Iterable[MemberRecord] = ()) -> None:
        self._members: dict[str, MemberRecord] = {}
        self._by_key: dict[str, str] = {}
        for member in members:
            self.put(member)

    @property
    def members(self) -> tuple[MemberRecord, ...]:
        return tuple(self._members.values())

    def role_of(self, peer_id: str) -> str | None:
        """None for who is no member, or was cut off."""
        member = self._members.get(peer_id)
        return None if member is None or member.revoked else member.role

    def name_of(self, peer_id: str) -> str:
        """Empty for who is none, and never was."""
        member = self._members.get(peer_id)
        return member.name if member is not None else ""

    def owner_of(self, public_key: bytes) -> MemberRecord | None:
        """The member whose present key it is, cut off or not."""
        peer_id = self._by_key.get(public_key.hex())
        return None if peer_id is None else self._members[peer_id]

    def put(self, member: MemberRecord) -> bool:
        """Whether a key that was let in before is not any more."""
        before = self._members.get(member.peer_id)
        if before is not None:
            self._by_key.pop(before.public_key, None)
        self._members[member.peer_id] = member
        self._by_key[member.public_key] = member.peer_id
        if before is None or before.revoked:
            return False
        return member.revoked or member.public_key != before.public_key


def load(path: Path) -> AllowList:
    try:
        return AllowList(msgspec.convert(json_files.read(path), list[MemberRecord]))
    except FileNotFoundError:
        return AllowList()
    except (OSError, ValueError, msgspec.ValidationError) as error:
        log.warning("%s cannot be read, asking the tracker again: %s", path, error)
        return AllowList()


def save(path: Path, members: Iterable[MemberRecord]) -> None:
    """Raises as `disk.write_durable` does."""
    text = json.dumps([asdict(member) for member in members], indent=1)
    disk.write_durable(path, text.encode(), mode=_OWNER_ONLY)
