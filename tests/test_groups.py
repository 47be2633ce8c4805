"""Errors by group: the rows are read strictly, the rates counted, the intervals honest."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import InputError
from common.group_labels import GroupedImage, read_gender_lists, read_groups
from common.groups import GroupReport, group_rates, threshold_within
from common.intervals import wilson
from common.metrics import Interval
from common.scoring import plain
from server.evaluate_cli import evaluate
from tests.test_evaluate_cli import lfw_root, persons

__all__ = ["persons"]  # a fixture

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
    report = group_rates(plain(embeddings), names, 0.5)
    unit = tight / np.linalg.norm(tight, axis=1, keepdims=True)
    expected = np.mean((unit @ unit.T)[np.triu_indices(20, 1)] >= 0.5)
    assert [rate.group for rate in report.groups] == ["tight", "loose"]
    assert report.worst.fmr == pytest.approx(expected) and report.worst.pairs == 190
    matches = sum(rate.false_matches for rate in report.groups)
    assert report.fmr == pytest.approx(matches / 380)
    assert report.ratio == pytest.approx(report.worst.fmr / report.fmr)
    assert report.to_json()["worst"] == report.false_match.worst == "tight"
    assert report.false_non_match is None and report.worst.false_non_match is None


def test_no_match_at_all_has_no_ratio_and_an_honest_upper_end() -> None:
    report = group_rates(plain(np.eye(40)), ["one"] * 40, 0.5)
    assert report.ratio is None
    # 780 pairs of 40 faces are worth at most 20 independent ones when none matched.
    assert report.worst.ci.high == pytest.approx(0.161, abs=0.005)


def test_intervals_cover_the_true_rate_although_pairs_share_faces() -> None:
    def rate(seed: int, images: int) -> tuple[float, float, float]:
        rng = np.random.default_rng(seed)
        worst = group_rates(
            plain(rng.normal((1.0, 0.0), size=(images, 2))), ["g"] * images, 0.9
        ).worst
        return worst.fmr, worst.ci.low, worst.ci.high

    truth = rate(0, 3000)[0]
    covered = [low <= truth <= high for _, low, high in (rate(s, 60) for s in range(1, 201))]
    assert np.mean(covered) > 0.9


def people(
    rng: np.random.Generator, persons: int, images: int, noise: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Embeddings in which a person's images differ by `noise`, and whose each is."""
    centres = rng.normal((1.0, 0.0, 0.0), size=(persons, 3))
    rows = np.repeat(centres, images, axis=0) + noise * rng.normal(size=(persons * images, 3))
    return rows, np.repeat(np.arange(persons), images)


