"""`veilface template token`: the tokens that open a site's service."""

from __future__ import annotations

import json

import click

from client.service.tokens import SCOPES, Tokens
from client.vault_options import VaultOptions, vault_options
from common.tables import print_table
from common.web.token_table import public, table_of

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def token() -> None:
    """The tokens with which clients reach the service of a vault."""


@token.command()
@vault_options
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES))
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Expires after so many.")
@_JSON
def create(
    options: VaultOptions, scopes: tuple[str, ...], days: float | None, as_json: bool
) -> None:
    """Make a token and print it, this once: the vault keeps only its hash."""
    with options.open() as vault:
        text, made = Tokens(vault).create(scopes, days)
    click.echo(json.dumps({"token": text, **public(made)}) if as_json else text)


@token.command(name="list")
@vault_options
@_JSON
def list_(options: VaultOptions, as_json: bool) -> None:
    """List the tokens by id, with what each may do and whether it still works."""
    with options.open() as vault:
        known = Tokens(vault).known()
    if as_json:
        click.echo(json.dumps({"tokens": [public(one) for one in known]}))
        return
    print_table(table_of(known))


@token.command()
@vault_options
@click.argument("token_id")
def revoke(options: VaultOptions, token_id: str) -> None:
    """Make the token TOKEN_ID useless, within a second also for a service that runs."""
    with options.open() as vault:
        Tokens(vault).revoke(token_id)
    click.echo(f"{token_id} is revoked")
