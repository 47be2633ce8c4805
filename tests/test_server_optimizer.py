"""The server's optimiser equals torch's, and iterates are averaged as stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import InputError
from server.optimizer import OptimizerConfig, OptimizerState, advance

START = np.array([1.0, -2.0, 3.0], dtype=np.float32)


def deltas(count: int) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=3).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_it_takes_the_same_steps_as_torch(name: str) -> None:
    parameter = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    reference: torch.optim.Optimizer
    if name == "sgd":
        config = OptimizerConfig("sgd", 0.1, momentum=0.9)
        reference = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    else:
        config = OptimizerConfig("adam", 0.1, momentum=0.9, second_moment=0.99)
        reference = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    state = OptimizerState.start(START)
    for delta in deltas(6):
        parameter.grad = torch.tensor(-delta, dtype=torch.float64)
        reference.step()
        state = advance(state, delta, config, 6)
    np.testing.assert_allclose(state.parameters, parameter.detach().numpy(), rtol=1e-6)
    assert state.round == 6


def test_plain_federated_averaging_adds_the_mean_delta() -> None:
    config = OptimizerConfig("sgd", 1.0, momentum=0.0)
    (delta,) = deltas(1)
    state = advance(OptimizerState.start(START), delta, config, 1)
    np.testing.assert_allclose(state.released(), START + delta, rtol=1e-6)


def test_the_released_model_is_the_mean_of_the_last_half_of_the_iterates() -> None:
    config = OptimizerConfig("sgd", 0.5, momentum=0.5, average_from=0.5)
    state, iterates = OptimizerState.start(START), []
    for delta in deltas(8):
        state = advance(state, delta, config, 8)
        iterates.append(state.parameters)
    np.testing.assert_allclose(state.released(), np.mean(iterates[4:], axis=0), rtol=1e-6)


def test_weight_decay_shrinks_towards_zero() -> None:
    config = OptimizerConfig("sgd", 0.1, momentum=0.0, weight_decay=0.5)
    state = advance(OptimizerState.start(START), np.zeros(3, np.float32), config, 1)
    np.testing.assert_allclose(state.parameters, START * 0.95)


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": 1.0, "momentum": 1.0},
        {"learning_rate": 1.0, "weight_decay": -1.0},
        {"learning_rate": 1.0, "average_from": 2.0},
    ],
)
def test_bad_constants_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        OptimizerConfig("sgd", **bad)
