"""What a simulation is asked to do, and the faces it works on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.accounting import MOST_EPSILON
from common.backbones.base import Backbone
from common.backbones.registry import create
from common.chip_cache import ChipCache
from common.contract import Trust
from common.dataset import Skipped, SubjectFolder, images_of, list_subjects, load_chips
from common.detection import DlibDetector
from common.embedding import Progress, silent
from common.errors import InputError
from common.masking import Terms
from common.randomness import experiment_generator
from common.sampling import check_sample_rate
from common.terms import check_masked
from common.vocabulary import BACKBONES, TrainSet
from simulations.people import generate
from simulations.shifts import Shift, apply_shift
from simulations.splitting import PersonSplit, split_persons

SYNTHETIC_PERSONS = 600
SYNTHETIC_IMAGES = 5
TEST_IMAGES = 4
_MOST_SYNTHETIC = 10_000  # private persons; as many again are rendered, all in memory
LARGEST_SEED = 2**63 - 1  # what torch takes


@dataclass(frozen=True)
class Experiment:
    """The options of `veilface simulate`; enough to repeat it anywhere.

    Attributes:
        data: a folder of one folder a person, or None for the embedded synthetic people.
        epsilon: budget of each site; None trains without privacy.
        seeded_noise: noise from `seed`, for tests of the machinery; never private.
        minimum_sites: how few answers a round may have; None: all with secure aggregation, else 1.
        colluders: with secure aggregation, how many sites may collude; None: nobody does.
    """

    data: Path | None
    shift: Shift
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
        if not 0.0 < self.delta < 1.0:
            raise InputError(f"--delta must lie strictly between 0 and 1, not {self.delta}")
        check_sample_rate(self.sample_rate)
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
        self._check_trust()
        for path in (self.data, self.weights):
            if path is not None and not path.exists():
                raise InputError(f"{path} does not exist")

    def _check_trust(self) -> None:
        if not 1 <= self.least_sites <= self.sites:
            raise InputError(f"--minimum-sites must lie in 1 to {self.sites}")
        if self.trust == "secagg":
            check_masked(self.aggregator, self.local_steps, self.sample_rate)
            Terms(self.least_sites, self.colluders or 0).check(self.sites)
        elif self.colluders is not None:
            raise InputError("--colluders is for --trust secagg")


@dataclass(frozen=True)
class Faces:
    """Chips of some subjects: uint8 [N, S, S, 3], rows sorted by subject index [N]."""

    chips: Tensor
    subjects: tuple[str, ...]
    index: NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """All that both sides of a simulated federation are built from.

    `sites` is one group of private faces a site; `bank` and `test` are public to the experiment.
    `declared` is how many private persons were dealt to the sites before any of their images was
    looked at: the public number, where how many turned out usable is not. `skipped` are public
    images only, for the same reason.
    """

    backbone: Backbone
    split: PersonSplit
    declared: int
    sites: tuple[Faces, ...]
    bank: Faces
    test: Faces
    skipped: tuple[Skipped, ...]


def gather(experiment: Experiment, progress: Progress = silent) -> Material:
    """Load or render the faces of an experiment, split by person."""
    backbone = create(experiment.backbone, weights=experiment.weights, seed=experiment.seed)
    if experiment.data is None:
        return _synthetic(experiment, backbone)
    return _from_folder(experiment, experiment.data, backbone, progress)


def _synthetic(experiment: Experiment, backbone: Backbone) -> Material:
    wanted = SYNTHETIC_PERSONS if experiment.persons is None else 2 * experiment.persons
    people = generate(wanted, SYNTHETIC_IMAGES, experiment.seed, backbone.chip)
    names = [f"synthetic-{i:05d}" for i in range(wanted)]
    parts = split_persons(
        dict.fromkeys(names, SYNTHETIC_IMAGES),
        sites=experiment.sites,
        persons=experiment.persons,
        seed=experiment.seed,
    )
    digests = np.stack([np.frombuffer(bytes.fromhex(d), np.uint8) for d in people.digests])
    chips = apply_shift(people.chips, digests, experiment.shift, spec=backbone.chip)
    rows: dict[str, list[int]] = {name: [] for name in names}
    for row, subject in enumerate(people.subjects.tolist()):
        rows[names[subject]].append(row)
    return _assemble(backbone, parts, len(parts.private), chips, rows, ())


def _from_folder(
    experiment: Experiment, root: Path, backbone: Backbone, progress: Progress
) -> Material:
    by_name = {folder.name: folder for folder in list_subjects(root, at_least=2)}
    counts = {name: len(folder.images) for name, folder in by_name.items() if folder.images}
    parts = split_persons(
        counts, sites=experiment.sites, persons=experiment.persons, seed=experiment.seed
    )
    used = [by_name[name] for name in (*parts.private, *parts.bank)]
    used += [_some(by_name[name], experiment.seed) for name in parts.test]
    with ChipCache.open(experiment.cache) as cache:
        loaded = load_chips(
            images_of(used),
            spec=backbone.chip,
            detector=DlibDetector(),
            cache=cache,
            aligned=experiment.aligned,
            progress=progress,
        )
    chips = apply_shift(loaded.chips, loaded.digests, experiment.shift, spec=backbone.chip)
    owner = {path: folder.name for folder in used for path in folder.images}
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(loaded.paths):
        rows.setdefault(owner[path], []).append(row)
    kept = _usable(parts, rows)
    public = {*parts.bank, *parts.test}
    ignored = [e for name, folder in by_name.items() if name in public for e in folder.skipped]
    unused = [entry for entry in loaded.skipped if owner[entry.path] in public]
    return _assemble(backbone, kept, len(parts.private), chips, rows, (*ignored, *unused))


def _some(folder: SubjectFolder, seed: int) -> SubjectFolder:
    """At most four images of a test person: else a few much photographed persons decide alone."""
    if len(folder.images) <= TEST_IMAGES:
        return folder
    rng = experiment_generator(seed, "test images", folder.name)
    chosen = sorted(rng.permutation(len(folder.images))[:TEST_IMAGES].tolist())
    return SubjectFolder(folder.name, tuple(folder.images[i] for i in chosen), ())


def _usable(parts: PersonSplit, rows: Mapping[str, Sequence[int]]) -> PersonSplit:
    """Drop persons whose images could not be used; too few left is an error."""

    def with_images(names: Sequence[str], least: int) -> tuple[str, ...]:
        return tuple(name for name in names if len(rows.get(name, ())) >= least)

    sites = tuple(with_images(site, 1) for site in parts.sites)
    kept = PersonSplit(sites, with_images(parts.bank, 1), with_images(parts.test, 2))
    if len(kept.bank) < 2 or len(kept.test) < 2 or not any(kept.sites):
        raise InputError(
            "too few persons have an image with a face",
            hint="at least 2 for the public bank, 2 with two images to test, 1 private",
        )
    return kept


def _assemble(
    backbone: Backbone,
    parts: PersonSplit,
    declared: int,
    chips: NDArray[np.uint8],
    rows: Mapping[str, Sequence[int]],
    skipped: tuple[Skipped, ...],
) -> Material:
    def faces(names: Sequence[str]) -> Faces:
        order = [row for name in names for row in rows[name]]
        index = [number for number, name in enumerate(names) for _ in rows[name]]
        return Faces(
            torch.from_numpy(chips[order]), tuple(names), np.asarray(index, dtype=np.int64)
        )

    sites = tuple(faces(site) for site in parts.sites)
    bank, test = faces(parts.bank), faces(parts.test)
    return Material(backbone, parts, declared, sites, bank, test, skipped)
