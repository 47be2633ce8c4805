"""Two networks measured on the same faces of a site: the one its vault has, and the one to come.

The faces are the pictures that the vault keeps or, where it keeps none that serve both networks, a
folder of persons. Pictures are kept as they were cut for a network: one that cuts them otherwise
cannot use them, and whoever has no others must enrol again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.recognition import Recogniser, network_id
from client.vault import Vault
from client.vault.migration import Embed
from common.dataset import ChipSet, images_of, list_subjects, load_chips
from common.detection import Detector
from common.errors import InputError
from common.face import ChipSpec
from common.metrics import PairScores, Verification, all_pairs
from common.network import Network
from common.paired import Difference, difference, measured

_PERSONS: Final = 500
_IMAGES: Final = 4  # of each


@dataclass(frozen=True)
class Trial:
    """Both networks on the same persons, and what the later one's rates are more."""

    persons: int
    before: Verification
    after: Verification
    difference: Difference


@dataclass(frozen=True)
class Outlook:
    """What a move to another network would do.

    Attributes:
        moves: persons who move by their kept pictures, or have templates of that network.
        must_enrol: persons who do not, by pseudonym.
        trial: the measurement; None where there was nothing to measure on, and `note` says why.
    """

    moves: int
    must_enrol: tuple[str, ...]
    trial: Trial | None
    note: str


@dataclass(frozen=True, eq=False)
class Side:
    """A network and the detector that goes with it."""

    network: Network
    detector: Detector

    @property
    def chip(self) -> ChipSpec:
        return self.network.backbone.chip


def outlook(vault: Vault, before: Side, after: Side, data: Path | None) -> Outlook:
    """Look at a move; measures on person folders in `data`, or on what the vault keeps."""
    new, moves, must_enrol = network_id(after.network), 0, list[str]()
    chips, labels = list[NDArray[np.uint8]](), list[int]()
    for one in sorted(vault.subjects(), key=lambda one: one.pseudonym):  # keyed: as if at random
        kept = [each for each in vault.chips(one.pseudonym) if fits(each, after.chip)]
        if kept or one.model_id == new:
            moves += 1
        else:
            must_enrol.append(one.pseudonym)
        if kept and len(chips) < _PERSONS:
            chips.append(np.concatenate(kept)[:_IMAGES])
            labels += [len(chips)] * len(chips[-1])
    trial, note = None, "the vault keeps no pictures that serve both networks"
    try:
        if data is not None:
            trial = _on_folder(data, before, after)
        elif chips and before.chip == after.chip:
            pictures = np.concatenate(chips)
            trial = _trial([_scores(side, pictures, labels) for side in (before, after)])
    except InputError as error:
        if data is not None:
            raise
        note = f"the pictures that the vault keeps are too few: {error.message}"
    return Outlook(moves, tuple(must_enrol), trial, "" if trial else note)


def embed_with(network: Network) -> Embed:
    """How a network makes rows of kept pictures, None of those that are cut for another."""

    def embed(chips: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        if not fits(chips, network.backbone.chip):
            return None
        return Recogniser.embedding_of(network, chips)

    return embed


def fits(chips: NDArray[np.uint8], spec: ChipSpec) -> bool:
    """Whether kept pictures were cut for networks of this kind: each kind has a size of its own."""
    return chips.shape[1:] == (spec.size, spec.size, 3)


def _on_folder(data: Path, before: Side, after: Side) -> Trial:
    subjects = list_subjects(data, at_least=2)
    loaded = [
        load_chips(images_of(subjects), spec=side.chip, detector=side.detector, cache=None)
        for side in (before, after)
    ]
    both = set(loaded[0].paths) & set(loaded[1].paths)
    if not both:
        raise InputError(f"no usable face in {data}")
    labels = loaded[0].labels(subjects)[[path in both for path in loaded[0].paths]].tolist()
    return _trial(
        [
            _scores(side, _of(some, both), labels)
            for side, some in zip((before, after), loaded, strict=True)
        ]
    )


def _of(loaded: ChipSet, paths: set[Path]) -> NDArray[np.uint8]:
    return loaded.chips[[path in paths for path in loaded.paths]]


def _scores(side: Side, chips: NDArray[np.uint8], labels: Sequence[int]) -> PairScores:
    rows = Recogniser.embedding_of(side.network, chips)
    numbers = np.asarray(labels, dtype=np.int64)
    return all_pairs(rows, numbers, probe_order=side.network.probe_order)


def _trial(scores: Sequence[PairScores]) -> Trial:
    before, after = (measured([each]) for each in scores)
    change = difference(after, before)
    return Trial(len(after.persons), before.verification, after.verification, change)
