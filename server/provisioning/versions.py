"""A folder with one current version, replaced whole: a killed command leaves the old or the new.

    FED/ca/             the authority; never changes after it is made
    FED/current    ->   versions/3
    FED/versions/3/     settings, roster, contract, server certificate, bundles

A new version is written beside the old one, and the symbolic link `current` is renamed over. What a
killed command left is removed by the next one. The folder's own lock keeps commands apart.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import InputError, StorageError
from common.storage import make_private_directory, sync_directory

CURRENT: Final = "current"
_VERSIONS: Final = "versions"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a hidden folder to fill beside `out`, and rename it to `out` at the end.

    An existing `out` is an InputError; a failure removes what was written.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists already", hint="name a new folder with --out")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder", hint="--out names a new folder in one")
    staging = out.with_name(f".{out.name}.part")
    with locked(make_private_directory(staging)):
        _clear(staging)
        try:
            yield staging
            _sync(staging)
            staging.rename(out)
            sync_directory(out.parent)
        except OSError as error:
            raise StorageError(f"cannot write {out}: {error.strerror}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; if another command has it, that is an InputError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"cannot open {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            replaced = not os.path.samestat(os.fstat(descriptor), folder.stat())
        except (BlockingIOError, FileNotFoundError):
            replaced = True
        if replaced:
            raise InputError(f"another command is at work on {folder}", hint="try again")
        yield
    finally:
        os.close(descriptor)


def first_version(folder: Path) -> Path:
    """Make the first version in a new folder, already current, and return it to be filled."""
    version = make_private_directory(make_private_directory(folder / _VERSIONS) / "1")
    (folder / CURRENT).symlink_to(Path(_VERSIONS, "1"))
    return version


@contextmanager
def next_version(folder: Path) -> Iterator[Path]:
    """Give a new version to fill, and make it the current one at the end; the old one is removed.

    The caller holds the lock and has removed leftovers. A failure leaves the old version.
    """
    now = int((folder / CURRENT).readlink().name)
    version = make_private_directory(folder / _VERSIONS / str(now + 1))
    link = folder / f".{CURRENT}.part"
    try:
        yield version
        _sync(version)
        link.symlink_to(Path(_VERSIONS, version.name))
        link.replace(folder / CURRENT)
        sync_directory(folder)
    except OSError as error:
        raise StorageError(f"cannot write {version}: {error.strerror}") from error
    finally:
        remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove every version but the current one, and a link that was not yet in place.

    A folder without a current version among its versions is an InputError, and stays as it is.
    """
    current, versions = (folder / CURRENT).resolve(), (folder / _VERSIONS).resolve()
    if not current.is_dir() or current.parent != versions:
        raise InputError(
            f"{folder} is not a federation's folder", hint="--out of an earlier --name"
        )
    (folder / f".{CURRENT}.part").unlink(missing_ok=True)
    for version in versions.iterdir():
        if version != current:
            shutil.rmtree(version)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _sync(folder: Path) -> None:
    """Make all names under a folder durable; the files themselves are already."""
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            sync_directory(path)
    sync_directory(folder)
