"""What reads the provisioned files: ssh-keygen, OpenSSL, TLS clients and Flower's processes."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.bundle import Bundle
from server.provisioning.federation import add_sites, create, renew
from server.provisioning.request import Endpoint, Settings
from tests.process_rig import BIN, free_port, processes, wait_for
from tests.provisioning_rig import DAY, NOW, OPEN, archive, make


@pytest.fixture
def fed(tmp_path: Path) -> Path:
    out = tmp_path / "fed"
    make(out)
    return out


def test_what_ssh_keygen_and_openssl_say_is_what_was_promised(fed: Path, tmp_path: Path) -> None:
    if not shutil.which("ssh-keygen") or not shutil.which("openssl"):
        pytest.skip("ssh-keygen or openssl is not installed")
    bundle = Bundle.read(archive(fed, "a"))
    bundle.unpack(tmp_path / "a")
    site = bundle.roster.sites[0]
    for name, line in (("node.key", site.node_key), ("signing.key", site.signing_key)):
        said = subprocess.run(
            ["ssh-keygen", "-y", "-f", tmp_path / "a" / name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert said.stdout.split()[:2] == line.split()
    said = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "a" / "roster.pub"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    summary = add_sites(fed, ("a",), OPEN, now=NOW)
    assert summary.fingerprint in said.stdout.split()
    subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-attime",
         str(int(NOW.timestamp()) + 60), "-CAfile", fed / "ca" / "ca.crt",
         fed / "current" / "server.crt"],
        check=True, capture_output=True,
    )  # fmt: skip


def _handshake(server: Path, trusted: Path, host: str) -> str:
    """Return "ok", or why a client that trusts one CA refuses this server."""
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(server / "server.crt", server / "server.key")
    client = ssl.create_default_context(cafile=str(trusted))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            raw, _ = listener.accept()
            try:
                listening.wrap_socket(raw, server_side=True).close()
            except OSError:
                raw.close()  # the client refused

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=10) as raw:
                client.wrap_socket(raw, server_hostname=host).close()
            return "ok"
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            thread.join(10)


def test_a_site_trusts_its_own_server_only_while_it_is_valid_and_under_its_name(
    tmp_path: Path,
) -> None:
    now = datetime.now(UTC)
    sites = ("a",)
    for name, host, localhost in (
        ("one", "127.0.0.1", False),
        ("two", "127.0.0.1", False),
        ("dns", "fed.example.org", True),
    ):
        create(tmp_path / name, Settings(name, Endpoint(host, 1), localhost), sites, OPEN, now=now)
    make(tmp_path / "fed", now=now - 400 * DAY)
    made = {}
    for name in ("one", "two", "dns", "fed"):
        made[name] = tmp_path / "unpacked" / name
        bundles = tmp_path / name / "current" / "bundles"
        Bundle.read(bundles / f"{name}-server.tar.gz").unpack(made[name])
    ca = {name: folder / "ca.crt" for name, folder in made.items()}
    assert _handshake(made["one"], ca["one"], "127.0.0.1") == "ok"
    assert "unable to get" in _handshake(made["two"], ca["one"], "127.0.0.1")
    assert "not valid for 'localhost'" in _handshake(made["one"], ca["one"], "localhost")
    assert "expired" in _handshake(made["fed"], ca["fed"], "127.0.0.1")
    for host in ("fed.example.org", "localhost", "127.0.0.1"):
        assert _handshake(made["dns"], ca["dns"], host) == "ok"
    renew(tmp_path / "fed", OPEN, now=now)
    Bundle.read(archive(tmp_path / "fed", "server")).unpack(made["fed"])
    assert _handshake(made["fed"], ca["fed"], "127.0.0.1") == "ok"


def test_flower_takes_the_keys_and_lets_nobody_in_who_is_not_registered(tmp_path: Path) -> None:
    link, now = free_port(), datetime.now(UTC)
    create(
        tmp_path / "fed", Settings("fed", Endpoint("127.0.0.1", link)), ("a", "b"), OPEN, now=now
    )
    create(tmp_path / "x", Settings("x", Endpoint("127.0.0.1", link)), ("a",), OPEN, now=now)
    for party in ("server", "a", "b"):
        Bundle.read(archive(tmp_path / "fed", party)).unpack(tmp_path / party)
    server, home, log = tmp_path / "server", tmp_path / "home", tmp_path / "log"
    home.mkdir()
    log.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "fed"\n[superlink.fed]\naddress = "127.0.0.1:{link}"\n'
        f'root-certificates = "{server / "ca.crt"}"\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    superlink = [
        str(BIN / "flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(link), "--isolation", "process"),
        *(
            "--ssl-ca-certfile",
            str(server / "ca.crt"),
            "--ssl-certfile",
            str(server / "server.crt"),
        ),
        *("--ssl-keyfile", str(server / "server.key"), "--enable-supernode-auth"),
        "--disable-runtime-dependency-installation",
    ]

    def supernode(party: str, ca: Path) -> list[str]:
        return [
            str(BIN / "flower-supernode"),
            *("--superlink", f"127.0.0.1:{link}", "--root-certificates", str(ca)),
            *("--auth-supernode-private-key", str(tmp_path / party / "node.key")),
            *("--isolation", "process", "--port", str(free_port()), "--max-retries", "1"),
        ]

    def flwr(*arguments: str) -> str:
        done = subprocess.run(
            [str(BIN / "flwr"), "supernode", *arguments],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with processes((superlink, log / "link", environment)):
        wait_for(link)
        public = tmp_path / "a.pub"
        public.write_text(Bundle.read(server).roster.sites[0].node_key)
        assert "registered" in flwr("register", str(public), "fed", "--name", "a")
        own, foreign = tmp_path / "a" / "ca.crt", tmp_path / "x" / "ca" / "ca.crt"
        nodes = (
            (supernode("a", own), log / "a", environment),
            (supernode("b", own), log / "b", environment),
            (supernode("a", foreign), log / "foreign", environment),
        )
        with processes(*nodes) as (node, stranger, misled):
            assert stranger.wait(60) != 0
            deadline = time.monotonic() + 60
            while '"online"' not in flwr("list", "fed", "--format", "json"):
                assert node.poll() is None, (log / "a").read_text()
                assert time.monotonic() < deadline
            misled.wait(60)
    assert "Exit Code: 305" in (log / "b").read_text()
    assert "SuperNode ID" in (log / "a").read_text()
    assert "SuperNode ID" not in (log / "foreign").read_text()
    assert "certificate verify failed" in (log / "foreign").read_text().lower()
