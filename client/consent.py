"""What a site agrees to: its own policy file, checked against every run before anything is read.

The server cannot widen it. The file is written by the site (or drawn from the terms in its bundle
by someone who says that they accept them) and has no defaults.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.app_bundle import app_hash, is_app_hash
from common.config import from_toml
from common.constants import check_delta
from common.contract import Contract, Trust
from common.errors import InputError, Refused
from common.masking.terms import Terms as MaskingTerms
from common.plan import PrivacyPlan, epsilon_after
from common.terms import Terms
from common.vocabulary import BACKBONES

_REMARKS: Final = {
    "epsilon": "  # of all runs together; what the first start finds here is for good",
    "epsilon_per_run": "  # of each run",
}


@dataclass(frozen=True)
class SitePolicy:
    """What `policy.toml` holds.

    Attributes:
        backbones: models that this site trains.
        epsilon, delta: budget of the data over all runs of all federations together, for life.
        epsilon_per_run: what one run may spend of it, at the same delta.
        rounds_per_run: how many rounds a run may have.
        trust: `local`, `secagg` or both: who adds the noise (docs/secagg.md).
        survivors, colluders: with `secagg`, the least number of sites that must be in each sum, and
            of colluding sites that a run must bear; both 0 without.
        code: hashes of the app bundles that this site takes part in; `veilface site policy` prints
            the one of the installed code.
        spent_elsewhere: what the same data spend on other machines, at the same delta, which is
            taken off the budget; not stated, the machine has to keep an odometer of the data.
    """

    backbones: tuple[str, ...]
    epsilon: float
    delta: float
    epsilon_per_run: float
    rounds_per_run: int
    trust: tuple[Trust, ...]
    survivors: int
    colluders: int
    code: tuple[str, ...]
    spent_elsewhere: float | None = None

    def __post_init__(self) -> None:
        for name in self.backbones:
            if name not in BACKBONES:
                raise InputError(f"policy: unknown backbone {name!r}", hint=", ".join(BACKBONES))
        for name in ("epsilon", "epsilon_per_run"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"policy: {name} must be positive and finite, not {value}")
        elsewhere = self.spent_elsewhere
        if elsewhere is not None and not (math.isfinite(elsewhere) and elsewhere >= 0):
            raise InputError(f"policy: spent_elsewhere must not be negative: {elsewhere}")
        check_delta(self.delta, name="policy: delta")
        if self.rounds_per_run < 1:
            raise InputError(f"policy: rounds_per_run must be at least 1: {self.rounds_per_run}")
        if not self.trust:
            raise InputError("policy: trust must list local, secagg or both")
        if "secagg" in self.trust:
            MaskingTerms(self.survivors, self.colluders)
        elif (self.survivors, self.colluders) != (0, 0):
            raise InputError("policy: survivors and colluders are 0 where trust has no secagg")
        if not self.code or not all(map(is_app_hash, self.code)):
            raise InputError(
                "policy: code must list hashes of app bundles, 64 hex digits each",
                hint="veilface site policy prints the hash of the installed code",
            )

    @classmethod
    def accepting(cls, terms: Terms, total: float | None = None) -> SitePolicy:
        """Return the policy that allows runs on these terms, with the installed code.

        `total` is the epsilon of all runs together; without it there is enough for one run. Less
        than one run costs is an InputError.
        """
        training = terms.training
        if training.epsilon is None:
            raise InputError("the terms state no epsilon")
        if total is not None and total < training.epsilon:
            raise InputError(
                f"a total of epsilon {total:g} is less than one run costs, {training.epsilon:g}",
                hint="agree to more, or to nothing",
            )
        return cls(
            backbones=(terms.backbone,),
            epsilon=training.epsilon if total is None else total,
            delta=training.delta,
            epsilon_per_run=training.epsilon,
            rounds_per_run=training.rounds,
            trust=(training.trust,),
            survivors=training.minimum_sites if training.trust == "secagg" else 0,
            colluders=training.colluders or 0,
            code=(app_hash(),),
        )

    @classmethod
    def read(cls, path: Path) -> SitePolicy:
        """Return the policy of a TOML file; a missing, unknown or unusable entry is named."""
        return from_toml(cls, path)

    def to_toml(self) -> str:
        """Return the policy as a TOML file that `read` takes."""
        lines = ["# What this site agrees to; the server cannot widen it."]
        for name, value in dataclasses.asdict(self).items():
            if value is None:
                continue
            if isinstance(value, tuple):
                value = "[" + ", ".join(f'"{entry}"' for entry in value) + "]"
            lines.append(f"{name} = {value}{_REMARKS.get(name, '')}")
        return "\n".join(lines) + "\n"

    @property
    def plan(self) -> PrivacyPlan:
        """The budget, as the ledger enforces it at each reservation."""
        return PrivacyPlan(
            self.epsilon,
            self.delta,
            epsilon_per_run=self.epsilon_per_run,
            elsewhere=self.spent_elsewhere or 0.0,
        )

    def check_code(self, app: str) -> None:
        """Raise Refused unless a run's bundle has an agreed hash."""
        if app not in self.code:
            raise Refused(
                f"the run has the app bundle {app[:16]}..., which the policy does not list",
                hint="after an update of Veilface on both sides, add the new hash to the policy",
            )

    def check_installed(self) -> None:
        """Raise Refused if the code that is installed here is not what was agreed to."""
        if app_hash() not in self.code:
            raise Refused(
                f"the installed Veilface is {app_hash()}, which the policy does not list",
                hint="review the update, then add this hash to `code` in the policy",
            )

    def check(self, contract: Contract) -> None:
        """Raise Refused unless a run is within the policy; its epsilon is recomputed."""
        if contract.backbone not in self.backbones:
            raise Refused(f"the policy allows no backbone {contract.backbone!r}")
        self._check_trust(contract)
        if contract.rounds > self.rounds_per_run:
            raise Refused(
                f"the run has {contract.rounds} rounds, the policy allows {self.rounds_per_run}"
            )
        if contract.privacy.delta != self.delta:
            raise Refused(
                f"the run states its epsilon at delta {contract.privacy.delta:g}, "
                f"the policy at {self.delta:g}"
            )
        planned = epsilon_after(contract, contract.rounds)
        if planned > self.epsilon_per_run * (1.0 + 1e-9):
            raise Refused(
                f"the run would spend epsilon {planned:.4f} at delta {self.delta:g}, the policy "
                f"allows {self.epsilon_per_run:g} a run"
            )

    def _check_trust(self, contract: Contract) -> None:
        if contract.trust not in self.trust:
            raise Refused(f"the policy allows no run of trust {contract.trust!r}")
        masking = contract.masking
        if masking and (masking.minimum < self.survivors or masking.colluders < self.colluders):
            raise Refused(
                f"sums of {masking.minimum} sites that bear {masking.colluders} colluders, the "
                f"policy wants {self.survivors} and {self.colluders}"
            )
