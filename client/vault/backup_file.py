"""The file of a sealed backup: one line that says what it is, then sealed chunks to the last.

A chunk is bound to the vault, to its place and to whether it is the last, so that none can be left
out, moved, or cut off.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from client.vault.manifest import associated
from common.errors import InputError, SealError
from common.randomness import fresh_key
from common.sealing import KeyLock, open_sealed, seal
from common.storage import storage_error, sync_directory

_FORMAT: Final = "veilface vault backup 1"
_LENGTH: Final = struct.Struct(">I")
_LARGEST: Final = 1 << 30
_LONGEST_HEAD: Final = 1 << 16


def write_backup(path: Path, chunks: Iterator[bytes], vault_id: str, lock: KeyLock) -> None:
    """Write a new file, mode 0600, whole or not at all; an existing one is never replaced."""
    if path.exists():
        raise InputError(f"{path} exists already", hint="name a new file")
    key = fresh_key()
    wrapped = base64.b64encode(lock.wrap(key, _context(vault_id))).decode()
    head = {"format": _FORMAT, "vault_id": vault_id, "kind": lock.kind, "wrapped": wrapped}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            for chunk in _sealed(chunks, key, vault_id):
                file.write(_LENGTH.pack(len(chunk)) + chunk)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(f"cannot write {path}", error) from error
    finally:
        part.unlink(missing_ok=True)


def read_backup(file: IO[bytes], lock: KeyLock) -> tuple[str, Iterator[bytes]]:
    """Return the vault's id and its chunks; another lock or a changed file: SealError."""
    try:
        head = json.loads(file.readline(_LONGEST_HEAD))
        known, vault_id, kind = head["format"] == _FORMAT, str(head["vault_id"]), head["kind"]
        wrapped = base64.b64decode(head["wrapped"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("this is not a vault's backup") from error
    if not known:
        raise InputError("this backup is of a version that this program does not know")
    if kind != lock.kind:
        raise SealError(f"this backup's lock is a {kind}, not a {lock.kind}")
    return vault_id, _opened(file, lock.unwrap(wrapped, _context(vault_id)), vault_id)


def _sealed(chunks: Iterator[bytes], key: bytes, vault_id: str) -> Iterator[bytes]:
    place, waiting = 0, next(chunks)
    for chunk in chunks:
        yield seal(key, waiting, _bound(vault_id, place, last=False))
        place, waiting = place + 1, chunk
    yield seal(key, waiting, _bound(vault_id, place, last=True))


def _opened(file: IO[bytes], key: bytes, vault_id: str) -> Iterator[bytes]:
    place, raw = 0, file.read(_LENGTH.size)
    while raw:
        size = _LENGTH.unpack(raw)[0] if len(raw) == _LENGTH.size else _LARGEST + 1
        if size > _LARGEST:
            raise SealError("the backup is cut off or was changed")
        sealed, raw = file.read(size), file.read(_LENGTH.size)
        yield open_sealed(key, sealed, _bound(vault_id, place, last=not raw))
        place += 1
    if place == 0:
        raise SealError("the backup is cut off")


def _bound(vault_id: str, place: int, *, last: bool) -> bytes:
    return associated(vault_id, "backup", place, "last" if last else "more")


def _context(vault_id: str) -> bytes:
    return f"veilface backup of vault {vault_id}".encode()
