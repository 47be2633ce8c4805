"""Whoever can write the vault's file gets a named error or the truth, never a wrong answer."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.vault import LogEntry, Vault, shards, verify_log
from client.vault.listing import SubjectInfo, VaultInfo
from common.errors import InputError, SealError, StorageError, VeilfaceError
from common.sealing import KeyFileLock
from tests.vault_cases import DIM, MODEL, unit_rows

PEOPLE = 8
FLIPS = 250
_TABLES = ("vault", "vault_key", "subject", "template", "shard", "shard_body", "setting", "log")

Answers = tuple[VaultInfo, tuple[SubjectInfo, ...], tuple[LogEntry, ...], list[bytes | None]]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LOOSE", 5)
    monkeypatch.setattr(shards, "ROWS", 4)


@pytest.fixture
def lock(tmp_path: Path) -> KeyFileLock:
    tmp_path.chmod(0o700)
    return KeyFileLock.create(tmp_path / "site.key")


def make(path: Path, lock: KeyFileLock, *, chips: bool = False) -> Path:
    """A closed vault of eight subjects, some in shards and some loose, with settings and a log."""
    with Vault.create(str(path), lock, model_id=MODEL, dim=DIM, keep_chips=chips) as vault:
        for i in range(PEOPLE):
            kept = np.full((1, 2, 2, 3), i, np.uint8) if chips else None
            vault.enrol(f"person {i}", unit_rows(1, i), model_id=MODEL, chips=kept)
        vault.remember("threshold", b"0.5")
        vault.record("verify", vault.pseudonym("person 1"), "accepted")
    return path


def look(path: Path, lock: KeyFileLock) -> Answers:
    """Ask a vault everything that it answers."""
    with Vault.open(str(path), lock) as vault:
        gallery = vault.gallery()
        values: list[bytes | None] = [vault.recall("threshold")]
        values += [gallery.vectors.tobytes(), gallery.owners.tobytes()]
        values += ["".join(gallery.pseudonyms).encode()]
        values += [vault.templates(f"person {i}").tobytes() for i in range(PEOPLE)]
        with pytest.raises(InputError, match="nobody"):
            vault.templates("a stranger")
        return vault.info, vault.subjects(), vault.log(), values


def duplicate(path: Path, target: Path) -> Path:
    """Copy a closed vault's file, and the witness beside it."""
    shutil.copy(path.with_name(path.name + ".head"), target.with_name(target.name + ".head"))
    return Path(shutil.copy(path, target))


def change(path: Path, *statements: tuple[str, tuple[Any, ...]]) -> None:
    """Run SQL on the file as an attacker would; columns take any bytes."""
    with sqlite3.connect(path) as connection:
        for statement, values in statements:
            connection.execute(statement, values)
    connection.close()


