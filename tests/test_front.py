"""The server's front, attacked: only signed calls of sites on the roster get behind it."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.proto.fleet_pb2 import PushMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.routers.runtime import create_runtime_router, responses_router
from flwr.superlink.routers.control import router as control_router
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.link import ServerLink, Unreachable
from common.bundle import Bundle
from common.errors import Refused
from server.deployment.admission import CALLS
from server.deployment.folder import ServerFolder
from server.deployment.front_counts import front_counts
from server.deployment.registry import Registry
from server.deployment.superlink import Inside
from server.provisioning.federation import revoke_sites
from server.provisioning.request import Passphrase, Passphrases
from tests.front_rig import Made, Running, Upstream, federation, front, signed, status
from tests.process_rig import QUICK, processes, until, wait_for
from tests.provisioning_rig import OPEN, archive

PULL = "/v1/fleet/pull-messages"
HEARTBEAT = "/v1/fleet/send-node-heartbeat"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return federation(tmp_path_factory.mktemp("fed"))


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    upstream = Upstream(Inside.make(tmp_path_factory.mktemp("inside")))
    with upstream.up():
        yield upstream


@pytest.fixture(scope="module")
def running(made: Made, behind: Upstream) -> Iterator[Running]:
    with front(made, behind.inside, made.root / "front.log") as up:
        yield up


@pytest.fixture
def upstream(behind: Upstream) -> Iterator[Upstream]:
    """The upstream, which has seen nothing yet."""
    behind.came.clear()
    behind.answer, behind.delay = b"fine", 0.0
    yield behind


@pytest.fixture
def a(made: Made) -> list[tuple[str, str]]:
    return signed(made.key("a"))


def test_a_sites_calls_arrive_whole_and_nothing_else_of_them_does(
    running: Running, upstream: Upstream, a: list[tuple[str, str]]
) -> None:
    for path in (call.path for call in CALLS.values() if call.name != "push-messages"):
        extra = [("X-Forwarded-For", "1.2.3.4"), ("Cookie", "c"), ("flwr-package-version", "1")]
        got = running.post(path, [*a, *extra], b"\x00body")
        assert status(got) == 200 and got.endswith(b"\r\n\r\nfine"), got
        head = got.lower()
        assert b"server:" not in head and b"x-inside" not in head and b"x-forwarded" not in head
        came, headers, body = upstream.came.pop()
        assert (came, body) == (path, b"\x00body") and dict(a).items() <= headers.items()
        assert set(headers) - {name for name, _ in a} == {
            "host", "content-type", "content-length", "accept", "accept-encoding",
            "flwr-package-version", "user-agent", "connection",
        }  # fmt: skip


def _every_other_path() -> list[str]:
    superlink = FastAPI()
    for router in (
        control_router,
        fleet_router,
        create_runtime_router("SuperLink"),
        responses_router,
    ):
        superlink.include_router(router)
    found = (each.path for each in iter_route_contexts(superlink.routes))
    known = {path for path in found if path is not None}
    assert len(known) > 50
    allowed = {call.path for call in CALLS.values()}
    assert allowed <= known
    return sorted(known - allowed)


def test_no_other_call_of_superlink_exists_even_for_a_site(
    running: Running, upstream: Upstream, a: list[tuple[str, str]]
) -> None:
    others = _every_other_path()
    assert {"/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/get-fab"} <= {
        *others
    }
    for path in (*others, "/docs", "/openapi.json", "/"):
        got = running.post(path, a)
        assert status(got) == 404 and got.endswith(b"\r\n\r\n"), (path, got)
    assert upstream.came == []


@pytest.mark.parametrize(
    "target",
    [
        "/v1/fleet//pull-messages", "//v1/fleet/pull-messages", "/v1/fleet/pull-messages/",
        "/v1/fleet/../fleet/pull-messages", "/v1/fleet/x/../pull-messages",
        "/V1/fleet/pull-messages",
        "/v1/fleet/Pull-Messages", "/v1%2Ffleet/pull-messages", "/v1/fleet%2fpull-messages",
        "/v1/fleet/pull%2dmessages", "/v1/fleet/pull-messages?x=1", "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages;x", "/v1/fleet/pull-messages%20", "\\v1\\fleet\\pull-messages",
        "https://127.0.0.1/v1/fleet/pull-messages", "*", "/v1/control/../fleet/pull-messages",
        "/v1/fleet/pull-messages/../../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
    ],
)  # fmt: skip
def test_a_path_is_taken_byte_for_byte(
    target: str, running: Running, upstream: Upstream, a: list[tuple[str, str]]
) -> None:
    assert status(running.post(target, a)) in (400, 404)
    assert upstream.came == []


def test_methods_upgrades_and_tunnels_lead_nowhere(
    running: Running, upstream: Upstream, a: list[tuple[str, str]]
) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "post", "PRI"):
        assert status(running.post(PULL, a, method=method)) in (400, 404)
    assert status(running.post("127.0.0.1:443", a, method="CONNECT")) in (0, 400, 404)
    upgrade = [("Upgrade", "websocket"), ("Sec-WebSocket-Key", "x" * 22 + "=="),
               ("Sec-WebSocket-Version", "13"), ("Connection", "Upgrade")]  # fmt: skip
    assert status(running.post("/v1/control/x", [*a, *upgrade], method="GET")) == 404
    assert status(running.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) in (0, 400, 404)
    assert upstream.came == []


def test_a_request_without_one_clear_length_is_not_read(
    running: Running, upstream: Upstream, a: list[tuple[str, str]]
) -> None:
    chunked = [*a, ("Transfer-Encoding", "chunked")]
    smuggled = b"0\r\n\r\nPOST /v1/control/start-run HTTP/1.1\r\nHost: x\r\n\r\n"
    assert status(running.post(PULL, chunked, smuggled)) == 411
    both = [*chunked, ("Content-Length", "4")]
    assert status(running.post(PULL, both, smuggled)) in (400, 411)
    for length in ("4, 5", "-1", "+4", "0x4", "4 4", "", "4" * 40):
        refused = status(running.post(PULL, [*a, ("Content-Length", length)], b"body"))
        assert refused in (400, 411, 413), length
    twice = [*a, ("Content-Length", "4"), ("Content-Length", "5")]
    assert status(running.post(PULL, twice, b"body")) == 400
    assert upstream.came == []
    # What follows a declared body is the next request, and is judged as one.
    first = "".join(f"{name}: {value}\r\n" for name, value in a)
    two = f"POST {PULL} HTTP/1.1\r\nHost: x\r\n{first}Content-Length: 1\r\n\r\n1".encode()
    got = running.raw(two + b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [status(got), b"HTTP/1.1 404" in got] == [200, True]
    assert [path for path, _, _ in upstream.came] == [PULL]


def test_a_body_has_the_size_its_call_needs(
    running: Running, upstream: Upstream, a: list[tuple[str, str]]
) -> None:
    for path, call in CALLS.items():
        assert status(running.post(path.decode(), a, b"0" * 8)) in (200, 400)
        too_long = [*a, ("Content-Length", str(call.limit + 1))]
        assert status(running.post(path.decode(), too_long)) == 413
    chunk = bytes(5 << 20)
    upstream.came.clear()
    assert status(running.post("/v1/fleet/push-object", a, chunk)) == 200
    assert upstream.came[0][2] == chunk
    upstream.answer = bytes(20 << 20)
    assert running.post("/v1/fleet/pull-object", a).endswith(upstream.answer)
    assert status(running.post(PULL, [*a, ("X", "x" * 1_000_000)])) in (0, 400)


def test_only_keys_of_the_roster_get_in_and_only_with_a_fresh_signature_of_their_own(
    running: Running, upstream: Upstream, made: Made, tmp_path: Path
) -> None:
    own, foreign = made.key("a"), federation(tmp_path).key("a")
    good, b = signed(own), signed(made.key("b"))
    key, stamp, signature = good
    signed_by_revoked = signed(made.key("c"))
    for headers in (
        [],
        [key, stamp],
        [key, signature],
        signed(foreign),
        signed_by_revoked,
        signed(own, late=61),
        signed(own, late=-61),
        signed(own, by=foreign),
        signed(own, by=made.key("b")),
        [key, b[1], b[2]],
        [b[0], stamp, signature],
        [key, signed(own, late=5)[1], signature],
        [key, stamp, (signature[0], "AAAA")],
        [key, stamp, (signature[0], "not base64")],
        [*good, key],
        [*good, b[0]],
        [*good, *b],
        signed(own, stamp="2026-01-01T00:00:00"),
        signed(own, stamp="now"),
        signed(own, stamp="9999-12-31T23:59:59.999999-23:59"),
        [(key[0], "A" * 4000), stamp, signature],
    ):
        got = running.post(HEARTBEAT, headers)
        assert status(got) == 401, headers
        told = got.partition(b"\r\n\r\n")[2]
        reason = json.loads(told)["detail"] if told else ""
        known = ("the clocks of site and server", "this site was revoked")
        assert not reason or reason.startswith(known)
        assert reason.startswith("this site was revoked") == (headers == signed_by_revoked)
    assert upstream.came == []
    for headers in (good, b, signed(own, late=50)):
        assert status(running.post(HEARTBEAT, headers)) == 200
    assert len(upstream.came) == 3


def test_a_site_cannot_answer_for_another(
    running: Running, upstream: Upstream, a: list[tuple[str, str]]
) -> None:
    def push(*sources: int) -> bytes:
        messages = [Message(metadata=Metadata(src_node_id=source)) for source in sources]
        request = PushMessagesRequest(node=Node(node_id=1), messages_list=messages)
        return running.post("/v1/fleet/push-messages", a, request.SerializeToString())

    assert status(push(2)) == status(push(1, 2)) == status(push(0)) == 403
    assert status(push()) == 400
    assert status(running.post("/v1/fleet/push-messages", a, b"\xff\xff")) == 400
    assert upstream.came == []
    assert status(push(1)) == 200
    assert len(upstream.came) == 1


def test_neither_plain_http_nor_old_tls_is_spoken(running: Running, made: Made) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(4096).startswith(b"HTTP")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.maximum_version = version
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as plain:
            if version is ssl.TLSVersion.TLSv1_2:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    client.wrap_socket(plain)
            else:
                assert client.wrap_socket(plain).version() == "TLSv1.3"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://127.0.0.1:{running.port}/health")


def test_who_is_slow_is_hung_up_on_and_others_are_served(
    made: Made, behind: Upstream, tmp_path: Path
) -> None:
    first = (
        "import common.web.server as w, server.deployment.front as f; "
        "w._HEADERS_WITHIN = w._HANDSHAKE_WITHIN = w._IDLE = f._PAUSE = 0.5; "
        "w._CONNECTIONS_OF_ONE = 3; "
    )
    with front(made, behind.inside, tmp_path / "log", first=first) as up:
        own = signed(made.key("a"))
        head = "".join(f"{name}: {value}\r\n" for name, value in own)
        began = f"POST {PULL} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: "
        assert up.raw(b"") == up.raw(b"POST /v1") == up.raw(began.encode()) == b""
        assert status(up.raw(f"{began}9\r\n\r\nhalf".encode())) == 503
        once = f"{began}1\r\n\r\n1".encode()
        assert up.raw(once + b"POST /v1/fle").count(b"HTTP/1.1") == 1
        with socket.create_connection(("127.0.0.1", up.port), timeout=20) as mute:
            assert mute.recv(1) == b""  # no handshake
        crowd = [socket.create_connection(("127.0.0.1", up.port)) for _ in range(3)]
        crowd = [made.trust.wrap_socket(one, server_hostname="127.0.0.1") for one in crowd]
        assert up.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        for one in crowd:
            one.close()
        until(lambda: status(up.post("/health", [], method="GET")) == 200, "there is room again")
        assert status(up.post(PULL, signed(made.key("a")))) == 200
    assert "slow" in {line.get("reason") for line in up.lines}


def test_a_site_that_asks_too_much_leaves_room_for_the_others(made: Made, tmp_path: Path) -> None:
    upstream = Upstream(Inside.make(tmp_path / "inside"), delay=0.1)
    first = "import server.deployment.front as f; f._CALLS_OF_ONE = 2; "
    with upstream.up(), front(made, upstream.inside, tmp_path / "log", first=first) as up:
        got: list[int] = []

        def ask() -> None:
            got.append(status(up.post(PULL, signed(made.key("a")))))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        other = status(up.post(PULL, signed(made.key("b"))))
        for thread in threads:
            thread.join()
    assert other == 200 and set(got) == {200, 503} and len(got) == 12


def test_a_call_under_way_ends_before_the_front_does(made: Made, tmp_path: Path) -> None:
    upstream = Upstream(Inside.make(tmp_path / "inside"), delay=1.0)
    with upstream.up():
        with front(made, upstream.inside, tmp_path / "log") as up:
            got: list[int] = []
            call = threading.Thread(
                target=lambda: got.append(status(up.post(PULL, signed(made.key("a")))))
            )
            call.start()
            until(lambda: upstream.came, "the call is under way", every=QUICK)
        call.join()
    assert got == [200] and up.process.returncode == 0
    counts = front_counts(made.folder)
    assert counts is not None and counts.passed == {"pull-messages 200": 1}


@contextmanager
def _roster_of(made: Made, document: bytes) -> Iterator[None]:
    path = made.folder / "roster"
    before = path.read_bytes()
    path.write_bytes(document)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_a_roster_that_does_not_hold_lets_nobody_in(
    running: Running, upstream: Upstream, made: Made
) -> None:
    document = (made.folder / "roster").read_bytes()
    for bad in (b"", document.replace(b'"a"', b'"z"'), document[:-2]):
        with _roster_of(made, bad):
            assert status(running.post(PULL, signed(made.key("a")))) == 503
    assert upstream.came == []
    assert status(running.post(PULL, signed(made.key("a")))) == 200


def test_a_site_is_out_from_the_moment_its_revocation_is_taken_up(
    behind: Upstream, tmp_path: Path
) -> None:
    made = federation(tmp_path)
    key = made.key("b")
    with front(made, behind.inside, tmp_path / "log") as up:
        assert status(up.post(PULL, signed(key))) == 200
        revoke_sites(tmp_path / "fed", ("b",), OPEN)
        made.take_roster()
        answer = up.post(PULL, signed(key))
        assert status(answer) == 401 and b"this site was revoked" in answer
        stranger = up.post(PULL, signed(key, by=made.key("a")))
        assert status(stranger) == 401 and b"revoked" not in stranger, "told to nobody else"
        assert status(up.post(PULL, signed(made.key("a")))) == 200
    assert [(line["who"], line["reason"]) for line in up.lines if line["event"] == "refused"] == [
        ("127.0.0.1", "revoked"),
        ("127.0.0.1", "signature"),
    ]


def test_refusals_are_logged_by_reason_few_a_second_and_never_with_a_body(
    behind: Upstream, tmp_path: Path
) -> None:
    made = federation(tmp_path)  # in the shared folder, another front writes its counts
    with front(made, behind.inside, tmp_path / "log") as up:
        for number in range(30):
            up.post(f"/canary{number}", [("Cookie", "secret-header")], b"secret-body")
        up.post(PULL, [])
    log = up.log.read_text()
    assert "secret" not in log
    refused = [line for line in up.lines if line["event"] == "refused"]
    assert len(refused) <= 15 and {line["reason"] for line in refused} <= {"path", "unsigned"}
    counts = front_counts(made.folder)
    assert counts is not None and counts.refused == {"path": 30, "unsigned": 1}


def test_the_key_of_a_sealed_bundle_serves_without_a_copy_on_disk(
    behind: Upstream, tmp_path: Path
) -> None:
    words = Passphrases((Passphrase("", "correct horse battery staple"),))
    made = federation(tmp_path, words)
    before = {*tmp_path.rglob("*")}
    with front(
        made, behind.inside, tmp_path / "log", passphrase="correct horse battery staple"
    ) as up:
        assert status(up.post("/health", [], method="GET")) == 200
        new = {path.name for path in {*tmp_path.rglob("*")} - before}
        assert new <= {"log", "front.json"}


def test_without_superlink_a_site_is_told_to_try_again(made: Made, tmp_path: Path) -> None:
    nobody = Inside.make(tmp_path / "inside")
    with front(made, nobody, tmp_path / "log") as up:
        got = up.post(PULL, signed(made.key("a")))
        assert status(got) == 503 and b"retry-after: 1" in got.lower()
        assert status(up.post("/health", [], method="GET")) == 503
        link = ServerLink(Bundle.read(archive(made.root / "fed", "a")), up.address)
        with link, pytest.raises(Unreachable):
            link.heartbeat()


def test_a_real_superlink_is_reached_by_its_sites_and_by_nobody_else(
    made: Made, tmp_path: Path
) -> None:
    inside = Inside.make(tmp_path / "inside")
    database = tmp_path / "a?b" / "50%41" / "superlink.db"  # no part of it is syntax
    database.parent.mkdir(parents=True)
    part = inside.part(database)
    environment = {**os.environ, **part.environment, "OMP_NUM_THREADS": "1"}
    folder = ServerFolder(made.folder)
    with processes((list(part.command), tmp_path / "link.log", environment)):
        wait_for(inside.port)
        with inside.control() as control, front(made, inside, tmp_path / "log") as up:
            Registry(folder, control).look()
            with ServerLink(Bundle.read(archive(made.root / "fed", "a")), up.address) as link:
                joined = link.join(None)
                assert link.heartbeat() and link.pull() is None
                link.resume(joined + 1)  # another's id under this site's key: SuperLink refuses
                with pytest.raises(Refused, match="401"):
                    link.heartbeat()
                link.resume(joined)
                link.leave()
            revoked = ServerLink(Bundle.read(made.c), up.address)
            with revoked, pytest.raises(Refused, match="this site was revoked: ask the operator"):
                revoked.join(None)
            stranger = ControlHttpClient(f"https://{up.address}", verify=made.trust)
            with stranger, pytest.raises(httpx.HTTPStatusError, match="404"):
                stranger.ListRuns(ListRunsRequest())
            newcomer = FleetHttpClient(f"https://{up.address}", verify=made.trust)
            with newcomer, pytest.raises(httpx.HTTPStatusError, match="404"):
                newcomer.RegisterNode(RegisterNodeFleetRequest(public_key=b"x"))
            assert control.ListRuns(ListRunsRequest()) is not None
            assert database.stat().st_size > 0
