"""Sweeps: every run once, a killed one goes on, and the bands are no narrower than they may be."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest

from common.errors import InputError
from common.metrics import Interval, Verification
from server.report.run_record import RunRecord
from simulations.sweep import Base, Cell, SweepFolder, cells, run_all
from simulations.sweep_results import as_csv, band, draw, results, table
from tests.process_rig import QUICK, until
from tests.test_report import OPEN, RECORD

BASE = Base("synthetic", "none", 10, 100, 1e-4)


def test_every_trust_epsilon_and_seed_is_run_once() -> None:
    found = cells(["local", "none", "central", "secagg"], [1.0, 2.0], [0, 1])
    assert len(found) == len(set(found)) == len({cell.name for cell in found}) == 14
    assert [cell for cell in found if cell.trust == "none"] == [
        Cell("none", None, 0),
        Cell("none", None, 1),
    ]
    assert found[0].trust == "secagg"
    by_name = {cell.name: cell.arguments(10) for cell in found}
    assert by_name["none-seed-1"] == [
        *("--sites", "10", "--trust", "local", "--no-privacy", "--seed", "1")
    ]
    assert by_name["central-epsilon-2-seed-0"] == [
        *("--sites", "1", "--trust", "local", "--epsilon", "2.0", "--seed", "0")
    ]
    assert "secagg" in by_name["secagg-epsilon-1-seed-0"]


@pytest.mark.parametrize(
    ("trusts", "epsilons", "seeds", "words"),
    [
        (["local", "local"], [1.0], [0], "--trusts names something twice"),
        (["local"], [1.0, 1.0], [0], "--epsilons names"),
        (["local"], [1.0], [], "needs"),
        (["local"], [], [0], "needs"),
    ],
)
def test_an_empty_or_double_sweep_is_refused(
    trusts: Any, epsilons: list[float], seeds: list[int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        cells(trusts, epsilons, seeds)


@pytest.mark.parametrize("option", ["--epsilon", "--seed=3", "--out", "--no-privacy", "--sites"])
def test_an_option_that_the_sweep_sets_is_not_passed_on(option: str) -> None:
    with pytest.raises(InputError, match="set by the sweep itself"):
        Base("synthetic", "none", 10, None, 1e-4, ("--train", "tail", option, "1"))


def test_a_sweep_goes_on_with_the_same_options_alone_and_by_itself(tmp_path: Path) -> None:
    with SweepFolder.open(tmp_path / "s", BASE):  # noqa: SIM117
        with (
            pytest.raises(InputError, match="is at work"),
            SweepFolder.open(tmp_path / "s", BASE),
        ):
            pass
    with SweepFolder.open(tmp_path / "s", BASE) as (folder, _):
        assert folder.base == BASE
    other = dataclasses.replace(BASE, delta=1e-5)
    with (
        pytest.raises(InputError, match=r"delta = 0\.0001, not 1e-05"),
        SweepFolder.open(tmp_path / "s", other),
    ):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with (
        pytest.raises(InputError, match="holds no sweep"),
        SweepFolder.open(tmp_path / "mine", BASE),
    ):
        pass


def sweep(people: Path, out: Path, *options: str) -> list[str]:
    shared = ["--data", str(people), "--sites", "2", "--persons", "8", "--jobs", "1", "--json"]
    rest = ["--", "--backbone", "lenet", "--aligned", "--rounds", "2"]
    code = "from simulations.sweep_cli import sweep; sweep.main(prog_name='sweep')"
    own = [*shared, "--out", str(out), *options, *rest, "--cache", str(out.parent / "cache")]
    return [sys.executable, "-P", "-c", code, *own]


def test_a_killed_sweep_goes_on_and_keeps_what_is_finished(
    people_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cells = ("--epsilons", "4", "--trusts", "central,none", "--seeds", "0")
    command = sweep(people_folder, out, *cells)
    first, second = out / "runs" / "central-epsilon-4-seed-0", out / "runs" / "none-seed-0"
    # Someone's own module in the folder that the sweep is started in: it is not ours to run.
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "common.py").write_text("raise SystemExit('their module ran')\n")
    started = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=tmp_path / "theirs"
    )
    until(lambda: (second / "settings.json").is_file(), "the second run begins", every=QUICK)
    (left_behind,) = psutil.Process(started.pid).children()
    left_behind.suspend()
    started.kill()
    started.wait()
    # The run that was under way holds the lock: nobody starts it a second time.
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and "is at work" in refused.stderr
    left_behind.kill()
    until(
        lambda: not left_behind.is_running() or left_behind.status() == "zombie",
        "what was left behind ends",
    )
    finished = (first / "run.json").stat().st_mtime_ns
    assert not (second / "run.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "finished none-seed-0" in done.stderr and "central" not in done.stderr
    assert (first / "run.json").stat().st_mtime_ns == finished
    found = json.loads(done.stdout)
    central, none = found["points"]
    assert central["trust"] == "central" and 3.9 < central["stated"] <= 4.0
    assert none["stated"] is None and none["seeds"] == [0]
    for name in ("sweep.txt", "sweep.csv", "sweep.json", "sweep.png", "sweep.svg"):
        assert (out / name).stat().st_size > 100
    record = json.loads((first / "run.json").read_text(encoding="utf-8"))
    assert central["after_1e2"]["mean"] == record["after"]["tmr_at_fmr_1e-2"]


def test_what_a_run_refuses_stops_the_sweep_with_its_words(
    people_folder: Path, tmp_path: Path
) -> None:
    base = Base(str(people_folder), "none", 2, 5000, 1e-4, ("--backbone", "lenet", "--aligned"))
    with (
        SweepFolder.open(tmp_path / "s", base) as (folder, lock),
        pytest.raises(InputError, match=r"local-epsilon-1-seed-0: --persons 5000, but only"),
    ):
        wanted = cells(["local"], [1.0, 2.0], [0])
        run_all(folder, lock, wanted, jobs=1, finished=lambda cell: None)


def after(record: RunRecord, wide: float, strict: float) -> RunRecord:
    rates = Verification(0.07, wide, strict, 4321, 987654, record.before.ci)
    return dataclasses.replace(record, after=rates)


def test_points_are_means_over_seeds_and_say_what_they_gained() -> None:
    runs = {
        Cell("local", 4.0, 0): after(RECORD, 0.70, 0.40),
        Cell("local", 4.0, 1): after(RECORD, 0.74, 0.44),
        Cell("local", 1.0, 0): after(RECORD, 0.69, 0.39),
        Cell("none", None, 0): after(OPEN, 0.75, 0.46),
    }
    found = results(runs)
    keys = [(point.trust, point.epsilon, point.seeds) for point in found.points]
    assert keys == [("local", 1.0, (0,)), ("local", 4.0, (0, 1)), ("none", None, (0,))]
    four = found.points[1]
    assert four.after_1e2.mean == pytest.approx(0.72)
    assert four.gain_1e3.mean == pytest.approx(0.42 - 0.398)
    assert four.stated == 3.996 and found.points[2].stated is None
    assert found.before[0].mean == pytest.approx(0.693) and found.public_only is None
    head, rows = table(found)
    assert [row[:3] for row in rows] == [
        *(("before", "", ""), ("local", "1", "1"), ("local", "4", "2"), ("none", "no bound", "1"))
    ]
    assert {len(row) for row in rows} == {len(head)}
    written = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert len(written) == 2 + 3 * 4
    assert float(written[6]["mean"]) == pytest.approx(0.72) and written[6]["epsilon"] == "4"
    drawn = draw(found)
    ElementTree.fromstring(drawn.svg)
    assert drawn.png.startswith(b"\x89PNG") and "local at epsilon 4 42.0%" in drawn.alt


def covered(within: bool, seeds: int = 3, runs: int = 600) -> float:
    """How often a band holds the truth when half of the spread comes from shared test persons."""
    rng, hits = np.random.default_rng(7), 0
    for _ in range(runs):
        shared = rng.normal(0.0, 0.02)
        values: Sequence[float] = (0.5 + shared + rng.normal(0.0, 0.02, size=seeds)).tolist()
        half = 1.96 * 0.02
        ends = [Interval(v - half, v + half) if within else None for v in values]
        each = band(values, ends)
        hits += each.low <= 0.5 <= each.high
    return hits / runs


def test_bands_cover_seeds_and_test_persons_together() -> None:
    assert covered(within=True) > 0.95
    assert covered(within=False) < 0.93  # the control: seeds alone promise too much
    alone = band([0.4], [Interval(0.3, 0.5)])
    assert alone.low == pytest.approx(0.3) and alone.high == pytest.approx(0.5)
