"""Keys, spaces and models of a vault are renewed without losing anyone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.vault import Vault, rotation, shards
from common.errors import InputError, Refused, SealError, VeilfaceError
from common.sealing import KeyFileLock, PassphraseLock
from tests.vault_cases import DIM, MODEL, Place, postgres_server, unit_rows

SUBJECTS = 9


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(shards, "LOOSE", 5)
    monkeypatch.setattr(shards, "ROWS", 4)
    monkeypatch.setattr(rotation, "BATCH", 2)
    server = request.getfixturevalue("server") if request.param == "postgres" else None
    return Place(tmp_path, server)


def filled(place: Place, address: str, *, keep_chips: bool = False) -> Vault:
    """A vault of nine subjects of two templates, some in shards and some loose."""
    vault = Vault.create(address, place.lock, model_id=MODEL, dim=DIM, keep_chips=keep_chips)
    rows = unit_rows(2 * SUBJECTS)
    for i in range(SUBJECTS):
        vault.enrol(f"person {i}", rows[2 * i : 2 * i + 2], model_id=MODEL)
    return vault


def all_templates(vault: Vault) -> NDArray[np.float32]:
    return np.concatenate([vault.templates(f"person {i}") for i in range(SUBJECTS)])


def test_a_rotated_vault_opens_with_the_new_key_only(place: Place, tmp_path: Path) -> None:
    address, new = place.address(), KeyFileLock.create(tmp_path / "new.key")
    with filled(place, address) as vault:
        before, pseudonym = all_templates(vault), vault.pseudonym("person 0")
        vault.rotate_key(new)
        np.testing.assert_array_equal(all_templates(vault), before)
        vault.enrol("late", unit_rows(1), model_id=MODEL)
    with pytest.raises(SealError):
        Vault.open(address, place.lock)
    with Vault.open(address, new) as vault:
        np.testing.assert_array_equal(all_templates(vault), before)
        assert vault.pseudonym("person 0") == pseudonym
        assert [e.operation for e in vault.log()].count("rotate") == 2


class _StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", range(8))
def test_a_rotation_stopped_anywhere_opens_with_either_key_and_goes_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    address, new = place.address(), KeyFileLock.create(tmp_path / "new.key")
    real, calls = rotation._rewrap_some, 0

    def stopping(*arguments: object) -> int | None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise _StoppedError
        return real(*arguments)  # type: ignore[arg-type]

    with filled(place, address) as vault:
        before = all_templates(vault)
        with monkeypatch.context() as patch, pytest.raises(_StoppedError):
            patch.setattr(rotation, "_rewrap_some", stopping)
            vault.rotate_key(new)
        np.testing.assert_array_equal(all_templates(vault), before)
    for lock in (place.lock, new):
        with Vault.open(address, lock) as vault:
            np.testing.assert_array_equal(all_templates(vault), before)
            vault.enrol(f"meanwhile {lock.path.name}", unit_rows(1), model_id=MODEL)
            if lock is new:
                vault.rotate_key(new)
    with Vault.open(address, new) as vault:
        np.testing.assert_array_equal(all_templates(vault), before)
        assert vault.info.subjects == SUBJECTS + 2
    with pytest.raises(SealError):
        Vault.open(address, place.lock)


def test_a_vault_is_in_use_while_its_key_is_rotated(place: Place, tmp_path: Path) -> None:
    address = place.address()
    failures: list[BaseException] = []
    stop = threading.Event()
    with filled(place, address) as vault, Vault.open(address, place.lock) as other:

        def use(mine: Vault, name: str) -> None:
            count = 0
            try:
                while not stop.is_set() or count == 0:
                    mine.enrol(f"{name} {count}", unit_rows(1), model_id=MODEL)
                    assert len(mine.templates(f"{name} {count}")) == 1
                    mine.gallery()
                    count += 1
            except VeilfaceError as error:
                failures.append(error)

        threads = [threading.Thread(target=use, args=a) for a in ((vault, "in"), (other, "out"))]
        for thread in threads:
            thread.start()
        lock = place.lock
        for round_ in range(3):
            lock = KeyFileLock.create(tmp_path / f"new{round_}.key")
            vault.rotate_key(lock)
        stop.set()
        for thread in threads:
            thread.join()
        # The other program may have missed a whole rotation; then it is told to open anew.
        assert all("rotated by another program" in str(failure) for failure in failures)
        count = vault.info.subjects
    with Vault.open(address, lock) as vault:
        assert len(vault.subjects()) == count
        vault.gallery()


def test_a_passphrase_takes_a_key_files_place(place: Place) -> None:
    address, new = place.address(), PassphraseLock("correct horse battery staple")
    with filled(place, address) as vault:
        before = all_templates(vault)
        vault.rotate_key(new)
    with Vault.open(address, new) as vault:
        np.testing.assert_array_equal(all_templates(vault), before)
    with pytest.raises(SealError, match="passphrase, not a key-file"):
        Vault.open(address, place.lock)
    with pytest.raises(SealError):
        Vault.open(address, PassphraseLock("wrong"))


def test_renewed_templates_match_no_older_ones_and_score_as_before(place: Place) -> None:
    address = place.address()
    with filled(place, address) as vault:
        before, rows = all_templates(vault), unit_rows(2 * SUBJECTS)
        vault.renew()
        after = all_templates(vault)
        assert np.abs(after @ vault.protect(rows).T - rows @ rows.T).max() < 1e-5
        assert np.abs((after * before).sum(axis=1)).mean() < 0.6, "as far as strangers"
        assert len(vault.gallery().vectors) == len(rows)
    with Vault.open(address, place.lock) as vault:
        np.testing.assert_array_equal(all_templates(vault), after)


def embed_anew(chips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A model of another width."""
    rows = np.stack([unit_rows(1, int(chip.flat[0]), dim=24)[0] for chip in chips])
    return rows.astype(np.float32)


