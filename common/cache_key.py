"""The key under which chips are cached: a file of its own, away from the cache it opens.

A copy or a backup of the cache alone shows no face. It does not protect from someone who reads
the whole home directory: who needs that encrypts the disk.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.errors import Refused, SealError, StorageError
from common.randomness import KEY_BYTES, fresh_key
from common.sealing import open_sealed, seal
from common.storage import home_folder, make_private_directory, write_private

_ELSEWHERE: Final = (
    "VEILFACE_CACHE_KEY names the file that keeps the key of the faces' cache; "
    "VEILFACE_CACHE or --cache the folder of the cache"
)


def default_key_file() -> Path:
    """$VEILFACE_CACHE_KEY, else veilface/cache.key in $XDG_CONFIG_HOME or ~/.config."""
    if own := os.environ.get("VEILFACE_CACHE_KEY"):
        return Path(own)
    return home_folder("XDG_CONFIG_HOME", ".config", hint=_ELSEWHERE) / "veilface" / "cache.key"


@dataclass(frozen=True)
class CacheSealer:
    """Seals cached chips with AES-256-GCM, each bound to the key it is found by."""

    secret: bytes = field(repr=False)

    @staticmethod
    def open(path: Path | None = None) -> CacheSealer:
        """Read the key file (None: `default_key_file`), or make it, mode 0600.

        Raises Refused if others can read it or it is not a key; StorageError if it cannot be made.
        """
        path = path or default_key_file()
        try:
            if not path.exists():
                _create(path)
        except StorageError as error:
            raise type(error)(error.message, hint=_ELSEWHERE) from error
        try:
            with path.open("rb") as file:
                status, secret = os.fstat(file.fileno()), file.read(KEY_BYTES + 1)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise Refused(f"{path} is open to others", hint=f"chmod 600 {path}")
        if len(secret) != KEY_BYTES:
            raise Refused(f"{path} is not a cache key", hint="delete it: chips are cut again")
        return CacheSealer(secret)

    def seal(self, key: bytes, plain: bytes) -> bytes:
        return seal(self.secret, plain, key)

    def unseal(self, key: bytes, sealed: bytes) -> bytes | None:
        try:
            return open_sealed(self.secret, sealed, key)
        except SealError:
            return None  # damaged, moved, or of another key: the chip is cut again


def _create(path: Path) -> None:
    """Make the key file; of two processes at once one wins, and both then read its key."""
    if not path.parent.is_dir():  # a folder that is there, /tmp perhaps, stays as it is
        make_private_directory(path.parent)
    own = path.with_name(f".{path.name}.{os.getpid()}")
    write_private(own, fresh_key())
    try:
        os.link(own, path)
    except FileExistsError:
        return
    except OSError as error:
        raise StorageError(f"cannot create {path}: {error.strerror}") from error
    finally:
        own.unlink(missing_ok=True)
