"""Sealed bytes, and the locks that keep a vault's key.

`seal` is AES-256-GCM (NIST SP 800-38D) under a fresh 96-bit nonce. Each data key seals a few
messages only, so that nonces stay far below the 2^32 that the standard allows for one key. A
`KeyLock` wraps the vault key itself; its three kinds are a passphrase, a key file and a transit
service in the manner of HashiCorp Vault.
"""

from __future__ import annotations

import os
import secrets
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from common.errors import InputError, SealError
from common.passphrases import prepared, spellings
from common.randomness import KEY_BYTES, fresh_key
from common.storage import write_private
from common.transit import TransitLock

__all__ = [
    "OVERHEAD", "KeyFileLock", "KeyLock", "PassphraseLock", "TransitLock",
    "open_sealed", "open_sealed_into", "seal",
]  # fmt: skip

_VERSION: Final = b"\x01"
_NONCE: Final = 12
_TAG: Final = 16
OVERHEAD: Final = len(_VERSION) + _NONCE + _TAG
_WRONG: Final = "wrong key, or the sealed data was changed"


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Return version byte, nonce, ciphertext and tag: OVERHEAD bytes longer than `plaintext`."""
    nonce = secrets.token_bytes(_NONCE)
    return _VERSION + nonce + AESGCM(key).encrypt(nonce, plaintext, _VERSION + associated)


def open_sealed(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Return what was sealed under this key and these associated bytes; else raise SealError."""
    nonce, body = _parts(sealed)
    try:
        return AESGCM(key).decrypt(nonce, body, _VERSION + associated)
    except InvalidTag as error:
        raise SealError(_WRONG) from error


def open_sealed_into(key: bytes, sealed: bytes, associated: bytes, out: memoryview) -> None:
    """As `open_sealed`, into a buffer of exactly the plaintext's size: no copy of large bodies."""
    nonce, body = _parts(sealed)
    if len(out) != len(body) - _TAG:
        raise SealError(f"sealed data of {len(body) - _TAG} bytes where {len(out)} belong")
    try:
        AESGCM(key).decrypt_into(nonce, body, _VERSION + associated, out)
    except InvalidTag as error:
        out[:] = bytes(len(out))
        raise SealError(_WRONG) from error


def _parts(sealed: bytes) -> tuple[bytes, memoryview]:
    if len(sealed) < OVERHEAD or sealed[:1] != _VERSION:
        raise SealError("not sealed data of a known version", hint=_WRONG)
    return sealed[1 : 1 + _NONCE], memoryview(sealed)[1 + _NONCE :]


class KeyLock(Protocol):
    """Wraps a 32-byte key; `context` names what it opens and must be the same to unwrap."""

    kind: ClassVar[str]

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Return the wrapped key."""
        ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the key; wrong lock or changed bytes: SealError."""
        ...


@dataclass(frozen=True)
class PassphraseLock:
    """Argon2id (RFC 9106, its second recommended choice: 64 MiB, 3 passes, 4 lanes).

    Of the passphrase's one form (`common.passphrases`); what was locked with another spelling
    before there was one opens, too.
    """

    passphrase: str = field(repr=False)
    kind: ClassVar[str] = "passphrase"
    _COST: ClassVar = struct.Struct(">BBI16s")  # passes, lanes, KiB, salt
    _LIMITS: ClassVar = (16, 16, 1 << 20)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        text = prepared(self.passphrase)
        cost = self._COST.pack(3, 4, 64 << 10, secrets.token_bytes(16))
        return cost + seal(self._derive(cost, text), key, cost + context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        cost = wrapped[: self._COST.size]
        hidden = wrapped[self._COST.size :]
        wrong = SealError(_WRONG)
        for text in spellings(self.passphrase):
            try:
                return open_sealed(self._derive(cost, text), hidden, cost + context)
            except SealError as error:
                wrong = error
        raise wrong

    def _derive(self, cost: bytes, text: str) -> bytes:
        if len(cost) != self._COST.size:
            raise SealError("the wrapped key is cut off")
        passes, lanes, memory, salt = self._COST.unpack(cost)
        limits = zip((passes, lanes, memory), self._LIMITS, strict=True)
        if any(not 1 <= asked <= limit for asked, limit in limits) or memory < 8 * lanes:
            raise SealError("the wrapped key asks for an absurd Argon2id cost", hint=_WRONG)
        kdf = Argon2id(
            salt=salt, length=KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory
        )
        return kdf.derive(text.encode())


@dataclass(frozen=True)
class KeyFileLock:
    """A file of 32 random bytes that its owner alone may read; keep it apart from the vault."""

    path: Path
    kind: ClassVar[str] = "key-file"

    @classmethod
    def create(cls, path: Path) -> KeyFileLock:
        """Write a new key file, mode 0600; an existing file is never replaced."""
        if path.exists():
            raise InputError(f"{path} exists already", hint="name a new file")
        write_private(path, fresh_key())
        return cls(path)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        return seal(self._read(), key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return open_sealed(self._read(), wrapped, context)

    def _read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                mode, key = os.fstat(file.fileno()).st_mode, file.read(KEY_BYTES + 1)
        except OSError as error:
            raise InputError(f"cannot read the key file {self.path}: {error.strerror}") from error
        if stat.S_IMODE(mode) & 0o077:
            raise InputError(f"{self.path} is open to others", hint=f"chmod 600 {self.path}")
        if len(key) != KEY_BYTES:
            raise InputError(f"{self.path} is not a key file of {KEY_BYTES} bytes")
        return key
