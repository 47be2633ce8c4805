"""Running an application: listening, time limits, and a process that leaves no memory behind."""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.errors import InputError, Outdated, Refused, SealError, StorageError
from common.web.journal import Journal
from common.web.limits import network_of

_HANDSHAKE_WITHIN: Final = 10.0
_HEADERS_WITHIN: Final = 15.0
_IDLE: Final = 10
_STALLED_AFTER: Final = 60.0
_CONNECTIONS: Final = 2000
_CONNECTIONS_OF_ONE: Final = 200
_FILES: Final = 8192
_BACKLOG: Final = 1024
_PR_SET_DUMPABLE: Final = 4
_LOOKS_EVERY: Final = 1.0


@dataclass(frozen=True)
class Listen:
    """Where to listen, and TLS; port 0 is any free one.

    Raises Refused where what is served would cross a network in the clear.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        if self.tls is None and not is_loopback(self.host):
            raise Refused(
                f"{self.host} is not this machine alone, and there is no TLS",
                hint="give --tls-cert and --tls-key, or --host 127.0.0.1",
            )

    def open(self) -> list[socket.socket]:
        """Return listening sockets, one an address of the host; InputError if one is taken."""
        try:
            found = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            return [
                _bound(family, kind, protocol, address)
                for family, kind, protocol, _, address in dict.fromkeys(found)
            ]
        except OSError as error:
            where = f"{bracketed(self.host)}:{self.port}"
            raise InputError(f"cannot listen on {where}: {error.strerror}") from error

    def url(self, port: int) -> str:
        """The address of the page at the port that it got."""
        return f"{'http' if self.tls is None else 'https'}://{bracketed(self.host)}:{port}/"


def host_and_port(where: str) -> tuple[str, int]:
    """Return what HOST:PORT or [IPV6]:PORT says; anything else is an InputError."""
    host, _, port = where.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or bracketed(bare) != host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"{where!r} is no address", hint="HOST:PORT, or [IPV6]:PORT")
    return bare, int(port)


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


def run(
    app: ASGIApp,
    listen: Listen,
    journal: Journal,
    *,
    graceful: int = 30,
    still: Callable[[], None] | None = None,
) -> None:
    """Serve until interrupted; then requests have `graceful` seconds to end.

    `still` is called now and then in a thread. Once it raises Outdated the service ends in the same
    way, and the error is raised: a service that can only refuse keeps its clients from a new one.
    """
    leave_no_memory()
    _raise_file_limit()
    journal.take_over("uvicorn.error", "uvicorn", "python_multipart", "asyncio")
    sockets, tls = listen.open(), listen.tls
    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=graceful,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    server = uvicorn.Server(config)
    # uvicorn ends in order, and then raises the signal once more.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    journal.write("listening", url=listen.url(sockets[0].getsockname()[1]))
    with asyncio.Runner(loop_factory=_Loop) as runner:
        outdated = runner.run(_serve(server, sockets, still))
    if outdated is not None:
        journal.write("ended", why=outdated.message)
        raise outdated


async def _serve(
    server: uvicorn.Server, sockets: list[socket.socket], still: Callable[[], None] | None
) -> Outdated | None:
    """Serve to the end; returns what ended it, if that was not a signal."""
    if still is None:
        await server.serve(sockets)
        return None
    watch = asyncio.create_task(_watch(server, still))
    try:
        await server.serve(sockets)
    finally:
        watch.cancel()
        (ended,) = await asyncio.gather(watch, return_exceptions=True)
    return ended if isinstance(ended, Outdated) else None


async def _watch(server: uvicorn.Server, still: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_LOOKS_EVERY)
        try:
            await asyncio.to_thread(still)
        except Outdated:
            server.should_exit = True
            raise
        except (SealError, StorageError):
            continue  # of that the requests tell, and it may pass


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    # With the protocol named: asyncio switches Nagle's algorithm off only where it is.
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(address)
    made.listen(_BACKLOG)
    return made


def leave_no_memory() -> None:
    """Switch core dumps off and, on Linux, reading this process' memory by its own user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _raise_file_limit() -> None:
    """Let every connection have its file: the usual soft limit is below `_CONNECTIONS`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Loop(asyncio.SelectorEventLoop):
    """Gives a client less than asyncio's minute for the TLS handshake; uvicorn has no option."""

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = _HANDSHAKE_WITHIN
        server: asyncio.Server = await super().create_server(*args, **options)
        return server


class Impatient(H11Protocol):
    """Hangs up on who sends no whole request, does not read the answer, or connects too often."""

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        own = self._network()
        if sum(own == other._network() for other in self._others()) > _CONNECTIONS_OF_ONE:
            transport.abort()
        else:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = None
        elif self._deadline is None and not self.transport.is_closing():
            self._await_headers()  # of the next request; uvicorn's own timer ends with its 1st byte

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(_STALLED_AFTER, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def _await_headers(self) -> None:
        self._deadline = self.loop.call_later(_HEADERS_WITHIN, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _network(self) -> str:
        return network_of(self.client[0] if self.client else "")

    def _others(self) -> list[Impatient]:
        return [each for each in self.connections if isinstance(each, Impatient)]
