"""A process's relation to the tracker: requests, heartbeats, the event stream. Pure.

What may not happen here: a request without exactly one outcome; an event applied out
of order; a gap in the stream that is not followed by a snapshot; a reading of a clock.

The shell (`plane.py`) feeds what happened and `now`, and carries out the returned
actions in order. A node's session registers (`AskHello` -> `register`), a client's
only follows. This file is long because requests, registration and the event stream hang on one
another: each of them says whether the tracker is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from msgspec.structs import replace

from zchunk.errors import (
    Busy,
    HelloFirst,
    NameTaken,
    NotAllowed,
    StaleIncarnation,
    TrackerUnreachable,
    ZchunkError,
)
from zchunk.protocol.messages import (
    Beat,
    ErrorReply,
    Event,
    GetSnapshot,
    Heartbeat,
    Hello,
    Message,
    PeerRecord,
    Request,
    Snapshot,
    Welcome,
    record_in,
)
from zchunk.protocol.wire import raised

#: An unanswered request is sent again this often: requests are idempotent.
RESEND_S = 2.0
#: One that the tracker was too busy for, so much later.
BUSY_S = 0.5
#: A heartbeat's answer may overtake the event it counts; so long it may.
_EVENT_GRACE_S = 0.1
#: All subscribers meet the same gap: they ask for snapshots spread over this time.
_SNAPSHOT_JITTER_S = 0.05
_MAX_EARLY_EVENTS = 1000
#: The tracker publishes a tick so often.
_TICK_S = 1.0
#: Up to so many peers a heartbeat goes when the tick comes, so that at rest a node and its tracker
#: wake up for both at once. More of them together would keep a tracker from others for too long.
_TOGETHER = 30
#: And so much later where no tick comes, of an interval.
_LATE = 0.1
#: The next tick is due so long after the last,
_DUE_S = 0.9
#: and a stream of events leads nowhere where the tracker answers then, and again so much later, and
#: no tick came;
_STILL_S = 0.5
#: or where the connection for requests broke and nothing has come for so long.
_SILENT_S = 1.5
#: As many as a snapshot has.
MAX_PEERS = 10_000


@dataclass(frozen=True, slots=True)
class Send:
    request_id: int
    message: Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request of the shell's ended: with a reply, or an error."""

    request_id: int
    reply: Message | None
    error: ZchunkError | None


@dataclass(frozen=True, slots=True)
class AskHello:
    """The tracker must be told of us (again): answer with `Session.register`."""


@dataclass(frozen=True, slots=True)
class Registered:
    welcome: Welcome


@dataclass(frozen=True, slots=True)
class RegistrationRefused:
    error: ZchunkError


@dataclass(frozen=True, slots=True)
class ShutOut:
    """The tracker does not let us in, and will not without someone's doing: the end."""

    error: ZchunkError


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """`record.status` tells what it is now; `before` is None for a new peer."""

    record: PeerRecord
    before: PeerRecord | None


