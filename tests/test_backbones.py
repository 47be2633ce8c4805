"""Every backbone: unit norm, valid for privacy, cut and joined without a change, seeded."""

from __future__ import annotations

import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor
from torch.nn import functional as F

from common.backbones.adapter import PublicStatistics
from common.backbones.base import Backbone
from common.backbones.registry import create
from common.backbones.split import frozen_part, rejoin, split
from common.errors import InputError
from common.parameters import trainable_parameters
from common.vocabulary import BACKBONES, TRAIN_SETS, TrainSet

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return create(request.param)


def pixels(backbone: Backbone) -> Tensor:
    side = backbone.chip.size
    chips = torch.randint(0, 256, (2, side, side, 3), generator=torch.Generator().manual_seed(0))
    return backbone.preprocess(chips.byte())


def bank_rows(backbone: Backbone) -> Tensor:
    """Rows of a public bank of five images, as the adapter's frozen part gives them."""
    side = backbone.chip.size
    chips = torch.randint(0, 256, (5, side, side, 3), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        rows: Tensor = frozen_part(backbone, "adapter")(backbone.preprocess(chips.byte()))
    return rows


def public(backbone: Backbone) -> PublicStatistics:
    return PublicStatistics.of(backbone.projection, bank_rows(backbone))


def test_embeddings_have_unit_norm_and_the_stated_dimension(backbone: Backbone) -> None:
    with torch.no_grad():
        embedding = backbone(pixels(backbone))
    assert embedding.shape == (2, backbone.dim)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("train_set", [one for one in TRAIN_SETS if one != "statistics"])
def test_each_part_that_gradients_train_is_valid_and_gets_all_the_gradient(
    backbone: Backbone, train_set: TrainSet
) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    parts = split(backbone, train_set, public(backbone))
    assert ModuleValidator.is_valid(parts.trainable.train())
    parts.trainable.eval()
    assert not any(p.requires_grad for p in parts.frozen.parameters())
    embedding = parts.trainable(parts.condense(parts.frozen(pixels(backbone))))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    embedding[0, :64].sum().backward()
    for name, parameter in parts.trainable.named_parameters():
        assert (parameter.grad is not None) == (name in trainable_parameters(parts.trainable))
    with torch.no_grad():
        for parameter in trainable_parameters(parts.trainable).values():
            parameter.add_(1.0)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), f"training changed the public {name}"


@pytest.mark.parametrize("train_set", ["tail", "full"])
def test_cut_and_joined_it_is_the_same_network(backbone: Backbone, train_set: TrainSet) -> None:
    with torch.no_grad():
        joined = rejoin(split(backbone, train_set, None))(pixels(backbone))
        torch.testing.assert_close(joined, backbone(pixels(backbone)), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_opacus_own_hooks_agree_with_plain_gradients(backbone: Backbone) -> None:
    trainable = split(backbone, "tail", None).trainable.train()
    rows = frozen_part(backbone, "tail")(pixels(backbone))
    plain = torch.autograd.grad(trainable(rows)[:, :64].sum(), list(trainable.parameters()))
    hooked = GradSampleModule(trainable, loss_reduction="sum")
    hooked(rows)[:, :64].sum().backward()
    for parameter, expected in zip(trainable.parameters(), plain, strict=True):
        per_image: Tensor = parameter.grad_sample  # type: ignore[attr-defined]
        torch.testing.assert_close(per_image.sum(dim=0), expected, rtol=1e-3, atol=1e-5)


def test_an_untrained_network_still_tells_images_apart(backbone: Backbone) -> None:
    with torch.no_grad():
        first, second = backbone(pixels(backbone))
    assert first @ second < 0.9995


def test_the_tail_is_smaller_than_the_whole(backbone: Backbone) -> None:
    def size(train_set: TrainSet) -> int:
        parts = split(backbone, train_set, public(backbone))
        return sum(p.numel() for p in trainable_parameters(parts.trainable).values())

    assert size("adapter") <= size("tail") < size("full")
    assert len(list(frozen_part(backbone, "tail").parameters())) > 0


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    for name in ("lenet", "mobilefacenet", "resnet18"):
        torch.manual_seed(1)
        expected = torch.rand(1)
        torch.manual_seed(1)
        first, second, other = create(name, seed=3), create(name, seed=3), create(name, seed=4)
        create("dlib-resnet")
        split(first, "adapter", public(first))
        assert torch.equal(torch.rand(1), expected)
        same = zip(first.parameters(), second.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
        assert not torch.equal(first.projection.weight, other.projection.weight)


def test_an_unknown_backbone_is_refused_with_the_known_ones_listed() -> None:
    with pytest.raises(InputError, match="mobilefacenet"):
        create("facenet")


def test_the_adapter_starts_as_the_half_centred_public_model(backbone: Backbone) -> None:
    rows = bank_rows(backbone)
    parts = split(backbone, "adapter", PublicStatistics.of(backbone.projection, rows))
    head = parts.trainable
    with torch.no_grad():
        raw = backbone.projection(rows[:, : backbone.features])
        expected = F.normalize(raw - raw.mean(dim=0) / 2, dim=1)
        torch.testing.assert_close(head(parts.condense(rows)), expected)
    assert [n for n, p in head.named_parameters() if p.requires_grad] == ["adapter.weight"]


def test_the_adapter_needs_the_statistics_of_a_public_bank() -> None:
    with pytest.raises(InputError, match="public bank"):
        split(create("lenet"), "adapter", None)
