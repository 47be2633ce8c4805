"""`veilface serve`: the REST service and web page of a site."""

from __future__ import annotations

from pathlib import Path

import click

from client.service.settings import Settings
from client.vault_options import VaultOptions, recogniser, vault_options
from common.errors import InputError
from common.web.journal import Journal
from common.web.server import Listen, bracketed, run
from common.web.tls import tls_files

_DEFAULTS = Settings()


@click.command()
@vault_options
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8443, show_default=True)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key, PEM.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A name clients may call it by.")
@click.option(
    "--rate",
    type=float,
    default=_DEFAULTS.rate,
    show_default=True,
    help="Requests a second of one token.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 1024),
    default=_DEFAULTS.at_once,
    show_default="one a core",
    help="Recognitions that run at the same time.",
)
def serve(
    options: VaultOptions,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    allow_host: tuple[str, ...],
    rate: float,
    at_once: int,
) -> None:
    """Serve a vault over REST, with a web page at / and the API's description at /docs.

    Off this machine it needs TLS. Make a token first: 'veilface template token create'. When the
    vault gets another key or network it ends (exit 3): start it again, with the new key.
    """
    if not 0.1 <= rate <= 1e6:
        raise InputError(f"--rate must lie in 0.1 to 1,000,000 a second, not {rate:g}")
    if not all(allow_host):
        raise InputError("--allow-host is empty", hint="a name that clients call the service by")
    listen = Listen(host, port, tls_files(tls_cert, tls_key))
    settings = Settings(
        hosts=(*_DEFAULTS.hosts, bracketed(host).lower(), *(name.lower() for name in allow_host)),
        tls=listen.tls is not None,
        rate=rate,
        burst=max(1, round(2 * rate)),
        at_once=at_once,
    )
    import torch  # here, so that --help needs none of it

    from client.service.app import create_app

    torch.set_num_threads(1)
    journal = Journal()
    with options.open() as vault:
        engine = recogniser(vault)
        run(create_app(engine, settings, journal), listen, journal, still=engine.still_current)
