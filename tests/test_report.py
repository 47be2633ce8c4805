"""The report shows the record and nothing else, asks nobody, and never plays privacy up."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from common.metrics import Interval, Intervals, Verification
from common.paired import Change, Difference
from common.wording import change, plural, points
from server.report.drawing import Plot
from server.report.page import render, write_page
from server.report.plots import draw_all, write_plots
from server.report.run_record import (
    Adversary,
    PrivacyRecord,
    RoundPoint,
    RunRecord,
    Setting,
    SiteAlone,
    SiteSpending,
    Skipped,
    Unreleased,
    by_size,
    read_run,
    run_from_json,
    write_run,
)
from server.report.strength import SOURCE
from server.report.utility import DetPoints
from server.report.verdict import amber, told
from server.report.wording import detection, duration, epsilon, power

HOSTILE = "<script src='http://evil.example/x.js'>alert(1)</script>\"&'</style>"


def intervals(middle: float) -> Intervals:
    interval = Interval(middle - 0.02, middle + 0.03)
    return Intervals(interval, interval, interval)


RECORD = RunRecord(
    run_id="run-seven",
    created="2026-01-02T03:04:05+00:00",
    model="dlib-resnet, adapter",
    before=Verification(0.075, 0.693, 0.398, 4321, 987654, intervals(0.5)),
    after=Verification(0.071, 0.735, 0.449, 4321, 987654, intervals(0.6)),
    privacy=PrivacyRecord(
        unit="person",
        adjacency="add or remove one person at one site",
        delta=1e-4,
        adversaries=(Adversary("the server", 3.996), Adversary("anyone with the model", 2.5)),
        per_site=(
            SiteSpending("north", 3.996, 4.0, 3.71, 20),
            SiteSpending("south", 3.996, 4.0, 3.71, 20),
            SiteSpending("west", 1.234, 2.0, 6.52, 18),
        ),
    ),
    seconds=412.7,
    peak_mb=1834.2,
    det_before=DetPoints((1.0, 0.1, 0.01, 0.001, 0.0), (0.0, 0.04, 0.307, 0.602, 1.0)),
    det_after=DetPoints((1.0, 0.1, 0.01, 0.001, 0.0), (0.0, 0.03, 0.265, 0.551, 1.0)),
    rounds=(
        RoundPoint(1, 0.71, 0.41, (2.1, 2.1, 0.7)),
        RoundPoint(2, 0.735, 0.449, (3.996, 3.996, 1.234)),
    ),
    settings=(Setting("shift", "cctv"), Setting("rounds", "20")),
    skipped=(Skipped("no face found", 39),),
    warnings=("one site was slow",),
    files=("model.safetensors", "run.json"),
)


def changed_privacy(**values: Any) -> RunRecord:
    return dataclasses.replace(RECORD, privacy=dataclasses.replace(RECORD.privacy, **values))


SEEDED = changed_privacy(not_private="the noise came from a seed")
OPEN = dataclasses.replace(
    RECORD,
    rounds=(RoundPoint(1, 0.71, 0.41, (None,)),),
    privacy=dataclasses.replace(
        RECORD.privacy,
        not_private="no noise was added",
        adversaries=(Adversary("the server", None),),
        per_site=(SiteSpending("north", None, None, 0.0, 20),),
    ),
)


@pytest.fixture(scope="module")
def drawn() -> tuple[Plot, ...]:
    return draw_all(RECORD)


class Page(HTMLParser):
    """Tags, attributes and the text outside style sheets and drawings."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.inside: list[str] = []
        self.chunks: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag in ("style", "svg"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.chunks.append(data)

    @property
    def text(self) -> str:
        return "".join(self.chunks)


@pytest.mark.parametrize("record", [RECORD, SEEDED, OPEN], ids=["private", "seeded", "open"])
def test_a_record_survives_its_file(record: RunRecord, tmp_path: Path) -> None:
    write_run(record, tmp_path)
    assert read_run(tmp_path) == record


def test_the_summary_has_the_keys_of_the_contract() -> None:
    summary = RECORD.summary()
    assert list(summary) == [
        *("run_id", "model", "before", "public_only", "after", "stages", "verdict", "recommended"),
        *("judges", "difference", "difference_alone", "verdict_alone", "alone_by_site", "privacy"),
        *("seconds", "peak_mb", "per_round"),
    ]
    stages = summary["stages"]
    assert isinstance(stages, dict)
    assert list(stages) == ["before", "public", "alone", "after", "after_own"]
    assert stages["before"] == RECORD.before.to_json() and stages["alone"] is None
    privacy = summary["privacy"]
    assert isinstance(privacy, dict)
    assert privacy["adversaries"] == {"the server": 3.996, "anyone with the model": 2.5}
    assert {"unit", "adjacency", "delta", "per_site"} < set(privacy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: run.pop("model"), "missing key 'model'"),
        (lambda run: run.update(extra=1), "unknown key 'extra'"),
        (lambda run: run.update(seconds="long"), "run.seconds"),
        (lambda run: run["rounds"][0].update(round=1.5), r"run.rounds\[0\].round"),
        (lambda run: run["rounds"][0]["epsilon"].pop(), "2 of 3 sites"),
        (lambda run: run["det_after"]["fmr"].pop(), "as many FMR as FNMR"),
        (lambda run: run["before"]["ci"].update(eer=[1]), r"run.before.ci.eer: expected \[low"),
        (lambda run: run["before"].pop("eer"), "missing key 'eer'"),
        (lambda run: run.update(privacy=None), "run.privacy: expected a table"),
        (lambda run: run.update(files="model"), "run.files: expected a list"),
        (lambda run: run["privacy"].update(delta=1.0), "delta must lie strictly"),
        (lambda run: run["privacy"]["adversaries"].update(a=-1.0), "epsilon -1.0 is no bound"),
        (lambda run: run["skipped"].update(a="many"), "reason|count"),
    ],
)
def test_a_damaged_record_is_named(change: Any, words: str) -> None:
    run = json.loads(json.dumps(RECORD.to_json()))
    change(run)
    with pytest.raises(InputError, match=words):
        run_from_json(run)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not JSON"):
        read_run(tmp_path)


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    written = [*write_plots(RECORD, tmp_path), write_page(RECORD, tmp_path)]
    names = ["index.html", *(f"{n}.{e}" for n in ("det", "epsilon", "tmr") for e in ("png", "svg"))]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    for path in tmp_path.glob("*.svg"):
        ElementTree.fromstring(path.read_text(encoding="utf-8"))
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_asks_nobody_and_needs_no_script(drawn: tuple[Plot, ...]) -> None:
    html = render(RECORD, drawn)
    page = Page(html)
    assert "http" not in html and "@import" not in html
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert value.startswith("#")
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", html))


