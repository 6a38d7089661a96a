"""Simulated nodes and subscribers, in processes of their own, speaking the real protocol.

`Crowd` (nodes) and `Listeners` (subscribers) start such a process and steer it through a
pipe. Moments are monotonic seconds, which all processes of a machine share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from servers import Failed

from benchmarks.figures import quantile
from benchmarks.trackerhome import CAPACITY, Simulated
from benchmarks.trackerprocess import stay_off_the_trackers_cpu
from zchunk.protocol import wire
from zchunk.protocol.messages import Beat, Event, Heartbeat, Hello, Request, Welcome
from zchunk.transport.base import Link, Received, Socket, SocketOptions
from zchunk.transport.keys import CurveClient, KeyPair
from zchunk.transport.zeromq import ZmqTransport

OPTIONS = SocketOptions(max_frame_bytes=wire.MAX_FRAME_BYTES, receive_mark=100_000)
#: libzmq lets a context have 1,023 sockets, and each of ours has a monitor of two more.
_PER_CONTEXT = 250
_INCARNATION = 2
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class At:
    """Where the tracker listens. `key` is None in plain transport."""

    requests: str
    events: str
    key: bytes | None

    def curve(self, own: KeyPair) -> CurveClient | None:
        return None if self.key is None else CurveClient(own, self.key)

    def claim(self, own: KeyPair) -> str | None:
        return own.peer_id if self.key is None else None


class _Steered:
    """The other end of the pipe."""

    def __init__(self, run: Callable[..., None], *arguments: Any) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=run, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def _order(self, *words: Any) -> Any:
        self._pipe.send(words)
        return self._answer()

    def _answer(self) -> Any:
        if not self._pipe.poll(2 * _PATIENCE_S):
            raise Failed("a process of the load does not answer")
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise Failed("a process of the load has ended") from None
        if isinstance(answer, Failed):
            raise answer
        return answer

    def stop(self) -> None:
        self._process.terminate()
        self._process.join()


class Crowd(_Steered):
    """Nodes that are up, and send heartbeats."""

    def __init__(self, at: At, nodes: Sequence[Simulated]) -> None:
        super().__init__(_run_nodes, at, nodes)

    def rate(self, per_second: float) -> None:
        """Heartbeats of all together, evenly; infinite: each node as soon as it is answered."""
        self._order("rate", per_second)

    def report(self) -> dict[str, float]:
        """Since the last report: `sent`, `answered`, `seconds`, `median_ms`, `p99_ms`, `max_ms` from
        a heartbeat to its answer, `cpu` (share of a core that this took)."""
        found: dict[str, float] = self._order("report")
        return found

    def toggle(self, count: int) -> float:
        """One node's disk goes and comes `count` times: an event each. When the first was sent."""
        return float(self._order("toggle", count))


class Listeners(_Steered):
    """Subscribers that take every event."""

    def __init__(self, at: At, key: KeyPair, count: int) -> None:
        super().__init__(_run_subscribers, at, key, count)

    def expect(self, topic: str, count: int) -> None:
        self._order("expect", topic, count)

    def done(self) -> float:
        """When the last of them had its `count`; Failed when not in time."""
        return float(self._order("done"))


def await_links(sockets: Sequence[Socket]) -> None:
    down, end = list(sockets), time.monotonic() + _PATIENCE_S
    while down:
        if time.monotonic() > end:
            raise Failed(f"{len(down)} connections did not come about")
        down = [socket for socket in down if socket.receive() is not Link.UP]
        time.sleep(0.002)


# -- in the process of the nodes ------------------------------------------------------------


