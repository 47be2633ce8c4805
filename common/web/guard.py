"""What every request passes before any code of an endpoint: host, token, rate, size and time.

Nothing of a body is read before its token is known to be good, and nothing that an endpoint does
wrong reaches the client or the log as text.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.web.answers import Declined, answer
from common.web.journal import Journal
from common.web.limits import Buckets, network_of
from common.web.metrics import Metrics
from common.web.tokens import Tokens

CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": CSP,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), display-capture=()",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HSTS: Final = "max-age=31536000"
_GONE: Final = 499
_BEARER: Final = "send 'Authorization: Bearer TOKEN', with a token made here that still works"


class Bounds(Protocol):
    """What a service allows its clients.

    Attributes:
        hosts: names, without port, that a request's Host header may have.
        tls: whether the service itself speaks TLS (then answers carry HSTS).
        max_body, max_held: bytes of one body, and of all bodies in memory at once.
        timeout: seconds from a request's first byte to the end of its answer.
    """

    @property
    def hosts(self) -> tuple[str, ...]: ...
    @property
    def tls(self) -> bool: ...
    @property
    def max_body(self) -> int: ...
    @property
    def max_held(self) -> int: ...
    @property
    def timeout(self) -> float: ...


class Guarded(Protocol):
    """The parts of a service that the guard works with; the rates are by token or by address."""

    @property
    def settings(self) -> Bounds: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def journal(self) -> Journal: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def requests(self) -> Buckets: ...
    @property
    def failures(self) -> Buckets: ...
    @property
    def visitors(self) -> Buckets: ...


@dataclass
class _Exchange:
    """One request and what became of it."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    status: int = 0
    token: str | None = None
    held: int = 0


class Guard:
    """ASGI middleware; `open_paths` answer without a token."""

    def __init__(self, app: ASGIApp, service: Guarded, open_paths: Iterable[str]) -> None:
        self._app, self._service, self._open = app, service, frozenset(open_paths)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, began = _Exchange(), time.perf_counter()
        if scope["method"] == "HEAD":  # as GET, without the body (RFC 9110, 9.3.2)
            scope, send = {**scope, "method": "GET"}, _bodiless(send)
        scope["veilface.request"] = exchange.id
        headed = self._headed(exchange, send)
        wrong: Exception | None = None
        try:
            async with asyncio.timeout(self._service.settings.timeout):
                self._admit(scope, exchange)
                await self._app(scope, self._counted(exchange, receive), headed)
        except TimeoutError:
            wrong = Declined(503, "it took too long", retry_after=5)
        except ClientDisconnect:
            exchange.status = _GONE
        except Declined as error:
            wrong = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the client learns nothing of it
            self._service.journal.failure(exchange.id, error)
            wrong = error
        finally:
            self._held -= exchange.held
        if wrong is not None and exchange.status == 0:
            await answer(wrong, exchange.id)(scope, receive, headed)
        self._account(scope, exchange, time.perf_counter() - began)

    def _admit(self, scope: Scope, exchange: _Exchange) -> None:
        """Raise Declined unless the request may go on; put its token into the scope."""
        headers, service = Headers(scope=scope), self._service
        if _name(headers.get("host", "")) not in service.settings.hosts:
            raise Declined(400, "unknown host", hint="start the service with --allow-host")
        address = network_of(scope["client"][0] if scope.get("client") else "")
        if scope["path"] in self._open:
            wait = service.visitors.take(address)
        else:
            scheme, _, text = headers.get("authorization", "").partition(" ")
            token = service.tokens.find(text.strip() if scheme.lower() == "bearer" else "")
            if token is None:
                _slow_down(service.failures.take(address))
                raise Declined(401, "not authorised", hint=_BEARER)
            exchange.token, scope["veilface.token"] = token.id, token
            wait = service.requests.take(token.id)
        _slow_down(wait)
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > service.settings.max_body:
            raise _too_large(service.settings.max_body)

    def _counted(self, exchange: _Exchange, receive: Receive) -> Receive:
        """`receive` that declines when one body, or all together, become too large."""
        limits = self._service.settings

        async def counted() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            exchange.held += size
            self._held += size
            if exchange.held > limits.max_body:
                raise _too_large(limits.max_body)
            if self._held > limits.max_held:
                raise Declined(503, "too many uploads at the moment", retry_after=1)
            return message

        return counted

    def _headed(self, exchange: _Exchange, send: Send) -> Send:
        """`send` that adds the headers of every answer."""

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update({**_HEADERS, "X-Request-Id": exchange.id})
                if self._service.settings.tls:
                    headers["Strict-Transport-Security"] = _HSTS
            await send(message)

        return headed

    def _account(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        """Count and log the answer, by the template of its route."""
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
        self._service.metrics.observe(method, route, exchange.status, seconds)
        self._service.journal.write(
            "request", request=exchange.id, method=method, route=route, status=exchange.status,
            ms=round(seconds * 1000, 1), token=exchange.token,
        )  # fmt: skip


def _bodiless(send: Send) -> Send:
    """`send` that passes on an answer's status and headers, and none of its body."""

    async def bodiless(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return bodiless


def _name(host: str) -> str:
    """The host of a Host header, without its port, in lower case."""
    bare, colon, port = host.rpartition(":")
    return (bare if colon and port.isdecimal() else host).lower()


def _slow_down(wait: float) -> None:
    if wait:
        raise Declined(429, "too many requests", retry_after=wait)


def _too_large(limit: int) -> Declined:
    return Declined(413, f"more than {limit} bytes", hint="send fewer or smaller images")
