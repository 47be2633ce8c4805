"""From sources to a sealed report."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

from server.audit.assess import assess
from server.audit.collect import Sources, collect
from server.audit.facts import FORMAT, Report, digest_of
from server.audit.seal import Signer


def build_report(sources: Sources, signer: Signer) -> Report:
    """Return the report of a run, signed; evidence that does not hold is refused."""
    facts = collect(sources)
    findings = assess(facts)
    created, veilface = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", version("veilface")
    sha256 = digest_of(facts, findings, veilface, created)
    return Report(FORMAT, veilface, created, facts, findings, signer.seal(sha256))
