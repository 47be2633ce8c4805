"""Recorded settings of private training: the schema that docs/lint.md documents, and its reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.composition import Event
from common.config import from_json, from_toml, read_text
from common.errors import InputError
from common.spending import event_of

Sampler = Literal["full-batch", "poisson", "shuffle", "fixed-size"]
Unit = Literal["person", "image"]


@dataclass(frozen=True)
class Releases:
    """`steps` releases alike: noise over sensitivity, and the share of units in each."""

    noise_multiplier: float
    sample_rate: float
    steps: int

    def event(self) -> Event:
        """Return them as the accountants take them; InputError on what is no release."""
        return event_of(self.noise_multiplier, self.sample_rate, self.steps)


@dataclass(frozen=True)
class Metric:
    """A number that leaves a site: whether it comes from private data, and with noise."""

    name: str
    private_data: bool
    noised: bool


@dataclass(frozen=True)
class Settings:
    """How one site trains and what is claimed for it. Every key is required but the last two.

    Attributes:
        privacy_unit, adjacency: what the claimed epsilon is about.
        clip_unit, images_per_person: whose gradient is clipped, and how many images a person has
            at most in a step.
        max_grad_norm, sensitivity: the clip C, and the L2 sensitivity that noise is scaled to.
        noise_source: who draws the noise.
        non_finite: what becomes of a gradient with a NaN or an infinity.
        sampler, accounted_as: how a step's batch is drawn, and what the accountant assumes.
        normaliser, weighting: what a sum is divided by, and how the server weighs sites.
        accountant, accountant_state: its name, and whether it lives longer than a round.
        rounds: how often the site answers.
        loss_sees: what a unit's loss looks at besides its own images.
        head: whether a trainable layer has a row for each private identity.
        norm_layers: of the trained part.
        delta, epsilon: the claim; no epsilon where none is claimed.
        persons: how many persons the site has, if that is public.
    """

    privacy_unit: Unit
    adjacency: Literal["add-remove-one", "replace-one"]
    clip_unit: Unit
    images_per_person: int
    max_grad_norm: float
    sensitivity: float
    noise_source: Literal["cryptographic", "framework", "seeded"]
    non_finite: Literal["zeroed", "kept"]
    sampler: Sampler
    accounted_as: Sampler
    normaliser: Literal["public-constant", "data-size"]
    weighting: Literal["public", "num-examples"]
    accountant: str
    accountant_state: Literal["persistent", "per-round"]
    rounds: int
    loss_sees: Literal["own", "public", "batch"]
    head: Literal["none", "public", "private-identities"]
    norm_layers: Literal["none", "group", "frozen-batch", "batch"]
    delta: float
    releases: tuple[Releases, ...]
    metrics: tuple[Metric, ...]
    epsilon: float | None = None
    persons: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_grad_norm", "sensitivity", "images_per_person", "rounds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}")
        for release in self.releases:
            release.event()


def read_settings(path: Path) -> Settings:
    """Return the settings that a TOML or JSON file records; any surprise is an InputError."""
    if path.suffix != ".json":
        return from_toml(Settings, path)
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return from_json(Settings, text, where=path.name)
