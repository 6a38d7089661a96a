"""Making and keeping key pairs, and join tokens.

Every role makes its key pair at its first start, in plain transport too, so that a
peer id never changes when a cluster turns encryption on. Keys are 32 raw bytes here;
ZeroMQ's Z85 text form appears only at its sockets.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import zmq
from zmq.utils import z85

from zchunk.clock import MAX_WALL_MS
from zchunk.errors import InvalidUsage, NotFound, StorageFailure, TokenRefused
from zchunk.system import addresses, disk, json_files
from zchunk.transport.keys import KEY_BYTES, KeyPair

_TOKEN_PREFIX = "zchunk1-"
#: Characters; 16 long addresses fit.
_MAX_TOKEN = 16_384
ROLES = frozenset({"node", "client", "observer"})


def new_key_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public), z85.decode(secret))


def load_or_make_key(path: Path) -> KeyPair:
    """The key pair kept at `path`, made there (mode 0600) when it is missing: only for a key
    that may be new. Raises as `load_key` and `make_key` do."""
    return load_key(path) or make_key(path)


def load_key(path: Path) -> KeyPair | None:
    """None where there is no file. Raises StorageFailure for one that holds no key pair: it is
    never overwritten, since it is the peer's identity; else as `disk.storage_errors` does."""
    try:
        with disk.storage_errors(path, "reading"):
            data = json_files.record(json_files.read(path))
        return KeyPair(json_files.key(data["public"]), json_files.key(data["secret"]))
    except NotFound:
        return None
    except (ValueError, KeyError):
        raise StorageFailure(
            f"{path} does not contain a key pair; restore it from a backup, or move it away:"
            " the next start then says what to do without it"
        ) from None


def make_key(path: Path) -> KeyPair:
    """A new key pair, kept at `path` (mode 0600). Durable on return."""
    pair = new_key_pair()
    disk.private_folder(path.parent)
    text = json.dumps({"public": pair.public.hex(), "secret": pair.secret.hex()})
    disk.write_durable(path, text.encode(), mode=0o600)
    return pair


@dataclass(frozen=True, slots=True)
class Token:
    """What a newcomer needs: where the tracker is, which key it has, and a key of its own
    that may `join` with `role`, and nothing else, until it expires."""

    addresses: tuple[str, ...]
    tracker_key: bytes
    transport: str
    role: str
    key: KeyPair
    expires_ms: int

    def encode(self) -> str:
        fields = {
            "a": self.addresses,
            "k": self.tracker_key,
            "t": self.transport,
            "r": self.role,
            "p": self.key.public,
            "s": self.key.secret,
            "e": self.expires_ms,
        }
        packed = msgpack.packb(fields, use_bin_type=True)
        return _TOKEN_PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def parse_token(text: str) -> Token:
    """Text that a person pasted -> a checked token; TokenRefused where it is none."""
    try:
        return _build_token(_unpack_token("".join(text.split())))
    except (ValueError, KeyError, TypeError, msgpack.UnpackException, InvalidUsage):
        raise TokenRefused(
            "this is not a zchunk join token, or part of it is missing; "
            "print a new one with `zchunk token` on the tracker's PC"
        ) from None


def _unpack_token(text: str) -> dict[str, Any]:
    if not text.startswith(_TOKEN_PREFIX) or len(text) > _MAX_TOKEN:
        raise ValueError("prefix")
    body = text[len(_TOKEN_PREFIX) :]
    data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    fields = msgpack.unpackb(data, raw=False, use_list=False, max_ext_len=0)
    if not isinstance(fields, dict):
        raise ValueError("fields")
    return fields


def _build_token(fields: dict[str, Any]) -> Token:
    told, role = fields["a"], fields["r"]
    keys = (fields["k"], fields["p"], fields["s"])
    keys_ok = all(isinstance(key, bytes) and len(key) == KEY_BYTES for key in keys)
    if not (keys_ok and role in ROLES and fields["t"] in ("plain", "curve")):
        raise ValueError("values")
    if type(fields["e"]) is not int or not 0 <= fields["e"] <= MAX_WALL_MS:
        raise ValueError("expiry")
    if not isinstance(told, tuple) or not 1 <= len(told) <= addresses.MAX_ANNOUNCED:
        raise ValueError("addresses")
    for address in told:
        if not isinstance(address, str):
            raise ValueError("addresses")
        addresses.parse(address)
    return Token(told, fields["k"], fields["t"], role, KeyPair(fields["p"], fields["s"]), fields["e"])
