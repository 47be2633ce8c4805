"""What training changed: rates on public test faces before it, at its public start, and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from common.config import read_json, to_json
from common.errors import InputError
from common.metrics import DetCurve, Verification
from common.paired import Difference, Verdict
from common.storage import write_private

PUBLIC_SCORES: Final = ("fnmr_at_fmr_1e-2", "fnmr_at_fmr_1e-3")
# Stages of which there may be a model to use, in the order in which one must beat the other.
Released = Literal["before", "public", "after"]
# Beside `model.safetensors`, which is always the trained model: the one to use instead, where that
# is the public start. Where it is `before`, no file is needed.
RECOMMENDED: Final = "recommended.safetensors"
MODELS: Final = ("model.safetensors", RECOMMENDED)
_FILE: Final = "utility.json"


@dataclass(frozen=True)
class DetPoints:
    """A DET curve to draw: equally many FMR and FNMR in [0, 1]."""

    fmr: tuple[float, ...] = ()
    fnmr: tuple[float, ...] = ()

    @classmethod
    def of(cls, curve: DetCurve) -> DetPoints:
        return cls(tuple(curve.fmr.tolist()), tuple(curve.fnmr.tolist()))


@dataclass(frozen=True)
class Utility:
    """Verification rates on public test persons, with 95% intervals; measured by the server.

    Attributes:
        public_only: the model after its training on public images and before the private one: what
            nobody's privacy paid for; None where there was no such training.
        difference: what `after` is more than `best_public`, on the same persons. None in what an
            earlier version wrote, and so are the next three.
        judges: how many other public persons `recommended` was chosen on; 0: there were none, and
            nothing is recommended over the model as it was before.
    """

    before: Verification
    public_only: Verification | None
    after: Verification
    det_before: DetPoints
    det_after: DetPoints
    det_public: DetPoints | None = None
    difference: Difference | None = None
    recommended: Released | None = None
    judges: int = 0

    def __post_init__(self) -> None:
        for curve in (self.det_before, self.det_after, self.det_public):
            if curve is not None and len(curve.fmr) != len(curve.fnmr):
                raise InputError("a DET curve needs as many FMR as FNMR")
        if self.recommended == "public" and self.public_only is None:
            raise InputError("a stage that was not measured cannot be recommended")

    @property
    def best_public(self) -> Released:
        """The better public stage on these persons, by the mean of both TMRs."""
        public = self.public_only
        return "public" if public and mean_tmr(public) > mean_tmr(self.before) else "before"

    @property
    def start(self) -> Verification:
        """The rates of the better public stage: what private training must beat."""
        return (
            self.public_only if self.best_public == "public" and self.public_only else self.before
        )

    @property
    def verdict(self) -> Verdict | None:
        """What the difference says; None where an earlier version measured none."""
        return self.difference.verdict if self.difference else None

    @property
    def stages(self) -> tuple[tuple[Released, Verification], ...]:
        """The stages that there are, in their order."""
        middle: list[tuple[Released, Verification]] = []
        if self.public_only:
            middle = [("public", self.public_only)]
        return (("before", self.before), *middle, ("after", self.after))


def mean_tmr(rates: Verification) -> float:
    """What stages are ordered by: the mean of TMR at FMR 1e-2 and at 1e-3."""
    return (rates.tmr_at_fmr_1e2 + rates.tmr_at_fmr_1e3) / 2


def public_scores(found: Verification) -> dict[str, float]:
    """Return FNMR at two fixed FMR, by the names of `PUBLIC_SCORES`, as a server shows them."""
    rates = (1.0 - found.tmr_at_fmr_1e2, 1.0 - found.tmr_at_fmr_1e3)
    return dict(zip(PUBLIC_SCORES, rates, strict=True))


def write_utility(run: Path, utility: Utility) -> None:
    """Write a run's utility into its folder, whole or not at all."""
    write_private(run / _FILE, to_json(utility).encode())


def read_utility(run: Path) -> Utility | None:
    """Return what `write_utility` wrote into a run's folder; None where nothing was measured."""
    return read_json(Utility, run / _FILE)
