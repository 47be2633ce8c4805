"""False matches by group: the rows are read strictly, the rates counted, the intervals honest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from common.groups import GroupedImage, group_rates, read_groups, threshold_within

HEAD = "file,race,gender,age\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_are_read_and_grouped_by_race_and_gender(tmp_path: Path) -> None:
    images = read_groups(write(tmp_path, HEAD + "a.jpg,Black,Female,30-39\n"))
    assert images == (GroupedImage("a.jpg", "Black", "Female", "30-39"),)
    assert images[0].group == "Black, Female"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lists no images"),
        (HEAD, "lists no images"),
        ("file,race\na.jpg,Black\n", "line 2: no value for gender, age"),
        (HEAD + "a.jpg,Black,Female,20-29\nb.jpg,,Female,20-29\n", "line 3: no value for race"),
        (HEAD + "a.jpg,Black,Female,20-29\n" * 2, "line 3: a.jpg is listed twice"),
        (HEAD + '"a.jpg,Black', "cannot be read"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_groups(write(tmp_path, text))


def test_rates_equal_a_count_and_the_worst_group_leads() -> None:
    rng = np.random.default_rng(0)
    loose, tight = rng.normal(size=(20, 8)), 4 + rng.normal(size=(20, 8))
    embeddings = np.concatenate([loose, tight, rng.normal(size=(1, 8))])
    names = ["loose"] * 20 + ["tight"] * 20 + ["alone"]
    report = group_rates(embeddings, names, 0.5)
    unit = tight / np.linalg.norm(tight, axis=1, keepdims=True)
    expected = np.mean((unit @ unit.T)[np.triu_indices(20, 1)] >= 0.5)
    assert [rate.group for rate in report.groups] == ["tight", "loose"]
    assert report.worst.fmr == pytest.approx(expected) and report.worst.pairs == 190
    matches = sum(rate.false_matches for rate in report.groups)
    assert report.fmr == pytest.approx(matches / 380)
    assert report.ratio == pytest.approx(report.worst.fmr / report.fmr)
    assert report.to_json()["worst"] == "tight"


def test_no_match_at_all_has_no_ratio_and_an_honest_upper_end() -> None:
    report = group_rates(np.eye(40), ["one"] * 40, 0.5)
    assert report.ratio is None
    # 780 pairs of 40 faces are worth at most 20 independent ones when none matched.
    assert report.worst.ci.high == pytest.approx(0.161, abs=0.005)


def test_intervals_cover_the_true_rate_although_pairs_share_faces() -> None:
    def rate(seed: int, images: int) -> tuple[float, float, float]:
        rng = np.random.default_rng(seed)
        worst = group_rates(rng.normal((1.0, 0.0), size=(images, 2)), ["g"] * images, 0.9).worst
        return worst.fmr, worst.ci.low, worst.ci.high

    truth = rate(0, 3000)[0]
    covered = [low <= truth <= high for _, low, high in (rate(s, 60) for s in range(1, 201))]
    assert np.mean(covered) > 0.9


def test_groups_of_one_image_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="no group has two images"):
        group_rates(np.eye(3), ["a", "b", "c"], 0.5)


def test_a_threshold_within_the_groups_keeps_the_fmr_over_all_pairs() -> None:
    embeddings = np.random.default_rng(0).normal(size=(100, 6))
    report = group_rates(embeddings, ["g"] * 100, threshold_within(embeddings, 0.01))
    assert report.worst.false_matches == int(0.01 * report.worst.pairs)
    with pytest.raises(InputError, match="435 non-mated pairs cannot show"):
        threshold_within(embeddings[:30], 1e-3)
