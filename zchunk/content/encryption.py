"""Encrypted files: the key of one file, its chunks, and the sealed part of its manifest.

A file has a key of its own, 32 random bytes. Each chunk is encrypted with AES-256-GCM, and
what is stored, sent and addressed is the ciphertext: nodes and the tracker treat it as any
bytes. The manifest's `sealed` is

    msgpack([version, lock, wrapped, body])
    lock = ["scrypt", salt, log2_n, r, p]  or  ["key file", salt, key_id]

`wrapped` is the file's key under a key made from the user's secret (a passphrase or a key
file); `body` is encrypted with the file's key and holds what others must not know: the true
name, the SHA-256 of the content, and the BLAKE3 of each plain chunk.

What may not happen here: one nonce for two plaintexts under one key. An upload that was
interrupted goes on with the same key (else all would be sent again), and the file may have
changed since. So a nonce is not counted and not drawn: it is made, by a keyed hash, from
everything that is encrypted and authenticated under it. Equal nonces mean equal bytes at the
same place, whose ciphertext is the same too; what differs in a bit, or in its place, has
another nonce. They are 96 bits, so two of a million chunks meet with a chance under 2^-56.
The same in the associated data alone would be as bad as in the plaintext (it gives the key
of the tags away), so the nonce is made from that too. A key that wraps is used once: its salt
is random.

Nothing here keeps anything, or asks anybody. Callers: node/upload/upload_keys.py and upload/runner.py for
uploads, the client and download/runner.py for downloads.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgpack

from zchunk.content import ciphers, hashing
from zchunk.content.manifest import (
    AES256GCM,
    DIGEST_BYTES,
    TAG_BYTES,
    ChunkRow,
    Manifest,
    is_digest,
    name_problem,
)
from zchunk.errors import ChunkCorrupt, InvalidUsage, ManifestInvalid, WrongKey

SEALED_VERSION = 1
KEY_BYTES = 32
SALT_BYTES = 16
KEY_ID_BYTES = 8
_NONCE_BYTES = 12
_MAX_PASSPHRASE_BYTES = 4096
#: Names are padded to a multiple of it: their length is nobody's business either.
_NAME_PADDING = 256
#: Keys that wrap are used for one message.
_ONLY_NONCE = bytes(_NONCE_BYTES)

_PASSPHRASE, _KEY_FILE = "scrypt", "key file"


# -- what the user has ------------------------------------------------------------------


@dataclass(frozen=True)
class Passphrase:
    """`text` is normalized to its composed form (NFC), so it does not depend on the keyboard."""

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        """Raises InvalidUsage for one that is empty, or longer than 4,096 bytes."""
        if not self.text:
            raise InvalidUsage("the passphrase is empty")
        if len(self.bytes) > _MAX_PASSPHRASE_BYTES:
            raise InvalidUsage(f"the passphrase is longer than {_MAX_PASSPHRASE_BYTES} bytes")

    @property
    def bytes(self) -> bytes:
        return unicodedata.normalize("NFC", self.text).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class KeyFile:
    """The content of a key file: 32 random bytes."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise InvalidUsage(f"a key has {KEY_BYTES} bytes, not {len(self.key)}")

    @property
    def key_id(self) -> bytes:
        """Tells key files apart, and says nothing of the key."""
        return _derived(self.key, b"zchunk key id")[:KEY_ID_BYTES]


Secret = Passphrase | KeyFile


# -- what everybody sees of it ----------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of trying one passphrase: scrypt takes 128 * 2^log2_n * r bytes, p times after each other."""

    log2_n: int
    r: int
    p: int

    @property
    def problem(self) -> str | None:
        """Why nobody should be made to pay it, or None: a manifest comes from others."""
        if not (10 <= self.log2_n <= 17 and self.r == 8 and 1 <= self.p <= 8):
            return f"scrypt with 2^{self.log2_n}, {self.r}, {self.p} (the maximum is 2^17, 8, 8)"
        return None


#: 128 MiB and about 0.5 s: as much work as age asks for (2^18, 8, 1), in half of the memory, since
#: a process has 200 MB. Every release reads it; files of earlier ones have 2^16 in their heads.
COST = Cost(log2_n=17, r=8, p=2)


