"""A path is a path whatever characters it has, and what is no address is refused in one line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from client.vault import Vault
from client.vault.database import Database
from common.cli import main
from common.errors import InputError, StorageError
from common.sealing import KeyFileLock, TransitLock
from tests.vault_cases import DIM, MODEL, unit_rows

ODD = [
    "a?b.db", "%41.db", "a%2fb.db", "a#b.db", "a&mode=memory.db", "file:x.db", ":memory:",
    "a b+c.db", "山田.db", "a;b@c.db", "x\n.db", os.fsdecode(b"\xff.db"),
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("inside", [False, True])
def test_a_vault_lies_in_the_file_that_was_named_and_nowhere_else(
    tmp_path: Path, name: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    lock = KeyFileLock.create(tmp_path / "key")
    monkeypatch.chdir(home)
    where = Path(name) / "v.db" if inside else Path(name)
    with Vault.create(str(where), lock, model_id=MODEL, dim=DIM) as vault:
        vault.enrol("ada", unit_rows(1), model_id=MODEL)
    assert {path.name for path in home.iterdir()} <= {name, f"{name}.head"}
    assert stat.S_IMODE(where.stat().st_mode) == 0o600 and where.stat().st_size > 16384
    monkeypatch.chdir(tmp_path)
    with Vault.open(str(home / where), lock) as vault:
        assert vault.info.subjects == 1


def test_a_vault_that_cannot_be_made_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("client.vault.schema.migrate", full)
    with pytest.raises(StorageError):
        Database(str(tmp_path / "v.db"), create=True)
    with pytest.raises(SystemExit) as exit_:
        main(["template", "init", "--vault", str(tmp_path / "w.db"),
              "--key-file", str(tmp_path / "key")])  # fmt: skip
    assert exit_.value.code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_was_there_outlives_a_vault_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise StorageError("the disk is full")

    KeyFileLock.create(tmp_path / "key")
    monkeypatch.setattr("client.vault.schema.migrate", full)
    with pytest.raises(SystemExit):
        main(["template", "init", "--vault", str(tmp_path / "w.db"),
              "--key-file", str(tmp_path / "key")])  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize(
    "where",
    ["postgresql://u:secret@host:54x32/db", "postgresql://u:secret@[::1/db",
     "postgresql://u:secret@host:99999/db", "postgresql://u:secret@host/db?nosuch=1",
     "postgresql://u:secret@host:0/db", "://", "mysql://u:secret@host/db", "nosuch://u:secret@h/d"],
)  # fmt: skip
def test_what_is_no_database_address_is_one_line_without_the_password(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    KeyFileLock.create(tmp_path / "key")
    with pytest.raises(SystemExit) as exit_:
        main(["template", "list", "--vault", where, "--key-file", str(tmp_path / "key")])
    told = capsys.readouterr().err
    assert exit_.value.code == 2, told
    assert told.count("\n") == 1 and "postgresql://" in told and "secret" not in told


@pytest.mark.parametrize("url", ["https://[::1", "https://host:abc", "https://host:99999", "x"])
def test_what_is_no_address_of_a_key_service_is_refused_before_anyone_is_called(url: str) -> None:
    with pytest.raises(InputError, match="address"):
        TransitLock(url, "token", "key")
