"""Frames <-> messages, with limits on everything that comes in. Pure.

A message is a multipart: a msgpack map as header, then the payload frames:

    header = {"v": version, "t": type, "id": request id, "f": {field: value}}

In plain transport the header also has `"from"`: the sender's own claim of its peer
id. Under CURVE that key is ignored; the frame's authenticated User-Id counts.
An event has its topic as a frame before the header, for subscriptions to match.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
from msgspec import Struct, ValidationError
from msgspec.structs import asdict

from zchunk.errors import MalformedMessage, UnknownMessage, UnsupportedVersion, ZchunkError, from_wire
from zchunk.protocol import extent
from zchunk.protocol.messages import (
    BY_TYPE,
    HEADER_FIELDS,
    PAYLOAD_FIELDS,
    PROTOCOL_VERSION,
    ErrorReply,
    Message,
    Record,
    decoded,
    is_fact,
)

#: Of an answer, which may list all peers; a request has less to say.
MAX_HEADER_BYTES = 8 * 1024 * 1024
MAX_REQUEST_HEADER_BYTES = 1024 * 1024
#: Values of a header, those within others counted: 10,000 peers are some 260,000.
MAX_VALUES = 400_000
#: A smaller header cannot become much, whatever is in it.
_SMALL_HEADER = 64 * 1024
#: The largest frame of an answer: the manifest of a file with `manifest.MAX_CHUNKS`.
MAX_FRAME_BYTES = 64 * 1024 * 1024
#: And of a request, more than any block: what one sender can make others hold is bounded by it.
MAX_REQUEST_FRAME_BYTES = 16 * 1024 * 1024
MAX_FRAMES = 8
MAX_REQUEST_ID = 2**63 - 1
_PLAIN = frozenset({int, str, bytes, bool, float, type(None)})

Buffer = bytes | bytearray | memoryview


class Envelope(Struct, frozen=True):
    """A decoded message. `claim` is the sender's unproven word on who it is."""

    request_id: int
    message: Message
    claim: str | None = None


def encode(message: Message, request_id: int = 0, claim: str | None = None) -> list[Buffer]:
    """The frames of `message`; payload frames are the caller's buffers, not copies."""
    kind = type(message)
    values = {
        name: value if type(value) in _PLAIN else _plain(value)
        for name in HEADER_FIELDS[kind]
        for value in (getattr(message, name),)
    }
    header: dict[str, Any] = {"v": PROTOCOL_VERSION, "t": kind.TYPE, "id": request_id, "f": values}
    if claim is not None:
        header["from"] = claim
    frames: list[Buffer] = [msgpack.packb(header, use_bin_type=True)]
    frames += [getattr(message, name) for name in PAYLOAD_FIELDS[kind]]
    return frames


def _plain(value: Any) -> Any:
    """Nested records become maps; everything else is packed as it is."""
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Record):
        return asdict(value)
    return value


def decode(frames: Sequence[Buffer], max_header: int = MAX_HEADER_BYTES) -> Envelope:
    """Frames from a socket -> a message. Who answers requests gives `max_header` as
    MAX_REQUEST_HEADER_BYTES.

    Raises UnsupportedVersion, UnknownMessage or MalformedMessage; each has, where the
    header could be read that far, the request id in `details["request_id"]`, so that
    the sender can be answered.
    """
    header = _header(frames, max_header)
    request_id = header.get("id")
    if not (type(request_id) is int and 0 <= request_id <= MAX_REQUEST_ID):
        raise MalformedMessage("the message has no request id")
    try:
        return Envelope(request_id, _message(header, frames), _claim(header))
    except ZchunkError as error:
        error.details["request_id"] = request_id
        raise


def _header(frames: Sequence[Buffer], most: int) -> dict[str, Any]:
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise MalformedMessage(f"the message has {len(frames)} frames, not 1 to {MAX_FRAMES}")
    if len(frames[0]) > most:
        raise MalformedMessage(f"the header has {len(frames[0])} bytes, more than {most}")
    if len(frames[0]) > _SMALL_HEADER:
        extent.check(frames[0], MAX_VALUES)
    header = _unpack(frames[0])
    if not isinstance(header, dict):
        raise MalformedMessage("the header is not a map")
    return header


def _unpack(data: Buffer) -> Any:
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_str_len=MAX_HEADER_BYTES,
            max_bin_len=MAX_HEADER_BYTES,
            max_array_len=20_000,
            max_map_len=256,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise MalformedMessage(f"the header cannot be read: {str(error)[:100]}") from None


def _message(header: dict[str, Any], frames: Sequence[Buffer]) -> Message:
    version, kind, values = header.get("v"), header.get("t"), header.get("f")
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise UnsupportedVersion(
            f"protocol version {str(version)[:20]} is not supported here, only {PROTOCOL_VERSION}; "
            "bring all PCs to the same zchunk release"
        )
    cls = BY_TYPE.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise UnknownMessage(f"unknown message type {str(kind)[:40]!r}")
    payload = PAYLOAD_FIELDS[cls]
    if not isinstance(values, dict) or len(frames) != 1 + len(payload):
        raise MalformedMessage(f"message {kind!r} has the wrong number of frames, or no fields")
    known = {name: values[name] for name in HEADER_FIELDS[cls] if name in values}
    try:
        return decoded(known | dict(zip(payload, frames[1:], strict=True)), cls)
    except ValidationError as error:
        raise MalformedMessage(f"message {kind!r}: {str(error)[:300]}") from None


def _claim(header: dict[str, Any]) -> str | None:
    claim = header.get("from")
    return claim if isinstance(claim, str) and len(claim) == 32 else None


def error_reply(error: ZchunkError) -> ErrorReply:
    """What cannot travel of the details is left out: the message says what matters."""
    told = {key: value for key, value in error.details.items() if key != "request_id"}
    details = {key: value for key, value in told.items() if isinstance(key, str) and is_fact(value)}
    return ErrorReply(code=error.code, message=sendable(error.message, 4000), details=details)


def sendable(text: str, most: int) -> str:
    """No more of it than so many characters; a path in it may hold what is no UTF-8."""
    return text[:most].encode("utf-8", "replace").decode()


def raised(reply: ErrorReply) -> ZchunkError:
    """The exception that an `ErrorReply` stands for."""
    return from_wire(reply.code, reply.message, dict(reply.details))
