"""What a simulation is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

from common.accounting import MOST_EPSILON
from common.config import LATER
from common.constants import check_delta
from common.contract import Trust
from common.errors import InputError
from common.masking import Terms
from common.recipe_options import RecipeOptions, effective
from common.sampling import check_sample_rate
from common.terms import check_masked
from common.vocabulary import BACKBONES, SHIFTS, BankShift, Shift, TrainSet

_MOST_SYNTHETIC = 10_000  # private persons; as many again are rendered, all in memory
LARGEST_SEED = 2**63 - 1  # what torch takes


@dataclass(frozen=True)
class Experiment:
    """The options of `veilface simulate`; enough to repeat it anywhere.

    Attributes:
        data: a folder of one folder a person, or None for the embedded synthetic people.
        shift: cameras, dealt to the sites, the test persons and the judges in turn.
        public: where the public bank comes from; None: other persons of `data`.
        test: where test persons and judges come from; None: other persons of `data`.
        bank_shift: what the public bank is seen through.
        yunet: YuNet's ONNX file, which finds the faces; None: dlib's detector does.
        allow_duplicates: persons of `data` may hold the same files and be different people.
        epsilon: budget of each site; None trains without privacy.
        seeded_noise: noise from `seed`, for tests of the machinery; never private.
        minimum_sites: how few answers a round may have; None: all with secure aggregation, else 1.
        colluders: with secure aggregation, how many sites may collude; None: nobody does.
        recipe: what is changed of the recommended constants; None: nothing.
    """

    data: Path | None
    shift: tuple[Shift, ...]
    sites: int
    persons: int | None
    rounds: int
    local_steps: int
    epsilon: float | None
    delta: float
    sample_rate: float
    trust: Trust
    train_set: TrainSet
    loss: str
    backbone: str
    weights: Path | None
    aggregator: str
    engine: Literal["inprocess", "ray"]
    seed: int
    seeded_noise: bool
    aligned: bool
    cache: Path | None
    minimum_sites: int | None = None
    colluders: int | None = None
    public: Path | None = None
    test: Path | None = None
    bank_shift: BankShift = "same"
    yunet: Path | None = None
    allow_duplicates: bool = False
    recipe: RecipeOptions | None = field(default=None, metadata=LATER)

    @property
    def least_sites(self) -> int:
        """Return how few answers a round may have: with secure aggregation all, unless stated."""
        if self.minimum_sites is not None:
            return self.minimum_sites
        return self.sites if self.trust == "secagg" else 1

    def check(self) -> None:
        """Raise InputError on options that cannot work, before any file is made or read."""
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise InputError(f"--epsilon must be positive and finite, not {self.epsilon}")
        if self.epsilon is not None and self.epsilon > MOST_EPSILON:
            raise InputError(f"--epsilon {self.epsilon:g} promises nothing", hint="10 is much")
        check_sample_rate(self.sample_rate)
        check_delta(self.delta, self.sample_rate, name="--delta")
        if self.backbone not in BACKBONES:
            raise InputError(
                f"unknown backbone {self.backbone!r}", hint=f"one of {', '.join(BACKBONES)}"
            )
        if self.persons is not None and self.sites > self.persons:
            raise InputError(
                f"{self.sites} sites but only {self.persons} private persons", hint="lower --sites"
            )
        if self.data is None and (self.persons or 0) > _MOST_SYNTHETIC:
            raise InputError(f"--persons: at most {_MOST_SYNTHETIC:,} synthetic persons")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InputError(f"--seed must lie in 0 to {LARGEST_SEED}, not {self.seed}")
        effective(self.train_set, self.recipe)
        self._check_trust()
        self._check_cameras()
        for path in (self.data, self.weights, self.public, self.test, self.yunet):
            if path is not None and not path.exists():
                raise InputError(f"{path} does not exist")
        places = {"public": self.public, "test": self.test, "data": self.data}
        for (name, folder), (other, same) in combinations(places.items(), 2):
            if folder is not None and same is not None and folder.samefile(same):
                raise InputError(
                    f"--{name} is the folder of --{other}",
                    hint=f"leave --{name} out, or give a folder of other persons",
                )

    def _check_cameras(self) -> None:
        for shift in self.shift:
            if shift not in SHIFTS:
                raise InputError(
                    f"unknown camera {shift!r} in --shift", hint=f"one of {', '.join(SHIFTS)}"
                )
        if not self.shift or len(set(self.shift)) < len(self.shift):
            raise InputError("--shift names each camera once, and at least one")
        if len(self.shift) > self.sites:
            raise InputError(
                f"{len(self.shift)} cameras but only {self.sites} sites",
                hint="every camera of --shift is some site's: name fewer, or ask for more --sites",
            )

    def _check_trust(self) -> None:
        if not 1 <= self.least_sites <= self.sites:
            raise InputError(f"--minimum-sites must lie in 1 to {self.sites}")
        if self.trust == "secagg":
            check_masked(self.aggregator, self.local_steps, self.sample_rate)
            Terms(self.least_sites, self.colluders or 0).check(self.sites)
        elif self.colluders is not None:
            raise InputError("--colluders is for --trust secagg")
