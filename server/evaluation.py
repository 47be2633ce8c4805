"""A model's verification rates on a folder of persons, on LFW's View 2, and by group.

Images pass through in blocks, so that memory does not grow with their number: file -> chip ->
shift -> embedding. Everything evaluated here is public data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.chip_cache import ChipCache
from common.dataset import ChipSet, Skipped, images_of, list_subjects, load_chips
from common.detection import Detector
from common.embedding import frozen_rows
from common.errors import InputError
from common.group_labels import GroupedImage, read_gender_lists, read_groups
from common.groups import GroupReport, group_rates, threshold_within
from common.intervals import verification_of
from common.lfw import LfwResult, lfw_result, read_pairs
from common.metrics import Verification, all_pairs, lowest_threshold
from common.network import Network
from common.scoring import plain
from server.remedies import Labelled, Remedy, remedies

FMR_TARGET = 1e-3
IMAGES_AT_ONCE = 2048

Shift = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.uint8]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pipeline:
    """How an image becomes an embedding.

    Attributes:
        network: what embeds.
        detector, cache, aligned: as for `load_chips`.
        shift: (chips [N, S, S, 3], SHA-256 of their files [N, 32]) -> chips of another camera.
        progress: called as (stage, done, all).
    """

    network: Network
    detector: Detector
    cache: ChipCache | None
    aligned: bool
    shift: Shift
    progress: Progress

    def embed(self, paths: Sequence[Path], *, centre_fallback: bool = False) -> Embedded:
        """Every image that can be used, in order; the others are listed."""
        blocks = list(self._blocks(paths, centre_fallback))
        return Embedded(
            np.concatenate([embeddings for _, embeddings in blocks]),
            tuple(path for chips, _ in blocks for path in chips.paths),
            tuple(skipped for chips, _ in blocks for skipped in chips.skipped),
            sum(len(chips.centred) for chips, _ in blocks),
        )

    def _blocks(
        self, paths: Sequence[Path], centre_fallback: bool
    ) -> Iterator[tuple[ChipSet, NDArray[np.float32]]]:
        for start in range(0, len(paths), IMAGES_AT_ONCE):

            def detecting(done: int, _: int, start: int = start) -> None:
                self.progress("finding faces", start + done, len(paths))

            found = load_chips(
                paths[start : start + IMAGES_AT_ONCE],
                spec=self.network.backbone.chip,
                detector=self.detector,
                cache=self.cache,
                aligned=self.aligned,
                centre_fallback=centre_fallback,
                progress=detecting,
            )
            shifted = self.shift(found.chips, found.digests)
            yield (
                replace(found, chips=found.chips[:0]),
                self._embeddings(shifted, start, len(paths)),
            )

    def _embeddings(self, chips: NDArray[np.uint8], before: int, total: int) -> NDArray[np.float32]:
        backbone, module = self.network.backbone, self.network.module
        if len(chips) == 0:
            return np.empty((0, self.network.dim), dtype=np.float32)

        def embedded(done: int, _: int) -> None:
            self.progress("embedding", before + done, total)

        rows: NDArray[np.float32] = frozen_rows(
            backbone, module, torch.from_numpy(chips), embedded
        ).numpy()
        return rows


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings [N, D] of `paths` [N]; `centred` of them had no detected face."""

    embeddings: NDArray[np.float32]
    paths: tuple[Path, ...]
    skipped: tuple[Skipped, ...]
    centred: int


