"""Private statistics: bounded by person, true without noise, and nothing where noise is all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.moments import person_moments
from common.backbones.statistics import StatisticsHead, probe_order
from common.constants import LossConfig, MomentsConfig
from common.errors import InputError
from common.losses import PersonBatch, PublicSide, create_loss
from common.mechanism import clip_by_person
from common.moments import Shape, contribution, estimate
from common.parameters import assign
from common.recipe import moments_for
from tests.moments_rig import DIM, FEATURES, config_of, head, rows

CLIP = 1.0


def batch(inputs: Tensor, present: Tensor | None = None) -> PersonBatch:
    mask = torch.ones(inputs.shape[:2], dtype=torch.bool) if present is None else present
    return PersonBatch(inputs, mask, torch.zeros(len(inputs), dtype=torch.int64))


def total(model: nn.Module, persons: PersonBatch, clip: float = CLIP) -> Tensor:
    nothing = PublicSide(torch.zeros(1, DIM), embedded=True)
    return person_moments(model, persons, create_loss(LossConfig()), nothing, clip).value


def _random() -> PersonBatch:
    present = torch.rand(7, 4, generator=torch.Generator().manual_seed(5)) < 0.6
    present[:, 0] = True
    return batch(rows(7, 4, 4) * present[..., None], present)


def _crafted() -> PersonBatch:
    """Twins, opposites, identical images, tiny, huge, nothing at all, and one image."""
    found = rows(9, 4, 6)
    found[1] = found[0]
    found[2] = -found[0]
    found[3] = found[3, :1]
    found[4] *= 1e-6
    found[5] *= 1e8
    found[6] = 0.0
    present = torch.ones(9, 4, dtype=torch.bool)
    present[7, 1:] = False
    return batch(found * present[..., None], present)


def without(persons: PersonBatch, gone: int) -> PersonBatch:
    rest = [index for index in range(len(persons)) if index != gone]
    return PersonBatch(persons.inputs[rest], persons.present[rest], persons.codes[rest])


@pytest.mark.parametrize("people", [_random, _crafted])
def test_a_person_who_leaves_moves_the_sum_by_no_more_than_the_clip(
    people: Callable[[], PersonBatch],
) -> None:
    model, persons = head(), people()
    everyone = total(model, persons)
    moved = [
        float((everyone - total(model, without(persons, gone))).norm())
        for gone in range(len(persons))
    ]
    assert max(moved) <= CLIP * (1 + 1e-9)
    assert max(moved) > 0.5 * CLIP  # the bound is one that is reached


def test_moments_about_everyones_mean_would_break_the_bound() -> None:
    """The control: what a careless covariance does moves by more than a person's own part."""
    model, persons = head(), _crafted()

    def careless(people: PersonBatch) -> Tensor:
        with torch.no_grad():
            seen = [
                model.seen(one.inputs[0][one.present[0]])
                for one in map(people.person, range(len(people)))
            ]
        middle = torch.cat([y for y, _ in seen]).mean(dim=0)
        told = [contribution(model.shape, model.prior, y - middle, z) for y, z in seen]
        return clip_by_person(told, model.shape.layout.dimension, CLIP).value

    everyone = careless(persons)
    moved = [float((everyone - careless(without(persons, g))).norm()) for g in range(len(persons))]
    assert max(moved) > 1.2 * CLIP


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_person_with_a_number_that_is_none_adds_nothing(bad: float) -> None:
    model, persons = head(), _random()
    spoilt = persons.inputs.clone()
    spoilt[3, 0, 0] = bad
    expected = total(model, without(persons, 3))
    found = total(model, PersonBatch(spoilt, persons.present, persons.codes))
    assert torch.equal(found, expected)


def test_nobody_gives_zeros_and_a_person_without_images_too() -> None:
    model = head()
    nobody = batch(torch.zeros(0, 4, FEATURES + len(model.condense.directions)))
    absent = batch(rows(2, 3, 1), torch.zeros(2, 3, dtype=torch.bool))
    assert not total(model, nobody).any()
    assert not total(model, absent).any()


