"""kill -9 at random points, more than 200 times: never under-reports, never corrupt."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

from common.ledger import Genesis, Ledger, verify

KILLS = 220


def _write_for_ever(directory: str, acknowledge: int) -> None:
    """Reserve and commit without end; each acknowledgement is sent after the call returned."""
    with Ledger.open(Path(directory)) as ledger:
        round_ = len(ledger.reservations)
        while True:
            round_ += 1
            reservation = ledger.reserve(
                run_id="run",
                round=round_,
                noise_multiplier=6.0,
                sample_rate=1.0,
                steps=1,
                max_grad_norm=0.5,
                request_digest=str(round_),
                private=True,
                check=lambda reservations: None,
            )
            os.write(acknowledge, b"r")
            ledger.commit(reservation, str(round_))
            os.write(acknowledge, b"c")


def test_no_acknowledged_reservation_is_ever_lost(tmp_path: Path) -> None:
    directory = tmp_path / "site"
    rng = random.Random(1)
    context = multiprocessing.get_context("fork")
    reserved = committed = restarts = 0
    Ledger.create(directory, Genesis(delta=1e-4, epsilon=4.0))
    for _ in range(KILLS):
        reader, writer = os.pipe()
        process = context.Process(target=_write_for_ever, args=(str(directory), writer))
        process.start()
        os.close(writer)
        first = os.read(reader, 1)  # it is running
        time.sleep(rng.random() * 0.01)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        acknowledged = first
        while chunk := os.read(reader, 4096):
            acknowledged += chunk
        os.close(reader)
        reserved += acknowledged.count(b"r")
        committed += acknowledged.count(b"c")

        report = verify(directory)
        assert report.ok, report.findings
        with Ledger.open(directory) as ledger:
            found = ledger.reservations
            assert ledger.reservations == verify(directory).reservations
        report = verify(directory)
        assert report.ok, report.findings
        assert len(found) >= reserved, "an acknowledged reservation is gone"
        assert len(report.commits) >= committed
        assert [r.round for r in found] == list(range(1, len(found) + 1))
        # What was written but not acknowledged counts as spent from now on.
        reserved, committed = len(found), len(report.commits)
        restarts += 1
        if len(found) > 300:  # a fresh ledger keeps reading quick
            directory = tmp_path / f"site{restarts}"
            Ledger.create(directory, Genesis(delta=1e-4, epsilon=4.0))
            reserved = committed = 0
    assert restarts == KILLS