@dataclass(frozen=True)
class Evaluation:
    """What `veilface evaluate` found.

    Attributes:
        result: rates of the protocol; None where only groups could be compared.
        threshold: the cosine at which FMR is 1e-3 on the evaluated pairs.
        images, persons: how many were compared.
        centred: images whose face was not found and taken from the centre (LFW only).
        skipped: images left out.
        groups: false matches by group at `threshold`.
        remedies: the same under other scorings, the plain one first.
        labelled: what was compared, where all pairs of it were.
        warnings: what the numbers cannot show.
    """

    result: Verification | LfwResult | None
    threshold: float
    images: int
    persons: int
    centred: int
    skipped: tuple[Skipped, ...]
    groups: GroupReport | None = None
    remedies: tuple[Remedy, ...] = ()
    warnings: tuple[str, ...] = ()
    labelled: Labelled | None = None

    def to_json(self) -> dict[str, object]:
        """One object: the protocol's own keys, then the rest."""
        reasons = Counter(skipped.reason for skipped in self.skipped)
        return {
            **(self.result.to_json() if self.result else {}),
            "threshold_at_fmr_1e-3": self.threshold,
            "images": self.images,
            "persons": self.persons,
            "no_face_centred": self.centred,
            "skipped": dict(sorted(reasons.items())),
            **({"groups": self._groups_json(self.groups)} if self.groups else {}),
            "warnings": list(self.warnings),
        }

    def _groups_json(self, groups: GroupReport) -> dict[str, object]:
        remedies = [remedy.to_json() for remedy in self.remedies]
        return {**groups.to_json(), **({"remedies": remedies} if remedies else {})}


def run(pipeline: Pipeline, data: Path, *, lfw: bool, groups: Path | None) -> Evaluation:
    """What the command does: the protocol's rates on `data`, then those of groups.

    `groups` is a CSV, or an LFW root with its lists of gender. Where its images are those of `data`
    itself, they are measured once, by themselves.
    """
    if groups is None:
        return evaluate_lfw(pipeline, data) if lfw else evaluate_folder(pipeline, data)
    listed = Listed.read(groups)
    if not lfw and data.resolve() in (listed.root.resolve(), listed.images.resolve()):
        return evaluate_groups_alone(pipeline, listed)
    return evaluate_groups(pipeline, listed, run(pipeline, data, lfw=lfw, groups=None))


def evaluate_folder(pipeline: Pipeline, root: Path, *, ci: bool = True) -> Evaluation:
    """All pairs of all images of the person folders in `root`."""
    subjects = list_subjects(root, at_least=2)
    found = pipeline.embed(images_of(subjects))
    if not found.paths:
        bad = found.skipped[0]
        raise InputError(f"no image in {root} can be used, the first because: {bad.reason}")
    owner = {path: row for row, folder in enumerate(subjects) for path in folder.images}
    labels = np.array([owner[path] for path in found.paths], dtype=np.int64)
    order = pipeline.network.probe_order
    scores = all_pairs(found.embeddings, labels, probe_order=order)
    result = verification_of(scores, ci=ci)
    unusable = tuple(skipped for folder in subjects for skipped in folder.skipped)
    return Evaluation(
        result,
        lowest_threshold(scores.non_mated, FMR_TARGET),
        len(found.paths),
        len(np.unique(labels)),
        0,
        (*unusable, *found.skipped),
        warnings=result.shortages,
        labelled=_cosines(order, Labelled(found.embeddings, labels, np.full(len(labels), ""))),
    )


def evaluate_lfw(pipeline: Pipeline, root: Path) -> Evaluation:
    """View 2 of the LFW root `root`: every one of its 6,000 pairs counts.

    An image without a detected face is cut around the centre (LFW's faces are) and counted.
    Raises InputError for an image that is missing or cannot be decoded.
    """
    pairs = read_pairs(root / "pairs.txt")
    subjects = list_subjects(root, at_least=2)
    by_name = {path.stem: path for path in images_of(subjects)}
    names = sorted({name for pair in pairs for name in (pair.first, pair.second)})
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(
            f"{root} lacks {len(missing)} of the {len(names)} images of pairs.txt, such as "
            f"{missing[0]}",
            hint="all of LFW is needed",
        )
    found = pipeline.embed([by_name[name] for name in names], centre_fallback=True)
    if found.skipped:
        bad = found.skipped[0]
        raise InputError(f"{bad.path}: {bad.reason}", hint="every image of pairs.txt is needed")
    row = {name: at for at, name in enumerate(names)}
    first = pipeline.network.probes(found.embeddings[[row[pair.first] for pair in pairs]])
    second = found.embeddings[[row[pair.second] for pair in pairs]]
    scores = np.einsum("nd,nd->n", first, second)
    non_mated = scores[[not pair.mated for pair in pairs]]
    persons = len({by_name[name].parent for name in names})
    return Evaluation(
        lfw_result(scores, pairs),
        lowest_threshold(non_mated, FMR_TARGET),
        len(names),
        persons,
        found.centred,
        (),
    )