def test_one_image_tells_the_mean_and_nothing_of_pairs() -> None:
    model = head()
    told = contribution(model.shape, model.prior, *model.seen(rows(1, 1, 3)[0]))
    parts = model.shape.parts(told)
    assert parts["embedding"].any() and parts["mean"].any() and parts["persons"].any()
    assert not any(parts[name].any() for name in ("within", "between", "pairs"))


def test_a_person_does_not_depend_on_who_else_is_there() -> None:
    model, persons = head(), _random()
    alone = total(model, persons.person(2))
    pair = PersonBatch(persons.inputs[[2, 5]], persons.present[[2, 5]], persons.codes[[2, 5]])
    # Nothing but the rounding of the sum itself: 2^-53 of its numbers, which are below 1.
    apart = total(model, pair) - (alone + total(model, persons.person(5)))
    assert float(apart.abs().max()) <= 3 * 2.0**-52


def _people(shape: Shape, prior: Tensor, count: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of contributions of people with a known within, between and mean."""
    generator = torch.Generator().manual_seed(8)
    size = len(prior)
    factor = torch.eye(size, dtype=torch.float64)
    factor[0, 1] = 0.7
    within = factor @ factor.T
    mean = torch.zeros(size, dtype=torch.float64)
    mean[2] = 1.5
    sums = torch.zeros(shape.layout.dimension, dtype=torch.float64)
    for _ in range(count):
        person = (
            mean + 1.3 * prior.double().sqrt() * torch.randn(size, generator=generator).double()
        )
        noise = torch.randn(images, size, generator=generator).double() @ factor.T
        z = torch.nn.functional.normalize(torch.ones(images, shape.embedding), dim=1)
        sums += contribution(shape, prior, person + noise, z)
    return sums, within, mean


def test_without_noise_the_estimate_is_the_population() -> None:
    prior = torch.linspace(2.0, 0.1, 16)
    shape = Shape(config_of(16), DIM)
    sums, within, mean = _people(shape, prior, 4000, 3)
    parts = shape.parts(estimate(shape, prior, sums, 0.0))
    block = slice(0, 8)
    found = torch.eye(16, dtype=torch.float64) + shape.matrix(parts["within"])
    assert torch.allclose(found[block, block], within[block, block], atol=0.08)
    assert torch.allclose(parts["mean"], mean, atol=0.12)
    between = torch.diag(prior.double()) + shape.matrix(parts["between"])
    assert torch.allclose(between.diagonal(), 1.69 * prior.double(), atol=0.25)
    assert torch.allclose(parts["embedding"], torch.full((DIM,), DIM**-0.5).double(), atol=1e-6)
    assert parts["persons"] == 1.0 and parts["pairs"] == 1.0


def test_pure_noise_ends_near_no_change() -> None:
    prior = torch.linspace(2.0, 0.1, 16)
    shape = Shape(config_of(16), DIM)
    generator = torch.Generator().manual_seed(3)
    sums = torch.randn(shape.layout.dimension, generator=generator).double()
    found = estimate(shape, prior, sums, 1.0)
    lost = shape.parts(found)
    assert not lost["pairs"].any() or float(found.abs().max()) < 5.0
    quiet = shape.parts(sums.clone())
    quiet["persons"].fill_(1000.0)
    quiet["pairs"].fill_(1000.0)
    parts = shape.parts(estimate(shape, prior, shape.joined(quiet), 1.0))
    assert all(
        float(parts[name].norm()) < 0.1 for name in ("embedding", "mean", "within", "between")
    )


def test_counters_that_are_lost_in_noise_tell_nothing() -> None:
    prior = torch.linspace(2.0, 0.1, 16)
    shape = Shape(config_of(16), DIM)
    sums = torch.ones(shape.layout.dimension, dtype=torch.float64)
    assert not estimate(shape, prior, sums, 0.6).any()
    assert not estimate(shape, prior, -sums, 0.0).any()


def told_head() -> StatisticsHead:
    """A head with parameters that a release could have."""
    model = head()
    persons = batch(rows(60, 3, 12))
    sums = -total(model, persons, 1e5)
    assign(model, estimate(model.shape, model.prior, sums, 0.0).float())
    return model


@pytest.mark.parametrize("make", [head, told_head])
def test_the_inner_product_of_templates_is_the_likelihood_ratio_beside_the_cosine(
    make: Callable[[], StatisticsHead],
) -> None:
    model = make()
    with torch.no_grad():
        y, z = model.seen(rows(12, 1, 30)[:, 0])
        templates = model.templates(y, z).double()
    scores = templates @ templates[:, probe_order(templates.shape[1])].T
    scorer = model.scorer()
    told = {name: part.double() for name, part in scorer.named_buffers()}
    length, weight, _, furthest = told["constants"].tolist()
    # The two-covariance model written out: v v' has covariance [[1 + b, b], [b, 1 + b]].
    v = torch.nn.functional.normalize((y.double() - told["mean"]) @ told["transform"].T) * length
    k_over, q_over = told["gains"].square(), told["own"]
    ratio = (v * k_over) @ v.T - ((v.square() @ q_over)[:, None] + v.square() @ q_over) / 2
    centred = torch.nn.functional.normalize(z.double() - told["embedding"])
    expected = (ratio + weight**2 * centred @ centred.T) / furthest**2
    assert torch.allclose(scores, expected, atol=1e-6)
    assert torch.allclose(scores, scores.T, atol=1e-6)
    assert torch.allclose(templates.norm(dim=1), torch.ones(12).double(), atol=1e-5)


def test_the_gains_are_those_of_the_two_covariance_model() -> None:
    """log N([v, v']; 0, [[1+b, b], [b, 1+b]]) - log N(v; 0, 1+b) N(v'; 0, 1+b), but a constant."""
    told = dict(head().scorer().named_buffers())
    b = head().prior.double()
    k, q = told["gains"].double().square(), told["own"].double()
    v, other = torch.randn(2, len(b), generator=torch.Generator().manual_seed(2)).double()
    both = (1 + b) ** 2 - b**2
    joint = -((1 + b) * (v**2 + other**2) - 2 * b * v * other) / (2 * both)
    apart = -(v**2 + other**2) / (2 * (1 + b))
    exact = float((joint - apart).sum())
    scale = float(b[0] / both[0] / k[0])
    found = scale * float((k * v * other).sum() - (q * (v**2 + other**2)).sum() / 2)
    assert found == pytest.approx(exact, rel=1e-3)


def test_zero_parameters_are_the_public_model_and_half_of_them_is_half_way() -> None:
    model, told = head(), told_head()
    y, z = model.seen(rows(6, 1, 31)[:, 0])
    public = model.templates(y, z)
    assign(told, torch.zeros(told.shape.layout.dimension))
    assert torch.equal(told.templates(y, z), public)


def test_few_persons_tell_their_mean_alone_and_an_ordinary_one_is_not_clipped() -> None:
    config = moments_for(192, persons=60, numbers=60)
    shape = Shape(config, 128)
    assert set(shape.layout.names) == {"embedding", "persons"}
    z = torch.zeros(2, 128)
    z[0, 0] = z[1, 1] = 1.0  # two images at a right angle: their mean is 0.71 long
    told = contribution(shape, torch.ones(192), torch.randn(2, 192), z)
    assert 0.9 < float(told.norm()) <= 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        (8, 9, 1.0, 0.0, 0.0, 1.0),
        (8, 4, 0.0, 0.0, 0.0, 1.0),
        (8, 4, 1.0, float("nan"), 0.0, 1.0),
        (0, 0, 1.0, 1.0, 0.0, 1.0),
        (10_000, 4, 1.0, 0.0, 0.0, 1.0),
    ],
)
def test_constants_that_make_no_sense_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        MomentsConfig(*wrong)  # type: ignore[arg-type]


def test_told_entries_have_the_norm_of_the_matrix_and_come_back() -> None:
    shape = Shape(MomentsConfig(6, 6, 1.0, 0.0, 1.0, 1.0), DIM)
    half = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()
    matrix = half + half.T
    assert torch.allclose(shape.matrix(shape.told(matrix)), matrix)
    assert float(shape.told(matrix).norm()) == pytest.approx(float(matrix.norm()))
    assert np.isfinite(shape.told(matrix).numpy()).all()
