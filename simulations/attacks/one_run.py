"""The audit in one training run: many canary persons, each in the run by a fair coin.

The whole site is audited: ledger, budget, rounds. From all updates the auditor estimates each
canary's part, guesses on those that it is surest of, and abstains on the rest. The count of right
guesses refutes an epsilon by two theorems (`bounds.one_run_epsilon`, `bounds.one_run_mu`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.preparation import PublicPart
from common.accounting import cross_checked_epsilon
from common.errors import InputError
from common.ledger import Ledger
from common.persons import Persons
from common.spending import event_of
from server.optimizer import OptimizerState
from simulations.attacks.pipeline import Draws, Pipeline, chosen, together
from simulations.attacks.record import Figure, Finding, Scores, rate_figure, refuted

NAME = "one-run"
_SITE = 2
# Shares of the canaries to guess on: the surest quarter is strongest
# against mu from 1 to 2, all of them against a build that hides nothing.
_GUESSED: Final = (0.25, 1.0)


def one_run_audit(
    pipeline: Pipeline, draws: Draws, canaries: int, directory: Path
) -> tuple[Finding, Scores]:
    """Return the bounds from one run of a site with `canaries` canary persons."""
    rng = draws.coins(NAME)
    persons = pipeline.canaries(canaries, rng)
    coins = rng.integers(0, 2, canaries).astype(np.bool_)
    scores, claimed = _run(pipeline, draws, persons, coins, directory)
    centred = scores - scores.mean()
    right = ((centred > 0) == coins)[np.argsort(-np.abs(centred))]
    counts = [max(1, round(share * canaries)) for share in _GUESSED]
    finding = Finding(
        attack=NAME,
        adversary="the server, which sees every noised update, and knows everybody else",
        claimed=claimed,
        bounds=refuted(
            canaries,
            [(guesses, int(right[:guesses].sum())) for guesses in counts],
            pipeline.contract.privacy.delta,
        ),
        figures=(
            Figure("canaries", canaries),
            *(rate_figure(f"right of {n} guesses", int(right[:n].sum()), n) for n in counts),
        ),
    )
    return finding, Scores(scores, coins)


def _run(
    pipeline: Pipeline,
    draws: Draws,
    canaries: Persons,
    coins: NDArray[np.bool_],
    directory: Path,
) -> tuple[NDArray[np.float64], float]:
    """Return each canary's estimated part, float64 [m], and the epsilon that the ledger states."""
    key, contract = draws.round_key(_SITE), pipeline.contract
    site = pipeline.site(directory, key)
    ready = pipeline.prepared(together(pipeline.crowd, chosen(canaries, np.flatnonzero(coins))))
    public_id = PublicPart(contract, {}, pipeline.public).id
    state = OptimizerState.start(pipeline.initial)
    scores = np.zeros(len(canaries))
    for round_ in range(1, contract.rounds + 1):
        parameters = state.global_parameters()
        own = pipeline.contributions(parameters, canaries)  # [m, d]
        crowd = torch.linalg.qr(pipeline.contributions(parameters, pipeline.crowd).T).Q  # [d, P]
        start = torch.from_numpy(parameters.copy())
        sent = site.train(lambda: ready, contract, round_, start, public_id)
        seen = pipeline.noised_sum(sent.delta) - own.sum(dim=0) / 2
        # Whatever a broken build makes of the crowd lies in the span of its gradients.
        own, seen = own - own @ crowd @ crowd.T, seen - crowd @ (crowd.T @ seen)
        scores += _estimated(own, seen).numpy()
        state = pipeline.advance(state, sent.delta)
    with Ledger.open(directory) as ledger:
        events = [
            event_of(r.noise_multiplier, r.sample_rate, r.steps, r.mechanism)
            for r in ledger.reservations
        ]
    return scores, cross_checked_epsilon(events, contract.privacy.delta).epsilon


def _estimated(own: Tensor, seen: Tensor) -> Tensor:
    """The best linear estimate of each coin less a half, [m], from gradients [m, d] and update [d].

    Coins have variance 1/4, so the noise's variance times 4 over the signal's power is added to the
    diagonal. Both are measured, not taken from the claim: the noise is what is left of the update
    beside all canaries, and the signal is larger than one where gradients are not clipped.
    """
    gram, projected = own @ own.T, own @ seen
    spare = own.shape[1] - own.shape[0]
    if spare < 1:
        raise InputError(f"{len(own)} canaries for {own.shape[1]} parameters", hint="take fewer")
    left = seen - torch.linalg.solve(gram, projected) @ own
    noise = float(left @ left) / spare
    signal = (float(seen @ seen) - noise * own.shape[1]) / (float(gram.trace()) / 4.0)
    ridge = 4.0 * noise / max(1.0, signal)
    found: Tensor = torch.linalg.solve(
        gram + ridge * torch.eye(len(own), dtype=own.dtype), projected
    )
    return found
