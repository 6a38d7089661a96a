"""What `core` is given and what it answers with; `server.py` carries the actions out. Pure.

Those that each request makes are structs, which cost a third of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from zchunk.clock import Now
from zchunk.errors import Busy, NoSpace, StorageFailure, ZchunkError
from zchunk.protocol.messages import Event, Message
from zchunk.protocol.wire import error_reply

if TYPE_CHECKING:
    from zchunk.tracker.store.store import TrackerStore

T = TypeVar("T")


class Sender(Struct, frozen=True):
    """Where a request came from. `peer_id` is proven (CURVE) or claimed (plain)."""

    connection: bytes
    peer_id: str | None
    address: str | None


class Reply(Struct, frozen=True):
    connection: bytes
    request_id: int
    message: Message


class Publish(Struct, frozen=True):
    event: Event


@dataclass(frozen=True, slots=True)
class Work:
    """Run `run(store)` in the store's thread; when it is committed, carry out what
    `then(value, error, now)` returns. Works run in order, but those that only read
    (`reads`): at these the members who ask take turns."""

    run: Callable[[TrackerStore], Any]
    then: Callable[[Any, ZchunkError | None, Now], list[Action]]
    reads: bool = False


@dataclass(frozen=True, slots=True)
class CutOff:
    """End the connections of this member: it may not connect again, or only with another key."""

    peer_id: str


@dataclass(frozen=True, slots=True)
class LookAtMembers:
    """Read the allow list, if it is another than last time, and tell `members_changed` of it."""


Action = Reply | Publish | Work | CutOff | LookAtMembers


class Ask(Struct, frozen=True):
    """A request being answered."""

    sender: Sender
    peer_id: str
    request_id: int
    message: Any

    def reply(self, message: Message) -> list[Action]:
        return [Reply(self.sender.connection, self.request_id, message)]

    def work(
        self,
        run: Callable[[TrackerStore], T],
        reply: Callable[[T, Now], list[Action]],
        reads: bool = False,
    ) -> list[Action]:
        """`Work` whose error is the answer; else `reply` makes it."""

        def then(value: T, error: ZchunkError | None, now: Now) -> list[Action]:
            return reply(value, now) if error is None else self.refuse(error)

        return [Work(run, then, reads)]

    def refuse(self, error: ZchunkError) -> list[Action]:
        return self.reply(error_reply(told_abroad(error)))


def is_own(error: ZchunkError) -> bool:
    """Whether it is of a file or database of the tracker's own: it names its path."""
    return "path" in error.details


def told_abroad(error: ZchunkError) -> ZchunkError:
    """What a member is told of such an error: no path that it would take for one of its own PC, and
    no reason to end that is not its own (`not_allowed` ends a node)."""
    if not is_own(error):
        return error
    if isinstance(error, NoSpace):
        return NoSpace("no space on the tracker's disk: free some space on the tracker's PC, then try again")
    if isinstance(error, Busy):
        return Busy("another program uses the tracker's files; try again in a moment")
    return StorageFailure("the tracker cannot read or write its own files; its log says why")
