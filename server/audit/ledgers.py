"""A site's ledger as it stands in a report: checked by the same code that checks it at the site."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from common.errors import LedgerError
from common.ledger import Genesis, Ledger, LedgerReport, verify
from common.ledger_format import Head, encode_head
from common.statement import Evidence, Statement

HEAD = "ledger.head"


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