def test_a_drawing_keeps_its_own_identifiers(drawn: tuple[Plot, ...]) -> None:
    page = Page(render(RECORD, drawn))
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    for name, value in page.attributes:
        if name == "href":
            assert value[1:] in identifiers
        for target in re.findall(r"url\(#([^)]*)\)", value):
            assert target in identifiers


def test_hostile_names_stay_text(drawn: tuple[Plot, ...]) -> None:
    privacy = dataclasses.replace(
        RECORD.privacy,
        unit=HOSTILE,
        adjacency=HOSTILE,
        not_private="",
        adversaries=(Adversary(HOSTILE, 1.0),),
        per_site=tuple(dataclasses.replace(s, site=HOSTILE) for s in RECORD.privacy.per_site),
    )
    record = dataclasses.replace(
        RECORD,
        run_id=HOSTILE,
        created=HOSTILE,
        model=HOSTILE,
        privacy=privacy,
        settings=(Setting(HOSTILE, HOSTILE),),
        skipped=(Skipped(HOSTILE, 1),),
        warnings=(HOSTILE,),
        files=(HOSTILE,),
    )
    for shown in (
        record,
        dataclasses.replace(record, privacy=dataclasses.replace(privacy, not_private=HOSTILE)),
    ):
        page = Page(render(shown, draw_all(shown)))
        assert "script" not in page.tags
        assert not any("evil" in value for name, value in page.attributes if name != "aria-label")
        assert page.text.count(HOSTILE) >= 9


