"""content/encryption.py (SPEC S3): what is sealed opens with its secret alone, whole and in its place; no
nonce serves two plaintexts; what others see says nothing."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import assume, example, given
from hypothesis import strategies as st

from zchunk.content import ciphers, encryption, hashing
from zchunk.content.encryption import (
    COST,
    Cost,
    FileKey,
    Head,
    KeyFile,
    OpenManifest,
    Passphrase,
    Secret,
    encrypt_manifest,
    encrypted_row,
    head_of,
    new_key,
    open_manifest,
    parse_head,
    unlock,
)
from zchunk.content.manifest import (
    MAX_CHUNK_SIZE,
    MAX_NEW_SEALED_CHUNKS,
    MIN_CHUNK_SIZE,
    ChunkRow,
    Manifest,
    parse,
)
from zchunk.errors import ChunkCorrupt, InvalidUsage, ManifestInvalid, WrongKey, ZchunkError
from zchunk.protocol import wire

CHUNK = MIN_CHUNK_SIZE
#: The least that is taken, so that tests need not wait.
CHEAP = Cost(10, 8, 1)
PASSPHRASE, KEY = Passphrase("pale blue dot"), KeyFile(b"k" * 32)
SECRETS = [PASSPHRASE, KEY]


def memory(data: bytes) -> memoryview:
    return memoryview(bytearray(data))


def sealed_chunk(key: FileKey, index: int, plain: bytes, chunk_size: int = CHUNK) -> tuple[bytes, bytes]:
    stored, digest = key.encrypt_chunk(index, chunk_size, memory(plain), memory(bytes(len(plain) + 16)))
    return bytes(stored), digest


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


@dataclass
class Sealed:
    """A file of three chunks, put by `secret`."""

    plain: list[bytes]
    stored: list[bytes]
    key: FileKey
    head: Head
    true: Manifest
    outer: Manifest


def make(secret: Secret, name: str = "Wale.mov", hide_name: bool = False, cost: Cost = CHEAP) -> Sealed:
    head, key = new_key(secret, cost)
    plain = [os.urandom(CHUNK), os.urandom(CHUNK), b"the end"]
    made = [sealed_chunk(key, index, data) for index, data in enumerate(plain)]
    rows = tuple(encrypted_row(memoryview(stored), digest) for stored, digest in made)
    whole = hashlib.sha256(b"".join(plain)).digest()
    true = Manifest(name, 2 * CHUNK + 7, whole, CHUNK, rows)
    outer = encrypt_manifest(true, head, key, hide_name=hide_name)
    return Sealed(plain, [stored for stored, _ in made], key, head, true, outer)


@pytest.fixture(params=SECRETS, ids=["passphrase", "key file"])
def secret(request: pytest.FixtureRequest) -> Secret:
    found: Secret = request.param
    return found


# -- chunks -----------------------------------------------------------------------------


@given(plain=st.binary(max_size=5000), index=st.integers(0, 2**40))
@example(plain=b"", index=0)
def test_a_chunk_comes_back_from_where_it_stands(plain: bytes, index: int) -> None:
    key = FileKey(b"f" * 32)
    stored, digest = sealed_chunk(key, index, plain)
    assert (len(stored), digest) == (len(plain) + 16, hashing.blake3(plain))
    view = memory(stored)
    opened = key.open_chunk(index, CHUNK, digest, view)
    assert opened == plain
    assert opened.obj is view.obj


def test_a_chunk_of_several_pieces_is_that_of_one() -> None:
    """GCM as the standard has it, whatever it is fed by."""
    plain, nonce, key, into = os.urandom(2 * ciphers._PIECE + 77), b"n" * 12, b"k" * 32, bytearray()
    into.extend(bytes(len(plain) + 16))
    ciphers.encrypt(key, nonce, b"bound", memoryview(plain), memoryview(into))
    assert bytes(into) == AESGCM(key).encrypt(nonce, plain, b"bound")
    assert ciphers.decrypt(key, nonce, b"bound", memoryview(into)) == plain


@pytest.mark.row("S3")
@given(plain=st.binary(min_size=1, max_size=300), bit=st.integers(0, 10_000))
def test_any_flipped_bit_of_a_chunk_is_refused(plain: bytes, bit: int) -> None:
    key = FileKey(b"f" * 32)
    stored, digest = sealed_chunk(key, 3, plain)
    with pytest.raises(ChunkCorrupt, match="chunk 3"):
        key.open_chunk(3, CHUNK, digest, memory(flipped(stored, bit)))
    with pytest.raises(ChunkCorrupt):
        key.open_chunk(3, CHUNK, flipped(digest, bit), memory(stored))


@pytest.mark.row("S3")
@pytest.mark.parametrize(
    ("index", "chunk_size", "key"),
    [(4, CHUNK, b"f"), (3, 2 * CHUNK, b"f"), (3, CHUNK, b"g")],
    ids=["another place", "cut in another way", "another file"],
)
def test_a_chunk_opens_nowhere_else(index: int, chunk_size: int, key: bytes) -> None:
    stored, digest = sealed_chunk(FileKey(b"f" * 32), 3, b"plain")
    with pytest.raises(ChunkCorrupt):
        FileKey(key * 32).open_chunk(index, chunk_size, digest, memory(stored))


# -- nonces -----------------------------------------------------------------------------


@pytest.fixture
def encryptions(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[bytes, bytes], set[bytes]]]:
    """(key, nonce) -> everything that was encrypted and authenticated with it."""
    used: dict[tuple[bytes, bytes], set[bytes]] = {}
    encrypt = ciphers.encrypt

    def watched(key: bytes, nonce: bytes, bound: bytes, plain: memoryview, into: memoryview) -> None:
        used.setdefault((key, nonce), set()).add(msgpack.packb((bound, bytes(plain))))
        encrypt(key, nonce, bound, plain, into)

    monkeypatch.setattr(ciphers, "encrypt", watched)
    yield used
    assert all(len(inputs) == 1 for inputs in used.values()), "a nonce served two plaintexts"


@pytest.mark.row("S3")
def test_whatever_differs_has_its_own_nonce(
    encryptions: dict[tuple[bytes, bytes], set[bytes]], secret: Secret
) -> None:
    """Versions of a file under one key, as an upload makes them that is run again: the same
    chunk twice, a chunk that changed, the same bytes elsewhere, cut in another way, another name."""
    head, key = new_key(secret, CHEAP)
    for content in (b"one", b"one", b"two", b""):
        for index in (0, 1, 2**33):
            for chunk_size in (CHUNK, 2 * CHUNK):
                sealed_chunk(key, index, content, chunk_size)
    assert len(encryptions) == 3 * 3 * 2
    one = make(secret).true
    for true in (one, replace(one, name="b"), replace(one, sha256=b"x" * 32)):
        for hide_name in (False, True):
            encrypt_manifest(true, head, key, hide_name=hide_name)
    encrypt_manifest(one, head, key, hide_name=False)
    assert len(encryptions) == 3 * 3 * 2 + 6 + 4, "four of the other key"


def test_the_same_again_is_the_same_again(secret: Secret) -> None:
    """So that a resumed upload sends nothing twice, and a repeated commit is the same file."""
    file = make(secret)
    assert [sealed_chunk(file.key, i, data)[0] for i, data in enumerate(file.plain)] == file.stored
    head = parse_head(file.head.encode())
    again = encrypt_manifest(file.true, head, unlock(head, secret, "x"), hide_name=False)
    assert again.canonical == file.outer.canonical


def test_equal_chunks_of_a_file_do_not_look_equal() -> None:
    key = FileKey(b"f" * 32)
    assert len({sealed_chunk(key, index, bytes(CHUNK))[0] for index in range(10)}) == 10


def test_each_file_has_a_key_of_its_own(secret: Secret) -> None:
    heads = [new_key(secret, CHEAP)[0] for _ in range(3)]
    assert len({head.lock.salt for head in heads}) == len({head.wrapped for head in heads}) == 3


# -- manifests ----------------------------------------------------------------------------


@pytest.mark.parametrize("hide_name", [False, True])
def test_a_manifest_opens_with_its_secret(secret: Secret, hide_name: bool) -> None:
    file = make(secret, "Film über Wale.mov", hide_name)
    outer = parse(file.outer.canonical, file.outer.file_id)
    opened = open_manifest(outer, secret)
    assert (opened.name, opened.sha256, opened.chunks) == (
        "Film über Wale.mov",
        file.true.sha256,
        file.true.chunks,
    )
    assert (opened.canonical, opened.file_id, opened.public) == (outer.canonical, outer.file_id, outer)
    for index, stored in enumerate(file.stored):
        assert opened.open_chunk(index, memory(stored)) == file.plain[index]
        room = memory(bytes(len(stored)))
        assert opened.encrypted_again(index, memory(file.plain[index]), room) == stored


@pytest.mark.parametrize("hide_name", [False, True])
def test_others_see_the_size_and_at_most_the_name(secret: Secret, hide_name: bool) -> None:
    file = make(secret, "Wale.mov", hide_name)
    seen = file.outer.canonical
    assert file.outer.sha256 is None
    assert file.true.sha256 is not None
    secrets = [file.true.sha256, *file.plain, *map(hashing.blake3, file.plain)]
    secrets += [hashlib.sha256(data).digest() for data in file.plain]
    assert not [secret for secret in secrets if secret in seen]
    assert (b"Wale.mov" in seen) is not hide_name
    assert file.key._key not in seen


def test_a_hidden_name_leaves_not_even_its_length(secret: Secret) -> None:
    files = [make(secret, name, hide_name=True).outer for name in ("a", "a" * 255, "ä" * 100)]
    assert len({len(file.canonical) for file in files}) == 1
    assert len({file.name for file in files}) == 3
    assert all(file.name.startswith("encrypted-") for file in files)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Passphrase("pale blue dog"), "wrong passphrase for 'Wale.mov'"),
        (KEY, "a passphrase, not with a key file"),
    ],
    ids=["another passphrase", "a key file"],
)
def test_a_wrong_secret_for_a_passphrase(wrong: Secret, message: str) -> None:
    with pytest.raises(WrongKey, match=message):
        open_manifest(make(PASSPHRASE).outer, wrong)


@pytest.mark.parametrize("wrong", [KeyFile(b"j" * 32), PASSPHRASE])
def test_a_wrong_secret_for_a_key_file_is_told_which_one_it_is(wrong: Secret) -> None:
    with pytest.raises(WrongKey, match=f"the key file {KEY.key_id.hex()}"):
        open_manifest(make(KEY).outer, wrong)


def test_a_passphrase_counts_as_it_is_read() -> None:
    """A Mac sends "ü" as two characters."""
    assert open_manifest(make(Passphrase("\u00fcber")).outer, Passphrase("u\u0308ber")).name == "Wale.mov"


@pytest.mark.parametrize("text", ["", "x" * 4097])
def test_a_passphrase_that_is_none(text: str) -> None:
    with pytest.raises(InvalidUsage, match="passphrase"):
        Passphrase(text)


def test_secrets_stay_out_of_logs() -> None:
    file = make(PASSPHRASE)
    opened = open_manifest(file.outer, PASSPHRASE)
    for thing in (PASSPHRASE, KEY, file.key, opened):
        assert "pale" not in repr(thing)
        assert "kkk" not in repr(thing)


@pytest.mark.row("S3")
@given(data=st.data())
def test_a_manifest_that_others_made_up_is_refused(data: st.DataObject) -> None:
    """Whoever has no key can change nothing: not the name, the order or number of chunks, nor
    the sealed part. By its id alone nobody would notice, where the tracker names another."""
    outer = FILE.outer
    rows = outer.chunks
    assert outer.sealed is not None
    others: list[dict[str, Any]] = [
        {"name": "Haie.mov"},
        {"chunks": (rows[1], rows[0], rows[2])},
        {"chunks": (rows[0], rows[0], rows[2])},
        {"chunks": rows[:2], "size": 2 * CHUNK},
        {"sealed": OTHER.outer.sealed},
    ]
    bits = st.integers(0, 8 * len(outer.sealed) - 1)
    flips = bits.map(lambda bit: {"sealed": flipped(outer.sealed or b"", bit)})
    change = data.draw(st.sampled_from(others) | flips)
    # A flipped bit in the cost may ask for half a second, and is refused all the same.
    forged = replace(outer, **change)
    assume(forged != outer)
    with pytest.raises((ManifestInvalid, WrongKey)):
        open_manifest(forged, KEY)


FILE, OTHER = make(KEY), make(KEY)


def test_a_body_that_does_not_fit_is_refused() -> None:
    """Made by a key holder all the same."""
    for content in (("n", b"s" * 32, b"d" * 95), ("", b"s" * 32, b"d" * 96), ("n", b"", b"d" * 96), ("n",)):
        outer = FILE.outer
        body = FILE.key.encrypt_body(msgpack.packb(content), encryption._bound(outer, FILE.head))
        with pytest.raises(ManifestInvalid, match="encrypted part"):
            open_manifest(replace(outer, sealed=msgpack.packb((*FILE.head.parts, body))), KEY)


def test_the_sealed_form_is_a_disk_format_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/reference/protocol.md, "Encrypted files", written down once more, with nothing of ours in it."""
    drawn = iter([b"s" * 16, b"f" * 32])
    monkeypatch.setattr(encryption, "secrets", SimpleNamespace(token_bytes=lambda length: next(drawn)))
    head, key = new_key(KEY)
    plain = [b"a" * CHUNK, b"bcd"]
    made = [sealed_chunk(key, index, data) for index, data in enumerate(plain)]
    rows = tuple(encrypted_row(memoryview(stored), digest) for stored, digest in made)
    whole = hashlib.sha256(b"".join(plain)).digest()
    outer = encrypt_manifest(Manifest("hello.bin", CHUNK + 3, whole, CHUNK, rows), head, key, hide_name=True)

    def prf(secret: bytes, data: bytes) -> bytes:
        return hmac.digest(secret, data, "sha256")

    def gcm(secret: bytes, nonce: bytes, bound: bytes, data: bytes) -> bytes:
        return AESGCM(secret).encrypt(nonce, data, bound)

    nonce_key = prf(b"f" * 32, b"zchunk nonces")
    digests = [blake3(data).digest() for data in plain]
    for index, data in enumerate(plain):
        place = b"zchunk chunk" + CHUNK.to_bytes(4, "little") + index.to_bytes(8, "little")
        nonce = prf(nonce_key, place + digests[index])[:12]
        assert made[index][0] == gcm(prf(b"f" * 32, b"zchunk chunks"), nonce, place, data)
    lock = ["key file", b"s" * 16, prf(KEY.key, b"zchunk key id")[:8]]
    wrapped = gcm(prf(KEY.key, b"zchunk wrap " + b"s" * 16), bytes(12), msgpack.packb(lock), b"f" * 32)
    content = msgpack.packb(["hello.bin" + "\0" * 247, whole, b"".join(digests)])
    unsealed = [1, outer.name, CHUNK + 3, None, CHUNK, msgpack.unpackb(outer.canonical)[5], b""]
    bound = hashlib.sha256(msgpack.packb([msgpack.packb(unsealed), [1, lock, wrapped]])).digest()
    nonce = prf(nonce_key, bound + hashlib.sha256(content).digest())[:12]
    body = nonce + gcm(prf(b"f" * 32, b"zchunk body"), nonce, bound, content)
    assert outer.sealed == msgpack.packb([1, lock, wrapped, body])
    assert outer.name == "encrypted-" + prf(b"f" * 32, b"zchunk name")[:8].hex()
    assert outer.file_id == "1239691f271109657905a3fef762a6f0d04b1a404e64345b63470fa17e6c3276"