@dataclass(frozen=True, slots=True)
class EventSeen:
    """An event in order, each once; ticks are left out."""

    event: Event


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The view of the cluster is complete as of a snapshot (first, or after a gap).
    `events_at` is where the tracker publishes now."""

    epoch: str
    seq: int
    events_at: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StreamSilent:
    """No tick comes, though the tracker is there: subscribe by another connection."""


@dataclass(frozen=True, slots=True)
class TrackerSeen:
    """Whether the tracker answers; sent when that changes."""

    reachable: bool


Action = (
    Send
    | Outcome
    | AskHello
    | Registered
    | RegistrationRefused
    | ShutOut
    | PeerChanged
    | EventSeen
    | CaughtUp
    | StreamSilent
    | TrackerSeen
)


@dataclass(slots=True)
class _Outstanding:
    message: Request
    deadline: float
    resend_at: float
    internal: bool
    #: what the tracker said of it last, if it was too busy
    busy: Busy | None = None


class Session:
    def __init__(self, *, storing: bool, heartbeat_s: float, lease_s: float, rng: Random, where: str) -> None:
        """`where` names the tracker in errors; `storing` sessions register as nodes."""
        self.peers: dict[str, PeerRecord] = {}
        self._storing = storing
        self._heartbeat_s = heartbeat_s
        self._lease_s = lease_s
        self._rng = rng
        #: names the tracker in errors
        self.where = where
        self._linked = False
        self._was_linked = False
        #: why the tracker does not talk to us, while it does not
        self._shut_out: ZchunkError | None = None
        self._reachable = False
        self._last_heard = float("-inf")
        #: when something came by the stream of events last, or it began; None while there is none
        self._stream_heard: float | None = None
        #: when the tracker answered first while a tick was due
        self._answered_without: float | None = None
        self._next_id = 1
        self._requests: dict[int, _Outstanding] = {}
        self._next_beat: float | None = None
        self._beat_at = float("-inf")
        #: `_LATE` when a tick came since the last one
        self._late = 0.0
        self._status = Heartbeat(
            incarnation=0, free=0, chunks=0, load=0.0, store_online=True, files_unknown=0, refuses=""
        )
        self._helloed = False
        #: (epoch, seq) up to which `peers` is true; None before the first snapshot
        self._position: tuple[str, int] | None = None
        self._snapshot_at: float | None = None
        self._snapshot_id: int | None = None
        self._early: list[Event] = []
        #: a heartbeat told of (epoch, seq) that the stream owes us since then
        self._owed: tuple[str, int, float] | None = None

    @property
    def caught_up(self) -> bool:
        """Whether `peers` has been complete once."""
        return self._position is not None

    @property
    def position(self) -> tuple[str, int] | None:
        """(epoch, seq) of the event up to which `peers` is true; None before the first snapshot."""
        return self._position

    @property
    def linked(self) -> bool:
        return self._linked

    # -- the shell's calls ----------------------------------------------------------

    def set_status(self, status: Heartbeat) -> None:
        """What the next heartbeats say."""
        self._status = status

    def request(self, message: Request, timeout_s: float, now: float) -> tuple[int, list[Action]]:
        """Ask the tracker; exactly one `Outcome` with the returned id follows."""
        if self._shut_out is not None:
            self._next_id += 1
            return self._next_id - 1, [Outcome(self._next_id - 1, None, self._shut_out)]
        return self._request(message, timeout_s, now, internal=False)

    def register(self, hello: Hello, now: float) -> list[Action]:
        _, actions = self._request(hello, 2 * self._lease_s, now, internal=True)
        return actions

    def link_up(self, now: float) -> list[Action]:
        self._linked = self._was_linked = True
        self._shut_out = None
        self._next_beat = now + self._heartbeat_s
        self._helloed = False
        actions: list[Action] = [AskHello()] if self._storing else []
        for request_id, pending in self._requests.items():
            if not isinstance(pending.message, Hello):
                pending.resend_at = now + RESEND_S
                actions.append(Send(request_id, pending.message))
        if self._snapshot_id is None:
            actions += self._ask_snapshot(now)
        return actions

    def link_down(self, now: float) -> list[Action]:
        self._linked = False
        self._next_beat = None
        self._drop_requests(Hello)
        heard = self._stream_heard
        silent = heard is not None and now - heard >= _SILENT_S
        return [*self._seen(False), *(self._leave_stream() if silent else [])]

    def link_failed(self, error: ZchunkError, sure: bool, final: bool, now: float) -> list[Action]:
        """No connection can be had. `final`: nobody goes on trying. `sure`: waiting does not
        mend it; else it may be a line that is broken for a while, which only matters to who
        never had a connection and asks for something now. What was asked is answered with
        the error."""
        if not sure and (self._was_linked or self._storing):
            return []
        self._shut_out = error
        actions = self.link_down(now)
        requests, self._requests = self._requests, {}
        self._snapshot_id = None
        actions += [Outcome(r, None, error) for r, pending in requests.items() if not pending.internal]
        return [*actions, ShutOut(error)] if final or not self._was_linked else actions

    def reply(self, request_id: int, message: Message, now: float) -> list[Action]:
        """An answer from the tracker; a late or doubled one changes nothing."""
        self._last_heard = now
        actions = self._seen(True) + self._look_at_stream(now)
        pending = self._requests.pop(request_id, None)
        if pending is None:
            return actions
        error = raised(message) if isinstance(message, ErrorReply) else None
        if not pending.internal and isinstance(error, Busy):
            pending.busy, pending.resend_at = error, now + BUSY_S
            self._requests[request_id] = pending  # it ends with that only where it stays so
            return actions
        if not pending.internal:
            return [*actions, Outcome(request_id, None if error else message, error)]
        return actions + self._internal_reply(pending.message, message, error, now)

    def stream_up(self, now: float) -> None:
        """The connection by which events come stands."""
        self._stream_heard, self._answered_without = now, None

    def stream_down(self) -> None:
        self._stream_heard = None

    def event(self, event: Event, now: float) -> list[Action]:
        """One publication, perhaps doubled, late, or after a hole."""
        if self._stream_heard is not None:
            self.stream_up(now)
        if event.topic == "tick":
            self._beat_together(now)
        if self._snapshot_id is not None or self._position is None:
            self._keep_early(event)
            return [] if self._snapshot_id is not None else self._ask_snapshot_if_linked(now)
        return self._in_order(event, now)

    def on_time(self, now: float) -> list[Action]:
        actions = self._expire(now) + self._resend(now)
        if self._next_beat is not None and self._next_beat <= now:
            self._next_beat, self._beat_at = now + (1 + self._late) * self._heartbeat_s, now
            self._late = 0.0
            actions += self._heartbeat(now)
        if self._owed is not None and self._owed[2] + _EVENT_GRACE_S <= now:
            actions += self._check_owed(now)
        if self._snapshot_at is not None and self._snapshot_at <= now:
            actions += self._ask_snapshot(now)
        if self._reachable and now - self._last_heard > self._lease_s:
            actions += self._seen(False)
        return actions

    def deadline(self) -> float | None:
        times: list[float | None] = [self._next_beat, self._snapshot_at]
        times += [pending.deadline for pending in self._requests.values()]
        if self._linked:
            times += [pending.resend_at for pending in self._requests.values()]
        if self._owed is not None:
            times.append(self._owed[2] + _EVENT_GRACE_S)
        return min((t for t in times if t is not None), default=None)

    # -- requests -------------------------------------------------------------------

    def _request(
        self, message: Request, timeout_s: float, now: float, internal: bool
    ) -> tuple[int, list[Action]]:
        request_id = self._next_id
        self._next_id += 1
        self._requests[request_id] = _Outstanding(message, now + timeout_s, now + RESEND_S, internal)
        return request_id, [Send(request_id, message)] if self._linked else []

    def _expire(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for request_id, pending in list(self._requests.items()):
            if pending.deadline > now:
                continue
            del self._requests[request_id]
            error = TrackerUnreachable(f"the tracker at {self.where} does not answer; is it running?")
            if not pending.internal:
                actions.append(Outcome(request_id, None, pending.busy or error))
            else:
                actions += self._internal_reply(pending.message, None, error, now)
        return actions

    def _resend(self, now: float) -> list[Action]:
        if not self._linked:
            return []
        actions: list[Action] = []
        for request_id, pending in self._requests.items():
            if pending.resend_at <= now:
                pending.resend_at = now + RESEND_S
                actions.append(Send(request_id, pending.message))
        return actions

    def _drop_requests(self, kind: type[Request]) -> None:
        for request_id, pending in list(self._requests.items()):
            if pending.internal and isinstance(pending.message, kind):
                del self._requests[request_id]

    def _internal_reply(
        self, asked: Request, reply: Message | None, error: ZchunkError | None, now: float
    ) -> list[Action]:
        if isinstance(asked, Hello):
            return self._hello_answered(reply, error, now)
        if isinstance(asked, GetSnapshot):
            self._snapshot_id = None
            if isinstance(reply, Snapshot):
                return self._apply_snapshot(reply, now)
            self._snapshot_at = now + self._heartbeat_s
            return []
        if isinstance(error, HelloFirst) and self._storing:
            self._helloed = False
            return self._ask_hello()
        return self._beat_answered(reply, now) if isinstance(reply, Beat) else []

    def _ask_hello(self) -> list[Action]:
        hello_under_way = any(isinstance(r.message, Hello) for r in self._requests.values())
        return [] if hello_under_way else [AskHello()]

    def _hello_answered(self, reply: Message | None, error: ZchunkError | None, now: float) -> list[Action]:
        if isinstance(reply, Welcome):
            self._helloed = True
            self._heartbeat_s = reply.heartbeat_interval_s
            self._lease_s = reply.lease_s
            return [Registered(reply)]
        if isinstance(error, (NotAllowed, NameTaken, StaleIncarnation)):
            return [RegistrationRefused(error)]
        self._helloed = False  # whatever an earlier hello brought: the next heartbeat's turn asks again
        return []

    def _seen(self, reachable: bool) -> list[Action]:
        if reachable == self._reachable:
            return []
        self._reachable = reachable
        return [TrackerSeen(reachable)]

    # -- heartbeats -----------------------------------------------------------------

    def _beat_together(self, now: float) -> None:
        """A tick came: this turn's heartbeat, or, where one went a moment ago, the next tick's."""
        if self._next_beat is None or self._heartbeat_s != _TICK_S or len(self.peers) > _TOGETHER:
            return
        self._late = _LATE
        if now - self._beat_at < _TICK_S / 2:
            self._next_beat = now + (1 + _LATE) * _TICK_S
        else:
            self._next_beat = now

    def _heartbeat(self, now: float) -> list[Action]:
        self._drop_requests(Heartbeat)  # a newer one says more than an unanswered older one
        if self._storing and not self._helloed:
            return self._ask_hello()
        _, actions = self._request(self._status, self._lease_s, now, internal=True)
        return actions

    def _beat_answered(self, beat: Beat, now: float) -> list[Action]:
        if self._position == (beat.epoch, beat.seq):
            self._owed = None
        elif self._owed is None:
            self._owed = (beat.epoch, beat.seq, now)
        return []

    def _check_owed(self, now: float) -> list[Action]:
        assert self._owed is not None
        epoch, seq, _ = self._owed
        self._owed = None
        if self._position is not None and self._position[0] == epoch and self._position[1] >= seq:
            return []
        return self._ask_snapshot_if_linked(now)

    # -- the event stream -----------------------------------------------------------

    def _look_at_stream(self, now: float) -> list[Action]:
        """The tracker answered. Once is not enough: one that was busy, or stopped, answers what has
        come meanwhile, then publishes the tick."""
        if self._stream_heard is None or now - self._stream_heard < _DUE_S:
            return []
        if self._answered_without is None:
            self._answered_without = now
        return self._leave_stream() if now - self._answered_without >= _STILL_S else []

    def _leave_stream(self) -> list[Action]:
        self._stream_heard = None
        return [StreamSilent()]

    def _in_order(self, event: Event, now: float) -> list[Action]:
        assert self._position is not None
        epoch, seq = self._position
        expected = seq if event.topic == "tick" else seq + 1
        if event.epoch == epoch and event.seq < expected:
            return []
        if event.epoch != epoch or event.seq != expected:
            self._keep_early(event)
            if self._snapshot_at is None:
                self._snapshot_at = now + self._rng.uniform(0, _SNAPSHOT_JITTER_S)
            return []
        if event.topic == "tick":
            return []
        self._position = (epoch, event.seq)
        return [*self._apply(event), EventSeen(event)]

    def _keep_early(self, event: Event) -> None:
        if event.topic != "tick" and len(self._early) < _MAX_EARLY_EVENTS:
            self._early.append(event)

    def _apply(self, event: Event) -> list[Action]:
        if not event.topic.startswith("peer."):
            return []
        record = record_in(event.fields.get("peer"), PeerRecord)
        return [] if record is None else self._put(record)

    def _put(self, record: PeerRecord) -> list[Action]:
        before = self.peers.get(record.peer_id)
        if before is None and len(self.peers) >= MAX_PEERS:
            return []
        self.peers[record.peer_id] = record
        return [] if before == record else [PeerChanged(record, before)]

    def _believed(self, record: PeerRecord) -> PeerRecord:
        """Of a peer that a tracker, just started, has not heard of yet: who was up counts as
        up, so that no transfer stops for the tracker. An event will tell."""
        before = self.peers.get(record.peer_id)
        if before is None or before.status != "up" or before.incarnation != record.incarnation:
            return record
        return replace(record, status="up")

    def _ask_snapshot_if_linked(self, now: float) -> list[Action]:
        return self._ask_snapshot(now) if self._linked and self._snapshot_id is None else []

    def _ask_snapshot(self, now: float) -> list[Action]:
        self._snapshot_at = None
        if self._snapshot_id is not None:
            return []
        self._snapshot_id, actions = self._request(GetSnapshot(), self._lease_s, now, internal=True)
        return actions

    def _apply_snapshot(self, snapshot: Snapshot, now: float) -> list[Action]:
        actions: list[Action] = []
        known = {record.peer_id for record in snapshot.peers}
        for record in snapshot.peers:
            actions += self._put(self._believed(record) if record.peer_id in snapshot.unsure else record)
        for peer_id in sorted(set(self.peers) - known):
            gone = self.peers.pop(peer_id)
            if gone.status == "up":
                actions.append(PeerChanged(replace(gone, status="down"), gone))
        self._position = (snapshot.epoch, snapshot.seq)
        actions.append(CaughtUp(snapshot.epoch, snapshot.seq, snapshot.events))
        early, self._early = self._early, []
        for event in _newer(early, snapshot):
            actions += self._in_order(event, now)
        return actions


def _newer(early: Sequence[Event], snapshot: Snapshot) -> list[Event]:
    newer = [e for e in early if e.epoch == snapshot.epoch and e.seq > snapshot.seq]
    return sorted(newer, key=lambda event: event.seq)
