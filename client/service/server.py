"""Running the application: TLS, timeouts, and a process that leaves no memory behind."""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import resource
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from client.service.journal import Journal
from common.errors import InputError, Refused

_HEADERS_WITHIN: Final = 15.0
_CONNECTIONS: Final = 1000
_PR_SET_DUMPABLE: Final = 4


@dataclass(frozen=True)
class Listen:
    """Where to listen, and the certificate and key of TLS.

    Raises Refused where people's faces would cross a network in the clear.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InputError("TLS needs both --tls-cert and --tls-key")
        if self.certificate is None and not is_loopback(self.host):
            raise Refused(
                f"{self.host} is not this machine alone, and there is no TLS",
                hint="give --tls-cert and --tls-key, or --host 127.0.0.1",
            )

    @property
    def tls(self) -> bool:
        """Whether the service itself speaks TLS."""
        return self.certificate is not None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"{'https' if self.tls else 'http'}://{bracketed(self.host)}:{self.port}/"


def bracketed(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; of names only `localhost` is trusted."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(app: FastAPI, listen: Listen, journal: Journal) -> None:
    """Serve until interrupted."""
    leave_no_memory()
    journal.take_over("uvicorn.error", "uvicorn", "python_multipart", "asyncio")
    if listen.certificate is not None and listen.key is not None:
        check_certificate(listen.certificate, listen.key)
    config = uvicorn.Config(
        app,
        host=listen.host,
        port=listen.port,
        http=_Impatient,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=30,
        ssl_certfile=listen.certificate,
        ssl_keyfile=listen.key,
    )
    server = uvicorn.Server(config)
    journal.write("listening", url=listen.url)
    server.run()


def check_certificate(certificate: Path, key: Path) -> None:
    """Raise InputError unless TLS can be spoken with these files."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise InputError(
            f"cannot use {certificate} with {key}", hint="PEM files of one pair, key not encrypted"
        ) from error


def leave_no_memory() -> None:
    """Switch core dumps off and, on Linux, reading this process' memory by its own user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class _Impatient(H11Protocol):
    """Hangs up on who connects and does not send a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(_HEADERS_WITHIN, self._expire)

    def _expire(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()
