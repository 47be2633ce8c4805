"""A run folder: never overwritten, resumed after a kill, refused when its ledgers say so."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import InputError, LedgerError, Refused
from common.ledger import Commit, Reservation
from simulations.experiment import Experiment
from simulations.federation import site_directory
from simulations.material import gather
from simulations.progress import LiveProgress
from simulations.run_folder import RunFolder
from simulations.simulate import simulate
from tests.simulation_rig import records, run


def test_a_folder_that_holds_a_run_is_never_overwritten(
    experiment: Experiment, tmp_path: Path
) -> None:
    run(experiment, tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="not empty"):
        RunFolder.start(tmp_path / "run", experiment)
    with pytest.raises(InputError, match="rounds"):
        RunFolder.resume(tmp_path / "run", dataclasses.replace(experiment, rounds=9))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("taken", [1, 3])
def test_a_run_whose_ledgers_were_taken_away_states_nothing(
    experiment: Experiment, tmp_path: Path, taken: int
) -> None:
    """A new ledger would forget the rounds before, and the run would state too small an epsilon."""
    out = tmp_path / "run"
    run(experiment, out)
    for site in range(taken):
        shutil.rmtree(site_directory(out, site))
    folder, material = RunFolder.resume(out, experiment), gather(experiment)
    progress = LiveProgress(Console(stderr=True), quiet=True)
    with pytest.raises(LedgerError, match=f"round 1 used 3 updates, .* know of {3 - taken}"):
        simulate(experiment, folder, material, progress)


def arguments(experiment: Experiment, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "common.cli",
        "simulate",
        *("--data", str(experiment.data), "--aligned", "--backbone", "lenet", "--sites", "3"),
        *("--persons", "12", "--rounds", "12", "--epsilon", "4", "--insecure-seeded-noise"),
        *("--out", str(out), "--json", *more),
    ]


def test_a_run_killed_with_kill_9_goes_on_to_the_same_model_and_the_same_ledgers(
    experiment: Experiment, tmp_path: Path
) -> None:
    whole = subprocess.run(
        arguments(experiment, tmp_path / "whole"), capture_output=True, check=True
    )
    killed, kills = tmp_path / "killed", 0
    process = subprocess.Popen(
        arguments(experiment, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for wanted in (2, 5, 9):
        while process.poll() is None and len(reserved(killed)) < 3 * wanted:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        process = subprocess.Popen(
            arguments(experiment, killed, "--resume"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert kills >= 2
    assert json.loads(output)["model"] == json.loads(whole.stdout)["model"]
    for site in range(3):
        assert records(killed, site) == records_of_other_run(tmp_path / "whole", killed, site)


def reserved(out: Path) -> list[Path]:
    """One entry for each reservation on disk, over all sites."""
    lines = []
    for ledger in out.glob("sites/*/ledger.jsonl"):
        lines += [ledger] * ledger.read_bytes().count(b'"kind":"reserve"')
    return lines


def records_of_other_run(
    whole: Path, killed: Path, site: int
) -> tuple[tuple[Reservation, ...], tuple[Commit, ...]]:
    """The unkilled run's records under the killed run's id, which requests are bound to."""
    reservations, commits = records(whole, site)
    theirs, _ = records(killed, site)
    renamed = tuple(
        dataclasses.replace(ours, run_id=other.run_id, request_digest=other.request_digest)
        for ours, other in zip(reservations, theirs, strict=True)
    )
    return renamed, commits


def test_more_sites_than_persons_is_refused_before_anything_is_written(
    experiment: Experiment,
) -> None:
    with pytest.raises(InputError, match="sites"):
        dataclasses.replace(experiment, sites=13).check()


def test_a_site_whose_budget_is_spent_refuses_and_the_run_stops_with_a_refusal(
    experiment: Experiment, tmp_path: Path
) -> None:
    run(experiment, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    settings["run_id"] = "another-run"
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
    folder = RunFolder.resume(tmp_path / "run", experiment)
    before = [records(tmp_path / "run", site) for site in range(3)]
    with (
        LiveProgress(Console(stderr=True), quiet=True) as progress,
        pytest.raises(Refused, match="budget"),
    ):
        simulate(experiment, folder, gather(experiment), progress)
    assert [records(tmp_path / "run", site) for site in range(3)] == before
