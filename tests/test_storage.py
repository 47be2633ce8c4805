"""Private files and folders: who may read them, and what is left of a write that failed."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from common.errors import InputError, PathError, StorageError
from common.storage import make_private_directory, own_directory, write_private
from server.deployment.folder import Contacts, ServerFolder


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_folder_and_its_new_parents_are_for_their_owner_alone(umask: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(umask)
    try:
        made = make_private_directory(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    for folder in (made, made.parent, made.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o1777])
def test_a_folder_that_we_did_not_make_keeps_its_mode(mode: int, tmp_path: Path) -> None:
    """Whoever names a home, a project or /tmp by mistake must not find it closed to everyone."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    make_private_directory(tmp_path / "a")
    made = own_directory(tmp_path / "a", ("mark",))
    assert made.stat().st_mode & 0o7777 == mode


def test_a_folder_of_ours_is_new_or_empty_or_was_ours(tmp_path: Path) -> None:
    def refused(path: Path) -> None:
        with pytest.raises(InputError, match="holds something else"):
            own_directory(path, ("mark",))

    made = own_directory(tmp_path / "new", ("mark",))
    assert made.stat().st_mode & 0o777 == 0o700
    (made / "lock").touch()
    own_directory(made, ("mark",))
    (made / "other").touch()
    refused(made)
    (made / "mark").touch()
    own_directory(made, ("mark",))
    refused(tmp_path)


def test_a_file_where_a_folder_belongs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(PathError, match="cannot create"):
        make_private_directory(tmp_path / "a" / "b")
    with pytest.raises(PathError, match="cannot create"):
        make_private_directory(tmp_path / "a")


@pytest.mark.parametrize("name", ["missing/f", "file/f", "folder", "f" * 300])
def test_a_path_that_cannot_be_written_is_told_from_a_disk_that_refuses(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PathError, match="choose another path") as found:
        write_private(tmp_path / name, b"new")
    assert found.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_disk_that_refuses_is_no_wrong_path(tmp_path: Path) -> None:
    """The kernel lets no file grow beyond 100 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(StorageError, match="free some space") as found:
            write_private(tmp_path / "f", bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not isinstance(found.value, PathError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_durable_is_synced_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    write_private(tmp_path / "f", b"data", durable=durable)
    assert ((tmp_path / "f").read_bytes(), len(synced)) == (b"data", 2 * durable)


def test_a_list_of_sites_that_cannot_be_written_is_one_of_our_errors(tmp_path: Path) -> None:
    """The thread that keeps it lives on, and writes it when there is room again."""
    (tmp_path / "sites.json").mkdir()
    with pytest.raises(StorageError, match=r"sites\.json"):
        ServerFolder(tmp_path).keep_contacts(Contacts("", ()))
    assert [path.name for path in tmp_path.iterdir()] == ["sites.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    folder = make_private_directory(tmp_path / "a")
    write_private(folder / "f", b"old")
    (folder / "g").mkdir()
    with pytest.raises(StorageError):
        write_private(folder / "g", b"new")
    assert sorted(p.name for p in folder.iterdir()) == ["f", "g"]
    assert (folder / "f").read_bytes() == b"old"
    assert (folder / "f").stat().st_mode & 0o777 == 0o600
