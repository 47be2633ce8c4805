"""Flower's SuperLink on the inside of the server: loopback, TLS of its own, no code of strangers.

Its Control and Runtime API share one port with the Fleet API and are open to whoever reaches it, so
nobody does but the front, which lets Fleet calls of known sites through, and the coordinator.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from sqlalchemy import URL

from common.errors import InputError
from common.storage import make_private_directory, write_private
from common.supervision import Part

_LOOPBACK: Final = "127.0.0.1"
# Flower contacts nobody, installs nothing, and keeps its files where ours are.
QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_LOG_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Inside:
    """Where the SuperLink listens, and the files with which its neighbours reach it.

    They live as long as one `server up` and open nothing but its loopback port.
    """

    directory: Path
    port: int

    @classmethod
    def make(cls, directory: Path) -> Inside:
        """Choose a free port, and make a certificate for it and the executor's secret.

        What a killed `server up` left in the directory is removed.
        """
        shutil.rmtree(directory, ignore_errors=True)
        make_private_directory(directory)
        with closing(socket.create_server((_LOOPBACK, 0))) as probe:
            port = int(probe.getsockname()[1])
        certificate, key = _self_signed()
        inside = cls(directory, port)
        write_private(inside.certificate, certificate)
        write_private(inside.key, key)
        write_private(inside.secret, secrets.token_bytes(32))
        return inside

    @property
    def address(self) -> str:
        return f"{_LOOPBACK}:{self.port}"

    @property
    def certificate(self) -> Path:
        return self.directory / "inside.crt"

    @property
    def key(self) -> Path:
        return self.directory / "inside.key"

    @property
    def secret(self) -> Path:
        return self.directory / "executor.secret"

    def part(self, database: Path) -> Part:
        """Return the SuperLink's process."""
        program = Path(sys.executable).parent / "flower-superlink"
        found = str(program) if program.exists() else shutil.which("flower-superlink")
        if found is None:
            raise InputError("flower-superlink is not installed", hint="pip install veilface")
        command = [
            *((sys.executable, "-P") if program.exists() else ()),
            found,
            *("--host", _LOOPBACK, "--port", str(self.port)),
            *("--ssl-ca-certfile", str(self.certificate)),
            *("--ssl-certfile", str(self.certificate), "--ssl-keyfile", str(self.key)),
            *("--enable-supernode-auth", "--database", _database_url(database)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self.secret)),
            "--disable-runtime-dependency-installation",
        ]
        home = {"FLWR_HOME": str(self.directory / "flwr")}
        return Part("superlink", tuple(command), {**QUIET, **home}, listens=self.address)

    def control(self) -> ControlHttpClient:
        """Return a client of the Control API."""
        return ControlHttpClient.from_server_address(
            self.address,
            False,
            self.certificate.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="veilface")],
        )


def _database_url(path: Path) -> str:
    """Return a file's address: Flower pastes a bare path into one, where ? and % are syntax."""
    try:
        url = URL.create("sqlite", database=str(path.absolute()))
        return url.render_as_string(hide_password=False)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path} has bytes in its name that are not UTF-8", hint="choose another --state"
        ) from error


def _self_signed() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Veilface SuperLink, inside")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(_LOOPBACK))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA384())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private
