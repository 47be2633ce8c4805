"""A release of statistics in whole runs: it helps, masks change nothing, and it happens once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from common.backbones.weights import load_model
from common.cli import main
from common.errors import InputError
from common.network import trained_network
from simulations.experiment import Experiment
from simulations.federation import build
from simulations.material import gather
from tests.simulation_rig import records, run


@pytest.fixture(scope="module")
def cameras() -> Experiment:
    """Synthetic people before a camera that the public bank never saw."""
    return Experiment(
        data=None,
        shift=("cctv",),
        bank_shift="none",
        sites=4,
        persons=120,
        rounds=1,
        local_steps=1,
        epsilon=None,
        delta=1e-4,
        sample_rate=1.0,
        trust="local",
        train_set="statistics",
        loss="public-negatives",
        backbone="dlib-resnet",
        weights=None,
        aggregator="mean",
        engine="inprocess",
        seed=100,
        seeded_noise=False,
        aligned=False,
        cache=None,
    )


@pytest.fixture
def small(experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, train_set="statistics", rounds=1)


def test_what_persons_say_helps_before_a_camera_that_the_bank_never_saw(
    cameras: Experiment, tmp_path: Path
) -> None:
    record = run(cameras, tmp_path / "run")
    assert record.difference is not None and record.difference.tmr_mean.value > 0.01
    assert record.unreleased is not None
    assert [site.persons for site in record.unreleased.by_site] == [30, 30, 30, 30]
    shown = record.summary()
    stages = shown["stages"]
    assert isinstance(stages, dict)
    assert set(stages) == {"before", "public", "alone", "after", "after_own"}
    assert shown["verdict"] == record.difference.verdict
    assert shown["difference_alone"] == record.unreleased.difference.to_json()
    # The written model is the one that was measured, by itself.
    material = gather(cameras)
    simulation = build(cameras, "again", tmp_path / "unused", material)
    network = trained_network(tmp_path / "run" / "model.safetensors", None)
    chips = material.test.chips
    with torch.no_grad():
        whole = network.module(network.backbone.preprocess(chips[:8]))
        state = load_model(tmp_path / "run" / "model.safetensors").state
        simulation.rows.split.trainable.load_state_dict(state)
        parts = simulation.rows.embed(simulation.rows.of(chips[:8]))
    assert torch.allclose(whole, parts, atol=1e-5)


def test_a_run_spends_its_budget_in_one_release(small: Experiment, tmp_path: Path) -> None:
    record = run(small, tmp_path / "run")
    for index, site in enumerate(record.privacy.per_site):
        assert site.epsilon is not None and 3.99 < site.epsilon <= 4.0 and site.steps == 1
        assert len(records(tmp_path / "run", index)[0]) == 1


def test_masked_sums_say_what_plain_sums_say(small: Experiment, tmp_path: Path) -> None:
    told = []
    for trust in ("local", "secagg"):
        chosen = dataclasses.replace(small, trust=trust, epsilon=None)
        run(chosen, tmp_path / trust)
        state = load_model(tmp_path / trust / "model.safetensors").state
        told.append(state["embedding"].numpy())
    assert np.abs(told[0]).max() > 0
    np.testing.assert_allclose(told[0], told[1], atol=1e-4)


def test_statistics_are_released_once_and_averaged_plainly(small: Experiment) -> None:
    for change, word in (
        ({"rounds": 2}, "released once"),
        ({"local_steps": 2}, "released once"),
        ({"aggregator": "median"}, "the noise of their mean"),
    ):
        with pytest.raises(InputError, match=word):
            build(dataclasses.replace(small, **change), "x", Path("unused"), gather(small))


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ((), "statistics"),
        (("--rounds", "2"), "adapter"),
        (("--train", "statistics", "--rounds", "2"), "released once"),
    ],
)
def test_the_command_releases_statistics_unless_rounds_are_asked_for(
    people_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    trained: str,
) -> None:
    out = str(tmp_path / "run")
    asked = ["simulate", "--data", str(people_folder), "--aligned", "--backbone", "lenet"]
    asked += ["--sites", "2", "--persons", "12", "--epsilon", "4", "--out", out, *options]
    with pytest.raises(SystemExit) as ended:
        main(asked)
    if trained in ("statistics", "adapter"):
        assert ended.value.code == 0
        assert load_model(tmp_path / "run" / "model.safetensors").train_set == trained
    else:
        assert ended.value.code == 2 and trained in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
