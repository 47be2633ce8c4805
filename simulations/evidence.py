"""What a simulated run leaves for an auditor: a throw-away federation, and its sites' statements.

The same authority, bundles and signatures as in a deployment. But one machine plays all parties
and holds all their keys, so the signatures prove that nothing was changed since, and not that the
sites are independent: each statement says that it is of a simulation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from client.statement import evidence_of
from common.bundle import ROSTER, SERVER, Bundle
from common.errors import LedgerError
from common.ledger import Ledger, verify
from common.software import record_software
from common.storage import make_private_directory, write_private
from server.audit.collect import AUDIT, FEDERATION, STATEMENTS
from server.checkpoint import RoundRecord
from server.masked_rounds import Parties
from server.provisioning.federation import create
from server.provisioning.folder import bundle_path
from server.provisioning.request import Endpoint, Passphrases, Settings


def throw_away(run: Path, run_id: str, sites: Sequence[str]) -> None:
    """Make the federation of a simulated run, unless it is there."""
    folder = make_private_directory(run / AUDIT) / FEDERATION
    if not folder.exists():
        create(folder, _settings(run_id), tuple(sites), Passphrases())


def bundle_of(run: Path, run_id: str, party: str) -> Bundle:
    """Return the bundle of a simulated site, or of the server."""
    return Bundle.read(bundle_path(run / AUDIT / FEDERATION, _settings(run_id), party))


def parties_of(run: Path, run_id: str, sites: Sequence[str], *, numbered: bool) -> Parties:
    """Return who the nodes of a simulated run are, on the roster of its throw-away federation.

    `numbered`: node n is site n - 1, as in one process. Ray numbers nodes as it likes, so there
    the sites' signatures alone say it.
    """
    throw_away(run, run_id, sites)
    bundle = bundle_of(run, run_id, SERVER)
    return Parties(
        name_of=lambda node: sites[node - 1] if numbered else None,
        roster=lambda: bundle.file(ROSTER),
        key=bundle.roster_key,
    )


def _settings(run_id: str) -> Settings:
    return Settings(run_id, Endpoint("localhost", 443))


def leave_evidence(run: Path, run_id: str) -> None:
    """End the run in each ledger under `run`/sites, sign it, and write down which software ran."""
    sites = sorted(path.name for path in (run / "sites").iterdir())
    throw_away(run, run_id, sites)
    statements = make_private_directory(run / AUDIT / STATEMENTS)
    for site in sites:
        bundle = bundle_of(run, run_id, site)
        with Ledger.open(run / "sites" / site) as ledger:
            ledger.end(run_id)
        evidence = evidence_of(run / "sites" / site, bundle, public=run / "public", simulated=True)
        write_private(statements / f"{site}.json", evidence.to_bytes())
    record_software(run)


def check_ledgers(run: Path, run_id: str, history: Sequence[RoundRecord]) -> None:
    """Raise LedgerError where more updates of a round were used than ledgers reserved it.

    The rounds that a server accepted are the witness of ledgers that were taken away or put back:
    what a run states is read from its ledgers, and must not be of fewer rounds than there were.
    """
    ledgers = [verify(path.parent) for path in sorted(run.glob(f"sites/*/{Ledger.FILE_NAME}"))]
    reserved = Counter(r.round for one in ledgers for r in one.reservations if r.run_id == run_id)
    for record in history:
        if record.accepted > reserved[record.round]:
            raise LedgerError(
                f"round {record.round} used {record.accepted} updates, the ledgers know of "
                f"{reserved[record.round]}",
                hint="a ledger was removed or is an older one: restore it, or start another run",
            )
