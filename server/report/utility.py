"""What training changed: rates on public test faces before it, at its public start, and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.config import read_json, to_json
from common.metrics import Verification
from common.storage import write_private
from server.report.run_record import DetPoints

PUBLIC_SCORES: Final = ("fnmr_at_fmr_1e-2", "fnmr_at_fmr_1e-3")
_FILE: Final = "utility.json"


@dataclass(frozen=True)
class Utility:
    """Verification rates on public test persons, with 95% intervals; measured by the server.

    `public_only` is the model after its training on public images and before the private one: what
    nobody's privacy paid for; None where there was no such training.
    """

    before: Verification
    public_only: Verification | None
    after: Verification
    det_before: DetPoints
    det_after: DetPoints

    @property
    def start(self) -> Verification:
        """The rates from which private training started."""
        return self.public_only or self.before

    @property
    def gained_nothing(self) -> bool:
        """Whether neither TMR is above that from which private training started."""
        start, after = self.start, self.after
        return (
            after.tmr_at_fmr_1e2 <= start.tmr_at_fmr_1e2
            and after.tmr_at_fmr_1e3 <= start.tmr_at_fmr_1e3
        )


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
