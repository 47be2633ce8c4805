"""A site: reserve, compute, store, commit, answer; whatever is killed in between."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from client.site import Prepared, SecretRoundKey, Site
from client.trainer import train_round
from common.contract import Contract
from common.errors import BudgetExceeded, Refused, StorageError
from common.ledger import Ledger, verify
from common.parameters import flatten
from common.persons import Persons
from common.plan import PrivacyPlan, calibrate


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(self.layer(rows), dim=-1)


CONTRACT = Contract(
    run_id="run",
    backbone="lenet",
    train_set="adapter",
    frozen_id="f",
    images_per_person=3,
    public_negatives=5,
    rounds=4,
    local_steps=1,
    local_learning_rate=1.0,
    local_momentum=0.0,
    privacy=calibrate(
        epsilon=2.0,
        delta=1e-4,
        rounds=4,
        local_steps=1,
        max_grad_norm=0.5,
        sample_rate=1.0,
        public_denominator=5.0,
    ),
)
PLAN = PrivacyPlan(epsilon=2.0, delta=1e-4)
BANK = "b" * 64


def prepared(persons: int = 5, poison: float | None = None) -> Prepared:
    torch.manual_seed(0)
    rows = torch.randn(3 * persons, 6)
    if poison is not None:
        rows[0, 0] = poison
    subjects = [p for p in range(persons) for _ in range(3)]
    data = Persons.group(rows, subjects, list(range(persons)))
    return Prepared(CONTRACT, Head(), torch.randn(8, 6), data)


def start() -> Tensor:
    return flatten(prepared().model)


def train(site: Site, round_: int, ready: Prepared | None = None) -> NDArray[np.float32]:
    return site.train(lambda: ready or prepared(), CONTRACT, round_, start(), BANK).delta


def test_a_retry_gives_the_same_bytes_and_spends_nothing(tmp_path: Path) -> None:
    site = Site.open(tmp_path, PLAN)
    first = train(site, 1)
    again = train(Site.open(tmp_path, PLAN), 1)
    assert first.tobytes() == again.tobytes()
    assert len(verify(tmp_path).reservations) == 1


def test_the_same_round_for_other_parameters_is_refused(tmp_path: Path) -> None:
    site = Site.open(tmp_path, PLAN)
    train(site, 1)
    with pytest.raises(Refused):
        site.train(prepared, CONTRACT, 1, start() + 1.0, BANK)
    assert len(verify(tmp_path).reservations) == 1


def test_two_rounds_and_two_sites_draw_different_noise(tmp_path: Path) -> None:
    first, second = Site.open(tmp_path / "a", PLAN), Site.open(tmp_path / "b", PLAN)
    releases = [train(first, 1), train(first, 2), train(second, 1)]
    assert len({release.tobytes() for release in releases}) == 3


class Killed(BaseException):
    """Stands for a kill -9: nothing that handles errors may catch it."""


@pytest.mark.parametrize("where", ["after reserve", "while computing", "before commit"])
def test_a_round_killed_anywhere_counts_once_and_its_retry_repeats_the_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import client.site as module

    site = Site.open(tmp_path, PLAN)
    seen: list[bytes] = []

    def killed(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if where == "after reserve":
            patch.setattr(SecretRoundKey, "__call__", killed)
        elif where == "while computing":
            original = train_round

            def compute_and_die(*args: object, **kwargs: object) -> None:
                seen.append(original(*args, **kwargs).tobytes())  # type: ignore[arg-type]
                raise Killed

            patch.setattr(module, "train_round", compute_and_die)
        else:
            patch.setattr(Ledger, "commit", killed)
        train(site, 1)
    report = verify(tmp_path)
    assert report.ok
    assert len(report.reservations) == 1
    stored = list(tmp_path.glob("release-*.f32"))
    seen += [path.read_bytes() for path in stored]
    after = train(Site.open(tmp_path, PLAN), 1)
    assert all(release == after.tobytes() for release in seen)
    assert len(verify(tmp_path).reservations) == 1
    assert len(verify(tmp_path).commits) == 1
    assert not list(tmp_path.glob("*.key"))


def test_a_spent_budget_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    site = Site.open(tmp_path, dataclasses.replace(PLAN, epsilon=1.0))
    read: list[int] = []

    def reading() -> Prepared:
        read.append(1)
        return prepared()

    released = 0
    with pytest.raises(BudgetExceeded, match=r"1\.0000 allowed"):
        for round_ in range(1, 5):
            site.train(reading, CONTRACT, round_, start(), BANK)
            released += 1
    assert len(read) == released < 4
    assert len(verify(tmp_path).reservations) == released


def test_a_run_without_noise_or_with_seeded_noise_is_refused_outside_a_simulation(
    tmp_path: Path,
) -> None:
    class Seeded:
        private = False

        def __call__(self, contract: Contract, round_: int) -> bytes:
            return bytes(32)

    with pytest.raises(BudgetExceeded, match="infinite"):
        train(Site.open(tmp_path, PLAN, Seeded()), 1)
    assert verify(tmp_path).reservations == ()


@pytest.mark.parametrize("round_", [0, -1, 5])
def test_a_round_that_was_not_agreed_is_refused(tmp_path: Path, round_: int) -> None:
    with pytest.raises(Refused, match="agreed"):
        train(Site.open(tmp_path, PLAN), round_)
    assert verify(tmp_path).reservations == ()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_broken_image_does_not_break_the_release(tmp_path: Path, poison: float) -> None:
    release = train(Site.open(tmp_path, PLAN), 1, prepared(poison=poison))
    assert np.isfinite(release).all()


def test_one_person_and_parameters_of_another_model(tmp_path: Path) -> None:
    assert np.isfinite(train(Site.open(tmp_path / "one", PLAN), 1, prepared(persons=1))).all()
    with pytest.raises(Refused, match="fit"):
        Site.open(tmp_path / "two", PLAN).train(prepared, CONTRACT, 1, torch.zeros(3), BANK)


def test_a_full_disk_releases_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import client.outbox as module

    def full(path: Path, data: bytes) -> None:
        raise StorageError(f"cannot write {path}: no space left on device")

    site = Site.open(tmp_path, PLAN)
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(module, "write_private", full)
        train(site, 1)
    assert verify(tmp_path).ok
    assert len(verify(tmp_path).reservations) == 1, "a reserved round stays spent"
    assert np.isfinite(train(site, 1)).all(), "and its retry uses the same reservation"


def test_the_release_has_the_noise_of_the_contract(tmp_path: Path) -> None:
    """Four rounds at zero persons' signal: the spread is noise_multiplier * C / denominator."""
    site = Site.open(tmp_path, PLAN)
    same = Persons.group(torch.ones(2, 6), [0, 1], [0, 1])  # one image each: no gradient
    ready = dataclasses.replace(prepared(), persons=same)
    draws = np.concatenate([train(site, round_, ready) for round_ in range(1, 5)])
    privacy = CONTRACT.privacy
    scale = privacy.noise_multiplier * privacy.max_grad_norm / privacy.public_denominator
    # 96 normal draws: the sum of squares over scale^2 is chi-square with 96 degrees of freedom.
    statistic = float((draws**2).sum() / scale**2)
    low, high = (float(stats.chi2.ppf(p, len(draws))) for p in (5e-7, 1 - 5e-7))
    assert low < statistic < high
    assert not low < statistic / 4.0 < high, "half the noise must be told apart"
