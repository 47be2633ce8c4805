"""A vault as its own cohort: exact in 1:1 and 1:N, without who is claimed, chosen and not fixed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from client.choosing import COST, choose
from client.cohort import Scored
from client.population import Population
from client.vault import Gallery
from common.errors import InputError
from common.scoring import LEAST_PERSONS, MOST_PERSONS, Choice, Scorer, centres, plain

DIM = 24
CHOICES = [Choice(0.0, 1.0), Choice(0.5, 1.5), Choice(1.0, 0.0), Choice(0.0, 0.0)]


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return plain(rows).vectors


def gallery(persons: int, seed: int = 0, each: int = 2) -> Gallery:
    """Persons with templates around a common direction; some are close to one another."""
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(persons, DIM)) + 1.0
    people[: persons // 4] = people[0] + 0.5 * rng.normal(size=(persons // 4, DIM))
    owners = rng.permutation(np.repeat(np.arange(persons), each))
    vectors = unit(people[owners] + 0.3 * rng.normal(size=(len(owners), DIM)))
    names = rng.integers(0, 256, (persons, 16), dtype=np.uint8)
    return Gallery(vectors, owners.astype(np.int64), names)


def by_hand(found: Gallery, choice: Choice, probe: NDArray[np.float32]) -> dict[str, float]:
    """Every person's score, each from a vault in which that person is no crowd to anybody."""
    people = centres(found.vectors, found.owners)
    scorer = Scorer.of(choice, people)
    result = {}
    for person, name in enumerate(found.pseudonyms):
        mine = np.flatnonzero(found.owners == person)
        own = np.full(len(mine), person)
        templates = scorer.faces(found.vectors[mine], own)
        ready = scorer.faces(probe, np.array([person]))
        result[name] = float(ready.scores(templates).max())
    return result


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("eight_bit", [False, True])
def test_every_person_is_scored_and_ranked_without_being_their_own_crowd(
    choice: Choice, eight_bit: bool
) -> None:
    found = gallery(80)
    scored = Scored(found, Population.of(found), choice, eight_bit=eight_bit)
    rng = np.random.default_rng(1)
    strangers = unit(rng.normal(size=(6, DIM)) + 1.0)
    enrolled = unit(found.vectors[:6] + 0.05 * rng.normal(size=(6, DIM)))
    for probe in np.concatenate([strangers, enrolled])[:, None]:
        expected = by_hand(found, choice, probe)
        ranked = scored.ranked(probe, 10)
        best = sorted(expected.items(), key=lambda one: -one[1])[:10]
        assert [name for name, _ in ranked] == [name for name, _ in best]
        assert [score for _, score in ranked] == pytest.approx([s for _, s in best], abs=1e-5)
        name = found.pseudonyms[3]
        assert scored.score(probe, name) == pytest.approx(expected[name], abs=1e-5)


def test_to_leave_nobody_out_would_rank_another_first() -> None:
    """The control: by the index alone, some probe's own person loses to somebody else."""
    found, choice = gallery(80), Choice(0.0, 2.0)
    people = Population.of(found)
    scorer = Scorer.of(choice, people.vectors)
    templates = scorer.faces(found.vectors)  # the own person among the crowd
    exact = scorer.faces(found.vectors, found.owners)
    assert np.all(templates.offsets >= exact.offsets - 1e-9)
    assert np.mean(templates.offsets > exact.offsets + 1e-3) > 0.5


def test_an_enrolment_changes_a_population_by_one_person_and_who_is_left_out_is_not_in_it() -> None:
    many = gallery(MOST_PERSONS + 40, each=1)
    order = np.argsort(many.owners)
    many = Gallery(many.vectors[order], many.owners[order], many.names)
    fewer = Gallery(many.vectors[:-1], many.owners[:-1], many.names[:-1])
    here, before = (Population.of(one) for one in (many, fewer))
    assert len(here.vectors) == len(before.vectors) == MOST_PERSONS
    changed = (here.row_of[:-1] >= 0) != (before.row_of >= 0)
    assert changed.sum() <= 1
    without = Population.of(fewer, frozenset(fewer.pseudonyms[:30]))
    assert (without.row_of[:30] == -1).all() and len(without.vectors) == MOST_PERSONS


def test_nobody_of_that_name_is_an_error_and_an_empty_vault_has_no_candidates() -> None:
    found = gallery(30)
    scored = Scored(found, Population.of(found), Choice(0.0, 1.0), eight_bit=False)
    with pytest.raises(InputError, match="nobody of that name"):
        scored.score(found.vectors[:1], "00" * 16)
    none = Gallery(found.vectors[:0], found.owners[:0], found.names[:0])
    empty = Scored(none, Population.nobody(none), Choice(0.0, 0.0), eight_bit=False)
    assert empty.ranked(found.vectors[:1], 5) == []


def data(persons: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(persons, DIM)), 3, axis=0)
    return unit(rows + 0.6 * rng.normal(size=rows.shape)), np.repeat(np.arange(persons), 3)


def crowded(persons: int) -> Population:
    """A vault of people who are closer to one another than the data's."""
    rng = np.random.default_rng(7)
    rows = unit(rng.normal(size=(persons, DIM)) + 3.0 * np.eye(DIM)[0])
    names = rng.integers(0, 256, (persons, 16), dtype=np.uint8)
    return Population.of(Gallery(rows, np.arange(persons), names))


def test_what_is_taken_off_is_chosen_for_the_vaults_own_persons_at_little_cost() -> None:
    chosen = choose(*data(150, 1), crowded(60), 1e-2)
    assert chosen.trial is not None and chosen.plain is not None
    assert not chosen.scoring.plain
    assert chosen.plain.worst_tenth > 0.1 > 0.05 > chosen.trial.worst_tenth
    assert chosen.trial.tmr >= max(trial.tmr for trial in chosen.trials) - COST
    assert any(trial.scoring.plain for trial in chosen.trials)


def test_plain_scores_stay_where_the_vault_or_the_data_are_too_small() -> None:
    few = choose(*data(150, 1), crowded(LEAST_PERSONS - 1), 1e-2)
    assert few.scoring.plain and "vault holds fewer than" in few.note
    rows, labels = data(150, 1)
    single = choose(rows[::3], labels[::3], crowded(60), 1e-2)
    assert single.scoring.plain and "two pictures" in single.note