def test_each_person_counts_alike_however_often_photographed() -> None:
    rng = np.random.default_rng(3)
    embeddings, subjects = people(rng, 12, 3, 0.5)
    embeddings = np.concatenate([embeddings, embeddings[:1] + 0.5 * rng.normal(size=(40, 3))])
    subjects = np.concatenate([subjects, np.zeros(40, dtype=np.int64)])
    order = rng.permutation(len(subjects))
    report = group_rates(plain(embeddings[order]), ["g"] * len(subjects), 0.8, subjects[order])
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores, worst = unit @ unit.T, report.worst
    images = [np.flatnonzero(subjects == person) for person in range(12)]
    matches = [np.mean(scores[np.ix_(a, b)] >= 0.8) for a, b in itertools.combinations(images, 2)]
    missed = [
        np.mean([scores[i, j] < 0.8 for i, j in itertools.combinations(own, 2)]) for own in images
    ]
    assert worst.fmr == pytest.approx(np.mean(matches))
    assert worst.false_non_match is not None
    assert worst.false_non_match.value == pytest.approx(np.mean(missed))
    assert (worst.persons, worst.several, worst.mated) == (12, 12, 11 * 3 + 43 * 42 // 2)
    assert worst.pairs + worst.mated == 76 * 75 // 2
    counted = np.count_nonzero(np.triu((scores >= 0.8) & (subjects != subjects[:, None]), 1))
    assert worst.false_matches == counted
    found = report.to_json()
    assert found["fnmr"] == pytest.approx(np.mean(missed)) and found["fnmr_ratio"] == 1.0


def test_intervals_of_rates_and_of_ratios_cover_the_truth() -> None:
    def report(seed: int, persons: int) -> GroupReport:
        rng = np.random.default_rng(seed)
        near, first = people(rng, persons, 3, 0.3)
        near[:, 0] += 0.5  # alike
        far, second = people(rng, persons, 3, 0.6)
        return group_rates(
            plain(np.concatenate([near, far])),
            ["near"] * len(near) + ["far"] * len(far),
            0.9,
            np.concatenate([first, second + persons]),
        )

    truth = report(0, 1500)
    assert truth.worst.group == "near" and truth.false_non_match is not None
    assert truth.false_non_match.worst == "far" and truth.ratio is not None
    covered = []
    for found in (report(seed, 40) for seed in range(1, 201)):
        missed = found.false_non_match
        assert missed is not None and missed.ci and missed.ratio and found.false_match.ci
        own, true = found.groups, truth.groups
        assert own[0].false_non_match and true[0].false_non_match and truth.false_non_match.ratio
        covered.append(
            (
                inside(own[0].ci, true[0].fmr),
                inside(own[0].false_non_match.ci, true[0].false_non_match.value),
                inside(found.false_match.ci, truth.ratio),
                inside(missed.ci, truth.false_non_match.ratio),
                inside(wilson(own[0].fmr, own[0].pairs), true[0].fmr),
            )
        )
    *share, as_if_pairs_were_independent = np.mean(covered, axis=0)
    assert as_if_pairs_were_independent < 0.8
    assert min(share) > 0.9 and max(share) < 0.999, share


def inside(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def test_lists_of_gender_are_read_and_persons_in_both_left_out(tmp_path: Path) -> None:
    (tmp_path / "male.txt").write_text("Al_B_0001.jpg\nAl_B_0002.jpg\nJo_0001.jpg\n")
    (tmp_path / "female.txt").write_text("Eve_0001.jpg\r\nJo_0002.jpg\r\n")
    found = {image.file: (image.group, image.subject) for image in read_gender_lists(tmp_path)}
    assert found == {
        "Al_B/Al_B_0001.jpg": ("Male", "Al_B"),
        "Al_B/Al_B_0002.jpg": ("Male", "Al_B"),
        "Eve/Eve_0001.jpg": ("Female", "Eve"),
    }
    for wrong in ("../x_0001.jpg", "Eve.jpg", "Eve_one.jpg"):
        (tmp_path / "female.txt").write_text(wrong)
        with pytest.raises(InputError, match="is no file name"):
            read_gender_lists(tmp_path)
    (tmp_path / "female.txt").unlink()
    with pytest.raises(InputError, match=r"cannot read .*female\.txt"):
        read_gender_lists(tmp_path)


def test_a_csv_may_say_whose_each_image_is(tmp_path: Path) -> None:
    head = "file,race,gender,age,subject\n"
    images = read_groups(write(tmp_path, head + "a.jpg,Black,Female,30-39,p7\n"))
    assert images[0].subject == "p7"
    with pytest.raises(InputError, match="line 2: no value for subject"):
        read_groups(write(tmp_path, head + "a.jpg,Black,Female,30-39,\n"))


def test_groups_of_one_image_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="no group has two images"):
        group_rates(plain(np.eye(3)), ["a", "b", "c"], 0.5)


def test_a_threshold_within_the_groups_keeps_the_fmr_over_all_pairs() -> None:
    embeddings = np.random.default_rng(0).normal(size=(100, 6))
    report = group_rates(plain(embeddings), ["g"] * 100, threshold_within(plain(embeddings), 0.01))
    assert report.worst.false_matches == int(0.01 * report.worst.pairs)
    with pytest.raises(InputError, match="435 non-mated pairs cannot show"):
        threshold_within(plain(embeddings[:30]), 1e-3)


def test_an_lfw_root_gives_both_errors_by_gender(
    tmp_path: Path, persons: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = lfw_root(tmp_path / "lfw")
    names = [
        sorted(path.name for path in (root / "images" / f"p{i:02d}").iterdir()) for i in range(40)
    ]
    (root / "male.txt").write_text("\n".join(itertools.chain(*names[:25])), encoding="utf-8")
    (root / "female.txt").write_text("\n".join(itertools.chain(*names[24:])), encoding="utf-8")

    def run(data: Path, *options: str) -> str:
        base = ["--data", str(data), "--groups", str(root), "--aligned", "--backbone", "lenet"]
        base += ["--cache", str(tmp_path / "cache")]
        evaluate.main([*base, *options], standalone_mode=False)
        return capsys.readouterr().out

    alone, other = json.loads(run(root, "--json")), json.loads(run(persons, "--json"))
    for found in (alone, other):
        groups = found["groups"]
        assert groups["threshold"] == found["threshold_at_fmr_1e-3"]
        sizes = {
            row["group"]: (row["persons"], row["images"], row["mated"]) for row in groups["groups"]
        }
        assert sizes == {"Male": (24, 72, 72), "Female": (15, 45, 45)}
        assert groups["fnmr_worst"] in sizes and 0 <= groups["fnmr"] <= 1
    assert (alone["images"], alone["persons"]) == (117, 39) and "eer" in alone
    assert other["images"] == 80
    assert "FMR and FNMR by group" in run(root)
    (root / "images" / "p03" / "p03_0001.png").unlink()
    with pytest.raises(InputError, match=r"lists p03/p03_0001\.png, which is not in"):
        run(root)
