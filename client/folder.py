"""A site's own folder of faces: read when a round needs it, its features kept between rounds."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.app import OpenSite
from client.consent import SitePolicy
from client.folder_config import FolderConfig
from client.masked_site import Identity, MaskedSite
from client.odometer import kept_or_stated
from client.preparation import PublicPart, rows_of
from client.site import Site
from common.backbones.base import Backbone
from common.backbones.registry import create
from common.chip_cache import ChipCache
from common.dataset import ChipSet, SubjectFolder, images_of, list_subjects, load_chips
from common.detection import DlibDetector
from common.embedding import Rows
from common.errors import InputError, Refused, StorageError, VeilfaceError
from common.persons import Persons, person_code
from common.randomness import KEY_BYTES, fresh_key
from common.same_person import united
from common.storage import make_private_directory, write_private

log = logging.getLogger("veilface.site")


def open_folder(
    config: FolderConfig, policy: SitePolicy, identity: Identity | None = None
) -> OpenSite:
    """Return the site of a folder; nothing of it is read before a round needs it.

    Without an identity on a roster it takes no part in secure aggregation.
    """
    folder = _Folder(config)
    state = make_private_directory(config.state)
    odometer = kept_or_stated(config.odometer, config.data, policy.spent_elsewhere)
    site = Site.open(state, policy.plan, odometer=odometer)
    return OpenSite(
        site=site,
        public_directory=state / "public",
        model=lambda part: folder.rows(part).split.trainable,
        persons=folder.persons,
        consent=policy.check,
        masking=None if identity is None else MaskedSite(identity, site),
    )


class _Folder:
    """The faces of the run that is under way: another run, or a restart, reads them again."""

    def __init__(self, config: FolderConfig) -> None:
        self._config = config
        self._rows: tuple[PublicPart, Rows] | None = None
        self._persons: tuple[PublicPart, Persons] | None = None

    def rows(self, part: PublicPart) -> Rows:
        """Return the backbone cut for a run; model and persons share it."""
        if self._rows is None or self._rows[0] is not part:
            self._rows = (
                part,
                rows_of(part, _backbone(part.contract.backbone, self._config.weights)),
            )
        return self._rows[1]

    def persons(self, part: PublicPart) -> Persons:
        """Return this site's persons, frozen features computed; they are kept for the run."""
        if self._persons is None or self._persons[0] is not part:
            self._persons = (part, self._embedded(part))
        return self._persons[1]

    def _embedded(self, part: PublicPart) -> Persons:
        """Detect, align and embed this site's images.

        Whatever is wrong with them is logged here and nowhere else: the server must not be able to
        tell a site whose images cannot be used from one whose can, so there are fewer persons then,
        or none, and the round goes on with its noise. Only a chip cache that others can read is
        refused: that is the same whatever lies in the folder.
        """
        rows = self.rows(part)
        try:
            chips, names = self._faces(rows)
            inputs = rows.of(torch.from_numpy(chips))
        except Refused:
            raise
        except Exception as error:  # the boundary: whatever it is, it must not be told apart
            log.error("no private image takes part: %s", error, exc_info=not _expected(error))
            size = rows.backbone.chip.size
            chips, names = np.zeros((0, size, size, 3), np.uint8), []
            inputs = rows.of(torch.from_numpy(chips))
        known = sorted(set(names))
        key, codes = self._code_key(), max(1, len(part.inputs))
        return Persons.group(
            inputs,
            [known.index(name) for name in names],
            [person_code(name, key, codes) for name in known],
            rows.prepare,
        )

    def _faces(self, rows: Rows) -> tuple[NDArray[np.uint8], list[str]]:
        """The usable chips [N, S, S, 3] and whose they are, sorted by person."""
        subjects = list_subjects(self._config.data, strict=False)
        try:
            with ChipCache.open(self._config.cache) as cache:
                loaded = self._chips(subjects, rows, cache)
        except StorageError as error:
            log.warning("the chip cache is left out: %s", error)
            loaded = self._chips(subjects, rows, None)
        for entry in (*(one for folder in subjects for one in folder.skipped), *loaded.skipped):
            log.warning("not used: %s: %s", entry.path, entry.reason)
        names = [subjects[label].name for label in loaded.labels(subjects).tolist()]
        if not self._config.allow_duplicates:
            names = _united(loaded, names)
        order = np.argsort(names, kind="stable")
        return loaded.chips[order], [names[row] for row in order.tolist()]

    def _chips(
        self, subjects: tuple[SubjectFolder, ...], rows: Rows, cache: ChipCache | None
    ) -> ChipSet:
        return load_chips(
            images_of(subjects),
            spec=rows.backbone.chip,
            detector=DlibDetector(),
            cache=cache,
            aligned=self._config.aligned,
            apart=True,
        )

    def _code_key(self) -> bytes:
        """The site's own secret for codebook codes; made once."""
        path = self._config.state / "codes.key"
        if not path.exists():
            write_private(path, fresh_key())
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise InputError(f"{path} is damaged")
        return key


def _united(loaded: ChipSet, names: list[str]) -> list[str]:
    """Whose each chip is, with persons who share a file taken for one, and a line in the log."""
    one = united(zip((digest.tobytes() for digest in loaded.digests), names, strict=True))
    several = sorted(name for name, first in one.items() if name != first)
    if several:
        log.warning(
            "%d persons hold files of another and are taken for the same: %s",
            len(several),
            ", ".join(f"{name!r} is {one[name]!r}" for name in several[:10]),
        )
    return [one[name] for name in names]


def _expected(error: Exception) -> bool:
    """Whether an error says itself what is to be done; of others the site wants to see where."""
    return isinstance(error, VeilfaceError)


@lru_cache(maxsize=1)
def _backbone(name: str, weights: Path | None) -> Backbone:
    return create(name, weights=weights)
