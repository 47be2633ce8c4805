"""Persons who are two: the same files, bit by bit, in the folders of several.

A copy of a person's folder doubles what that person may move, and makes strangers look alike.

    refuse_copies(list_subjects(root))          # before anything is promised
    one = united(digests, names)                # one["Ann copy"] == "Ann"
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from common.dataset import SubjectFolder
from common.errors import InputError


def copies(subjects: Sequence[SubjectFolder]) -> tuple[tuple[str, ...], ...]:
    """Names of persons who share a file with one another, one tuple a group, sorted.

    Files are read only where another person has one of the same size; what cannot be read is no
    copy.
    """
    by_size: dict[int, list[tuple[Path, str]]] = defaultdict(list)
    for subject in subjects:
        for path in subject.images:
            with suppress(OSError):
                by_size[path.stat().st_size].append((path, subject.name))
    alike: list[tuple[bytes, str]] = []
    for files in by_size.values():
        if len({name for _, name in files}) > 1:
            for path, name in files:
                with suppress(OSError):
                    alike.append((hashlib.sha256(path.read_bytes()).digest(), name))
    groups: dict[str, list[str]] = defaultdict(list)
    for name, first in united(alike).items():
        groups[first].append(name)
    return tuple(sorted(tuple(sorted(names)) for names in groups.values() if len(names) > 1))


def united(owners: Iterable[tuple[bytes, str]]) -> Mapping[str, str]:
    """Digests of files and whose they are -> for each person the first by name of their group.

    Who shares a file with someone is of their group, and so is who shares one with those.
    """
    first: dict[str, str] = {}

    def found(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    holder: dict[bytes, str] = {}
    for digest, name in owners:
        one, other = sorted((found(name), found(holder.setdefault(digest, name))))
        first[other] = one
    return {name: found(name) for name in first}


def refuse_copies(subjects: Sequence[SubjectFolder]) -> None:
    """Raise InputError if persons share files, naming some of them."""
    groups = copies(subjects)
    if not groups:
        return
    shown = "; ".join(" = ".join(map(repr, group[:3])) for group in groups[:3])
    raise InputError(
        f"{sum(map(len, groups))} person folders hold the same files as another: {shown}",
        hint="a person is one folder: remove the copies, or add --allow-duplicates if they are "
        "different people",
    )


def merged(subjects: Sequence[SubjectFolder]) -> tuple[SubjectFolder, ...]:
    """The same persons, with those who share a file as one, under the first of their names."""
    first = {name: group[0] for group in copies(subjects) for name in group}
    by_name: dict[str, SubjectFolder] = {}
    for one in subjects:
        name = first.get(one.name, one.name)
        same = by_name.get(name, SubjectFolder(name, (), ()))
        by_name[name] = SubjectFolder(name, same.images + one.images, same.skipped + one.skipped)
    return tuple(by_name[name] for name in sorted(by_name))
