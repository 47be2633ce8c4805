"""The terms of training: what whoever starts a run decides, and what a site is asked to agree to.

Every bundle of a federation carries them as `contract.json`, so that server and sites cannot
disagree about them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.config import LATER, from_json, from_toml, to_json
from common.contract import Masking, Privacy, Trust
from common.errors import InputError, Refused
from common.masking.noise import calibrate as calibrate_share
from common.masking.terms import Terms as MaskingTerms
from common.plan import calibrate
from common.recipe import Recipe
from common.recipe_options import RecipeOptions, effective
from common.vocabulary import AGGREGATOR_NAMES, BACKBONES, LOSS_NAMES, TrainSet


@dataclass(frozen=True)
class TrainingConfig:
    """What whoever starts a run decides; all of it is public.

    Attributes:
        epsilon: each site's budget for the run; None trains without privacy (simulations only).
        persons_per_site: the declared number of persons, the public denominator of a full batch.
        seed: of the public codebook.
        minimum_sites, timeout: how few answers a round may have, and seconds to wait for them.
        trust: `local`, where each site adds all the noise itself, or `secagg`.
        colluders: with `secagg`, how many sites may help a hostile server; else None.
        mirrored: whether a face is seen as the mean of itself and its mirror image, for twice the
            time; None: where the train set can (`statistics` and `adapter`).
        sites: how many are declared; None: `minimum_sites`.
        recipe: what is changed of the train set's recommended constants; None: nothing.
    """

    train_set: TrainSet
    loss: str
    rounds: int
    local_steps: int
    epsilon: float | None
    delta: float
    sample_rate: float
    persons_per_site: float
    aggregator: str
    seed: int
    minimum_sites: int
    timeout: float | None = None
    trust: Trust = "local"
    colluders: int | None = None
    mirrored: bool | None = None
    sites: int | None = None
    recipe: RecipeOptions | None = field(default=None, metadata=LATER)

    @property
    def effective(self) -> Recipe:
        """Return the recipe of the run: the recommended one, as far as nothing else is stated."""
        return effective(self.train_set, self.recipe)

    @property
    def mirror(self) -> bool:
        """Return whether a face is seen as the mean of itself and its mirror image."""
        return (
            self.train_set in ("statistics", "adapter") if self.mirrored is None else self.mirrored
        )

    def __post_init__(self) -> None:
        effective(self.train_set, self.recipe)
        if self.mirrored and self.train_set not in ("statistics", "adapter"):
            raise InputError(f"mirror averaging is not for {self.train_set}", hint="leave it out")
        if self.train_set == "statistics":
            if (self.rounds, self.local_steps) != (1, 1):
                raise InputError("statistics are released once", hint="rounds 1 and local_steps 1")
            if self.aggregator != "mean":
                raise InputError(
                    f"statistics are settled by the noise of their mean, which {self.aggregator} "
                    "does not have",
                    hint="use the mean, or train the adapter",
                )
        if self.trust == "local":
            if self.colluders is not None:
                raise InputError("colluders are for secure aggregation", hint='trust = "secagg"')
            return
        if self.colluders is None:
            raise InputError(
                "secure aggregation states how many sites may collude", hint="colluders = 1"
            )
        check_masked(self.aggregator, self.local_steps, self.sample_rate)
        MaskingTerms(self.minimum_sites, self.colluders)

    def masking(self, dimension: int) -> Masking | None:
        """Return the constants of secure aggregation of so many parameters; None for `local`."""
        if self.trust == "local" or self.colluders is None:
            return None
        sigma = 0.0
        if self.epsilon is not None:
            sigma = calibrate_share(
                epsilon=self.epsilon,
                delta=self.delta,
                rounds=self.rounds,
                dimension=dimension,
                max_grad_norm=self.effective.max_grad_norm,
                honest=MaskingTerms(self.minimum_sites, self.colluders).honest,
            ).sigma
        return Masking(self.minimum_sites, self.colluders, dimension, sigma)

    def privacy(self) -> Privacy:
        """Return the mechanism of these settings: the recipe's clip and the least noise."""
        return calibrate(
            epsilon=self.epsilon,
            delta=self.delta,
            rounds=self.rounds,
            local_steps=self.local_steps,
            max_grad_norm=self.effective.max_grad_norm,
            sample_rate=self.sample_rate,
            public_denominator=max(1.0, self.persons_per_site * self.sample_rate),
            concentrated=self.trust == "secagg",
        )


def check_masked(aggregator: str, local_steps: int, sample_rate: float) -> None:
    """Raise Refused for a robust rule on masked updates, InputError for what masking cannot do."""
    if aggregator != "mean":
        raise Refused(
            f"{aggregator} compares single updates, and with secure aggregation nobody sees one",
            hint="use the mean, or trust local, where robust rules work",
        )
    if local_steps != 1 or sample_rate != 1.0:
        raise InputError(
            "secure aggregation sums one step of all persons a round",
            hint="local steps 1 and sample rate 1",
        )


@dataclass(frozen=True)
class TermsConfig:
    """What `training.toml` holds: `backbone`, and the table `[training]`."""

    backbone: str
    training: TrainingConfig


@dataclass(frozen=True)
class Terms:
    """The settings, and what follows from them: clip, noise and denominator of every step."""

    backbone: str
    training: TrainingConfig
    images_per_person: int
    privacy: Privacy

    @classmethod
    def read(cls, document: bytes) -> Terms:
        """Return the terms of a `contract.json`."""
        return from_json(cls, document.decode(errors="replace"), where="contract.json")

    def to_bytes(self) -> bytes:
        """Return `contract.json`."""
        return f"{to_json(self)}\n".encode()


def read_terms(path: Path) -> Terms:
    """Return the terms of a `training.toml`; whatever is wrong in it is an InputError."""
    config = from_toml(TermsConfig, path)
    training = config.training
    for what, name, known in (
        ("backbone", config.backbone, BACKBONES),
        ("loss", training.loss, LOSS_NAMES),
        ("aggregator", training.aggregator, AGGREGATOR_NAMES),
    ):
        if name not in known:
            raise InputError(f"{path.name}: unknown {what} {name!r}", hint=", ".join(known))
    if training.epsilon is None:
        raise InputError(f"{path.name}: a deployment states its epsilon")
    images = training.effective.images_per_person
    return Terms(config.backbone, training, images, training.privacy())
