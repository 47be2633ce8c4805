"""What a server tells of each round's model, and of the updates that were not used."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity
from playwright.sync_api import Browser, Locator, Page, expect
from rich.console import Console

from common.backbones.weights import load_model
from common.errors import InputError, UpdateRejected
from common.update import FORMAT
from server.checkpoint import history
from server.deployment.folder import ServerFolder
from server.deployment.journal import kind_of
from server.deployment.page import create_page
from server.deployment.status import status
from server.deployment.tokens import create_token
from server.exchange import header_of
from simulations.experiment import Experiment
from simulations.material import gather
from simulations.progress import LiveProgress
from simulations.run_folder import RunFolder as SimulatedRun
from simulations.simulate import simulate
from tests.browser_rig import needs_browser, quiet_page
from tests.deployment_rig import command
from tests.front_rig import federation
from tests.server_run_rig import SOUTH, ask, carry, meet, record
from tests.serving_rig import served

ROUNDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ServerFolder:
    """Runs with no finished round, 3 of 40 without scores, and all of 300."""
    folder = ServerFolder(federation(tmp_path_factory.mktemp("fed")).folder)
    meet(folder)
    for hour, (name, rounds, done) in enumerate((("long", ROUNDS, ROUNDS), ("short", 40, 3))):
        run = ask(folder, name, rounds, f"2026-11-24T0{hour}:00:00Z")
        carry(folder, run, (record(n, scored=name == "long") for n in range(1, done + 1)))
    carry(folder, ask(folder, "new", 40, "2026-11-24T08:00:00Z"), ())
    ask(folder, "waits", 40, "2026-11-24T09:00:00Z")
    return folder


def get(folder: ServerFolder, path: str) -> httpx.Response:
    token = create_token(folder.path, ("view",), None)[0]

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(create_page(folder))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers={"Authorization": f"Bearer {token}"})

    return asyncio.run(send())


def test_the_last_round_names_the_very_model_that_can_be_downloaded(
    experiment: Experiment, tmp_path: Path
) -> None:
    short = replace(experiment, rounds=2, sites=2)
    run = SimulatedRun.start(tmp_path / "run", short)
    with LiveProgress(Console(stderr=True), quiet=True) as progress:
        simulate(short, run, gather(short), progress)
    first, last = history(run.path / "checkpoint.safetensors")
    assert last.model == load_model(run.path / "model.safetensors").model_id
    assert re.fullmatch("[0-9a-f]{64}", first.model) and first.model != last.model
    assert last.used == last.asked and len(last.used) == last.accepted == 2


def test_every_finished_round_is_told_with_its_model_sites_seconds_and_scores(
    folder: ServerFolder,
) -> None:
    found = get(folder, "/v1/runs/long").json()
    assert [one["round"] for one in found["versions"]] == list(range(ROUNDS, 0, -1))
    for one in found["versions"]:
        kept = record(one["round"])
        assert one == {
            name: getattr(kept, name)
            for name in ("round", "model", "accepted", "seconds", "scores")
        }
    assert found["scores"] == found["versions"][0]["scores"] != {}
    short = get(folder, "/v1/runs/short").json()["versions"]
    assert [(one["round"], one["scores"]) for one in short] == [(3, {}), (2, {}), (1, {})]
    for name in ("new", "waits"):
        assert get(folder, f"/v1/runs/{name}").json()["versions"] == []


def test_the_overview_that_a_page_asks_for_every_3_s_does_not_grow_with_the_rounds(
    folder: ServerFolder,
) -> None:
    overview = get(folder, "/v1/status")
    assert "versions" not in overview.text and len(overview.content) < 8_000
    details = get(folder, "/v1/runs/long").json()
    long = next(run for run in overview.json()["runs"] if run["run_id"] == "long")
    assert {name: details[name] for name in long} == long
    described = get(folder, "/openapi.json").json()["components"]["schemas"]
    assert set(described["ModelVersion"]["properties"]) == set(details["versions"][0])
    assert "versions" in described["RunDetails"]["properties"]


def test_a_checkpoint_of_an_earlier_version_has_rounds_without_a_model(
    folder: ServerFolder, tmp_path: Path
) -> None:
    old = (folder.run("short").checkpoint).read_bytes()
    assert old.count(b'\\"model\\"') == 3
    size = int.from_bytes(old[:8], "little")
    head = re.sub(rb', \\"model\\": \\"\w{64}\\"', b"", old[8 : 8 + size])
    assert b'\\"model\\"' not in head
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + old[8 + size :])
    assert [(one.round, one.model) for one in history(path)] == [(1, ""), (2, ""), (3, "")]
    path.write_bytes(old[:100])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        history(path)


def refusal(word: str) -> RecordDict:
    return RecordDict({"header": ConfigRecord({"format": FORMAT, "refusal": word})})


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal("budget"), "budget"),
        (refusal("storage"), "storage"),
        (refusal("a name of a person"), "malformed"),
        (RecordDict(), "malformed"),
        (Error(ErrorCode.INVALID_FAB), "code"),
        (Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), "failed"),
    ],
)
def test_an_answer_that_is_not_used_is_counted_by_a_word_of_a_fixed_list(
    answer: RecordDict | Error, kind: str
) -> None:
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    question = Message(RecordDict(), 1, "train")
    with pytest.raises(UpdateRejected) as rejected:
        header_of(Message(answer, reply_to=question))
    assert kind_of(rejected.value.message) == kind


def test_rejections_are_counted_over_the_whole_run_by_reason(folder: ServerFolder) -> None:
    progress = folder.run("long").progress()
    assert progress is not None
    a, b = progress.sites
    each = ROUNDS // 5 // 5
    assert a.rejections == {"lost": 1}
    assert b.rejections == {
        "silent": each, "data": each, "code": each, "failed": each, "malformed": each, "lost": 1,
    }  # fmt: skip
    for site in (a, b):
        assert site.asked - site.accepted == sum(site.rejections.values())
    lines = get(folder, "/metrics").text.splitlines()
    start = 'veilface_updates_rejected_total{run="long",site="b",reason='
    assert {line.removeprefix(start) for line in lines if line.startswith(start)} == {
        f'"{reason}"}} {count}' for reason, count in b.rejections.items()
    }
    assert "# TYPE veilface_updates_rejected_total counter" in lines
    assert not any(line.startswith("veilface_update_rejected") for line in lines)


def test_a_site_that_was_not_ready_is_counted_though_it_was_not_asked(tmp_path: Path) -> None:
    folder = ServerFolder(federation(tmp_path).folder)
    meet(folder)
    unready = ((SOUTH, "refused: contract"),)
    records = [replace(record(n), rejected=unready, asked=(11,), accepted=1) for n in range(1, 4)]
    carry(folder, run := ask(folder, "r", 9, "2026-11-24T00:00:00Z"), records)
    progress = run.progress()
    assert progress is not None
    (b,) = [site for site in progress.sites if site.site == "b"]
    assert (b.asked, b.accepted, b.rejections) == (0, 0, {"contract": 3})


def test_the_command_line_tells_the_same(folder: ServerFolder) -> None:
    done = command("server", "status", "--state", folder.path, "--json")
    runs = json.loads(done.out)["runs"]
    assert runs["long"]["versions"] == get(folder, "/v1/runs/long").json()["versions"]
    assert runs["waits"] == {"state": "waiting", "versions": []}
    plain = command("server", "status", "--state", folder.path).out
    assert "a: 299 of 300 rounds used" in plain and "; not used: 1 lost" in plain


@pytest.fixture(scope="module")
def address(folder: ServerFolder) -> Iterator[str]:
    with served(create_page(folder)) as port:
        yield f"http://localhost:{port}"


@pytest.fixture
def page(browser: Browser, address: str, folder: ServerFolder) -> Iterator[Page]:
    token = create_token(folder.path, ("view",), None)[0]
    time.sleep(0.6)  # a running page knows of a new token within half a second
    with quiet_page(browser, address) as opened:
        opened.get_by_label("Token").fill(token)
        opened.get_by_role("button", name="Unlock").click()
        expect(opened.get_by_role("heading", name="Runs")).to_be_visible()
        yield opened


def card(page: Page, run: str) -> Locator:
    return page.get_by_role("article", name=run, exact=True)


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_shows_each_model_and_a_line_for_each_score(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    long = card(page, "long")
    expect(long.locator(".models tr")).to_have_count(0)
    long.get_by_text("Models", exact=True).click()
    rows = long.locator(".models tbody tr")
    expect(rows).to_have_count(ROUNDS)
    newest = record(ROUNDS)
    expect(rows.first).to_have_text(f"{ROUNDS}18.6%36.1%12.03{newest.model[:12]}")
    expect(rows.nth(ROUNDS - 7)).to_contain_text("no sum")
    lines = long.get_by_role("img")
    expect(lines).to_have_count(2)
    label = lines.first.get_attribute("aria-label") or ""
    assert re.fullmatch(r"FNMR at FMR 1%: 30\.8% after round 1, 18\.6% after 300", label)
    points = (long.locator("polyline").first.get_attribute("points") or "").split(" ")
    assert len(points) == ROUNDS and points[0] == "0,0" and points[-1].startswith("100,4")
    region = long.get_by_role("region", name="Models of long")
    assert region.evaluate("it => it.clientHeight < 400 && it.scrollHeight > 4000")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(long).not_to_contain_text("NaN")
    expect(long).not_to_contain_text("undefined")


@needs_browser
def test_runs_without_scores_or_rounds_have_no_line_and_say_so(page: Page) -> None:
    short, new = card(page, "short"), card(page, "new")
    expect(short.locator(".models tbody tr")).to_have_count(3)  # open: the run is under way
    expect(short.locator(".models")).not_to_contain_text("FNMR")
    expect(short.locator("polyline")).to_have_count(0)
    expect(new.locator(".models")).to_contain_text("No round has finished yet.")


@needs_browser
def test_the_page_says_by_reason_how_often_a_site_was_not_used(page: Page) -> None:
    long = card(page, "long")
    long.get_by_text("Sites and settings").click()
    rows = long.locator(".more tbody tr")
    expect(rows.first).to_contain_text("1 lost")
    for reason in ("silent", "data", "code", "failed", "malformed"):
        expect(rows.last).to_contain_text(f"12 {reason}")


@needs_browser
def test_the_page_says_no_less_than_was_spent_and_no_more_than_is_left(
    page: Page, folder: ServerFolder
) -> None:
    found = status(folder)
    for one in found.runs:
        shown = card(page, one.run_id)
        for row, site in zip(shown.locator(".more tbody tr").all(), one.sites, strict=True):
            spent, left = (float(cell) for cell in row.locator("td").all_text_contents()[4:6])
            assert site.spent <= spent < site.spent + 0.01
            assert site.left - 0.01 < left <= site.left
        if one.sites:
            worst = max(site.spent for site in one.sites)
            assert float(shown.locator(".big").first.text_content() or "") >= worst
    for row, total in zip(page.locator("#sites tbody tr").all(), found.sites, strict=True):
        epsilon, delta = row.locator("td").last.locator("span").all_text_contents()
        assert float(epsilon.removesuffix(delta)) >= total.epsilon > 0


@needs_browser
def test_a_new_round_comes_on_top_while_somebody_reads_below(
    page: Page, folder: ServerFolder
) -> None:
    run, records = folder.run("short"), [record(n) for n in range(1, 31)]
    carry(folder, run, records)
    rows = card(page, "short").locator(".models tbody tr")
    expect(rows).to_have_count(30)
    region = card(page, "short").get_by_role("region", name="Models of short")
    region.evaluate("it => it.scrollTo(0, 300)")
    tenth = "it => it.rows[it.rows.length - 10].getBoundingClientRect().top"
    table = region.locator("table")
    before = table.evaluate(tenth)
    carry(folder, run, [*records, record(31)])
    expect(rows).to_have_count(31)
    expect(rows.first).to_contain_text(record(31).model[:12])
    assert abs(table.evaluate(tenth) - before) < 2
