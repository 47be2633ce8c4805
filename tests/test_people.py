"""Synthetic people: repeatable, told apart by their faces, and hard enough to learn from."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import dlib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.dlib_resnet import dlib_resnet
from common.backbones.dlib_weights import packaged_file
from common.errors import InputError
from common.face import ChipSpec
from simulations.people import People, generate, person, render

ARCFACE = ChipSpec(112, "arcface")
SMALL = ChipSpec(64, "dlib")
# Where dlib's five-point predictor wants its points in a 150-pixel chip, in its own order.
DLIB_POINTS = ((110.96, 46.35), (89.61, 47.90), (37.06, 46.37), (58.41, 47.91), (74.01, 87.78))

# Means of nine 50 x 50 blocks of one photograph: rows, columns, RGB.
KNOWN = [
    [[136, 96, 72], [144, 101, 75], [153, 134, 124]],
    [[152, 103, 75], [124, 87, 67], [161, 143, 135]],
    [[130, 86, 62], [145, 107, 89], [169, 155, 148]],
]


@pytest.fixture(scope="module")
def people() -> People:
    return generate(50, 3, 11)


def eer(embeddings: Tensor, subjects: NDArray[np.int64]) -> float:
    scores = (embeddings @ embeddings.T).numpy()
    first, second = np.triu_indices(len(subjects), 1)
    mated = subjects[first] == subjects[second]
    values = scores[first, second]
    thresholds = np.quantile(values[~mated], np.linspace(0, 1, 501))
    fmr = 1 - np.linspace(0, 1, 501)
    fnmr = np.searchsorted(np.sort(values[mated]), thresholds) / mated.sum()
    return float((fmr + fnmr)[np.argmin(np.abs(fmr - fnmr))] / 2)


@pytest.mark.parametrize("spec", [ChipSpec(150, "dlib"), ARCFACE, SMALL])
def test_chips_have_the_size_and_type_that_the_backbone_asked_for(spec: ChipSpec) -> None:
    found = generate(2, 2, 5, spec)
    assert found.chips.shape == (4, spec.size, spec.size, 3)
    assert found.chips.dtype == np.uint8
    assert found.subjects.tolist() == [0, 0, 1, 1]


def test_a_seed_gives_the_same_people_in_another_process() -> None:
    script = "from simulations.people import generate; print(*generate(2, 2, 42).digests)"
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert tuple(other.stdout.split()) == generate(2, 2, 42).digests


def test_a_digest_is_the_sha256_of_its_chip() -> None:
    found = generate(1, 2, 3, SMALL)
    expected = [hashlib.sha256(chip.tobytes()).hexdigest() for chip in found.chips]
    assert list(found.digests) == expected


def test_seeds_persons_and_photographs_all_differ() -> None:
    every = [*generate(3, 3, 1, SMALL).digests, *generate(3, 3, 2, SMALL).digests]
    assert len(set(every)) == len(every)


def test_a_smaller_population_is_the_beginning_of_a_larger_one() -> None:
    small, large = generate(2, 2, 9, SMALL), generate(3, 4, 9, SMALL)
    assert small.digests == large.digests[0:2] + large.digests[4:6]


def test_one_photograph_of_one_person_is_enough_to_ask_for() -> None:
    assert np.array_equal(generate(1, 1, 8, SMALL).chips[0], render(person(8), 0, SMALL))


@pytest.mark.parametrize(("subjects", "images"), [(0, 1), (1, 0), (-3, 2), (2, -1)])
def test_nobody_or_no_photograph_is_refused(subjects: int, images: int) -> None:
    with pytest.raises(InputError, match="at least one"):
        generate(subjects, images, 0)


@pytest.mark.parametrize("size", [0, -150, 31, 2000])
def test_a_chip_too_small_to_show_a_face_or_too_large_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="pixels"):
        render(person(1), 0, ChipSpec(size, "dlib"))


def test_known_answer() -> None:
    """Means of 50 x 50 blocks, to within 2 levels: another JPEG decoder may round otherwise."""
    chip = render(person(2026), 2)
    means = chip.reshape(3, 50, 3, 50, 3).mean((1, 3))
    assert np.abs(means - KNOWN).max() < 2


def test_photographs_of_a_person_vary(people: People) -> None:
    chips = people.chips.reshape(50, 3, 150, 150, 3).astype(np.float64)
    assert (chips.std(1).mean((1, 2, 3)) > 8).all()


def test_the_background_does_not_tell_who_it_is(people: People) -> None:
    """Variance between persons over within: 1 if it tells nothing, 1.7 is F's 95% point here.

    Only persons whose hair does not reach the sides of the picture.
    """
    short = [person(11, i).hair_style in ("bald", "receding", "buzz", "short") for i in range(50)]
    chips = people.chips.reshape(50, 3, 150, 150, 3)[short]
    for columns in (slice(0, 6), slice(144, 150)):
        wall = chips[:, :, 100:120, columns].mean((2, 3))
        assert (3 * wall.mean(1).var(0, ddof=1) / wall.var(1, ddof=1).mean(0)).max() < 1.7


def test_dlib_finds_the_faces_and_their_points_where_a_chip_has_them(people: People) -> None:
    detect = dlib.get_frontal_face_detector()
    predict = dlib.shape_predictor(str(packaged_file("shape_predictor_5_face_landmarks.dat")))
    errors = []
    for chip in people.chips[::3]:
        padded = np.pad(chip, ((60, 60), (60, 60), (0, 0)), mode="edge")
        for box in detect(padded, 1)[:1]:
            shape = predict(padded, box)
            points = np.array([(shape.part(i).x - 60, shape.part(i).y - 60) for i in range(5)])
            errors.append(np.abs(points - DLIB_POINTS).mean())
    assert len(errors) >= 0.7 * 50
    assert np.median(errors) < 6


def test_an_untrained_network_cannot_tell_persons_apart(people: People) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 128),
    )  # fmt: skip
    pixels = (torch.from_numpy(people.chips).permute(0, 3, 1, 2).float() - 127.5) / 64
    with torch.inference_mode():
        embeddings = network(pixels)
    assert eer(F.normalize(embeddings - embeddings.mean(0)), people.subjects) > 0.3


def test_a_network_trained_on_real_faces_does_better_and_leaves_room(people: People) -> None:
    network = dlib_resnet()
    chips = torch.from_numpy(people.chips)
    with torch.inference_mode():
        parts = [network(network.preprocess(chips[i : i + 30])) for i in range(0, len(chips), 30)]
    embeddings = torch.cat(parts)
    assert 0.08 < eer(embeddings, people.subjects) < 0.25
