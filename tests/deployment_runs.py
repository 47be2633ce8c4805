"""What a run of a rig has done: its rounds, who took part, and all that its sites released."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray

from common.ledger import LedgerReport, verify
from server.checkpoint import Checkpoint, RoundRecord, load
from server.deployment.folder import RunFolder
from tests.deployment_rig import Rig
from tests.process_rig import until

Moment = Callable[[], object]


class Witness:
    """Keeps every release of every site and every checkpoint of a run, before they are replaced."""

    def __init__(self, rig: Rig, run: RunFolder) -> None:
        self._rig, self._run, self._kept = rig, run, rig.root / "kept" / run.name
        self._kept.mkdir(parents=True)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            for path in (*self._rig.root.glob("sites/*/release-*.f32"), self._run.checkpoint):
                with suppress(OSError):  # replaced since, or kept before
                    os.link(path, self._kept / f"{path.suffix[1:]}-{path.stat().st_ino}")

    def stop(self) -> None:
        self._done.wait(0.1)
        self._done.set()
        self._thread.join()

    def checkpoints(self) -> list[Checkpoint]:
        return [history(path) for path in self._kept.glob("safetensors-*")]

    def releases(self) -> dict[str, NDArray[np.float32]]:
        """All releases by digest."""
        found = [path.read_bytes() for path in self._kept.glob("f32-*")]
        return {hashlib.sha256(data).hexdigest(): np.frombuffer(data, np.float32) for data in found}


def history(path: Path) -> Checkpoint:
    """A checkpoint, whatever its contract."""
    with safetensors.safe_open(str(path), framework="numpy") as file:
        return load(path, file.metadata()["contract_digest"])


def records(run: RunFolder) -> tuple[RoundRecord, ...]:
    """The rounds that a run has finished."""
    return history(run.checkpoint).history if run.checkpoint.exists() else ()


def committed(report: LedgerReport, run_id: str) -> dict[int, str]:
    """By round, the digest of what a site released; each round is reserved and committed once."""
    assert report.ok, report.findings
    digests = {commit.reservation: commit.release_digest for commit in report.commits}
    assert len(digests) == len(report.commits)
    mine = [r for r in report.reservations if r.run_id == run_id]
    assert len({r.round for r in mine}) == len(mine)
    return {r.round: digests[r.seq] for r in mine if r.seq in digests}


def accepted(rig: Rig, record: RoundRecord) -> set[str]:
    """The sites whose updates a round used."""
    refused = dict(record.rejected)
    return {rig.names().get(n, "?") for n in record.asked if n not in refused}


def takes_part(rig: Rig, run: RunFolder, *sites: str) -> None:
    """Wait for a round that begins from now on and uses the updates of exactly these sites."""
    begun = len(records(run)) + 1
    until(
        lambda: any(accepted(rig, r) == {*sites} for r in records(run)[begun:]) or run.ended,
        lambda: f"a round of {sites}: {rig.status()}\n{rig.logs()}",
    )
    assert not run.ended, rig.status()


def longest(run: RunFolder, after: int) -> float:
    """The seconds of the longest round after so many: how long a site was waited for, if any."""
    return max(record.seconds for record in records(run)[after:])


def moments(rig: Rig, run: RunFolder, site: str) -> dict[str, Moment]:
    """What is true while a site computes, while it uploads, and between two rounds."""
    before = len(records(run))

    def computes() -> bool:
        report = verify(rig.state(site))
        return len(report.reservations) > len(report.commits)

    def uploads() -> bool:
        released = committed(verify(rig.state(site)), run.name)
        return max(released, default=0) > len(records(run))

    return {
        "computes": computes,
        "uploads": uploads,
        "between": lambda: len(records(run)) > before,
    }
