"""`veilface serve`: the REST service and web page of a site; and the tokens that open it."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from client.service.app import create_app
from client.service.journal import Journal
from client.service.server import Listen, bracketed, run
from client.service.settings import Settings
from client.service.tokens import SCOPES, Token, Tokens
from client.vault_options import VaultOptions, recogniser, vault_options

_DEFAULTS = Settings()
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@vault_options
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8443, show_default=True)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key, PEM.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A name clients may call it by.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0.1),
    default=_DEFAULTS.rate,
    show_default=True,
    help="Requests a second of one token.",
)
@click.option(
    "--at-once", type=click.IntRange(min=1), help="Recognitions at once [default: cores]."
)
def serve(
    options: VaultOptions,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    allow_host: tuple[str, ...],
    rate: float,
    at_once: int | None,
) -> None:
    """Serve a vault over REST, with a web page at / and the API's description at /docs.

    Off this machine it needs TLS. Make a token first: 'veilface template token create'.
    """
    listen = Listen(host, port, tls_cert, tls_key)
    settings = Settings(
        hosts=(*_DEFAULTS.hosts, bracketed(host).lower(), *(name.lower() for name in allow_host)),
        tls=listen.tls,
        rate=rate,
        burst=max(1, round(2 * rate)),
        at_once=at_once or _DEFAULTS.at_once,
    )
    torch.set_num_threads(1)  # one recognition, one core: the pool runs as many as there are
    journal = Journal()
    with options.open() as vault:
        app = create_app(recogniser(vault), settings, journal)
        run(app, listen, journal)


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