def test_a_passphrase_wraps_by_scrypt_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([b"s" * 16, b"f" * 32])
    monkeypatch.setattr(encryption, "secrets", SimpleNamespace(token_bytes=lambda length: next(drawn)))
    head, _ = new_key(Passphrase("u\u0308ber"))
    wrapping = hashlib.scrypt("\u00fcber".encode(), salt=b"s" * 16, n=2**17, r=8, p=2, maxmem=2**28, dklen=32)
    lock = msgpack.packb(["scrypt", b"s" * 16, 17, 8, 2])
    assert head.wrapped == AESGCM(wrapping).encrypt(bytes(12), b"f" * 32, lock)


def test_a_file_that_an_earlier_release_encrypted_is_read() -> None:
    """Its head says 2^16."""
    head, key = new_key(PASSPHRASE, Cost(log2_n=16, r=8, p=2))
    sealed = encrypt_manifest(FILE.true, head, key, hide_name=True)
    assert open_manifest(sealed, PASSPHRASE).name == FILE.true.name


def test_a_passphrase_costs_as_much_work_as_age_asks_for() -> None:
    assert 2**COST.log2_n * COST.r * COST.p == 2**18 * 8 * 1


def test_the_longest_manifest_fits_a_frame(secret: Secret) -> None:
    """A row costs the same wherever it stands, so a short file tells of a long one."""
    head, key = new_key(secret, CHEAP)

    def length(count: int) -> int:
        rows = (ChunkRow(MAX_CHUNK_SIZE + 16, "aes256gcm", b"s" * 32, b"b" * 32, b"p" * 32),) * count
        true = Manifest("n" * 4096, count * MAX_CHUNK_SIZE, b"w" * 32, MAX_CHUNK_SIZE, rows)
        return len(encrypt_manifest(true, head, key, hide_name=False).canonical)

    a_row = (length(70_000) - length(10_000)) / 60_000
    assert (
        length(70_000) + a_row * (MAX_NEW_SEALED_CHUNKS - 70_000) < wire.MAX_REQUEST_FRAME_BYTES - 64 * 1024
    )


