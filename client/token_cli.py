"""`veilface template token`: the tokens that open a site's service."""

from __future__ import annotations

import dataclasses
import json
import time

import click
from rich.console import Console
from rich.table import Table

from client.service.tokens import SCOPES, Tokens
from client.vault_options import VaultOptions, vault_options
from common.web.tokens import Token

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
    click.echo(json.dumps({"token": text, **_public(made)}) if as_json else text)


@token.command(name="list")
@vault_options
@_JSON
def list_(options: VaultOptions, as_json: bool) -> None:
    """List the tokens by id, with what each may do and whether it still works."""
    with options.open() as vault:
        known = Tokens(vault).known()
    if as_json:
        click.echo(json.dumps({"tokens": [_public(one) for one in known]}))
        return
    table = Table()
    for column in ("id", "scopes", "created", "expires", "revoked"):
        table.add_column(column)
    for one in known:
        table.add_row(one.id, one.scopes, *map(_day, (one.created, one.expires, one.revoked)))
    Console().print(table)


@token.command()
@vault_options
@click.argument("token_id")
def revoke(options: VaultOptions, token_id: str) -> None:
    """Make the token TOKEN_ID useless, within a second also for a service that runs."""
    with options.open() as vault:
        Tokens(vault).revoke(token_id)
    click.echo(f"{token_id} is revoked")


def _public(one: Token) -> dict[str, str | float | None]:
    """What may be shown of a token."""
    shown = dataclasses.asdict(one)
    del shown["digest"]
    return shown


def _day(moment: float | None) -> str:
    return "" if moment is None else time.strftime("%Y-%m-%d", time.gmtime(moment))
