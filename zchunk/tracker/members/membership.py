"""The allow list: which keys are members, which tokens may make new ones.

A JSON file beside the tracker's store, not in it, so that a lost or restored store
locks nobody out. It holds no secret, but it decides who is let in, so only its owner
may read or write it. `zchunk token` changes it while the tracker runs: each change
takes a lock file, reads anew, and replaces the file in one durable step. The tracker and the
commands on its home call this; any thread may.

All methods that read the file raise StorageFailure where it cannot be understood (it is
never overwritten then) or where it has vanished under a running tracker; those that
change it raise Busy (retryable) where another process holds it, and otherwise as
`disk.write_durable` does. Times are milliseconds since 1970 UTC.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from zchunk.clock import MAX_WALL_MS, Clock, iso_utc
from zchunk.errors import Busy, InvalidUsage, NameTaken, NotAllowed, NotFound, StorageFailure, TokenRefused
from zchunk.system import disk, json_files
from zchunk.system.file_locks import Timeout, locked
from zchunk.tracker.members.member_list import Member, MemberList, TokenEntry, token_id
from zchunk.transport.auth import ROLES
from zchunk.transport.keys import peer_id_of

_FORMAT = 1
_OWNER_ONLY = 0o600
_LOCK_PATIENCE_S = 10
#: Longest a name may be (messages.Label).
_NAME_LENGTH = 64
#: As many as a snapshot of the cluster may list. A token that went round makes no more.
MAX_MEMBERS = 10_000
#: How long an expired token stays listed, so that its late user is told that it expired.
_KEEP_EXPIRED_MS = 30 * 24 * 3600 * 1000
_PEER_ID = "[0-9a-f]{32}"
_NEW_TOKEN = "print a new one with `zchunk token` on the tracker's PC"


#: differs for each content of the file
Stamp = tuple[int, ...]


class Revocation(NamedTuple):
    """`tokens` are withdrawn with the member: those that it joined with."""

    member: Member
    tokens: list[TokenEntry]


class Membership:
    """The allow list at `path`, which need not exist yet: then nobody is a member."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        #: what was read last, and what stat said of the file then; None without a file. Replaced
        #: together: any thread may.
        self._content: tuple[MemberList, Stamp | None] = (MemberList(), None)
        self.refresh()

    # -- asking -----------------------------------------------------------------------

    @property
    def is_new(self) -> bool:
        """Whether nobody was ever listed: no member, and no token either."""
        return self._content[1] is None

    @property
    def listed(self) -> MemberList:
        """As last read. A change by another process is seen after `refresh`."""
        return self._content[0]

    def is_current(self) -> bool:
        """Whether the file is the one that was last read: a look at its inode."""
        return self._stamp() == self._content[1]

    def refresh(self) -> MemberList:
        """Reads the file if it is another one than last time."""
        if not self.is_current():
            self._read()
        return self.listed

    def free_name(self, name: str) -> str:
        """`name` itself if no node has it, else the first free one of `A-2`, `A-3`, ..."""
        taken = self._node_names()
        if name not in taken:
            return name
        endings = (f"-{number}" for number in range(2, len(taken) + 3))
        return next(n for e in endings if (n := name[: _NAME_LENGTH - len(e)] + e) not in taken)

    # -- changing ---------------------------------------------------------------------

    def add_member(self, public_key: bytes, name: str, role: str) -> Member:
        """Let this key in without a token. One that is a member already stays as it is.

        Raises NameTaken (`details["suggestion"]`) for a second node of that name,
        InvalidUsage for a name that cannot be shown on one line, and NotAllowed for a
        revoked key: lifting that is `allow`.
        """
        with self._change() as change:
            return self._known(public_key) or change.add(self._new(public_key, name, role, self._now_ms()))

    def add_token(self, public_key: bytes, role: str, expires_ms: int, once: bool) -> TokenEntry:
        """From now on, until `expires_ms`, this key may make members of `role`."""
        entry = TokenEntry(public_key, role, expires_ms, once)
        with self._change() as change:
            oldest = self._now_ms() - _KEEP_EXPIRED_MS
            change.keep_tokens(t for t in self.listed.tokens.values() if t.expires_ms > oldest)
            change.tokens[peer_id_of(public_key)] = entry
        return entry

    def withdraw(self, token_ids: Collection[str]) -> list[TokenEntry]:
        """These tokens make no more members; those that they made stay. Returns what was
        listed of them: one that is gone already is none."""
        with self._change() as change:
            return [entry for i in token_ids if (entry := change.tokens.pop(i, None)) is not None]

    def join(self, token: bytes | str, public_key: bytes, name: str, now_ms: int) -> Member:
        """Make `public_key` a member, as its holder may who has `token` (its public key,
        or that key's id). Durable on return.

        The same key again is the same member, under its first name and role, even when
        the token is used up or has expired since: its first answer may have been lost.
        Raises TokenRefused for a token that is unknown, expired or used up; NameTaken
        (`details["suggestion"]`) for a second node of that name; InvalidUsage for a
        name that cannot be shown on one line, and for a token's own key; NotAllowed for a
        revoked key.
        """
        of = token_id(token)
        with self._change() as change:
            member = self._known(public_key)
            entry = self.listed.tokens.get(of)
            if entry is None:
                raise TokenRefused(
                    f"this join token is not known to the tracker, or was withdrawn; {_NEW_TOKEN}"
                )
            if member is None:
                self._check_usable(entry, now_ms)
                member = change.add(self._new(public_key, name, entry.role, now_ms))
            if member.peer_id not in entry.used_by:
                change.tokens[of] = replace(entry, used_by=(*entry.used_by, member.peer_id))
            return member

    def rotate(self, peer_id: str, public_key: bytes) -> Member:
        """The member's key is `public_key` from now on; its id stays. Idempotent.

        Raises InvalidUsage for a key that another member or a token has, or this one had
        first; NotFound and NotAllowed for who is not a member."""
        with self._change() as change:
            member = self.listed.members.get(peer_id)
            if member is None:
                raise NotFound(f"peer {peer_id} is not a member", peer_id=peer_id)
            if member.revoked:
                raise _cut_off(member)
            if member.public_key == public_key:
                return member
            new_id = peer_id_of(public_key)
            if (
                new_id in self.listed.members
                or new_id in self.listed.tokens
                or public_key in self.listed.owners
            ):
                raise InvalidUsage("that key is or was in use; create a new one")
            return change.add(replace(member, public_key=public_key))

    def revoke(self, peer_id: str) -> Revocation:
        """Cut a member off, and withdraw in the same step the tokens that it joined with: it would
        come back by them, under a new key. Who else joined with them stays a member. Its name is
        free while it is cut off. Raises NotFound for a peer that is no member."""
        with self._change() as change:
            member = self._member_there(peer_id)
            tokens = [entry for entry in self.listed.tokens.values() if peer_id in entry.used_by]
            for entry in tokens:
                del change.tokens[entry.key_id]
            return Revocation(change.add(replace(member, revoked=True)), tokens)

    def allow(self, peer_id: str) -> Member:
        """Let a member in again that was cut off. Raises NameTaken where its name is another's by
        now, NotFound for a peer that is no member."""
        with self._change() as change:
            member = self._member_there(peer_id)
            if member.revoked:
                self._check_name(member.name, member.role)
            return change.add(replace(member, revoked=False))

    # -- rules ------------------------------------------------------------------------

    def _member_there(self, peer_id: str) -> Member:
        member = self.listed.members.get(peer_id)
        if member is None:
            raise NotFound(
                f"peer {peer_id} is not a member; `zchunk peers list --all` lists the members",
                peer_id=peer_id,
            )
        return member

    def _known(self, public_key: bytes) -> Member | None:
        owner = self.listed.owners.get(public_key)
        member = self.listed.members.get(owner or peer_id_of(public_key))
        if member is not None and member.revoked:
            raise _cut_off(member)
        if member is not None and member.public_key != public_key:
            raise NotAllowed(
                f"this key was {member.name}'s and was replaced; a replaced key cannot be used again",
                peer_id=member.peer_id,
            )
        return member

    def _new(self, public_key: bytes, name: str, role: str, now_ms: int) -> Member:
        if not (name.isprintable() and name.strip() and len(name) <= _NAME_LENGTH):
            raise InvalidUsage(f"invalid name {name!r}: use 1 to {_NAME_LENGTH} printable characters")
        if peer_id_of(public_key) in self.listed.tokens:
            # Else all who ever had the token would be that member, also when it has expired.
            raise InvalidUsage("a join token's key cannot be a member's; a PC joins with its own key")
        if len(self.listed.members) >= MAX_MEMBERS:
            raise NotAllowed(
                f"this cluster has {MAX_MEMBERS} members, including revoked ones, and accepts no more"
            )
        self._check_name(name, role)
        return Member(peer_id_of(public_key), public_key, name, role, now_ms)

    def _check_usable(self, entry: TokenEntry, now_ms: int) -> None:
        if now_ms >= entry.expires_ms:
            raise TokenRefused(f"this join token expired at {iso_utc(entry.expires_ms / 1000)}; {_NEW_TOKEN}")
        if entry.once and entry.used_by:
            user = self.listed.members.get(entry.used_by[0])
            name = entry.used_by[0] if user is None else user.name
            raise TokenRefused(
                f"this join token was valid for one join, and {name} has used it; {_NEW_TOKEN}"
            )

    def _check_name(self, name: str, role: str) -> None:
        if role == "node" and name in self._node_names():
            suggestion = self.free_name(name)
            raise NameTaken(
                f"another node of this cluster is named {name}; join under another name, "
                f"for example `--name {suggestion}`",
                suggestion=suggestion,
            )

    def _node_names(self) -> frozenset[str]:
        members = self.listed.members.values()
        return frozenset(m.name for m in members if m.role == "node" and not m.revoked)

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)

    # -- the file ---------------------------------------------------------------------

    @contextmanager
    def _change(self) -> Iterator[_Change]:
        """Nobody else changes the file meanwhile; what the body did is durable behind it.
        An error in the body changes nothing."""
        with self._locked():
            self.refresh()
            change = _Change(dict(self.listed.members), dict(self.listed.tokens))
            yield change
            if (change.members, change.tokens) != (self.listed.members, self.listed.tokens):
                disk.write_durable(self._path, _encode(change), mode=_OWNER_ONLY)
                self._read()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with disk.storage_errors(self._path, "locking"):
            disk.private_folder(self._path.parent)
            path = self._path.with_name(f"{self._path.name}.lock")
            try:
                lock = locked(path, timeout_s=_LOCK_PATIENCE_S)
            except Timeout:
                text = f"another process is changing {self._path}; try again in a moment"
                raise Busy(text, path=str(self._path)) from None
        try:
            yield
        finally:
            lock.release()

    def _stamp(self) -> Stamp | None:
        try:  # each second: the usual case takes no more than it must
            return _stamp_of(os.stat(self._path))
        except FileNotFoundError:
            return None
        except OSError:
            with disk.storage_errors(self._path, "reading"):
                raise

    def _read(self) -> None:
        with disk.storage_errors(self._path, "reading"):
            try:
                with open(self._path, "rb") as file:
                    stamp, data = _stamp_of(os.fstat(file.fileno())), file.read(json_files.MAX_BYTES + 1)
            except FileNotFoundError:
                data = b""
        if not data:
            raise StorageFailure(
                f"the list of members {self._path} is missing or empty; restore it from a backup",
                path=str(self._path),
            )
        try:
            self._content = (_decode(data), stamp)
        except (ValueError, KeyError):
            raise StorageFailure(
                f"{self._path} is not a list of members that this zchunk can read; restore it from a backup",
                path=str(self._path),
            ) from None


