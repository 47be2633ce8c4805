"""The ClientApp of a real site: its own folder of faces, its own budget, its own state.

The SuperNode's node configuration names them; the budget has no default:

    --node-config 'data-dir="/data" state-dir="/state" epsilon=4.0 delta=1e-4'
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from flwr.app import Context
from numpy.typing import NDArray

from client.app import OpenSite, make_app
from client.preparation import PublicPart
from client.site import Site
from common.backbones.adapter import PublicStatistics
from common.backbones.base import Backbone
from common.backbones.registry import create
from common.backbones.split import split
from common.backbones.weights import model_id
from common.chip_cache import ChipCache
from common.dataset import images_of, list_subjects, load_chips
from common.detection import DlibDetector
from common.embedding import Rows
from common.errors import InputError, Refused
from common.persons import Persons, person_code
from common.plan import PrivacyPlan
from common.randomness import KEY_BYTES, fresh_key
from common.storage import make_private_directory, write_private

log = logging.getLogger("veilface.site")
_KNOWN: Final = {
    "data-dir", "state-dir", "epsilon", "delta", "weights", "aligned", "cache-dir",
    "partition-id", "num-partitions",
}  # fmt: skip


def open_folder_site(context: Context) -> OpenSite:
    """Return the site that a node's configuration describes; whatever is missing is named."""
    settings = context.node_config
    unknown = sorted(set(settings) - _KNOWN)
    if unknown:
        raise InputError(f"unknown node setting {unknown[0]!r}", hint=f"known: {sorted(_KNOWN)}")

    def required(name: str) -> str | float:
        value = settings.get(name)
        if value is None:
            raise InputError(f"the node configuration misses {name!r}")
        return value

    state = make_private_directory(Path(str(required("state-dir"))))
    plan = PrivacyPlan(float(required("epsilon")), float(required("delta")))
    folder = _Folder(
        Path(str(required("data-dir"))),
        state,
        bool(settings.get("aligned", False)),
        str(settings["weights"]) if "weights" in settings else None,
        str(settings["cache-dir"]) if "cache-dir" in settings else None,
    )
    return OpenSite(
        site=Site.open(state, plan),
        public_directory=state / "public",
        model=lambda part: folder.rows(part).split.trainable,
        persons=folder.persons,
    )


class _Folder:
    """A folder of person folders, read when a round needs it."""

    def __init__(
        self, data: Path, state: Path, aligned: bool, weights: str | None, cache: str | None
    ) -> None:
        self._data, self._state, self._aligned = data, state, aligned
        self._weights = Path(weights) if weights else None
        self._cache = Path(cache) if cache else None
        self._rows: tuple[PublicPart, Rows] | None = None

    def rows(self, part: PublicPart) -> Rows:
        """Return the backbone cut for a run; model and persons of one message share it."""
        if self._rows is None or self._rows[0] is not part:
            self._rows = (part, self._cut(part))
        return self._rows[1]

    def _cut(self, part: PublicPart) -> Rows:
        """Cut this site's own backbone and load the public state that the server sent."""
        contract = part.contract
        backbone = _backbone(contract.backbone, self._weights)
        adapter = contract.train_set == "adapter"
        statistics = PublicStatistics.in_state(part.state) if adapter else None
        parts = split(backbone, contract.train_set, statistics)
        if model_id(dict(parts.frozen.state_dict())) != contract.frozen_id:
            raise Refused("the frozen part of the model differs from the agreed one")
        try:
            parts.trainable.load_state_dict(dict(part.state))
        except RuntimeError as error:
            raise Refused(f"the server's model does not fit {contract.backbone}") from error
        return Rows(backbone, parts, contract.train_set)

    def persons(self, part: PublicPart) -> Persons:
        """Detect, align and embed this site's images.

        Whatever is wrong with them is logged here and nowhere else: the server must not be able to
        tell a site whose images cannot be used from one whose can, so there are fewer persons then,
        or none, and the round goes on with its noise.
        """
        rows = self.rows(part)
        try:
            chips, names = self._faces(rows)
        except InputError as error:
            log.error("no private image takes part: %s", error)
            size = rows.backbone.chip.size
            chips, names = np.zeros((0, size, size, 3), np.uint8), []
        known = sorted(set(names))
        key, codes = self._code_key(), max(1, len(part.inputs))
        return Persons.group(
            rows.of(torch.from_numpy(chips)),
            [known.index(name) for name in names],
            [person_code(name, key, codes) for name in known],
            rows.prepare,
        )

    def _faces(self, rows: Rows) -> tuple[NDArray[np.uint8], list[str]]:
        """The usable chips [N, S, S, 3] and whose they are, sorted by person."""
        subjects = list_subjects(self._data)
        with ChipCache.open(self._cache) as cache:
            loaded = load_chips(
                images_of(subjects),
                spec=rows.backbone.chip,
                detector=DlibDetector(),
                cache=cache,
                aligned=self._aligned,
            )
        for entry in loaded.skipped:
            log.warning("not used: %s: %s", entry.path, entry.reason)
        labels = np.asarray(loaded.labels(subjects), dtype=np.int64)
        order = np.argsort([subjects[label].name for label in labels], kind="stable")
        return loaded.chips[order], [subjects[labels[row]].name for row in order.tolist()]

    def _code_key(self) -> bytes:
        """The site's own secret for codebook codes; made once."""
        path = self._state / "codes.key"
        if not path.exists():
            write_private(path, fresh_key())
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise InputError(f"{path} is damaged")
        return key


@lru_cache(maxsize=1)
def _backbone(name: str, weights: Path | None) -> Backbone:
    return create(name, weights=weights)


app = make_app(open_folder_site)
