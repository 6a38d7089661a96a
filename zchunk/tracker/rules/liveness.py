"""Who is up: a pure state machine over hellos, heartbeats, goodbyes and leases.

What may not happen here: an older incarnation changing anything; a second process with
the identity of one that is up taking its place; two starts of a node under one number in
one run of the tracker; a node called down while its lease runs and its connection stands; a
lease ended by our own lateness; anyone called down within one lease of the tracker's own start.

Times are monotonic seconds. The caller acts on the returned `Change`s in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from zchunk.errors import Busy, StaleIncarnation
from zchunk.protocol.messages import MAX_COUNT

#: A node whose connection broke so often within this time, in one start of it, has a bad
#: line: its lease decides then, so that the cluster is not told of each break.
_BREAKS = 3
_BREAKS_WITHIN_S = 30.0


#: A turn so late, in heartbeats, is a sleep: from half a heartbeat on the others' connections
#: to us may have run into their timeout.
_SLEPT = 0.4


class Life(Enum):
    UNKNOWN = "unknown"  # from the store of an earlier run; its first lease still runs
    ARRIVING = "arriving"  # said hello; its inventory is being compared
    UP = "up"
    DOWN = "down"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Change:
    """`reason`: hello | lease | connection | goodbye | revoked."""

    peer_id: str
    life: Life
    reason: str


@dataclass(slots=True)
class _Peer:
    incarnation: int
    life: Life
    connection: bytes = b""
    lease_end: float = 0.0
    #: which process of that incarnation; a copied home gives two of them
    instance: str = ""
    #: when its connection broke lately, in this incarnation
    breaks: deque[float] = field(default_factory=lambda: deque(maxlen=_BREAKS))


@dataclass(frozen=True, slots=True)
class Hail:
    """The answer to a hello. `incarnation`: the process is known by this number; `arriving`:
    its `arrived` is still to come."""

    incarnation: int
    arriving: bool


_WATCHED = (Life.UNKNOWN, Life.ARRIVING, Life.UP)


class Liveness:
    def __init__(self, *, heartbeat_s: float, lease_s: float, now: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._lease_s = lease_s
        self._last_turn = now
        #: until then a connection that is gone may be one that ended while we slept
        self._excuse_until = 0.0
        self._peers: dict[str, _Peer] = {}
        #: no lease that counts ends before; only to be looked for again from then on
        self._first_end = float("inf")

    def restore(self, peer_id: str, incarnation: int, left: bool, now: float) -> None:
        """A peer known from an earlier run: it gets one lease to say hello."""
        life = Life.LEFT if left else Life.UNKNOWN
        self._peers[peer_id] = _Peer(incarnation, life, lease_end=now + self._lease_s)
        if not left:
            self._first_end = min(self._first_end, now + self._lease_s)

    def life(self, peer_id: str) -> Life:
        peer = self._peers.get(peer_id)
        return Life.DOWN if peer is None else peer.life

    def is_up(self, peer_id: str) -> bool:
        return self.life(peer_id) is Life.UP

    def unsure(self) -> frozenset[str]:
        """Peers whose first life in this run is not decided: a `Change` to up, or to down or
        left, follows for each."""
        undecided = (Life.UNKNOWN, Life.ARRIVING)
        return frozenset(peer_id for peer_id, peer in self._peers.items() if peer.life in undecided)

    def unsure_until(self) -> float:
        """When the last of them is decided, if it says nothing; long ago where there is none."""
        return max((self._peers[peer_id].lease_end for peer_id in self.unsure()), default=float("-inf"))

    def connection(self, peer_id: str) -> bytes:
        """The newest connection of a peer that is there, else b""."""
        peer = self._peers.get(peer_id)
        return peer.connection if peer is not None and peer.life in (Life.ARRIVING, Life.UP) else b""

    def up(self) -> frozenset[str]:
        return frozenset(peer_id for peer_id, peer in self._peers.items() if peer.life is Life.UP)

    def hello(
        self, peer_id: str, incarnation: int, connection: bytes, now: float, instance: str = ""
    ) -> Hail:
        """Start (or renew) a life. `instance` is random for each process.

        A process whose number is behind, or that of an earlier start, is not of an earlier time:
        its home was put back from a backup. It gets a number above all before it. Raises
        StaleIncarnation where another process is there as this node (a copied home), and Busy
        (retryable) while it is not known yet whether one is; nothing changes then.
        """
        self._turn(now)
        peer = self._peers.get(peer_id)
        number = incarnation if peer is None else self._number(peer, incarnation, instance)
        same_start = peer is not None and peer.incarnation == number
        same_life = same_start and peer.life is Life.UP  # type: ignore[union-attr]
        renewed = _Peer(number, Life.UP if same_life else Life.ARRIVING, connection)
        renewed.lease_end, renewed.instance = now + self._lease_s, instance
        if same_start:
            renewed.breaks = peer.breaks  # type: ignore[union-attr]
        self._peers[peer_id] = renewed
        self._first_end = min(self._first_end, renewed.lease_end)
        return Hail(number, arriving=not same_life)

    def _number(self, peer: _Peer, incarnation: int, instance: str) -> int:
        """Under which number this process is known from now on."""
        if incarnation > peer.incarnation:
            return incarnation
        same_number = incarnation == peer.incarnation
        if instance == peer.instance and (instance or same_number):
            return peer.incarnation  # perhaps it has not heard of its new number yet
        if same_number and not peer.instance and peer.life is not Life.LEFT:
            return incarnation  # of an earlier run of ours, and still the same process
        if peer.life is Life.UNKNOWN:
            raise Busy(
                "the tracker has just started, and a newer start of this node may still register; try again"
            )
        if peer.life in (Life.ARRIVING, Life.UP):
            known = "a newer start of this node is registered"
            if incarnation == peer.incarnation:
                known = "another process already runs as this node"
            raise StaleIncarnation(
                f"{known}; if its home was copied to another PC, remove the copy and join that PC with its"
                " own token"
            )
        return min(peer.incarnation + 1, MAX_COUNT)

    def arrived(self, peer_id: str, incarnation: int, now: float) -> list[Change]:
        """Its inventory is known: it is up."""
        self._turn(now)
        peer = self._peers.get(peer_id)
        if peer is None or peer.incarnation != incarnation or peer.life is not Life.ARRIVING:
            return []
        return [self._move(peer_id, peer, Life.UP, "hello")]

    def beat(self, peer_id: str, incarnation: int, connection: bytes, now: float) -> bool:
        """A sign of life; False when this connection must say hello first."""
        self._turn(now)
        peer = self._peers.get(peer_id)
        if peer is None or peer.life not in (Life.ARRIVING, Life.UP):
            return False
        if (peer.incarnation, peer.connection) != (incarnation, connection):
            return False
        peer.lease_end = now + self._lease_s
        return True

    def goodbye(self, peer_id: str, incarnation: int, now: float) -> list[Change]:
        self._turn(now)
        peer = self._peers.get(peer_id)
        if peer is None or peer.incarnation != incarnation or peer.life is Life.LEFT:
            return []
        return [self._move(peer_id, peer, Life.LEFT, "goodbye")]

    def cut_off(self, peer_id: str, now: float) -> list[Change]:
        """Its key was revoked: it is not there any more, whatever its connection says."""
        self._turn(now)
        peer = self._peers.get(peer_id)
        if peer is None or peer.life not in _WATCHED:
            return []
        return [self._move(peer_id, peer, Life.DOWN, "revoked")]

    def connection_gone(self, connection: bytes, now: float) -> list[Change]:
        """The transport proved that this connection no longer exists.

        Its node is down at once, unless the line breaks all the time, or we slept and did not
        answer it: then its lease decides.
        """
        self._turn(now)
        broken = [
            (peer_id, peer)
            for peer_id, peer in sorted(self._peers.items())
            if peer.connection == connection and peer.life in (Life.ARRIVING, Life.UP)
        ]
        return [
            self._move(peer_id, peer, Life.DOWN, "connection")
            for peer_id, peer in broken
            if not self._flaps(peer, now) and not self._excused(peer, now)
        ]

    def _excused(self, peer: _Peer, now: float) -> bool:
        """Whether it may have given the connection up because we slept. It says hello again
        as soon as it can connect, and has a lease for that."""
        if now >= self._excuse_until:
            return False
        peer.lease_end = max(peer.lease_end, self._excuse_until)
        return True

    def _flaps(self, peer: _Peer, now: float) -> bool:
        """Notes the break; whether there were too many to tell of each."""
        many = len(peer.breaks) == _BREAKS and peer.breaks[0] + _BREAKS_WITHIN_S > now
        peer.breaks.append(now)
        return many

    def advance(self, now: float) -> list[Change]:
        """Leases that ended by `now`."""
        self._turn(now)
        return [
            self._move(peer_id, peer, Life.DOWN, "lease")
            for peer_id, peer in sorted(self._peers.items())
            if peer.life in _WATCHED and peer.lease_end <= now
        ]

    def deadline(self) -> float | None:
        """When to call `advance`: at the next lease end, and once per heartbeat so that
        being late ourselves is noticed."""
        soon = self._last_turn + self._heartbeat_s
        if self._first_end <= soon:
            ends = [peer.lease_end for peer in self._peers.values() if peer.life in _WATCHED]
            self._first_end = min(ends, default=float("inf"))
        return None if self._first_end == float("inf") else min(self._first_end, soon)

    def _turn(self, now: float) -> None:
        """Notice that we ourselves slept (suspend, SIGSTOP): nobody could reach us
        meanwhile, so that time counts against no lease."""
        late = now - self._last_turn - self._heartbeat_s
        if late > _SLEPT * self._heartbeat_s:
            self._excuse_until = now + self._lease_s
        if late > self._heartbeat_s:
            for peer in self._peers.values():
                peer.lease_end += late
        self._last_turn = max(self._last_turn, now)

    def _move(self, peer_id: str, peer: _Peer, life: Life, reason: str) -> Change:
        peer.life = life
        if life is not Life.UP:
            peer.connection = b""
            self._first_end = float("-inf")  # it may have been this one's
        return Change(peer_id, life, reason)
