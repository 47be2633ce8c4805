"""Membership of persons, judged from the released model alone (Carlini et al. 2022, "LiRA").

Real persons, each in a site's run by a fair coin, many runs. From the first half of the runs, the
shadows, the attacker learns how each person's loss under the released model is distributed if they
took part and if not; in the other half it guesses by likelihood ratio. Runs have disjoint coins, so
all of them are one mechanism with one coin a person and run, and the one-run theorems hold for
the guesses.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from common.losses import create_loss
from common.parameters import assign
from common.persons import Persons
from server.optimizer import OptimizerState
from simulations.attacks.bounds import READING
from simulations.attacks.pipeline import Draws, Pipeline, chosen
from simulations.attacks.record import Figure, Finding, Scores, highest_tpr, refuted

NAME = "membership"
_SITE = 3
_LOW_FPR = 1e-2
_GUESSED = 0.25
_REPLICATES = 400


def membership_audit(pipeline: Pipeline, draws: Draws, runs: int) -> tuple[Finding, Scores]:
    """Return the finding from `runs` shadow runs and as many attacked ones, and its scores."""
    rng = draws.coins(NAME)
    members = rng.integers(0, 2, (2 * runs, len(pipeline.crowd))).astype(np.bool_)
    losses = _losses(pipeline, draws, members)
    ratios = _ratios(losses[:runs], members[:runs], losses[runs:])
    truth = members[runs:]
    trials = ratios.size
    surest = np.argsort(-np.abs(ratios), axis=None)[: max(1, round(_GUESSED * trials))]
    right = ((ratios > 0) == truth).ravel()[surest]
    delta, claimed = pipeline.contract.privacy.delta, pipeline.claimed
    (low_auc, low_tpr), (high_auc, high_tpr) = _bootstrap(ratios, truth, rng)
    auc, tpr = _rates(ratios, truth)
    return (
        Finding(
            attack=NAME,
            adversary="anyone who holds the released model",
            claimed=claimed,
            bounds=refuted(trials, [(len(right), int(right.sum()))], delta),
            figures=(
                Figure("persons times runs", trials),
                Figure("AUC", auc, low_auc, high_auc, "95%, bootstrap over runs"),
                Figure("AUC, at most by the claim", highest_auc(claimed, delta)),
                Figure("TPR at FPR 1e-2", tpr, low_tpr, high_tpr, "95%, bootstrap over runs"),
                Figure("TPR at FPR 1e-2, at most", float(highest_tpr(_LOW_FPR, claimed, delta))),
            ),
        ),
        Scores(ratios.ravel(), truth.ravel()),
    )


def highest_auc(epsilon: float, delta: float) -> float:
    """Return the area under `highest_tpr`."""
    grid = np.concatenate([[0.0], np.geomspace(1e-12, 1.0, 20_001)])
    return float(np.trapezoid(highest_tpr(grid, epsilon, delta), grid))


def _losses(pipeline: Pipeline, draws: Draws, members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Train one model a row of `members` [R, P] and return everybody's loss under each, [R, P]."""
    key, rounds = draws.round_key(_SITE), pipeline.contract.rounds
    losses = np.empty(members.shape)
    for run, taking_part in enumerate(members):
        persons = chosen(pipeline.crowd, np.flatnonzero(taking_part))
        state = OptimizerState.start(pipeline.initial)
        for step in range(rounds):
            number = run * rounds + step
            delta = pipeline.update(state.global_parameters(), persons, key, number)
            state = pipeline.advance(state, delta)
        losses[run] = _person_losses(pipeline, state.released(), pipeline.crowd)
    return losses


def _person_losses(
    pipeline: Pipeline, parameters: NDArray[np.float32], persons: Persons
) -> NDArray[np.float64]:
    """Each person's loss under a model, float64 [P]."""
    contract = pipeline.contract
    assign(pipeline.model, torch.from_numpy(parameters))
    everyone = np.arange(len(persons), dtype=np.intp)
    batch = persons.batch(everyone, contract.images_per_person, np.random.default_rng(0))
    with torch.no_grad():
        public = pipeline.model(persons.prepare(pipeline.public))
        own = pipeline.model(batch.inputs.flatten(0, 1)).view(*batch.present.shape, -1)
        found = create_loss(contract.loss)(own, batch.present, batch.codes, public)
    result: NDArray[np.float64] = found.double().numpy()
    return result


def _ratios(
    shadow: NDArray[np.float64], members: NDArray[np.bool_], losses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """log p(loss | in) - log p(loss | out), Gaussian for each person with one variance for both."""

    def mean(kind: NDArray[np.bool_]) -> NDArray[np.float64]:
        counts = np.maximum(kind.sum(axis=0), 1)
        average: NDArray[np.float64] = np.where(kind, shadow, 0.0).sum(axis=0) / counts
        return average

    inside, outside = mean(members), mean(~members)
    rest = shadow - np.where(members, inside, outside)
    variance = np.maximum(np.square(rest).mean(axis=0), 1e-24)
    ratios: NDArray[np.float64] = ((losses - outside) ** 2 - (losses - inside) ** 2) / (
        2.0 * variance
    )
    return ratios


def _rates(scores: NDArray[np.float64], members: NDArray[np.bool_]) -> tuple[float, float]:
    """AUC and TPR at `_LOW_FPR`."""
    positive, negative = scores[members], np.sort(scores[~members])
    below = np.searchsorted(negative, positive, side="left")
    equal = np.searchsorted(negative, positive, side="right") - below
    auc = float((below + equal / 2).mean() / len(negative))
    allowed = int(_LOW_FPR * len(negative))
    threshold = negative[len(negative) - 1 - allowed]
    return auc, float((positive > threshold).mean())


def _bootstrap(
    scores: NDArray[np.float64], members: NDArray[np.bool_], rng: np.random.Generator
) -> list[list[float]]:
    """The 95% percentile interval of both rates, whole runs resampled."""
    runs = len(scores)
    rates = []
    for _ in range(_REPLICATES):
        drawn = rng.integers(0, runs, runs)
        rates.append(_rates(scores[drawn], members[drawn]))
    ends: list[list[float]] = np.quantile(rates, [READING / 2, 1 - READING / 2], axis=0).tolist()
    return ends
