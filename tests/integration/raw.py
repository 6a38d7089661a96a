"""ZeroMQ as a stranger would write it: bare pyzmq and msgpack, nothing of zchunk's own
transport or messages, so that a test of who is let in does not trust what it tests."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack
import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from tests.waiting import wait_for

#: What a key that is not let in must be told in (SPEC S2).
REFUSED_WITHIN_S = 2.0
_PATIENCE_S = 20.0
_ZAP_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
_FAILED = (
    _ZAP_REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
)


@dataclass(frozen=True)
class Keys:
    public: bytes
    secret: bytes

    @property
    def peer_id(self) -> str:
        return hashlib.sha256(self.public).digest()[:16].hex()


def new_keys() -> Keys:
    public, secret = zmq.curve_keypair()
    return Keys(z85.decode(public), z85.decode(secret))


def keys_of(role_folder: Path) -> Keys:
    """The key pair of HOME/node or HOME/client."""
    data = json.loads((role_folder / "key.json").read_text())
    return Keys(bytes.fromhex(data["public"]), bytes.fromhex(data["secret"]))


def keys_in(token: str) -> Keys:
    body = token.removeprefix("zchunk1-")
    fields = msgpack.unpackb(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return Keys(fields["p"], fields["s"])


class Line:
    """A DEALER or SUB, and what its monitor tells. One thread at a time uses it."""

    def __init__(
        self,
        kind: int,
        endpoint: str,
        keys: Keys | None,
        server_key: bytes | None,
        *,
        routing_id: bytes | None = None,
        subscribe: bool = True,
        reconnect_ms: int = 100,
    ) -> None:
        """Without `keys` it speaks plain (the NULL mechanism)."""
        self._context = zmq.Context()
        self.raw = self._context.socket(kind)
        self.raw.linger = 0
        self.raw.reconnect_ivl = reconnect_ms
        if keys is not None and server_key is not None:
            self.raw.curve_publickey, self.raw.curve_secretkey = keys.public, keys.secret
            self.raw.curve_serverkey = server_key
        if routing_id is not None:
            self.raw.setsockopt(zmq.ROUTING_ID, routing_id)
        if kind == zmq.SUB and subscribe:
            self.subscribe()
        self._monitor = self.raw.get_monitor_socket()
        #: events of the monitor, in order
        self.told: list[int] = []
        self.opened = time.monotonic()
        self._next_id = 0
        self.raw.connect(f"tcp://{endpoint}")

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.raw.disable_monitor()
        self._monitor.close(0)
        self.raw.close(0)
        self._context.term()

    def subscribe(self) -> None:
        self.raw.setsockopt(zmq.SUBSCRIBE, b"")

    # -- the handshake ------------------------------------------------------------------

    def watch(self) -> list[int]:
        """Everything that the monitor has told so far."""
        while self._monitor.poll(0):
            self.told.append(recv_monitor_message(self._monitor)["event"])
        return self.told

    def outcome(self) -> str:
        """`in`, `refused` (by the gate), or `broken` (the handshake came to nothing), once it
        is known."""
        return str(wait_for(self._outcome, _PATIENCE_S, "the handshake ends"))

    def _outcome(self) -> str | None:
        told = self.watch()
        if zmq.EVENT_HANDSHAKE_SUCCEEDED in told:
            return "in"
        if _ZAP_REFUSED in told:
            return "refused"
        return "broken" if any(event in _FAILED for event in told) else None

    @property
    def ended(self) -> bool:
        """Whether the connection has ended, once it stood."""
        told = self.watch()
        return zmq.EVENT_HANDSHAKE_SUCCEEDED in told and zmq.EVENT_DISCONNECTED in told

    # -- messages -----------------------------------------------------------------------

    def send(self, kind: str, *payload: bytes, header: dict[str, Any] | None = None, **values: Any) -> int:
        """A request; `header` overrides what stands in its envelope."""
        self._next_id += 1
        envelope = {"v": 1, "t": kind, "id": self._next_id, "f": values, **(header or {})}
        self.raw.send_multipart([msgpack.packb(envelope), *payload], zmq.DONTWAIT)
        return self._next_id

    def shout(self, kind: str) -> None:
        """A request, if the socket takes one at all."""
        with suppress(zmq.Again):
            self.send(kind)

    def arrival(self, within_s: float) -> list[bytes] | None:
        """The next message, None where none comes."""
        if not self.raw.poll(int(within_s * 1000)):
            return None
        frames: list[bytes] = self.raw.recv_multipart()
        return frames

    def reply(self, request_id: int, within_s: float = _PATIENCE_S) -> dict[str, Any]:
        """The answer to that request; what answers nothing (request id 0) is passed over."""
        end = time.monotonic() + within_s
        while (frames := self.arrival(max(0.0, end - time.monotonic()))) is not None:
            envelope: dict[str, Any] = msgpack.unpackb(frames[0])
            if envelope["id"] == request_id:
                return envelope
        raise AssertionError(f"no answer to request {request_id} within {within_s:g} s")

    def ask(self, kind: str, *payload: bytes, **values: Any) -> dict[str, Any]:
        return self.reply(self.send(kind, *payload, **values))

    def refusal(self, kind: str, *payload: bytes, **values: Any) -> str:
        """The error's code; an assertion where the request is granted."""
        reply = self.ask(kind, *payload, **values)
        assert reply["t"] == "error", reply
        return str(reply["f"]["code"])


def silent(lines: list[Line], seconds: float) -> None:
    """Nothing comes in by any of them for so long."""
    end = time.monotonic() + seconds
    for line in lines:
        while (frames := line.arrival(max(0.0, end - time.monotonic()))) is not None:
            envelope = msgpack.unpackb(frames[-1] if len(frames) > 1 else frames[0])
            assert envelope.get("t") == "probe", frames


class Taking:
    """A line in a thread of its own that takes all it can get: each answer is followed by the
    next request (DEALER), or it just listens (SUB). Notes when something came last."""

    def __init__(self, line: Line, requests: Iterator[tuple[str, dict[str, Any]]] | None = None) -> None:
        self._line = line
        self._requests = requests
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self.count = 0
        self.last_at = 0.0
        self.last: list[bytes] = []
        self.ended_at: float | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Taking:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        self._ask()
        while not self._stop.is_set():
            frames = self._line.arrival(0.02)
            if self.ended_at is None and self._line.ended:
                self.ended_at = time.monotonic()
            if frames is not None:
                self.count += 1
                self.last_at, self.last = time.monotonic(), frames
                self._ask()

    def _ask(self) -> None:
        if self._requests is not None:
            kind, values = next(self._requests)
            self._line.send(kind, **values)