def test_the_page_can_be_read_without_seeing_it(drawn: tuple[Plot, ...]) -> None:
    html = render(RECORD, drawn)
    page = Page(html)
    assert page.tags.count("h1") == 1 and page.tags.count("h2") >= 7
    assert page.tags.count("table") == page.tags.count("caption") == 4
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert [plot.alt for plot in drawn] == labels
    assert ("lang", "en") in page.attributes
    assert "prefers-color-scheme: dark" in html and "@media print" in html


def test_every_number_on_the_page_comes_from_the_record(drawn: tuple[Plot, ...]) -> None:
    text = " ".join(Page(render(RECORD, drawn)).chunks)
    shown = set(re.findall(r"\d[\d,.]*(?:e-\d+)?(?<![.,])", text))
    fixed = {"1e-2", "1e-3", "95", "1.0"}  # operating points, level of intervals and of alarms
    rates = {"69.3", "39.8", "7.5", "73.5", "44.9", "7.1"}
    ends = {"48.0", "53.0", "58.0", "63.0"}
    privacy = {"1e-4", "4.00", "2.50", "1.24", "2.00", "3.710", "6.520", "20", "18"}
    # e^3.996 and e^2.5 times 1% false alarms, plus delta, rounded up.
    limits = {"54.4", "12.2"}
    run = {"2026", "01", "02T03", "04", "05", "00", "6", "53", "1,834", "4,321", "987,654", "39"}
    counted = {"2", "3"}  # sites that share a row; rounds and sites in the plots' words
    fixed |= {"1", "10"} | set(re.findall(r"\d[\d.]*(?<!\.)", SOURCE))  # the scale and its source
    assert shown <= fixed | rates | ends | privacy | limits | run | counted | {"02", "03"}
    assert rates | ends | privacy | limits | {"1,834", "4,321", "987,654", "39"} <= shown


def test_epsilon_is_never_shown_without_delta(drawn: tuple[Plot, ...]) -> None:
    text = Page(render(RECORD, drawn)).text
    for match in re.finditer(r"epsilon \d[\d.]*", text):
        assert text[match.end() :].startswith(" at delta 1e-4")
    assert "Moderate privacy: epsilon 4.00 at delta 1e-4" in text


@pytest.mark.parametrize("record", [SEEDED, OPEN], ids=["seeded", "open"])
def test_a_run_that_is_not_private_says_so_loudly(record: RunRecord) -> None:
    page = Page(render(record, draw_all(record)))
    assert "NOT PRIVATE" in page.text and record.privacy.not_private in page.text
    assert " privacy: epsilon" not in page.text
    assert ("role", "alert") in page.attributes
    assert "took part finds at most" not in page.text
    assert not record.privacy.private


def test_an_unbounded_adversary_alone_makes_a_run_not_private(drawn: tuple[Plot, ...]) -> None:
    record = changed_privacy(adversaries=(Adversary("the server", None), Adversary("b", 1.0)))
    assert not record.privacy.private
    text = Page(render(record, drawn)).text
    assert "NOT PRIVATE" in text and "Nothing limits what can be found out" in text


def test_drawings_say_what_they_show(drawn: tuple[Plot, ...]) -> None:
    det, tmr, spent = drawn
    for alt in (det.alt, tmr.alt):
        assert "FMR 1e-2: before 69.3%, federated 73.5%" in alt
        assert "FMR 1e-3: before 39.8%, federated 44.9%" in alt
    assert "at most epsilon 4.00 at delta 1e-4" in spent.alt
    assert "budget 4.00" in spent.svg and "budget 2.00" in spent.svg
    assert "epsilon spent (delta 1e-4)" in spent.svg
    assert "FMR 1e-3" in det.svg and "FMR 1e-2" in det.svg


def test_drawings_are_the_same_each_time(drawn: tuple[Plot, ...]) -> None:
    draw_all.cache_clear()
    assert draw_all(RECORD)[0].svg == drawn[0].svg


