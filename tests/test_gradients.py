"""Three engines, one answer: vmap and book-keeping agree with the person loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.book_keeping import book_keeping, supports_book_keeping
from client.gradients import (
    ENGINES,
    choose_engine,
    person_loop,
    person_vmap,
)
from common.backbones.registry import create
from common.backbones.split import split
from common.constants import LossConfig
from common.losses import LOSSES, PersonBatch, PublicSide, create_loss


class Adapter(nn.Module):
    """Two linear layers, one of them frozen, one with a bias: all that book-keeping claims."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(12, 6).requires_grad_(False)
        self.first = nn.Linear(12, 8)
        self.second = nn.Linear(8, 6, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        mixed = self.frozen(rows) + self.second(torch.relu(self.first(rows)))
        return F.normalize(mixed, dim=-1)


class Convolutional(nn.Module):
    """What tail and full look like: convolution, depthwise, norm, PReLU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.PReLU(4),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * 2 * 2, 6)

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(self.head(self.body(rows)), dim=-1)


def people(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> PersonBatch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(7, 4, *shape, generator=generator, dtype=dtype)
    present = torch.rand(7, 4, generator=generator) < 0.8
    present[:, :2] = True
    mask = present.view(7, 4, *([1] * len(shape)))
    return PersonBatch(inputs.masked_fill(~mask, 0), present, torch.arange(7))


def public(dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> PublicSide:
    """Constants of the loss, or with a shape inputs through which the gradient flows too."""
    generator = torch.Generator().manual_seed(1)
    if shape is not None:
        return PublicSide(torch.randn(20, *shape, generator=generator, dtype=dtype), False)
    rows = torch.randn(20, 6, generator=generator, dtype=dtype)
    return PublicSide(F.normalize(rows, dim=-1), True)


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("engine", ["vmap", "book-keeping"])
@pytest.mark.parametrize("clip", [1e-3, 0.1, 1e6])
@pytest.mark.parametrize("moving", [False, True])
def test_engines_agree_with_the_loop_on_an_adapter(
    loss_name: str, engine: str, clip: float, moving: bool
) -> None:
    torch.manual_seed(0)
    model, batch = Adapter().double(), people((12,), torch.float64)
    loss = create_loss(LossConfig(loss_name, temperature=10.0))
    side = public(torch.float64, (12,) if moving else None)
    expected = person_loop(model, batch, loss, side, clip).value
    actual = ENGINES[engine](model, batch, loss, side, clip).value
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_engines_agree_to_1e_6_in_float32() -> None:
    torch.manual_seed(0)
    model, batch = Adapter(), people((12,), torch.float32)
    loss = create_loss(LossConfig(temperature=10.0))
    side = public(torch.float32, (12,))
    results = [engine(model, batch, loss, side, 0.1).value for engine in ENGINES.values()]
    for result in results[1:]:
        assert float((result - results[0]).norm() / results[0].norm()) < 1e-6


@pytest.mark.parametrize("moving", [False, True])
def test_vmap_agrees_with_the_loop_on_convolutions(moving: bool) -> None:
    torch.manual_seed(0)
    model, batch = Convolutional().double(), people((2, 4, 4), torch.float64)
    loss = create_loss(LossConfig(temperature=10.0))
    side = public(torch.float64, (2, 4, 4) if moving else None)
    expected = person_loop(model, batch, loss, side, 0.1).value
    actual = person_vmap(model, batch, loss, side, 0.1).value
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_person_adds_nothing_in_any_engine(engine: str, bad: float) -> None:
    torch.manual_seed(0)
    model, batch = Adapter().double(), people((12,), torch.float64)
    loss = create_loss(LossConfig(temperature=10.0))
    good = PersonBatch(batch.inputs[:-1], batch.present[:-1], batch.codes[:-1])
    batch.inputs[-1, 0, 0] = bad
    expected = ENGINES[engine](model, good, loss, public(torch.float64), 0.1).value
    actual = ENGINES[engine](model, batch, loss, public(torch.float64), 0.1).value
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_gives_a_zero_sum_in_any_engine(engine: str) -> None:
    torch.manual_seed(0)
    model, batch = Adapter().double(), people((12,), torch.float64)
    nobody = PersonBatch(batch.inputs[:0], batch.present[:0], batch.codes[:0])
    loss = create_loss(LossConfig())
    total = ENGINES[engine](model, nobody, loss, public(torch.float64), 0.1)
    assert float(total.value.abs().max()) == 0.0
    assert total.l2_sensitivity == 0.1


class Tail(nn.Module):
    """What a network's end looks like: strided and padded convolutions with a skip, then linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, stride=2, bias=False)
        self.second = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, 6)

    def forward(self, rows: Tensor) -> Tensor:
        inner = torch.relu(self.first(rows))
        pooled = (inner + self.second(inner)).mean(dim=(2, 3))
        return F.normalize(self.head(pooled), dim=-1)


