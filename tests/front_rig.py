"""A federation, an upstream that records what arrives, and a front between them, as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from common.bundle import CA, NODE_KEY, ROSTER, ROSTER_KEY, Bundle
from common.storage import make_private_directory, write_private
from common.web.tls import trusting
from server.deployment.superlink import Inside
from server.provisioning.federation import create, revoke_sites
from server.provisioning.request import Endpoint, Passphrases, Settings
from tests.process_rig import until
from tests.provisioning_rig import OPEN, archive
from tests.serving_rig import served

Header = tuple[str, str]
_MAIN = "from server.deployment.front import main; main()"
_NOTHING = b""


@dataclass(frozen=True)
class Made:
    """A federation with sites a and b, and a revoked one, c; and its server's folder."""

    root: Path
    c: Path

    @property
    def folder(self) -> Path:
        return self.root / "state"

    @property
    def server(self) -> Path:
        return archive(self.root / "fed", "server")

    @cached_property
    def trust(self) -> ssl.SSLContext:
        return trusting(Bundle.read(self.server).file(CA))

    def key(self, site: str) -> ec.EllipticCurvePrivateKey:
        path = self.c if site == "c" else archive(self.root / "fed", site)
        key = load_ssh_private_key(Bundle.read(path).file(NODE_KEY), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def take_roster(self) -> None:
        """Bring the newest roster into the server's folder."""
        bundle = Bundle.read(self.server)
        write_private(make_private_directory(self.folder) / ROSTER_KEY, bundle.file(ROSTER_KEY))
        write_private(self.folder / ROSTER, (self.root / "fed/current/roster").read_bytes())


def federation(root: Path, passphrases: Passphrases = OPEN) -> Made:
    now = datetime.now(UTC)
    settings = Settings("fed", Endpoint("127.0.0.1", 8443))
    create(root / "fed", settings, ("a", "b", "c"), passphrases, now=now)
    kept = root / "c.tar.gz"
    kept.write_bytes(archive(root / "fed", "c").read_bytes())
    revoke_sites(root / "fed", ("c",), passphrases, now=now)
    made = Made(root, kept)
    made.take_roster()
    return made


def signed(
    key: ec.EllipticCurvePrivateKey, *, late: float = 0.0, by: Any = None, stamp: str | None = None
) -> list[Header]:
    """The headers of a node key, signed `late` seconds ago, by itself or by another key."""
    when = stamp or (datetime.now(UTC) - timedelta(seconds=late)).isoformat()
    return [
        (FLEET_HTTP_PUBLIC_KEY_HEADER, b64encode(public_key_to_bytes(key.public_key())).decode()),
        (TIMESTAMP_HEADER, when),
        (FLEET_HTTP_SIGNATURE_HEADER, b64encode(sign_message(by or key, when.encode())).decode()),
    ]


@dataclass
class Upstream:
    """Answers every request with `answer`, after `delay` seconds, and keeps what came."""

    inside: Inside
    answer: bytes = b"fine"
    delay: float = 0.0
    came: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            body += message.get("body", b"")
        if scope["path"] != "/health":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            self.came.append((scope["path"], headers, body))
        time.sleep(self.delay)
        length = str(len(self.answer)).encode()
        secret = [(b"server", b"inside"), (b"x-inside", b"1"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": secret})
        await send({"type": "http.response.body", "body": self.answer})

    @contextmanager
    def up(self) -> Iterator[None]:
        inside = self.inside
        with served(
            self, port=inside.port, lifespan="off",
            ssl_certfile=inside.certificate, ssl_keyfile=inside.key,
        ):  # fmt: skip
            yield


@dataclass(frozen=True)
class Running:
    """A front's process; `lines` is what it logged so far."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    trust: ssl.SSLContext

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def raw(self, request: bytes, *, patience: float = 10.0) -> bytes:
        """Send bytes over TLS and return all that comes until the front hangs up."""
        got = b""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=patience)
        with plain, self.trust.wrap_socket(plain, server_hostname="127.0.0.1") as line:
            try:
                line.sendall(request)
                while piece := line.recv(65536):
                    got += piece
            except (ConnectionError, ssl.SSLError):
                return got
        return got

    def post(
        self, path: str, headers: list[Header], body: bytes = _NOTHING, method: str = "POST"
    ) -> bytes:
        """Return the answer to a request of this request line and these headers, hung up after."""
        given = [*headers, ("Host", "x"), ("Connection", "close")]
        if not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
            given.append(("Content-Length", str(len(body))))
        head = "".join(f"{name}: {value}\r\n" for name, value in given)
        return self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)


def status(answer: bytes) -> int:
    """The status of an answer; 0 if the connection was closed without any."""
    return int(answer[9:12]) if answer else 0


@contextmanager
def front(
    made: Made, inside: Inside, log: Path, *, first: str = "", passphrase: str = ""
) -> Iterator[Running]:
    """Run the front's command; `first` is Python that runs before it."""
    command = [
        sys.executable, "-c", first + _MAIN, "--folder", str(made.folder),
        "--listen", "127.0.0.1:0", "--upstream", inside.address,
        "--upstream-ca", str(inside.certificate), "--bundle", str(made.server),
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(f"{passphrase}\n".encode() if passphrase else b"")
    process.stdin.close()
    try:
        until(lambda: b"listening" in log.read_bytes() or process.poll() is not None, log.read_text)
        assert process.poll() is None, log.read_text()
        where = json.loads(log.read_text().splitlines()[0])["url"]
        yield Running(process, int(where.rstrip("/").rpartition(":")[2]), log, made.trust)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
