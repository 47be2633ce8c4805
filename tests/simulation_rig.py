"""A run in one process, for the tests that look at what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.app import Message
from rich.console import Console

from common.ledger import Commit, Reservation, verify
from server.report.run_record import RunRecord
from simulations.experiment import Experiment
from simulations.federation import site_directory
from simulations.material import gather
from simulations.progress import LiveProgress
from simulations.run_folder import RunFolder
from simulations.simulate import simulate


def run(
    experiment: Experiment,
    out: Path,
    on_reply: Callable[[Message], None] = lambda reply: None,
) -> RunRecord:
    folder = RunFolder.start(out, experiment)
    with progress() as live:
        return simulate(experiment, folder, gather(experiment), live, on_reply)


def progress() -> LiveProgress:
    """Progress that nobody watches."""
    return LiveProgress(Console(stderr=True), quiet=True)


def records(out: Path, site: int) -> tuple[tuple[Reservation, ...], tuple[Commit, ...]]:
    report = verify(site_directory(out, site))
    assert report.ok, report.findings
    return report.reservations, report.commits
