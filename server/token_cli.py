"""`veilface server token`: the tokens that open a server's status page and metrics."""

from __future__ import annotations

import json
from pathlib import Path

import click

from common.tables import print_table
from common.web.token_table import public, table_of
from server.deployment.folder import ServerFolder
from server.deployment.tokens import SCOPES, create_token, list_tokens, revoke_token

_STATE = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    required=True,
    help="The server's folder.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def token() -> None:
    """The tokens of the status page: `view` for people, `metrics` for Prometheus."""


@token.command()
@_STATE
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES))
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Expires after so many.")
@_JSON
def create(state: Path, scopes: tuple[str, ...], days: float | None, as_json: bool) -> None:
    """Make a token and print it, this once: the server keeps only its hash."""
    ServerFolder(state).roster()
    text, made = create_token(state, scopes, days)
    click.echo(json.dumps({"token": text, **public(made)}) if as_json else text)


@token.command(name="list")
@_STATE
@_JSON
def list_(state: Path, as_json: bool) -> None:
    """List the tokens by id, with what each may do and whether it still works."""
    ServerFolder(state).roster()
    known = list_tokens(state)
    if as_json:
        click.echo(json.dumps({"tokens": [public(one) for one in known]}))
    else:
        print_table(table_of(known))


@token.command()
@_STATE
@click.argument("token_id")
def revoke(state: Path, token_id: str) -> None:
    """Make the token TOKEN_ID useless, within a second also for a page that runs."""
    ServerFolder(state).roster()
    revoke_token(state, token_id)
    click.echo(f"{token_id} is revoked")
