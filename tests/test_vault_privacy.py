"""What lies on the disk says nothing, an erased subject leaves nothing, two vaults do not link."""

from __future__ import annotations

import base64
import math
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from client.vault import Receipt, Vault, database, shards
from client.vault.cost import eight_bit_cost
from client.vault.database import Database
from common.errors import InputError, StorageError
from common.sealing import KeyFileLock
from tests.vault_cases import DIM, MODEL, Place, postgres_server, unit_rows

CANARY = "CANARY Zoë Example"
_BLOBS = (
    ("subject", "wrapped"), ("subject", "sealed"), ("template", "sealed"), ("chip", "sealed"),
    ("shard", "wrapped"), ("shard_body", "directory"), ("shard_body", "body"),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shards, "LOOSE", 5)
    monkeypatch.setattr(shards, "ROWS", 4)
    tmp_path.chmod(0o700)
    return tmp_path


def encodings(plain: bytes) -> Iterator[bytes]:
    """Yield bytes as they are and in the forms in which a careless program writes them."""
    yield plain
    yield plain.hex().encode()
    yield plain.hex().upper().encode()
    for cut in range(3):  # base64 depends on where in a longer text the bytes lie
        text = base64.b64encode(plain[cut : cut + len(plain[cut:]) // 3 * 3])
        yield text
        yield base64.urlsafe_b64encode(base64.b64decode(text))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_no_name_and_no_embedding_is_in_any_file(folder: Path) -> None:
    """Neither in the database, its log and index, nor in a backup; while open and after."""
    lock = KeyFileLock.create(folder / "site.key")
    rows, chips = unit_rows(12, dim=64), np.full((1, 32, 32, 3), 77, np.uint8)
    chips[0] += np.arange(32, dtype=np.uint8)[:, None, None]
    secrets = [CANARY.encode(), CANARY.encode("utf-16-le"), b"model-one", chips.tobytes()[:96]]
    with Vault.create(
        str(folder / "vault.db"), lock, model_id=MODEL, dim=64, keep_chips=True
    ) as vault:
        for i in range(12):
            name = f"{CANARY} {i}"
            vault.enrol(name, rows[i : i + 1], model_id=MODEL, chips=chips)
            vault.record("verify", vault.pseudonym(name), "accepted")
            turned = vault.templates(name)[0]
            secrets += [rows[i, :8].tobytes(), turned[:8].tobytes()]
            secrets += [f"{value:.6f}".encode() for value in (*rows[i, :2], *turned[:2])]
        vault.remember("threshold " + CANARY, b"value of " + CANARY.encode())
        vault.export(folder / "backup.vf", lock)
        found = {**files_of(folder)}
        assert {"vault.db", "vault.db-wal", "backup.vf"} <= found.keys()
    found |= {f"closed {name}": data for name, data in files_of(folder).items()}
    for secret in secrets:
        for form in encodings(secret):
            for name, data in found.items():
                assert form not in data, f"{form!r} is in {name}"


def blobs(path: Path) -> set[bytes]:
    """Return every sealed value of a vault's data rows."""
    with sqlite3.connect(path) as connection:
        found = {
            bytes(value)
            for table, column in _BLOBS
            for (value,) in connection.execute(f"SELECT {column} FROM {table}")
        }
    connection.close()
    return found


@pytest.mark.parametrize("erased", [1, 10], ids=["in a shard", "loose"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_no_byte_of_an_erased_subject_is_left_in_any_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, erased: int, interrupted: bool
) -> None:
    """Sealed values and wrapped keys that went are nowhere: file, write-ahead log, or a backup."""
    lock, path = KeyFileLock.create(folder / "site.key"), folder / "vault.db"
    with Vault.create(str(path), lock, model_id=MODEL, dim=DIM, keep_chips=True) as vault:
        for i in range(12):
            chips = np.full((1, 40, 40, 3), i, np.uint8)
            vault.enrol(f"person {i}", unit_rows(1, i), model_id=MODEL, chips=chips)
        before = blobs(path)
        if interrupted:  # the process ends between the commit and the scrubbing
            with monkeypatch.context() as patch:
                patch.setattr(Database, "scrub", _fail)
                vault.erase(f"person {erased}")
        else:
            vault.erase(f"person {erased}")
        if interrupted:
            Vault.open(str(path), lock).close()
        gone = before - blobs(path)
        assert len(gone) >= 4, "subject key, record, chips, and a shard or a loose record"
        vault.export(folder / "backup.vf", lock)
        copy = Path(shutil.copytree(folder, folder.parent / f"{folder.name} copy"))
        everything = files_of(folder)
    everything |= {f"closed {name}": data for name, data in files_of(folder).items()}
    for value in gone:
        for piece in (value[:24], value[-24:], value[len(value) // 2 :][:24]):
            for name, data in everything.items():
                assert piece not in data, f"something of an erased subject is in {name}"
    with Vault.open(str(copy / "vault.db"), lock) as vault:
        with pytest.raises(InputError):
            vault.templates(f"person {erased}")
        assert vault.info.subjects == len(vault.gallery().pseudonyms) == 11


def _fail(_self: Database) -> None:
    raise StorageError("stopped")


def test_no_byte_of_an_erased_subject_is_left_in_postgres_tables(folder: Path) -> None:
    with postgres_server() as server:
        place = Place(folder, server)
        address = place.address()
        with Vault.create(address, place.lock, model_id=MODEL, dim=DIM) as vault:
            for i in range(12):
                vault.enrol(f"person {i}", unit_rows(1, i), model_id=MODEL)
            before = _postgres_blobs(address)
            vault.erase("person 11")
            gone = before - _postgres_blobs(address)
            assert len(gone) >= 3
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute("CHECKPOINT")
                (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
            found = [p.read_bytes() for p in (Path(data) / "base").rglob("*") if p.is_file()]
            assert not any(value[:24] in file for value in gone for file in found)
            kept = next(iter(_postgres_blobs(address)))
            assert any(kept[:24] in file for file in found), "the search would have found it"


def test_a_dump_of_postgres_stops_neither_an_erasure_nor_who_reads_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "_SCRUB", 1.0)
    waits, stop = list[float](), threading.Event()
    with postgres_server() as server:
        place = Place(folder, server)
        address = place.address()
        with Vault.create(address, place.lock, model_id=MODEL, dim=DIM) as vault:
            for i in range(3):
                vault.enrol(f"person {i}", unit_rows(1, i), model_id=MODEL)
            before = _postgres_blobs(address)

            def read() -> None:
                while not stop.is_set():
                    began = time.monotonic()
                    vault.subjects()
                    waits.append(time.monotonic() - began)

            reader = threading.Thread(target=read)
            with psycopg.connect(address) as dump:  # what pg_dump does, for as long as it takes
                dump.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                dump.execute("SELECT count(*) FROM subject, template, chip, shard, setting")
                reader.start()
                began = time.monotonic()
                receipt = vault.erase("person 1")
                took = time.monotonic() - began
                dump.rollback()
            stop.set()
            reader.join()
            assert Receipt.verify(receipt.to_json()) == vault.receipt("person 1") == receipt
            assert "another program holds" in caplog.text
            assert took < 20 and len(waits) > 1 and max(waits) < 5
            gone = before - _postgres_blobs(address)
        assert any(piece[:24] in _tables(address) for piece in gone), (
            "the search finds what is left"
        )
        Vault.open(address, place.lock).close()
        assert gone and not any(piece[:24] in _tables(address) for piece in gone)


def _killed_when_told(where: str, key: str, receipt: str) -> None:
    """Erase, and die by a signal as soon as the receipt is there, or just before."""

    def told(signed: Receipt) -> None:
        if receipt:
            Path(receipt).write_text(signed.to_json())
        os.kill(os.getpid(), signal.SIGKILL)

    Vault.open(where, KeyFileLock(Path(key))).erase("person 1", told)


@pytest.mark.parametrize("written", [False, True])
def test_a_kill_between_erasure_and_scrubbing_loses_no_receipt_and_leaves_no_byte(
    folder: Path, written: bool
) -> None:
    """Be it before or after the receipt was written: the vault gives the same one again."""
    lock, path, file = KeyFileLock.create(folder / "site.key"), folder / "v.db", folder / "receipt"
    with Vault.create(str(path), lock, model_id=MODEL, dim=DIM) as vault:
        for i in range(3):
            vault.enrol(f"person {i}", unit_rows(1, i), model_id=MODEL)
    before = blobs(path)
    arguments = (str(path), str(folder / "site.key"), str(file) if written else "")
    child = get_context("spawn").Process(target=_killed_when_told, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    raw = path.read_bytes() + path.with_name("v.db-wal").read_bytes()
    with Vault.open(str(path), lock) as vault:
        assert len(vault.subjects()) == 2
        again = vault.receipt("person 1")
        assert Receipt.verify(again.to_json()) == again and again.templates == 1
        assert not written or Receipt.verify(file.read_text()) == again
        with pytest.raises(InputError, match="nobody of that name was erased"):
            vault.receipt("person 0")
        gone = before - blobs(path)
        left = path.read_bytes() + path.with_name("v.db-wal").read_bytes()
    assert gone and any(piece[:24] in raw for piece in gone), "the search finds what is left"
    assert not any(piece[:24] in left for piece in gone)


def _tables(address: str) -> bytes:
    """All files of the database, as they are on the disk."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    return b"".join(p.read_bytes() for p in (Path(data) / "base").rglob("*") if p.is_file())


def _postgres_blobs(address: str) -> set[bytes]:
    columns = [c for c in _BLOBS if c[0] in ("subject", "template")]
    with psycopg.connect(address) as connection:
        return {
            bytes(value)
            for table, column in columns
            for (value,) in connection.execute(f"SELECT {column} FROM {table}".encode())
        }


def auc(mated: NDArray[np.floating], non_mated: NDArray[np.floating]) -> float:
    """Return the probability that a mated score is above a non-mated one."""
    ordered = np.sort(non_mated)
    return float(np.searchsorted(ordered, mated).mean() / len(ordered))


def linkage(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    """Return how well cosines tell which rows of two stores are of one person."""
    scores = one @ two.T
    return auc(scores.diagonal(), scores[~np.eye(len(scores), dtype=bool)])


def test_two_vaults_of_the_same_people_do_not_link(folder: Path) -> None:
    """Mean linkage AUC over independent pairs of vaults is one half, at alpha 1e-6.

    Its variance has two parts: 2 / (12 n) for n persons, and (1 / (4 pi)) / D for the one matrix
    that a pair of vaults has between them (the mean of x' Q x is trace(Q) / D, of variance 1 / D^2,
    where single scores have variance 1 / D).
    """
    people, dim, pairs = 200, 64, 10
    embeddings = unit_rows(people, 1, dim)
    noise = np.random.default_rng(2).standard_normal((2, people, dim)) * 0.03
    visits = [embeddings + some for some in noise]
    visits = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in visits]
    names = [f"person {i}" for i in range(people)]
    stores, renewed = [], []
    place = Place(folder)
    for number in range(2 * pairs):
        with place.vault(dim=dim) as vault:
            vault.enrol_many(names, visits[number % 2].astype(np.float32), model_id=MODEL)
            stores.append(_by_person(vault, names))
            if number < pairs:
                vault.renew()
                renewed.append((stores[-1], _by_person(vault, names)))
    spread = math.sqrt((2 / (12 * people) + 1 / (4 * math.pi * dim)) / pairs)
    limit = 4.9 * spread  # two-sided alpha of 1e-6
    between = np.mean([linkage(a, b) for a, b in list(pairwise(stores))[::2]])
    assert abs(between - 0.5) < limit
    assert abs(np.mean([linkage(a, b) for a, b in renewed]) - 0.5) < limit
    assert linkage(visits[0], visits[1]) > 0.99 > 0.5 + limit, "without a transform they link"


def _by_person(vault: Vault, names: list[str]) -> NDArray[np.float32]:
    gallery = vault.gallery()
    place = {name: row for row, name in enumerate(gallery.pseudonyms)}
    order = [place[vault.pseudonym(name)] for name in names]
    rows = np.empty_like(gallery.vectors)
    rows[gallery.owners] = gallery.vectors
    return rows[order]


def test_the_cost_of_eight_bits_is_measured(folder: Path) -> None:
    people, each, dim = 150, 4, 128
    rng = np.random.default_rng(4)
    centres = np.repeat(unit_rows(people, 5, dim), each, axis=0)
    noisy = centres + rng.standard_normal(centres.shape) * 0.12
    rows = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
    cost = eight_bit_cost(rows, np.repeat(np.arange(people), each), 1e-3)
    assert cost.mated == people * each * (each - 1)
    assert 0.0 < cost.fnmr_float32 < 0.5, "hard enough to show a difference"
    assert abs(cost.fnmr_eight_bit - cost.fnmr_float32) < 0.01
    assert cost.largest_change < 0.01
    with pytest.raises(InputError):
        eight_bit_cost(rows[:8], np.repeat(np.arange(2), 4), 1e-9)


def test_a_reader_elsewhere_does_not_keep_a_vault_from_opening(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """But an erasure that cannot empty the write-ahead log says so, and the next opening does."""
    lock, path = KeyFileLock.create(folder / "site.key"), folder / "vault.db"
    with Vault.create(str(path), lock, model_id=MODEL, dim=DIM) as vault:
        vault.enrol("ada", unit_rows(1), model_id=MODEL)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM subject").fetchall()
        with Vault.open(str(path), lock) as other, pytest.MonkeyPatch.context() as patch:
            patch.setattr(database, "_SCRUB", 0.2)
            at_once = list[Receipt]()
            receipt = other.erase("ada", at_once.append)
            assert "keeps old pages" in caplog.text
            assert at_once == [receipt] == [Receipt.verify(receipt.to_json())]
            assert other.receipt("ada") == receipt and other.subjects() == ()
        reader.close()
        assert (folder / "vault.db-wal").stat().st_size > 0
        with Vault.open(str(path), lock):
            assert (folder / "vault.db-wal").stat().st_size == 0
