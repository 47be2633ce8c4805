"""What `report.json` holds: evidence as it was handed in, and what was computed from it.

The text of the file is canonical: one way to write each report, so that not even a space can be
changed. `<`, `>` and `&` are escaped, so that the same text can stand inside a page.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from common.config import from_json, to_json
from common.contract import Contract, Trust
from common.errors import InputError, Refused
from common.ledger_format import Mechanism
from common.software import Software
from common.statement import Evidence
from server.audit.rates import Groups, Scores
from server.report.utility import Utility

FORMAT: Final = 2
READABLE: Final = (1, 2)
# What earlier versions did not measure; absent as a whole where nothing of it is there.
LATER_UTILITY: Final = ("det_public", "difference", "recommended", "judges")
_COMPACT: Final[dict[str, Any]] = {"sort_keys": True, "separators": (",", ":")}
_ESCAPES: Final = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"))


@dataclass(frozen=True)
class Refusal:
    """Answers of sites that the server did not use in one round, by node and reason."""

    round: int
    node: str
    reason: str


@dataclass(frozen=True)
class Round:
    """A finished round: how many updates the server used; 0 is a masked round without a sum."""

    round: int
    accepted: int


@dataclass(frozen=True)
class Colluders:
    """What is left against the server together with this many sites (secure aggregation only).

    Attributes:
        shares: the fewest other sites whose noise is in a sum of this run.
        epsilon, guess: the server keeps to the protocol.
        lying, lying_guess: it tells sites different stories besides.
    """

    sites: int
    shares: int
    epsilon: float | None
    guess: float
    lying: float | None
    lying_guess: float


@dataclass(frozen=True)
class Alone:
    """Epsilon of a site by its own noise alone: what it can be sure of, whoever else lies."""

    site: str
    epsilon: float | None
    guess: float


@dataclass(frozen=True)
class Facts:
    """The evidence: public constants, what sites signed, what the server recorded.

    Attributes:
        roster, roster_key: the signed list of sites, and the OpenSSH key that it is checked with.
        model: the id (SHA-256) of the released model, 64 hex digits.
        trust: `local`: each site adds all the noise itself; `secagg`: a share of it.
        vaults: signed documents of vaults (see `common.vault_facts`).
        scores: of the first and the last round that was scored, where there is no `utility`.
    """

    run_id: str
    model: str
    trust: Trust
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
    scores: tuple[Scores, ...] = ()


@dataclass(frozen=True)
class RoundSpending:
    """One access to private data: a round that a site reserved.

    Attributes:
        alone, total: epsilon of this round by itself, and of all up to it; None: no bound.
        released: whether an update left the site; it is charged either way.
        mechanism, shares: `discrete-shared`: the noise multiplier is that of so many sites' shares.
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
    mechanism: Mechanism = "gaussian"
    shares: int = 1


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
        mu: the Gaussian parameter, where all steps are Gaussian full batches; else None.
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
    """All that was computed from the facts; `meaning` is None for a run without a bound.

    `collusion` and `alone` are empty unless a site released masked updates.
    """

    spending: tuple[Spending, ...]
    meaning: Meaning | None
    adversaries: tuple[Adversary, ...]
    collusion: tuple[Colluders, ...]
    declared_persons: float
    alone: tuple[Alone, ...] = ()

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
        text = json.dumps(_written(self), indent=1, sort_keys=True)
        for plain, escaped in _ESCAPES:
            text = text.replace(plain, escaped)
        return text + "\n"

    @classmethod
    def from_text(cls, text: str) -> Report:
        """Return the report of a text; another form is an InputError, another text Refused."""
        report = from_json(cls, text, where="report")
        facts = report.facts
        compared = facts.utility is not None and facts.utility.difference is not None
        later = facts.trust != "local" or report.findings.collusion or facts.scores or compared
        if report.format not in READABLE or (report.format == 1 and later):
            raise InputError(f"a report of unknown format {report.format}")
        if "\n" in report.veilface + report.created:  # what is signed is joined by lines
            raise InputError("the report's time and version are one line each")
        if report.to_text() != text:
            raise Refused("the text is not the canonical one of its values")
        return report


def digest_of(
    facts: Facts, findings: Findings, veilface: str, created: str, form: int = FORMAT
) -> str:
    """Return the SHA-256 of all that the server signs, 64 hex digits; format 1 left itself out."""
    made = () if form == 1 else (str(form),)
    plain = (json.dumps(_written(one), **_COMPACT) for one in (facts, findings))
    return hashlib.sha256("\n".join((*plain, veilface, created, *made)).encode()).hexdigest()


def _written(part: Report | Facts | Findings) -> dict[str, Any]:
    """Return a part as plain values.

    What format 1 did not have is written only where it differs from its default, as in ledgers, so
    that a report of format 1 keeps its text and its signature.
    """
    found: dict[str, Any] = json.loads(to_json(part), object_hook=_without_defaults)
    return found


def _without_defaults(table: dict[str, Any]) -> dict[str, Any]:
    kept = dict(table)
    if (table.get("mechanism"), table.get("shares")) == ("gaussian", 1):
        del kept["mechanism"], kept["shares"]
    if "det_public" in table and not any(table[name] for name in LATER_UTILITY):
        for name in LATER_UTILITY:
            del kept[name]
    for name, other in (("scores", "refusals"), ("alone", "spending")):
        if other in table and table[name] == []:
            del kept[name]
    return kept
