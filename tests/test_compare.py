"""Runs side by side: what differs is shown, and what is not comparable is not put side by side."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from common.errors import InputError
from common.metrics import Verification
from server.compare_cli import compare
from server.report.comparison import TEST_SETTINGS
from server.report.comparison import compare as compare_runs
from server.report.run_record import RunRecord, Setting, write_run
from tests.test_report import HOSTILE, OPEN, RECORD, Page

VALUES = ["lfw", "data", "data", "cctv", "dlib", "0", "False", "1000", "1000", "679", "1976"]
TESTED = dict(zip(TEST_SETTINGS, VALUES, strict=True))


def run_folder(folder: Path, settings: dict[str, str], record: RunRecord = RECORD) -> Path:
    folder.mkdir()
    used = tuple(Setting(name, value) for name, value in (TESTED | settings).items())
    write_run(dataclasses.replace(record, settings=used), folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    compare.main([str(argument) for argument in arguments], standalone_mode=False)
    return capsys.readouterr().out


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    better = dataclasses.replace(
        RECORD, after=Verification(0.06, 0.76, 0.47, 4321, 987654), public_only=RECORD.before
    )
    return (
        run_folder(tmp_path / "first", {"loss": "triplet", "epsilon": "4.0"}),
        run_folder(tmp_path / "second", {"loss": "codebook", "epsilon": "4.0"}, better),
    )


def test_what_differs_is_shown_and_what_is_alike_is_not(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(run(capsys, *two, "--json"))
    assert found["differences"] == {"loss": ["triplet", "codebook"]}
    assert found["comparable"] and found["warnings"] == []
    first, second = found["runs"]
    assert first["name"] == "first" and first["after"]["tmr_at_fmr_1e-2"] == 0.735
    assert second["after"]["tmr_at_fmr_1e-2"] == 0.76 and second["public_only"] is not None
    assert first["privacy"]["adversaries"] == {"the server": 3.996, "anyone with the model": 2.5}
    text = run(capsys, *two)
    for words in ("triplet", "codebook", "73.5% (", "76.0%", "+6.7", "4.00", "1e-4", "6 min 53 s"):
        assert words in text
    assert "WARNING" not in text


@pytest.mark.parametrize("name", TEST_SETTINGS)
def test_rates_of_another_test_are_not_put_side_by_side(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [run_folder(tmp_path / "a", {}), run_folder(tmp_path / "b", {name: "other"})]
    found = json.loads(run(capsys, *folders, "--json"))
    assert [each["comparable"] for each in found["runs"]] == [True, False]
    assert found["warnings"] == [
        f"b was tested on something else than a: {name} other, not {TESTED[name]}"
    ]
    text = run(capsys, *folders)
    assert text.count("73.5%") == 1 and "not comparable" in text and "WARNING" in text


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (Verification(0.075, 0.693, 0.398, 4000, 987654), "another number of test pairs"),
        (Verification(0.085, 0.693, 0.398, 4321, 987654), "the same public model scores otherwise"),
    ],
)
def test_other_images_under_the_same_name_are_found_out(
    before: Verification, words: str, tmp_path: Path
) -> None:
    changed = dataclasses.replace(RECORD, before=before)
    folders = [run_folder(tmp_path / "a", {}), run_folder(tmp_path / "b", {}, changed)]
    comparison = compare_runs(folders)
    assert not comparison.runs[1].comparable and words in comparison.warnings[0]


def test_another_backbone_may_score_otherwise_on_the_same_test(tmp_path: Path) -> None:
    other = dataclasses.replace(RECORD, before=Verification(0.2, 0.5, 0.3, 4321, 987654))
    folders = [
        run_folder(tmp_path / "a", {"backbone": "dlib-resnet"}),
        run_folder(tmp_path / "b", {"backbone": "lenet"}, other),
    ]
    assert all(each.comparable for each in compare_runs(folders).runs)


def test_epsilons_of_another_delta_and_runs_without_privacy_are_warned_of(tmp_path: Path) -> None:
    privacy = dataclasses.replace(RECORD.privacy, delta=1e-5)
    folders = [
        run_folder(tmp_path / "a", {}),
        run_folder(tmp_path / "b", {}, dataclasses.replace(RECORD, privacy=privacy)),
        run_folder(tmp_path / "c", {}, OPEN),
    ]
    warnings = compare_runs(folders).warnings
    assert any("of another delta" in text and "0.0001, 1e-05" in text for text in warnings)
    assert "c is not private: no noise was added" in warnings


def test_the_page_stands_alone_and_escapes_what_it_shows(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = run_folder(tmp_path / "<b>third", {"loss": HOSTILE})
    text = run(capsys, *two, hostile, "--out", tmp_path / "out")
    names = ["compare.html", "compare.json", "compare.png", "compare.svg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert all(str(tmp_path / "out" / name) in text for name in names)
    html = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object", "b"} & set(page.tags)
    assert "http" not in html.replace(HOSTILE, "").replace("http://evil.example", "")
    assert HOSTILE in page.text and "<b>third" in page.text
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", html))
    ElementTree.fromstring((tmp_path / "out" / "compare.svg").read_text(encoding="utf-8"))
    run(capsys, *two, "--out", tmp_path / "out")  # again, over its own files


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a"], "at least two"),
        (["a", "a"], "named twice"),
        (["a", "nothing"], r"nothing.*cannot read"),
        (["a", "damaged"], r"damaged.*not JSON"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(
    names: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "a", {})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{", encoding="utf-8")
    arguments: list[Any] = [tmp_path / name for name in names]
    with pytest.raises(InputError, match=words):
        run(capsys, *arguments)
    assert capsys.readouterr().out == ""
