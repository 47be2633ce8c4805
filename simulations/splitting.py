"""Persons split by seed into private (over the sites), public bank and test; disjoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import InputError
from common.randomness import experiment_generator

_BANK = 1000
_TEST = 0.3


@dataclass(frozen=True)
class PersonSplit:
    """Subjects of an experiment: `sites` holds one tuple a site; all are disjoint."""

    sites: tuple[tuple[str, ...], ...]
    bank: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def private(self) -> tuple[str, ...]:
        return tuple(subject for site in self.sites for subject in site)


def split_persons(
    images: Mapping[str, int], *, sites: int, persons: int | None, seed: int
) -> PersonSplit:
    """Split subjects, given how many images each has.

    The public bank takes up to 1,000 persons, first those with a single image (they cannot train
    or test); with fewer than 50 of those, a fifth of the others. `persons` of the rest are
    private, dealt to the sites in turn; by default seven tenths. The others are the test set.
    Raises InputError when there are too few persons, naming how many are needed.
    """
    rng = experiment_generator(seed, "persons")
    multiple = sorted(subject for subject, count in images.items() if count >= 2)
    single = sorted(subject for subject, count in images.items() if count == 1)
    if len(images) < 2:
        raise InputError(f"found {len(images)} person(s)", hint="at least 2 persons are needed")
    if len(multiple) < 4:
        raise InputError(
            f"only {len(multiple)} persons have two or more images",
            hint="a person needs two images to train on or to test with; at least 4 such persons",
        )
    shuffled = [multiple[i] for i in rng.permutation(len(multiple))]
    if len(single) >= 50:
        bank = [single[i] for i in rng.permutation(len(single))[:_BANK]]
    else:
        count = max(1, min(_BANK, len(shuffled) // 5))
        bank, shuffled = shuffled[:count], shuffled[count:]
    wanted = persons if persons is not None else round(len(shuffled) * (1 - _TEST))
    if wanted < 1 or sites < 1:
        raise InputError("--sites and --persons must be at least 1")
    if wanted > len(shuffled) - 2:
        raise InputError(
            f"--persons {wanted}, but only {len(shuffled)} persons with two or more images are "
            "left after the public bank",
            hint=f"at least 2 must remain for the test: ask for at most {len(shuffled) - 2}",
        )
    if sites > wanted:
        raise InputError(f"{sites} sites but only {wanted} private persons", hint="lower --sites")
    private, test = shuffled[:wanted], shuffled[wanted:]
    dealt = tuple(tuple(private[site::sites]) for site in range(sites))
    return PersonSplit(dealt, tuple(bank), tuple(test))
