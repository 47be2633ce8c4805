"""How strong an epsilon is, in one word that a layman reads, and whose word it is.

The steps are the three tiers of Ponomareva et al. 2023, How to DP-fy ML (doi 10.1613/jair.1.14649):
strong formal guarantees at an epsilon of at most 1, reasonable ones up to 10, weak beyond. They are
meant for a delta below one over the number of persons.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final, Literal, get_args

from server.report.wording import epsilon

Strength = Literal["strong", "moderate", "weak"]
STRENGTHS: Final[tuple[Strength, ...]] = get_args(Strength)
STRONG, MODERATE = 1.0, 10.0  # the largest epsilon of each
TONES: Final[dict[Strength, Literal["good", "amber", "bad"]]] = {
    "strong": "good",
    "moderate": "amber",
    "weak": "bad",
}
WORDS: Final[dict[Strength, str]] = {
    "strong": "Strong: epsilon at most 1",
    "moderate": "Moderate: above 1, at most 10",
    "weak": "Weak: above 10",
}
SOURCE: Final = (
    "The scale is that of Ponomareva et al. 2023, How to DP-fy ML (JAIR 77, "
    "doi:10.1613/jair.1.14649), whose middle step is called reasonable."
)


def strength(value: float | None) -> Strength:
    """Return the step of an epsilon as it is shown, to two places rounded up; None is no bound."""
    if value is None:
        return "weak"
    shown = float(epsilon(value))
    return "strong" if shown <= STRONG else "moderate" if shown <= MODERATE else "weak"


def scale(found: Strength, words: Mapping[Strength, str]) -> str:
    """The three steps side by side as HTML, the one that was `found` marked."""
    here = {step: ' aria-current="true"' if step == found else "" for step in STRENGTHS}
    steps = "".join(
        f'<li class="{TONES[step]}"{here[step]}>{escape(words[step])}</li>' for step in STRENGTHS
    )
    return f'<ol class="scale">{steps}</ol>\n'
