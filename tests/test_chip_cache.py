"""The chip cache is private, exact, shared by processes, and no lie survives in it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.chip_cache import ChipCache, chip_key, default_directory
from common.errors import Refused, StorageError
from common.face import ChipSpec

SPEC = ChipSpec(20, "dlib")


def chip(seed: int, side: int = 20) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def key(seed: int, detector: str = "d", spec: ChipSpec = SPEC) -> bytes:
    return chip_key(hashlib.sha256(str(seed).encode()).digest(), detector, spec)


def test_chips_and_missing_faces_come_back_after_reopening(tmp_path: Path) -> None:
    with ChipCache.open(tmp_path / "c") as cache:
        cache.write([(key(seed), chip(seed)) for seed in range(200)])
        cache.write([(key(200), None)])
    with ChipCache.open(tmp_path / "c") as cache:
        found = list(cache.read([key(seed) for seed in (5, 200, 999, *range(200))]))
    assert [position for position, _ in found] == [0, 1, *range(3, 203)]
    assert found[1][1] is None
    for position, back in found[2:]:
        assert back is not None
        assert np.array_equal(back, chip(position - 3))


def test_every_ingredient_of_a_chip_is_in_its_key() -> None:
    keys = {key(1), key(2), key(1, "e"), key(1, spec=ChipSpec(21, "dlib"))}
    assert len(keys | {key(1, spec=ChipSpec(20, "arcface"))}) == 5
    assert key(1) == key(1)


def test_only_the_owner_can_read_the_directory_and_its_files(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with ChipCache.open(tmp_path / "new" / "c") as cache:
            cache.write([(key(1), chip(1))])
            files = list((tmp_path / "new" / "c").iterdir())
            assert len(files) >= 1
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new" / "c").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701, 0o777])
def test_a_directory_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c").chmod(mode)
    with pytest.raises(Refused, match="others can read"):
        ChipCache.open(tmp_path / "c")
    assert not list((tmp_path / "c").iterdir())


def test_a_file_open_to_others_is_refused(tmp_path: Path) -> None:
    with ChipCache.open(tmp_path / "c") as cache:
        path = cache.path
    path.chmod(0o640)
    with pytest.raises(Refused, match="others can read"):
        ChipCache.open(tmp_path / "c")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir(mode=0o700)
    os.chown(tmp_path / "c", 12345, 12345)
    with pytest.raises(Refused, match="belongs to someone else"):
        ChipCache.open(tmp_path / "c")


def test_a_damaged_entry_is_not_there_and_can_be_written_again(tmp_path: Path) -> None:
    with ChipCache.open(tmp_path / "c") as cache:
        cache.write([(key(seed), chip(seed)) for seed in range(4)])
        raw = sqlite3.connect(cache.path)
        for seed, damage in enumerate([b"", b"\0" * 16, chip(9).tobytes()]):
            raw.execute("UPDATE chips SET sealed = ? WHERE key = ?", (damage, key(seed)))
        raw.commit()
        raw.close()
        keys = [key(seed) for seed in range(4)]
        assert [position for position, _ in cache.read(keys)] == [3]
        cache.write([(key(seed), chip(seed)) for seed in range(3)])
        assert [position for position, _ in cache.read(keys)] == [0, 1, 2, 3]


def test_an_entry_moved_to_another_key_is_not_believed(tmp_path: Path) -> None:
    with ChipCache.open(tmp_path / "c") as cache:
        cache.write([(key(1), chip(1))])
        raw = sqlite3.connect(cache.path)
        raw.execute("UPDATE chips SET key = ?", (key(2),))
        raw.commit()
        raw.close()
        assert list(cache.read([key(1), key(2)])) == []


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir(mode=0o700)
    wrong = tmp_path / "c" / "chips.sqlite"
    wrong.write_bytes(b"these are not the chips" * 1000)
    wrong.chmod(0o600)
    with pytest.raises(StorageError, match=r"chips\.sqlite is damaged"):
        ChipCache.open(tmp_path / "c")


def test_a_path_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        ChipCache.open(tmp_path / "file")
    with pytest.raises(StorageError, match="below"):
        ChipCache.open(tmp_path / "file" / "below")


def test_a_full_disk_is_an_error_and_leaves_the_cache_whole(tmp_path: Path) -> None:
    script = f"""
import resource, signal, sys
from pathlib import Path
from tests.test_chip_cache import ChipCache, StorageError, chip, key
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with ChipCache.open(Path({str(tmp_path / "c")!r})) as cache:
    cache.write([(key(0), chip(0))])
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    try:
        cache.write([(key(seed), chip(seed, 100)) for seed in range(1, 100)])
    except StorageError as error:
        sys.exit(7)
