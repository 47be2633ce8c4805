"""Faces of some subjects, and what camera each image was seen through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.cameras import jittered, randomised
from common.face import ChipSpec
from common.randomness import derive_key, experiment_generator
from common.vocabulary import BankShift, Shift
from simulations.shifts import apply_shifts


@dataclass(frozen=True)
class Faces:
    """Chips of some subjects: uint8 [N, S, S, 3], rows sorted by subject index [N].

    `camera` [N] is the index, in the order in which the experiment names them, of the camera that
    each image was seen through; 0 where there is but one.
    """

    chips: Tensor
    subjects: tuple[str, ...]
    index: NDArray[np.int64]
    camera: NDArray[np.int64]


@dataclass(frozen=True)
class Pictures:
    """Aligned chips before any camera: uint8 [N, S, S, 3], SHA-256 of their files [N, 32].

    `rows` says which are whose; a person without a usable image is not in it.
    """

    chips: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    rows: Mapping[str, Sequence[int]]

    def persons(self, names: Sequence[str], at_least: int = 1) -> tuple[str, ...]:
        """Return those of the persons who have so many usable images."""
        return tuple(name for name in names if len(self.rows.get(name, ())) >= at_least)

    def digests_of(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the digest of each image of these persons."""
        for name in names:
            for row in self.rows.get(name, ()):
                yield self.digests[row].tobytes()

    def only(self, names: Sequence[str]) -> Pictures:
        """Return the pictures of these persons alone, in their order."""
        order = [row for name in names for row in self.rows[name]]
        ends = np.cumsum([len(self.rows[name]) for name in names]).tolist()
        starts = [0, *ends[:-1]]
        rows = {name: range(*part) for name, *part in zip(names, starts, ends, strict=True)}
        return Pictures(self.chips[order], self.digests[order], rows)

    def faces(
        self,
        names: Sequence[str],
        cameras: Sequence[int],
        shifts: Sequence[Shift],
        spec: ChipSpec,
    ) -> Faces:
        """Return the faces of these persons, all of a person's through one camera of `shifts`."""
        order = [row for name in names for row in self.rows[name]]
        counts = [len(self.rows[name]) for name in names]
        index = np.repeat(np.arange(len(names)), counts).astype(np.int64)
        camera = np.asarray(cameras, np.int64)[index]
        seen = apply_shifts(self.chips[order], self.digests[order], camera, shifts, spec=spec)
        return Faces(torch.from_numpy(seen), tuple(names), index, camera)


@dataclass(frozen=True)
class Bank:
    """A simulation's public bank before and behind its camera.

    Attributes:
        clean: the pictures of `persons`, and of nobody else.
        kind: `none`: seen as they are. `same`: through the sites' cameras, dealt to the images in
            turn. `randomised`: each through a plausible camera of its own that no site has.
        shifts: the sites' cameras.
        seed: of what is random; public.
    """

    clean: Pictures
    persons: tuple[str, ...]
    kind: BankShift
    shifts: tuple[Shift, ...]
    spec: ChipSpec
    seed: int

    def seen(self) -> Faces:
        """Return the bank as its camera sees it."""
        faces = self._unseen()
        return self._through(faces, self.clean.digests, "")

    def views(self) -> tuple[Faces, Faces]:
        """Return two more looks at each image, independently jittered and with fresh noise."""
        faces = self._unseen()
        return self._look(faces, "first"), self._look(faces, "second")

    def _unseen(self) -> Faces:
        return self.clean.faces(self.persons, [0] * len(self.persons), ("none",), self.spec)

    def _look(self, faces: Faces, view: str) -> Faces:
        chips = jittered(faces.chips, experiment_generator(self.seed, "bank jitter", view))
        # A shift takes its noise from the image's digest: another digest, other noise.
        fresh = [derive_key(one.tobytes(), "bank view", view) for one in self.clean.digests]
        digests = np.frombuffer(b"".join(fresh), np.uint8).reshape(-1, 32)
        return self._through(replace(faces, chips=chips), digests, view)

    def _through(self, faces: Faces, digests: NDArray[np.uint8], view: str) -> Faces:
        if self.kind == "randomised":
            generator = experiment_generator(self.seed, "bank cameras", view)
            return replace(faces, chips=randomised(faces.chips, generator))
        if self.kind == "none":
            return faces
        camera = np.arange(len(faces.chips), dtype=np.int64) % len(self.shifts)
        chips = apply_shifts(faces.chips.numpy(), digests, camera, self.shifts, spec=self.spec)
        return replace(faces, chips=torch.from_numpy(chips), camera=camera)
