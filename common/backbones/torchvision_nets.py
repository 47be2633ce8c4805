"""Networks of torchvision made valid for privacy: no batch norm, no dropout, nothing in place.

A batch norm in training couples the persons of a batch. From random weights it becomes a group
norm (Wu and He 2018, arXiv:1803.08494); from a file its statistics are constants, and it is
folded into the convolution before it. The classifier gives way to one projection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final, cast

from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import AlexNet, ResNet, resnet, vgg11
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception

from common.backbones.base import Backbone
from common.backbones.weights import load_into
from common.face import ChipSpec

_DIM: Final = 128
_IMAGENET: Final = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# torchvision's GoogLeNet was trained on (x - 0.5) / 0.5.
_CENTRED: Final = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
# Children of torchvision's networks that a backbone has no use for.
_CLASSIFIER: Final = ("avgpool", "dropout", "classifier", "fc", "aux1", "aux2")


class _BasicBlock(resnet.BasicBlock):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's block without addition in place, which backward hooks (Opacus) refuse."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(resnet.Bottleneck):  # type: ignore[misc]
    """torchvision's bottleneck without addition in place."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class _BasicConv(BasicConv2d):  # type: ignore[misc]
    """torchvision's convolution, norm and ReLU without ReLU in place."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _googlenet() -> nn.Module:
    blocks = [_BasicConv, partial(Inception, conv_block=_BasicConv), nn.Identity]
    return cast(nn.Module, GoogLeNet(aux_logits=False, init_weights=False, blocks=blocks))


@dataclass(frozen=True)
class _Recipe:
    """How a torchvision network becomes a backbone.

    `flat` lists the layers of its `features` as stages; else its children are the stages. They end
    in a mean over a `pool` x `pool` grid, `features` numbers; the last `tail` stages are the tail.
    """

    net: Callable[[], nn.Module]
    features: int
    tail: int
    pool: int = 1
    flat: bool = False
    constants: tuple[tuple[float, float, float], tuple[float, float, float]] = _IMAGENET


NETS: Final = {
    # Krizhevsky et al. 2012; the tail is the last convolution.
    "alexnet": _Recipe(AlexNet, 256 * 9, tail=4, pool=3, flat=True),
    # Simonyan and Zisserman 2015, configuration A; the tail is the last two convolutions.
    "vgg11": _Recipe(vgg11, 512, tail=6, flat=True),
    # Szegedy et al. 2015; the tail is the last inception block.
    "googlenet": _Recipe(_googlenet, 1024, tail=2, constants=_CENTRED),
    # He et al. 2016; the tail is the last group of blocks.
    "resnet18": _Recipe(lambda: ResNet(_BasicBlock, [2, 2, 2, 2]), 512, tail=2),
    "resnet50": _Recipe(lambda: ResNet(_Bottleneck, [3, 4, 6, 3]), 2048, tail=2),
}


def torchvision_net(name: str) -> Backbone:
    """Return a randomly initialised network: 128-d, 112-pixel chips, group norm."""
    return _backbone(name, ModuleValidator.fix(_without_classifier(name)))


def from_torchvision(name: str, state: Mapping[str, Tensor], source: str) -> Backbone:
    """Return a network with the weights of a file that uses torchvision's names.

    Running statistics in the file mean batch norm, which is folded; else its norms are group
    norms, as Opacus' fixer makes them. A last layer `fc` of 128 outputs is the projection; any
    other classifier is left out, and the projection is random. What does not fit is a
    WeightsError naming the tensor.
    """
    net = _without_classifier(name)
    batch_norm = any(key.endswith("running_mean") for key in state)
    if not batch_norm:
        net = ModuleValidator.fix(net)
    wanted = net.state_dict()
    # Files of before torch 0.4.1 do not count batches, and nothing here needs the count.
    counters = {key: wanted[key] for key in wanted if key.endswith("num_batches_tracked")}
    kept = {key: value for key, value in state.items() if key.split(".")[0] not in _CLASSIFIER}
    load_into(net, counters | kept, source)
    if batch_norm:
        _fold(net.eval())
    backbone = _backbone(name, net)
    last = {key[3:]: value for key, value in state.items() if key.startswith("fc.")}
    if "weight" in last and last["weight"].shape == backbone.projection.weight.shape:
        load_into(backbone.projection, last, f"{source}, fc")
    return backbone


def _without_classifier(name: str) -> nn.Module:
    net = NETS[name].net()
    for child in set(dict(net.named_children())) & set(_CLASSIFIER):
        setattr(net, child, nn.Identity())
    return net


def _fold(net: nn.Module) -> None:
    """Fold each batch norm into the convolution registered just before it, in place."""
    for parent in list(net.modules()):
        for (conv, layer), (norm, following) in pairwise(list(parent.named_children())):
            if isinstance(following, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(cast(nn.Conv2d, layer), following)
                setattr(parent, conv, fused.requires_grad_(True))
                setattr(parent, norm, nn.Identity())


def _backbone(name: str, net: nn.Module) -> Backbone:
    recipe = NETS[name]
    children = dict(net.named_children())
    layers = (
        list(children["features"].children())
        if recipe.flat
        else [child for key, child in children.items() if key not in _CLASSIFIER]
    )
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    layers.append(nn.Sequential(nn.AdaptiveAvgPool2d(recipe.pool), nn.Flatten()))
    mean, std = recipe.constants
    return Backbone(
        name,
        chip=ChipSpec(112, "arcface"),
        stages=nn.Sequential(*layers),
        projection=nn.Linear(recipe.features, _DIM),
        tail_from=len(layers) - recipe.tail,
        mean=mean,
        std=std,
    )
