"""False matches by demographic group: a threshold that is safe on average may not be for all.

Compared are different persons of the same group (same race label and same gender label), the
pairs that false matches come from (Grother, Ngan and Hanaoka 2019, NISTIR 8280). With one image a
person there are no mated pairs, so FNMR by group is not measured.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.intervals import wilson
from common.metrics import Interval, threshold_at_fmr, unit_norm

COLUMNS = ("file", "race", "gender", "age")


@dataclass(frozen=True)
class GroupedImage:
    """One row of a groups CSV: a file, relative to the image folder, and its labels."""

    file: str
    race: str
    gender: str
    age: str

    @property
    def group(self) -> str:
        return f"{self.race}, {self.gender}"


@dataclass(frozen=True)
class GroupRate:
    """FMR of one group's `pairs` non-mated pairs, with its 95% interval."""

    group: str
    images: int
    pairs: int
    false_matches: int
    fmr: float
    ci: Interval


@dataclass(frozen=True)
class GroupReport:
    """FMR at one threshold for each group, in falling order of FMR.

    `fmr` is that of all groups' pairs together; `ratio` the worst group's FMR over it, None where
    no pair at all matched. (The ratio to the best group would be infinite once a group has none.)
    """

    threshold: float
    fmr: float
    ratio: float | None
    groups: tuple[GroupRate, ...]

    @property
    def worst(self) -> GroupRate:
        return self.groups[0]

    def to_json(self) -> dict[str, object]:
        """The `groups` object that `veilface evaluate --groups --json` prints."""
        rows = [
            {
                "group": rate.group,
                "images": rate.images,
                "pairs": rate.pairs,
                "false_matches": rate.false_matches,
                "fmr": rate.fmr,
                "ci": [rate.ci.low, rate.ci.high],
            }
            for rate in self.groups
        ]
        return {
            "threshold": self.threshold,
            "fmr": self.fmr,
            "worst": self.worst.group,
            "ratio": self.ratio,
            "groups": rows,
        }


def read_groups(path: Path) -> tuple[GroupedImage, ...]:
    """The rows of a CSV with a header line `file,race,gender,age` (more columns are ignored).

    Raises InputError that names the line for a missing column, an empty field or a file twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the groups cannot be read from {path}: {error}") from error
    images: dict[str, GroupedImage] = {}
    for line, row in enumerate(rows, start=2):
        fields = {name: (row.get(name) or "").strip() for name in COLUMNS}
        empty = [name for name, value in fields.items() if not value]
        if empty:
            raise InputError(
                f"{path}, line {line}: no value for {', '.join(empty)}",
                hint=f"the header is '{','.join(COLUMNS)}'",
            )
        image = GroupedImage(**fields)
        if image.file in images:
            raise InputError(f"{path}, line {line}: {image.file} is listed twice")
        images[image.file] = image
    if not images:
        raise InputError(f"{path} lists no images")
    return tuple(images.values())


def threshold_within(embeddings: NDArray[np.floating], target: float) -> float:
    """The threshold of FMR `target` over all pairs of embeddings [N, D], one image a person."""
    unit = unit_norm(embeddings)
    return threshold_at_fmr((unit @ unit.T)[np.triu_indices(len(unit), 1)], target)


def group_rates(
    embeddings: NDArray[np.floating], groups: list[str], threshold: float
) -> GroupReport:
    """FMR within each group of embeddings [N, D] at `threshold`, one image a person.

    Raises InputError where no group has two images; a group of one image is left out.
    """
    unit = unit_norm(embeddings)
    labels = np.array(groups)
    rates: list[GroupRate] = []
    for group in sorted(set(groups)):
        members = unit[labels == group]
        if len(members) < 2:
            continue
        matched = members @ members.T >= threshold
        np.fill_diagonal(matched, False)
        rates.append(_rate(group, matched))
    if not rates:
        raise InputError("no group has two images to compare")
    rates.sort(key=lambda rate: (-rate.fmr, rate.group))
    overall = sum(rate.false_matches for rate in rates) / sum(rate.pairs for rate in rates)
    ratio = rates[0].fmr / overall if overall > 0 else None
    return GroupReport(threshold, overall, ratio, tuple(rates))


def _rate(group: str, matched: NDArray[np.bool_]) -> GroupRate:
    """Wilson's interval with the pairs' effective number, from a symmetric match matrix [n, n].

    Pairs that share a face are not independent, so their number would give a far too narrow
    interval. The variance of the rate is 4/n times that of a person's own rate (Hoeffding 1948,
    theorem 7.1), so it is worth p(1-p)/variance independent pairs: between n/2 (pairs that share
    no face) and all of them.
    """
    images = len(matched)
    pairs = images * (images - 1) // 2
    false_matches = int(np.count_nonzero(matched)) // 2
    fmr = false_matches / pairs
    own = np.count_nonzero(matched, axis=1) / (images - 1)
    variance = 4 * float(own.var()) / images
    effective = fmr * (1 - fmr) / variance if variance > 0 else images / 2
    interval = wilson(fmr, float(np.clip(effective, images / 2, pairs)))
    return GroupRate(group, images, pairs, false_matches, fmr, interval)
