"""Any model is measured on public persons, camera by camera, and chosen on others than these."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.backbones.registry import create
from common.backbones.split import split
from common.embedding import Rows
from common.paired import difference
from common.parameters import flatten
from server.public_faces import Model, PublicFaces, SeenFaces, apart
from server.stages import PublicTest

EACH, SIZE = 3, 112


def faces(people: int, seed: int, cameras: int = 1) -> PublicFaces:
    """Chips whose first line of pixels tells the person, and whose second is noise."""
    rng = np.random.default_rng(seed)
    persons = np.repeat(np.arange(people), EACH)
    chips = np.zeros((len(persons), SIZE, SIZE, 3), np.uint8)
    chips[:, 0] = np.repeat(rng.integers(0, 256, (people, SIZE, 3)), EACH, axis=0)
    chips[:, 1] = rng.integers(0, 256, (len(persons), SIZE, 3))
    return PublicFaces(torch.from_numpy(chips), persons, persons % cameras)


def seeing(noise: float) -> Model:
    """A model that sees the person, and so much of the noise."""

    def model(rows: Tensor) -> Tensor:
        pixels = rows.float() - 127.5
        return (pixels[:, 0] + noise * pixels[:, 1]).flatten(1)

    return Model(model)


def public_test(judges: PublicFaces | None, test: PublicFaces) -> PublicTest:
    backbone = create("lenet")
    rows = Rows(backbone, split(backbone, "full", None), "full")
    seen = None if judges is None else SeenFaces(rows, judges)
    return PublicTest(rows, SeenFaces(rows, test), seen, rows.split.trainable)


@pytest.fixture(scope="module")
def judged() -> PublicTest:
    return public_test(faces(60, 1), faces(60, 0))


def test_the_stage_to_use_is_chosen_on_the_judges(judged: PublicTest) -> None:
    blind, good = seeing(30.0), seeing(3.0)
    assert judged.judges == 60
    assert judged.recommended(None, good) == "after"
    assert judged.recommended(good, good) == "public"
    assert judged.recommended(seeing(4.5), good) == "after"
    assert judged.best([("good", good), ("blind", blind)]) == "good"
    assert judged.best([("good", good), ("alike", good)]) == "good"


def test_what_is_better_on_the_test_persons_alone_is_not_recommended() -> None:
    def lucky(rows: Tensor) -> Tensor:
        """It sees test persons, whose chips are bright in a corner, and no judge."""
        known = (rows[:, 9, 9, 0] > 0)[:, None]
        return torch.where(known, seeing(0.5).embed(rows), seeing(30.0).embed(rows))

    test = faces(40, 0)
    test.chips[:, 9, 9, 0] = 255
    judged = public_test(faces(40, 1), test)
    found = judged.utility(flatten(judged_parameters()).numpy(), Model(lucky))
    assert found.verdict == "helped" and found.recommended == "before"


def judged_parameters() -> torch.nn.Module:
    backbone = create("lenet")
    return split(backbone, "full", None).trainable


def test_without_judges_nothing_is_recommended_over_what_was() -> None:
    alone = public_test(None, faces(40, 0))
    assert (alone.judges, alone.recommended(seeing(3.0), seeing(1.0))) == (0, "before")


def test_only_pictures_of_one_camera_are_compared() -> None:
    people, cameras = 40, 4
    found = public_test(None, faces(people, 0, cameras)).measure(seeing(3.0))
    assert found.mated == people * EACH
    each = people // cameras
    assert found.non_mated == cameras * EACH**2 * each * (each - 1) // 2


def test_sites_are_measured_under_their_own_cameras(judged: PublicTest) -> None:
    test = public_test(None, faces(60, 0, 2))
    mean = test.measure_sites([(seeing(3.0), 0), (seeing(6.0), 0), (seeing(3.0), 1)])
    good, poor = test.measure(seeing(3.0)), test.measure(seeing(6.0))
    assert good.rates[2] >= mean.rates[2] >= poor.rates[2]
    assert difference(good, mean).verdict == "helped"
    assert mean.mated == good.mated
    assert test.rates(seeing(3.0)) == pytest.approx(tuple(good.rates[1:3]))


def test_judges_are_other_persons_a_third_of_all_and_always_the_same() -> None:
    everyone = faces(90, 0)
    test, judges = apart(everyone)
    assert judges is not None
    one, other = set(test.persons.tolist()), set(judges.persons.tolist())
    assert not one & other and len(one) == 60 and len(other) == 30
    assert len(judges.chips) == len(judges.persons) == 30 * EACH
    again = apart(everyone)[1]
    assert again is not None and np.array_equal(again.persons, judges.persons)
    assert apart(faces(40, 0))[1] is None
