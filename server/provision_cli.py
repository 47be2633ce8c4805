"""`veilface provision`: a federation's keys, certificates and bundles, on one offline machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from common.errors import InputError
from server.provisioning.federation import Summary, add_sites, create, renew, revoke_sites
from server.provisioning.request import Endpoint, Passphrases, Settings

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--name", help="Makes a new federation of this name.")
@click.option("--server", metavar="HOST:PORT", help="Where sites reach its server.")
@click.option("--site", "sites", multiple=True, metavar="NAME", help="A site; once for each.")
@click.option("--config", type=_FILE, help="training.toml: what every site is asked to agree to.")
@click.option("--localhost", is_flag=True, help="The certificate also names localhost.")
@click.option("--days", type=int, help="Days that a server certificate is valid.  [default: 365]")
@click.option("--add-site", multiple=True, metavar="NAME", help="Admits a site to --out.")
@click.option("--revoke-site", multiple=True, metavar="NAME", help="Shuts a site out for good.")
@click.option("--renew", "renewal", is_flag=True, help="Renews the server's certificate if due.")
@click.option("--force", is_flag=True, help="With --renew: even if it is not due.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The federation's folder, new with --name.",
)
@click.option(
    "--passphrase-file",
    "passphrases",
    multiple=True,
    metavar="[PARTY=]FILE",
    help="Seals the keys in all bundles, or of one PARTY: a site, server, or ca.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def provision(
    name: str | None,
    server: str | None,
    sites: tuple[str, ...],
    config: Path | None,
    localhost: bool,
    days: int | None,
    add_site: tuple[str, ...],
    revoke_site: tuple[str, ...],
    renewal: bool,
    force: bool,
    out: Path,
    passphrases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a federation with --name, --server and --site, or change the one in --out.

    The folder holds the CA's key: keep it offline, and hand each party its own bundle.
    """
    asked = [name is not None, bool(add_site), bool(revoke_site), renewal]
    if sum(asked) != 1:
        raise InputError(
            "say one thing to do", hint="one of --name, --add-site, --revoke-site and --renew"
        )
    if name is None and (server or sites or config or localhost or days is not None):
        raise InputError(
            "--server, --site, --config, --localhost and --days belong to --name",
            hint="a site is added with --add-site",
        )
    if force and not renewal:
        raise InputError("--force belongs to --renew")
    out = out.absolute()
    read = Passphrases.read(passphrases, (*sites, *add_site))
    if name is not None:
        summary = _create(out, name, server, sites, config, localhost, days, read)
    elif add_site:
        summary = add_sites(out, add_site, read)
    elif revoke_site:
        summary = revoke_sites(out, revoke_site, read)
    else:
        summary = renew(out, read, force=force)
    click.echo(json.dumps(asdict(summary)) if as_json else _words(summary))


def _create(
    out: Path,
    name: str,
    server: str | None,
    sites: tuple[str, ...],
    config: Path | None,
    localhost: bool,
    days: int | None,
    passphrases: Passphrases,
) -> Summary:
    if server is None:
        raise InputError("--server is missing", hint="--server HOST:PORT")
    settings = Settings(name, Endpoint.parse(server), localhost, 365 if days is None else days)
    contract = None
    if config is not None:
        from common.terms import read_terms  # here: it imports torch

        contract = read_terms(config).to_bytes()
    return create(out, settings, sites, passphrases, contract=contract)


def _words(summary: Summary) -> str:
    lines = [] if summary.changed else ["Nothing to do."]
    lines += [
        f"{summary.federation} at {summary.server}: sites {', '.join(summary.sites) or 'none'}"
        + (f"; revoked {', '.join(summary.revoked)}" if summary.revoked else ""),
        f"fingerprint {summary.fingerprint} (tell it to each party by another way)",
        f"roster {summary.serial}: {summary.roster}",
        f"server certificate until {summary.certificate_expires}",
    ]
    return "\n".join([*lines, *(f"bundle {path}" for path in summary.bundles)])