@pytest.mark.parametrize("size", [3, 4, 7])
@pytest.mark.parametrize("clip", [1e-3, 0.1, 1e6])
@pytest.mark.parametrize("moving", [False, True])
def test_book_keeping_agrees_with_the_loop_on_convolutions(
    size: int, clip: float, moving: bool
) -> None:
    torch.manual_seed(0)
    model, batch = Tail().double(), people((3, size, size), torch.float64)
    loss = create_loss(LossConfig(temperature=10.0))
    side = public(torch.float64, (3, size, size) if moving else None)
    expected = person_loop(model, batch, loss, side, clip).value
    actual = book_keeping(model, batch, loss, side, clip).value
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11)


def test_book_keeping_agrees_with_the_loop_on_the_tail_of_the_default_backbone() -> None:
    torch.manual_seed(0)
    tail = split(create("dlib-resnet"), "tail", None).trainable
    batch = people((256, 4, 4), torch.float32)
    bank = F.normalize(torch.randn(20, 128), dim=-1)
    loss, side = create_loss(LossConfig(temperature=10.0)), PublicSide(bank, True)
    expected = person_loop(tail, batch, loss, side, 0.1).value
    actual = book_keeping(tail, batch, loss, side, 0.1).value
    assert float((actual - expected).norm() / expected.norm()) < 1e-6


def test_a_gradient_that_cancels_to_nothing_is_not_scaled_up_by_book_keeping() -> None:
    """A norm from inner products rounds to about 0 here, and a factor from it must stay bounded."""
    model, clip = nn.Linear(2, 2, bias=False), 1e-6
    nn.init.eye_(model.weight)
    inputs = torch.tensor([[[1e6, 1.0], [1e6, 1.0 + 1e-3]]])
    batch = PersonBatch(inputs, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1).long())

    def opposed(embeddings: Tensor, present: Tensor, codes: Tensor, public: Tensor) -> Tensor:
        return (embeddings[:, 0] - embeddings[:, 1]).sum(dim=-1)

    side = PublicSide(torch.zeros(1, 2), True)
    total = book_keeping(model, batch, opposed, side, clip)
    assert float(total.value.norm()) <= clip


def test_book_keeping_holds_the_clip_for_a_broken_person_among_convolutions() -> None:
    torch.manual_seed(0)
    model, batch = Tail().double(), people((3, 4, 4), torch.float64)
    loss, side = create_loss(LossConfig(temperature=10.0)), public(torch.float64)
    good = PersonBatch(batch.inputs[:-1], batch.present[:-1], batch.codes[:-1])
    batch.inputs[-1, 0, 0, 0, 0] = math.nan
    expected = book_keeping(model, good, loss, side, 0.1).value
    actual = book_keeping(model, batch, loss, side, 0.1).value
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_the_engine_is_chosen_by_what_is_trained() -> None:
    assert choose_engine(Adapter(), "adapter") is book_keeping
    assert choose_engine(Tail(), "tail") is book_keeping
    assert choose_engine(Tail(), "full") is person_vmap
    assert choose_engine(Convolutional(), "tail") is person_vmap
    assert choose_engine(nn.Sequential(nn.Conv2d(64, 64, 3)), "full") is person_loop
    assert not supports_book_keeping(Convolutional())
