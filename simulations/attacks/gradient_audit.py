"""The white-box audit of steps: was the canary in, judged from the noised update itself.

In each step a fair coin decides whether a canary with a known clipped gradient g, ||g|| = C, takes
part. The auditor sees the update, subtracts what everybody else ought to have added, and projects
on g: by the claim it sees N(b, sigma^2), b in {0, 1}. Guessing b by a threshold is the best test of
a Gaussian shift (Nasr et al. 2023, arXiv:2302.07956), so on a right build the bound comes close to
the claim. Each step has a fresh coin, fresh noise and a threshold from earlier steps only, so right
guesses are dominated by a binomial; steps compose by mu_T = sqrt(T) mu (Dong et al. 2022, 3.3).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.contract import Contract
from common.persons import Persons
from server.optimizer import OptimizerState
from simulations.attacks.bounds import (
    ALARM,
    READING,
    accuracy_mu,
    enough_steps,
    epsilon_of_mu,
)
from simulations.attacks.pipeline import Draws, Pipeline, together
from simulations.attacks.record import Bound, Figure, Finding, Scores, rate_figure

NAME = "gradient"
_SITE = 1
_FIRST = 8


def gradient_audit(
    pipeline: Pipeline, draws: Draws, steps: int | None = None
) -> tuple[Finding, Scores]:
    """Return the bound from `steps` real steps, in training runs of the contract's rounds.

    None takes twice as many as it needs to notice half the noise.
    """
    steps = steps or 2 * steps_needed(pipeline.contract)
    rng = draws.coins(NAME)
    canary = pipeline.canaries(1, rng)
    coins = rng.integers(0, 2, steps).astype(np.bool_)
    scores = _scores(pipeline, draws, canary, coins)
    guesses = scores > _thresholds(scores, coins)
    correct, rounds = int((guesses == coins).sum()), pipeline.contract.rounds

    def bound(alpha: float) -> float:
        mu = math.sqrt(rounds) * accuracy_mu(correct, steps, alpha)
        return epsilon_of_mu(mu, pipeline.contract.privacy.delta)

    finding = Finding(
        attack=NAME,
        adversary="the server, which sees every noised update, and knows everybody else",
        claimed=pipeline.claimed,
        bounds=(Bound("Gaussian DP, Clopper-Pearson", bound(ALARM), bound(READING)),),
        figures=(
            Figure("steps", steps),
            Figure("steps that notice half the noise", steps_needed(pipeline.contract)),
            rate_figure("right guesses", correct, steps),
            Figure("canary's part over C", float(scores[coins].mean() - scores[~coins].mean())),
            Figure("noise over C, standard deviation", float(scores[~coins].std())),
            Figure("noise over C, as claimed", pipeline.contract.privacy.noise_multiplier),
        ),
    )
    return finding, Scores(scores, coins)


def steps_needed(contract: Contract) -> int:
    """Return how many steps are enough for this audit to catch a build with half the noise."""
    return enough_steps(1.0 / contract.privacy.noise_multiplier)


def _scores(
    pipeline: Pipeline, draws: Draws, canary: Persons, coins: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Project each step's update on the canary's gradient: about 1 if it was in, else about 0."""
    key, rounds = draws.round_key(_SITE), pipeline.contract.rounds
    persons = {False: pipeline.crowd, True: together(pipeline.crowd, canary)}
    start = OptimizerState.start(pipeline.initial)
    expected_at_start = _expected(pipeline, pipeline.initial, persons[True])
    scores, state = np.empty(len(coins)), start
    for number, coin in enumerate(coins.tolist()):
        first = number % rounds == 0
        state = start if first else state
        parameters = state.global_parameters()
        crowd, own = expected_at_start if first else _expected(pipeline, parameters, persons[True])
        delta = pipeline.update(parameters, persons[coin], key, number)
        scores[number] = float((pipeline.noised_sum(delta) - crowd) @ own / (own @ own))
        state = pipeline.advance(state, delta)
    return scores


def _expected(
    pipeline: Pipeline, parameters: NDArray[np.float32], persons: Persons
) -> tuple[Tensor, Tensor]:
    """The crowd's sum and the gradient of the canary, who comes last, float64 [d] each."""
    found = pipeline.contributions(parameters, persons)
    return found[:-1].sum(dim=0), found[-1]


def _thresholds(scores: NDArray[np.float64], coins: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Halfway between the medians of all earlier steps with and without the canary.

    Drawn anew whenever the steps have grown by a quarter; the first ones take the claim's, 1/2.
    """
    thresholds = np.full(len(scores), 0.5)
    seen = _FIRST
    while seen < len(scores):
        past, coin = scores[:seen], coins[:seen]
        if coin.any() and not coin.all():
            thresholds[seen:] = (np.median(past[coin]) + np.median(past[~coin])) / 2.0
        seen += max(1, seen // 4)
    return thresholds
