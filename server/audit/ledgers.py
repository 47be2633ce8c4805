"""A site's word and its ledger in a report: checked by the same code as where it was written."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from common.errors import LedgerError, Refused
from common.ledger import Genesis, Ledger, LedgerReport, verify
from common.ledger_format import Head, encode_head
from common.roster import Roster
from common.signing import public_key
from common.statement import Evidence, Statement

HEAD = "ledger.head"


def check_statement(evidence: Evidence, roster: Roster) -> Statement:
    """Return a statement that its site on the roster signed; else raise Refused."""
    claimed = Statement.unverified(evidence.statement)
    keys = [
        site.signing_key for site in (*roster.sites, *roster.revoked) if site.name == claimed.site
    ]
    if claimed.federation != roster.federation or not keys:
        raise Refused(f"{claimed.site} of {claimed.federation} is not on the roster")
    return Statement.read(evidence.statement, public_key(keys[0].encode()))


def ledger_of(evidence: Evidence, statement: Statement) -> LedgerReport:
    """Return the ledger's entries; one that does not hold or end as stated is a LedgerError."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        head = Head(statement.ledger_seq, statement.ledger_head)
        (folder / HEAD).write_bytes(encode_head(head))
        text = "".join(f"{line}\n" for line in evidence.ledger)
        (folder / Ledger.FILE_NAME).write_text(text, encoding="utf-8", newline="")
        report = verify(folder)
    if report.findings:
        raise LedgerError(report.findings[0])
    if len(evidence.ledger) != statement.ledger_seq + 1:
        raise LedgerError("the ledger has more lines than the site signed for")
    return report


def genesis_of(report: LedgerReport) -> Genesis:
    """Return what a ledger that holds counts."""
    if report.genesis is None:
        raise LedgerError("the ledger has no genesis")
    return report.genesis