@dataclass(frozen=True)
class Lock:
    """By what kind of secret a file is locked; `salt` is random for each upload."""

    salt: bytes
    #: for a passphrase
    cost: Cost | None = None
    #: for a key file
    key_id: bytes | None = None

    @property
    def text(self) -> str:
        """For people: `a passphrase`, `the key file 0123456789abcdef`."""
        return "a passphrase" if self.key_id is None else f"the key file {self.key_id.hex()}"

    @property
    def parts(self) -> tuple[Any, ...]:
        if self.cost is not None:
            return (_PASSPHRASE, self.salt, self.cost.log2_n, self.cost.r, self.cost.p)
        return (_KEY_FILE, self.salt, self.key_id)


@dataclass(frozen=True)
class Head:
    """The readable part: how the file's key is got at by who has the secret."""

    lock: Lock
    wrapped: bytes

    @property
    def parts(self) -> tuple[Any, ...]:
        return (SEALED_VERSION, self.lock.parts, self.wrapped)

    def encode(self) -> bytes:
        return _packed(self.parts)


def parse_head(data: bytes) -> Head:
    """Bytes that `Head.encode` made, kept by an upload. Raises ManifestInvalid."""
    return _head(_unpack(data, 3))


def _head(parts: Sequence[Any]) -> Head:
    version, lock, wrapped = parts
    if version != SEALED_VERSION or type(version) is not int:
        raise ManifestInvalid(f"encryption version {str(version)[:20]} is unknown here; upgrade zchunk")
    if not (isinstance(wrapped, bytes) and len(wrapped) == KEY_BYTES + TAG_BYTES):
        raise ManifestInvalid("the encrypted file's key has the wrong length")
    return Head(_lock(lock), wrapped)


def _lock(parts: Any) -> Lock:
    """Raises ManifestInvalid for a lock that is none of ours, or that would cost too much."""
    kind, *rest = parts if isinstance(parts, tuple) and parts else (None,)
    salt = rest[0] if rest else None
    if not (isinstance(salt, bytes) and len(salt) == SALT_BYTES):
        raise ManifestInvalid("the encrypted file's salt is invalid")
    if kind == _PASSPHRASE and len(rest) == 4 and all(type(number) is int for number in rest[1:]):
        cost = Cost(*rest[1:])
        if (problem := cost.problem) is not None:
            raise ManifestInvalid(f"opening the encrypted file would cost too much: {problem}")
        return Lock(salt, cost=cost)
    if kind == _KEY_FILE and len(rest) == 2 and isinstance(rest[1], bytes) and len(rest[1]) == KEY_ID_BYTES:
        return Lock(salt, key_id=rest[1])
    raise ManifestInvalid("the file is encrypted with an unknown method; upgrade zchunk")


# -- the file's key ---------------------------------------------------------------------


