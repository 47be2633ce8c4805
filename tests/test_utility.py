"""What a run gave, on the server's public test faces: told, kept, and honest when it is nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import InputError
from common.metrics import Verification
from server.audit.collect import collect
from server.deployment.folder import ServerFolder
from server.deployment.status import run_status
from server.report.utility import (
    DetPoints,
    Utility,
    mean_tmr,
    public_scores,
    read_utility,
    write_utility,
)
from server.server_cli import server
from tests.audit_rig import RATES, Case, gained, make_run, sources
from tests.front_rig import federation
from tests.server_run_rig import ask, carry, record

START = replace(RATES, tmr_at_fmr_1e2=0.50, tmr_at_fmr_1e3=0.30)
BETTER = replace(RATES, tmr_at_fmr_1e2=0.60, tmr_at_fmr_1e3=0.29)
WORSE = replace(RATES, tmr_at_fmr_1e2=0.50, tmr_at_fmr_1e3=0.25)


def measured(after: Verification, public_only: Verification | None = START) -> Utility:
    points = DetPoints((0.01, 0.1), (0.5, 0.2))
    start = public_only if public_only and mean_tmr(public_only) > mean_tmr(RATES) else RATES
    difference = gained(after, start)
    return Utility(RATES, public_only, after, points, points, None, difference, "before", 25)


@pytest.mark.parametrize("public_only", [START, None])
def test_what_was_measured_is_read_as_it_was_written(
    tmp_path: Path, public_only: Verification | None
) -> None:
    assert read_utility(tmp_path) is None
    utility = measured(WORSE, public_only)
    write_utility(tmp_path, utility)
    assert read_utility(tmp_path) == utility
    assert utility.start == (public_only or RATES)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    for damaged in ("", "{}", path.read_text().replace('"mated"', '"matted"')):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"utility\.json"):
            read_utility(tmp_path)


def test_private_training_is_held_against_the_better_public_stage() -> None:
    assert measured(BETTER).best_public == "public" and measured(BETTER).start == START
    assert measured(BETTER, None).best_public == "before" and measured(BETTER, None).start == RATES
    poor = replace(RATES, tmr_at_fmr_1e2=0.30, tmr_at_fmr_1e3=0.20)
    assert measured(BETTER, poor).best_public == "before" and measured(BETTER, poor).start == RATES


@pytest.mark.parametrize("after", [BETTER, WORSE])
def test_whoever_waits_for_a_run_is_told_what_the_private_faces_gave(
    tmp_path: Path, after: Verification
) -> None:
    folder = ServerFolder(federation(tmp_path).folder)
    public = tmp_path / "public"
    (public / "ann").mkdir(parents=True)
    (folder.path / "terms.json").write_bytes(ask(folder, "x", 2, "2026").request().terms.to_bytes())
    arguments = ["run", "--state", str(folder.path), "--public", str(public), "--run-id", "r"]
    assert CliRunner().invoke(server, [*arguments, "--detach"]).exit_code == 0
    run = folder.run("r")
    carry(folder, run, [record(n) for n in range(1, run.request().terms.training.rounds + 1)])
    assert run_status(run).start == {}
    write_utility(run.path, measured(after))
    assert run_status(run).start == public_scores(START)
    told = CliRunner().invoke(server, arguments)
    assert told.exit_code == 0 and told.stdout.splitlines() == [str(run.model)]
    assert "public only: TMR 50.0% at FMR 1e-2 and 30.0% at FMR 1e-3" in told.stderr
    assert ("Warning: Private training made it worse" in told.stderr) == (after is WORSE)
    assert ("Private training helped" in told.stderr) == (after is BETTER)
    assert "Recommended: the public model" in told.stderr


def test_an_audit_report_of_a_deployment_states_what_was_measured_before_and_after(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", Case(scored=True))
    found = collect(sources(run))
    assert found.utility is None and len(found.scores) == 2
    write_utility(run, measured(BETTER))
    found = collect(sources(run))
    assert found.utility == measured(BETTER) and found.scores == ()


def test_a_damaged_measurement_hides_no_run_from_the_status(tmp_path: Path) -> None:
    folder = ServerFolder(federation(tmp_path).folder)
    run = ask(folder, "x", 2, "2026")
    write_utility(run.path, measured(BETTER))
    (run.path / "utility.json").write_text("{")
    assert run_status(run).start == {}
