"""The service as a process of its own: started by the command, over real sockets and TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.serve_cli import serve
from client.service.load import load
from client.service.tokens import SCOPES
from client.template_cli import template
from client.token_cli import token
from common.errors import InputError, Refused, VeilfaceError
from common.web.server import is_loopback
from common.web.tls import tls_files
from tests.process_rig import free_port, listens, processes, until
from tests.service_rig import CANARY, Site, faces, new_site

_TRAVERSALS = (
    b"/static/../../vault/vault.py",
    b"/static/..%2f..%2f..%2fetc%2fpasswd",
    b"//etc/passwd",
    b"/static/\\..\\api.py",
    b"http://evil.example/",
)
_COMMAND = "from client.serve_cli import serve; serve(prog_name='serve')"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with new_site(tmp_path_factory.mktemp("site")) as made:
        made.calibrate(0.99)
        yield made


def _opened_by(site: Site) -> list[str]:
    return ["--vault", site.options.where, "--key-file", str(site.options.key_file)]


@contextmanager
def _running(
    site: Site, log: Path, *more: str, verify: Any = True, first: str = ""
) -> Iterator[tuple[httpx.Client, int]]:
    """The command in a process that logs to a file; yields a client for it and its process id."""
    port = free_port()
    command = [sys.executable, "-c", first + _COMMAND, *_opened_by(site), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    scheme = "https" if "--tls-cert" in more else "http"
    with processes(([*command, *more], log, environment)) as (process,):
        until(lambda: listens("127.0.0.1", port) or process.poll() is not None, log.read_text)
        with httpx.Client(base_url=f"{scheme}://localhost:{port}", verify=verify) as client:
            yield client, process.pid


def test_the_command_serves_a_vault_and_logs_no_one(site: Site, tmp_path: Path) -> None:
    text = site.token("enrol", "verify")
    with _running(site, tmp_path / "log") as (client, process):
        client.headers["Authorization"] = f"Bearer {text}"
        files = [("images", (f"{CANARY}.jpg", faces()[0]))]
        made = client.post("/v1/subjects", data={"subject": CANARY}, files=files)
        assert made.status_code == 201 and "server" not in made.headers
        claim = {"image": (f"{CANARY}.jpg", faces()[0])}
        assert client.post("/v1/verify", data={"subject": CANARY}, files=claim).json()["accepted"]
        limits = Path(f"/proc/{process}/limits")
        if limits.exists() and os.geteuid() == 0:
            core = next(row for row in limits.read_text().splitlines() if "core file" in row)
            assert core.split()[4:6] == ["0", "0"]
        for path in _TRAVERSALS:
            assert _raw(client, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n") == b"401"
        many = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000
        assert _raw(client, many) in (b"400", b"")
    log = (tmp_path / "log").read_text()
    assert "Canary" not in log and text.rsplit("_", 1)[1] not in log
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines[0]["url"].startswith("http://127.0.0.1:")
    assert {"listening", "request"} <= {line["event"] for line in lines}
    assert site.vault.info.subjects == 1


def _raw(client: httpx.Client, request: bytes) -> bytes:
    """The status of the answer to bytes as they are; empty if the connection was closed."""
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10) as line:
        line.sendall(request)
        try:
            return line.recv(4096)[9:12]
        except ConnectionError:
            return b""


def test_no_acknowledged_enrolment_is_lost_among_many_clients(tmp_path: Path) -> None:
    with new_site(tmp_path) as site:
        site.calibrate(0.99)
        text = site.token(*SCOPES)
        with _running(site, tmp_path / "log") as (client, _):
            address, pictures = str(client.base_url), list(faces())
            report = asyncio.run(load(address, text, pictures, clients=8, seconds=2))
        assert report.failures == {} and report.lost == 0
        assert report.enrolled == site.vault.info.subjects > 0
        assert {case.name for case in report.cases} == {"enrol", "verify", "identify"}


def test_who_connects_and_sends_no_request_is_hung_up_on(site: Site, tmp_path: Path) -> None:
    soon = "import common.web.server as server; server._HEADERS_WITHIN = 0.3; "
    with _running(site, tmp_path / "log", first=soon) as (client, _):
        for said in (b"", b"GET / HTTP/1.1\r\nHost: local"):
            assert _raw(client, said) == b""


def test_over_tls_the_same_service_answers(site: Site, tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate))
    options = ("--tls-cert", str(certificate), "--tls-key", str(key), "--host", "0.0.0.0")
    with _running(site, tmp_path / "log", *options, verify=trusting) as (client, _):
        answer = client.get("/v1/health")
        assert answer.json()["status"] == "ok"
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        plain = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert _raw(client, plain) == b""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "faces.example", "", "127.0.0.1.x"])
def test_off_this_machine_there_is_no_service_without_tls(host: str, site: Site) -> None:
    assert not is_loopback(host)
    outcome = CliRunner().invoke(serve, [*_opened_by(site), "--host", host])
    assert isinstance(outcome.exception, Refused) and outcome.exception.exit_code == 3
    assert "--tls-cert" in outcome.exception.hint
    assert all(is_loopback(local) for local in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))


def test_half_of_tls_is_no_tls(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        tls_files(tmp_path / "cert.pem", None)


def test_a_certificate_that_does_not_fit_is_one_line(site: Site, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    options = ["--tls-cert", str(bad), "--tls-key", str(bad)]
    outcome = CliRunner().invoke(serve, [*_opened_by(site), *options])
    assert isinstance(outcome.exception, InputError)
    assert str(bad) in outcome.exception.message


def test_tokens_are_made_listed_and_revoked_by_command(site: Site) -> None:
    run, opened = CliRunner(), _opened_by(site)
    made = run.invoke(token, ["create", *opened, "--scope", "verify", "--days", "7", "--json"])
    text, token_id = json.loads(made.stdout)["token"], json.loads(made.stdout)["id"]
    assert text.startswith(f"vf_{token_id}_")
    listed = json.loads(run.invoke(token, ["list", *opened, "--json"]).stdout)["tokens"]
    mine = next(one for one in listed if one["id"] == token_id)
    assert mine["scopes"] == "verify" and mine["expires"] > time.time() and "digest" not in mine
    assert token_id in run.invoke(token, ["list", *opened]).stdout
    assert run.invoke(token, ["revoke", *opened, token_id]).exit_code == 0
    listed = json.loads(run.invoke(token, ["list", *opened, "--json"]).stdout)["tokens"]
    assert next(one for one in listed if one["id"] == token_id)["revoked"] is not None
    nobody = run.invoke(token, ["revoke", *opened, "0" * 16])
    assert isinstance(nobody.exception, VeilfaceError) and nobody.exception.exit_code == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ("--rate", "nan"),
        ("--rate", "inf"),
        ("--rate", "0"),
        ("--at-once", "99999999"),
        ("--allow-host", ""),
    ],
)
def test_a_number_or_name_that_cannot_be_is_refused_before_anything_listens(
    site: Site, wrong: tuple[str, str]
) -> None:
    done = CliRunner().invoke(serve, [*_opened_by(site), *wrong])
    said = done.stderr if done.exception is None else f"{done.stderr}{done.exception}"
    assert done.exit_code == 2 or isinstance(done.exception, InputError)
    assert wrong[0] in said


def _rotated(site: Site) -> None:
    arguments = [*_opened_by(site), "--new-key-file", f"{site.options.key_file}.new"]
    assert CliRunner().invoke(template, ["rotate-key", *arguments]).exit_code == 0


def _moved(site: Site) -> None:
    backup = f"{site.options.where}.backup"
    arguments = [*_opened_by(site), "--backbone", "lenet", "--yes", "--backup", backup]
    assert CliRunner().invoke(template, ["migrate", *arguments]).exit_code == 0


def _replaced(site: Site) -> None:
    path = Path(site.options.where)
    other = path.with_name("other")
    shutil.copy(path, other)
    other.replace(path)


@pytest.mark.parametrize("change", [_rotated, _moved, _replaced])
def test_a_service_whose_vault_is_no_longer_what_it_opened_ends_instead_of_refusing_everyone(
    tmp_path: Path, change: Callable[[Site], None]
) -> None:
    """And what is asked before it has noticed is told to come again, not that it is forbidden."""
    with new_site(tmp_path) as site:
        site.calibrate(0.99)
        text = site.token(*SCOPES)
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-c", "from common.cli import main; main()", "serve"]
    command += [*_opened_by(site), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with processes((command, log, environment)) as (process,):
        until(lambda: listens("127.0.0.1", port) or process.poll() is not None, log.read_text)
        headers, told = {"Authorization": f"Bearer {text}"}, set[int]()
        with httpx.Client(base_url=f"http://localhost:{port}", headers=headers) as client:
            assert client.get("/v1/subjects").status_code == 200
            change(site)
            began = time.monotonic()
            while process.poll() is None and time.monotonic() < began + 60:
                with suppress(httpx.TransportError):
                    told.add(client.get("/v1/subjects").status_code)
                time.sleep(0.05)
        assert process.returncode == 3, log.read_text()
        assert told <= {200, 503}
    lines = log.read_text().splitlines()
    assert json.loads(lines[-2])["event"] == "ended" and lines[-1].startswith("veilface: ")


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files
