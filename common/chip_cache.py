"""Chips kept on disk in a private directory, so that a second run does not detect again.

    with ChipCache.open(directory) as cache:          # None: the default directory
        key = chip_key(sha256_of_the_file, detector.id, spec)
        cache.write([(key, chip)])                    # or (key, None): this image has no face
        for position, chip in cache.read([key]): ...

The directory and its one SQLite file are readable by their owner alone. Chips are faces: every
byte of them passes `Sealer.seal` on its way to the disk and `Sealer.unseal` on its way back.
They are kept as they are, since decoding costs more than reading: 68 kB for 150 x 150 pixels.
Nothing is lost but time when the directory is deleted.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from common.cache_key import CacheSealer
from common.errors import Refused, StorageError
from common.face import ChipSpec
from common.storage import home_folder

VERSION = 3  # of everything between an image's bytes and its chip: raise it when a chip changes
FILE = "chips.sqlite"
READ_AT_ONCE = 64

Chip = NDArray[np.uint8]


class Sealer(Protocol):
    """What stands between a chip and the disk."""

    def seal(self, key: bytes, plain: bytes) -> bytes:
        """The bytes to store for `plain` under `key`."""
        ...

    def unseal(self, key: bytes, sealed: bytes) -> bytes | None:
        """What was sealed under `key`; None if it is damaged or another sealer's."""
        ...


def chip_key(digest: bytes, detector_id: str, spec: ChipSpec) -> bytes:
    """32 bytes that name the chip of an image with SHA-256 `digest`; one-way."""
    recipe = f"{VERSION}\0{detector_id}\0{spec.template}\0{spec.size}\0"
    return hashlib.sha256(recipe.encode() + digest).digest()


def default_directory() -> Path:
    """$VEILFACE_CACHE, else veilface in $XDG_CACHE_HOME (if absolute), else in ~/.cache."""
    if own := os.environ.get("VEILFACE_CACHE"):
        return Path(own)
    hint = (
        "--cache or VEILFACE_CACHE names a folder for faces; VEILFACE_CACHE_KEY a file for its key"
    )
    return home_folder("XDG_CACHE_HOME", ".cache", hint=hint) / "veilface"


class ChipCache:
    """An open cache; for one thread at a time, any number of processes."""

    def __init__(self, database: sqlite3.Connection, sealer: Sealer, path: Path) -> None:
        self._database = database
        self._sealer = sealer
        self.path = path

    @classmethod
    def open(cls, directory: Path | None = None, *, sealer: Sealer | None = None) -> Self:
        """Open or create the cache in `directory` (None: `default_directory`).

        Chips are sealed under the key of `common.cache_key`, unless another sealer is given.

        Raises Refused if the directory or file belongs to, or can be read by, anyone else;
        StorageError if it cannot be created or is not a cache.
        """
        path = _private_file(directory or default_directory())
        with _storage_errors(path):
            database = sqlite3.connect(path, timeout=60, isolation_level=None)
            database.execute("PRAGMA page_size = 16384")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA secure_delete = ON")
            database.execute(
                "CREATE TABLE IF NOT EXISTS chips (key BLOB PRIMARY KEY, sealed BLOB NOT NULL)"
            )
        return cls(database, sealer or CacheSealer.open(), path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing written is lost."""
        self._database.close()

    def read(self, keys: Sequence[bytes]) -> Iterator[tuple[int, Chip | None]]:
        """Yield (position in `keys`, chip [S, S, 3]) of what is there, None for `no face`.

        Damaged entries are not yielded, so they are computed again and overwritten.
        """
        for start in range(0, len(keys), READ_AT_ONCE):
            batch = keys[start : start + READ_AT_ONCE]
            marks = ",".join("?" * len(batch))
            query = f"SELECT key, sealed FROM chips WHERE key IN ({marks})"
            with _storage_errors(self.path):
                rows = dict(self._database.execute(query, batch))
            for position, key in enumerate(batch, start):
                plain = self._sealer.unseal(key, rows[key]) if key in rows else None
                if plain is not None and (side := isqrt(len(plain) // 3)) ** 2 * 3 == len(plain):
                    chip = np.frombuffer(plain, np.uint8).reshape(side, side, 3)
                    yield position, chip if plain else None

    def write(self, entries: Iterable[tuple[bytes, Chip | None]]) -> None:
        """Store chips [S, S, 3] by key, all or none; None stores that the image has no face."""
        rows = [
            (key, self._sealer.seal(key, b"" if chip is None else chip.tobytes()))
            for key, chip in entries
        ]
        with _storage_errors(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT OR REPLACE INTO chips VALUES (?, ?)", rows)
            except sqlite3.Error:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def forget(self, keys: Sequence[bytes]) -> int:
        """Erase entries (overwritten with zeros on the disk); returns how many there were."""
        with _storage_errors(self.path):
            found = self._database.executemany(
                "DELETE FROM chips WHERE key = ?", [(key,) for key in keys]
            ).rowcount
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return found


def _private_file(directory: Path) -> Path:
    """The cache file in `directory`, created if need be, private or refused."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        directory = directory.resolve(strict=True)
        _refuse_unless_private(directory, directory.lstat())
        path = directory / FILE
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _refuse_unless_private(path, os.fstat(handle))
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(
            f"cannot use the chip cache {directory}: {error.strerror}",
            hint="choose another directory with --cache or VEILFACE_CACHE",
        ) from error
    return path


def _refuse_unless_private(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Refused(
            f"the chip cache {path} belongs to someone else or others can read it",
            hint=f"chmod go= {path}, or choose another directory with --cache",
        )


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageError(
            f"the chip cache {path} cannot be read or written: {error}",
            hint="free space or choose another directory with --cache",
        ) from error
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"the chip cache {path} is damaged: {error}", hint="delete the file"
        ) from error
