"""Killed 220 times at random, on full disks: the ledger never under-reports, never breaks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import ledger as ledger_module
from common.errors import StorageError
from common.ledger import Ledger, verify
from tests.crash_rig import Writers, acknowledge, writers
from tests.test_ledger import FILE, GENESIS, HEAD, filled, lines, refused, reserve

KILLS = 220
_LONGEST = 80  # reservations; then a fresh ledger keeps reading quick
_LONGEST_LIFE = 0.09  # seconds: two rounds on a slow disk, a hundred on a fast one


def write_for_ever(directory: str) -> None:
    """Reserve and commit without end; each acknowledgement is sent after the call returned."""
    with Ledger.open(Path(directory)) as ledger:
        round_ = len(ledger.reservations)
        while True:
            round_ += 1
            reservation = reserve(ledger, round_)
            acknowledge("r")
            ledger.commit(reservation, str(round_))
            acknowledge("c")


@pytest.fixture
def ledgers() -> Iterator[Writers]:
    with writers(write_for_ever) as started:
        yield started


def test_no_acknowledged_reservation_is_ever_lost(ledgers: Writers, tmp_path: Path) -> None:
    rng = random.Random(1)
    acknowledgements = unacknowledged = torn = found = done = 0
    directory = tmp_path / "none"
    for kill in range(KILLS):
        if found > _LONGEST or kill == 0:
            directory = tmp_path / f"site{kill}"
            Ledger.create(directory, GENESIS)
            found = done = 0
        told = ledgers.killed(directory, after=0, delay=rng.random() * _LONGEST_LIFE)
        torn += not (directory / FILE).read_bytes().endswith(b"\n")
        with Ledger.open(directory) as ledger:
            kept = ledger.reservations
        report = verify(directory)
        assert report.ok, report.findings
        assert report.reservations == kept
        assert [r.round for r in kept] == list(range(1, len(kept) + 1))
        assert len(kept) >= found + told.count("r"), "an acknowledged reservation is gone"
        assert len(report.commits) >= done + told.count("c"), "an acknowledged commit is gone"
        acknowledgements += len(told)
        unacknowledged += len(kept) + len(report.commits) - found - done - len(told)
        # What was written but not acknowledged counts as spent from now on.
        found, done = len(kept), len(report.commits)
    assert acknowledgements > KILLS // 4, "the writer never got far: nothing was tested"
    assert unacknowledged > 0, f"no kill fell between a write and its answer ({torn} torn lines)"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 20 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=20k", "veilface-test", str(disk)],
            capture_output=True,
        ).returncode
    ):
        pytest.skip("may not mount a small disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(512)):
            pass


def test_a_full_disk_spends_nothing_and_the_ledger_goes_on(small_disk: Path) -> None:
    """Wherever in a line or a head the space ends, the ledger holds and later takes the round."""
    site = small_disk / "site"
    Ledger.create(site, GENESIS)
    with Ledger.open(site) as ledger:
        fill(small_disk / "ballast")
        acknowledged = 0
        with pytest.raises(StorageError):
            while True:
                reserve(ledger, acknowledged + 1)
                acknowledged += 1
        report = verify(site)
        assert report.ok, report.findings
        assert report.reservations == ledger.reservations
        (small_disk / "ballast").unlink()
        reserve(ledger, acknowledged + 1)
        reserve(ledger, acknowledged + 2)
    assert [r.round for r in verify(site).reservations] == [*range(1, acknowledged + 3)]
    assert verify(site).ok
    assert [path.name for path in sorted(site.iterdir())] == [HEAD, FILE]


def _write_up_to(directory: str, answer: multiprocessing.SimpleQueue[str], limit: int) -> None:
    """Let files grow to `limit` bytes, then without limit; a write over it comes back short."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    with Ledger.open(Path(directory)) as ledger:
        try:
            reserve(ledger, 2)
            answer.put("written")
        except StorageError as error:
            answer.put(str(error))
        answer.put(",".join(verify(Path(directory)).findings))
        answer.put(str(len(verify(Path(directory)).reservations)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        reserve(ledger, 2)
        reserve(ledger, 3)


@pytest.mark.parametrize("part", [0, 1, 40, 200])
def test_a_line_that_fits_only_in_part_is_taken_back(tmp_path: Path, part: int) -> None:
    directory = filled(tmp_path / "s", 1)
    limit = (directory / FILE).stat().st_size + part
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    process = context.Process(target=_write_up_to, args=(str(directory), answer, limit))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert "nothing was spent" in answer.get()
    assert (answer.get(), answer.get()) == ("", "1"), "the ledger holds, without the new line"
    assert [r.round for r in verify(directory).reservations] == [1, 2, 3]


def _full(path: Path, data: bytes) -> None:
    raise StorageError("no space left on device")


def test_a_head_that_could_not_be_written_is_caught_up_before_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = filled(tmp_path / "s", 1)
    with Ledger.open(directory) as ledger:
        for _ in range(2):
            with monkeypatch.context() as patch, pytest.raises(StorageError):
                patch.setattr(ledger_module, "write_private", _full)
                reserve(ledger, 2 if len(ledger.reservations) == 1 else 3)
            assert verify(directory).ok
        reserve(ledger, 3)
    assert [r.round for r in verify(directory).reservations] == [1, 2, 3]


def test_a_retry_after_a_failed_head_is_named_by_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the line that the retry acknowledged could be cut off unseen."""
    directory = filled(tmp_path / "s", 1)
    with Ledger.open(directory) as ledger:
        with monkeypatch.context() as patch, pytest.raises(StorageError):
            patch.setattr(ledger_module, "write_private", _full)
            reserve(ledger, 2)
        assert reserve(ledger, 2).round == 2
    (directory / FILE).write_bytes(b"".join(lines(directory)[:-1]))
    assert refused(directory)


def test_a_line_is_synced_to_the_disk_before_the_head_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut, unlike a kill, loses what was written but not synced."""
    directory = filled(tmp_path / "s", 1)
    file, synced = (directory / FILE).stat().st_ino, list[tuple[bool, bool]]()
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        named = b'"seq":3' in (directory / HEAD).read_bytes()
        synced.append((os.fstat(descriptor).st_ino == file, named))

    with Ledger.open(directory) as ledger:
        monkeypatch.setattr(os, "fsync", watched)
        reserve(ledger, 2)
    assert synced == [(True, False), (False, False), (False, True)], "line, new head, its name"
