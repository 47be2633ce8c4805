"""Every backbone: unit norm, valid for privacy, cut and joined without a change, seeded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision.models
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.base import TRAIN_SETS, Backbone, TrainSet
from common.backbones.registry import BACKBONES, create, describe
from common.backbones.split import frozen_part, rejoin, split
from common.errors import InputError, WeightsError
from common.parameters import trainable_parameters

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return create(request.param)


def pixels(backbone: Backbone) -> Tensor:
    side = backbone.chip.size
    chips = torch.randint(0, 256, (2, side, side, 3), generator=torch.Generator().manual_seed(0))
    return backbone.preprocess(chips.byte())


def public(backbone: Backbone) -> Tensor:
    return torch.randn(5, backbone.features, generator=torch.Generator().manual_seed(1))


def test_embeddings_have_unit_norm_and_the_stated_dimension(backbone: Backbone) -> None:
    with torch.no_grad():
        embedding = backbone(pixels(backbone))
    assert embedding.shape == (2, backbone.dim)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("train_set", TRAIN_SETS)
def test_each_trainable_set_is_valid_and_gets_all_the_gradient(
    backbone: Backbone, train_set: TrainSet
) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    parts = split(backbone, train_set, public(backbone))
    assert ModuleValidator.is_valid(parts.trainable.train())
    parts.trainable.eval()
    assert not any(p.requires_grad for p in parts.frozen.parameters())
    embedding = parts.trainable(parts.frozen(pixels(backbone)))
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


def test_the_facts_of_a_backbone_are_counted_on_it() -> None:
    facts = describe("mobilefacenet")
    assert (facts.dim, facts.features, facts.pretrained) == (128, 512, False)
    adapter, tail, full = (row.parameters for row in facts.train_sets)
    assert adapter == 128 * 512 < tail < full == facts.parameters < 1_000_000
    assert describe("dlib-resnet").pretrained


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
    bank = public(backbone)
    head = split(backbone, "adapter", bank).trainable
    with torch.no_grad():
        raw = backbone.projection(bank)
        expected = F.normalize(raw - raw.mean(dim=0) / 2, dim=1)
        torch.testing.assert_close(head(bank), expected)
    assert [n for n, p in head.named_parameters() if p.requires_grad] == ["adapter.weight"]


@pytest.mark.parametrize("bad", [torch.zeros(1, 256), torch.full((3, 256), float("nan"))])
def test_the_adapter_refuses_a_public_bank_without_statistics(bad: Tensor) -> None:
    with pytest.raises(InputError):
        split(create("dlib-resnet"), "adapter", bad)
    with pytest.raises(InputError):
        split(create("dlib-resnet"), "adapter", None)


class _Inverted(nn.Module):
    """The published MobileFaceNet's block."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.conv = nn.Sequential(
            _conv_norm(channels_in, wide, 1),
            _conv_norm(wide, wide, 3, stride, wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.skip = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.skip else out


def _conv_norm(
    channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU6())


class _Published(nn.Module):
    """The published MobileFaceNet under its own names, batch norms not folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv_norm(3, 64, 3, 2)
        self.dw_conv = nn.ModuleDict(
            {
                "depthwise": nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False),
                "bn1": nn.BatchNorm2d(64),
                "pointwise": nn.Conv2d(64, 64, 1, bias=False),
                "bn2": nn.BatchNorm2d(64),
            }
        )
        blocks = [(64, 64, 2, 2), *[(64, 64, 1, 2)] * 4, (64, 128, 2, 4), *[(128, 128, 1, 2)] * 6]
        blocks += [(128, 128, 2, 4), *[(128, 128, 1, 2)] * 2]
        self.features = nn.Sequential(*(_Inverted(*block) for block in blocks))
        self.conv2 = _conv_norm(128, 512, 1)
        self.gdconv = nn.ModuleDict(
            {"depthwise": nn.Conv2d(512, 512, 7, groups=512, bias=False)}
            | {"bn": nn.BatchNorm2d(512)}
        )
        self.conv3 = nn.Conv2d(512, 128, 1)
        self.bn = nn.BatchNorm2d(128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.relu(self.dw_conv["bn1"](self.dw_conv["depthwise"](x)))
        x = F.relu(self.dw_conv["bn2"](self.dw_conv["pointwise"](x)))
        x = self.conv2(self.features(x))
        x = self.bn(self.conv3(self.gdconv["bn"](self.gdconv["depthwise"](x))))
        return F.normalize(x.flatten(1), dim=1)


def with_statistics(net: nn.Module, seed: int) -> nn.Module:
    """Give each batch norm weights and the statistics of eight images; return it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
        net.train()(torch.randn(8, 3, 112, 112, generator=generator))
    return net.eval()


@pytest.mark.parametrize("published", [False, True])
def test_mobilefacenet_with_folded_batch_norms_is_the_published_network(
    published: bool, tmp_path: Path
) -> None:
    original, path = with_statistics(_Published(), 0), tmp_path / "w.pt"
    torch.save(original.state_dict(), path)
    if published:
        path = SHARED / "weights" / "mobilefacenet_foamliu.pt"
        if not path.is_file():
            pytest.skip("needs the weights of ../shared/weights")
        state = torch.load(path, map_location="cpu", weights_only=True)
        original.load_state_dict(state)
    backbone = create("mobilefacenet", weights=path)
    with torch.no_grad():
        ours = backbone(pixels(backbone))
        torch.testing.assert_close(ours, original(pixels(backbone)), rtol=0, atol=1e-5)
    assert ours[0] @ ours[1] < 0.99
    assert all(p.requires_grad for p in backbone.parameters())
    torch.save(backbone.state_dict(), tmp_path / "folded.pt")
    again = create("mobilefacenet", weights=tmp_path / "folded.pt")
    assert all(torch.equal(v, backbone.state_dict()[n]) for n, v in again.state_dict().items())


@pytest.mark.parametrize(
    "change, names",
    [
        ({"conv3.bias": None}, "misses tensor 'conv3.bias'"),
        ({"gdconv.bn.weight": None}, "misses tensor 'gdconv.bn.weight'"),
        ({"extra": torch.zeros(1)}, "unknown tensor 'extra'"),
        ({"conv1.0.weight": torch.full((64, 3, 3, 3), float("nan"))}, "conv1.0.weight holds"),
        ({"conv1.0.weight": torch.zeros(3, 64, 3, 3)}, r"conv1.0.weight has shape \[3, 64, 3, 3"),
        ({"bn.running_var": torch.full((128,), -1.0)}, "bn.running_var is negative"),
    ],
)
def test_a_broken_mobilefacenet_tensor_is_named_as_the_file_names_it(
    change: dict[str, Tensor | None], names: str, tmp_path: Path
) -> None:
    changed = {**_Published().state_dict(), **change}
    torch.save({k: v for k, v in changed.items() if v is not None}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=names):
        create("mobilefacenet", weights=tmp_path / "w.pt")


def _torchvision(name: str, **options: int | bool) -> nn.Module:
    net: nn.Module = getattr(torchvision.models, name)(weights=None, **options)
    return net


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "googlenet"])
def test_a_torchvision_file_is_folded_to_the_same_network(name: str, tmp_path: Path) -> None:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    original = with_statistics(_torchvision(name, num_classes=128, **options), 1)
    torch.save(original.state_dict(), tmp_path / "w.pt")
    backbone = create(name, weights=tmp_path / "w.pt")
    x = pixels(backbone)
    with torch.no_grad():
        expected = F.normalize(original(x), dim=1)
        torch.testing.assert_close(backbone(x), expected, rtol=0, atol=1e-5)
    for train_set in TRAIN_SETS:
        trainable = split(backbone, train_set, public(backbone)).trainable.train()
        assert ModuleValidator.is_valid(trainable)
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_a_classifier_of_another_task_is_left_out_and_the_stages_are_taken(
    name: str, tmp_path: Path
) -> None:
    original = with_statistics(_torchvision(name, num_classes=10), 2)
    torch.save(original.state_dict(), tmp_path / "w.pt")
    first, other = (create(name, weights=tmp_path / "w.pt", seed=seed) for seed in (0, 1))
    x = pixels(first)
    children = dict(original.named_children())
    with torch.no_grad():
        taken = first.stages[:-1](x)
        if name == "alexnet":
            torch.testing.assert_close(taken, children["features"](x), rtol=0, atol=1e-5)
        torch.testing.assert_close(taken, other.stages[:-1](x))
    assert not torch.equal(first.projection.weight, other.projection.weight)


def test_a_group_norm_file_and_an_own_file_are_read_and_a_broken_one_is_named(
    tmp_path: Path,
) -> None:
    path = tmp_path / "w.pt"
    fixed = ModuleValidator.fix(_torchvision("resnet18", num_classes=128)).eval()
    torch.save(fixed.state_dict(), path)
    backbone = create("resnet18", weights=path)
    with torch.no_grad():
        expected = F.normalize(fixed(pixels(backbone)), dim=1)
        torch.testing.assert_close(backbone(pixels(backbone)), expected, rtol=0, atol=1e-5)
    torch.save(backbone.state_dict(), path)
    again = create("resnet18", weights=path, seed=5)
    assert torch.equal(again.projection.weight, backbone.projection.weight)
    broken = dict(_torchvision("resnet18").state_dict())
    broken["layer1.0.bn1.running_var"] -= 2
    torch.save(broken, path)
    with pytest.raises(WeightsError, match=r"layer1.0.bn1.running_var is negative"):
        create("resnet18", weights=path)
    del broken["layer3.0.conv1.weight"]
    torch.save(broken, path)
    with pytest.raises(WeightsError, match=r"layer3.0.conv1.weight"):
        create("resnet18", weights=path)
