"""What training gave, in the same words everywhere: one verdict, one colour, one recommendation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from common.paired import Verdict
from common.wording import STAGES, compared, plural
from server.report.run_record import RunRecord
from server.report.utility import RECOMMENDED, Released, Utility

# Green, grey, amber. Red is for what is not private.
Tone = Literal["good", "neutral", "amber"]
MEANING: Final = {
    "before": "the public model as it was",
    "public": "trained on public images alone, where private training starts",
    "alone": "each site with its own faces only: not noised, shown in simulations only",
    "after": "trained together, as released",
    "after_own": "federated, adapted at each site: not noised, shown in simulations only",
}
HEADS: Final[dict[Verdict, str]] = {
    "helped": "Private training helped",
    "no-difference": "Private training made no difference that can be told",
    "worse": "Private training made it worse",
}
_ALONE: Final[dict[Verdict, str]] = {
    "helped": "Federated is better than each site alone",
    "no-difference": "Federated and each site alone make no difference that can be told",
    "worse": "Each site alone is better than federated",
}
TONES: Final[dict[Verdict, Tone]] = {
    "helped": "good",
    "no-difference": "neutral",
    "worse": "amber",
}
UNTOLD: Final = "No verdict: an earlier version made this run and compared nothing"

HINT: Final = (
    "More persons, a larger epsilon or secure aggregation leave more to learn than the noise hides."
)


@dataclass(frozen=True)
class Said:
    """One thing that is told: a head, a sentence or two, and the colour of both."""

    tone: Tone
    head: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.head}. {self.text}" if self.text else f"{self.head}."


def told(utility: Utility) -> Said:
    """Return the verdict on a run."""
    if (found := utility.difference) is None:
        return Said("neutral", UNTOLD, "")
    start = STAGES[utility.best_public]
    return Said(TONES[found.verdict], HEADS[found.verdict], compared(found, start))


def told_alone(record: RunRecord) -> Said | None:
    """Return how federated stands beside each site alone; None where that was not simulated."""
    if (more := record.unreleased) is None:
        return None
    verdict = more.difference.verdict
    return Said(TONES[verdict], _ALONE[verdict], compared(more.difference, "alone"))


def recommended(utility: Utility) -> str:
    """Return which model to use, and on whom that was chosen; empty where nothing is known."""
    name = utility.recommended
    if name is None:
        return ""
    if not utility.judges:
        why = "there were no other public persons to choose on"
        return f"Recommended: {_use(name)}, since {why}."
    who = plural(utility.judges, "other public person")
    if name == "after":
        return f"Recommended: {_use(name)}. Chosen on {who}."
    return f"Recommended: {_use(name)}. On {who} nothing later was better by more than chance."


def _use(name: Released) -> str:
    if name == "before":
        return "the public model, before any training; no file is needed"
    if name == "public":
        return f"public only ({RECOMMENDED})"
    return "federated (model.safetensors)"


def amber(record: RunRecord) -> Iterator[str]:
    """Yield what must be read as a warning: worse than what came before it, or than alone."""
    for found in (told(record.utility), told_alone(record)):
        if found is not None and found.tone == "amber":
            yield found.line
