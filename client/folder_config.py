"""What a site is told of its own machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FolderConfig:
    """Where a site's faces and state lie.

    Attributes:
        data: one folder a person, images in it.
        state: ledger, releases and public parts; for this site alone (0700).
        aligned: the images are aligned chips already.
        weights: of a backbone that is not pretrained.
        cache: folder of the sealed chip cache; None is the user's own.
        odometer: where this machine keeps what its data have spent; None is the user's own.
        allow_duplicates: persons who hold the same files are different people; else they are taken
            for one.
    """

    data: Path
    state: Path
    aligned: bool = False
    weights: Path | None = None
    cache: Path | None = None
    odometer: Path | None = None
    allow_duplicates: bool = False
