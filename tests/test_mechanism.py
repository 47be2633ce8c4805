"""The mechanism: the clip bounds a person, the noise has its scale, broken persons count zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from common.errors import InputError
from common.mechanism import ClippedSum, add_noise, clip_by_person, clip_factors
from common.randomness import KeyStream, experiment_key, fresh_key

ALPHA = 1e-6
ROWS = st.lists(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=3, max_size=3),
    min_size=1,
    max_size=12,
)


def seeded() -> KeyStream:
    return KeyStream(experiment_key(5), private=False)


@settings(deadline=None, max_examples=300)
@given(ROWS, st.floats(1e-3, 1e3))
def test_adding_a_person_moves_the_sum_by_at_most_the_clip(
    rows: list[list[float]], max_grad_norm: float
) -> None:
    with_person = torch.tensor(rows, dtype=torch.float32)
    moved = (
        clip_by_person(with_person, 3, max_grad_norm).value
        - clip_by_person(with_person[:-1], 3, max_grad_norm).value
    )
    assert float(moved.norm()) <= max_grad_norm


def test_the_unclipped_sum_breaks_the_bound() -> None:
    # Control: without the clip the same check must fail, else it proves nothing.
    rows = torch.full((4, 3), 9.0)
    assert float((rows.sum(0) - rows[:-1].sum(0)).norm()) > 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_person_with_a_non_finite_gradient_adds_exactly_nothing(bad: float) -> None:
    good = torch.tensor([[3.0, 4.0], [0.1, 0.0]])
    poisoned = torch.cat([good, torch.tensor([[bad, 0.0]])])
    assert torch.equal(clip_by_person(poisoned, 2, 1.0).value, clip_by_person(good, 2, 1.0).value)


def test_a_gradient_whose_norm_overflows_float32_is_still_clipped() -> None:
    clipped = clip_by_person(torch.full((1, 2), 3e38), 2, 1.0).value
    assert float(clipped.norm()) == pytest.approx(1.0, abs=1e-5)


def test_small_gradients_pass_unchanged_and_large_ones_keep_their_direction() -> None:
    small, large = torch.tensor([[0.3, 0.4]]), torch.tensor([[30.0, 40.0]])
    assert torch.equal(clip_by_person(small, 2, 1.0).value, small[0].double())
    expected = torch.tensor([0.6, 0.8], dtype=torch.float64)
    torch.testing.assert_close(clip_by_person(large, 2, 1.0).value, expected, rtol=2e-6, atol=0)


def test_no_person_and_a_zero_gradient_give_the_zero_sum() -> None:
    nobody: list[Tensor] = []
    assert torch.equal(clip_by_person(nobody, 4, 1.0).value, torch.zeros(4, dtype=torch.float64))
    assert float(clip_by_person(torch.zeros(2, 4), 4, 1.0).value.abs().max()) == 0.0
    assert clip_factors(torch.tensor([0.0, 2.0, math.nan, math.inf]), 1.0).tolist() == [
        1.0,
        pytest.approx(0.5, rel=2e-6),
        0.0,
        0.0,
    ]


@pytest.mark.parametrize("noise_multiplier, max_grad_norm", [(1.0, 1.0), (3.0, 0.25)])
def test_the_noise_has_standard_deviation_multiplier_times_sensitivity(
    noise_multiplier: float, max_grad_norm: float
) -> None:
    zero = ClippedSum(torch.zeros(200_000, dtype=torch.float64), max_grad_norm)
    noise = add_noise(zero, noise_multiplier, seeded()).value.numpy()
    scale = noise_multiplier * max_grad_norm
    # The public grid is 2^-12 of the scale: far below what this test can see.
    assert stats.kstest(noise / scale, "norm").pvalue > ALPHA
    for wrong in (0.97, 1.03):
        assert stats.kstest(noise / (wrong * scale), "norm").pvalue < ALPHA


def test_noised_values_lie_on_the_public_grid() -> None:
    value = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    noised = add_noise(ClippedSum(value, 0.5), 2.0, seeded()).value
    steps = noised / (2.0 * 0.5 * 2.0**-12)
    assert torch.equal(steps, steps.round())


def test_noise_differs_from_release_to_release() -> None:
    stream = KeyStream(fresh_key(), private=True)
    zero = ClippedSum(torch.zeros(64, dtype=torch.float64), 1.0)
    first, second = add_noise(zero, 1.0, stream), add_noise(zero, 1.0, stream)
    assert not torch.equal(first.value, second.value)
    assert first.private and second.private


def test_seeded_or_absent_noise_is_marked_as_not_private() -> None:
    zero = ClippedSum(torch.zeros(4, dtype=torch.float64), 1.0)
    assert not add_noise(zero, 1.0, seeded()).private
    unnoised = add_noise(zero, 0.0, KeyStream(fresh_key(), private=True))
    assert not unnoised.private
    assert torch.equal(unnoised.value, zero.value)


def test_the_mean_divides_by_the_public_constant() -> None:
    noised = add_noise(ClippedSum(torch.ones(2, dtype=torch.float64), 1.0), 0.0, seeded())
    assert noised.mean(4.0).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_constants_are_refused(bad: float) -> None:
    zero = ClippedSum(torch.zeros(1, dtype=torch.float64), 1.0)
    with pytest.raises(InputError):
        clip_by_person(torch.zeros(1, 1), 1, bad)
    with pytest.raises(InputError):
        add_noise(zero, 0.0, seeded()).mean(bad)
    if bad != 0.0:
        with pytest.raises(InputError):
            add_noise(zero, bad, seeded())


def test_a_sum_that_was_never_clipped_cannot_be_noised_with_a_nan_in_it() -> None:
    with pytest.raises(InputError):
        add_noise(ClippedSum(torch.tensor([np.nan]), 1.0), 1.0, seeded())
