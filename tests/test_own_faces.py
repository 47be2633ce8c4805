"""A site asks what the federation gives its own people: for its own eyes, and nothing is left."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.own_faces import on_own_faces
from common.backbones.statistics import StatisticsHead
from common.backbones.weights import load_model, save_model
from common.cli import main
from common.network import trained_network
from common.wording import STAGES
from simulations.experiment import Experiment
from simulations.people import generate
from tests.simulation_rig import run
from tests.test_statistics import cameras  # noqa: F401

PERSONS, IMAGES = 24, 4
SECRET = "CANARY_NAME"


@pytest.fixture(scope="module")
def model(
    cameras: Experiment,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    run(replace(cameras, persons=40, sites=2), folder)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def own(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's persons, whose names and files have telling names."""
    return faces(tmp_path_factory.mktemp("site"), model, PERSONS)


def faces(root: Path, model: Path, persons: int) -> Path:
    people = generate(persons, IMAGES, 11, trained_network(model, None).backbone.chip)
    for row, subject in enumerate(people.subjects.tolist()):
        folder = root / f"{SECRET}_{subject:03d}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(people.chips[row])).save(folder / f"{SECRET}_{row}.png")
    return root


def ended(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["site", "evaluate", "--aligned", *map(str, options)])
    told = capsys.readouterr()
    return int(end.value.code or 0), told.out, told.err


def copied(model: Path, out: Path, *, broken: bool) -> Path:
    """Copy a model as if its sites had told nothing; `broken`, it sees one random number only."""
    saved = load_model(model)
    head = trained_network(model, None).module
    assert isinstance(head, torch.nn.Sequential) and isinstance(head[-1], StatisticsHead)
    state, generator = dict(saved.state), torch.Generator().manual_seed(0)
    for name, parameter in head[-1].named_parameters():
        if parameter.requires_grad:
            state[name] = torch.zeros_like(parameter)
    if broken:
        rows, columns = state["adapter.weight"].shape
        one, other = (torch.randn(size, generator=generator) for size in (rows, columns))
        state["adapter.weight"] = 1e3 * torch.outer(one, other)
    save_model(
        out, backbone=saved.backbone, train_set=saved.train_set, state=state, meta=saved.meta
    )
    return out


def test_all_stages_are_measured_on_the_same_persons_held_out(
    model: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ended(capsys, "--model", model, "--data", own, "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["persons"], told["images"], told["folds"]) == (PERSONS, PERSONS * IMAGES, 2)
    half = PERSONS // 2 * IMAGES
    mated = PERSONS * IMAGES * (IMAGES - 1) // 2
    for name in STAGES:
        stage = told["stages"][name]
        assert 0.0 <= stage["eer"] <= 1.0 and stage["mated"] == mated
        assert stage["non_mated"] == half * (half - 1) - mated  # of two folds, never across
    for key, stage in (("difference", told["best_public"]), ("difference_alone", "alone")):
        gain = told["stages"]["after"]["tmr_at_fmr_1e-2"] - told["stages"][stage]["tmr_at_fmr_1e-2"]
        assert told[key]["tmr_at_fmr_1e-2"] == pytest.approx(gain)
        low, high = told[key]["ci"]["tmr_mean"]
        verdict = told["verdict" if key == "difference" else "verdict_alone"]
        assert verdict == ("helped" if low > 0 else "worse" if high < 0 else "no-difference")


def test_without_a_public_model_the_public_part_of_the_trained_one_stands_for_it(
    model: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = copied(model, tmp_path / "public.safetensors", broken=False)
    found = []
    for more in ((), ("--public-model", public)):
        code, out, _ = ended(capsys, "--model", model, "--data", own, "--json", *more)
        assert code == 0
        found.append(json.loads(out)["stages"])
    assert found[0] == found[1]


def test_a_model_that_harms_the_sites_people_is_a_warning_in_words(
    model: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harmful = copied(model, tmp_path / "broken.safetensors", broken=True)
    code, out, err = ended(capsys, "--model", harmful, "--public-model", model, "--data", own)
    assert code == 0
    warned = re.findall("warning: Federated is worse than ([a-z ]+). From ([a-z ]+) to", err)
    assert warned == [(stage, stage) for stage in ("before", "public only", "alone")]
    assert "Federated is worse than alone." in out
    code, _, err = ended(capsys, "--model", model, "--data", own)
    assert code == 0 and "worse" not in err


def test_a_person_of_one_fold_changes_nothing_that_is_measured_on_that_fold_by_adapting(
    model: Path,
) -> None:
    # Persons of pure noise beside people: where they are told apart, they were learnt from.
    network = trained_network(model, None)
    noise = np.random.default_rng(0).integers(
        0, 256, (20 * 2, *(network.backbone.chip.size,) * 2, 3), np.uint8
    )
    found = on_own_faces(network, None, noise, np.repeat(np.arange(20), 2))
    for stage in ("alone", "after_own"):
        assert found.stages[stage].verification.eer > 0.3


def test_no_name_is_printed_and_nothing_is_written(
    model: Path,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.chdir(home)
    site = tmp_path / "site"
    site.mkdir()
    faces(site, model, PERSONS)
    (site / f"{SECRET}_broken").mkdir()
    (site / f"{SECRET}_broken" / f"{SECRET}.png").write_bytes(b"no picture")
    (site / f"{SECRET}_elsewhere").symlink_to(own / f"{SECRET}_000")
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    for more in ((), ("--json",)):
        code, out, err = ended(capsys, "--model", model, "--data", site, *more)
        assert code == 0 and "could not be used" in err
        assert "CANARY" not in out + err
    assert sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_too_few_persons_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ended(capsys, "--model", model, "--data", faces(tmp_path, model, 15))
    assert code == 2 and not out and "it takes 16" in err and SECRET not in err
