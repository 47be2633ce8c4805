"""The web page in a real browser: what a person sees, and that nothing leaves for elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from client.picture import Picture
from client.service.tokens import SCOPES
from client.vault import Receipt
from tests.browser_rig import needs_browser, quiet_page
from tests.service_rig import Site, faces, new_site
from tests.serving_rig import served

pytestmark = needs_browser
_PERSON = "Person <b>7</b> & Söhne"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with new_site(tmp_path_factory.mktemp("site")) as made:
        made.calibrate(0.99)
        yield made


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    with served(site.app) as port:
        yield f"http://localhost:{port}"


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with quiet_page(browser, address, permissions=["camera"]) as opened:
        yield opened


def _unlock(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Unlock").click()
    expect(page.get_by_role("tablist")).to_be_visible()


def _picture(page: Page, section: str, *images: bytes) -> None:
    files: Any = [
        {"name": "face.jpg", "mimeType": "image/jpeg", "buffer": image} for image in images
    ]
    page.locator(f"#{section} input[type=file]").set_input_files(files)


def test_a_person_is_enrolled_verified_identified_and_erased_on_the_page(
    page: Page, site: Site, tmp_path: Path
) -> None:
    _unlock(page, site.token(*SCOPES))
    page.get_by_label("Identifier").first.fill(_PERSON)
    _picture(page, "enrol", faces()[0], faces()[0])
    expect(page.locator("#enrol .previews img")).to_have_count(2)
    page.get_by_role("button", name="Remove picture 2").click()
    page.get_by_role("button", name="Enrol", exact=True).click()
    result = page.locator("#enrol .result")
    expect(result).to_contain_text("Enrolled")
    pseudonym = site.vault.pseudonym(_PERSON)
    expect(result).to_contain_text(pseudonym)
    site.recogniser.enrol("another", [Picture("image", faces()[1])])

    page.get_by_role("tab", name="Verify").click()
    page.get_by_label("Claimed identifier").fill(_PERSON)
    for image, words in ((faces()[0], "Accepted"), (faces()[1], "Rejected")):
        _picture(page, "verify", image)
        page.get_by_role("button", name="Verify", exact=True).click()
        expect(page.locator("#verify .result")).to_contain_text(words)

    page.get_by_role("tab", name="Identify").click()
    _picture(page, "identify", faces()[0])
    page.get_by_role("button", name="Identify", exact=True).click()
    ranked = page.locator("#identify .gallery li")
    expect(ranked).to_have_count(2)
    expect(ranked.first).to_contain_text(pseudonym)
    expect(ranked.first).to_contain_text("reaches the threshold")
    expect(ranked.last).to_contain_text("below the threshold")
    assert ranked.first.locator(".line").evaluate("line => line.style.left") == "99%"

    page.get_by_role("tab", name="People").click()
    expect(page.locator("#people tbody tr")).to_have_count(2)
    page.locator("#erase-subject").fill(_PERSON)
    page.get_by_role("button", name="Erase…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(_PERSON)
    dialog.get_by_role("button", name="Keep").click()
    assert site.vault.info.subjects == 2
    page.get_by_role("button", name="Erase…").click()
    dialog.get_by_role("button", name="Erase", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download receipt").click()
    download.value.save_as(tmp_path / "receipt.json")
    assert Receipt.verify((tmp_path / "receipt.json").read_text()).pseudonym == pseudonym
    expect(page.locator("#people tbody tr")).to_have_count(1)
    assert site.vault.info.subjects == 1

    page.get_by_role("tab", name="Log").click()
    expect(page.locator("#log tbody tr").first).to_contain_text("erase")
    page.get_by_role("tab", name="Thresholds").click()
    expect(page.locator("#thresholds .card").first).to_contain_text("0.9900")


def test_a_picture_is_taken_with_the_camera_and_a_face_is_missed(page: Page, site: Site) -> None:
    _unlock(page, site.token("enrol"))
    page.get_by_role("button", name="Use camera").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    # `wait_for_function` would evaluate text in the page, which its policy forbids.
    expect(page.locator("#camera-view")).not_to_have_js_property("videoWidth", 0)
    page.get_by_role("button", name="Take picture").click()
    expect(page.locator("#enrol .previews img")).to_have_count(1)
    assert page.locator("#camera-view").evaluate("view => view.srcObject") is None
    page.locator("#enrol-subject").fill("nobody")
    page.get_by_role("button", name="Enrol", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("no face found")


def test_the_page_works_by_keyboard_alone(page: Page, site: Site) -> None:
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type(site.token(*SCOPES))
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Enrol")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Verify")).to_be_focused()
    expect(page.get_by_role("tabpanel")).to_have_attribute("aria-labelledby", "tab-verify")
    page.keyboard.press("End")
    expect(page.get_by_role("tab", name="Log")).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    expect(page.locator("#enrol-subject")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"


def test_every_field_and_button_has_a_name(page: Page, site: Site) -> None:
    _unlock(page, site.token(*SCOPES))
    unnamed = page.evaluate("""() => [...document.querySelectorAll("input, button, video")]
        .filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))
        .map((one) => one.outerHTML)""")
    assert unnamed == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(scheme: Any, page: Page, site: Site) -> None:
    page.emulate_media(color_scheme=scheme)
    _unlock(page, site.token(*SCOPES))
    pairs = page.evaluate("""() => {
        const style = getComputedStyle(document.documentElement);
        const paint = document.createElement("canvas").getContext("2d");
        const light = (name) => {
          paint.fillStyle = style.getPropertyValue(name).trim();
          const [r, g, b] = paint.fillStyle.match(/[0-9a-f]{2}/g).map((two) => {
            const v = parseInt(two, 16) / 255;
            return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ratio = (a, b) => {
          const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
          return (high + 0.05) / (low + 0.05);
        };
        return [["--ink", "--ground"], ["--ink", "--paper"], ["--soft", "--ground"],
          ["--soft", "--paper"], ["--accent", "--paper"], ["--accent", "--ground"],
          ["--accent", "--tint"], ["--on-accent", "--accent"], ["--paper", "--bad"],
          ["--good", "--good-tint"], ["--bad", "--bad-tint"], ["--warn", "--warn-tint"],
          ["--soft", "--good-tint"], ["--soft", "--bad-tint"], ["--ink", "--warn-tint"]]
          .map(([a, b]) => [a, b, ratio(a, b)]);
    }""")
    assert [pair for pair in pairs if pair[2] < 4.5] == []


def test_a_phone_scrolls_nothing_sideways(page: Page, site: Site) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    _unlock(page, site.token(*SCOPES))
    for name in ("Enrol", "Verify", "Identify", "People", "Thresholds", "Log"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_token_is_shown_only_what_it_is_good_for(page: Page, site: Site) -> None:
    _unlock(page, site.token("verify"))
    assert page.get_by_role("tab").all_inner_texts() == ["Verify", "Thresholds"]
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.get_by_role("button", name="Lock").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    page.get_by_label("Token").fill("vf_wrong")
    page.get_by_role("button", name="Unlock").click()
    expect(page.get_by_role("alert")).to_contain_text("does not work")


def test_the_description_of_the_api_can_be_read(page: Page, site: Site, address: str) -> None:
    page.goto(f"{address}/docs")
    page.get_by_label("Token").fill(site.token("verify"))
    page.get_by_role("button", name="Show the API").click()
    expect(page.locator(".operation")).to_have_count(10)
    expect(page.locator("#operations")).to_contain_text("/v1/subjects/erase")
    assert "undefined" not in page.locator("#operations").inner_text()


def test_the_page_runs_nothing_that_it_did_not_bring(browser: Browser, address: str) -> None:
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda it: refused.append(it.text))
    page.goto(address)
    ran = page.evaluate("""() => {
        const put = (tag, name, value) => {
          const element = document.createElement(tag);
          try { element.setAttribute(name, value); } catch {}
          document.body.append(element);
          element.click();
        };
        put("script", "src", "data:text/javascript,window.intruder=1");
        put("button", "onclick", "window.intruder=1");
        put("img", "src", "https://elsewhere.example/x.png");
        try { document.body.innerHTML += "<hr>"; } catch {}
        return "intruder" in window || document.querySelector("hr") !== null;
    }""")
    page.close()
    assert ran is False
    assert any("Trusted" in text or "Content Security Policy" in text for text in refused)
