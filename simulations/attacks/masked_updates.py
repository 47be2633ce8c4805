"""What a server reads from one site's masked update under secure aggregation: it must be nothing.

One site of three masks real clipped sums, with or without a canary by a fair coin, round after
round. The server takes the masked vector for the site's own noised share, subtracts what the crowd
adds, and projects on the canary's gradient: right guesses beyond chance are an alarm, whatever the
noise, since a share alone has less noise than the sum. Masked words, and their differences between
rounds, must also be uniform: that finds a mask that is missing, weak, or used twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor

from client.gradients import choose_engine
from common.losses import PublicSide, create_loss
from common.masking import (
    FixedPoint,
    MaskingSite,
    Participants,
    RoundRequest,
    Terms,
    adversaries,
    advertise,
    calibrate,
)
from common.parameters import assign
from common.persons import Persons
from common.randomness import KeyStream, derive_key, experiment_key, fresh_key
from common.roster import Roster, SiteKeys
from common.storage import make_private_directory
from simulations.attacks.bounds import ALARM, accuracy_mu
from simulations.attacks.pipeline import Draws, Pipeline, together
from simulations.attacks.record import Figure, Finding, Scores, rate_figure

NAME = "masks"
_SITES: Final = ("site-1", "site-2", "site-3")
_TERMS: Final = Terms(minimum=3, colluders=1)
_RUN: Final = "audit"
_TESTS: Final = 3


def masks_audit(
    pipeline: Pipeline, draws: Draws, rounds: int, directory: Path
) -> tuple[Finding, Scores]:
    """Return what `rounds` masked updates of one site tell; its promises lie in `directory`."""
    rng, privacy = draws.coins(NAME), pipeline.contract.privacy
    canary = pipeline.canaries(1, rng)
    coins = rng.integers(0, 2, rounds).astype(np.bool_)
    dimension = len(pipeline.initial)
    noise = calibrate(
        epsilon=pipeline.claimed,
        delta=privacy.delta,
        rounds=pipeline.contract.rounds,
        dimension=dimension,
        max_grad_norm=privacy.max_grad_norm,
        honest=_TERMS.honest,
    )
    fixed = FixedPoint(dimension, privacy.max_grad_norm, len(_SITES), noise.sigma)
    vectors = np.stack(list(_masked(pipeline, draws, canary, coins, fixed, directory)))
    crowd, own = (
        pipeline.contributions(pipeline.initial, persons).sum(dim=0).numpy()
        for persons in (pipeline.crowd, canary)
    )
    scores = np.array([(fixed.decode(row) - crowd) @ own / (own @ own) for row in vectors])
    correct = int(((scores > 0.5) == coins).sum())
    words, changes = (_uniform(rows) for rows in (vectors, np.diff(vectors, axis=0)))
    share = adversaries(
        noise, [len(_SITES)] * pipeline.contract.rounds, privacy.delta,
        minimum=_TERMS.minimum, colluders=_TERMS.colluders,
    )  # fmt: skip
    alpha = ALARM / _TESTS
    broken = {
        "a masked update tells who is there": accuracy_mu(correct, rounds, alpha) > 0.0,
        "masked words are not uniform": words < alpha,
        "masks repeat between rounds": changes < alpha,
    }
    finding = Finding(
        attack=NAME,
        adversary="the server, which sees each site's masked update",
        claimed=None,
        bounds=(),
        figures=(
            rate_figure("right guesses from masked updates", correct, rounds),
            Figure("p-value that masked words are uniform", words),
            Figure("p-value that their changes are uniform", changes),
            Figure("epsilon of the sum", share.model),
            Figure("epsilon of a share, were it seen", share.unmasked),
        ),
        broken=tuple(text for text, found in broken.items() if found),
    )
    return finding, Scores(scores, coins)


def _masked(
    pipeline: Pipeline,
    draws: Draws,
    canary: Persons,
    coins: NDArray[np.bool_],
    fixed: FixedPoint,
    directory: Path,
) -> Iterator[NDArray[np.uint32]]:
    """Yield the masked vector of one site for each coin, uint32 [d]."""
    sums = {
        False: _clipped_sum(pipeline, pipeline.crowd),
        True: _clipped_sum(pipeline, together(pipeline.crowd, canary)),
    }
    site, root = _site(make_private_directory(directory)), experiment_key(draws.seed)
    for number, coin in enumerate(coins.tolist(), start=1):
        secret = fresh_key()
        if draws.seeded_noise:
            secret = derive_key(root, "masked round", str(number))
        stream = KeyStream(derive_key(secret, "noise"), private=not draws.seeded_noise)
        noised = fixed.add_noise(fixed.encode(sums[coin].numpy()), stream)
        update = site.mask(_request(number, fixed.dimension), noised, secret)
        yield np.frombuffer(update.vector, dtype="<u4").astype(np.uint32)


def _clipped_sum(pipeline: Pipeline, persons: Persons) -> Tensor:
    """The engine's clipped sum at the initial parameters, float64 [d]."""
    contract, model = pipeline.contract, pipeline.model
    everyone = np.arange(len(persons), dtype=np.intp)
    batch = persons.batch(everyone, contract.images_per_person, np.random.default_rng(0))
    assign(model, torch.from_numpy(pipeline.initial))
    public = PublicSide(persons.prepare(pipeline.public), embedded=False)
    engine = choose_engine(model, contract.train_set)
    loss = create_loss(contract.loss)
    return engine(model, batch, loss, public, contract.privacy.max_grad_norm).value


def _site(directory: Path) -> MaskingSite:
    """Site 1 of a federation of three, all with fresh keys."""
    signing = {name: Ed25519PrivateKey.generate() for name in _SITES}
    secrets = {name: fresh_key() for name in _SITES}
    entries = []
    for name in _SITES:
        node = ec.generate_private_key(ec.SECP384R1()).public_key()
        lines = [
            key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
            for key in (node, signing[name].public_key())
        ]
        entries.append(SiteKeys(name, *lines))
    roster = Roster("audit", 1, "2026-01-01T00:00:00Z", tuple(entries))
    adverts = [advertise(roster, _RUN, name, secrets[name], signing[name]) for name in _SITES]
    participants = Participants.verified(roster, _RUN, adverts)
    name = _SITES[0]
    return MaskingSite(participants, name, secrets[name], signing[name], _TERMS, directory)


def _request(round_: int, dimension: int) -> RoundRequest:
    return RoundRequest(
        federation="audit",
        run_id=_RUN,
        round=round_,
        contract_id="0" * 64,
        model_id=f"{round_:064x}",
        dimension=dimension,
        minimum=_TERMS.minimum,
        colluders=_TERMS.colluders,
        sites=_SITES,
    )


def _uniform(rows: NDArray[np.uint32]) -> float:
    """The p-value of a chi-square test that the highest bytes of all words are uniform."""
    counts = np.bincount((rows >> np.uint32(24)).ravel(), minlength=256)
    return float(chisquare(counts).pvalue)
