"""Aggregation: pure, order-free, public weights, and robust against 30% hostile sites."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import InputError
from server.aggregation import AGGREGATORS, Weighted, krum, weighted_mean

SITES, HOSTILE, DIMENSION = 10, 3, 200


def honest(seed: int, count: int) -> list[Weighted]:
    rng = np.random.default_rng(seed)
    return [Weighted(rng.normal(1.0, 0.1, DIMENSION).astype(np.float32)) for _ in range(count)]


ATTACKS: dict[str, NDArray[np.float32]] = {
    "huge": np.full(DIMENSION, 1e6, np.float32),
    "flipped": np.full(DIMENSION, -10.0, np.float32),
    "silent": np.zeros(DIMENSION, np.float32),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum"])
def test_robust_rules_stay_near_the_honest_mean_with_30_percent_hostile(
    rule: str, attack: str
) -> None:
    updates = honest(1, SITES - HOSTILE) + [Weighted(ATTACKS[attack])] * HOSTILE
    assert np.abs(AGGREGATORS[rule](updates) - 1.0).max() < 0.5


@pytest.mark.parametrize("attack", ["huge", "flipped"])
def test_the_plain_mean_does_not(attack: str) -> None:
    updates = honest(1, SITES - HOSTILE) + [Weighted(ATTACKS[attack])] * HOSTILE
    assert np.abs(weighted_mean(updates) - 1.0).max() > 2.0


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(AGGREGATORS)), st.permutations(range(5)))
def test_the_order_of_arrival_does_not_change_a_single_bit(rule: str, order: list[int]) -> None:
    updates = honest(2, 5)
    shuffled = [updates[i] for i in order]
    assert np.array_equal(AGGREGATORS[rule](updates), AGGREGATORS[rule](shuffled))


def test_the_mean_is_weighted_by_public_weights() -> None:
    one, two = np.zeros(1, np.float32), np.ones(1, np.float32)
    assert weighted_mean([Weighted(one, 1.0), Weighted(two, 3.0)]).tolist() == [0.75]


def test_one_site_is_its_own_aggregate() -> None:
    (only,) = honest(3, 1)
    for rule in ("mean", "median", "trimmed-mean"):
        np.testing.assert_allclose(AGGREGATORS[rule]([only]), only.delta)
    with pytest.raises(InputError, match="at least 3"):
        krum([only])


def test_what_cannot_be_aggregated_is_refused() -> None:
    short = Weighted(np.zeros(2, np.float32))
    for rule in AGGREGATORS.values():
        with pytest.raises(InputError):
            rule([])
        with pytest.raises(InputError):
            rule([short, *honest(1, 3)])
        with pytest.raises(InputError):
            rule([Weighted(short.delta, float("nan"))] * 3)
    with pytest.raises(InputError, match="equal"):
        AGGREGATORS["median"]([Weighted(short.delta, 1.0), Weighted(short.delta, 2.0)])