def test_who_has_chips_is_migrated_and_the_others_answer_to_the_old_model(place: Place) -> None:
    rows = unit_rows(6)
    with place.vault(keep_chips=True) as vault:
        for i, kept in enumerate([True, False, True, False, False, True]):
            chips = np.full((1, 4, 4, 3), i, dtype=np.uint8) if kept else None
            vault.enrol(f"person {i}", rows[i : i + 1], model_id=MODEL, chips=chips)
        done = vault.change_model("model-two", embed_anew)
        names = [vault.pseudonym(f"person {i}") for i in range(6)]
        assert set(done.migrated) == {names[i] for i in (0, 2, 5)}
        assert set(done.must_enrol) == {names[i] for i in (1, 3, 4)}
        assert (vault.info.model_id, vault.info.dim, vault.info.stale) == ("model-two", 24, 3)
        assert {s.pseudonym for s in vault.subjects() if s.stale} == set(done.must_enrol)

        assert len(vault.gallery().vectors) == len(vault.gallery(MODEL).vectors) == 3
        old = vault.templates("person 1", MODEL) @ vault.protect(rows[1:2], MODEL).T
        assert old.item() == pytest.approx(1.0, abs=1e-5)
        fresh = embed_anew(np.full((1, 4, 4, 3), 2, np.uint8))
        new = vault.templates("person 2") @ vault.protect(fresh).T
        assert new.item() == pytest.approx(1.0, abs=1e-5)

        with pytest.raises(Refused, match="no template of the model"):
            vault.templates("person 1")
        with pytest.raises(Refused, match="another model"):
            vault.enrol("person 1", rows[1:2], model_id=MODEL)
        vault.enrol("person 1", fresh, model_id="model-two")
        assert vault.info.stale == 2
        again = vault.change_model("model-two", embed_anew)
        assert again.migrated == ()
        assert len(again.must_enrol) == 2
        with pytest.raises(InputError, match="needs an id"):
            vault.change_model("", embed_anew)


