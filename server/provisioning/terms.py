"""The public constants of training that every bundle carries: what a site is asked to agree to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.backbones.registry import BACKBONES
from common.config import from_toml, to_json
from common.contract import Privacy
from common.errors import InputError
from common.losses import LOSSES
from common.plan import calibrate
from common.recipe import recommended
from server.setup import TrainingConfig


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


def read_terms(path: Path) -> bytes:
    """Return `contract.json` of a `training.toml`; whatever is wrong in it is an InputError."""
    config = from_toml(TermsConfig, path)
    training, recipe = config.training, recommended(config.training.train_set)
    if config.backbone not in BACKBONES:
        raise InputError(
            f"{path.name}: unknown backbone {config.backbone!r}", hint=", ".join(BACKBONES)
        )
    if training.loss not in LOSSES:
        raise InputError(f"{path.name}: unknown loss {training.loss!r}")
    if training.epsilon is None:
        raise InputError(f"{path.name}: a deployment states its epsilon")
    privacy = calibrate(
        epsilon=training.epsilon,
        delta=training.delta,
        rounds=training.rounds,
        local_steps=training.local_steps,
        max_grad_norm=recipe.max_grad_norm,
        sample_rate=training.sample_rate,
        public_denominator=max(1.0, training.persons_per_site * training.sample_rate),
    )
    terms = Terms(config.backbone, training, recipe.images_per_person, privacy)
    return f"{to_json(terms)}\n".encode()
