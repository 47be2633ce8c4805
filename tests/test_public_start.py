"""The start from public images: it learns what they teach, repeatably, and needs two persons."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.backbones.registry import create
from common.face import ChipSpec
from common.parameters import flatten
from common.recipe import PublicStart
from server.public_faces import PublicFaces, SeenFaces
from server.public_start import start_on_public, train_on_public
from server.setup import PublicBank, cut
from simulations.people import generate

START = PublicStart(20, 32.0, 4, 10, 0.1, 0.9)


@pytest.fixture(scope="module")
def bank() -> PublicBank:
    people = generate(30, 3, 1, ChipSpec(112, "arcface"))
    return PublicBank(torch.from_numpy(people.chips), people.subjects.astype(np.int64))


def apart(bank: PublicBank, steps: int) -> float:
    """How much more alike a public person's images are than those of different persons."""
    rows, found = cut(create("lenet"), "adapter", bank)
    assert len(list(train_on_public(rows, found, dataclasses.replace(START, steps=steps)))) == steps
    with torch.no_grad():
        z = F.normalize(rows.embed(found.seen), dim=1)
    same = torch.from_numpy(found.persons[:, None] == found.persons)
    scores = z @ z.T
    mated = scores[same & ~torch.eye(len(z), dtype=torch.bool)]
    return float((mated.mean() - scores[~same].mean()) / scores[~same].std())


def test_public_images_pull_a_persons_images_together(bank: PublicBank) -> None:
    assert apart(bank, 20) > apart(bank, 0) + 0.1


def test_the_same_bank_gives_the_same_start(bank: PublicBank) -> None:
    starts = []
    for _ in range(2):
        rows, found = cut(create("lenet"), "adapter", bank)
        assert list(train_on_public(rows, found, START))
        starts.append(flatten(rows.split.trainable))
    assert torch.equal(*starts)
    assert starts[0].abs().max() > 0


def test_one_public_person_teaches_nothing(bank: PublicBank) -> None:
    alone = PublicBank(bank.chips[:3], bank.persons[:3])
    rows, found = cut(create("lenet"), "adapter", alone)
    assert not list(train_on_public(rows, found, START))
    assert not flatten(rows.split.trainable).any()


def test_the_statistics_are_those_of_the_chips_and_their_mirror_images(bank: PublicBank) -> None:
    _, found = cut(create("lenet"), "adapter", bank)
    flipped = PublicBank(bank.chips.flip(2), bank.persons)
    _, other = cut(create("lenet"), "adapter", flipped)
    torch.testing.assert_close(found.mirrored, other.seen, rtol=1e-3, atol=1e-4)


def test_a_start_is_kept_only_where_it_helps_the_judges() -> None:
    backbone = create("dlib-resnet")
    people = generate(40, 3, 1, backbone.chip)
    pixels = torch.from_numpy(people.chips).permute(0, 3, 1, 2).float()
    barely = F.interpolate(F.interpolate(pixels, size=10, mode="area"), size=backbone.chip.size)
    bank = PublicBank(barely.permute(0, 2, 3, 1).byte(), people.subjects.astype(np.int64))
    one_camera = np.zeros_like(bank.persons)
    others = np.random.default_rng(0).permutation(bank.persons)
    for persons, helps in ((bank.persons, True), (others, False)):
        rows, found = cut(backbone, "adapter", bank)
        judges = SeenFaces(rows, PublicFaces(bank.chips, persons, one_camera))
        start_on_public(rows, found, START, judges)
        assert bool(flatten(rows.split.trainable).any()) == helps
    rows, found = cut(backbone, "adapter", bank)
    start_on_public(rows, found, START, None)
    assert not flatten(rows.split.trainable).any()
