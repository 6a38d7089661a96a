"""What a hostile peer does, one function per attack; each goes on until its time is over.

    python -m tests.hostile.attacks NAME HOST PORT SECONDS [KEYS]

`KEYS`: a JSON file with a member's `public`, `secret` and the `server` key (hex), where the
attack is a member's under CURVE, and `chunks` that the victim holds, where the attack asks for
them. It prints a line of JSON: what it did, counted.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import zmq

from tests.hostile import zmtp
from tests.hostile.zmtp import At
from tests.integration.raw import Keys, Line
from zchunk.content import hashing
from zchunk.protocol import wire
from zchunk.protocol.messages import Locate

MIB = 1024 * 1024
CONNECTIONS = 5000
PARTS = 1_000_000
#: A request's frame may have 16 MiB.
_LARGE = 16 * MIB - 64
#: Connections opened a second, of those that are opened again and again.
_RATE = 200.0


class Context:
    """How long, with which keys, and what was done."""

    def __init__(self, at: At, seconds: float, keys: Path | None) -> None:
        self.at = at
        self.end = time.monotonic() + seconds
        self.done: Counter[str] = Counter()
        told = json.loads(keys.read_text()) if keys is not None else None
        self.keys = Keys(bytes.fromhex(told["public"]), bytes.fromhex(told["secret"])) if told else None
        self.server = bytes.fromhex(told["server"]) if told else None
        #: SHA-256 -> size
        self.chunks: dict[str, int] = told.get("chunks", {}) if told else {}
        self._count = keys.with_suffix(".count") if keys is not None else None

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.end

    def each(self, act: Callable[[], None]) -> None:
        """So many times a second; a connection that is ended or refused is counted."""
        due = time.monotonic()
        while self.goes_on:
            try:
                act()
                self.done["acts"] += 1
            except OSError:
                self.done["ended"] += 1
            due = max(due + 1 / _RATE, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))

    def moved(self, count: int) -> None:
        """Bytes so far, for who watches meanwhile: the old count or the new one."""
        if self._count is not None:
            new = self._count.with_suffix(".new")
            new.write_text(str(count))
            new.replace(self._count)

    def line(self) -> Line:
        # Who is cut off is back at once.
        return Line(zmq.DEALER, f"{self.at[0]}:{self.at[1]}", self.keys, self.server, reconnect_ms=1)


def garbage(to: Context) -> None:
    def act() -> None:
        with zmtp.connect(to.at) as line:
            line.sendall(os.urandom(4096))

    to.each(act)


def broken_greetings(to: Context) -> None:
    def act() -> None:
        with zmtp.connect(to.at) as line:
            line.sendall(zmtp.greeting(b"CURVE") + zmtp.frame(b"\x05HELLO" + os.urandom(194), command=True))

    to.each(act)


def huge_frame(to: Context) -> None:
    def act() -> None:
        with zmtp.connect(to.at) as line:
            line.sendall(zmtp.greeting(b"NULL") + zmtp.ready() + zmtp.header(2**63 - 1) + bytes(4096))

    to.each(act)


def connections(to: Context) -> None:
    """5,000 that stand: half of them silent, half in the midst of a greeting. Who is ended
    comes again."""
    standing: dict[socket.socket, None] = {}
    selector = selectors.DefaultSelector()
    due = time.monotonic()
    while to.goes_on:
        for key, _ in selector.select(0):
            assert isinstance(key.fileobj, socket.socket)
            if _has_ended(key.fileobj):
                selector.unregister(key.fileobj)
                key.fileobj.close()
                del standing[key.fileobj]
                to.done["ended"] += 1
        if len(standing) < CONNECTIONS:
            with suppress(OSError):
                line = zmtp.connect(to.at)
                if len(standing) % 2:
                    line.sendall(zmtp.greeting(b"CURVE")[:20])
                line.setblocking(False)
                standing[line] = None
                selector.register(line, selectors.EVENT_READ)
                to.done["opened"] += 1
        to.done["most"] = max(to.done["most"], len(standing))
        # 5,000 within five seconds, then as many as are ended, within bounds.
        due = max(due + (1 / 1000 if to.done["opened"] < CONNECTIONS else 1 / _RATE), time.monotonic() - 0.1)
        time.sleep(max(0.0, due - time.monotonic()))
    for line in standing:
        line.close()


def _has_ended(line: socket.socket) -> bool:
    try:
        return not line.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        return True


def parts(to: Context) -> None:
    """A message of a million empty parts, over and over."""
    piece = zmtp.frame(b"", more=True) * 1000

    def act() -> None:
        with zmtp.plain(to.at) as line:
            for _ in range(PARTS // 1000):
                line.sendall(piece)
            line.sendall(zmtp.frame(b""))

    to.each(act)


def member_parts(to: Context) -> None:
    """The same by a member, whose every part is encrypted."""
    pieces = [b""] * PARTS
    with to.line() as line:
        while to.goes_on:
            with suppress(zmq.Again):
                line.raw.send_multipart(pieces, zmq.DONTWAIT)
                to.done["acts"] += 1
            line.raw.poll(1000, zmq.POLLOUT)
            line.arrival(0.5)
            line.watch()


def endless(to: Context) -> None:
    """Parts of 1 MiB, without a last one: by newcomers, and by who was answered before."""
    piece = zmtp.frame(bytes(MIB), more=True)
    (question,) = wire.encode(Locate(name_or_id="0" * 64, unique=False), 1)

    def act() -> None:
        with zmtp.plain(to.at) as line:
            if (to.done["acts"] + to.done["ended"]) % 2:
                line.sendall(zmtp.frame(bytes(question)))
                assert line.recv(1)
                to.done["answers"] += 1
            while to.goes_on:
                line.sendall(piece)
                to.done["mib"] += 1

    to.each(act)


def bursts(to: Context) -> None:
    """Such parts with pauses between them, so that the victim is nearly at rest; by one who was
    answered before."""
    piece = zmtp.frame(bytes(MIB), more=True)
    (question,) = wire.encode(Locate(name_or_id="0" * 64, unique=False), 1)

    def act() -> None:
        with zmtp.plain(to.at) as line:
            line.sendall(zmtp.frame(bytes(question)))
            assert line.recv(1)
            time.sleep(0.5)
            while to.goes_on:
                line.sendall(piece)
                to.done["mib"] += 1
                time.sleep(0.03)

    to.each(act)


def trickle(to: Context) -> None:
    """A hundred connections, each with a frame of 60 MiB of which one MiB came."""
    lines: list[socket.socket] = []
    for _ in range(100):
        with suppress(OSError):
            line = zmtp.plain(to.at)
            lines.append(line)
            line.sendall(zmtp.header(60 * MIB) + bytes(MIB))
            to.done["acts"] += 1
    while to.goes_on:
        time.sleep(0.1)
    to.done["ended"] = sum(_is_over(line) for line in lines)


def _is_over(line: socket.socket) -> bool:
    line.setblocking(False)
    over = _has_ended(line)
    line.close()
    return over


def flood(to: Context) -> None:
    """Valid requests of a member as fast as they are taken, answers unread."""
    with to.line() as line:
        line.raw.setsockopt(zmq.RCVHWM, 1)
        while to.goes_on:
            try:
                line.send("locate", name_or_id=os.urandom(32).hex(), unique=False)
                to.done["acts"] += 1
            except zmq.Again:
                line.raw.poll(20, zmq.POLLOUT)


def claims(to: Context) -> None:
    """Sizes and counts that nobody has."""
    with to.line() as line:
        while to.goes_on:
            for size in (2**62, 2**40, 64 * MIB):
                with suppress(zmq.Again):
                    sha256 = os.urandom(32)
                    line.send("offer", upload_id="0" * 32, sha256=sha256, blake3=sha256, size=size)
                    line.send("plan", size=size, replicas=1000, chunk_size=1)
                    to.done["acts"] += 2
            while line.arrival(0.01) is not None:
                to.done["answers"] += 1
            line.watch()  # 500 events that nobody reads would end the attack
        to.done["ended"] = line.told.count(zmq.EVENT_DISCONNECTED)


def large(to: Context) -> None:
    """Whole requests of the largest size, one after the other."""
    with to.line() as line:
        while to.goes_on:
            with suppress(zmq.Again):
                line.send("put_manifest", bytes(_LARGE), upload_id="0" * 32, file_id="0" * 64)
                to.done["acts"] += 1
            to.done["answers"] += line.arrival(1.0) is not None
            line.watch()


def unfinished(to: Context) -> None:
    """Such requests that stop short of their end, on one connection after the other."""
    open_ones: deque[ExitStack] = deque()
    while to.goes_on:
        short = _Short(to.at, _LARGE - 256 * 1024)
        open_ones.append(stack := ExitStack())
        stack.callback(short.close)
        at = f"127.0.0.1:{short.port}"
        line = stack.enter_context(Line(zmq.DEALER, at, to.keys, to.server, reconnect_ms=-1))
        line.send("no_such_request")
        to.done["answers"] += line.arrival(1.0) is not None
        line.send("put_manifest", bytes(_LARGE), upload_id="0" * 32, file_id="0" * 64)
        to.done["acts"] += short.stopped.wait(1.0)
        if len(open_ones) > 8:
            open_ones.popleft().close()
    for stack in open_ones:
        stack.close()


class _Short:
    """On the way of one connection: passes on so many bytes of it, and no more."""

    def __init__(self, at: At, limit: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.stopped = threading.Event()
        self._far = zmtp.connect(at, 20.0)
        self._near: socket.socket | None = None
        self._limit = limit
        threading.Thread(target=self._out, daemon=True).start()

    def _out(self) -> None:
        with suppress(OSError):
            self._near, _ = self._listener.accept()
            threading.Thread(target=self._back, daemon=True).start()
            passed = 0
            while passed < self._limit and (data := self._near.recv(65536)):
                self._far.sendall(data)
                passed += len(data)
            self.stopped.set()

    def _back(self) -> None:
        with suppress(OSError):
            while data := self._far.recv(65536):
                assert self._near is not None
                self._near.sendall(data)

    def close(self) -> None:
        for line in (self._listener, self._far, self._near):
            if line is not None:
                line.close()


def hold_downloads(to: Context) -> None:
    """Asks for more than a node sends at a time and takes nothing, but a word each second."""
    with to.line() as line:
        line.outcome()
        line.ask("acknowledge", received=0)
        line.raw.setsockopt(zmq.RCVHWM, 1)
        for sha256, size in list(to.chunks.items())[:16]:
            line.send("get_block", sha256=bytes.fromhex(sha256), offset=0, length=size, received=0)
            to.done["acts"] += 1
        while to.goes_on:
            with suppress(zmq.Again):
                line.send("acknowledge", received=0)
            line.watch()
            time.sleep(1.0)  # the attack's rate


def hold_uploads(to: Context) -> None:
    """Offers more than a node takes in at a time and sends nothing, but offers again."""
    with to.line() as line:
        offers = [os.urandom(32) for _ in range(16)]
        while to.goes_on:
            for sha256 in offers:
                line.send("offer", upload_id="0" * 32, sha256=sha256, blake3=sha256, size=16 * MIB)
                to.done["acts"] += 1
            while line.arrival(0) is not None:
                to.done["answers"] += 1
            line.watch()
            time.sleep(1.0)  # the attack's rate


def all_downloads(to: Context, lines: int = 8) -> None:
    """Asks for all it can, by many connections, and takes it as fast as it comes."""
    wanted = itertools.cycle(to.chunks.items())
    with ExitStack() as stack:
        takers = [_Taker(stack.enter_context(to.line())) for _ in range(lines)]
        while to.goes_on:
            for taker in takers:
                taker.ask(wanted)
            _wait([taker.line for taker in takers])
            to.done["acts"] += sum(taker.take() for taker in takers)
            to.moved(sum(taker.received for taker in takers))


@dataclass
class _Taker:
    line: Line
    received: int = 0
    #: request -> bytes that its answer brings
    asked: dict[int, int] = field(default_factory=dict)

    def ask(self, wanted: Iterator[tuple[str, int]]) -> None:
        while len(self.asked) < 64:
            sha256, size = next(wanted)
            what: dict[str, Any] = {"sha256": bytes.fromhex(sha256), "offset": 0, "length": size}
            self.asked[self.line.send("get_block", **what, received=self.received)] = size

    def take(self) -> int:
        self.line.watch()
        count = 0
        while (frames := self.line.arrival(0)) is not None:
            self.received += self.asked.pop(msgpack.unpackb(frames[0])["id"], 0)
            count += 1
        return count


def one_downloads(to: Context) -> None:
    """Likewise by one connection, as others do."""
    all_downloads(to, 1)


def all_uploads(to: Context, lines: int = 8) -> None:
    """Offers all it can, by many connections, and sends what is admitted at once."""
    with ExitStack() as stack:
        senders = [_Sender(stack.enter_context(to.line())) for _ in range(lines)]
        while to.goes_on:
            for sender in senders:
                sender.offer()
            _wait([sender.line for sender in senders])
            to.done["acts"] += sum(sender.send() for sender in senders)
            to.moved(4 * MIB * to.done["acts"])


def one_uploads(to: Context) -> None:
    """Likewise by one connection, as others do."""
    all_uploads(to, 1)


@dataclass
class _Sender:
    line: Line
    upload: str = field(default_factory=lambda: os.urandom(16).hex())
    content: bytearray = field(default_factory=lambda: bytearray(os.urandom(4 * MIB)))
    offered: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def offer(self) -> None:
        while len(self.offered) < 16:
            self.content[:16] = os.urandom(16)
            data = bytes(self.content)
            sha256, blake3 = hashing.sha256(data), hashing.blake3(data)
            what: dict[str, Any] = {
                "upload_id": self.upload,
                "sha256": sha256,
                "blake3": blake3,
                "size": len(data),
            }
            self.offered[self.line.send("offer", **what)] = (sha256, data)

    def send(self) -> int:
        """How many chunks were stored."""
        self.line.watch()
        count = 0
        while (frames := self.line.arrival(0)) is not None:
            told = msgpack.unpackb(frames[0])
            count += told["t"] == "block_taken"
            if told["t"] == "offered":
                sha256, data = self.offered.pop(told["id"])
                self.line.send("put_block", data, upload_id=self.upload, sha256=sha256, offset=0)
        return count


def _wait(lines: list[Line]) -> None:
    """For something to come by any of them."""
    poller = zmq.Poller()
    for line in lines:
        poller.register(line.raw, zmq.POLLIN)
    poller.poll(500)


def wrong_content(to: Context) -> None:
    """Chunks that are offered and admitted, and are other bytes."""
    with to.line() as line:
        while to.goes_on:
            sha256, upload = os.urandom(32), os.urandom(16).hex()
            line.send("offer", upload_id=upload, sha256=sha256, blake3=sha256, size=MIB)
            line.arrival(1.0)
            line.send("put_block", bytes(MIB), upload_id=upload, sha256=sha256, offset=0)
            frames = line.arrival(2.0)
            to.done["acts"] += 1
            to.done["refused"] += frames is not None and b"error" in bytes(frames[0])


def subscriptions(to: Context) -> None:
    """Topics at random, long and short, on many connections."""
    at = f"{to.at[0]}:{to.at[1]}"
    while to.goes_on:
        with ExitStack() as stack:
            lines = [stack.enter_context(Line(zmq.SUB, at, to.keys, to.server)) for _ in range(8)]
            for line in lines:
                line.outcome()  # once it is in, its first message is the usual subscription
            for _ in range(60):
                for line in lines:
                    line.raw.subscribe(os.urandom(60_000 if to.done["acts"] % 2 else 400))
                    to.done["acts"] += 1
                time.sleep(0.002)  # the attack's rate
            to.done["ended"] += sum(line.ended for line in lines)


ATTACKS: dict[str, Callable[[Context], None]] = {
    act.__name__: act
    for act in (
        garbage, broken_greetings, huge_frame, connections, parts, member_parts, endless, bursts, trickle,
        flood, claims, wrong_content, large, unfinished, subscriptions, hold_downloads, hold_uploads,
        all_downloads, all_uploads, one_downloads, one_uploads,
    )
}  # fmt: skip


def main(name: str, host: str, port: str, seconds: str, keys: str | None = None) -> None:
    to = Context((host, int(port)), float(seconds), Path(keys) if keys else None)
    ATTACKS[name](to)
    print(json.dumps(dict(to.done)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
