"""The server's one published port: TLS 1.3, and behind it only what a site of the roster needs.

Flower's SuperLink puts its Control and Runtime API on the port of its Fleet API, and they are open
to whoever reaches it. The front forwards nine calls of the Fleet API, of sites whose node key
signed them, and is blind and deaf to the rest (docs/decisions/0009-own-front.md).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
from starlette.types import Message, Receive, Scope, Send

from common.bundle import SERVER_CERTIFICATE, SERVER_KEY
from common.bundle_options import must_be_of, open_from_stdin
from common.errors import StorageError
from common.supervision import run_part
from common.web.journal import Journal
from common.web.limits import Buckets, network_of
from common.web.server import Listen, host_and_port, run
from common.web.tls import tls_context, trusting
from server.deployment.admission import (
    Call,
    Door,
    Turned,
    call_of,
    check_own,
    length_of,
    must_be_own,
    signed_headers,
)
from server.deployment.front_counts import Tally

_CALLS_OF_ONE: Final = 8
_CALLS: Final = 64
# A call ends within the first, and pauses no longer than the second; an object of 5 MiB then needs
# 350 kbit/s.
_CALL_WITHIN: Final = 120.0
_PAUSE: Final = 15.0
_GRACE: Final = 10
_SAVE_EVERY: Final = 5.0
_HEALTH_FOR: Final = 1.0
_RETRY: Final = (b"retry-after", b"1")
_VERSION: Final = (b"flwr-package-name", b"flwr-package-version", b"flwr-component-name")
_ANSWERED: Final = (b"content-type", b"content-length", b"flwr-version-incompatibility-message")


class Front:
    """The ASGI application.

    Memory is bounded: of each of at most `_CALLS` calls it holds one piece, or a body of 128 KiB.
    """

    def __init__(self, folder: Path, upstream: str, upstream_ca: bytes, journal: Journal) -> None:
        self._upstream, self._trust = f"https://{upstream}", trusting(upstream_ca)
        self._door, self._tally = Door(folder), Tally(folder)
        self._journal, self._log = journal, _Refusals(journal)
        self._running = Counter[str]()
        self._client: httpx.AsyncClient
        self._health = (0.0, 503)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif (scope["method"], scope["raw_path"]) == ("GET", b"/health"):
            await _say(send, await self._healthy())
        else:
            await self._pass(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        limits = httpx.Limits(max_connections=_CALLS + 1, max_keepalive_connections=_CALLS)
        async with httpx.AsyncClient(
            base_url=self._upstream, verify=self._trust, trust_env=False, limits=limits,
            timeout=httpx.Timeout(_CALL_WITHIN / 2, connect=5, pool=5),
        ) as self._client:  # fmt: skip
            saving = asyncio.create_task(self._save())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            saving.cancel()
            self._tally.save()
        await send({"type": "lifespan.shutdown.complete"})

    async def _save(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._tally.save)
            except StorageError as error:
                self._journal.write(
                    "trouble", text=error.message
                )  # counting is not worth stopping for
            await asyncio.sleep(_SAVE_EVERY)

    async def _healthy(self) -> int:
        """200 if SuperLink answers; whoever asks, it is asked once a second at most."""
        asked, status = self._health
        if time.monotonic() - asked > _HEALTH_FOR:
            self._health = (time.monotonic(), status)
            try:
                answer = await self._client.get("/health", timeout=5)
                status = 200 if answer.status_code == 200 else 503
            except httpx.TransportError:
                status = 503
            self._health = (time.monotonic(), status)
        return status

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a call, or turn it away and hang up: every further try costs a handshake."""
        who = network_of(scope["client"][0] if scope.get("client") else "")
        reply = _Reply(send)
        try:
            call = call_of(scope["method"], scope["raw_path"], scope["query_string"])
            who = self._door.admit(scope["headers"])
            length = length_of(scope["headers"], call)
            with self._place(who):
                async with asyncio.timeout(_CALL_WITHIN):
                    await self._forward(call, scope, _Body(receive, length), reply)
            return
        except TimeoutError:
            turned = Turned(503, "slow")
        except httpx.TransportError:
            turned = Turned(503, "unavailable")
        except Turned as error:
            turned = error
        except Exception as error:  # noqa: BLE001 - whatever it is, a stranger learns nothing of it
            self._journal.failure(who, error)
            turned = Turned(500, "failure")
        self._tally.refused[turned.reason] += 1
        self._log.refusal(who, scope["raw_path"], turned.reason)
        if not reply.begun:
            await _say(send, turned.status, turned.said)

    @contextmanager
    def _place(self, site: str) -> Iterator[None]:
        if self._running[site] >= _CALLS_OF_ONE or self._running.total() >= _CALLS:
            raise Turned(503, "busy")
        self._running[site] += 1
        try:
            yield
        finally:
            self._running[site] -= 1

    async def _forward(self, call: Call, scope: Scope, body: _Body, reply: _Reply) -> None:
        content: bytes | AsyncIterator[bytes] = body.pieces()
        if not call.streamed:
            content = b"".join([piece async for piece in body.pieces()])
            if must_be_own(call):
                check_own(content)
        headers = [
            *signed_headers(scope["headers"]),
            *((name, value) for name, value in scope["headers"] if name in _VERSION),
            (b"content-type", b"application/protobuf"),
            (b"accept", b"application/protobuf"),
            (b"accept-encoding", b"identity"),
            (b"content-length", str(body.length).encode()),
        ]
        async with self._client.stream("POST", call.path, content=content, headers=headers) as got:
            kept = [(n.lower(), v) for n, v in got.headers.raw if n.lower() in _ANSWERED]
            await reply.start(got.status_code, kept)
            async for piece in got.aiter_raw():
                self._tally.sent += len(piece)
                await reply.more(piece)
            await reply.end()
        self._tally.received += body.length
        self._tally.passed[f"{call.name} {got.status_code}"] += 1


