"""Private files and folders: who may read them, and what is left of a write that failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import StorageError
from common.storage import make_private_directory, write_private


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


def test_a_folder_that_is_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)
    assert make_private_directory(tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_a_file_where_a_folder_belongs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(StorageError, match="cannot create"):
        make_private_directory(tmp_path / "a" / "b")
    with pytest.raises(StorageError, match="cannot create"):
        make_private_directory(tmp_path / "a")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    folder = make_private_directory(tmp_path / "a")
    write_private(folder / "f", b"old")
    (folder / "g").mkdir()
    with pytest.raises(StorageError):
        write_private(folder / "g", b"new")
    assert sorted(p.name for p in folder.iterdir()) == ["f", "g"]
    assert (folder / "f").read_bytes() == b"old"
    assert (folder / "f").stat().st_mode & 0o777 == 0o600