@dataclass
class _Change:
    """The next content of the file, while it is being made."""

    members: dict[str, Member]
    tokens: dict[str, TokenEntry]

    def add(self, member: Member) -> Member:
        self.members[member.peer_id] = member
        return member

    def keep_tokens(self, entries: Iterable[TokenEntry]) -> None:
        self.tokens = {peer_id_of(entry.public_key): entry for entry in entries}


def _cut_off(member: Member) -> NotAllowed:
    return NotAllowed(
        f"{member.name} ({member.peer_id}) was revoked; "
        f"`zchunk peers allow {member.peer_id}` on the tracker's PC admits it again",
        peer_id=member.peer_id,
    )


def _stamp_of(stat: os.stat_result) -> Stamp:
    """Differs for each content, since each comes as a new file."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _encode(change: _Change) -> bytes:
    members = [{**asdict(m), "public_key": m.public_key.hex()} for m in change.members.values()]
    tokens = [{**asdict(t), "public_key": t.public_key.hex()} for t in change.tokens.values()]
    content = {"format": _FORMAT, "members": members, "tokens": tokens}
    return json.dumps(content, indent=1).encode() + b"\n"


def _decode(data: bytes) -> MemberList:
    """Raises ValueError or KeyError for anything else."""
    content = json_files.record(json_files.parse(data))
    if json_files.count(content["format"]) != _FORMAT:
        raise ValueError("format")
    members = [_member(_exactly(entry, Member)) for entry in json_files.items(content["members"])]
    tokens = [_token(_exactly(entry, TokenEntry)) for entry in json_files.items(content["tokens"])]
    by_key = {token.key_id: token for token in tokens}
    owners = {member.public_key: member.peer_id for member in members}
    return MemberList(
        MappingProxyType({member.peer_id: member for member in members}), MappingProxyType(by_key), owners
    )


def _exactly(value: Any, cls: type) -> dict[str, Any]:
    """A key that is not known here would be lost when the list is written again."""
    entry = json_files.record(value)
    if set(entry) != {known.name for known in fields(cls)}:
        raise ValueError("keys")
    return entry


def _member(entry: dict[str, Any]) -> Member:
    return Member(
        peer_id=json_files.text(entry["peer_id"], _PEER_ID),
        public_key=json_files.key(entry["public_key"]),
        name=json_files.text(entry["name"], most=_NAME_LENGTH),
        role=json_files.one_of(entry["role"], ROLES),
        added_ms=json_files.count(entry["added_ms"], MAX_WALL_MS),
        revoked=json_files.flag(entry["revoked"]),
    )


def _token(entry: dict[str, Any]) -> TokenEntry:
    return TokenEntry(
        public_key=json_files.key(entry["public_key"]),
        role=json_files.one_of(entry["role"], ROLES),
        expires_ms=json_files.count(entry["expires_ms"], MAX_WALL_MS),
        once=json_files.flag(entry["once"]),
        used_by=json_files.texts(entry["used_by"], _PEER_ID),
    )
