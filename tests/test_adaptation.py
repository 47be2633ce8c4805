"""A site's own statistics: used where they help people of the site, and left out where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from client.adaptation import NO_CHANGE, adaptable, adapted, pairs_of
from common.backbones.adapter import AdapterHead, PublicStatistics
from common.backbones.statistics import StatisticsHead
from common.metrics import lowest_threshold, tmr
from common.persons import Persons
from tests.moments_rig import config_of, head, rows

IMAGES = 4


def persons_of(images: Tensor) -> Persons:
    """Persons [P, K, d] as a site holds them."""
    count = len(images)
    owners = np.repeat(np.arange(count), images.shape[1]).tolist()
    return Persons.group(images.reshape(-1, images.shape[2]), owners, [0] * count)


def quality(model: StatisticsHead, images: Tensor) -> float:
    owners = np.repeat(np.arange(len(images)), images.shape[1])
    scores = pairs_of(model, images.reshape(-1, images.shape[2]), owners)
    return tmr(scores, lowest_threshold(scores.non_mated, 1e-2))


def seen_by_a_camera(count: int, seed: int, blur: float = 2.0) -> Tensor:
    """People whose images a camera pushes to one side, and blurs along some directions."""
    images = rows(count, IMAGES, seed)
    generator = torch.Generator().manual_seed(7)
    width = images.shape[2]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed + 100))
    spread = blur * (torch.rand(width, generator=generator) < 0.3)
    return images + 4.0 * torch.randn(width, generator=generator) + spread * noise


@pytest.mark.parametrize("directions", [True, False])
def test_what_a_camera_does_to_all_is_learnt_from_some_and_helps_others(directions: bool) -> None:
    model, blur = (head(), 2.0) if directions else (head(config_of(0), basis=False), 0.0)
    some, others = seen_by_a_camera(60, 1, blur), seen_by_a_camera(60, 2, blur)
    found = adapted(model, persons_of(some))
    assert found.shares != NO_CHANGE
    assert quality(found.head, others) > 1.3 * quality(model, others)


def test_where_nothing_is_to_be_learnt_others_are_not_harmed() -> None:
    model, harm = head(), []
    for seed in range(5):
        plain, others = rows(60, IMAGES, seed), rows(60, IMAGES, seed + 50)
        found = adapted(model, persons_of(plain))
        harm.append(quality(model, others) - quality(found.head, others))
    assert np.mean(harm) < 0.02


def test_too_few_persons_change_nothing_and_no_number_of_theirs_is_in_the_result() -> None:
    model = head()
    found = adapted(model, persons_of(seen_by_a_camera(7, 1)))
    assert found.shares == NO_CHANGE
    others = rows(20, IMAGES, 3)
    assert quality(found.head, others) == quality(model, others)
    assert not found.head.told()[: model.shape.embedding].any()


def test_a_person_with_a_number_that_is_not_finite_is_left_out() -> None:
    people = seen_by_a_camera(40, 1)
    broken = people.clone()
    broken[3, 1, 0] = float("nan")
    rest = people[[person for person in range(40) if person != 3]]
    with_them, without = adapted(head(), persons_of(broken)), adapted(head(), persons_of(rest))
    assert torch.isfinite(with_them.head.told()).all()
    if with_them.shares == without.shares:
        assert torch.allclose(with_them.head.told(), without.head.told(), atol=1e-5)


def test_an_adapter_takes_a_sites_mean_and_other_parts_take_nothing() -> None:
    model = head()
    adapter = AdapterHead(model.projection, PublicStatistics.in_state(model.state_dict()))
    adapter.adapter.load_state_dict(model.adapter.state_dict())
    taken = adaptable(adapter)
    assert taken is not None and not len(taken.prior)
    some = rows(3, 2, 1)
    assert torch.allclose(taken(some), adapter(some), atol=1e-6)
    assert adaptable(model.projection) is None
