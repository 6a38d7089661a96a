"""Key pairs, the ids made of them, and the two sides of CURVE. Keys are 32 raw bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeyPair:
    public: bytes
    secret: bytes

    def __repr__(self) -> str:  # secrets stay out of logs and tracebacks
        return f"KeyPair({self.peer_id})"

    @property
    def peer_id(self) -> str:
        return peer_id_of(self.public)


def peer_id_of(public_key: bytes) -> str:
    """Hex of the first 16 bytes of SHA-256(public key): 32 digits."""
    return hashlib.sha256(public_key).digest()[:16].hex()


@dataclass(frozen=True, slots=True)
class CurveServer:
    """How a socket binds under CURVE. `door` is its name at the gate that is asked about
    each key that connects."""

    key: KeyPair
    door: str


@dataclass(frozen=True, slots=True)
class CurveClient:
    """How a socket connects under CURVE: as whom, and to whom and nobody else."""

    key: KeyPair
    server_key: bytes
