"""The REST service does what it says, and only for who may."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.service.settings import Settings
from client.service.tokens import SCOPES, Tokens
from client.vault import Receipt, Vault
from common.errors import InputError, VeilfaceError
from tests.service_rig import CANARY, ENDPOINTS, Site, faces, new_site

LFW = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "lfw" / "images"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with new_site(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with new_site(tmp_path_factory.mktemp("site")) as made:
        yield made


def test_a_token_that_may_only_verify_gets_the_decision_and_not_the_score(site: Site) -> None:
    site.calibrate(0.99)
    files = [("images", (f"{CANARY}.jpg", faces()[0]))]
    site.ask("POST", "/v1/subjects", site.token("enrol"), data={"subject": CANARY}, files=files)
    told = {}
    for scopes in (("verify",), ("verify", "enrol"), ("verify", "identify"), ("verify", "admin")):
        ask = {"data": {"subject": CANARY}, "files": {"image": faces()[0]}}
        answer = site.ask("POST", "/v1/verify", site.token(*scopes), **ask).json()
        assert answer["accepted"]
        told[scopes[-1]] = answer["score"]
    assert told["verify"] is None and told["enrol"] is None
    assert told["identify"] == told["admin"] and told["admin"] > 0.999


def test_a_person_is_enrolled_verified_identified_and_erased(site: Site) -> None:
    site.calibrate(0.99)
    token = site.token(*SCOPES)
    files = [("images", (f"{CANARY}.jpg", faces()[0]))]
    enrolled = site.ask("POST", "/v1/subjects", token, data={"subject": CANARY}, files=files)
    assert enrolled.status_code == 201
    pseudonym = enrolled.json()["pseudonym"]
    image = {"image": faces()[0]}
    same = site.ask("POST", "/v1/verify", token, data={"subject": CANARY}, files=image).json()
    assert same["accepted"] and same["score"] > 0.999 and same["pseudonym"] == pseudonym
    other = {"image": faces()[1]}
    assert not site.ask("POST", "/v1/verify", token, data={"subject": CANARY}, files=other).json()[
        "accepted"
    ]
    found = site.ask("POST", "/v1/identify", token, data={"top": "3"}, files=image).json()
    assert found["accepted"]["pseudonym"] == pseudonym
    listed = site.ask("GET", "/v1/subjects", token).json()
    assert [one["pseudonym"] for one in listed["subjects"]] == [pseudonym] and listed["total"] == 1
    erased = site.ask("POST", "/v1/subjects/erase", token, json={"subject": CANARY})
    assert Receipt.verify(erased.text).pseudonym == pseudonym
    assert site.ask("GET", "/v1/subjects", token).json()["total"] == 0
    newest = site.ask("GET", "/v1/log", token, params={"limit": 1}).json()
    assert [entry["operation"] for entry in newest] == ["erase"]
    gone = site.ask("POST", "/v1/verify", token, data={"subject": CANARY}, files=image)
    assert gone.status_code == 400 and set(gone.json()) == {"error", "hint"}


def test_without_a_threshold_nothing_is_decided(shared: Site) -> None:
    token = shared.token("verify", "identify", "enrol")
    answer = shared.ask("POST", "/v1/identify", token, files={"image": faces()[0]})
    assert answer.status_code == 409 and "calibrate" in answer.json()["hint"]
    health = shared.ask("GET", "/v1/health")
    assert health.json() == {"status": "ok", "verify": False, "identify": False}
    assert shared.ask("GET", "/v1/thresholds", token).json() == {"verify": None, "identify": None}


def test_the_table_of_scopes_has_every_endpoint(shared: Site) -> None:
    described = {
        (method.upper(), path) for path, methods in shared.app.openapi()["paths"].items()
        for method in methods
    }  # fmt: skip
    assert described == {*ENDPOINTS, ("GET", "/v1/health")}


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_no_endpoint_answers_without_a_good_token(method: str, path: str, shared: Site) -> None:
    shared.serve(Settings(failure_burst=1000))
    good = shared.token(*SCOPES)
    revoked = shared.token(*SCOPES)
    shared.tokens.revoke(revoked.split("_")[1])
    expired = shared.token(*SCOPES, days=1e-9)
    bad = ["", "x", good[:-1], f"{good[:-1]}{'A' if good[-1] != 'A' else 'E'}", good.upper()]
    bad += [f"vf_{'0' * 16}_{good.rsplit('_', 1)[1][-43:]}", f"{good}\u00e9", revoked, expired]
    for text in (None, *bad):
        encoded = None if text is None else text.encode("latin-1").decode("latin-1")
        headers = (
            {} if encoded is None else {"Authorization": f"Bearer {encoded}".encode("latin-1")}
        )
        answer = shared.ask(method, path, headers=headers, content=b"x" * 5000)
        assert answer.status_code == 401
        told = answer.json()
        assert told["error"] == "not authorised" and "Authorization: Bearer" in told["hint"]
    for wrong in ({"Authorization": f"Basic {good}"}, {"Authorization": good}, {"Cookie": good}):
        assert shared.ask(method, path, headers=wrong).status_code == 401
    assert shared.ask(method, path, params={"token": good}).status_code == 401


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_a_token_without_the_scope_is_refused(method: str, path: str, shared: Site) -> None:
    for scope in SCOPES:
        answer = shared.ask(method, path, shared.token(scope))
        if scope in ENDPOINTS[method, path]:
            assert answer.status_code in (200, 400)
        else:
            assert answer.status_code == 403
            assert set(answer.json()) == {"error", "hint"}


@pytest.mark.parametrize(
    "path",
    ["/openapi.json", "/nope", "/v1/", "/docs/x", "/static/", "/static/../api.py",
     "/static/%2e%2e/api.py", "/static/..%2f..%2fvault.py", "/static//etc/passwd", "/static/%00",
     "/static/page.css/", "/redoc", "/v1/health/"],
)  # fmt: skip
def test_no_other_address_answers(path: str, shared: Site) -> None:
    assert shared.ask("GET", path).status_code == 401
    if path != "/openapi.json":
        answer = shared.ask("GET", path, shared.token("admin"))
        assert answer.status_code == 404 and b"import" not in answer.content


def test_the_page_and_the_description_need_no_other_server(shared: Site) -> None:
    for path in ("/", "/docs", "/static/page.css", "/static/main.js"):
        answer = shared.ask("GET", path)
        assert answer.status_code == 200
        assert "http://" not in answer.text and "https://" not in answer.text
    described = shared.ask("GET", "/openapi.json", shared.token("verify"))
    assert "/v1/verify" in described.json()["paths"]


def test_every_answer_has_the_security_headers(shared: Site) -> None:
    token = shared.token("admin")
    answers = [
        shared.ask("GET", "/"),
        shared.ask("GET", "/v1/health"),
        shared.ask("GET", "/v1/log"),
        shared.ask("GET", "/nope", token),
        shared.ask("POST", "/v1/log", token),
        shared.ask("GET", "/v1/health", headers={"Host": "evil.example"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 401, 404, 405, 400]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert answer.headers["permissions-policy"].startswith("camera=(self)")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers and "strict-transport-security" not in answer.headers
    shared.serve(Settings(tls=True))
    assert "max-age" in shared.ask("GET", "/").headers["strict-transport-security"]
    shared.serve(Settings())


def test_names_appear_in_no_log_and_no_error(site: Site) -> None:
    token = site.token(*SCOPES)
    site.calibrate(0.99)
    broken = [("image", (f"{CANARY}.jpg", b"not an image")), ("images", (f"{CANARY}", b"\xff\xd8"))]
    answers = []
    for method, path in ENDPOINTS:
        for part in broken:
            sent = {"subject": CANARY}
            answers.append(site.ask(method, path, token, data=sent, files=[part]))
        answers.append(site.ask(method, path, token, json={"subject": CANARY, "more": CANARY}))
        answers.append(site.ask(method, f"{path}/{CANARY}", token, params={"q": CANARY}))
    answers.append(site.ask("POST", "/v1/subjects/erase", token, json={"subject": CANARY}))
    answers.append(site.ask("GET", "/v1/subjects", token, params={"limit": CANARY}))
    texts = [answer.text for answer in answers] + [site.written.getvalue()]
    assert all("Canary" not in text for text in texts)
    assert {event["event"] for event in site.events()} == {"request"}
    assert {name for event in site.events() for name in event} == {
        "time", "event", "request", "method", "route", "status", "ms", "token",
    }  # fmt: skip


def test_an_unexpected_error_says_its_request_id_and_nothing_else(tmp_path: Path) -> None:
    with new_site(tmp_path) as site:
        token = site.token(*SCOPES)
        site.ask("GET", "/v1/token", token)

        def burst() -> None:
            raise RuntimeError(CANARY)

        site.recogniser.vault.subjects = burst  # type: ignore[method-assign, assignment]
        answer = site.ask("GET", "/v1/subjects", token)
    request = answer.headers["x-request-id"]
    assert answer.status_code == 500
    assert answer.json() == {"error": f"an unexpected error; request {request}", "hint": ""}
    assert CANARY not in site.written.getvalue()
    failure = next(event for event in site.events() if event["event"] == "failure")
    assert failure["request"] == request and failure["kind"] == "RuntimeError"


def test_head_answers_as_get_does_without_a_body(shared: Site) -> None:
    """Load balancers and monitors ask this way."""
    token = shared.token("admin")
    for path in ("/v1/health", "/", "/v1/subjects"):
        asked, got = (shared.ask(method, path, token) for method in ("HEAD", "GET"))
        assert (asked.status_code, asked.content) == (200, b"")
        for name in ("content-type", "content-length", "content-security-policy"):
            assert asked.headers[name] == got.headers[name]
    assert shared.ask("HEAD", "/v1/subjects").status_code == 401
    assert shared.ask("HEAD", "/v1/subjects", shared.token("verify")).status_code == 403
    assert shared.ask("HEAD", "/v1/verify", token).status_code == 405


def test_who_is_turned_away_is_told_what_to_do(shared: Site) -> None:
    nobody = shared.ask("GET", "/v1/log").json()
    assert "Authorization: Bearer TOKEN" in nobody["hint"]
    denied = shared.ask("GET", "/v1/log", shared.token("verify")).json()
    assert denied["error"] == "this token lacks the scope 'admin'"
    assert "veilface template token create --scope admin" in denied["hint"]


def test_a_token_to_enrol_adds_nothing_to_a_person_and_hears_of_nobody(site: Site) -> None:
    site.calibrate(0.99)
    narrow, adds, all_ = site.token("enrol"), site.token("extend"), site.token("enrol", "identify")

    def send(token: str, subject: str, *faces_of: int) -> tuple[int, str]:
        files = [("images", ("a.jpg", faces()[one])) for one in faces_of]
        answer = site.ask("POST", "/v1/subjects", token, data={"subject": subject}, files=files)
        return answer.status_code, answer.text

    assert send(adds, "ann", 0)[0] == 409
    assert send(narrow, "ann", 0)[0] == 201
    for picture in (0, 1):  # ann's own, and a stranger's
        status, text = send(narrow, "ann", picture)
        assert status == 409 and "extend" in text
    status, text = send(adds, "ann", 1)
    assert status == 422 and "does not look like" in text
    status, text = send(adds, "ann", 0)
    assert status == 201 and json.loads(text)["templates"] == 0 and "enrolled already" in text
    ann = site.vault.pseudonym("ann")
    status, text = send(narrow, "twin", 0)
    assert status == 201 and json.loads(text)["warnings"] == [] and ann not in text
    status, text = send(all_, "third", 0)
    assert status == 201 and f"looks like {ann}" in text
    duplicates = [e.pseudonym for e in site.vault.log() if e.outcome == "duplicate"]
    assert duplicates == [site.vault.pseudonym("twin"), site.vault.pseudonym("third")]


def test_two_who_enrol_one_name_at_once_do_not_both_become_that_person(site: Site) -> None:
    token = site.token("enrol")
    for subject in map(str, range(3)):
        files = [("images", ("a.jpg", faces()[1]))]
        calls = [("POST", "/v1/subjects")] * 4
        answers = site.ask_all(calls, token, data={"subject": subject}, files=files)
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
        assert len(site.vault.templates(subject)) == 1


def test_a_tampered_vault_is_said_to_be_damaged_and_no_more(tmp_path: Path) -> None:
    with new_site(tmp_path) as site:
        token = site.token(*SCOPES)
        site.ask("GET", "/v1/token", token)
        database = sqlite3.connect(tmp_path / "vault")
        database.execute("UPDATE vault SET manifest = x'00'")
        database.commit()
        database.close()
        answer = site.ask("GET", "/v1/subjects", token)
    assert answer.status_code == 500 and "vault" in answer.json()["error"]
    assert any(event.get("kind") == "SealError" for event in site.events())


def test_a_token_is_kept_only_as_a_hash_and_works_until_it_is_revoked(site: Site) -> None:
    text = site.token("admin")
    secret = text.split("_", 2)[2]
    kept = site.vault.recall("tokens") or b""
    assert len(secret) == 43 and secret.encode() not in kept
    other = Tokens(site.vault)
    assert site.ask("GET", "/v1/token", text).json()["scopes"] == ["admin"]
    other.revoke(text.split("_")[1])
    assert other.find(text) is None
    assert [token.revoked is not None for token in other.known()] == [True]
    site.serve(Settings())
    assert site.ask("GET", "/v1/token", text).status_code == 401


def test_a_revocation_elsewhere_is_seen_within_a_second(site: Site) -> None:
    now = [1000.0]
    serving, elsewhere = (Tokens(site.vault, lambda: now[0]) for _ in range(2))
    text, _ = elsewhere.create(["verify"], days=1)
    assert serving.find(text) is not None
    elsewhere.revoke(text.split("_")[1])
    now[0] += 1.01
    assert serving.find(text) is None
    text, _ = elsewhere.create(["verify"], days=1)
    now[0] += 2
    assert serving.find(text) is not None
    now[0] += 86_400
    assert serving.find(text) is None


@pytest.mark.parametrize(("scopes", "days"), [((), None), (("root",), None), (("enrol",), -1.0)])
def test_a_token_of_no_use_is_not_made(
    scopes: tuple[str, ...], days: float | None, site: Site
) -> None:
    with pytest.raises(InputError) as raised:
        Tokens(site.vault).create(scopes, days)
    assert isinstance(raised.value, VeilfaceError)
    assert Tokens(site.vault).known() == ()


def test_metrics_count_by_route_and_name_nobody(shared: Site) -> None:
    token = shared.token("admin", "enrol")
    shared.serve(Settings())
    for name in ("a", "b"):
        files = {"images": faces()[0]}
        shared.ask("POST", "/v1/subjects", token, data={"subject": CANARY + name}, files=files)
    text = shared.ask("GET", "/metrics", token).text
    assert 'veilface_requests_total{method="POST",route="/v1/subjects",status="201"} 2' in text
    assert 'veilface_request_seconds_count{route="/v1/subjects"} 2' in text
    assert "veilface_recognitions 0" in text
    pseudonym = shared.vault.pseudonym(f"{CANARY}a")
    assert "Canary" not in text and pseudonym not in text and token.split("_")[1] not in text


def test_real_people_are_recognised(site: Site) -> None:
    if not LFW.is_dir():
        pytest.skip("LFW is not beside the checkout")
    token = site.token(*SCOPES)
    site.calibrate(0.93)
    names = ("Aaron_Sorkin", "Abdel_Nasser_Assidi", "Adolfo_Rodriguez_Saa")
    pictures = [sorted((LFW / name).iterdir())[:2] for name in names]
    for name, (first, _) in zip(names, pictures, strict=True):
        files = [("images", first.read_bytes())]
        answer = site.ask("POST", "/v1/subjects", token, data={"subject": name}, files=files)
        assert answer.status_code == 201
    for name, (_, second) in zip(names, pictures, strict=True):
        found = site.ask("POST", "/v1/identify", token, files={"image": second.read_bytes()}).json()
        assert found["accepted"]["pseudonym"] == site.vault.pseudonym(name)
        assert json.dumps(found).find(name) == -1
    assert isinstance(site.vault, Vault)