@dataclass(frozen=True)
class Listed:
    """The images of `rows`, in `images`: the folder of that name in `root`, or `root` itself."""

    root: Path
    images: Path
    rows: tuple[GroupedImage, ...]

    @classmethod
    def read(cls, groups: Path) -> Listed:
        """Read a CSV or an LFW root; InputError where a listed image is missing."""
        root = groups if groups.is_dir() else groups.parent
        rows = read_gender_lists(groups) if groups.is_dir() else read_groups(groups)
        images = root / "images" if (root / "images").is_dir() else root
        lost = [row.file for row in rows if not (images / row.file).is_file()]
        if lost:
            raise InputError(f"{groups} lists {lost[0]}, which is not in {images}")
        return cls(root, images, rows)


def evaluate_groups(pipeline: Pipeline, listed: Listed, measured: Evaluation) -> Evaluation:
    """Add the errors by group, at the measured threshold, of the images that are listed."""
    faces = _grouped(pipeline, listed)
    report = faces.rates(measured.threshold)
    helped: tuple[Remedy, ...] = ()
    if measured.labelled is not None and faces.order is None:
        helped = remedies(measured.labelled, faces.labelled, FMR_TARGET)
    skipped = (*measured.skipped, *faces.found.skipped)
    return replace(measured, groups=report, remedies=helped, skipped=skipped)


def evaluate_groups_alone(pipeline: Pipeline, listed: Listed) -> Evaluation:
    """Errors by group where all pairs of the same images together have FMR 1e-3."""
    faces = _grouped(pipeline, listed)
    embeddings, persons = faces.found.embeddings, len(np.unique(faces.subjects))
    if persons == len(embeddings):
        result, threshold = None, threshold_within(plain(embeddings, faces.order), FMR_TARGET)
        helped: tuple[Remedy, ...] = ()
    else:
        scores = all_pairs(embeddings, faces.subjects, probe_order=faces.order)
        helped = ()
        result, threshold = verification_of(scores), lowest_threshold(scores.non_mated, FMR_TARGET)
        if faces.order is None:
            helped = remedies(None, faces.labelled, FMR_TARGET)
    return Evaluation(
        result,
        threshold,
        len(embeddings),
        persons,
        0,
        faces.found.skipped,
        groups=faces.rates(threshold),
        remedies=helped,
        warnings=result.shortages if result else (),
    )


def _cosines(order: NDArray[np.int64] | None, labelled: Labelled) -> Labelled | None:
    """Remedies are for cosines: a mean cannot be taken off what is compared in another order."""
    return labelled if order is None else None


@dataclass(frozen=True, eq=False)
class _Grouped:
    """Embedded images with the group [N] and the person [N] of each."""

    found: Embedded
    groups: tuple[str, ...]
    subjects: NDArray[np.int64]
    order: NDArray[np.int64] | None

    def rates(self, threshold: float) -> GroupReport:
        return group_rates(
            plain(self.found.embeddings, self.order), self.groups, threshold, self.subjects
        )

    @property
    def labelled(self) -> Labelled:
        return Labelled(self.found.embeddings, self.subjects, np.array(self.groups))


def _grouped(pipeline: Pipeline, listed: Listed) -> _Grouped:
    by_path = {listed.images / row.file: row for row in listed.rows}
    found = pipeline.embed(tuple(by_path))
    rows = [by_path[path] for path in found.paths]
    _, subjects = np.unique([row.subject or row.file for row in rows], return_inverse=True)
    groups = tuple(row.group for row in rows)
    return _Grouped(found, groups, subjects, pipeline.network.probe_order)