"""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, check=False, timeout=60)
    assert done.returncode == 7
    with ChipCache.open(tmp_path / "c") as cache:
        keys = [key(seed) for seed in range(100)]
        assert [position for position, _ in cache.read(keys)] == [0]


def write_and_read(directory: str, first: int) -> int:
    with ChipCache.open(Path(directory)) as cache:
        for seed in range(first, first + 40):
            cache.write([(key(seed), chip(seed))])
        return len(list(cache.read([key(seed) for seed in range(first, first + 40)])))


def test_processes_share_a_cache_without_losing_a_chip(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        counts = pool.map(write_and_read, [str(tmp_path / "c")] * 3, [0, 20, 40])
        assert list(counts) == [40, 40, 40]
    with ChipCache.open(tmp_path / "c") as cache:
        found = list(cache.read([key(seed) for seed in range(80)]))
    assert len(found) == 80
    assert all(np.array_equal(back, chip(seed)) for seed, back in found if back is not None)


@dataclass(frozen=True)
class Mirror:
    """A sealer that shows whether all bytes pass it."""

    def seal(self, key: bytes, plain: bytes) -> bytes:
        return b"M" + plain[::-1]

    def unseal(self, key: bytes, sealed: bytes) -> bytes | None:
        return sealed[:0:-1] if sealed[:1] == b"M" else None


def test_no_byte_of_a_chip_reaches_the_disk_but_through_the_sealer(tmp_path: Path) -> None:
    with ChipCache.open(tmp_path / "c", sealer=Mirror()) as cache:
        cache.write([(key(1), chip(1))])
        assert [back is not None for _, back in cache.read([key(1)])] == [True]
        canary = chip(1).tobytes()[100:132]
        for file in (tmp_path / "c").iterdir():
            assert canary not in file.read_bytes()
        assert any(canary[::-1] in file.read_bytes() for file in (tmp_path / "c").iterdir())
    with ChipCache.open(tmp_path / "c") as plain:
        assert list(plain.read([key(1)])) == []


def test_what_is_forgotten_is_gone_from_the_disk(tmp_path: Path) -> None:
    canary = chip(1).tobytes()[100:132]
    with ChipCache.open(tmp_path / "c") as cache:
        cache.write([(key(1), chip(1)), (key(2), chip(2))])
        assert cache.forget([key(1), key(3)]) == 1
        assert [position for position, _ in cache.read([key(1), key(2)])] == [1]
    assert not any(canary in file.read_bytes() for file in (tmp_path / "c").iterdir())


def test_the_environment_says_where_the_cache_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VEILFACE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_directory() == Path.home() / ".cache" / "veilface"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_directory() == Path.home() / ".cache" / "veilface"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "veilface"
    monkeypatch.setenv("VEILFACE_CACHE", str(tmp_path / "own"))
    with ChipCache.open() as cache:
        assert cache.path.parent == (tmp_path / "own").resolve()


def test_the_cache_alone_shows_no_face(tmp_path: Path) -> None:
    """Neither the chip's bytes nor a run of equal pixels can be found in the files."""
    flat = np.full((20, 20, 3), 77, np.uint8)
    with ChipCache.open(tmp_path / "c") as cache:
        cache.write([(key(1), chip(1)), (key(2), flat)])
    stored = b"".join(file.read_bytes() for file in (tmp_path / "c").iterdir())
    assert chip(1).tobytes()[:32] not in stored
    assert bytes([77]) * 8 not in stored


def test_under_another_key_nothing_is_found_and_everything_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChipCache.open(tmp_path / "c") as cache:
        cache.write([(key(1), chip(1))])
    monkeypatch.setenv("VEILFACE_CACHE_KEY", str(tmp_path / "k" / "other.key"))
    with ChipCache.open(tmp_path / "c") as cache:
        assert list(cache.read([key(1)])) == []
        cache.write([(key(1), chip(1))])
        assert len(list(cache.read([key(1)]))) == 1
    assert stat.S_IMODE((tmp_path / "k" / "other.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_file_that_is_no_cache_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    path = tmp_path / "cache.key"
    path.write_bytes(content)
    path.chmod(0o600)
    monkeypatch.setenv("VEILFACE_CACHE_KEY", str(path))
    with pytest.raises(Refused, match="not a cache key"):
        ChipCache.open(tmp_path / "c")


def test_a_cache_key_that_others_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEILFACE_CACHE_KEY", str(tmp_path / "cache.key"))
    ChipCache.open(tmp_path / "c").close()
    (tmp_path / "cache.key").chmod(0o640)
    with pytest.raises(Refused, match="open to others"):
        ChipCache.open(tmp_path / "c")
