"""What keeps a threshold's promise for every group, before and after, on groups drawn unlike."""

from __future__ import annotations

import dp_accounting
import numpy as np
import pytest

from server.remedies import DELTA, EPSILON, HALVES, NOISE_MULTIPLIER, SHARES, Labelled, remedies

DIM = 32


def population(seed: int, persons: int, images: int, shift: float) -> Labelled:
    """Persons around a direction that is the group's own; the larger `shift`, the closer."""
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(persons, DIM))
    people[:, seed] += shift
    rows = np.repeat(people, images, axis=0) + 0.3 * rng.normal(size=(persons * images, DIM))
    return Labelled(
        rows.astype(np.float32),
        np.repeat(np.arange(persons), images) + 1000 * seed,
        np.full(persons * images, f"group {seed}"),
    )


def together(*parts: Labelled) -> Labelled:
    return Labelled(
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.persons for part in parts]),
        np.concatenate([part.groups for part in parts]),
    )


def test_a_threshold_that_fails_a_crowded_group_is_mended_by_its_mean_and_by_a_cohort() -> None:
    data = population(0, 150, 2, 0.0)
    listed = together(population(1, 60, 1, 0.0), population(2, 60, 1, 4.0))
    found = {remedy.name: remedy for remedy in remedies(data, listed, 1e-2)}
    before, own = found["plain"], found["own mean off"]
    assert before.worst.group == "group 2" and before.worst.fmr > 0.2
    assert own.worst.fmr < before.worst.fmr / 5
    cohorts = [found[f"mixed cohort, {share:.0%} of the crowding off"] for share in SHARES]
    worst = [remedy.worst.fmr for remedy in cohorts]
    assert worst[1] < worst[0] < before.worst.fmr and worst[-1] < before.worst.fmr / 5
    assert before.persons == 60 and 0 < before.tmr <= 1
    noised = [remedy for name, remedy in found.items() if "simulated noise" in name]
    few, many = (remedy.worst.fmr for remedy in noised)
    assert (
        max(own.worst.fmr, many) < few < before.worst.fmr
    )  # noise costs, less where many share it
    assert before.to_json()["worst"] == "group 2" and HALVES > 1


def test_persons_of_the_site_are_in_no_rate_and_fnmr_is_told_where_it_can_be() -> None:
    listed = together(population(1, 45, 2, 0.0), population(2, 45, 2, 1.0))
    plain, *_ = remedies(None, listed, 1e-2)
    assert plain.persons == 44  # 22 of each 45; the other 23 are measured
    assert all(group.fnmr is not None for group in plain.groups)


def test_groups_that_are_too_small_are_not_compared() -> None:
    assert remedies(population(0, 50, 2, 0.0), population(1, 30, 1, 0.0), 1e-2) == ()


def test_the_simulated_noise_is_that_of_the_epsilon_it_names() -> None:
    accountant = dp_accounting.pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    accountant.compose(dp_accounting.GaussianDpEvent(NOISE_MULTIPLIER))
    assert accountant.get_epsilon(DELTA) == pytest.approx(EPSILON, abs=0.005)
