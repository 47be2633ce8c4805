"""`veilface audit statement` and `vault-facts`: what a site hands to auditors, and nothing more."""

from __future__ import annotations

from pathlib import Path

import click

from client.consent import SitePolicy
from client.start import default_state, policy_path
from client.statement import evidence_of
from client.vault.facts import facts_of
from client.vault_options import VaultOptions, vault_options
from common.bundle_options import OpenedBundle, bundle_options
from common.errors import InputError
from common.ledger import Ledger
from common.storage import write_private

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUT = click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The file to write."
)


@click.command()
@click.argument(
    "state", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@bundle_options
@click.option("--policy", type=_FILE, help="What the site agreed to [default: STATE/policy.toml].")
@click.option("--end", "ended", multiple=True, metavar="RUN", help="Answer no more rounds of it.")
@_OUT
def statement(
    state: Path | None,
    opened: OpenedBundle,
    policy: Path | None,
    ended: tuple[str, ...],
    out: Path,
) -> None:
    """Sign this site's ledger in STATE for the audit report of its federation.

    STATE is where 'veilface site up' keeps it, if it was not told otherwise. The file holds the
    ledger (rounds, noise, budget), the policy, and no image, name or count of persons. A report
    holds only if each ledger in it goes up to the last round of its run, or the site has ended the
    run by --end: else a server could leave out what came after.
    """
    where = state or default_state(opened.bundle)
    if not where.is_dir():
        raise InputError(f"{where} is not there", hint="name the --state of 'veilface site up'")
    kept = policy_path(where)
    told = policy or (kept if kept.exists() else None)
    if told is None:
        click.echo(f"Note: {kept} is not there, so no policy is stated", err=True)
    agreed = SitePolicy.read(told) if told else None
    if ended:
        with Ledger.open(where) as ledger:
            for run_id in ended:
                ledger.end(run_id)
    write_private(out, evidence_of(where, opened.bundle, policy=agreed).to_bytes())
    click.echo(str(out))


@click.command(name="vault-facts")
@vault_options
@_OUT
def vault_facts(options: VaultOptions, out: Path) -> None:
    """Sign what an auditor may know of a vault: counts, encryption, rotations, erasures."""
    write_private(out, facts_of(options.where, options.lock()).encode())
    click.echo(str(out))
