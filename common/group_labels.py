"""Which image belongs to which demographic group: a CSV of labels, or LFW's lists of gender."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

COLUMNS = ("file", "race", "gender", "age")
GENDER_LISTS = (("male.txt", "Male"), ("female.txt", "Female"))


@dataclass(frozen=True)
class GroupedImage:
    """An image file, relative to the image folder, its labels and its person.

    `subject` is empty where every image shows another person.
    """

    file: str
    race: str
    gender: str
    age: str
    subject: str = ""

    @property
    def group(self) -> str:
        return ", ".join(label for label in (self.race, self.gender) if label)


def read_groups(path: Path) -> tuple[GroupedImage, ...]:
    """The rows of a CSV with a header line `file,race,gender,age`, and `subject` if it is there.

    Without `subject` every image shows another person; more columns are ignored.

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
        if "subject" in row:
            fields["subject"] = (row["subject"] or "").strip()
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


def read_gender_lists(root: Path) -> tuple[GroupedImage, ...]:
    """The images of an LFW root by the gender that its `male.txt` and `female.txt` give.

    A line is a file name `Person_0001.jpg`. Persons whose images stand in both lists are left out.
    Raises InputError for a list that is missing or holds anything else.
    """
    genders: dict[str, set[str]] = {}
    images: dict[str, GroupedImage] = {}
    for name, gender in GENDER_LISTS:
        try:
            lines = (root / name).read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {root / name}: {error}") from error
        for line in lines:
            person, _, number = line.rpartition("_")
            if not person or "/" in line or not number.partition(".")[0].isdigit():
                raise InputError(f"{root / name}: {line!r} is no file name of a person's image")
            genders.setdefault(person, set()).add(gender)
            images[line] = GroupedImage(f"{person}/{line}", "", gender, "", person)
    return tuple(image for image in images.values() if len(genders[image.subject]) == 1)
