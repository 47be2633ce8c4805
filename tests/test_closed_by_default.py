"""A whole deployment, attacked by a stranger, a user of its machine and one of its own sites."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import ssl
import stat
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.bundle import CA, NODE_KEY, SERVER_KEY, SIGNING_KEY, Bundle
from common.ledger import verify
from server.deployment.folder import ENDED, Progress, ServerFolder
from server.deployment.registry import Registry
from server.deployment.superlink import Inside
from tests.closed_rig import PASSPHRASE, Federated, federated
from tests.front_rig import federation
from tests.hostile_site_rig import HostileSite
from tests.process_rig import BIN, processes, until, wait_for
from tests.provisioning_rig import private_value

ROUNDS = 8


@pytest.fixture(scope="module")
def fed(people_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federated]:
    with federated(tmp_path_factory.mktemp("fed"), people_folder, ROUNDS) as made:
        yield made


def test_a_hostile_site_spoils_no_round_and_stops_nobody(fed: Federated) -> None:
    stop = threading.Event()
    hostile = HostileSite(fed, stop)
    thread = threading.Thread(target=hostile.run)
    thread.start()
    try:
        until(lambda: _sites(fed).count("online") == 2, fed.logs)
        fed.ask("one")
        now = until(lambda: _told(fed, "one", ROUNDS + 1), fed.logs)
    finally:
        stop.set()
        thread.join(30)
    assert now.state == "finished", fed.log("server")
    assert {1, 2, 3, 4, 5, 6, 7, 8} <= set(hostile.played)
    told = {site.site: (site.asked, site.accepted) for site in now.sites}
    assert told == {"a": (ROUNDS, ROUNDS), "b": (ROUNDS, 0)}, fed.log("server")
    assert now.seconds < 120
    assert "ended with code" not in fed.log("server"), "no part of the server has died"
    assert "[2J" not in fed.log("server")
    report = verify(fed.root / "a.state")
    assert report.ok and [one.round for one in report.reservations] == list(range(1, ROUNDS + 1))


def _sites(fed: Federated) -> list[str]:
    contacts = fed.folder.contacts() if (fed.folder.path / "roster.pub").exists() else None
    return [site.state for site in contacts.sites] if contacts else []


def _told(fed: Federated, run_id: str, rounds: int) -> Progress | None:
    """How far a run is, once it has ended or done so many rounds."""
    now = fed.progress(run_id)
    return now if now and (now.state in ENDED or now.round >= rounds) else None


def _foreign(marker: Path) -> bytes:
    """An app of someone else, which writes a file as soon as it is imported."""
    code = f"open({str(marker)!r}, 'w').close()\napp = None\n".encode()
    toml = (
        b'[project]\nname = "evil"\nversion = "1.0.0"\nlicense = "Apache-2.0"\n'
        b'dependencies = ["flwr>=1.41"]\n[tool.flwr.app]\npublisher = "evil"\n'
        b'[tool.flwr.app.components]\nserverapp = "evil:app"\nclientapp = "evil:app"\n'
        b"[tool.flwr.app.config]\n"
    )
    files = {"pyproject.toml": toml, "evil.py": code}
    listed = "\n".join(
        f"{name},{hashlib.sha256(data).hexdigest()},{8 * len(data)}" for name, data in files.items()
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in {**files, ".info/CONTENT": listed.encode()}.items():
            archive.writestr(name, data)
    return packed.getvalue()


def _trusting(certificate: str) -> ssl.SSLContext:
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.load_verify_locations(cadata=certificate)
    return trust


def test_a_stranger_with_the_ca_certificate_cannot_use_flowers_own_commands(
    fed: Federated,
) -> None:
    home, marker = fed.root / "stranger", fed.root / "stranger.marker"
    home.mkdir()
    ca = home / "ca.crt"
    ca.write_bytes(Bundle.read(fed.bundle("b")).file(CA))
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "fed"\n[superlink.fed]\naddress = "127.0.0.1:{fed.port}"\n'
        f'root-certificates = "{ca}"\n'
    )
    app = home / "app"
    with zipfile.ZipFile(io.BytesIO(_foreign(marker))) as archive:
        archive.extractall(app)
    key = home / "key.pub"
    key.write_text(Bundle.read(fed.bundle("b")).roster.sites[0].node_key)
    quiet = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    quiet |= {"FLWR_DISABLE_UPDATE_CHECK": "1", "PATH": os.environ["PATH"]}
    for command in (
        ("run", str(app), "fed"),
        ("supernode", "register", str(key), "fed"),
        ("supernode", "list", "fed"),
        ("list", "fed"),
    ):
        tried = subprocess.run(
            [str(BIN / "flwr"), *command], env=quiet, capture_output=True, text=True, timeout=60
        )
        said = tried.stdout + tried.stderr
        assert tried.returncode != 0 and "404" in said, f"{command}: {said}"
    trust = _trusting(ca.read_text())
    trust.check_hostname = False
    url = f"https://127.0.0.1:{fed.port}"
    with httpx.Client(verify=trust) as client:
        for path in ("acquire-task", "pull-task-input", "pull-object", "create-task"):
            assert client.post(f"{url}/v1/runtime/{path}").status_code == 404
        guessed = "/v1/fleet/pull-object"
        assert client.post(url + guessed, content=b"\x12" + 64 * b"0").status_code == 401
    own = ec.generate_private_key(ec.SECP384R1())
    signing = NodeAuthHttpInterceptor(own, own.public_key())
    with FleetHttpClient(url, verify=trust, interceptors=[signing]) as fleet:
        ask = ActivateNodeRequest(
            public_key=public_key_to_bytes(own.public_key()), heartbeat_interval=30
        )
        for call in (
            lambda: fleet.ActivateNode(ask),
            lambda: fleet.PullMessages(PullMessagesRequest(node=ProtoNode(node_id=1))),
        ):
            with pytest.raises(httpx.HTTPStatusError, match="401"):
                call()
    assert not marker.exists()


def test_a_user_of_the_servers_machine_gets_no_code_run_no_task_and_no_seat(
    fed: Federated,
) -> None:
    """Everything that such a user has: the loopback port, and the certificate that it shows."""
    port, marker = fed.superlink_port(), fed.root / "user.marker"
    trust = _trusting(ssl.get_server_certificate(("127.0.0.1", port)))
    url, version = f"https://127.0.0.1:{port}", RuntimeVersionHttpInterceptor(component_name="x")
    runtime = RuntimeHttpClient(url, verify=trust, interceptors=[version])
    with runtime, pytest.raises(httpx.HTTPStatusError, match=r"401|403"):
        runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
    with httpx.Client(verify=trust) as client:
        for path in ("pull-task-input", "pull-object", "push-task-output", "create-task",
                     "push-object", "pull-app-messages", "push-app-messages"):  # fmt: skip
            answer = client.post(
                f"{url}/v1/runtime/{path}", headers={"content-type": "application/protobuf"}
            )
            assert 400 <= answer.status_code < 500, path
    own = ec.generate_private_key(ec.SECP384R1())
    public = public_key_to_bytes(own.public_key())
    with ControlHttpClient(url, verify=trust, interceptors=[version]) as control:
        foreign = _foreign(marker)
        fab = Fab(hash_str=hashlib.sha256(foreign).hexdigest(), content=foreign)
        number = int(control.StartRun(StartRunRequest(fab=fab)).run_id)
        assert number, "the port is open, or this proves nothing"
        control.RegisterNode(RegisterNodeRequest(public_key=public, name="mallory"))
        signing = NodeAuthHttpInterceptor(own, own.public_key())
        with FleetHttpClient(url, verify=trust, interceptors=[version, signing]) as fleet:

            def struck_off() -> bool:
                nodes = control.ListNodes(ListNodesRequest()).nodes_info
                mine = [node for node in nodes if node.public_key == public]
                return not mine or mine[0].status == "unregistered"

            until(struck_off, "it is struck off within seconds", within=30.0)
            with pytest.raises(httpx.HTTPStatusError):
                fleet.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=30))
        assert {site.name for site in fed.folder.roster().sites} == {"a", "b"}
        fed.ask("two")
        now = until(lambda: _told(fed, "two", 1), fed.logs)
        runs = control.ListRuns(ListRunsRequest()).run_dict
        assert runs[number].status.status == "finished", "turned away before our own run began"
        assert runs[number].status.sub_status == "failed"
    assert not marker.exists()
    assert str(number) not in fed.log("a")
    assert {site.site for site in now.sites} <= {"a", "b"}


def test_a_site_that_a_local_user_unregisters_is_out_and_the_others_are_not(
    tmp_path: Path,
) -> None:
    made, inside = federation(tmp_path), Inside.make(tmp_path / "inside")
    part, folder = inside.part(tmp_path / "superlink.db"), ServerFolder(made.folder)
    environment = {**os.environ, **part.environment, "OMP_NUM_THREADS": "1"}
    with processes((list(part.command), tmp_path / "log", environment)):
        wait_for(inside.port)
        with inside.control() as control:
            registry = Registry(folder, control)
            registry.look()
            registry.look()
            before = folder.contacts()
            assert before is not None
            nodes = {site.site: site.node for site in before.sites}
            assert all(nodes.values())
            control.UnregisterNode(UnregisterNodeRequest(node_id=nodes["a"]))
            registry.look()
            after = folder.contacts()
            assert after is not None
            assert {site.site: site.node for site in after.sites} == {"a": 0, "b": nodes["b"]}
    (tmp_path / "superlink.db").unlink()
    with processes((list(part.command), tmp_path / "log", environment)):
        wait_for(inside.port)
        with inside.control() as control:
            Registry(folder, control).look()
            listed = control.ListNodes(ListNodesRequest()).nodes_info
            assert {node.name for node in listed} == {"a", "b"}, "mended"


def test_keys_and_passphrases_are_in_no_file_argument_environment_or_log(fed: Federated) -> None:
    server, site = (
        Bundle.read(fed.bundle(party)).unlocked(PASSPHRASE) for party in ("server", "a")
    )
    keys = [server.file(SERVER_KEY), site.file(NODE_KEY), site.file(SIGNING_KEY)]
    secrets = [PASSPHRASE.encode(), *map(private_value, keys)]
    secrets += [line for key in keys for line in key.splitlines()[1:-1] if len(line) > 40]
    processes = fed.processes()
    assert len(processes) >= 7
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has ended since
            shown = " ".join(process.cmdline()) + repr(process.environ())
            assert PASSPHRASE not in shown
            if process.name() != "strace" and process.pid not in [p.pid for p in fed.running]:
                assert process.rlimit(4) == (0, 0), "a core dump would hold the keys"
    ours = ("server", "a.state", "tmp", "home", "a.cache")
    files = [path for name in ours for path in (fed.root / name).rglob("*")]
    assert len(files) > 20
    for name in ("server", "a.state"):
        assert (fed.root / name).stat().st_mode & 0o077 == 0, "and nobody gets into the folders"
    for path in files:
        with suppress(FileNotFoundError):  # it was replaced since
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                assert found.st_mode & 0o077 == 0, path
                body = path.read_bytes()
                assert not any(secret in body for secret in secrets), path
    for name in ("server", "a"):
        log = (fed.root / f"{name}.log").read_bytes()
        assert log and not any(secret in log for secret in secrets)
        assert b"CANARY" not in log
    status = fed.run("server", "status", "--state", str(fed.folder.path), "--json")
    assert not any(secret in repr(status).encode() for secret in secrets)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_nobody_connects_to_anything_but_what_is_configured(fed: Federated) -> None:
    """Telemetry is not switched off in the environment of these commands."""
    assert "FLWR_TELEMETRY_ENABLED" not in fed.environment
    allowed = {"a": {fed.port}, "server": {fed.port, fed.page, fed.superlink_port()}}
    for name, ports in allowed.items():
        trace = (fed.root / f"{name}.trace").read_text()
        inet = re.findall(r"sin6?_port=htons\((\d+)\).*?\"([^\"]+)\"", trace)
        assert inet, "the trace must see connections, or it proves nothing"
        assert {address for _, address in inet} == {"127.0.0.1"}, name
        assert {int(port) for port, _ in inet} <= ports, name
        assert not re.search(r"AF_NETLINK.*connect|htons\(53\)", trace)
