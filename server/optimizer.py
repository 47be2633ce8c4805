"""The server's optimiser: the mean delta is a pseudo-gradient (Reddi et al. 2021, Algorithm 2).

All of it is post-processing of noised updates and costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class OptimizerConfig:
    """Server optimiser: SGD with momentum or Adam, decoupled weight decay, iterate averaging.

    `average_from` is the share of rounds after which iterates are averaged into the released
    model (Polyak and Juditsky 1992); 1 releases the last iterate.
    """

    name: Literal["sgd", "adam"]
    learning_rate: float
    momentum: float = 0.9
    second_moment: float = 0.999
    weight_decay: float = 0.0
    average_from: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"the server's learning rate must be positive: {self.learning_rate}")
        for name in ("momentum", "second_moment"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name} must lie in [0, 1): {getattr(self, name)}")
        if not 0.0 <= self.average_from <= 1.0 or self.weight_decay < 0.0:
            raise InputError("average_from must lie in [0, 1] and weight_decay not below 0")


@dataclass(frozen=True)
class OptimizerState:
    """Where the optimiser is: all vectors float64 [d]; `round` is the number of rounds done."""

    round: int
    parameters: Vector
    first: Vector
    second: Vector
    average: Vector
    averaged: int

    @staticmethod
    def start(parameters: NDArray[np.float32]) -> OptimizerState:
        """Return the state before the first round."""
        zero = np.zeros(parameters.shape, dtype=np.float64)
        return OptimizerState(0, parameters.astype(np.float64), zero, zero, zero, 0)

    def global_parameters(self) -> NDArray[np.float32]:
        """Return what the sites start the next round from, float32 [d]."""
        return self.parameters.astype(np.float32)

    def released(self) -> NDArray[np.float32]:
        """Return the model to keep: the average of iterates if there is one, float32 [d]."""
        return (self.average if self.averaged else self.parameters).astype(np.float32)


def advance(
    state: OptimizerState, delta: NDArray[np.float32], config: OptimizerConfig, rounds: int
) -> OptimizerState:
    """Return the state after one more of `rounds` rounds, from the sites' mean delta [d]."""
    done = state.round + 1
    gradient = -delta.astype(np.float64)
    if config.name == "sgd":
        first, second = config.momentum * state.first + gradient, state.second
        step = first
    else:  # Adam (Kingma and Ba 2015, Algorithm 1)
        first = config.momentum * state.first + (1 - config.momentum) * gradient
        second = config.second_moment * state.second + (1 - config.second_moment) * gradient**2
        corrected = second / (1 - config.second_moment**done)
        step = first / (1 - config.momentum**done) / (np.sqrt(corrected) + 1e-8)
    kept = state.parameters * (1.0 - config.learning_rate * config.weight_decay)
    parameters = kept - config.learning_rate * step
    average, averaged = state.average, state.averaged
    if done > config.average_from * rounds:
        averaged += 1
        average = average + (parameters - average) / averaged
    return OptimizerState(done, parameters, first, second, average, averaged)
