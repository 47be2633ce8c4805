"""Persons in memory, each with their images, ready for training."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import InputError
from common.losses import PersonBatch


def person_code(subject_id: str, key: bytes, codes: int) -> int:
    """Return the person's row in a public codebook: HMAC-SHA-256(key, subject_id) mod `codes`.

    It depends on this person alone, never on who else is there. 256 bits modulo a small number
    are uniform to within 2^-200.
    """
    # A folder's name may be bytes that are no UTF-8; `surrogateescape` gives them back.
    name = subject_id.encode(errors="surrogateescape")
    digest = hmac.new(key, name, hashlib.sha256).digest()
    return int.from_bytes(digest, "big") % codes


@dataclass(frozen=True)
class Persons:
    """Images of P persons, grouped by person.

    Attributes:
        inputs: one row an image, [N, ...], as `Split.frozen` gave it (or uint8 chips).
        offsets: person p owns rows offsets[p] to offsets[p + 1]; length P + 1.
        codes: int64 [P], see `person_code`.
        prepare: what turns stored rows into the trainable part's input.
    """

    inputs: Tensor
    offsets: tuple[int, ...]
    codes: Tensor
    prepare: Callable[[Tensor], Tensor] = lambda rows: rows

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of who is here with which rows, 64 hex digits: it never leaves the site."""
        value = hashlib.sha256(f"{self.offsets} {self.inputs.shape} {self.inputs.dtype}".encode())
        for tensor in (self.codes, self.inputs):
            value.update(tensor.detach().contiguous().numpy().reshape(-1).data)
        return value.hexdigest()

    @staticmethod
    def group(
        inputs: Tensor,
        subjects: Sequence[int],
        codes: Sequence[int],
        prepare: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> Persons:
        """Group rows by their subject index (0..P-1, each at least once, in ascending order)."""
        counts = np.bincount(np.asarray(subjects, dtype=np.int64), minlength=len(codes))
        if np.any(np.diff(subjects) < 0) or len(counts) != len(codes) or np.any(counts == 0):
            raise InputError("rows must be sorted by subject and each subject needs an image")
        offsets = (0, *np.cumsum(counts).tolist())
        return Persons(inputs, offsets, torch.tensor(codes, dtype=torch.int64), prepare)

    def batch(
        self, persons: NDArray[np.intp], images_per_person: int, rng: np.random.Generator
    ) -> PersonBatch:
        """Return up to K random images of each person; the rows of a person depend on no other.

        The order in which `rng` is used does depend on how many persons there are, but a draw is
        independent of the images, so the distribution of a person's rows is unaffected.
        """
        index = np.zeros((len(persons), images_per_person), dtype=np.int64)
        present = np.zeros(index.shape, dtype=np.bool_)
        for row, person in enumerate(persons):
            first, last = self.offsets[person], self.offsets[person + 1]
            chosen = first + rng.permutation(last - first)[:images_per_person]
            index[row, : len(chosen)] = chosen
            present[row, : len(chosen)] = True
        flat = self.prepare(self.inputs[torch.from_numpy(index.reshape(-1))])
        mask = torch.from_numpy(present)
        shaped = flat.view(*index.shape, *flat.shape[1:])
        keep = mask.view(*mask.shape, *([1] * (shaped.dim() - 2)))
        return PersonBatch(
            shaped.masked_fill(~keep, 0), mask, self.codes[torch.from_numpy(persons)]
        )

    def stand_in(self, images_per_person: int) -> PersonBatch:
        """Return one made-up person with K blank images, in the shapes that real persons have."""
        blank = self.prepare(self.inputs.new_zeros(images_per_person, *self.inputs.shape[1:]))
        present = torch.ones(1, images_per_person, dtype=torch.bool)
        return PersonBatch(blank[None], present, torch.zeros(1, dtype=torch.int64))
