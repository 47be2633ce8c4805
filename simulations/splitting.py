"""Persons split by seed into private (over the sites), public bank, test and judges; disjoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import InputError
from common.randomness import experiment_generator

MOST_PUBLIC = 1000
_TEST = 0.3
_JUDGES = 4  # at least so many, or none
_TESTED = 8  # at least so many are left when there are judges


@dataclass(frozen=True)
class PersonSplit:
    """Subjects of an experiment: `sites` holds one tuple a site; all are disjoint.

    `test` are the persons whose scores are reported; `judges` are other public persons, on whom
    models are chosen. Raises InputError if a person is in two parts.
    """

    sites: tuple[tuple[str, ...], ...]
    bank: tuple[str, ...]
    test: tuple[str, ...]
    judges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        everyone = Counter([*self.private, *self.bank, *self.test, *self.judges])
        twice = [person for person, times in everyone.items() if times > 1]
        if twice:
            raise InputError(f"{twice[0]} is in two parts of the split", hint="a person is in one")

    @property
    def private(self) -> tuple[str, ...]:
        return tuple(subject for site in self.sites for subject in site)


def split_persons(
    images: Mapping[str, int],
    *,
    sites: int,
    persons: int | None,
    seed: int,
    bank: bool = True,
    test: bool = True,
) -> PersonSplit:
    """Split subjects, given how many images each has.

    The public bank takes up to 1,000 persons, first those with a single image (they cannot train
    or test); with fewer than 50 of those, a fifth of the others; none unless `bank`. `persons` of
    the rest are private, dealt to the sites in turn; by default seven tenths. The others are the
    test set. Unless `test`, there is none: by default all are private.
    Raises InputError when there are too few persons, naming how many are needed.
    """
    rng = experiment_generator(seed, "persons")
    multiple = sorted(subject for subject, count in images.items() if count >= 2)
    single = sorted(subject for subject, count in images.items() if count == 1)
    if len(images) < 2:
        raise InputError(f"found {len(images)} person(s)", hint="at least 2 persons are needed")
    needed, tested = 1 + bank + 2 * test, 2 * test
    if len(multiple) < needed:
        raise InputError(
            f"only {len(multiple)} persons have two or more images",
            hint="a person needs two images to train on or to test with; "
            f"at least {needed} such persons",
        )
    shuffled = [multiple[i] for i in rng.permutation(len(multiple))]
    public: list[str] = []
    if bank and len(single) >= 50:
        public = [single[i] for i in rng.permutation(len(single))[:MOST_PUBLIC]]
    elif bank:
        count = max(1, min(MOST_PUBLIC, len(shuffled) // 5))
        public, shuffled = shuffled[:count], shuffled[count:]
    share = 1 - _TEST if test else 1.0
    wanted = persons if persons is not None else round(len(shuffled) * share)
    if wanted < 1 or sites < 1:
        raise InputError("--sites and --persons must be at least 1")
    if wanted > len(shuffled) - tested:
        after = " after the public bank" if bank else ""
        least = "at least 2 must remain for the test: " if test else ""
        raise InputError(
            f"--persons {wanted}, but only {len(shuffled)} persons with two or more images are "
            f"left{after}",
            hint=f"{least}ask for at most {len(shuffled) - tested}",
        )
    if sites > wanted:
        raise InputError(f"{sites} sites but only {wanted} private persons", hint="lower --sites")
    private, others = shuffled[:wanted], shuffled[wanted:] if test else ()
    dealt = tuple(tuple(private[site::sites]) for site in range(sites))
    return PersonSplit(dealt, tuple(public), tuple(others))


def choose_bank(images: Mapping[str, int], seed: int) -> tuple[str, ...]:
    """Return up to 1,000 persons of a public folder, first those with two or more images.

    These show how one face differs from picture to picture.
    """
    names = sorted(images)
    rng = experiment_generator(seed, "public persons")
    shuffled = [names[i] for i in rng.permutation(len(names))]
    return tuple(sorted(shuffled, key=lambda name: images[name] < 2)[:MOST_PUBLIC])


def divide_test(
    persons: Sequence[str], seed: int, cameras: int = 1
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide public persons by seed into those to test on and, a quarter, those who judge.

    Nobody judges where fewer than 4 would, or fewer than 8 would be left to test; and where several
    cameras are dealt to both in turn, at least 2 persons of each are needed of one camera.
    """
    rng = experiment_generator(seed, "judges")
    shuffled = tuple(persons[i] for i in rng.permutation(len(persons)))
    judges = len(shuffled) // 4
    left = len(shuffled) - judges
    if judges < max(_JUDGES, 2 * cameras) or left < max(_TESTED, 2 * cameras):
        return tuple(persons), ()
    return shuffled[judges:], shuffled[:judges]
