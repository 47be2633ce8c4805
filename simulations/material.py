"""The faces of an experiment, split by person and seen through its cameras.

material = gather(experiment)
material.sites[0].chips, material.test.index, material.bank_views
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from common.backbones.base import Backbone
from common.backbones.registry import create
from common.chip_cache import ChipCache
from common.dataset import Skipped, SubjectFolder, images_of, list_subjects, load_chips
from common.detection import detector_of
from common.embedding import Progress, silent
from common.errors import InputError
from common.face import ChipSpec
from common.randomness import experiment_generator
from common.same_person import refuse_copies
from simulations.experiment import Experiment
from simulations.faces import Bank, Faces, Pictures
from simulations.people import generate
from simulations.splitting import PersonSplit, choose_bank, divide_test, split_persons

SYNTHETIC_PERSONS = 600
SYNTHETIC_IMAGES = 5
MOST_IMAGES = 4
_KNOWN = "a person of --public or --test who is in another part, too"


@dataclass(frozen=True)
class Material:
    """All that both sides of a simulated federation are built from.

    `sites` is one group of private faces a site, `site_cameras` the index of each one's camera;
    `bank`, `test` and `judges` (often nobody) are public to the experiment. `declared` is how many
    private persons were dealt to the sites before any of their images was looked at: the public
    number, where how many turned out usable is not. `skipped` are public images only, for the same
    reason. `people` is a digest of who was dealt where, and of each person's files.
    """

    backbone: Backbone
    split: PersonSplit
    declared: int
    sites: tuple[Faces, ...]
    site_cameras: tuple[int, ...]
    bank: Faces
    test: Faces
    judges: Faces
    skipped: tuple[Skipped, ...]
    unseen_bank: Bank
    people: str

    @cached_property
    def bank_views(self) -> tuple[Faces, Faces]:
        """Two more looks at each image of the bank, row by row, through the bank's camera."""
        return self.unseen_bank.views()


def gather(experiment: Experiment, progress: Progress = silent) -> Material:
    """Load or render the faces of an experiment, split by person.

    Who is in --data is left out of --public and --test, and who is in --test out of --public: by
    the name of the folder, or by one and the same picture.
    """
    backbone = create(experiment.backbone, weights=experiment.weights, seed=experiment.seed)
    spec, shifts, several = backbone.chip, experiment.shift, len(experiment.shift)
    chosen = _choose(experiment)
    pictures, faults = _pictures(chosen, experiment, spec, progress)
    parts, known = _usable(chosen.split, pictures, experiment)

    def faces(persons: Sequence[str], cameras: Sequence[int]) -> Faces:
        return pictures.faces(persons, cameras, shifts, spec)

    def dealt(persons: Sequence[str]) -> Faces:
        return faces(persons, [number % several for number in range(len(persons))])

    cameras = tuple(site % several for site in range(experiment.sites))
    bank = Bank(
        pictures.only(parts.bank), parts.bank, experiment.bank_shift, shifts, spec, experiment.seed
    )
    return Material(
        backbone=backbone,
        split=parts,
        declared=len(chosen.split.private),
        sites=tuple(
            faces(site, [camera] * len(site))
            for site, camera in zip(parts.sites, cameras, strict=True)
        ),
        site_cameras=cameras,
        bank=bank.seen(),
        test=dealt(parts.test),
        judges=dealt(parts.judges),
        skipped=_skipped(chosen, faults, known),
        unseen_bank=bank,
        people=_digest_of(chosen.split, pictures),
    )


@dataclass(frozen=True)
class _Chosen:
    """Persons by part, and the folders of those who have one; the others are rendered."""

    split: PersonSplit
    folders: Mapping[str, SubjectFolder]
    rendered: int


def _choose(experiment: Experiment) -> _Chosen:
    """Choose the persons, by the names of their folders."""
    seed, rendered = experiment.seed, 0
    if experiment.data is None:
        persons = experiment.persons
        rendered = SYNTHETIC_PERSONS if persons is None else 2 * persons
        counts = dict.fromkeys(map(_synthetic, range(rendered)), SYNTHETIC_IMAGES)
        folders = {}
    else:
        listed = list_subjects(experiment.data, at_least=2)
        if not experiment.allow_duplicates:
            refuse_copies(listed)
        folders = {f.name: f for f in listed}
        counts = {name: len(folder.images) for name, folder in folders.items() if folder.images}
    split = split_persons(
        counts,
        sites=experiment.sites,
        persons=experiment.persons,
        seed=seed,
        bank=experiment.public is None,
        test=experiment.test is None,
    )
    used = {name: folders[name] for name in (*split.private, *split.bank) if name in folders}
    used |= {name: _some(folders[name], seed) for name in split.test if name in folders}
    if experiment.test is not None:
        others = _others(experiment.test, counts, least=2)
        split = replace(split, test=tuple(others))
        used |= {name: _some(folder, seed) for name, folder in others.items()}
    if experiment.public is not None:
        others = _others(experiment.public, {*counts, *split.test}, least=1)
        images = {name: len(folder.images) for name, folder in others.items()}
        split = replace(split, bank=choose_bank(images, seed))
        used |= {name: _some(others[name], seed) for name in split.bank}
    return _Chosen(split, used, rendered)


