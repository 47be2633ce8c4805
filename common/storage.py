"""Private files and directories: 0600 and 0700, written whole or not at all, durable."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from common.errors import InputError, PathError, StorageError

# What whoever works in a directory holds (`common.supervision`); a start that failed leaves it.
LOCK: Final = "lock"

# What only another path mends; everything else is a disk that says no.
_PATH_FAULTS: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
)


def make_private_directory(path: Path) -> Path:
    """Create a directory, and the parents that are missing, for its owner only, and return it.

    One that is there is left as it is: whose it is, and who may look into it, is not ours to say.
    Raises PathError where something else is in the way, StorageError where the disk refuses.
    """
    try:
        for missing in reversed([p for p in (path, *path.parents) if not p.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise storage_error(f"cannot create {path}", error) from error
    return path


def own_directory(path: Path, marks: Collection[str]) -> Path:
    """Return a private directory that holds what we keep, and nothing of anyone else.

    It is made if it is not there, and taken if it is empty, or was ours: then it holds one of the
    files `marks`. Any other is an InputError, and stays as it is.
    """
    if path.is_dir():
        try:
            held = {entry.name for entry in path.iterdir()}
        except OSError as error:
            raise storage_error(f"cannot read {path}", error) from error
        if held - {LOCK} and not held & set(marks):
            raise InputError(
                f"{path} is there and holds something else: {sorted(held)[0]!r}",
                hint="name a folder that is empty or not there",
            )
    return make_private_directory(path)


def home_folder(variable: str, default: str, *, hint: str) -> Path:
    """Return $variable if it is absolute (XDG base directories), else `default` in the user's home.

    A user without a home, as in many containers, is an InputError with the hint given.
    """
    base = Path(os.environ.get(variable, ""))
    if base.is_absolute():
        return base
    try:
        return Path.home() / default
    except RuntimeError as error:
        raise InputError("this user has no home folder: HOME is not set", hint=hint) from error


def write_private(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file's content atomically, mode 0600; if `durable` it survives a power cut.

    A failed write leaves the old file as it was and no temporary file; it is a StorageError, or
    a PathError where `path` cannot be: its folder is missing, or it is a folder itself.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(f"cannot write {path}", error) from error


def storage_error(what: str, error: OSError) -> StorageError:
    """Return the error to raise: a PathError where another path is what it takes."""
    text = f"{what}: {error.strerror}"
    if error.errno in _PATH_FAULTS:
        return PathError(text, hint="choose another path, in a folder that is there")
    return StorageError(text, hint="free some space or choose another place")


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
