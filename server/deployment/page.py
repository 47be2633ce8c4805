"""The server's status page and its API: read-only, behind a token, beside the front.

What it shows is the server's own view. It holds nothing of a site but what the site sent.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from fastapi import FastAPI, Request, Response

from common.bundle import SERVER_CERTIFICATE, SERVER_KEY
from common.bundle_options import must_be_of, open_from_stdin
from common.supervision import run_part
from common.web.answers import MAPPED, UNEXPECTED, answer
from common.web.guard import Guard
from common.web.journal import Journal
from common.web.limits import Buckets, Workers
from common.web.metrics import Metrics
from common.web.pages import page_files, pages
from common.web.server import Listen, bracketed, host_and_port, is_loopback, run
from common.web.tls import tls_context
from server.deployment import page_api
from server.deployment.folder import ServerFolder
from server.deployment.page_api import LOCAL, Page, Settings, page_of
from server.deployment.tokens import tokens_of

_FILES: Final = page_files(
    "server.deployment", ("main.js", "runs.js", "models.js", "words.js", "server.css")
)


def create_page(
    folder: ServerFolder, settings: Settings | None = None, journal: Journal | None = None
) -> FastAPI:
    """Return the application of a server's folder."""
    page = Page(
        folder, settings or Settings(), tokens_of(folder.path), journal or Journal(), Metrics(),
        Workers(2, 100), Buckets(20.0, 60), Buckets(0.2, 20), Buckets(50.0, 300),
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        page.storage.close()

    app = FastAPI(
        title="Veilface server", version="1", summary="Sites, runs, budgets and models.",
        docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan,
    )  # fmt: skip
    app.state.page = page
    app.include_router(page_api.router)
    app.include_router(pages(_FILES))
    app.add_middleware(Guard, service=page, open_paths={"/v1/health", *_FILES})
    for kind in MAPPED:
        app.add_exception_handler(kind, _answer)
    return app


async def _answer(request: Request, error: Exception) -> Response:
    request_id: str = request.scope["veilface.request"]
    if isinstance(error, UNEXPECTED):
        page_of(request).journal.failure(request_id, error)
    return answer(error, request_id)


def serve(folder: ServerFolder, listen: Listen, names: tuple[str, ...], journal: Journal) -> None:
    """Answer until SIGTERM; `names` are what people may call this server by."""
    hosts = (*LOCAL, bracketed(listen.host).lower(), *names)
    run(create_page(folder, Settings(hosts, listen.tls is not None), journal), listen, journal)


def names_in(certificate: bytes) -> tuple[str, ...]:
    """Return the host names that a PEM certificate is for, as they stand in a Host header."""
    found = x509.load_pem_x509_certificate(certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = (bracketed(str(ip)) for ip in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def main() -> None:
    """Be the page of a folder; a sealed bundle's passphrase is a line on standard input."""
    parser = argparse.ArgumentParser(prog="veilface-page")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--bundle", type=Path, required=True)
    given = parser.parse_args()

    def body() -> None:
        bundle, journal = open_from_stdin(given.bundle), Journal()
        must_be_of(bundle, server=True)
        certificate = bundle.file(SERVER_CERTIFICATE)
        host, port = host_and_port(given.listen)
        tls = None if is_loopback(host) else tls_context(certificate, bundle.file(SERVER_KEY))
        listen = Listen(host, port, tls)
        serve(ServerFolder(given.folder), listen, names_in(certificate), journal)

    run_part(body, verbose=False)


if __name__ == "__main__":
    main()