def test_a_perfect_model_and_no_finished_round_can_be_drawn() -> None:
    perfect = DetPoints((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    record = dataclasses.replace(RECORD, det_before=perfect, det_after=perfect, rounds=())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(draw_all(record)) == 3


@given(st.floats(1e-3, 1e3))
def test_a_shown_epsilon_never_says_less(value: float) -> None:
    assert value <= float(epsilon(value)) + 1e-7
    assert float(epsilon(value)) < value + 0.0101


def test_numbers_in_words() -> None:
    assert (epsilon(4.0), epsilon(4.0000000001), epsilon(3.991)) == ("4.00", "4.00", "4.00")
    assert (power(1e-4), power(2.5e-6), power(0.001)) == ("1e-4", "2.5e-6", "1e-3")
    assert (points(0.041), points(-0.004)) == ("+4.1", "\N{MINUS SIGN}0.4")
    assert (plural(1, "site"), plural(0, "site"), plural(1200, "site")) == (
        *("1 site", "0 sites", "1,200 sites"),
    )
    assert (duration(9.96), duration(61), duration(3700)) == ("10.0 s", "1 min 1 s", "1 h 1 min")


@given(st.floats(0.0, 60.0), st.floats(1e-9, 1e-2))
def test_the_power_of_a_membership_test_is_never_understated(value: float, delta: float) -> None:
    bound = min(1.0, math.exp(value) * 0.01 + delta, 1 - math.exp(-value) * (0.99 - delta))
    sentence = detection(value, delta)
    if bound > 0.9995:
        assert sentence.startswith("This bound is weak")
    else:
        said = float(re.findall(r"at most ([\d.]+)%", sentence)[0]) / 100
        assert bound - 1e-8 <= said <= bound + 0.001


PUBLIC = Verification(0.073, 0.711, 0.422, 4321, 987654, intervals(0.55))
ALONE = Verification(0.072, 0.742, 0.461, 4321, 987654, intervals(0.61))
OWN = Verification(0.068, 0.751, 0.473, 4321, 987654, intervals(0.62))
CURVE = DetPoints((1.0, 0.1, 0.01, 0.001, 0.0), (0.0, 0.035, 0.289, 0.578, 1.0))


def by(value: float, half: float) -> Difference:
    """A difference of both TMRs by `value`, give or take `half`."""
    change = Change(value, value - half, value + half)
    return Difference(Change(-0.002, -0.004, 0.001), change, change, change)


def site(name: str, persons: int) -> SiteAlone:
    return SiteAlone(name, persons, dataclasses.replace(ALONE, ci=None))


FULL = dataclasses.replace(
    RECORD,
    public_only=PUBLIC,
    det_public=CURVE,
    difference=by(0.0255, 0.011),
    recommended="after",
    judges=331,
    unreleased=Unreleased(
        alone=ALONE,
        det_alone=CURVE,
        difference=by(-0.0095, 0.004),
        by_site=(site("site-000", 5), site("site-001", 5), site("site-002", 100)),
        after_own=OWN,
        det_after_own=CURVE,
    ),
)


def verdict_of(difference: Difference) -> RunRecord:
    return dataclasses.replace(RECORD, difference=difference, recommended="before", judges=20)


def test_a_record_of_every_stage_survives_its_file(tmp_path: Path) -> None:
    write_run(FULL, tmp_path)
    assert read_run(tmp_path) == FULL
    summary = FULL.summary()
    assert (summary["verdict"], summary["verdict_alone"]) == ("helped", "worse")
    difference = summary["difference"]
    assert isinstance(difference, dict)
    assert difference["tmr_mean"] == 0.0255
    assert difference["ci"]["tmr_at_fmr_1e-2"] == pytest.approx([0.0145, 0.0365])


def test_a_record_of_an_earlier_version_is_read_and_states_no_verdict(tmp_path: Path) -> None:
    old = json.loads(json.dumps(RECORD.to_json()))
    for name in ("stages", "verdict", "recommended", "judges", "difference", "difference_alone"):
        del old[name]
    del old["verdict_alone"], old["alone_by_site"]
    record = run_from_json(old)
    assert record == RECORD and record.verdict is None
    page = Page(render(record, draw_all(record)))
    assert "No verdict" in page.text and "Recommended" not in page.text


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run.update(verdict="no-difference"),
        lambda run: run.update(verdict_alone="helped"),
        lambda run: run["stages"]["public"].update({"tmr_at_fmr_1e-2": 0.9}),
        lambda run: run["stages"].update(alone=None),
        lambda run: run["difference"].update(tmr_mean=0.001),
        lambda run: run.update(recommended="public", public_only=None),
    ],
)
def test_a_verdict_that_does_not_follow_from_the_numbers_is_refused(change: Any) -> None:
    run = json.loads(json.dumps(FULL.to_json()))
    run["difference"]["ci"]["tmr_mean"] = [0.0145, 0.0365]
    change(run)
    if run["difference"]["tmr_mean"] == 0.001:
        run["difference"]["ci"]["tmr_mean"] = [-0.01, 0.012]
    with pytest.raises(InputError, match=r"does not follow|cannot be recommended"):
        run_from_json(run)