def _others(root: Path, known: Container[str], *, least: int) -> dict[str, SubjectFolder]:
    """Return the persons of a folder with so many images who are not known by name."""
    found = [folder for folder in list_subjects(root) if len(folder.images) >= least]
    others = {folder.name: folder for folder in found if folder.name not in known}
    if len(others) < 2:
        raise InputError(
            f"{root} holds {len(found)} persons with {least} or more images, and {len(others)} of "
            "them are not in another part of the experiment",
            hint="a person is one folder with one name; give faces of other persons",
        )
    return others


def _some(folder: SubjectFolder, seed: int) -> SubjectFolder:
    """At most four images of a public person: else a few much photographed ones decide alone."""
    if len(folder.images) <= MOST_IMAGES:
        return folder
    rng = experiment_generator(seed, "test images", folder.name)
    chosen = sorted(rng.permutation(len(folder.images))[:MOST_IMAGES].tolist())
    return replace(folder, images=tuple(folder.images[i] for i in chosen))


def _pictures(
    chosen: _Chosen, experiment: Experiment, spec: ChipSpec, progress: Progress
) -> tuple[Pictures, tuple[Skipped, ...]]:
    """Render or cut the chips of all who were chosen; what could not be used is listed."""
    rows: dict[str, list[int]] = {}
    chips, digests = np.empty((0, spec.size, spec.size, 3), np.uint8), np.empty((0, 32), np.uint8)
    if chosen.rendered:
        people = generate(chosen.rendered, SYNTHETIC_IMAGES, experiment.seed, spec)
        chips = people.chips
        digests = np.stack([np.frombuffer(bytes.fromhex(d), np.uint8) for d in people.digests])
        for row, subject in enumerate(people.subjects.tolist()):
            rows.setdefault(_synthetic(subject), []).append(row)
    if not chosen.folders:
        return Pictures(chips, digests, rows), ()
    with ChipCache.open(experiment.cache) as cache:
        loaded = load_chips(
            images_of(tuple(chosen.folders.values())),
            spec=spec,
            detector=detector_of(experiment.yunet),
            cache=cache,
            aligned=experiment.aligned,
            progress=progress,
        )
    owner = {path: name for name, folder in chosen.folders.items() for path in folder.images}
    for row, path in enumerate(loaded.paths, len(chips)):
        rows.setdefault(owner[path], []).append(row)
    if chosen.rendered:
        chips, digests = (
            np.concatenate([chips, loaded.chips]),
            np.concatenate([digests, loaded.digests]),
        )
    else:
        chips, digests = loaded.chips, loaded.digests
    return Pictures(chips, digests, rows), loaded.skipped


def _usable(
    parts: PersonSplit, pictures: Pictures, experiment: Experiment
) -> tuple[PersonSplit, frozenset[str]]:
    """Leave out persons without usable images, and who is in another part by a same picture.

    Returns the persons left, with some of the test's as judges, and who was known. Too few left is
    an InputError.
    """
    sites = tuple(pictures.persons(site) for site in parts.sites)
    taken = set(pictures.digests_of([name for site in sites for name in site]))
    public: list[tuple[str, ...]] = []
    known: set[str] = set()
    for names, least in ((parts.test, 2), (parts.bank, 1)):
        usable = pictures.persons(names, least)
        twice = {name for name in usable if not taken.isdisjoint(pictures.digests_of([name]))}
        known |= twice
        public.append(tuple(name for name in usable if name not in twice))
        taken.update(pictures.digests_of(public[-1]))
    test, bank = public
    several = len(experiment.shift)
    if len(bank) < 2 or len(test) < 2 or not any(sites):
        raise InputError(
            "too few persons have an image with a face",
            hint="at least 2 for the public bank, 2 with two images to test, 1 private",
        )
    if len(test) < 2 * several:
        raise InputError(
            f"{len(test)} persons to test {several} cameras", hint="at least 2 for each camera"
        )
    reported, judges = divide_test(test, experiment.seed, several)
    return PersonSplit(sites, bank, reported, judges), frozenset(known)


def _digest_of(split: PersonSplit, pictures: Pictures) -> str:
    """Of every person in their place, with the digests of their usable files, as hex."""
    places = (*split.sites, split.bank, split.test)
    whole = [
        [(name, [d.hex() for d in pictures.digests_of([name])]) for name in place]
        for place in places
    ]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _skipped(
    chosen: _Chosen, faults: Sequence[Skipped], known: Container[str]
) -> tuple[Skipped, ...]:
    """List what is left out of public folders; how many private images fail is private."""
    public = {*chosen.split.bank, *chosen.split.test}
    shown = [folder for name, folder in chosen.folders.items() if name in public]
    listed = [entry for folder in shown for entry in folder.skipped]
    images = {path for folder in shown for path in folder.images}
    twice = [Skipped(path, _KNOWN) for f in shown if f.name in known for path in f.images]
    return (*listed, *(entry for entry in faults if entry.path in images), *twice)


def _synthetic(subject: int) -> str:
    return f"synthetic-{subject:05d}"
