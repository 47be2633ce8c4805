"""The vault gives back what was put in, on both kinds of storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.vault import Receipt, Vault, shards
from common.errors import InputError, Refused, SealError
from common.sealing import KeyFileLock
from tests.vault_cases import DIM, MODEL, Place, postgres_server, unit_rows


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    server = request.getfixturevalue("server") if request.param == "postgres" else None
    return Place(tmp_path, server)


def test_templates_come_back_rotated_with_their_cosines(place: Place) -> None:
    rows = unit_rows(5)
    with place.vault() as vault:
        vault.enrol("ada", rows[:2], model_id=MODEL)
        vault.enrol("bob", rows[2:3], model_id=MODEL)
        pseudonym = vault.enrol("ada", rows[3:], model_id=MODEL)
        assert pseudonym == vault.pseudonym("ada")
        stored = vault.templates("ada")
        assert np.abs(stored @ vault.protect(rows).T - rows[[0, 1, 3, 4]] @ rows.T).max() < 1e-6
        assert np.abs(stored - rows[[0, 1, 3, 4]]).max() > 0.1, "not the plain embeddings"
        gallery = vault.gallery()
        owned = [gallery.pseudonyms[owner] for owner in gallery.owners]
        ada, bob = vault.pseudonym("ada"), vault.pseudonym("bob")
        assert sorted(owned) == sorted([ada] * 4 + [bob])
        np.testing.assert_array_equal(gallery.vectors[[o == ada for o in owned]], stored)


def test_what_was_enrolled_is_there_after_opening_again(place: Place) -> None:
    address = place.address()
    with Vault.create(address, place.lock, model_id=MODEL, dim=DIM) as vault:
        vault.enrol("ada", unit_rows(2), model_id=MODEL)
        before, info = vault.templates("ada"), vault.info
    with Vault.open(address, place.lock) as vault:
        np.testing.assert_array_equal(vault.templates("ada"), before)
        assert vault.info == info
        assert (info.subjects, info.templates, info.stale) == (1, 2, 0)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_shards_and_loose_records_are_one_gallery(
    place: Place, monkeypatch: pytest.MonkeyPatch, eight_bit: bool
) -> None:
    monkeypatch.setattr(shards, "LOOSE", 5)
    monkeypatch.setattr(shards, "ROWS", 4)
    rows = unit_rows(26)
    with place.vault(eight_bit=eight_bit) as vault:
        for i in range(13):
            vault.enrol(f"person {i % 7}", rows[2 * i : 2 * i + 2], model_id=MODEL)
        for i in range(7):
            wanted = np.concatenate([rows[2 * j : 2 * j + 2] for j in range(i, 13, 7)])
            scores = (vault.templates(f"person {i}") @ vault.protect(wanted).T).diagonal()
            assert scores.min() > 0.999
        gallery = vault.gallery()
        assert len(gallery.vectors) == 26
        assert len(gallery.pseudonyms) == 7
        for i in range(7):
            mine = gallery.owners == gallery.pseudonyms.index(vault.pseudonym(f"person {i}"))
            np.testing.assert_array_equal(gallery.vectors[mine], vault.templates(f"person {i}"))


def test_an_erased_subject_is_gone_and_the_others_are_not(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LOOSE", 5)
    rows = unit_rows(16)
    with place.vault() as vault:
        for i in range(8):
            vault.enrol(f"person {i}", rows[2 * i : 2 * i + 2], model_id=MODEL)
        kept = {i: vault.templates(f"person {i}") for i in range(8)}
        for i in (1, 6):  # one in a shard, one loose
            receipt = vault.erase(f"person {i}")
            assert Receipt.verify(receipt.to_json()) == receipt
            assert (receipt.templates, receipt.pseudonym) == (2, vault.pseudonym(f"person {i}"))
            with pytest.raises(InputError, match="nobody"):
                vault.templates(f"person {i}")
            assert receipt.log_head == vault.log()[-1].hash
        assert len(vault.gallery().vectors) == 12
        assert vault.info.subjects == 6
        for i in {*range(8)} - {1, 6}:
            np.testing.assert_array_equal(vault.templates(f"person {i}"), kept[i])
        vault.enrol("person 1", rows[:1], model_id=MODEL)
        assert len(vault.templates("person 1")) == 1


def test_a_changed_receipt_is_found_out(place: Place) -> None:
    with place.vault() as vault:
        vault.enrol("ada", unit_rows(1), model_id=MODEL)
        text = vault.erase("ada").to_json()
    with pytest.raises(SealError, match="changed"):
        Receipt.verify(text.replace('"templates": 1', '"templates": 2'))
    with pytest.raises(SealError, match="another vault"):
        Receipt.verify(text, public_key="00" * 32)
    for broken in ("", "[]", "{}", text.replace('"format": 1', '"format": true')):
        with pytest.raises(InputError):
            Receipt.verify(broken)


def test_the_generation_rises_in_every_process_that_has_it_open(place: Place) -> None:
    address = place.address()
    with (
        Vault.create(address, place.lock, model_id=MODEL, dim=DIM) as one,
        Vault.open(address, place.lock) as other,
    ):
        before = other.generation
        one.enrol("ada", unit_rows(1), model_id=MODEL)
        assert other.generation > before
        assert len(other.gallery().vectors) == 1
        before = other.generation
        one.record("verify", one.pseudonym("ada"), "accepted")
        assert other.generation == before, "a log entry changes no gallery"


def test_settings_are_remembered_and_replaced(place: Place) -> None:
    with place.vault() as vault:
        assert vault.recall("threshold") is None
        vault.remember("threshold", b"one")
        vault.remember("threshold", b"two")
        assert vault.recall("threshold") == b"two"


def test_bad_embeddings_and_other_models_are_refused_and_leave_nothing(place: Place) -> None:
    with place.vault() as vault:
        for bad in (
            unit_rows(1) * 2,
            unit_rows(1) * np.float32("nan"),
            unit_rows(1, dim=DIM + 1),
            unit_rows(1)[0],
            unit_rows(1)[:0],
        ):
            with pytest.raises(InputError):
                vault.enrol("ada", bad, model_id=MODEL)
        with pytest.raises(Refused, match="another model"):
            vault.enrol("ada", unit_rows(1), model_id="model-two")
        with pytest.raises(Refused, match="no templates of this model"):
            vault.gallery("model-two")
        with pytest.raises(Refused, match="keeps no chips"):
            vault.enrol("ada", unit_rows(1), model_id=MODEL, chips=np.zeros((1, 2), np.uint8))
        for name in ("", "x" * 2000, "\ud800"):
            with pytest.raises(InputError):
                vault.enrol(name, unit_rows(1), model_id=MODEL)
        assert vault.subjects() == ()
        assert vault.info.templates == 0


def test_a_vault_is_never_made_over_another(place: Place) -> None:
    address = place.address()
    Vault.create(address, place.lock, model_id=MODEL, dim=DIM).close()
    with pytest.raises(InputError):
        Vault.create(address, place.lock, model_id=MODEL, dim=DIM)
    Vault.open(address, place.lock).close()


def test_another_key_opens_nothing(place: Place, tmp_path: Path) -> None:
    address = place.address()
    Vault.create(address, place.lock, model_id=MODEL, dim=DIM).close()
    with pytest.raises(SealError, match="does not open"):
        Vault.open(address, KeyFileLock.create(tmp_path / "other.key"))
