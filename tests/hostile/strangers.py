"""What peers say that know no rules: greetings of ZMTP 1, 2 and 3, valid, cut or spoilt, and what may
follow. Drawn from a seed, so that it can be said again."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from tests.hostile import zmtp

#: Bytes to send, or seconds to be silent before the next.
Script = list[bytes | float]
#: The frames of a message that its reader knows.
Messages = Callable[[random.Random], Sequence[bytes]]
_PAUSE_S = 0.2
_KINDS = tuple(range(12))
_MECHANISMS = (b"NULL", b"CURVE", b"PLAIN", b"GSSAPI", b"", b"N" * 20, bytes(20), b"\xff" * 20)
_SOCKETS = (b"DEALER", b"REQ", b"ROUTER", b"SUB", b"XSUB", b"PUB", b"", b"x" * 255)
#: Lengths that a frame or a property may claim.
_LENGTHS = (0, 1, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_COMMANDS = (b"PING", b"PONG", b"SUBSCRIBE", b"CANCEL", b"ERROR", b"READY", b"HELLO", b"WELCOME", b"INITIATE",
             b"MESSAGE", b"JOIN", b"LEAVE", b"", b"X" * 255)  # fmt: skip
_OTHERS = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"\n" * 1000,
    bytes(1000),
)


def script(rng: random.Random, messages: Messages) -> Script:
    """All that one connection says."""
    said = rng.choice((_first, _second, _third, _third, _third, _no_zmtp))(rng, messages)
    if rng.random() < 0.3:
        said = spoilt(rng, said)
    if rng.random() < 0.1:
        said = said[: rng.randrange(len(said) + 1)]
    return _in_pieces(rng, said)


def local_script(rng: random.Random, messages: Messages) -> Script:
    """The same at a Unix socket, where a message is a msgpack array."""
    if rng.random() < 0.2:
        return script(rng, messages)
    said = b"".join(_array(rng, messages) for _ in range(rng.choice((1, 1, 1, 2, 20))))
    return _in_pieces(rng, spoilt(rng, said) if rng.random() < 0.4 else said)


def _array(rng: random.Random, messages: Messages) -> bytes:
    odd: tuple[Any, ...] = (
        None,
        0,
        "text",
        {},
        [[]] * 5,
        [b""] * 9,
        [b"x" * 70_000],
        [_deep(500)],
        [b"", 1],
        [],
    )
    value = list(messages(rng)) if rng.random() < 0.7 else rng.choice(odd)
    packed: bytes = msgpack.packb(value)
    return (
        packed if rng.random() < 0.9 else b"\xdd" + struct.pack(">I", rng.choice(_LENGTHS) % 2**32) + packed
    )


def _deep(levels: int) -> object:
    value: object = b""
    for _ in range(levels):
        value = [value]
    return value


def spoilt(rng: random.Random, data: bytes) -> bytes:
    """With a few bits turned, parts left out, doubled, or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        what = rng.randrange(4)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del changed[at : at + rng.randint(1, 16)]
        elif what == 2:
            changed[at:at] = changed[at : at + rng.randint(1, 64)]
        else:
            changed[at:at] = rng.randbytes(rng.randint(1, 16))
    return bytes(changed)


def _in_pieces(rng: random.Random, said: bytes) -> Script:
    pieces: Script = []
    while said:
        size = rng.choice((1, 10, 11, 12, 64, 1000, len(said), len(said)))
        pieces.append(said[:size])
        said = said[size:]
        if len(pieces) > 6:  # a byte at a time takes too long
            return [*pieces, said] if said else pieces
        if rng.random() < 0.3:
            pieces.append(rng.random() * _PAUSE_S)
    return pieces


# -- protocols ------------------------------------------------------------------------------


def _no_zmtp(rng: random.Random, messages: Messages) -> bytes:
    return rng.choice((*_OTHERS, rng.randbytes(rng.randint(1, 4096))))