class FileKey:
    """The key of one file. Thread-safe: it never changes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._chunks = _derived(key, b"zchunk chunks")
        self._body = _derived(key, b"zchunk body")
        self._nonces = _derived(key, b"zchunk nonces")

    def __repr__(self) -> str:
        return "FileKey(...)"

    @property
    def neutral_name(self) -> str:
        """What stands for a hidden name: the same for this key, and nothing to others."""
        return f"encrypted-{_derived(self._key, b'zchunk name')[:8].hex()}"

    # chunks

    def encrypt_chunk(
        self, index: int, chunk_size: int, plain: memoryview, into: memoryview
    ) -> tuple[memoryview, bytes]:
        """(what is stored, in `into`; BLAKE3 of the plain bytes). `into` may not be `plain`,
        and has room for 16 bytes more."""
        digest = hashing.blake3(plain)
        place = _place(index, chunk_size)
        stored = into[: len(plain) + TAG_BYTES]
        ciphers.encrypt(self._chunks, self._nonce(place, digest), place, plain, stored)
        return stored, digest

    def open_chunk(self, index: int, chunk_size: int, digest: bytes, stored: memoryview) -> memoryview:
        """Decrypts where it stands; the plain bytes as a slice of `stored`. `digest` is their
        BLAKE3, from the sealed part. Raises ChunkCorrupt (then `stored` is of no use)."""
        place = _place(index, chunk_size)
        try:
            return ciphers.decrypt(self._chunks, self._nonce(place, digest), place, stored)
        except ciphers.WrongTag:
            raise ChunkCorrupt(
                f"chunk {index} has the right SHA-256, but cannot be decrypted: it was not encrypted with"
                " this file's key; upload the file again from its source",
                chunk_index=index,
            ) from None

    # the sealed body

    def encrypt_body(self, content: bytes, bound: bytes) -> bytes:
        """`bound` is the digest of what the body is sealed together with."""
        nonce = self._nonce(bound, hashlib.sha256(content).digest())
        sealed = memoryview(bytearray(len(content) + TAG_BYTES))
        ciphers.encrypt(self._body, nonce, bound, memoryview(content), sealed)
        return nonce + bytes(sealed)

    def open_body(self, body: bytes, bound: bytes) -> bytes:
        """Raises ciphers.WrongTag."""
        nonce, sealed = body[:_NONCE_BYTES], memoryview(bytearray(body[_NONCE_BYTES:]))
        return bytes(ciphers.decrypt(self._body, nonce, bound, sealed))

    def _nonce(self, bound: bytes, digest: bytes) -> bytes:
        """Both are of fixed length for one of the two keys they are used with."""
        return hmac.digest(self._nonces, bound + digest, "sha256")[:_NONCE_BYTES]


def new_key(secret: Secret, cost: Cost = COST) -> tuple[Head, FileKey]:
    """A fresh key for one file, locked by `secret`. Takes a moment for a passphrase."""
    salt, key = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(KEY_BYTES)
    lock = Lock(salt, cost=cost) if isinstance(secret, Passphrase) else Lock(salt, key_id=secret.key_id)
    wrapped = ciphers.wrap(_wrapping_key(lock, secret), _ONLY_NONCE, key, _packed(lock.parts))
    return Head(lock, wrapped), FileKey(key)


def unlock(head: Head, secret: Secret, name: str) -> FileKey:
    """The file's key; `name` is for the message. Takes a moment for a passphrase.
    Raises WrongKey."""
    _check_kind(head.lock, secret, name)
    wrapping = _wrapping_key(head.lock, secret)
    try:
        return FileKey(ciphers.unwrap(wrapping, _ONLY_NONCE, head.wrapped, _packed(head.lock.parts)))
    except ciphers.WrongTag:
        what = "passphrase" if isinstance(secret, Passphrase) else "key file"
        raise WrongKey(f"wrong {what} for {name!r}: the file is encrypted with another one") from None


def _check_kind(lock: Lock, secret: Secret, name: str) -> None:
    if isinstance(secret, Passphrase):
        if lock.cost is None:
            raise WrongKey(f"{name!r} is encrypted with {lock.text}, not with a passphrase: give --key-file")
    elif lock.key_id is None:
        raise WrongKey(
            f"{name!r} is encrypted with a passphrase, not with a key file: give --passphrase-file"
        )
    elif lock.key_id != secret.key_id:
        given = secret.key_id.hex()
        raise WrongKey(f"{name!r} is encrypted with {lock.text}, but the key file given is {given}")


def _wrapping_key(lock: Lock, secret: Secret) -> bytes:
    if isinstance(secret, KeyFile):
        return _derived(secret.key, b"zchunk wrap " + lock.salt)
    assert lock.cost is not None
    n, r, p = 1 << lock.cost.log2_n, lock.cost.r, lock.cost.p
    return ciphers.scrypt(secret.bytes, lock.salt, KEY_BYTES, n=n, r=r, p=p)


# -- the sealed part of a manifest ------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OpenManifest(Manifest):
    """A manifest to whoever has the key: the name, the SHA-256 and the plain digests are the
    true ones, while its canonical bytes and its file id are those that everybody sees."""

    outer: Manifest
    key: FileKey = field(repr=False)

    @property
    def public(self) -> Manifest:
        return self.outer

    @cached_property
    def canonical(self) -> bytes:
        return self.outer.canonical

    def open_chunk(self, index: int, stored: memoryview) -> memoryview:
        """As `FileKey.open_chunk`."""
        digest = self.chunks[index].plain_blake3
        assert digest is not None
        return self.key.open_chunk(index, self.chunk_size, digest, stored)

    def encrypted_again(self, index: int, plain: memoryview, into: memoryview) -> memoryview:
        """What would be stored of these plain bytes: the same as ever, if they are right."""
        return self.key.encrypt_chunk(index, self.chunk_size, plain, into)[0]


def encrypt_manifest(plain: Manifest, head: Head, key: FileKey, *, hide_name: bool) -> Manifest:
    """`plain` has the true name and SHA-256, and rows of ciphertext with the plain digests
    beside; the result is what may be shown to others. The same for the same input."""
    assert plain.sha256 is not None
    rows = tuple(replace(row, plain_blake3=None) for row in plain.chunks)
    name = key.neutral_name if hide_name else plain.name
    outer = replace(plain, name=name, sha256=None, chunks=rows, sealed=b"")
    digests = b"".join(row.plain_blake3 or b"" for row in plain.chunks)
    content = _packed((_padded(plain.name), plain.sha256, digests))
    body = key.encrypt_body(content, _bound(outer, head))
    return replace(outer, sealed=_packed((*head.parts, body)))


def head_of(manifest: Manifest) -> Head:
    """How an encrypted file is locked. Raises ManifestInvalid."""
    return _sealed(manifest)[0]


def open_manifest(manifest: Manifest, secret: Secret) -> OpenManifest:
    """Raises WrongKey; ManifestInvalid where it is no manifest that a key holder made."""
    head, body = _sealed(manifest)
    key = unlock(head, secret, manifest.name)
    try:
        content = key.open_body(body, _bound(manifest, head))
    except ciphers.WrongTag:
        raise ManifestInvalid(
            f"the manifest of {manifest.name!r} was changed by someone without its key"
        ) from None
    name, sha256, digests = _content(content, len(manifest.chunks))
    rows = tuple(replace(row, plain_blake3=digests(i)) for i, row in enumerate(manifest.chunks))
    return OpenManifest(
        name, manifest.size, sha256, manifest.chunk_size, rows, manifest.sealed, outer=manifest, key=key
    )


def opened(manifest: Manifest) -> OpenManifest | None:
    """The manifest as one whose chunks can be opened; None where they are plain. One that is
    sealed must have been opened before: its bytes are of no use to anybody."""
    if isinstance(manifest, OpenManifest):
        return manifest
    if manifest.sealed is not None:
        raise ValueError("an encrypted file's manifest was not opened")
    return None


def encrypted_row(stored: memoryview, plain_digest: bytes) -> ChunkRow:
    """The row of a sealed chunk, as `encrypt_manifest` wants it."""
    return ChunkRow(len(stored), AES256GCM, hashing.sha256(stored), hashing.blake3(stored), plain_digest)


def _sealed(manifest: Manifest) -> tuple[Head, bytes]:
    if manifest.sealed is None:
        raise ManifestInvalid(f"{manifest.name!r} is not encrypted")
    *head, body = _unpack(manifest.sealed, 4)
    if not (isinstance(body, bytes) and len(body) > _NONCE_BYTES + TAG_BYTES):
        raise ManifestInvalid("the encrypted part of the manifest has no body")
    return _head(head), body


def _bound(outer: Manifest, head: Head) -> bytes:
    """Digest of all else that is in the manifest: none of it can be another's."""
    return hashlib.sha256(_packed((replace(outer, sealed=b"").canonical, head.parts))).digest()


