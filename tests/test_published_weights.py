"""Weights of others: published batch norms are folded, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision.models
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.registry import create
from common.backbones.split import split
from common.errors import WeightsError
from common.vocabulary import TRAIN_SETS
from tests.test_backbones import pixels, public

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


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
    for train_set in (one for one in TRAIN_SETS if one != "statistics"):
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
