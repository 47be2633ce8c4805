"""Folders of person folders, and their chips: found, decoded, aligned, cached, in stable order.

How callers use it:

    subjects = list_subjects(root, at_least=2)
    chips = load_chips(images_of(subjects), spec=backbone.chip, detector=DlibDetector())
    labels = chips.labels(subjects)        # row of `subjects` for each row of `chips.chips`
    for skipped in chips.skipped: ...      # what could not be used, and why
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.chip_cache import ChipCache, chip_key
from common.cut_all import CHUNK, cut_all
from common.cutter import NO_FACE, Cut, Cutter
from common.decoding import DecodeLimits, Pixels
from common.detection import CentreDetector, Detector
from common.errors import InputError
from common.face import ChipSpec, grey_chips

# What network drives, systems and archivers put beside people's folders; compared without case.
LITTER = frozenset(
    (
        "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@tmp",
        "__macosx", "desktop.ini", "found.000", "lost+found", "network trash folder", "recycler",
        "system volume information", "temporary items", "thumbs.db",
    )
)  # fmt: skip
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".pnm", ".webp"})
WRITE_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why, in words for the user."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class SubjectFolder:
    """One person's folder: its name, its images by name, and the files that are no images."""

    name: str
    images: tuple[Path, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class ChipSet:
    """Chips of many images, in the order in which the images were asked for.

    Attributes:
        chips: uint8 [N, S, S, 3] RGB.
        paths: [N], where each came from.
        digests: uint8 [N, 32], SHA-256 of each image file.
        skipped: images without a chip.
        centred: paths whose face was not found and taken from the centre (`centre_fallback`).
    """

    chips: Pixels
    paths: tuple[Path, ...]
    digests: NDArray[np.uint8]
    skipped: tuple[Skipped, ...]
    centred: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def labels(self, subjects: Sequence[SubjectFolder]) -> NDArray[np.int64]:
        """Row in `subjects` of the person of each chip, int64 [N]; -1 for none of them."""
        rows = {path: row for row, subject in enumerate(subjects) for path in subject.images}
        return np.array([rows.get(path, -1) for path in self.paths], np.int64)


def images_of(subjects: Sequence[SubjectFolder]) -> tuple[Path, ...]:
    """All images of all subjects, in order."""
    return tuple(path for subject in subjects for path in subject.images)


def list_subjects(
    root: Path, *, at_least: int = 1, strict: bool = True
) -> tuple[SubjectFolder, ...]:
    """The person folders in `root`, or if `strict` in `root`/images of an LFW root, sorted by name.

    Names are NFC, and folders whose names are the same in NFC are one person. Hidden files, what is
    in `LITTER`, and files beside the person folders are ignored. Files in a
    person's folder that are no image by suffix, and broken links, are listed as skipped. A person
    whose folder cannot be listed, or whose link leads out of the root or to another person, is an
    InputError, or if not `strict` a person without images: where people are private, one must not
    decide about others, so that `person_root` is settled before (`veilface site up`).

    Raises InputError if the root is missing, no folder, or holds fewer than `at_least` persons
    with an image.
    """
    root = Path(root)
    if not root.is_dir():
        fault = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{root} {fault}", hint="give a folder of one folder a person")
    root = person_root(root) if strict else root
    inside = root.resolve()
    entries = _visible(root)
    read = _subject if strict else _subject_or_skipped
    subjects = _one_a_name(read(entry, inside) for entry in entries if _is_folder(entry))
    if not entries:
        raise InputError(f"{root} is empty", hint="give a folder of one folder a person")
    if not any(subject.images for subject in subjects):
        raise InputError(
            f"{root} holds no person folder with an image", hint="one folder a person, images in it"
        )
    persons = sum(bool(subject.images) for subject in subjects)
    if persons < at_least:
        raise InputError(
            f"{root} holds {persons} person{'s' * (persons > 1)}, at least {at_least} are needed",
            hint="one folder a person, images in it",
        )
    return subjects


def person_root(root: Path) -> Path:
    """Where the person folders are: `root`/images of an LFW root, else `root` itself.

    An LFW root has pairs.txt, and in its folder `images` folders alone: a person whose name is
    "images" has images there.
    """
    images = root / "images"
    if not (root / "pairs.txt").is_file() or not images.is_dir():
        return root
    person = any(entry.suffix.lower() in SUFFIXES for entry in _visible(images))
    return root if person else images


def person_name(folder: str) -> str:
    """The name of a person from that of a folder: NFC, since some systems write NFD."""
    return unicodedata.normalize("NFC", folder)


def load_chips(
    paths: Sequence[Path],
    *,
    spec: ChipSpec,
    detector: Detector,
    cache: ChipCache | None = None,
    aligned: bool = False,
    grey: bool = False,
    centre_fallback: bool = False,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    limits: DecodeLimits | None = None,
    apart: bool = False,
) -> ChipSet:
    """Images -> their chips; an image that cannot be used is skipped and listed.

    Args:
        paths: image files; the result keeps their order.
        spec: size and alignment of the chips.
        detector: finds the faces.
        cache: where chips are looked up and kept; None: nowhere.
        aligned: the images are chips already: not detected, not cached, only resized if needed.
        grey: make the chips grey.
        centre_fallback: where no face is found, cut the chip around the centre and list the path
            in `centred` (for protocols that allow no miss, such as LFW's).
        progress: called as (done, all) now and then, from this thread.
        workers: processes that detect; None: one a core.
        limits: of decoding.
        apart: no picture is decoded in this process, however few there are.

    A picture that ends the process that reads it is skipped. Raises StorageError if the cache
    cannot be read or written.
    """
    finders: tuple[Detector | None, ...] = (None,) if aligned else (detector,)
    if centre_fallback and not aligned:
        finders += (CentreDetector(),)
    chips = np.empty((len(paths), spec.size, spec.size, 3), np.uint8)
    digests = np.zeros((len(paths), 32), np.uint8)
    faults: list[str | None] = [NO_FACE] * len(paths)
    centred: list[int] = []
    for turn, finder in enumerate(finders):
        cutter = Cutter(spec, finder, limits or DecodeLimits())
        rows = [row for row, fault in enumerate(faults) if fault == NO_FACE]
        done = len(paths) - len(rows)
        for at, found in _looked_up(
            [paths[row] for row in rows], cutter, cache, workers or _cores(), apart
        ):
            row, done = rows[at], done + 1
            digests[row] = np.frombuffer(found.digest, np.uint8)
            faults[row] = found.fault
            if found.chip is not None:
                chips[row] = grey_chips(found.chip) if grey else found.chip
                centred += [row] * (turn > 0)
            if progress and (done % CHUNK == 0 or done == len(paths)):
                progress(done, len(paths))
    kept = [row for row, fault in enumerate(faults) if fault is None]
    for target, row in enumerate(kept):  # in place: the chips may fill half of the memory
        chips[target] = chips[row]
    return ChipSet(
        chips[: len(kept)],
        tuple(paths[row] for row in kept),
        digests[kept],
        tuple(Skipped(paths[row], fault) for row, fault in enumerate(faults) if fault is not None),
        tuple(paths[row] for row in sorted(centred)),
    )


def _looked_up(
    paths: Sequence[Path], cutter: Cutter, cache: ChipCache | None, workers: int, apart: bool
) -> Iterator[tuple[int, Cut]]:
    """Yield (position in `paths`, outcome) of each: first what the cache has, then the others."""
    if cache is None or cutter.finder is None:
        yield from enumerate(cut_all(cutter, paths, workers, apart=apart))
        return
    name = cutter.finder.id
    with ThreadPoolExecutor(workers) as threads:
        digests = list(threads.map(cutter.digest, paths))
    missing = set(range(len(paths)))
    for at, chip in cache.read([chip_key(digest, name, cutter.spec) for digest in digests]):
        missing.remove(at)
        yield at, Cut(digests[at], chip, NO_FACE if chip is None else None)
    rest = sorted(missing)
    fresh: list[tuple[bytes, Pixels | None]] = []
    cuts = cut_all(cutter, [paths[at] for at in rest], workers, apart=apart)
    for at, found in zip(rest, cuts, strict=True):
        yield at, found
        if found.fault in (None, NO_FACE):
            fresh.append((chip_key(found.digest, name, cutter.spec), found.chip))
        if len(fresh) == WRITE_AT_ONCE:
            cache.write(fresh)
            fresh.clear()
    cache.write(fresh)


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, not hidden and no litter, by name; unlistable: InputError."""
    try:
        return sorted(entry for entry in folder.iterdir() if not _ignored(entry.name))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be listed: {error.strerror}", hint="check its permissions"
        ) from error


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LITTER


def _one_a_name(found: Iterable[SubjectFolder]) -> tuple[SubjectFolder, ...]:
    """One person a name, sorted by name, with the images of all folders of that name."""
    by_name: dict[str, SubjectFolder] = {}
    for one in found:
        same = by_name.get(one.name, SubjectFolder(one.name, (), ()))
        by_name[one.name] = SubjectFolder(
            one.name, same.images + one.images, same.skipped + one.skipped
        )
    return tuple(by_name[name] for name in sorted(by_name))


def _subject(folder: Path, inside: Path) -> SubjectFolder:
    """One person's folder; InputError if it is, or holds, a link that leads elsewhere."""
    _stay(folder, inside, folder.name)
    images: list[Path] = []
    skipped: list[Skipped] = []
    for entry in _visible(folder):
        _stay(entry, inside, folder.name)
        if not entry.exists():
            skipped.append(Skipped(entry, "a broken link"))
        elif not entry.is_file():
            skipped.append(Skipped(entry, "not a file"))
        elif entry.suffix.lower() not in SUFFIXES:
            skipped.append(Skipped(entry, "not an image by its suffix"))
        else:
            images.append(entry)
    return SubjectFolder(person_name(folder.name), tuple(images), tuple(skipped))


def _subject_or_skipped(folder: Path, inside: Path) -> SubjectFolder:
    """The same, but with a folder that cannot be used as one without images."""
    try:
        return _subject(folder, inside)
    except (InputError, OSError) as error:
        return SubjectFolder(person_name(folder.name), (), (Skipped(folder, str(error)),))


def _is_folder(entry: Path) -> bool:
    """Whether it is one; what cannot be looked at is taken for one, whose person then says so."""
    try:
        return entry.is_dir()
    except OSError:
        return True


def _stay(entry: Path, inside: Path, person: str) -> None:
    """InputError for a link out of `inside`, or to other persons: they would count twice."""
    if not _is_link(entry):
        return
    try:
        target = entry.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise InputError(f"{entry} cannot be followed: {error}", hint="remove it") from error
    if not target.is_relative_to(inside):
        raise InputError(
            f"{entry} is a link that leads out of {inside}", hint="copy the files, or remove it"
        )
    for place in (*_on_the_way(entry), target):
        first = place.relative_to(inside).parts[:1] if place.is_relative_to(inside) else ()
        if first and first[0] != person and not first[0].startswith("."):
            raise InputError(
                f"{entry} is a link to another person's folder",
                hint="remove it: a person is one folder",
            )


def _on_the_way(link: Path) -> Iterator[Path]:
    """Where a link leads, step by step: a person's folder may be a link itself."""
    while link.is_symlink():
        link = Path(os.path.normpath(link.parent.resolve() / link.readlink()))
        yield link


def _is_link(entry: Path) -> bool:
    try:
        return entry.is_symlink()
    except OSError as error:
        raise InputError(f"{entry} cannot be looked at: {error.strerror}") from error
