"""What an enrolment may do, and which of its pictures are added.

To add to a person who is there is worth more than to enrol a stranger: whoever may, could make the
vault accept someone else as that person. So it takes a right of its own, the pictures must look
like the person, a person has a bounded number of templates, and a repeated picture is not added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.picture import Picture
from common.errors import ImageError, InputError, Refused

MOST_TEMPLATES: Final = 100  # of one person
_SAME: Final = 0.9998  # above it two templates are of one picture, also where they have 8 bits


@dataclass(frozen=True)
class Rights:
    """What someone who enrols may do: new persons, persons who are there, hear who looks alike."""

    enrol: bool = True
    extend: bool = True
    identify: bool = True

    def check(self, *, known: bool) -> None:
        """Raise Refused unless a person who is `known`, or is not, may get pictures."""
        if known and not self.extend:
            raise Refused(
                "this subject is enrolled already", hint="to add pictures takes the scope 'extend'"
            )
        if not known and not self.enrol:
            raise Refused("this subject is not enrolled", hint="that takes the scope 'enrol'")


def must_look_alike(
    pictures: Sequence[Picture], scores: NDArray[np.floating], threshold: float
) -> None:
    """Raise ImageError for the first picture whose best score [N] is below the threshold."""
    for picture, score in zip(pictures, scores, strict=True):
        if score < threshold:
            raise ImageError(
                f"{picture.name} does not look like the person who is enrolled under this name",
                hint="nothing was added; whoever has the vault's key can force it",
            )


def without_repeats(
    pictures: Sequence[Picture], rows: NDArray[np.float32], held: NDArray[np.float32]
) -> tuple[list[int], tuple[str, ...]]:
    """Return which pictures are new, and what to say of the others.

    `rows` [N, D] are the pictures' templates and `held` [n, D] those the person has, in the vault's
    space. More templates than a person may have: InputError.
    """
    new, words = list[int](), list[str]()
    for place, picture in enumerate(pictures):
        earlier = [other for other in new if rows[other] @ rows[place] >= _SAME]
        if len(held) and float((held @ rows[place]).max()) >= _SAME:
            words.append(f"{picture.name} is enrolled already and was not added again")
        elif earlier:
            twin = pictures[earlier[0]].name
            words.append(f"{picture.name} is the same picture as {twin} and was not added")
        else:
            new.append(place)
    if len(held) + len(new) > MOST_TEMPLATES:
        raise InputError(
            f"a person has at most {MOST_TEMPLATES} templates; this one has {len(held)}",
            hint="erase the person and enrol the best pictures",
        )
    return new, tuple(words)
