"""A client that asks the tracker one thing at a time, and how long each answer took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeVar

from servers import Failed

from benchmarks.crowd import OPTIONS, At, await_links
from zchunk.content.manifest import Manifest
from zchunk.protocol import columns, wire
from zchunk.protocol.messages import (
    Commit,
    Committed,
    Files,
    ListFiles,
    Locate,
    Located,
    Message,
    Ok,
    Plan,
    Planned,
    Request,
    Stored,
)
from zchunk.transport.base import Delivery, Received
from zchunk.transport.keys import KeyPair
from zchunk.transport.zeromq import ZmqTransport

_PATIENCE_S = 60.0
_UPLOAD = "{:032x}"
#: digests of one `stored`
STORED_AT_ONCE = 1_000

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Published:
    """Seconds of what the registration of a file takes: the plan, the reports of the nodes (each
    after the answer to the one before), the commit."""

    plan: float
    stored: float
    commit: float


class Asker:
    """Answers are timed until they have arrived; what the asker makes of them is its own time."""

    def __init__(self, at: At, key: KeyPair) -> None:
        self._transport = ZmqTransport()
        self._poller = self._transport.poller()
        self._socket = self._transport.dealer([at.requests], OPTIONS, at.curve(key))
        self._claim = at.claim(key)
        await_links([self._socket])
        self._poller.register(self._socket)
        self._request_id = 0

    def ask(self, message: Request, reply: type[M]) -> tuple[M, float]:
        self._request_id += 1
        frames = wire.encode(message, self._request_id, self._claim)
        began = time.monotonic()
        if self._socket.send(frames) is not Delivery.SENT:
            raise Failed("the tracker takes no request")
        found, arrived = self._answer(self._request_id, began + _PATIENCE_S)
        if not isinstance(found, reply):
            raise Failed(f"{message.TYPE} was answered by {found}")
        return found, arrived - began

    def _answer(self, request_id: int, end: float) -> tuple[Message, float]:
        while (now := time.monotonic()) < end:
            for socket in self._poller.wait(end - now):
                received, arrived = socket.receive(), time.monotonic()
                if isinstance(received, Received):
                    envelope = wire.decode(received.frames)
                    if envelope.request_id == request_id:
                        return envelope.message, arrived
        raise Failed("the tracker does not answer")

    def close(self) -> None:
        self._poller.unregister(self._socket)
        self._socket.close()
        self._poller.close()
        self._transport.close()


def locate(asker: Asker, name: str, chunks: int) -> float:
    found, seconds = asker.ask(Locate(name_or_id=name, unique=False), Located)
    if len(columns.unpack(2, found.holder_counts)) != chunks or not found.peers:
        raise Failed(f"{name} was not located")
    return seconds


def listing(asker: Asker) -> tuple[int, list[float]]:
    """How many files there are, and the seconds of each page."""
    page, count, times = "", 0, []
    while True:
        found, seconds = asker.ask(ListFiles(page=page), Files)
        count += len(found.files)
        times.append(seconds)
        page = found.next_page
        if not page:
            return count, times


def publish(client: Asker, nodes: list[Asker], manifest: Manifest, number: int) -> Published:
    upload_id = _UPLOAD.format(number)
    plan = Plan(
        upload_id=upload_id,
        size=manifest.size,
        chunk_size=manifest.chunk_size,
        distribute=True,
        replicas=1,
        min_peers=2,
        strategy="round_robin",
        own_peer=None,
        avoid=(),
        held_peers=(),
        only=b"",
        held=b"",
    )
    _, planned = client.ask(plan, Planned)
    stored = sum(
        report(node, number, hashes)
        for node, hashes in _reports(nodes, [row.sha256 for row in manifest.chunks])
    )
    commit = Commit(
        upload_id=upload_id,
        replicas=1,
        min_peers=2,
        distribute=True,
        file_id=manifest.file_id,
        manifest=manifest.canonical,
    )
    _, committed = client.ask(commit, Committed)
    return Published(planned, stored, committed)


def report(node: Asker, number: int, hashes: bytes) -> float:
    """`node` has stored these chunks for that upload."""
    return node.ask(Stored(upload_id=_UPLOAD.format(number), hashes=hashes), Ok)[1]


def _reports(nodes: list[Asker], hashes: list[bytes]) -> list[tuple[Asker, bytes]]:
    found = []
    for at, node in enumerate(nodes):
        mine = hashes[at :: len(nodes)]
        for first in range(0, len(mine), STORED_AT_ONCE):
            found.append((node, b"".join(mine[first : first + STORED_AT_ONCE])))
    return found