class _Nodes:
    def __init__(self, at: At, nodes: Sequence[Simulated]) -> None:
        self._nodes = nodes
        self._at = at
        self._sockets: list[Socket] = []
        for first in range(0, len(nodes), _PER_CONTEXT):
            transport = ZmqTransport()
            for node in nodes[first : first + _PER_CONTEXT]:
                self._sockets.append(transport.dealer([at.requests], OPTIONS, at.curve(node.key)))
            await_links(self._sockets[first:])
        self._sent: list[dict[int, float]] = [{} for _ in nodes]
        self._request_id = 0
        self._next_node = 0
        self._hellos()
        self.rate = 0.0
        self._due = 0.0
        self._last = time.monotonic()
        self.clear()

    def clear(self) -> None:
        self.times: list[float] = []
        self.sent = 0
        self._since, self._cpu = time.monotonic(), time.process_time()

    def report(self) -> dict[str, float]:
        seconds = time.monotonic() - self._since
        told = {"sent": self.sent, "answered": len(self.times), "seconds": seconds}
        if self.times:
            shares = {"median_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
            told |= {name: 1000 * quantile(self.times, share) for name, share in shares.items()}
        told["cpu"] = (time.process_time() - self._cpu) / seconds
        self.clear()
        return told

    def _hellos(self) -> None:
        for at, node in enumerate(self._nodes):
            self._send(
                at,
                Hello(
                    incarnation=_INCARNATION,
                    instance="0" * 16,
                    bound="0.0.0.0",
                    port=7710,
                    advertise=(f"10.0.{at // 250}.{at % 250 + 1}",),
                    interfaces=(),
                    capacity=CAPACITY,
                    free=CAPACITY,
                    chunks=node.chunks,
                    inventory_digest=node.digest,
                    refuses="",
                ),
            )
        left, end = len(self._nodes), time.monotonic() + _PATIENCE_S
        while left:
            if time.monotonic() > end:
                raise Failed(f"{left} nodes were not registered")
            for at in range(len(self._nodes)):
                for message in self._received(at):
                    if not isinstance(message, Welcome) or message.inventory_wanted:
                        raise Failed(f"a hello was answered by {message}")
                    left -= 1
            time.sleep(0.001)

    def _send(self, at: int, message: Request) -> float:
        self._request_id += 1
        frames = wire.encode(message, self._request_id, self._at.claim(self._nodes[at].key))
        now = time.monotonic()
        self._sent[at][self._request_id] = now
        self._sockets[at].send(frames)
        return now

    def beat(self, at: int, online: bool = True) -> float:
        node = self._nodes[at]
        self.sent += 1
        return self._send(
            at,
            Heartbeat(
                incarnation=_INCARNATION,
                free=CAPACITY,
                chunks=node.chunks,
                load=0.0,
                store_online=online,
                files_unknown=0,
                refuses="",
            ),
        )

    def turn(self) -> None:
        now = time.monotonic()
        self._due += min(self.rate * (now - self._last), len(self._nodes))
        self._last = now
        for _ in range(len(self._nodes)):
            if self._due < 1.0:
                break
            self._beat_next()
        self._take()
        time.sleep(0.001)

    def _beat_next(self) -> None:
        at = self._next_node
        self._next_node = (at + 1) % len(self._nodes)
        self._due -= 1.0
        if self.rate != float("inf") or not self._sent[at]:
            self.beat(at)

    def _take(self) -> None:
        for at in range(len(self._nodes)):
            if self._sent[at]:
                for message in self._received(at):
                    if not isinstance(message, Beat):
                        raise Failed(f"a heartbeat was answered by {message}")

    def _received(self, at: int) -> list[Any]:
        found = []
        while (received := self._sockets[at].receive()) is not None:
            if not isinstance(received, Received):
                raise Failed(f"the connection of node {at}: {received}")
            envelope = wire.decode(received.frames)
            if envelope.request_id:
                self.times_of(at, envelope.request_id)
                found.append(envelope.message)
        return found

    def times_of(self, at: int, request_id: int) -> None:
        sent = self._sent[at].pop(request_id)
        if hasattr(self, "times"):
            self.times.append(time.monotonic() - sent)


def _run_nodes(pipe: Connection, at: At, nodes: Sequence[Simulated]) -> None:
    stay_off_the_trackers_cpu()
    _serve(pipe, lambda: _Nodes(at, nodes), _order_nodes)


def _order_nodes(nodes: _Nodes, *words: Any) -> Any:
    if words[0] == "rate":
        nodes.rate = words[1]
        nodes.clear()
        return None
    if words[0] == "report":
        return nodes.report()
    first = nodes.beat(0, online=False)
    for count in range(1, words[1]):
        nodes.beat(0, online=count % 2 == 1)
    return first


def _serve(pipe: Connection, make: Callable[[], Any], order: Callable[..., Any]) -> None:
    """Turns until it is terminated; an order in between."""
    try:
        load = make()
        pipe.send(None)
        while True:
            load.turn()
            while pipe.poll():
                pipe.send(order(load, *pipe.recv()))
    except Failed as error:
        pipe.send(error)


# -- in the process of the subscribers --------------------------------------------------------


class _Subscribers:
    def __init__(self, at: At, key: KeyPair, count: int) -> None:
        self._sockets: list[Socket] = []
        self._transports = []
        for first in range(0, count, _PER_CONTEXT):
            transport = ZmqTransport()
            self._transports.append(transport)
            for _ in range(min(_PER_CONTEXT, count - first)):
                self._sockets.append(transport.subscriber([at.events], OPTIONS, at.curve(key)))
        await_links(self._sockets)
        self._topic, self._count = b"", 0
        self._got = [0] * count
        self._last = 0.0
        self._await_ticks()

    def _await_ticks(self) -> None:
        """Each hears the tracker: its subscription has arrived."""
        self.expect("tick", 1)
        self.done()

    def expect(self, topic: str, count: int) -> None:
        self._topic, self._count = topic.encode(), count
        self._got = [0] * len(self._sockets)

    def done(self) -> float:
        end = time.monotonic() + _PATIENCE_S
        while min(self._got) < self._count:
            if time.monotonic() > end:
                short = sum(got < self._count for got in self._got)
                raise Failed(f"{short} subscribers lack events, one has {min(self._got)} of {self._count}")
            self.turn()
        return self._last

    def turn(self) -> None:
        for at, socket in enumerate(self._sockets):
            while (received := socket.receive()) is not None:
                if not isinstance(received, Received):
                    raise Failed(f"the connection of subscriber {at}: {received}")
                if received.frames[0] == self._topic:
                    self._note(at, received)
        time.sleep(0.0005)

    def _note(self, at: int, received: Received) -> None:
        if not isinstance(wire.decode(received.frames[1:]).message, Event):
            raise Failed("a subscriber received what is no event")
        self._got[at] += 1
        if self._got[at] == self._count:
            self._last = time.monotonic()


def _run_subscribers(pipe: Connection, at: At, key: KeyPair, count: int) -> None:
    stay_off_the_trackers_cpu()
    _serve(pipe, lambda: _Subscribers(at, key, count), _order_subscribers)


def _order_subscribers(listeners: _Subscribers, *words: Any) -> Any:
    if words[0] == "expect":
        return listeners.expect(*words[1:])
    return listeners.done()