def test_the_way_back_to_a_model_brings_back_what_it_knew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who moved by kept pictures, who had not moved, and who came after; stopped on the way."""
    rows, address = unit_rows(4), place.address()

    def embed_before(chips: NDArray[np.uint8]) -> NDArray[np.float32]:
        return rows[chips[:, 0, 0, 0]]

    def chips(person: int) -> NDArray[np.uint8]:
        return np.full((1, 4, 4, 3), person, np.uint8)

    with Vault.create(address, place.lock, model_id=MODEL, dim=DIM, keep_chips=True) as vault:
        vault.enrol("moved", rows[:1], model_id=MODEL, chips=chips(0))
        vault.enrol("moved too", rows[1:2], model_id=MODEL, chips=chips(1))
        vault.enrol("no chips", rows[2:3], model_id=MODEL)
        names = ("moved", "moved too", "no chips")
        before = {name: vault.templates(name) for name in names}
        vault.change_model("model-two", embed_anew, {"network": b"two"})
        late = embed_anew(chips(3))
        vault.enrol("late", late, model_id="model-two", chips=chips(3))
        vault.enrol("late without chips", late, model_id="model-two")
        assert vault.recall("network") == b"two"

        def stopping(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
            if pictures[0, 0, 0, 0] == 1:
                raise _StoppedError
            return embed_before(pictures)

        with pytest.raises(_StoppedError):
            vault.change_model(MODEL, stopping, {"network": b"one"})
    with Vault.open(address, place.lock) as vault:
        assert (vault.info.model_id, vault.recall("network")) == (MODEL, b"one")
        done = vault.change_model(MODEL, embed_before)
        assert len(done.migrated) == 2, "the one on whom it stopped, and who came after"
        assert done.must_enrol == (vault.pseudonym("late without chips"),)
        for name, templates in before.items():
            np.testing.assert_allclose(vault.templates(name), templates, atol=1e-6)
        assert (vault.templates("late") @ vault.protect(rows[3:]).T).item() > 1 - 1e-5
        old = vault.templates("late without chips", "model-two")
        assert (old @ vault.protect(late, "model-two").T).item() > 1 - 1e-5
        assert vault.info.stale == 1
        forward = vault.change_model("model-two", embed_anew)
        assert len(forward.migrated) == 3 and vault.info.stale == 1


def test_chips_that_a_model_cannot_use_leave_a_subject_where_it_is(place: Place) -> None:
    with place.vault(keep_chips=True) as vault:
        vault.enrol("ada", unit_rows(1), model_id=MODEL, chips=np.zeros((1, 4, 4, 3), np.uint8))
        before = vault.templates("ada")
        done = vault.change_model("model-two", lambda _: None)
        assert done.migrated == () and done.must_enrol == (vault.pseudonym("ada"),)
        np.testing.assert_array_equal(vault.templates("ada", MODEL), before)


def test_a_backup_becomes_the_same_vault_elsewhere(place: Place, tmp_path: Path) -> None:
    backup_lock, new = (KeyFileLock.create(tmp_path / f"{n}.key") for n in ("backup", "new"))
    file = tmp_path / "backup.vf"
    with filled(place, place.address()) as vault:
        vault.remember("threshold", b"0.5")
        before, info, log = all_templates(vault), vault.info, vault.log()
        vault.export(file, backup_lock)
        with pytest.raises(InputError, match="exists"):
            vault.export(file, backup_lock)
    assert file.stat().st_mode & 0o077 == 0
    address = place.address()
    with Vault.import_(file, backup_lock, address, new) as vault:
        np.testing.assert_array_equal(all_templates(vault), before)
    with Vault.open(address, new) as vault:
        np.testing.assert_array_equal(all_templates(vault), before)
        assert vault.info == info
        assert vault.recall("threshold") == b"0.5"
        assert vault.log()[: len(log)] == log
        vault.erase("person 0")
    with pytest.raises(SealError):
        Vault.import_(file, new, place.address(), new)
    with pytest.raises(InputError, match=r"exists|already"):
        Vault.import_(file, backup_lock, address, new)