def fetch(path: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute(query).fetchall()
    connection.close()
    return rows


def sealed_columns(path: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """Yield table, column, row id and bytes of one row of each sealed column."""
    for table in _TABLES:
        for _, column, kind, *_ in fetch(path, f"PRAGMA table_info({table})"):
            if kind == "BLOB":
                query = f"SELECT id, {column} FROM {table} WHERE {column} IS NOT NULL LIMIT 1"
                for id_, data in fetch(path, query):
                    yield table, column, id_, data


def test_a_flipped_byte_of_each_kind_is_named(tmp_path: Path, lock: KeyFileLock) -> None:
    """Version, nonce, ciphertext and tag of wrapped keys, directories, bodies, records, log."""
    original, seen = make(tmp_path / "vault.db", lock), set[str]()
    for table, column, id_, data in sealed_columns(original):
        for place in (0, 5, 13, len(data) // 2, len(data) - 1):
            copy = duplicate(original, tmp_path / "copy.db")
            flipped = bytearray(data)
            flipped[place] ^= 1
            change(copy, (f"UPDATE {table} SET {column} = ? WHERE id = ?", (bytes(flipped), id_)))
            with pytest.raises(SealError):
                look(copy, lock)
        for wrong in (b"", data[:-1], data + b"\0", None, 7, "text"):
            copy = duplicate(original, tmp_path / "copy.db")
            change(copy, ("PRAGMA ignore_check_constraints=ON", ()))
            try:
                change(copy, (f"UPDATE {table} SET {column} = ? WHERE id = ?", (wrong, id_)))
            except sqlite3.IntegrityError:
                continue
            with pytest.raises(SealError):
                look(copy, lock)
        seen.add(f"{table}.{column}")
    assert len(seen) == 10, seen


def test_visible_columns_cannot_be_changed_either(tmp_path: Path, lock: KeyFileLock) -> None:
    original = make(tmp_path / "vault.db", lock)
    for statement in (
        "UPDATE vault SET vault_id = 'another'",
        "UPDATE vault SET key = 2",
        "UPDATE vault_key SET id = 2",
        "UPDATE vault_key SET kind = 'passphrase'",
        "UPDATE subject SET key = 2",
        "UPDATE subject SET id = id + 1000",
        "UPDATE subject SET pseudonym = 'f' || substr(pseudonym, 2)",
        "UPDATE template SET model = 2",
        "UPDATE template SET id = id + 1000",
        "UPDATE template SET subject = (SELECT min(id) FROM subject)",
        "UPDATE shard SET model = 2",
        "UPDATE shard SET key = 2",
        "UPDATE shard_body SET id = id + 1000",
        "UPDATE setting SET name = 'threshold'",
        "UPDATE log SET hash = replace(hash, 'a', 'b')",
        "UPDATE schema_version SET version = 0",
        "DELETE FROM schema_version",
        "DELETE FROM vault",
        "DELETE FROM vault_key",
        "DROP TABLE template",
    ):
        copy = duplicate(original, tmp_path / "copy.db")
        change(copy, (statement, ()))
        with pytest.raises(VeilfaceError) as caught:
            look(copy, lock)
        assert isinstance(caught.value, SealError), (statement, caught.value)


@pytest.mark.parametrize("table", ["subject", "template", "shard", "shard_body", "setting"])
def test_a_row_taken_away_is_missed(tmp_path: Path, lock: KeyFileLock, table: str) -> None:
    vault = make(tmp_path / "vault.db", lock)
    change(vault, (f"DELETE FROM {table} WHERE id = (SELECT max(id) FROM {table})", ()))
    with pytest.raises(SealError):
        look(vault, lock)


@pytest.mark.parametrize("columns", ["sealed", "wrapped", "wrapped, sealed"])
def test_rows_do_not_open_in_another_subjects_place(
    tmp_path: Path, lock: KeyFileLock, columns: str
) -> None:
    vault, names = make(tmp_path / "vault.db", lock), columns.split(", ")
    one, two = fetch(vault, f"SELECT id, {columns} FROM subject ORDER BY id LIMIT 2")
    setting = ", ".join(f"{name} = ?" for name in names)
    for target, source in ((one, two), (two, one)):
        change(vault, (f"UPDATE subject SET {setting} WHERE id = ?", (*source[1:], target[0])))
    with pytest.raises(SealError):
        look(vault, lock)


def test_templates_do_not_open_in_anothers_place(tmp_path: Path, lock: KeyFileLock) -> None:
    vault = make(tmp_path / "vault.db", lock)
    for table, column in (("template", "sealed"), ("template", "subject"), ("shard_body", "body")):
        copy = duplicate(vault, tmp_path / "copy.db")
        one, two = fetch(vault, f"SELECT id, {column} FROM {table} ORDER BY id LIMIT 2")
        for target, source in ((one, two), (two, one)):
            change(copy, (f"UPDATE {table} SET {column} = ? WHERE id = ?", (source[1], target[0])))
        with pytest.raises(SealError):
            look(copy, lock)


@pytest.mark.parametrize("table", _TABLES)
def test_a_row_of_another_vault_of_the_same_key_opens_nothing(
    tmp_path: Path, lock: KeyFileLock, table: str
) -> None:
    vault, other = make(tmp_path / "vault.db", lock), make(tmp_path / "other.db", lock)
    change(
        vault,
        ("ATTACH ? AS other", (str(other),)),
        (f"DELETE FROM {table}", ()),
        (f"INSERT INTO {table} SELECT * FROM other.{table}", ()),
    )
    with pytest.raises(SealError):
        look(vault, lock)


@pytest.mark.parametrize("table", _TABLES)
def test_an_older_table_put_back_is_found_out(
    tmp_path: Path, lock: KeyFileLock, table: str
) -> None:
    """After an erasure, a renewal and a rotation, each table alone as it was before them."""
    vault = make(tmp_path / "vault.db", lock)
    older = duplicate(vault, tmp_path / "older.db")
    new = KeyFileLock.create(tmp_path / "new.key")
    with Vault.open(str(vault), lock) as opened:
        opened.erase("person 0")
        opened.enrol("person 0", unit_rows(1, 99), model_id=MODEL)
        opened.remember("threshold", b"0.9")
        opened.renew()
        opened.rotate_key(new)
    change(
        vault,
        ("ATTACH ? AS older", (str(older),)),
        (f"DELETE FROM {table}", ()),
        (f"INSERT INTO {table} SELECT * FROM older.{table}", ()),
    )
    for key in (lock, new):
        with pytest.raises(SealError):
            look(vault, key)


def test_an_erased_subject_cannot_be_put_back(tmp_path: Path, lock: KeyFileLock) -> None:
    vault = make(tmp_path / "vault.db", lock)
    older = duplicate(vault, tmp_path / "older.db")
    with Vault.open(str(vault), lock) as opened:
        gone = opened.pseudonym("person 7")
        opened.erase("person 7")
    change(
        vault,
        ("ATTACH ? AS older", (str(older),)),
        ("INSERT INTO subject SELECT * FROM older.subject WHERE pseudonym = ?", (gone,)),
    )
    with Vault.open(str(vault), lock) as opened, pytest.raises(SealError):
        opened.templates("person 7")


def test_kept_chips_cannot_be_swapped(tmp_path: Path, lock: KeyFileLock) -> None:
    vault = make(tmp_path / "vault.db", lock, chips=True)
    one, two = fetch(vault, "SELECT id, sealed FROM chip ORDER BY id LIMIT 2")
    for target, source in ((one, two), (two, one)):
        change(vault, ("UPDATE chip SET sealed = ? WHERE id = ?", (source[1], target[0])))
    with Vault.open(str(vault), lock) as opened, pytest.raises(SealError):
        opened.change_model("model-two", lambda chips: unit_rows(len(chips)))


def test_the_log_shows_change_removal_and_another_order(tmp_path: Path, lock: KeyFileLock) -> None:
    original = make(tmp_path / "vault.db", lock)
    whole = verify_log(str(original))
    assert whole.ok
    assert whole.entries == PEOPLE + 1
    last = whole.entries
    for statements, without_key in (
        (["UPDATE log SET sealed = randomblob(80) WHERE id = 3"], True),
        (["DELETE FROM log WHERE id = 3"], True),
        (["DELETE FROM log WHERE id = 3", "UPDATE log SET id = id - 1 WHERE id > 3"], True),
        ([f"UPDATE log SET id = {n} WHERE id = {m}" for m, n in ((2, 99), (3, 2), (99, 3))], True),
        ([f"DELETE FROM log WHERE id = {last}"], False),
        (["DELETE FROM log"], False),
    ):
        copy = duplicate(original, tmp_path / "copy.db")
        change(copy, *((statement, ()) for statement in statements))
        assert verify_log(str(copy)).ok is not without_key
        assert not verify_log(str(copy), lock).ok


def test_an_erasure_does_not_break_the_log(tmp_path: Path, lock: KeyFileLock) -> None:
    vault = make(tmp_path / "vault.db", lock)
    with Vault.open(str(vault), lock) as opened:
        opened.erase("person 1")
        assert [e.operation for e in opened.log()][-2:] == ["verify", "erase"]
    assert verify_log(str(vault), lock).ok


def test_any_byte_of_the_file_may_be_flipped(tmp_path: Path, lock: KeyFileLock) -> None:
    """A byte that nobody reads changes nothing; every other is a named error."""
    original, copy = make(tmp_path / "vault.db", lock), tmp_path / "copy.db"
    truth, data = look(original, lock), original.read_bytes()
    rng, refused, used = random.Random(3), 0, [i for i, byte in enumerate(data) if byte]
    for _ in range(FLIPS):
        place = rng.choice(used) if rng.random() < 0.9 else rng.randrange(1024)
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        copy.write_bytes(flipped)
        try:
            assert look(copy, lock) == truth, f"byte {place}"
        except VeilfaceError:
            refused += 1
        for suffix in ("-wal", "-shm"):
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)
    assert refused > FLIPS // 2


def test_an_older_file_put_back_is_found_out(tmp_path: Path, lock: KeyFileLock) -> None:
    """Sound in itself, with its own log: only the witness beside it can tell."""
    vault = make(tmp_path / "vault.db", lock)
    older = duplicate(vault, tmp_path / "older.db")
    with Vault.open(str(vault), lock) as opened:
        opened.erase("person 1")
    shutil.copy(older, vault)
    with pytest.raises(SealError, match="old copy"):
        Vault.open(str(vault), lock)


@pytest.mark.parametrize("way", ["deleted", "renamed", "linked", "hard link"])
def test_a_vault_without_its_witness_opens_only_for_who_says_that_it_is_to_be_trusted(
    tmp_path: Path, lock: KeyFileLock, way: str
) -> None:
    """Else one `rm` of a small file, or another name, brings back who was erased."""
    vault = make(tmp_path / "vault.db", lock)
    older = duplicate(vault, tmp_path / "older.db")
    with Vault.open(str(vault), lock) as opened:
        opened.erase("person 1")
    shutil.copy(older, vault)
    if way == "deleted":
        (tmp_path / "vault.db.head").unlink()
    elif way == "renamed":
        vault = vault.rename(tmp_path / "other.db")
    elif way == "linked":
        (tmp_path / "other.db").symlink_to(vault)
        vault = tmp_path / "other.db"
    else:
        os.link(vault, tmp_path / "other.db")
        vault = tmp_path / "other.db"
    for _ in range(2):  # a refusal writes no witness
        with pytest.raises(SealError, match="old copy") as refused:
            Vault.open(str(vault), lock)
        assert "template trust" in (refused.value.hint or "")
    with Vault.open(str(vault), lock, trust=True) as opened:
        assert opened.log()[-1].operation == "trust" and len(opened.subjects()) == PEOPLE
    look(vault, lock)


def test_a_vault_that_can_have_no_witness_is_not_made(
    tmp_path: Path, lock: KeyFileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = StorageError("the disk is full")

    def no_room(*_: object, **__: object) -> None:
        raise full

    backup = tmp_path / "backup"
    with Vault.open(str(make(tmp_path / "vault.db", lock)), lock) as vault:
        vault.export(backup, lock)
    monkeypatch.setattr("client.vault.witness.write_private", no_room)
    there = set(tmp_path.iterdir())
    where = str(tmp_path / "new.db")
    with pytest.raises(StorageError, match="disk is full"):
        Vault.create(where, lock, model_id=MODEL, dim=DIM)
    with pytest.raises(StorageError, match="disk is full"):
        Vault.import_(backup, lock, where, lock)
    assert set(tmp_path.iterdir()) == there


def test_a_witness_of_another_vault_or_a_changed_one_is_named(
    tmp_path: Path, lock: KeyFileLock
) -> None:
    vault, other = make(tmp_path / "vault.db", lock), make(tmp_path / "other.db", lock)
    head, good = tmp_path / "vault.db.head", (tmp_path / "vault.db.head").read_bytes()
    lower = good.replace(b" 10,", b" 1,").replace(b" 9,", b" 1,")
    assert lower != good
    for bad in ((tmp_path / f"{other.name}.head").read_bytes(), b"", b"[]", b"\xff", lower):
        head.write_bytes(bad)
        with pytest.raises(SealError, match="does not belong"):
            Vault.open(str(vault), lock)
    head.write_bytes(good)
    look(vault, lock)
