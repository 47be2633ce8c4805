"""A site's evidence for an audit: its ledger as it stands, and its signed word for it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from client.consent import SitePolicy
from common.bundle import SIGNING_KEY, Bundle
from common.errors import LedgerError, Refused
from common.ledger import Ledger, verify
from common.ledger_format import GENESIS_HASH, decode_line
from common.software import installed_software
from common.statement import Consent, Evidence, Statement


def evidence_of(
    state: Path,
    bundle: Bundle,
    *,
    policy: SitePolicy | None = None,
    public: Path | None = None,
    simulated: bool = False,
) -> Evidence:
    """Return the evidence of a site's state directory, signed with its bundle's signing key.

    `public` is where the site keeps what servers sent it, by default in its state directory.
    Raises LedgerError for a ledger that does not hold, InputError where there is none or the
    bundle's keys are sealed, and Refused for a key of another kind.
    """
    report = verify(state)
    if report.findings:
        raise LedgerError(f"{state}: {report.findings[0]}", hint="see 'veilface ledger verify'")
    ledger = (state / Ledger.FILE_NAME).read_text(encoding="ascii")
    lines = tuple(ledger[: ledger.rfind("\n")].split("\n"))
    head = GENESIS_HASH
    for number, line in enumerate(lines):
        head = decode_line(f"{line}\n".encode(), number, head).hash
    key = load_ssh_private_key(bundle.file(SIGNING_KEY), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused("the bundle's signing key is not an Ed25519 key")
    statement = Statement(
        federation=bundle.manifest.federation,
        site=bundle.manifest.party,
        issued=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        ledger_seq=len(lines) - 1,
        ledger_head=head,
        contracts=tuple(
            sorted(path.stem for path in (public or state / "public").glob("*.safetensors"))
        ),
        software=installed_software(),
        consent=_consent(policy) if policy else None,
        simulated=simulated,
    )
    return Evidence(statement.signed(key), lines)


def _consent(policy: SitePolicy) -> Consent:
    """The policy, less what the data spend elsewhere: that is no federation's affair."""
    limits = dataclasses.asdict(policy)
    del limits["spent_elsewhere"]
    return Consent(**limits)
