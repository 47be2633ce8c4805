"""The page and its print-out say what the report says, in both languages, and nothing else."""

from __future__ import annotations

import json
import re
import string
import subprocess
from dataclasses import replace
from math import ceil, exp
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from playwright.sync_api import Browser
from scipy.optimize import brentq
from scipy.special import ndtr

from common.config import digest, to_json
from common.errors import InputError, VeilfaceError
from common.software import Package
from common.statement import Consent, Statement
from common.vault_facts import VaultFacts
from common.wording import points
from server.audit import cli
from server.audit.facts import Facts, Report
from server.audit.page import render, split
from server.audit.pdf import to_pdf
from server.audit.rates import Group, GroupRate, Groups, WorstGroup
from server.audit.wording import LANGUAGES, Language, Wording, in_hundred, share, texts
from server.report.utility import Utility
from server.report.verdict import HEADS
from tests.audit_rig import DELTA, REJECTED, Case, gained, make_run, report_of
from tests.browser_rig import needs_browser


def _has_pango() -> bool:
    try:
        import weasyprint  # type: ignore[import-untyped]  # noqa: F401 - loads Pango
    except (ImportError, OSError):
        return False
    return True


PAPER = _has_pango()
needs_pango = pytest.mark.skipif(not PAPER, reason="WeasyPrint or its Pango is not installed")
EXTERNAL = re.compile(
    r"""(?:src|href|action)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("audit") / "run")


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return report_of(run)


@pytest.fixture(scope="module")
def written(run: Path) -> Path:
    out = run.parent / "out"
    assert invoke(cli.report, run, "--out", out, *([] if PAPER else ["--no-pdf"])).exit_code == 0
    return out


def invoke(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(one) for one in arguments])  # type: ignore[arg-type]


def places(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)


def test_both_languages_have_the_same_keys_and_placeholders() -> None:
    first, *others = (texts(language) for language in LANGUAGES)
    for other in others:
        assert {s: sorted(t) for s, t in first.items()} == {s: sorted(t) for s, t in other.items()}
        for section, table in first.items():
            for name, text in table.items():
                assert places(text) == places(other[section][name]), f"{section}.{name}"
                assert text.count("<strong>") == other[section][name].count("<strong>")
    listed = [
        Wording(one).items("gaps.items", noise="x", several="y") + Wording(one).items("gaps.shared")
        for one in LANGUAGES
    ]
    assert len(listed[0]) == len(listed[1]) > 7


def test_every_word_of_the_tables_is_said_somewhere(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: set[str] = set()

    class Recording(Wording):
        def __call__(self, name: str, **values: object) -> str:
            said.add(name)
            return super().__call__(name, **values)

    monkeypatch.setattr("server.audit.page.Wording", Recording)
    for report_ in (report, *_other_reports(report, tmp_path)):
        assert render(report_, "en")
    every = {f"{section}.{name}" for section, table in texts("en").items() for name in table}
    assert every - said == set()


def _other_reports(report: Report, tmp_path: Path) -> list[Report]:
    """Reports that say what a plain one does not."""
    runs = [
        Case(spends=None),
        Case(sites=3, spends=2.0, budget=5.0),
        Case(sample_rate=0.5, rounds=1),
        Case(sites=1, rounds=1),
        Case(sites=3, minimum=3, rounds=2, scored=True),
        Case(sites=4, minimum=3, colluders=1, survivors=(4, 3, 0)),
        Case(sites=3, minimum=3, spends=None),
    ]
    found = [report_of(make_run(tmp_path / str(n), case)) for n, case in enumerate(runs)]
    meaning, facts, findings = report.findings.meaning, report.facts, report.findings
    assert meaning is not None
    renyi = replace(meaning, accountant="rdp", second_accountant="opacus-rdp")
    worst = WorstGroup("a", 2.0)
    rate = GroupRate(0.1, 0.05, 0.2)
    groups = Groups(0.5, worst, worst, (Group("a", 9, rate, rate), Group("b", 9, rate, None)))
    odd = replace(facts, utility=None, groups=groups, software=None, vaults=(_vault(),))
    entry = replace(findings.spending[0].rounds[0], released=False)
    spending = replace(findings.spending[0], rounds=(entry,), delta=0.5)
    changed = replace(findings, meaning=renyi, spending=(spending, *findings.spending[1:]))
    alone = replace(facts, sites=facts.sites[:1])
    masked = found[-1]
    site, *others = masked.facts.sites
    told = Statement.unverified(site.statement)
    consent = Consent(("dlib-resnet",), 4.0, DELTA, 4.0, 9, ("secagg",), 3, 0, ("ab",))
    agreed = replace(site, statement=to_json(replace(told, consent=consent)))
    contract = replace(masked.facts.contract, masking=None)
    earlier = replace(masked.facts, contract=contract, sites=(agreed, *others))
    found.append(replace(masked, facts=earlier))
    found += [replace(report, facts=replace(facts, utility=one)) for one in _utilities(facts)]
    for epsilon in (0.9, 20.0):
        spent = tuple(replace(one, spent=epsilon) for one in findings.spending)
        found.append(replace(report, findings=replace(findings, spending=spent)))
    scores = next(one.facts.scores for one in found if one.facts.scores)
    found.append(replace(report, facts=replace(facts, utility=None, scores=scores[::-1])))
    return [*found, replace(report, facts=odd, findings=changed), replace(report, facts=alone)]


def _utilities(facts: Facts) -> list[Utility]:
    """What training may have changed: every verdict, every stage, and an earlier version's."""
    assert facts.utility is not None
    plain = facts.utility
    worse, better = (
        replace(plain.after, tmr_at_fmr_1e2=plain.after.tmr_at_fmr_1e2 + change)
        for change in (-0.1, 0.1)
    )
    return [
        replace(plain, difference=None, recommended=None, judges=0),
        replace(plain, difference=gained(worse, plain.start), recommended="before", judges=0),
        replace(plain, difference=gained(better, plain.start), recommended="public"),
    ]


@pytest.mark.parametrize(
    ("place", "tone", "words"),
    [
        (0, None, "No verdict"),
        (1, "amber", HEADS["worse"]),
        (2, "good", HEADS["helped"]),
        (None, "neutral", HEADS["no-difference"]),
    ],
)
def test_the_verdict_has_the_words_and_the_colour_of_the_run_page(
    report: Report, place: int | None, tone: str | None, words: str
) -> None:
    utility = report.facts.utility if place is None else _utilities(report.facts)[place]
    page = render(replace(report, facts=replace(report.facts, utility=utility)), "en")
    section = page[page.index('<section id="utility">') :]
    assert words in section
    found = re.findall(r'<div class="verdict (\w+)"', section)
    assert found == ([] if tone is None else [tone])
    if utility is not None and utility.difference is not None:
        assert f"{points(utility.difference.tmr_mean.value)} points" in section
        assert "public only" in section and "Recommended: " in section


def _vault() -> str:
    key = Ed25519PrivateKey.generate()
    days = ("2026-11-01",)
    return VaultFacts(
        vault="ab", issued="", public_key=key.public_key().public_bytes_raw().hex(), subjects=3,
        templates=4, models=1, encryption="AES-256-GCM", key_locks=("key-file",),
        keeps_chips=False, rotations=days, renewals=(), erasures=days, log_entries=9,
        log_head="0" * 64,
    ).signed(key)  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_is_the_same_each_time_and_holds_its_report(
    report: Report, language: Language
) -> None:
    page = render(report, language)
    assert page == render(report, language)
    assert split(page) == (report.to_text(), language)
    assert "{" not in re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_asks_for_nothing_and_runs_nothing(report: Report, language: Language) -> None:
    page = render(report, language)
    assert page.count("<script") == 1 and 'type="application/json"' in page
    assert not EXTERNAL.findall(page.split("<script")[0])


def test_what_others_wrote_is_escaped(run: Path) -> None:
    report = report_of(run)
    page = render(report, "en")
    assert REJECTED not in page and "refused: budget &lt;b&gt;&amp;" in page
    evil = "<img src=x onerror=alert(1)>"
    first, *others = report.facts.sites
    told = Statement.unverified(first.statement)
    software = replace(told.software, packages=(Package(evil, evil),), python=evil, code=evil)
    hostile = replace(told, software=software, issued=evil)
    facts = replace(report.facts, sites=(replace(first, statement=to_json(hostile)), *others))
    assert "<img" not in render(replace(report, facts=facts), "en")


def test_the_page_says_in_words_what_was_promised_and_what_is_left(tmp_path: Path) -> None:
    page = render(report_of(make_run(tmp_path / "run", Case(spends=2.0, budget=5.0))), "en")
    assert "Limited by proof: epsilon 2.00 at delta" in page
    mu = brentq(lambda m: ndtr(m / 2 - 2 / m) - exp(2) * ndtr(-m / 2 - 2 / m) - DELTA, 0.1, 5)
    assert f"at most {ceil(100 * ndtr(mu / 2))} times in 100" in page
    assert "at least <strong>3.00</strong> is left" in page
    used_up = render(report_of(make_run(tmp_path / "other", Case(spends=2.0))), "en")
    assert "<strong>used up</strong>" in used_up


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_run_without_privacy_is_called_that_before_all(
    tmp_path: Path, language: Language
) -> None:
    page = render(report_of(make_run(tmp_path / "run", Case(spends=None))), language)
    headline = Wording(language)("short.headline_bad")
    assert 0 < page.index(headline) < page.index('id="meaning"')
    assert 'class="verdict good"' not in page


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("spends", "step", "tone"),
    [(1.0, "strong", "good"), (8.0, "moderate", "amber"), (20.0, "weak", "bad")],
)
def test_only_a_strong_promise_is_green_and_the_scale_names_its_source(
    tmp_path: Path, language: Language, spends: float, step: str, tone: str
) -> None:
    w = Wording(language)
    short = _short(render(report_of(make_run(tmp_path / "run", Case(spends=spends))), language))
    assert f'class="verdict {tone}" id="short"' in short
    assert re.findall(r'aria-current="?true"?>([^<]+)<', short) == [w(f"short.{step}")]
    assert w(f"short.is_{step}") in short and "Ponomareva" in short and "jair.1.14649" in short


