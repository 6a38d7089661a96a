"""What encryption uses of the package cryptography: AES-256-GCM and scrypt.

It is imported by the first call: commands whose file is not encrypted start without it.
"""

from __future__ import annotations

from zchunk.content.manifest import TAG_BYTES

#: So much at a time, so that other threads get their turn in between.
_PIECE = 1 << 20


class WrongTag(Exception):
    """Another key, another place, or changed bytes."""


def encrypt(key: bytes, nonce: bytes, bound: bytes, plain: memoryview, into: memoryview) -> None:
    """Ciphertext and tag; the only place where chunks and bodies are encrypted."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(bound)
    for at in range(0, len(plain), _PIECE):
        piece = plain[at : at + _PIECE]
        encryptor.update_into(piece, into[at : at + len(piece)])
    encryptor.finalize()
    into[len(plain) :] = encryptor.tag


def decrypt(key: bytes, nonce: bytes, bound: bytes, sealed: memoryview) -> memoryview:
    """In place. Raises WrongTag."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    plain, tag = sealed[:-TAG_BYTES], bytes(sealed[-TAG_BYTES:])
    decryptor = Cipher(algorithms.AES(key), modes.GCM(nonce, tag)).decryptor()
    decryptor.authenticate_additional_data(bound)
    for at in range(0, len(plain), _PIECE):
        piece = plain[at : at + _PIECE]
        decryptor.update_into(piece, piece)
    try:
        decryptor.finalize()
    except InvalidTag:
        raise WrongTag from None
    return plain


def wrap(key: bytes, nonce: bytes, data: bytes, bound: bytes) -> bytes:
    """A key under another one."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key).encrypt(nonce, data, bound)


def unwrap(key: bytes, nonce: bytes, wrapped: bytes, bound: bytes) -> bytes:
    """What `wrap` was given. Raises WrongTag."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(nonce, wrapped, bound)
    except InvalidTag:
        raise WrongTag from None


def scrypt(passphrase: bytes, salt: bytes, length: int, *, n: int, r: int, p: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(salt=salt, length=length, n=n, r=r, p=p).derive(passphrase)