class _Body:
    """A request's body as it comes."""

    def __init__(self, receive: Receive, length: int) -> None:
        self._receive, self.length = receive, length

    async def pieces(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            async with asyncio.timeout(_PAUSE):
                message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Turned(499, "gone")
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]


class _Reply:
    """An answer on its way; once it has begun, it can only be broken off."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun = send, False

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def more(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _say(send: Send, status: int, body: bytes = b"") -> None:
    """Answer with next to nothing, and hang up."""
    headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if body:
        headers.append((b"content-type", b"application/json"))
    if status == 503:
        headers.append(_RETRY)
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    with suppress(OSError):
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": False})


class _Refusals:
    """One line a refusal, some a second from one sender and from all; the rest as a number."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._unsaid = journal, 0
        self._each, self._all = Buckets(0.2, 10), Buckets(5.0, 100)

    def refusal(self, who: str, path: bytes, reason: str) -> None:
        if self._each.take(who) or self._all.take(""):
            self._unsaid += 1
            return
        shown = path[:80].decode("ascii", "backslashreplace")
        unsaid, self._unsaid = self._unsaid or None, 0
        self._journal.write("refused", who=who, path=shown, reason=reason, unsaid=unsaid)


def create_front(
    folder: Path, upstream: str, upstream_ca: bytes, journal: Journal | None = None
) -> Front:
    """Return the application of a server's folder, before a SuperLink at HOST:PORT.

    `upstream_ca` is the PEM certificate that the SuperLink's is checked against.
    """
    return Front(folder, upstream, upstream_ca, journal or Journal())


def serve(front: Front, listen: Listen, journal: Journal) -> None:
    """Answer until SIGTERM; calls that run then have ten seconds to end."""
    run(front, listen, journal, graceful=_GRACE)


def main() -> None:
    """Be the front of a folder; a sealed bundle's passphrase is a line on standard input."""
    parser = argparse.ArgumentParser(prog="veilface-front")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--upstream-ca", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    given = parser.parse_args()

    def body() -> None:
        bundle, journal = open_from_stdin(given.bundle), Journal()
        must_be_of(bundle, server=True)
        tls = tls_context(bundle.file(SERVER_CERTIFICATE), bundle.file(SERVER_KEY))
        front = create_front(given.folder, given.upstream, given.upstream_ca.read_bytes(), journal)
        serve(front, Listen(*host_and_port(given.listen), tls), journal)

    run_part(body, verbose=False)


if __name__ == "__main__":
    main()