def test_a_missing_statement_a_worse_model_and_a_large_delta_are_told_first_and_never_green(
    tmp_path: Path,
) -> None:
    report = report_of(make_run(tmp_path / "run", Case(spends=0.9)))
    facts, findings = report.facts, report.findings
    worse = replace(facts, utility=_utilities(facts)[1])
    fewer = replace(facts, sites=facts.sites[:1])
    large = replace(findings, spending=tuple(replace(s, delta=0.5) for s in findings.spending))
    first = replace(report, facts=replace(facts, utility=_utilities(facts)[2]))
    assert 'class="verdict good" id="short"' in _short(render(first, "en"))
    for other, said in (
        (replace(report, facts=worse), "worse than"),
        (replace(report, facts=fewer), "handed in no statement: site-001"),
        (replace(report, findings=large), "Delta is not small"),
    ):
        short = _short(render(other, "en"))
        assert 'class="verdict amber" id="short"' in short and said in short
    scored = report_of(make_run(tmp_path / "scored", Case(spends=0.9, rounds=2, scored=True)))
    assert 'class="verdict good" id="short"' in _short(render(scored, "en"))
    turned = replace(scored, facts=replace(scored.facts, scores=scored.facts.scores[::-1]))
    short = _short(render(turned, "en"))
    assert 'class="verdict amber" id="short"' in short and "scored lower" in short


