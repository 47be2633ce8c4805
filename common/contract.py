"""What server and sites agree on before the first round; every constant in it is public."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from common.config import LATER
from common.constants import (
    LossConfig,
    MomentsConfig,
    check_clip,
    check_delta,
    check_denominator,
)
from common.errors import InputError
from common.ledger_format import Mechanism
from common.masking.fixed_point import FixedPoint
from common.masking.noise import ShareNoise
from common.masking.terms import MOST_SITES, Terms
from common.recipe_options import RecipeOptions, effective
from common.sampling import check_sample_rate
from common.vocabulary import LOSS_NAMES, TrainSet

Trust = Literal["local", "secagg"]

# What a hostile server may ask for at most: more would only tie up a site's memory or time.
_LIMITS = {
    "images_per_person": 1000,
    "public_negatives": 100_000,
    "rounds": 1_000_000,
    "local_steps": 100_000,
}


@dataclass(frozen=True)
class Privacy:
    """The mechanism's public constants.

    Attributes:
        epsilon, delta: what a site spends over the whole run, for adding or removing one person;
            epsilon is None only in a run without privacy.
        noise_multiplier: noise standard deviation over `max_grad_norm`, each step, each site; with
            secure aggregation that of the shares of the fewest honest survivors together.
        max_grad_norm: the L2 norm C to which a person's gradient is clipped.
        sample_rate: 1 for all persons in every step, else the Poisson rate.
        public_denominator: what a site's noised sum is divided by; a public constant.
    """

    epsilon: float | None
    delta: float
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    public_denominator: float

    def __post_init__(self) -> None:
        check_clip(self.max_grad_norm)
        check_sample_rate(self.sample_rate)
        check_delta(self.delta, self.sample_rate)
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise InputError(f"epsilon must be positive and finite, not {self.epsilon}")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise InputError(f"noise_multiplier must not be negative: {self.noise_multiplier}")
        if (self.epsilon is None) != (self.noise_multiplier == 0.0):
            raise InputError("epsilon is stated exactly when there is noise")
        check_denominator(self.public_denominator)


@dataclass(frozen=True)
class Masking:
    """The constants of secure aggregation (docs/secagg.md).

    Attributes:
        minimum: the fewest sites whose updates make a sum.
        colluders: how many sites may help a hostile server without weakening epsilon.
        dimension: how many parameters an update has.
        sigma: scale of each site's discrete noise, in steps of the encoding; 0 without privacy.
    """

    minimum: int
    colluders: int
    dimension: int
    sigma: float

    @property
    def terms(self) -> Terms:
        return Terms(self.minimum, self.colluders)

    @property
    def most_sites(self) -> int:
        """Return how many sites a round may have at most: above, too many could be missing."""
        return min(2 * self.minimum - self.colluders - 1, MOST_SITES)

    def encoding(self, max_grad_norm: float) -> FixedPoint:
        """Return how clipped sums become integers."""
        return FixedPoint(self.dimension, max_grad_norm, self.most_sites, self.sigma)

    def noise(self, max_grad_norm: float) -> ShareNoise:
        """Return the noise of one share."""
        sensitivity = self.encoding(max_grad_norm).l2_sensitivity
        return ShareNoise(self.sigma, sensitivity, self.dimension)

    def check(self, privacy: Privacy) -> None:
        """Raise InputError unless the shares of the honest have the noise that is stated."""
        self.encoding(privacy.max_grad_norm)
        stated = privacy.noise_multiplier
        if self.sigma == 0.0 or stated == 0.0:
            enough = self.sigma == stated
        else:
            noise = self.noise(privacy.max_grad_norm)
            enough = noise.noise_multiplier(self.terms.honest) >= stated
        if not enough:
            raise InputError(
                f"{self.terms.honest} shares of noise {self.sigma:g} are less than the stated "
                f"noise_multiplier {stated:g}"
            )


@dataclass(frozen=True)
class Contract:
    """One training run: model, loss, rounds and privacy.

    Attributes:
        run_id: names the run; a site releases at most one update per run and round.
        backbone, train_set: which model, and which part of it is trained.
        frozen_id: digest of the frozen part, so that all sites compute the same features.
        images_per_person: K, how many of a person's images enter one step.
        public_negatives: how many faces of the public bank enter one step.
        rounds, local_steps: federated rounds, and private steps at the site in each.
        local_learning_rate, local_momentum: of the site's SGD.
        masking: of secure aggregation, one private step a round; None where sites trust no one.
        moments: which statistics a person tells, of the train set `statistics` alone: one round.
        mirror: whether a face is seen as the mean of itself and its mirror image.
        recipe: what the run changes of recommended constants, those of the server alone with them.
    """

    run_id: str
    backbone: str
    train_set: TrainSet
    frozen_id: str
    images_per_person: int
    public_negatives: int
    rounds: int
    local_steps: int
    local_learning_rate: float
    local_momentum: float
    privacy: Privacy
    loss: LossConfig = field(default_factory=LossConfig)
    masking: Masking | None = None
    moments: MomentsConfig | None = field(default=None, metadata=LATER)
    mirror: bool = field(default=False, metadata=LATER)
    recipe: RecipeOptions | None = field(default=None, metadata=LATER)

    @property
    def trust(self) -> Trust:
        return "local" if self.masking is None else "secagg"

    @property
    def mechanism(self) -> Mechanism:
        return "gaussian" if self.masking is None else "discrete-shared"

    def __post_init__(self) -> None:
        for name, most in _LIMITS.items():
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} must lie in 1 to {most}, not {getattr(self, name)}")
        for name, limit in (("temperature", 1e3), ("margin", 2.0)):
            if not 0.0 <= getattr(self.loss, name) <= limit:
                raise InputError(f"{name} must lie in 0 to {limit:g}: {getattr(self.loss, name)}")
        if self.loss.name not in LOSS_NAMES:
            raise InputError(
                f"unknown loss {self.loss.name!r}", hint=f"one of {', '.join(LOSS_NAMES)}"
            )
        if not (math.isfinite(self.local_learning_rate) and self.local_learning_rate > 0):
            raise InputError(f"local_learning_rate must be positive: {self.local_learning_rate}")
        if not 0.0 <= self.local_momentum < 1.0:
            raise InputError(f"local_momentum must lie in [0, 1): {self.local_momentum}")
        if (self.moments is not None) != (self.train_set == "statistics"):
            raise InputError("constants of moments belong to the train set statistics")
        if self.moments is not None and (self.rounds, self.local_steps) != (1, 1):
            raise InputError("statistics are released once", hint="rounds 1 and local_steps 1")
        if self.recipe is not None:
            self._check_recipe()
        if self.masking is not None:
            if self.local_steps != 1 or self.privacy.sample_rate != 1.0:
                raise InputError(
                    "secure aggregation sums one step of all persons a round",
                    hint="local_steps 1 and sample_rate 1",
                )
            self.masking.check(self.privacy)

    def _check_recipe(self) -> None:
        recipe = effective(self.train_set, self.recipe)
        stated = (recipe.max_grad_norm, recipe.images_per_person)
        if stated != (self.privacy.max_grad_norm, self.images_per_person):
            raise InputError("the contract's clip or images a person are not those of its recipe")
