"""A whole run in one process: what it spends, what it trains, what it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from common.backbones.weights import load_model
from common.vocabulary import TRAIN_SETS, TrainSet
from server.report.wording import epsilon as epsilon_in_words
from simulations.experiment import Experiment
from simulations.federation import build, site_directory
from simulations.material import gather
from tests.simulation_rig import records, run


def test_a_run_spends_its_budget_and_no_more_in_every_ledger(
    experiment: Experiment, tmp_path: Path
) -> None:
    record = run(experiment, tmp_path / "run")
    assert record.privacy.private
    for site in record.privacy.per_site:
        assert site.epsilon is not None
        assert 3.99 < site.epsilon <= 4.0
    for index in range(experiment.sites):
        reservations, commits = records(tmp_path / "run", index)
        assert [r.round for r in reservations] == [1, 2, 3]
        assert [c.reservation for c in commits] == [r.seq for r in reservations]
        assert not list(site_directory(tmp_path / "run", index).glob("*.key"))
    saved = load_model(tmp_path / "run" / "model.safetensors")
    assert saved.model_id == record.model


@pytest.mark.parametrize("loss", ["public-negatives", "triplet", "codebook"])
@pytest.mark.parametrize("train_set", sorted(set(TRAIN_SETS) - {"statistics"}))
def test_every_loss_trains_every_part(
    experiment: Experiment, tmp_path: Path, loss: str, train_set: TrainSet
) -> None:
    chosen = dataclasses.replace(experiment, loss=loss, train_set=train_set, rounds=1, sites=2)
    simulation = build(chosen, "x", tmp_path / "unused", gather(chosen))
    start = simulation.federation.initial
    run(chosen, tmp_path / "run")
    state = load_model(tmp_path / "run" / "model.safetensors").state
    names = simulation.federation.layout.names
    moved = torch.cat([state[name].reshape(-1) for name in names]).numpy() - start
    assert np.abs(moved).max() > 0


def test_poisson_sampling_and_local_steps_fit_the_budget(
    experiment: Experiment, tmp_path: Path
) -> None:
    chosen = dataclasses.replace(experiment, sample_rate=0.5, local_steps=2)
    record = run(chosen, tmp_path / "run")
    for site in record.privacy.per_site:
        assert site.epsilon is not None
        assert site.epsilon <= 4.0
        assert site.steps == 6


def test_the_same_seed_gives_the_same_model_with_secure_aggregation_as_the_plain_sum(
    experiment: Experiment, tmp_path: Path
) -> None:
    bare = dataclasses.replace(experiment, epsilon=None)
    plain = run(bare, tmp_path / "plain")
    masked = run(dataclasses.replace(bare, trust="secagg"), tmp_path / "masked")
    assert not masked.privacy.private
    assert masked.privacy.worst is None
    assert masked.after.tmr_at_fmr_1e2 == pytest.approx(plain.after.tmr_at_fmr_1e2, abs=0.02)
    seeded = dataclasses.replace(experiment, trust="secagg", seeded_noise=True)
    first, second = run(seeded, tmp_path / "a"), run(seeded, tmp_path / "b")
    assert first.model == second.model, "masks are secret, and leave no trace in the sum"
    assert not first.privacy.private


def test_the_same_seed_gives_the_same_model_bit_by_bit_when_noise_is_seeded(
    experiment: Experiment, tmp_path: Path
) -> None:
    seeded = dataclasses.replace(experiment, seeded_noise=True)
    first, second = run(seeded, tmp_path / "a"), run(seeded, tmp_path / "b")
    assert first.model == second.model
    assert not first.privacy.private
    assert "seed" in first.privacy.not_private
    reservations, _ = records(tmp_path / "a", 0)
    assert not any(reservation.private for reservation in reservations)
    assert run(experiment, tmp_path / "c").model != first.model


def test_ray_gives_the_same_model_as_one_process(experiment: Experiment, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    seeded = dataclasses.replace(experiment, seeded_noise=True)
    first = run(seeded, tmp_path / "a")
    second = run(dataclasses.replace(seeded, engine="ray"), tmp_path / "b")
    assert first.model == second.model
    masked = dataclasses.replace(seeded, trust="secagg")
    third = run(masked, tmp_path / "c")
    assert run(dataclasses.replace(masked, engine="ray"), tmp_path / "d").model == third.model


def test_a_hundred_sites_work(experiment: Experiment, tmp_path: Path) -> None:
    many = dataclasses.replace(
        experiment, data=None, persons=100, sites=100, rounds=2, backbone="lenet", aligned=False
    )
    record = run(many, tmp_path / "run")
    assert len(record.privacy.per_site) == 100


def test_a_run_without_privacy_says_so_and_has_no_epsilon(
    experiment: Experiment, tmp_path: Path
) -> None:
    record = run(dataclasses.replace(experiment, epsilon=None), tmp_path / "run")
    assert not record.privacy.private
    assert {a.epsilon for a in record.privacy.adversaries} == {None}
    assert "no noise" in record.privacy.not_private


def test_robust_aggregation_runs_end_to_end(experiment: Experiment, tmp_path: Path) -> None:
    for rule in ("median", "trimmed-mean", "krum"):
        run(dataclasses.replace(experiment, aggregator=rule, rounds=1), tmp_path / rule)


def test_no_epsilon_is_ever_printed_below_the_truth() -> None:
    for value in (3.99951, 0.12341, 1.0000001, 7.0004):
        shown = epsilon_in_words(value)
        assert float(shown) >= value, f"{value} is shown as {shown}"
