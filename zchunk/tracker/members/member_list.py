"""Who is a member and which tokens may make new ones, as the allow list said when it was last read. Pure.

A snapshot, never changed but replaced: `Membership` reads and writes the file, the core decides by this.
Times are milliseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zchunk.transport.keys import peer_id_of


@dataclass(frozen=True, slots=True)
class Member:
    """`peer_id` is made of the public key at the first join and never changes; `public_key`
    does when the member takes a new one. `role` is node, client or observer."""

    peer_id: str
    public_key: bytes
    name: str
    role: str
    added_ms: int
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A key that may `join`, and nothing else, until `expires_ms`; with `once` only one
    peer. `used_by` are the ids of the peers that joined with it, also of those that were members
    before: whoever has it may come back by it."""

    public_key: bytes
    role: str
    expires_ms: int
    once: bool
    used_by: tuple[str, ...] = ()

    @property
    def key_id(self) -> str:
        """By which its holder is known while it joins."""
        return peer_id_of(self.public_key)

    def state(self, now_ms: int) -> str:
        """`open`: it makes members; else `used` or `expired`."""
        if now_ms >= self.expires_ms:
            return "expired"
        return "used" if self.once and self.used_by else "open"


@dataclass(frozen=True)
class MemberList:
    """One content of the allow list. `members`: peer id -> member, revoked ones too; `tokens`: id of
    the token's key (`peer_id_of`) -> token, expired and used ones too."""

    members: Mapping[str, Member] = field(default_factory=dict)
    tokens: Mapping[str, TokenEntry] = field(default_factory=dict)
    #: public key -> id of the member that has it now
    owners: Mapping[bytes, str] = field(default_factory=dict)

    def member(self, peer_id: str) -> Member | None:
        return self.members.get(peer_id)

    def owner_of(self, public_key: bytes) -> Member | None:
        """The member whose present key it is, a revoked one too."""
        peer_id = self.owners.get(public_key)
        return None if peer_id is None else self.members.get(peer_id)

    def token(self, token: bytes | str) -> TokenEntry | None:
        """By its public key or that key's id."""
        return self.tokens.get(token_id(token))


def token_id(token: bytes | str) -> str:
    return token if isinstance(token, str) else peer_id_of(token)