def _first(rng: random.Random, messages: Messages) -> bytes:
    """ZMTP 1.0: lengths with their flags, the identity first."""
    said = b""
    for body in (_identity(rng), *_bodies(rng, messages)):
        size = len(body) + 1
        said += bytes([size]) if size < 255 else b"\xff" + struct.pack(">Q", size)
        said += bytes([rng.choice((0, 0, 0, 1, 2, 255))]) + body
    return said


def _second(rng: random.Random, messages: Messages) -> bytes:
    kind = rng.choice((zmtp.DEALER, zmtp.SUB)) if rng.random() < 0.7 else rng.choice(_KINDS)
    said = zmtp.SIGNATURE + bytes([rng.choice((0, 1, 1, 1, 1, 2)), kind])
    return said + b"".join(map(zmtp.frame, (_identity(rng), *_bodies(rng, messages))))


def _third(rng: random.Random, messages: Messages) -> bytes:
    mechanism = b"NULL" if rng.random() < 0.5 else rng.choice(_MECHANISMS)
    minor = rng.choice((0, 0, 0, 1, 255))
    said = zmtp.greeting(mechanism, minor=minor, as_server=rng.random() < 0.1)
    if rng.random() < 0.1:
        said = said.replace(b"\x03", bytes([rng.choice((4, 127, 255))]), 1)
    if rng.random() < 0.8:
        kind = rng.choice((b"DEALER", b"SUB")) if rng.random() < 0.7 else rng.choice(_SOCKETS)
        said += zmtp.ready(kind, Identity=_identity(rng), **_properties(rng))
    return said + _traffic(rng, messages)


def _properties(rng: random.Random) -> dict[str, bytes]:
    """Also those that libzmq itself tells of a connection."""
    if rng.random() < 0.7:
        return {}
    names = ("User_Id", "Peer_Address", "__fd", "Resource", "X" * 200, "ünicode")
    values = (b"", b"7", b"\xff\xfe", b"0" * 32 + b".1", b"-1", b"x" * 5000)
    return {name: rng.choice(values) for name in rng.sample(names, rng.randint(1, 4))}


def _traffic(rng: random.Random, messages: Messages) -> bytes:
    said = b""
    for _ in range(rng.randint(0, 6)):
        what = rng.random()
        if what < 0.4:
            frames = messages(rng)
            said += b"".join(zmtp.frame(one, more=True) for one in frames[:-1]) + zmtp.frame(frames[-1])
        elif what < 0.7:
            said += zmtp.frame(_command(rng), command=True)
        elif what < 0.8:
            said += zmtp.frame(rng.choice((b"\x00", b"\x01")) + rng.randbytes(rng.choice((0, 1, 600))))
        elif what < 0.9:
            said += zmtp.header(rng.choice(_LENGTHS), more=rng.random() < 0.5, command=rng.random() < 0.5)
        else:
            said += bytes([rng.randrange(256)]) + rng.randbytes(rng.randint(0, 30))
    return said


def _command(rng: random.Random) -> bytes:
    name = rng.choice(_COMMANDS)
    body = rng.choice(
        (b"", rng.randbytes(2), rng.randbytes(200), b"\x05" + b"x" * 3, struct.pack(">HI", 65535, 2**32 - 1))
    )
    return bytes([len(name)]) + name + body


def _bodies(rng: random.Random, messages: Messages) -> list[bytes]:
    if rng.random() < 0.5:
        return [bytes(frame) for frame in messages(rng)]
    return [rng.choice((b"", b"x", b"\x01", b"\x00", os.fsencode("topic"))) for _ in range(rng.randint(0, 4))]


def _identity(rng: random.Random) -> bytes:
    """None, one as libzmq gives, the longest there may be, and longer ones."""
    return rng.choice((b"", b"", b"\x00\x00\x00\x00\x01", b"me", b"i" * 255, b"i" * 256, b"\x00" * 70_000))
