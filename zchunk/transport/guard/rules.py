"""Which connections of a bound socket are too many, or hold too much. Pure.

libzmq accepts whoever connects, and keeps all parts of a message until the last one came.
Here it is decided which connections end, by what is seen of them from outside.

What may not happen here: a member whose messages come in ended for the sake of connections
that have not said a word; an end while everything is within its limits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    #: connections of one bound socket, and of one address among them
    connections: int = 1024
    of_an_address: int = 256
    #: Bytes that came by a connection and are in no message that was handed on: a frame of the
    #: largest size (`wire.MAX_REQUEST_FRAME_BYTES`) and what is around it.
    held: int = 17 * MIB
    #: Of all of one address: one such frame, whole and being decrypted, and half of another.
    held_of_an_address: int = 24 * MIB
    #: Of all that have not had one whole message yet: first messages are small. In plain transport
    #: they may be many parts of 2 bytes, for each of which libzmq keeps 64.
    held_by_strangers: int = MIB // 4
    #: of all others
    held_by_all: int = 256 * MIB


@dataclass(frozen=True, slots=True)
class Seen:
    """A connection as one look finds it. `key` names it for as long as it stands."""

    key: tuple[int, int]
    address: str
    #: bytes that the operating system has taken in from it
    received: int


@dataclass(slots=True)
class _Known:
    seen: Seen
    since: float
    heard: bool = False
    #: bytes that are no part of a message under way
    settled: float = 0.0
    at: float = 0.0

    @property
    def held(self) -> float:
        return self.seen.received - self.settled


#: A little is what lies in any connection that is read.
_LITTLE = 4096
#: Heartbeats are no message: so many bytes a second of them are none of a message under way.
_HEARTBEATS_PER_S = 512.0


@dataclass(frozen=True, slots=True)
class End:
    key: tuple[int, int]
    address: str
    #: `connections` or `held`
    why: str


class Guard:
    """One bound socket's. Times are monotonic seconds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: connections that may stand: fewer than the limit where the process has few descriptors
        self._most = limits.connections
        self._known: dict[tuple[int, int], _Known] = {}

    def at_most(self, connections: int) -> None:
        """What this process has descriptors for."""
        self._most = min(self._limits.connections, connections)

    def look(
        self,
        found: Iterable[Seen],
        delivered: Mapping[tuple[int, int], int],
        now: float,
    ) -> list[End]:
        """`delivered`: bytes of messages handed on since the last look. Returns which end; they
        are known no more."""
        self._update(found, delivered, now)
        ended: list[End] = []
        for ends in (self._too_many, self._too_much):
            ended += (these := ends())
            for end in these:
                del self._known[end.key]
        return ended

    @property
    def busy(self) -> bool:
        """Whether to look again soon."""
        return any(known.held > (MIB if known.heard else _LITTLE) for known in self._known.values())

    def _update(
        self,
        found: Iterable[Seen],
        delivered: Mapping[tuple[int, int], int],
        now: float,
    ) -> None:
        before, self._known = self._known, {}
        for seen in found:
            known = before.get(seen.key) or _Known(seen, now, at=now)
            known.seen = seen
            brought = delivered.get(seen.key, 0)
            known.heard |= brought > 0
            settled = known.settled + brought + _HEARTBEATS_PER_S * (now - known.at)
            known.settled, known.at = min(float(seen.received), settled), now
            self._known[seen.key] = known

    def _too_many(self) -> list[End]:
        by_address: dict[str, list[_Known]] = defaultdict(list)
        for known in self._known.values():
            by_address[known.seen.address].append(known)
        ends: list[End] = []
        for group in by_address.values():
            group.sort(key=_first_to_go)
            ends += _take(group, len(group) - self._limits.of_an_address)
        surplus = sum(map(len, by_address.values())) - self._most
        while surplus > 0:
            largest = sorted(by_address.values(), key=len)
            below = len(largest[-2]) if len(largest) > 1 else 0
            ends += _take(largest[-1], taken := min(surplus, max(1, len(largest[-1]) - below)))
            surplus -= taken
        return ends

    def _too_much(self) -> list[End]:
        known = sorted(self._known.values(), key=lambda one: -one.held)
        limits = self._limits
        ends = [one for one in known if one.held > limits.held]
        ends += self._of_an_address([one for one in known if one not in ends])
        for heard, most in ((False, limits.held_by_strangers), (True, limits.held_by_all)):
            group = [one for one in known if one.heard is heard and one not in ends and one.held > _LITTLE]
            held = sum(one.held for one in group)
            while held > most:
                ends.append(one := group.pop(0))
                held -= one.held
        return [End(one.seen.key, one.seen.address, "held") for one in ends]

    def _of_an_address(self, known: list[_Known]) -> list[_Known]:
        """`known`: who holds most first."""
        held: dict[str, float] = defaultdict(float)
        for one in known:
            held[one.seen.address] += one.held
        ends: list[_Known] = []
        for one in known:
            if held[one.seen.address] > self._limits.held_of_an_address:
                held[one.seen.address] -= one.held
                ends.append(one)
        return ends


def _first_to_go(known: _Known) -> tuple[bool, float]:
    """Of those that said nothing the oldest, then of the others the newest."""
    return known.heard, -known.since if known.heard else known.since


def _take(group: list[_Known], count: int) -> list[End]:
    taken, group[:] = group[: max(0, count)], group[max(0, count) :]
    return [End(one.seen.key, one.seen.address, "connections") for one in taken]
