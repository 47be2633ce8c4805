"""What there is to choose from: colours, haircuts, frames and cloth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Colour = tuple[float, float, float]
"""Linear red, green and blue in 0..1."""

SKIN: Final = (
    (244, 212, 194),
    (236, 196, 172),
    (224, 178, 146),
    (208, 158, 122),
    (182, 130, 96),
    (144, 100, 74),
    (106, 72, 55),
    (80, 54, 43),
)
HAIR: Final = (
    (19, 17, 17),
    (44, 30, 23),
    (82, 55, 36),
    (122, 86, 54),
    (182, 148, 96),
    (136, 64, 36),
)
IRIS: Final = (
    (46, 28, 19),
    (84, 52, 29),
    (108, 88, 48),
    (84, 108, 72),
    (84, 116, 150),
    (116, 128, 136),
)
CLOTH: Final = (
    (30, 30, 36),
    (225, 225, 222),
    (120, 32, 38),
    (38, 62, 110),
    (62, 92, 66),
    (196, 170, 120),
    (128, 128, 132),
)
FRAMES: Final = ((12, 12, 14), (70, 45, 30), (110, 100, 90), (30, 34, 60))
BLACK: Final = (0.004, 0.004, 0.004)


def palette(colours: tuple[tuple[int, int, int], ...], at: float) -> Colour:
    """The linear RGB between the 8-bit sRGB `colours`, `at` in 0..1 along them (gamma 2)."""
    place = min(max(at, 0.0), 0.9999) * (len(colours) - 1)
    low = int(place)
    red, green, blue = (
        ((a + (b - a) * (place - low)) / 255) ** 2
        for a, b in zip(colours[low], colours[low + 1], strict=True)
    )
    return red, green, blue


def mix(a: Colour, b: Colour, weight: float) -> Colour:
    """a (1 - weight) + b weight, channel by channel."""
    return (
        a[0] + (b[0] - a[0]) * weight,
        a[1] + (b[1] - a[1]) * weight,
        a[2] + (b[2] - a[2]) * weight,
    )


@dataclass(frozen=True)
class Haircut:
    """A way to wear hair.

    thick: share of the person's own thickness; side: where along the half head (0 middle, 1 edge)
    the hair falls, and `length` how far, in mm below the pupils; lower: mm that the hairline comes
    down; part: mm that one side is lower; temples: mm that they recede; grain, kink: texture
    across and along; rough, soft: mm of jagged and of blurred edge; dense: opacity; otherwise: how
    the same person sometimes wears it.
    """

    thick: float = 1.0
    side: float = 0.88
    length: float = 14.0
    lower: float = 0.0
    part: float = 2.0
    temples: float = 0.0
    grain: float = 90.0
    kink: float = 0.1
    rough: float = 2.5
    soft: float = 2.0
    dense: float = 1.0
    cloth: bool = False
    curtain: bool = False
    otherwise: str = "tied"


HAIRCUTS: Final = {
    "bald": Haircut(thick=0.12, lower=-90, otherwise="bald"),
    "receding": Haircut(lower=-16, temples=26, otherwise="buzz"),
    "buzz": Haircut(thick=0.2, rough=1.5, soft=7, dense=0.8, otherwise="short"),
    "short": Haircut(part=10, otherwise="fringe"),
    "parted": Haircut(thick=1.2, part=14, otherwise="short"),
    "fringe": Haircut(lower=26, rough=4, otherwise="parted"),
    "curly": Haircut(
        thick=1.8, side=0.84, length=22, grain=40, kink=0.7, rough=5, otherwise="tied"
    ),
    "bob": Haircut(side=0.66, length=70, part=10, curtain=True),
    "long": Haircut(side=0.68, length=180, part=10, curtain=True),
    "tied": Haircut(thick=0.5, side=0.93, length=8, otherwise="bob"),
    "hat": Haircut(thick=1.1, side=1.0, rough=0, cloth=True),
}
"""The first seven suit men here, the fourth to the tenth women; a hat is worn by anyone."""