# -- hostile heads -------------------------------------------------------------------------


def head_parts(**change: Any) -> list[Any]:
    """Of a head for a passphrase, as they are packed."""
    lock = {"kind": "scrypt", "salt": b"s" * 16, "log2_n": 16, "r": 8, "p": 2} | change
    return [change.get("version", 1), [lock[key] for key in ("kind", "salt", "log2_n", "r", "p")], b"w" * 48]


@pytest.mark.row("S3")
@pytest.mark.parametrize(
    "change",
    [
        {"log2_n": 18}, {"log2_n": 63}, {"log2_n": 9}, {"log2_n": -1}, {"log2_n": 2**63}, {"log2_n": True},
        {"log2_n": 16.0}, {"r": 1}, {"r": 9}, {"r": 2**32}, {"p": 0}, {"p": 9}, {"p": -1}, {"p": "2"},
        {"salt": b""}, {"salt": b"s" * 17}, {"salt": "s" * 16}, {"kind": "argon2"}, {"kind": "key file"},
        {"kind": None}, {"kind": []}, {"version": 2}, {"version": True}, {"version": "1"},
    ],
)  # fmt: skip
def test_a_head_that_is_none_or_costs_too_much_is_refused_untried(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> bytes:
        raise AssertionError("it was tried")

    monkeypatch.setattr(encryption, "_wrapping_key", never)
    with pytest.raises(ManifestInvalid):
        parse_head(msgpack.packb(head_parts(**change)))
    outer = replace(FILE.outer, sealed=msgpack.packb([*head_parts(**change), b"b" * 50]))
    with pytest.raises(ManifestInvalid):
        open_manifest(outer, PASSPHRASE)


def test_what_one_passphrase_costs_is_bounded() -> None:
    """128 MiB and some seconds: nobody can make us use more."""
    most = [Cost(n, r, p) for n in range(64) for r in (1, 8, 9, 64) for p in range(20)]
    taken = [cost for cost in most if cost.problem is None]
    assert COST.problem is None
    assert max(128 * 2**cost.log2_n * cost.r for cost in taken) == 128 * 1024**2
    assert max(2**cost.log2_n * cost.r * cost.p for cost in taken) <= 8 * 2**COST.log2_n * COST.r * COST.p


@given(data=st.binary(max_size=200))
@example(data=b"\x93" * 5000)
@example(data=b"\xdd\xff\xff\xff\xff")
@example(data=b"\xc6\xff\xff\xff\xff")
def test_garbage_is_refused(data: bytes) -> None:
    opens: list[Callable[[], object]] = [
        lambda: parse_head(data),
        lambda: head_of(replace(FILE.outer, sealed=data)),
        lambda: open_manifest(replace(FILE.outer, sealed=data), KEY),
    ]
    for read in opens:
        with pytest.raises(ManifestInvalid):
            read()


def test_a_plain_file_has_nothing_to_open() -> None:
    row = ChunkRow(5, "identity", b"s" * 32, b"b" * 32, None)
    plain = Manifest("plain", 5, b"s" * 32, CHUNK, (row,))
    assert encryption.opened(plain) is None
    with pytest.raises(ManifestInvalid, match="not encrypted"):
        open_manifest(plain, KEY)


def test_a_sealed_manifest_is_not_taken_for_a_plain_one() -> None:
    with pytest.raises(ValueError, match="not opened"):
        encryption.opened(FILE.outer)
    opened = open_manifest(FILE.outer, KEY)
    assert isinstance(opened, OpenManifest)
    assert encryption.opened(opened) is opened


def test_errors_are_ours() -> None:
    assert issubclass(WrongKey, ZchunkError)
    assert not WrongKey.retryable