def test_every_stage_stands_on_the_page_and_in_both_drawings() -> None:
    drawn = draw_all(FULL)
    page = Page(render(FULL, drawn))
    for rates in (FULL.before, PUBLIC, ALONE, FULL.after, OWN):
        assert f"{100 * rates.tmr_at_fmr_1e3:.1f}%" in page.text
        assert all(f"{100 * rates.tmr_at_fmr_1e3:.1f}%" in plot.alt for plot in drawn[:2])
    for stage in ("before", "public only", "alone", "federated", "federated and own"):
        assert all(f">{stage}</text>" in plot.svg for plot in drawn[:2])
    assert "not noised: simulations only" in page.text
    assert "Each site alone, by how many persons it has" in page.text
    assert page.text.count("not noised") >= 2


@pytest.mark.parametrize(
    ("difference", "tone", "words"),
    [
        (by(0.02, 0.01), "good", "Private training helped"),
        (by(0.02, 0.03), "neutral", "made no difference that can be told"),
        (by(-0.02, 0.03), "neutral", "made no difference that can be told"),
        (by(-0.02, 0.01), "amber", "Private training made it worse"),
    ],
)
def test_the_verdict_is_told_in_words_and_in_one_colour(
    difference: Difference, tone: str, words: str
) -> None:
    record = verdict_of(difference)
    html = render(record, ())
    html = html[html.index("</section>") :]  # the first is privacy's own
    assert f'<section class="verdict {tone}"' in html and words in html
    others = {"neutral", "amber"} - {tone}
    assert not any(f'class="verdict {other}"' in html for other in others)
    assert [line for line in amber(record) if words in line] == list(amber(record))
    assert bool(list(amber(record))) == (tone == "amber")
    shown = change(difference.tmr_mean)
    assert shown in told(record.utility).line and shown in Page(html).text
    assert "Recommended: the public model, before any training; no file is needed" in html


@pytest.mark.parametrize(
    ("epsilon", "word", "tone"),
    [(0.5, "Strong", "good"), (1.0, "Strong", "good"), (1.004, "Moderate", "amber"),
     (10.0, "Moderate", "amber"), (10.1, "Weak", "bad")],
)  # fmt: skip
def test_the_run_page_is_green_for_strong_privacy_only(
    epsilon: float, word: str, tone: str
) -> None:
    adversaries = tuple(
        dataclasses.replace(one, epsilon=epsilon) for one in FULL.privacy.adversaries
    )
    sites = tuple(dataclasses.replace(one, epsilon=epsilon) for one in FULL.privacy.per_site)
    privacy = dataclasses.replace(FULL.privacy, adversaries=adversaries, per_site=sites)
    html = render(dataclasses.replace(FULL, privacy=privacy), ())
    first = html[html.index('class="verdict') :].split("</section>")[0]
    assert first.startswith(f'class="verdict {tone}"') and f"<h2>{word} privacy: epsilon" in first
    assert len(re.findall("aria-current", first)) == 1 and "Ponomareva" in first


def test_less_than_a_site_reaches_alone_is_amber_though_training_helped() -> None:
    assert [line.split(".")[0] for line in amber(FULL)] == [
        "Each site alone is better than federated"
    ]
    html = render(FULL, ())
    html = html[html.index("</section>") :]  # the first is privacy's own
    assert 'class="verdict good"' in html and 'class="verdict amber"' in html


def test_sites_alone_are_grouped_by_size() -> None:
    assert FULL.unreleased is not None
    small, large = by_size(FULL.unreleased.by_site)
    assert (small.persons, small.sites, large.persons, large.sites) == (5, 2, 100, 1)
    many = by_size(tuple(site(f"site-{n:03d}", 3 * n) for n in range(1, 21)))
    assert [size.sites for size in many] == [5, 5, 5, 5]
    assert [size.persons for size in many] == sorted(size.persons for size in many)
