"""Killed 220 times at random: what the vault acknowledged is there, and nothing is half-sealed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.vault import Vault, rotation, shards, verify_log
from common.errors import InputError, SealError
from common.sealing import KeyFileLock
from tests.crash_rig import Writers, acknowledge, writers
from tests.vault_cases import MODEL, unit_rows

KILLS = 220
_FRESH_AFTER = 10  # kills; a small vault keeps looking quick
_MOST_STEPS = 9  # beginnings and ends of operations in one life
_LONGEST_WAIT = 0.015  # seconds into the operation after them: as long as most take
_ROWS = unit_rows(2)


def _small() -> None:
    """Shards of a few rows, so that a short life sees many of them."""
    shards.LOOSE, shards.ROWS, rotation.BATCH = 6, 4, 3


def _locks(folder: Path) -> tuple[KeyFileLock, KeyFileLock]:
    return KeyFileLock(folder / "even.key"), KeyFileLock(folder / "odd.key")


def _open(folder: Path) -> tuple[Vault, int]:
    """Open a vault with whichever key it has; return also which of the two that is."""
    for which, lock in enumerate(_locks(folder)):
        try:
            return Vault.open(str(folder / "vault.db"), lock), which
        except SealError:
            continue
    raise AssertionError("neither the old nor the new key opens the vault")


def use_for_ever(folder: str, start: str) -> None:
    """Enrol, erase, rotate and renew without end; say each before it starts and when it is done."""
    _small()
    dice, number, living = random.Random(int(start)), int(start), list[int]()
    vault, which = _open(Path(folder))
    while True:
        what = dice.random()
        if what < 0.5 or not living:
            number += 1
            acknowledge(f"E{number}")
            vault.enrol(f"person {number}", _ROWS, model_id=MODEL)
            living.append(number)
            acknowledge(f"e{number}")
        elif what < 0.75:
            gone = living.pop(dice.randrange(len(living)))
            acknowledge(f"X{gone}")
            vault.erase(f"person {gone}")
            acknowledge(f"x{gone}")
        elif what < 0.9:
            acknowledge("R0")
            which = 1 - which
            vault.rotate_key(_locks(Path(folder))[which])
            acknowledge(f"r{which}")
        else:
            acknowledge("N0")
            vault.renew()
            acknowledge("n0")


@pytest.fixture
def users() -> Iterator[Writers]:
    with writers(use_for_ever) as started:
        yield started


def test_no_acknowledged_change_is_ever_lost_and_none_is_half_done(
    users: Writers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, folder, interrupted = random.Random(1), tmp_path, Counter[str]()
    acknowledged, number = Counter[str](), 0
    alive, dead = set[int](), set[int]()
    for kill in range(KILLS):
        if kill % _FRESH_AFTER == 0:
            folder, alive, dead = tmp_path / f"site{kill}", set(), set()
            folder.mkdir(mode=0o700)
            even, _ = (KeyFileLock.create(lock.path) for lock in _locks(folder))
            Vault.create(str(folder / "vault.db"), even, model_id=MODEL, dim=16).close()
        steps, delay = rng.randrange(_MOST_STEPS), rng.random() * _LONGEST_WAIT
        told = users.killed(folder, number, after=steps, delay=delay)
        unsure = set[int]()
        for word, who in ((line[0], int(line[1:])) for line in told):
            number = max(number, who)
            if word in "EX":
                unsure.add(who)
                alive.discard(who)
            elif word in "ex":
                unsure.discard(who)
                (alive if word == "e" else dead).add(who)
                acknowledged[word] += 1
        if told and told[-1][0].isupper():
            interrupted[told[-1][0]] += 1
        vault, which = _open(folder)
        with vault:
            present = _present(vault, alive | dead | unsure)
            assert alive <= present, "an acknowledged enrolment is gone"
            assert not dead & present, "an acknowledged erasure came back"
            assert present - alive <= unsure
            alive = present
            listed = vault.subjects()
            assert len(listed) == len(alive) == vault.info.subjects
            assert all(one.templates == 2 for one in listed), "half an enrolment"
            assert len(vault.gallery().vectors) == 2 * len(alive)
            vault.log()
            if kill % 5 == 0:
                vault.rotate_key(_locks(folder)[which])  # goes on with what was stopped
        if kill % 5 == 1:
            assert verify_log(str(folder / "vault.db")).ok
    assert acknowledged["e"] > KILLS // 4, "the user never got far: nothing was tested"
    assert all(interrupted[word] > 3 for word in "EXR"), interrupted


def _present(vault: Vault, asked: set[int]) -> set[int]:
    """Who is in the vault; each has both templates, and they score as the plain ones do."""
    found, probe = set(), vault.protect(_ROWS)
    for who in asked:
        try:
            rows = vault.templates(f"person {who}")
        except InputError:
            continue
        np.testing.assert_allclose(rows @ probe.T, _ROWS @ _ROWS.T, atol=1e-5)
        found.add(who)
    return found