def _content(content: bytes, count: int) -> tuple[str, bytes, Callable[[int], bytes]]:
    padded, sha256, digests = _unpack(content, 3)
    whole = isinstance(digests, bytes) and len(digests) == count * DIGEST_BYTES
    name = padded.rstrip("\0") if isinstance(padded, str) else padded
    if not (whole and is_digest(sha256)) or name_problem(name) is not None:
        raise ManifestInvalid("the encrypted part of the manifest does not match the rest")
    return name, sha256, lambda index: digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]


def _padded(name: str) -> str:
    length = len(name.encode())
    return name + "\0" * (-length % _NAME_PADDING)


# -- bytes ------------------------------------------------------------------------------


def _packed(parts: Any) -> bytes:
    return bytes(msgpack.packb(parts, use_bin_type=True))


def _unpack(data: bytes, count: int) -> tuple[Any, ...]:
    """An array of `count`. Raises ManifestInvalid."""
    try:
        parts = msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            list_hook=_shallow,
            strict_map_key=True,
            max_map_len=0,
            max_ext_len=0,
            max_array_len=8,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ManifestInvalid(
            f"the encrypted part of the manifest cannot be read: {str(error)[:60]}"
        ) from None
    if not (isinstance(parts, tuple) and len(parts) == count):
        raise ManifestInvalid(f"the encrypted part of the manifest does not have {count} parts")
    return parts


def _shallow(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Nothing of ours nests deeper than a lock in its head; small bytes that do become many."""
    if any(isinstance(inner, tuple) for part in parts if isinstance(part, tuple) for inner in part):
        raise ManifestInvalid("the encrypted part of the manifest is nested too deeply")
    return parts


def _derived(key: bytes, label: bytes) -> bytes:
    return hmac.digest(key, label, "sha256")


def _place(index: int, chunk_size: int) -> bytes:
    """What a chunk is authenticated with: no other place, and no other way of cutting. The
    file is told by its key. Not its size: what an upload stored stays of use when the file
    has grown since."""
    return b"zchunk chunk" + struct.pack("<IQ", chunk_size, index)
