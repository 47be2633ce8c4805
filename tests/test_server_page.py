"""The server's status page: what it tells, to whom, and how it looks in a real browser."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from common.errors import InputError
from common.terms import Terms, TrainingConfig
from server.deployment.folder import (
    Contacts,
    Progress,
    RunRequest,
    ServerFolder,
    SiteContact,
    SiteRounds,
)
from server.deployment.front_counts import Tally
from server.deployment.page import create_page, names_in
from server.deployment.page_api import Settings
from server.deployment.status import status
from server.deployment.tokens import SCOPES, create_token, list_tokens, revoke_token
from server.report.utility import DetPoints, Utility, write_utility
from tests.audit_rig import RATES
from tests.browser_rig import needs_browser, quiet_page
from tests.front_rig import Made, federation
from tests.process_rig import free_port, wait_for
from tests.serving_rig import served

PATHS = (
    "/v1/status", "/v1/runs/first", "/v1/runs/first/model", "/v1/runs/first/report", "/metrics",
    "/v1/token",
)  # fmt: skip


def _terms() -> Terms:
    training = TrainingConfig(
        "adapter", "public-negatives", 40, 1, 4.0, 1e-5, 1.0, 300.0, "mean", 0, 2, 60.0
    )
    return Terms("dlib-resnet", training, 4, training.privacy())


def _ask(folder: ServerFolder, run_id: str, asked: str) -> None:
    nowhere = Path("/nowhere")
    folder.ask(
        RunRequest(run_id, _terms(), nowhere, None, False, None, None, 12.0, asked)
    )  # fmt: skip


def _progress(round_: int, **other: Any) -> Progress:
    sites = (
        SiteRounds("a", round_, round_, "", 0.1 * round_),
        SiteRounds(
            "b", round_ - 1, round_ - 3, "refused: budget", 0.1 * (round_ - 1), {"budget": 2}
        ),
    )
    scores = {"fnmr_at_fmr_1e-2": 0.2651, "fnmr_at_fmr_1e-3": 0.5512}
    shown: dict[str, Any] = {"state": "running", "why": "", "seconds": 2.0 * round_, **other}
    return Progress(
        round=round_, rounds=40, epsilon=0.1 * round_, delta=1e-5, sites=sites, scores=scores,
        changed="2026-11-24T12:00:00Z", **shown,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return federation(tmp_path_factory.mktemp("fed"))


@pytest.fixture(scope="module")
def folder(made: Made) -> ServerFolder:
    """Sites a and b; a finished run, one under way, and one that waits."""
    folder = ServerFolder(made.folder)
    heard = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3))
    contacts = (SiteContact("a", "online", heard, 1), SiteContact("b", "offline", heard, 2))
    folder.keep_contacts(Contacts(heard, contacts))
    for number, run_id in enumerate(("first", "second", "third")):
        _ask(folder, run_id, f"2026-11-24T1{number}:00:00Z")
    folder.run("first").report(_progress(40, state="finished"))
    folder.run("first").model.write_bytes(b"the model" * 1000)
    (folder.run("first").path / "report.html").write_text("<script>alert(1)</script>")
    points = DetPoints((0.01,), (0.5,))
    write_utility(folder.run("first").path, Utility(RATES, None, RATES, points, points))
    folder.run("second").report(_progress(12))
    return folder


def _token(folder: ServerFolder, *scopes: str, days: float | None = None) -> str:
    return create_token(folder.path, scopes or ("view",), days)[0]


def _get(
    folder: ServerFolder, path: str, token: str = "", *, method: str = "GET", host: str = ""
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(create_page(folder), client=("127.0.0.1", 4711))
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://{host or 'localhost'}"
        ) as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


def test_status_says_who_is_there_how_far_the_runs_are_and_what_may_have_been_spent(
    folder: ServerFolder,
) -> None:
    found = _get(folder, "/v1/status", _token(folder)).json()
    assert found["federation"] == "fed"
    sites = {site["site"]: site for site in found["sites"]}
    assert set(sites) == {"a", "b"} and sites["a"]["state"] == "online"
    # Bounds over runs are added up, epsilon and delta alike.
    assert sites["a"]["epsilon"] == pytest.approx(4.0 + 1.2)
    assert sites["a"]["delta"] == pytest.approx(2e-5)
    assert [run["run_id"] for run in found["runs"]] == ["third", "second", "first"]
    third, second, first = found["runs"]
    assert (third["state"], third["round"], third["model"]) == ("waiting", 0, False)
    assert (second["state"], second["round"], second["rounds"]) == ("running", 12, 40)
    shares = {site["site"]: site for site in second["sites"]}
    assert shares["a"]["left"] == pytest.approx(4.0 - 1.2)
    assert first["model"] and first["report"] and first["scores"]["fnmr_at_fmr_1e-2"] == 0.2651
    assert first["start"]["fnmr_at_fmr_1e-2"] == pytest.approx(0.52) and second["start"] == {}
    assert all(site["left"] >= 0 for run in found["runs"] for site in run["sites"])
    alone = _get(folder, "/v1/runs/second", _token(folder)).json()
    assert alone == {**second, "versions": []}


def test_nothing_but_the_empty_page_is_there_without_a_token_that_works(
    folder: ServerFolder, tmp_path: Path
) -> None:
    expired, revoked = _token(folder, days=1e-9), _token(folder)
    revoke_token(folder.path, revoked.split("_")[1])
    good = _token(folder)
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    for path in (*PATHS, "/openapi.json", "/v1/nothing"):
        for text in ("", "nonsense", wrong, expired, revoked):
            answer = _get(folder, path, text)
            assert answer.status_code == 401 and "first" not in answer.text
    assert _get(folder, "/", "").status_code == 200
    assert _get(folder, "/v1/health").json() == {"status": "ok"}
    assert _get(folder, "/v1/status", good, host="evil.example").status_code == 400


def test_a_token_for_metrics_sees_metrics_only(folder: ServerFolder) -> None:
    scraper = _token(folder, "metrics")
    for path in PATHS:
        expected = 200 if path in ("/metrics", "/v1/token") else 403
        assert _get(folder, path, scraper).status_code == expected
    with pytest.raises(InputError):
        create_token(folder.path, ("admin",))


def test_tokens_are_kept_as_hashes_for_the_owner_only(folder: ServerFolder) -> None:
    text, made = create_token(folder.path, SCOPES)
    path = folder.path / "tokens"
    assert path.stat().st_mode & 0o777 == 0o600 and text.split("_", 2)[2] not in path.read_text()
    assert made in list_tokens(folder.path)
    with pytest.raises(InputError, match="veilface server token list"):
        revoke_token(folder.path, "0" * 16)
    with pytest.raises(InputError):
        create_token(folder.path / "nowhere", SCOPES)


def test_tokens_made_at_the_same_time_are_all_kept(folder: ServerFolder) -> None:
    before = len(list_tokens(folder.path))
    threads = [threading.Thread(target=create_token, args=(folder.path, SCOPES)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list_tokens(folder.path)) == before + 12


def test_downloads_are_files_and_never_pages(folder: ServerFolder) -> None:
    token = _token(folder)
    for what, body in (("model", b"the model" * 1000), ("report", b"<script>alert(1)</script>")):
        answer = _get(folder, f"/v1/runs/first/{what}", token)
        assert answer.content == body
        assert answer.headers["content-disposition"].startswith("attachment")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert _get(folder, f"/v1/runs/second/{what}", token).status_code == 404


def test_no_name_of_a_run_leads_out_of_its_folder(folder: ServerFolder) -> None:
    token = _token(folder)
    for name in ("..", "%2e%2e", "..%2f..", "first%2f..", "nobody", ".", "first%00", "FIRST", "~"):
        for path in (f"/v1/runs/{name}", f"/v1/runs/{name}/model", f"/v1/runs/{name}/report"):
            answer = _get(folder, path, token)
            assert answer.status_code == 404, path
            assert str(folder.path) not in answer.text
    for method in ("POST", "PUT", "DELETE"):
        assert _get(folder, "/v1/runs/first", token, method=method).status_code == 405


def test_metrics_are_what_prometheus_reads_and_hold_nothing_private(
    folder: ServerFolder,
) -> None:
    tally = Tally(folder.path)
    tally.refused["stranger"] += 3
    tally.passed["pull-messages 200"] += 7
    tally.save()
    text = _get(folder, "/metrics", _token(folder, "metrics")).text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples['veilface_sites{state="online"}'] == "1"
    assert samples['veilface_runs{state="running"}'] == "1"
    assert samples['veilface_rounds_total{run="second"}'] == "12"
    assert samples['veilface_round_seconds_total{run="second"}'] == "24"
    assert float(samples['veilface_epsilon_bound{site="a"}']) == pytest.approx(5.2)
    assert samples['veilface_updates_total{run="second",site="b",outcome="rejected"}'] == "2"
    rejected = 'veilface_updates_rejected_total{run="second",site="b",reason="budget"}'
    assert samples[rejected] == "2"
    assert samples['veilface_front_refused_total{reason="stranger"}'] == "3"
    assert samples['veilface_front_calls_total{call="pull-messages",status="200"}'] == "7"
    assert 2 <= float(samples['veilface_site_contact_seconds{site="a"}']) < 600
    for line in text.splitlines():
        assert line.startswith(("# HELP veilface_", "# TYPE veilface_", "veilface_")), line
    heads = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))


def test_a_folder_in_which_nothing_has_happened_yet_is_shown_as_that(tmp_path: Path) -> None:
    fresh = ServerFolder(federation(tmp_path).folder)
    found = status(fresh)
    assert found.runs == () and {site.state for site in found.sites} == {"never"}
    assert _get(fresh, "/metrics", _token(fresh, "metrics")).status_code == 200


def test_off_this_machine_the_page_speaks_tls_as_the_server_of_its_bundle(
    made: Made, folder: ServerFolder, tmp_path: Path
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "server.deployment.page", "--folder", str(folder.path),
               "--listen", f"0.0.0.0:{port}", "--bundle", str(made.server)]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=made.trust) as client:
            wait_for(port)
            answer = client.get("/v1/health")
            assert answer.json() == {"status": "ok"}
            assert "max-age" in answer.headers["strict-transport-security"]
            headers = {"Authorization": f"Bearer {_token(folder)}"}
            assert client.get("/v1/status", headers=headers).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    log_lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["event"] for line in log_lines} == {"listening", "request"}
    certificate = (made.root / "fed/current/server.crt").read_bytes()
    assert "127.0.0.1" in names_in(certificate)


@pytest.fixture(scope="module")
def address(folder: ServerFolder) -> Iterator[str]:
    with served(create_page(folder, Settings())) as port:
        yield f"http://localhost:{port}"


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with quiet_page(browser, address, allowed=("status of 4", "ERR_FAILED")) as opened:
        yield opened


def _unlock(page: Page, token: str) -> None:
    time.sleep(0.6)  # a running page knows of a new token within half a second
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Unlock").click()
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()


@needs_browser
def test_the_page_shows_sites_runs_budgets_and_scores_and_saves_the_model(
    page: Page, folder: ServerFolder, tmp_path: Path
) -> None:
    _unlock(page, _token(folder))
    rows = page.locator("#sites tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("online")
    expect(rows.first).to_contain_text("5.2")
    runs = page.locator("article")
    expect(runs).to_have_count(3)
    expect(runs.nth(1)).to_contain_text("Round 12 of 40")
    expect(runs.nth(1).get_by_role("progressbar")).to_have_attribute("value", "12")
    expect(runs.nth(1)).to_contain_text("refused: budget")
    expect(runs.nth(2)).to_contain_text("FNMR at FMR 1%")
    expect(runs.nth(2)).to_contain_text("26.5%")
    expect(runs.nth(2)).to_contain_text("52% before private training")
    expect(runs.nth(1)).not_to_contain_text("before private training")
    expect(page.get_by_text("upper bound for each")).to_be_visible()
    with page.expect_download() as download:
        runs.nth(2).get_by_role("button", name="Download model").click()
    download.value.save_as(tmp_path / "model")
    assert download.value.suggested_filename == "first.safetensors"
    assert (tmp_path / "model").read_bytes() == folder.run("first").model.read_bytes()


@needs_browser
def test_the_page_follows_the_run_without_reload_and_keeps_the_readers_place(
    page: Page, folder: ServerFolder
) -> None:
    _unlock(page, _token(folder))
    runs = page.locator("article")
    summary = runs.nth(1).locator(".more summary")
    summary.focus()
    page.keyboard.press("Enter")  # the details of a run under way are open; now they are not
    page.evaluate("window.same = true")
    before = folder.run("second").progress()
    assert before is not None
    folder.run("second").report(_progress(13))
    try:
        expect(runs.nth(1)).to_contain_text("Round 13 of 40")
        assert page.evaluate("window.same") is True
        expect(runs.nth(1).locator(".more")).not_to_have_attribute("open", "")
        expect(summary).to_be_focused()
        folder.run("second").report(replace(_progress(13), state="failed", why="2 sites needed"))
        expect(runs.nth(1).locator(".why")).to_contain_text("2 sites needed")
        expect(page.get_by_role("status")).to_contain_text("run second is failed.")
    finally:
        folder.run("second").report(before)


@needs_browser
def test_a_token_that_is_wrong_or_for_metrics_or_revoked_meanwhile_locks_the_page(
    page: Page, folder: ServerFolder
) -> None:
    for text, words in (
        ("nonsense", "does not work"),
        (_token(folder, "metrics"), "for metrics only"),
    ):
        page.get_by_label("Token").fill(text)
        page.get_by_role("button", name="Unlock").click()
        expect(page.get_by_role("alert")).to_contain_text(words)
    text = _token(folder)
    _unlock(page, text)
    revoke_token(folder.path, text.split("_")[1])
    expect(page.get_by_role("alert")).to_contain_text("does not work")
    expect(page.locator("#everything")).to_be_hidden()


@needs_browser
def test_while_the_server_is_silent_the_page_says_since_when_and_goes_on_afterwards(
    page: Page, folder: ServerFolder
) -> None:
    _unlock(page, _token(folder))
    page.route("**/v1/status", lambda route: route.abort())
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.unroute("**/v1/status")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator("article")).to_have_count(3)


@needs_browser
def test_the_page_fits_a_phone_and_every_control_is_named_and_reached_by_keyboard(
    page: Page, folder: ServerFolder
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    _unlock(page, _token(folder))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    named = page.evaluate(
        "[...document.querySelectorAll('button, input, progress, [role=region]')]"
        ".filter((it) => it.checkVisibility())"
        ".every((it) => (it.ariaLabel || it.textContent || it.labels?.length))"
    )
    assert named
    reached = []
    page.locator("#leave").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.slice(0, 40)"))
    assert any("Sites and settings" in text for text in reached)
    assert any("Download model" in text for text in reached)
