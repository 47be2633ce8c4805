"""What server and sites agree on before the first round; every constant in it is public."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from common.backbones.base import TrainSet
from common.errors import InputError
from common.losses import LOSSES, LossConfig
from common.mechanism import check_clip, check_denominator
from common.sampling import check_sample_rate

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
        noise_multiplier: noise standard deviation over `max_grad_norm`, each step, each site.
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
        if not 0.0 < self.delta < 1.0:
            raise InputError(f"delta must lie strictly between 0 and 1, not {self.delta}")
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise InputError(f"epsilon must be positive and finite, not {self.epsilon}")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise InputError(f"noise_multiplier must not be negative: {self.noise_multiplier}")
        if (self.epsilon is None) != (self.noise_multiplier == 0.0):
            raise InputError("epsilon is stated exactly when there is noise")
        check_denominator(self.public_denominator)


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

    def __post_init__(self) -> None:
        for name, most in _LIMITS.items():
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} must lie in 1 to {most}, not {getattr(self, name)}")
        for name, limit in (("temperature", 1e3), ("margin", 2.0)):
            if not 0.0 <= getattr(self.loss, name) <= limit:
                raise InputError(f"{name} must lie in 0 to {limit:g}: {getattr(self.loss, name)}")
        if self.loss.name not in LOSSES:
            raise InputError(f"unknown loss {self.loss.name!r}", hint=f"one of {', '.join(LOSSES)}")
        if not (math.isfinite(self.local_learning_rate) and self.local_learning_rate > 0):
            raise InputError(f"local_learning_rate must be positive: {self.local_learning_rate}")
        if not 0.0 <= self.local_momentum < 1.0:
            raise InputError(f"local_momentum must lie in [0, 1): {self.local_momentum}")
