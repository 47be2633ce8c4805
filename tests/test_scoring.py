"""Scores by a population: exact, without who is claimed, and refused where it is too small."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import InputError
from common.metrics import all_pairs
from common.scoring import LEAST_PERSONS, NEAREST, SPARED, Choice, Scorer, centres, plain

DIM, PERSONS = 24, 60


def faces(count: int, seed: int, near: float = 1.0) -> NDArray[np.float32]:
    """Unit embeddings [count, DIM] around a common direction: the crowd of a real network."""
    rows = np.random.default_rng(seed).normal(size=(count, DIM)) + near
    unit: NDArray[np.float32] = plain(rows).vectors
    return unit


def by_hand(
    choice: Choice, cohort: NDArray[np.float32], x: NDArray[np.float32], person: int
) -> float:
    """What the score of x, claimed to be `person` of the cohort, loses by crowding: the formula."""
    mean = choice.mean * cohort.astype(np.float64).mean(axis=0)

    def moved(rows: NDArray[np.floating]) -> NDArray[np.float64]:
        less = rows - mean
        return np.asarray(less / np.linalg.norm(less, axis=-1, keepdims=True), np.float64)

    people = moved(cohort)

    def crowd(row: NDArray[np.float64], without: int) -> float:
        others = np.delete(people @ row, without) if without >= 0 else people @ row
        return float(np.sort(others)[-NEAREST:].mean())

    floor = np.quantile([crowd(row, at) for at, row in enumerate(people)], SPARED)
    return choice.cohort / 2 * max(crowd(moved(x), person) - float(floor), 0.0)


@pytest.mark.parametrize("choice", [Choice(0.0, 1.0), Choice(0.5, 0.75), Choice(1.0, 1.5)])
def test_a_score_loses_what_the_formula_says(choice: Choice) -> None:
    cohort, probes = faces(PERSONS, 1), faces(20, 2)
    scorer = Scorer.of(choice, cohort)
    found = scorer.faces(probes)
    expected = [by_hand(choice, cohort, probe, -1) for probe in probes]
    assert found.offsets == pytest.approx(expected, abs=1e-6)
    assert any(expected) and found.scores(found).shape == (20, 20)
    members = scorer.faces(cohort, np.arange(PERSONS))
    own = [by_hand(choice, cohort, row, at) for at, row in enumerate(cohort)]
    assert members.offsets == pytest.approx(own, abs=1e-6)


def test_leaving_a_person_out_afterwards_is_exact() -> None:
    choice, cohort, probes = Choice(0.0, 1.0), faces(PERSONS, 1), faces(30, 2)
    scorer = Scorer.of(choice, cohort)
    crowd = scorer.crowd(scorer.vectors(probes), np.full(30, -1))
    changed = 0
    for person in range(PERSONS):
        left = scorer.off(crowd.without(person))
        expected = [by_hand(choice, cohort, probe, person) for probe in probes]
        assert left == pytest.approx(expected, abs=1e-6)
        changed += int(np.sum(np.abs(left - scorer.off(crowd.crowding)) > 1e-6))
    assert changed > 30  # for some it matters


def test_who_claims_to_be_a_person_is_not_pushed_away_by_that_person() -> None:
    cohort = faces(PERSONS, 1)
    scorer = Scorer.of(Choice(0.0, 1.0), cohort)
    crowd = scorer.crowd(scorer.vectors(cohort), np.full(PERSONS, -1))
    alone = [scorer.off(crowd.without(person))[person] for person in range(PERSONS)]
    assert alone == pytest.approx(scorer.faces(cohort, np.arange(PERSONS)).offsets, abs=1e-6)
    assert np.all(scorer.off(crowd.crowding) >= alone)


def test_plain_is_the_cosine_and_pairs_lose_both_offsets() -> None:
    rows = faces(12, 3)
    subjects = np.repeat(np.arange(6), 2)
    assert plain(rows).scores(plain(rows)) == pytest.approx(rows @ rows.T, abs=1e-6)
    assert Scorer.of(Choice(0.0, 0.0), faces(2, 1)).faces(rows).offsets.tolist() == [0.0] * 12
    ready = Scorer.of(Choice(0.5, 1.0), faces(PERSONS, 1)).faces(rows)
    pairs, whole = all_pairs(ready.vectors, subjects, ready.offsets), ready.scores(ready)
    assert pairs.mated == pytest.approx([whole[i, i + 1] for i in range(0, 12, 2)], abs=1e-6)
    upper = [whole[i, j] for i in range(12) for j in range(i + 1, 12) if i // 2 != j // 2]
    assert pairs.non_mated == pytest.approx(upper, abs=1e-6)


def test_a_crowd_within_a_crowd_no_longer_matches_itself() -> None:
    """Two groups, one of them close together: a threshold of the wide one is kept by both."""
    rng = np.random.default_rng(4)
    wide = rng.normal(size=(200, DIM)).astype(np.float32)
    close = (rng.normal(size=(200, DIM)) + 3 * np.eye(DIM)[0]).astype(np.float32)
    threshold = {}
    rates = {}
    for name, choice in (("plain", Choice(0.0, 0.0)), ("cohort", Choice(0.0, 1.0))):
        scorer = Scorer.of(
            choice, centres(np.concatenate([wide[:100], close[:100]]), np.arange(200))
        )
        strangers, group = scorer.faces(wide[100:]), scorer.faces(close[100:])
        upper = np.triu_indices(100, 1)
        threshold[name] = np.quantile(strangers.scores(strangers)[upper], 0.99)
        rates[name] = float((group.scores(group)[upper] >= threshold[name]).mean())
    assert rates["plain"] > 0.1 > 0.03 > rates["cohort"]


def test_a_population_that_is_too_small_is_refused() -> None:
    few = faces(LEAST_PERSONS - 1, 1)
    for choice in (Choice(1.0, 0.0), Choice(0.0, 0.5)):
        with pytest.raises(InputError, match="too few"):
            Scorer.of(choice, few)
    for share in (-0.1, 2.1, float("nan")):
        with pytest.raises(InputError, match="between 0 and 2"):
            Choice(0.0, share)


def test_a_person_counts_once_however_many_images_there_are() -> None:
    rows = faces(10, 6)
    persons = np.array([0] * 8 + [1, 2])
    found = centres(rows, persons)
    first = rows[:8].mean(axis=0)
    assert found[0] == pytest.approx(first / np.linalg.norm(first), abs=1e-6)
    assert found[1:] == pytest.approx(rows[8:], abs=1e-6)
