"""What `report.json` holds: evidence as it was handed in, and what was computed from it.

The text of the file is canonical: one way to write each report, so that not even a space can be
changed. `<`, `>` and `&` are escaped, so that the same text can stand inside a page.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final, Literal

from common.config import from_json, to_json
from common.contract import Contract
from common.errors import InputError, Refused
from common.metrics import Verification
from common.software import Software
from common.statement import Evidence
from server.report.run_record import DetPoints

FORMAT: Final = 1
_ESCAPES: Final = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"))


@dataclass(frozen=True)
class Refusal:
    """Answers of sites that the server did not use in one round, by node and reason."""

    round: int
    node: str
    reason: str


@dataclass(frozen=True)
class Round:
    """A finished round: how many updates the server used."""

    round: int
    accepted: int


@dataclass(frozen=True)
class Utility:
    """Verification rates on public test persons; measured by the server."""

    before: Verification
    public_only: Verification | None
    after: Verification
    det_before: DetPoints
    det_after: DetPoints


@dataclass(frozen=True)
class GroupRate:
    """An error rate in [0, 1] with its 95% interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """False matches in one demographic group, and false non-matches where they were measured."""

    group: str
    pairs: int
    fmr: GroupRate
    fnmr: GroupRate | None


@dataclass(frozen=True)
class WorstGroup:
    """The group with the most errors, and how many times the rate of all groups it has."""

    group: str
    ratio: float


@dataclass(frozen=True)
class Groups:
    """All groups at one threshold; the worst ones are None where nobody erred."""

    threshold: float
    worst: WorstGroup | None
    worst_missed: WorstGroup | None
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Colluders:
    """Epsilon against the server together with this many sites (secure aggregation only)."""

    sites: int
    epsilon: float | None


@dataclass(frozen=True)
class Facts:
    """The evidence: public constants, what sites signed, what the server recorded.

    Attributes:
        roster, roster_key: the signed list of sites, and the OpenSSH key that it is checked with.
        model: the id (SHA-256) of the released model, 64 hex digits.
        trust: `local`: each site adds all the noise itself, so `collusion` is empty.
        vaults: signed documents of vaults (see `common.vault_facts`).
    """

    run_id: str
    model: str
    trust: Literal["local"]
    contract: Contract
    roster: str
    roster_key: str
    sites: tuple[Evidence, ...]
    rounds: tuple[Round, ...]
    refusals: tuple[Refusal, ...]
    software: Software | None
    utility: Utility | None
    groups: Groups | None
    vaults: tuple[str, ...]


@dataclass(frozen=True)
class RoundSpending:
    """One access to private data: a round that a site reserved.

    Attributes:
        alone, total: epsilon of this round by itself, and of all up to it; None: no bound.
        released: whether an update left the site; it is charged either way.
    """

    run_id: str
    round: int
    noise_multiplier: float
    sample_rate: float
    steps: int
    max_grad_norm: float
    private: bool
    released: bool
    alone: float | None
    total: float | None


@dataclass(frozen=True)
class Spending:
    """What one site spent of its budget at `delta`; None: no bound."""

    site: str
    budget: float
    delta: float
    spent: float | None
    remaining: float
    rounds: tuple[RoundSpending, ...]


@dataclass(frozen=True)
class Posterior:
    """How sure an attacker with a `prior` becomes about a person who took part.

    `typical` is the median, `unlucky` what one person in twenty exceeds, and `bound` what is
    exceeded with probability at most delta. All are probabilities.
    """

    prior: float
    typical: float
    unlucky: float
    bound: float


@dataclass(frozen=True)
class TradeOff:
    """The best attack's least miss rate [n] at each false-alarm rate [n]."""

    false_alarm: tuple[float, ...]
    missed: tuple[float, ...]


@dataclass(frozen=True)
class Meaning:
    """What the worst site's releases allow the best possible attacker.

    Attributes:
        mu: the Gaussian parameter, where all steps are full batches; else None.
        guess: share of right guesses about a person as likely in as out.
    """

    site: str
    mu: float | None
    accountant: str
    second_accountant: str
    second: float
    guess: float
    trade_off: TradeOff
    posteriors: tuple[Posterior, ...]


@dataclass(frozen=True)
class Adversary:
    """Who looks (a key of the wording), and epsilon against them; None: no bound."""

    who: str
    epsilon: float | None
    guess: float


@dataclass(frozen=True)
class Findings:
    """All that was computed from the facts; `meaning` is None for a run without a bound."""

    spending: tuple[Spending, ...]
    meaning: Meaning | None
    adversaries: tuple[Adversary, ...]
    collusion: tuple[Colluders, ...]
    declared_persons: float

    def of(self, site: str) -> Spending:
        """Return a site's spending; one that is not there is an InputError."""
        for one in self.spending:
            if one.site == site:
                return one
        raise InputError(f"the report states nothing of {site}")


@dataclass(frozen=True)
class Seal:
    """How the server's name gets onto the report.

    Attributes:
        manifest: of the server's bundle, signed by the roster key; it names the certificate.
        certificate: of the server, PEM.
        key: the Ed25519 key that signs this report, OpenSSH.
        delegation: ECDSA signature over `key` by the certificate's key, hex.
        signature: the signed document with the SHA-256 of facts and findings.
    """

    manifest: str
    certificate: str
    key: str
    delegation: str
    signature: str


@dataclass(frozen=True)
class Report:
    """One audit report, made at `created` (UTC) by Veilface `veilface`."""

    format: int
    veilface: str
    created: str
    facts: Facts
    findings: Findings
    seal: Seal

    def to_text(self) -> str:
        """Return the canonical text."""
        text = json.dumps(json.loads(to_json(self)), indent=1, sort_keys=True)
        for plain, escaped in _ESCAPES:
            text = text.replace(plain, escaped)
        return text + "\n"

    @classmethod
    def from_text(cls, text: str) -> Report:
        """Return the report of a text; another form is an InputError, another text Refused."""
        report = from_json(cls, text, where="report")
        if report.format != FORMAT:
            raise InputError(f"a report of unknown format {report.format}")
        if report.to_text() != text:
            raise Refused("the text is not the canonical one of its values")
        return report


def digest_of(facts: Facts, findings: Findings, veilface: str, created: str) -> str:
    """Return the SHA-256 of all that the server signs, 64 hex digits."""
    parts = (to_json(facts), to_json(findings), veilface, created)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