def _short(page: str) -> str:
    """The first thing that a report says."""
    start = page.index('id="short"') - 40
    return page[start : page.index("</section>", start)]


def test_shares_are_never_rounded_down() -> None:
    assert share(0.82101) == "82.2%" and share(0.99981) == "99.99%" and share(1.0) == "100.0%"
    assert in_hundred(0.8201) == "83" and in_hundred(0.82) == "82"


FORMS = ["report.json", "report.html", pytest.param("report.pdf", marks=needs_pango)]


@pytest.mark.parametrize("name", FORMS)
def test_a_true_report_is_verified_in_all_three_forms(written: Path, name: str) -> None:
    result = invoke(cli.verify, written / name)
    assert result.exit_code == 0, result.output
    assert "FAILS" not in result.output


def test_changing_a_visible_number_of_the_page_is_caught(written: Path, tmp_path: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    visible = page[: page.index("</main>")]
    numbers = list(re.finditer(r"\d+", visible))
    assert len(numbers) > 300
    for found in numbers[:: len(numbers) // 40]:
        at = found.end() - 1
        other = f"{page[:at]}{(int(page[at]) + 1) % 10}{page[at + 1 :]}"
        (tmp_path / "report.html").write_text(other, encoding="utf-8")
        result = invoke(cli.verify, tmp_path / "report.html")
        assert "FAILS  the page shows what the report says" in result.output


@pytest.mark.parametrize("name", FORMS)
def test_a_changed_file_is_named_and_exits_1(written: Path, tmp_path: Path, name: str) -> None:
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    at = data.index(b"<strong>") + 9 if name == "report.html" else len(data) // 2
    data[at] = data[at] ^ 1
    (tmp_path / name).write_bytes(bytes(data))
    result = invoke(cli.verify, tmp_path / name)
    assert isinstance(result.exception, VeilfaceError) and result.exception.exit_code == 1
    assert "FAILS" in result.output


@needs_pango
def test_the_print_out_of_another_report_is_caught(written: Path, run: Path) -> None:
    other = written.parent / "again"
    assert invoke(cli.report, run, "--out", other).exit_code == 0
    for name in ("report.pdf", "report.pdf.sig"):
        (other / name).write_bytes((written / name).read_bytes())
    assert "FAILS" in invoke(cli.verify, other / "report.pdf").output


def test_verify_prints_one_json_object(written: Path) -> None:
    result = invoke(cli.verify, written / "report.json", "--json")
    found = json.loads(result.output)
    assert found["ok"] is True and {"outcome", "what", "detail"} == set(found["checks"][0])
    pinned = invoke(cli.verify, written / "report.json", "--fingerprint", "SHA256:x", "--json")
    assert json.loads(pinned.output)["ok"] is False


@needs_pango
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_print_out_is_a_pdf_with_text_in_it(report: Report, language: Language) -> None:
    try:
        pdf = to_pdf(report, language)
    except InputError as error:
        if "Chinese" not in error.message:
            raise
        pytest.skip(error.message)
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000


def test_a_folder_without_evidence_says_what_to_give(tmp_path: Path) -> None:
    result = invoke(cli.report, tmp_path, "--out", tmp_path / "out")
    assert isinstance(result.exception, InputError) and "--bundle" in result.exception.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xfe", b"%PDF-1.7", b"{}"])
def test_what_is_no_report_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    assert isinstance(invoke(cli.verify, tmp_path / "file").exception, VeilfaceError)


def test_the_group_rates_of_an_evaluation_stand_in_the_report(run: Path, tmp_path: Path) -> None:
    row = {"group": "a & b", "pairs": 900, "fmr": 0.002, "ci": [0.001, 0.004]}
    missed = {"fnmr": 0.25, "fnmr_ci": [0.2, 0.3]}
    groups = {
        "threshold": 0.5, "worst": "a & b", "ratio": 2.5, "fnmr_worst": "a & b",
        "fnmr_ratio": 1.5, "groups": [{**row, **missed}, {**row, "group": "c", "fnmr": None}],
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps({"groups": groups}))
    out = tmp_path / "out"
    arguments = ("--out", out, "--no-pdf", "--evaluation", tmp_path / "evaluation.json")
    assert invoke(cli.report, run, *arguments).exit_code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in ("a &amp; b", "0.200%", "25.000%", "not measured", "2.5 times"):
        assert text in page
    assert invoke(cli.verify, out / "report.html").exit_code == 0
    (tmp_path / "evaluation.json").write_text("{}")
    assert isinstance(invoke(cli.report, run, *arguments).exception, InputError)


@needs_browser
@pytest.mark.parametrize("language", LANGUAGES)
def test_on_a_phone_no_table_is_cut_and_no_word_stands_in_a_column_of_letters(
    report: Report, language: Language, browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(_agreed(report), language), encoding="utf-8")
    for width in (390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(path.as_uri())
        cut = "found => found.filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
        assert page.eval_on_selector_all(".scroll", cut) == []
        narrow = (
            "found => found.filter(e => e.offsetWidth && e.innerText.length > 3"
            " && e.offsetHeight > 5 * e.offsetWidth / 2).map(e => e.innerText)"
        )
        assert page.eval_on_selector_all("th, td", narrow) == []
        heads = page.locator("#consent thead").is_visible()
        label = "e => getComputedStyle(e, '::before').content"
        first = page.eval_on_selector("#consent td:nth-child(3)", label)
        named = first == f'"{Wording(language)("consent.budget")}"'
        assert heads != named, "each number stands under its head, or beside its name"


def _agreed(report: Report) -> Report:
    """The report with limits that every site signed."""
    agreed = Consent(("dlib-resnet",), 4.0, DELTA, 4.0, 9, ("local", "secagg"), 3, 1, ("ab" * 32,))
    sites = tuple(
        replace(
            one, statement=to_json(replace(Statement.unverified(one.statement), consent=agreed))
        )
        for one in report.facts.sites
    )
    return replace(report, facts=replace(report.facts, sites=sites))


needs_poppler = pytest.mark.skipif(which("pdftotext") is None, reason="poppler-utils is missing")


@needs_pango
@needs_poppler
@pytest.mark.parametrize("language", LANGUAGES)
def test_on_paper_no_page_is_half_empty_and_no_row_stands_alone(
    tmp_path: Path, language: Language
) -> None:
    report = _agreed(report_of(make_run(tmp_path / "run", Case(sites=3, rounds=12, spends=8.0))))
    model, contract = report.facts.model, digest(report.facts.contract)
    for rounds in (3, 5, 8, 12):
        spent = tuple(replace(s, rounds=s.rounds[:rounds]) for s in report.findings.spending)
        shown = replace(report, findings=replace(report.findings, spending=spent))
        try:
            pdf = to_pdf(shown, language)
        except InputError as error:
            pytest.skip(error.message)
        texts_ = _read(pdf, "pdftotext", "-layout", "-", "-").decode().split("\f")[:-1]
        by_round = re.compile(r"^ *\d+ +[\d.]+ +1 +1 +\S+ +[\d.]+ +[\d.]+$", re.MULTILINE)
        rows = [len(by_round.findall(text)) for text in texts_]
        assert sum(rows) == rounds and 1 not in rows
        alone = [text for text in texts_ if (model[:40] in text) != (contract[:40] in text)]
        assert alone == [], "the last two rows of a table stay together"
        for number, page in enumerate(_pages(pdf)[:-1], start=1):
            last = np.flatnonzero((page < 128).any(axis=1)).max() / len(page)
            assert last > 0.7, f"page {number} ends at {last:.0%}"


def _read(pdf: bytes, *command: str) -> bytes:
    return subprocess.run(command, input=pdf, capture_output=True, check=True).stdout


def _pages(pdf: bytes) -> list[np.ndarray]:
    """Each page in grey, without its margin at the foot."""
    data, pages = _read(pdf, "pdftoppm", "-r", "40", "-gray", "-"), []
    while data:
        _, width, height, _ = data.split(maxsplit=4)[:4]
        header = len(b"P5\n%s %s\n255\n" % (width, height))
        size = int(width) * int(height)
        grey = np.frombuffer(data[header : header + size], np.uint8).reshape(int(height), -1)
        pages.append(grey[: int(0.93 * len(grey))])
        data = data[header + size :]
    return pages


@needs_browser
def test_in_a_browser_the_page_fits_a_phone_and_asks_for_nothing(
    written: Path, browser: Browser
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((written / "report.html").as_uri())
    assert asked == [(written / "report.html").as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    first = page.locator(".cards").bounding_box()
    assert first is not None and first["y"] < 800, "the promise is on the first screen"
