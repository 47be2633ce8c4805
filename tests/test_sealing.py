"""Sealed bytes open for the right key in the right place; three kinds of lock; template bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.vault import Vault
from common import template
from common.errors import InputError, SealError, StorageError
from common.randomness import fresh_key
from common.sealing import (
    OVERHEAD,
    KeyFileLock,
    KeyLock,
    PassphraseLock,
    TransitLock,
    open_sealed,
    open_sealed_into,
    seal,
)

KEY = bytes(range(32))


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_what_was_sealed_opens(plain: bytes, bound: bytes) -> None:
    sealed = seal(KEY, plain, bound)
    assert len(sealed) == len(plain) + OVERHEAD
    assert open_sealed(KEY, sealed, bound) == plain
    out = bytearray(len(plain))
    open_sealed_into(KEY, sealed, bound, memoryview(out))
    assert out == plain


@given(st.data())
def test_a_changed_byte_another_key_or_another_place_opens_nothing(data: st.DataObject) -> None:
    sealed = bytearray(seal(KEY, b"a template", b"place"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    out = bytearray(len(b"a template"))
    with pytest.raises(SealError):
        open_sealed(KEY, bytes(sealed), b"place")
    with pytest.raises(SealError):
        open_sealed_into(KEY, bytes(sealed), b"place", memoryview(out))
    assert out == bytes(len(out)), "no byte of an unauthentic plaintext is left"
    good = seal(KEY, b"a template", b"place")
    for key, cut, bound in (
        (fresh_key(), good, b"place"),
        (KEY, good, b"elsewhere"),
        (KEY, good[:-1], b"place"),
        (KEY, b"", b"place"),
    ):
        with pytest.raises(SealError):
            open_sealed(key, cut, bound)


def test_the_same_bytes_are_never_sealed_alike() -> None:
    assert len({seal(KEY, b"x", b"") for _ in range(1000)}) == 1000


@pytest.fixture(scope="module")
def transit() -> Iterator[TransitLock]:
    command = [sys.executable, "-m", "tests.vault_server", "a token", "site key"]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield TransitLock(
            f"http://127.0.0.1:{int(process.stdout.readline())}", "a token", "site key"
        )
        process.kill()


@pytest.fixture(params=["passphrase", "key-file", "transit"])
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> KeyLock:
    if request.param == "passphrase":
        return PassphraseLock("correct horse battery staple")
    if request.param == "key-file":
        return KeyFileLock.create(tmp_path / "site.key")
    found: TransitLock = request.getfixturevalue("transit")
    return found


def test_a_lock_opens_what_it_wrapped_and_nothing_else(lock: KeyLock) -> None:
    wrapped = lock.wrap(KEY, b"vault one")
    assert KEY not in wrapped
    assert lock.unwrap(wrapped, b"vault one") == KEY
    with pytest.raises(SealError):
        lock.unwrap(wrapped, b"vault two")
    for place in (0, 1, 3, 20, len(wrapped) // 2, len(wrapped) - 1):
        changed = bytearray(wrapped)
        changed[place] ^= 1
        with pytest.raises(SealError):
            lock.unwrap(bytes(changed), b"vault one")
    for cut in (b"", wrapped[:10], wrapped[:-1]):
        with pytest.raises(SealError):
            lock.unwrap(cut, b"vault one")


def test_a_vault_opens_with_each_kind_of_lock(lock: KeyLock, tmp_path: Path) -> None:
    where = str(tmp_path / "new folder" / "vault.db")
    Vault.create(where, lock, model_id="m", dim=4).close()
    with Vault.open(where, lock) as vault:
        assert vault.info.dim == 4
    assert (tmp_path / "new folder").stat().st_mode & 0o077 == 0
    assert Path(where).stat().st_mode & 0o077 == 0


def test_another_passphrase_opens_nothing() -> None:
    wrapped = PassphraseLock("one").wrap(KEY, b"")
    with pytest.raises(SealError):
        PassphraseLock("two").unwrap(wrapped, b"")
    with pytest.raises(InputError, match="empty"):
        PassphraseLock("").wrap(KEY, b"")
    assert "secret" not in repr(PassphraseLock("secret"))


def test_an_absurd_cost_is_refused_before_it_is_paid() -> None:
    wrapped = bytearray(PassphraseLock("one").wrap(KEY, b""))
    wrapped[2:6] = b"\xff\xff\xff\xff"  # KiB of memory
    with pytest.raises(SealError, match="absurd"):
        PassphraseLock("one").unwrap(bytes(wrapped), b"")


def test_a_key_file_is_private_and_never_replaced(tmp_path: Path) -> None:
    lock = KeyFileLock.create(tmp_path / "k")
    assert lock.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="exists"):
        KeyFileLock.create(lock.path)
    lock.path.chmod(0o644)
    with pytest.raises(InputError, match="open to others"):
        lock.wrap(KEY, b"")
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "short").chmod(0o600)
    for path in (tmp_path / "short", tmp_path / "none", tmp_path):
        with pytest.raises(InputError):
            KeyFileLock(path).wrap(KEY, b"")


def test_a_transit_service_that_says_no_is_named(transit: TransitLock) -> None:
    wrapped = transit.wrap(KEY, b"")
    with pytest.raises(InputError, match="403"):
        replace(transit, token="stolen").unwrap(wrapped, b"")
    with pytest.raises(InputError, match="404"):
        replace(transit, key_name="another").unwrap(wrapped, b"")
    with pytest.raises(StorageError, match="no usable answer"):
        TransitLock("http://127.0.0.1:1", "t", "k").unwrap(wrapped, b"")
    with pytest.raises(InputError, match="no https"):
        TransitLock("http://keys.example", "t", "k")
    assert "a token" not in repr(transit)


def rows_of(seed: int, count: int, dim: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 200))
def test_float_templates_come_back_exactly(seed: int, count: int, dim: int) -> None:
    rows = rows_of(seed, count, dim)
    np.testing.assert_array_equal(template.decode(template.encode(rows, eight_bit=False)), rows)


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(2, 200))
def test_eight_bit_templates_come_back_close_and_stay_so(seed: int, count: int, dim: int) -> None:
    rows = rows_of(seed, count, dim)
    once = template.decode(template.encode(rows, eight_bit=True))
    largest = np.abs(rows).max(axis=1, keepdims=True)
    assert np.all(np.abs(once - rows) <= 0.5 * largest / 127 + 0.01 * largest)
    np.testing.assert_allclose(np.linalg.norm(once, axis=1), 1.0, atol=1e-6)
    twice = template.decode(template.encode(once, eight_bit=True))
    np.testing.assert_allclose(twice, once, atol=1e-6)


@settings(max_examples=500)
@given(st.binary(max_size=200), st.data())
def test_any_bytes_are_a_template_or_a_named_error(noise: bytes, data: st.DataObject) -> None:
    whole = template.encode(rows_of(1, 3, 8), eight_bit=data.draw(st.booleans()))
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    for raw in (noise, cut, cut + noise, whole[:10] + noise):
        try:
            rows = template.decode(raw)
        except SealError:
            continue
        assert rows.ndim == 2
        assert np.isfinite(rows).all()
