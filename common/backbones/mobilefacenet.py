"""MobileFaceNet (Chen et al. 2018, arXiv:1804.07573) as foamliu trained it, batch norms folded.

Every batch norm is folded into its convolution, so that the network has no statistics of a batch
and is valid for differential privacy. `folded_state` does it for published weights; without
weights the convolutions start from He et al. 2015's initialisation by fan-in, which keeps the
signal of depthwise convolutions (by fan-out it would vanish: torch ignores groups there).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from common.backbones.base import Backbone
from common.errors import WeightsError
from common.face import ChipSpec

# (expansion, channels, blocks, stride of the first), from input to output.
_SETTINGS: Final = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
# ImageNet's mean and standard deviation, for pixels in 0..255.
_MEAN: Final = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_STD: Final = (0.229 * 255, 0.224 * 255, 0.225 * 255)
_TAIL_STAGES: Final = 4
_EPSILON: Final = 1e-5


def _conv(
    channels_in: int,
    channels: int,
    kernel: int,
    stride: int = 1,
    *,
    depthwise: bool = False,
    padding: int | None = None,
) -> nn.Conv2d:
    groups = channels_in if depthwise else 1
    pad = kernel // 2 if padding is None else padding
    return nn.Conv2d(channels_in, channels, kernel, stride, pad, groups=groups)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shapes allow it."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.layers = nn.Sequential(
            _conv(channels_in, wide, 1),
            nn.ReLU6(),
            _conv(wide, wide, 3, stride, depthwise=True),
            nn.ReLU6(),
            _conv(wide, channels, 1),
        )
        self.skip = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.skip else out


def mobilefacenet() -> Backbone:
    """Return a randomly initialised network: 128-d, 112-pixel chips, 1.0 M parameters."""
    stages: list[nn.Module] = [
        nn.Sequential(_conv(3, 64, 3, 2), nn.ReLU6()),
        nn.Sequential(_conv(64, 64, 3, depthwise=True), nn.ReLU(), _conv(64, 64, 1), nn.ReLU()),
    ]
    channels_in = 64
    for expansion, channels, blocks, stride in _SETTINGS:
        for block in range(blocks):
            step = stride if block == 0 else 1
            stages.append(InvertedResidual(channels_in, channels, step, expansion))
            channels_in = channels
    stages.append(nn.Sequential(_conv(128, 512, 1), nn.ReLU6()))
    stages.append(nn.Sequential(_conv(512, 512, 7, depthwise=True, padding=0), nn.Flatten()))
    backbone = Backbone(
        "mobilefacenet",
        chip=ChipSpec(112, "arcface"),
        stages=nn.Sequential(*stages),
        projection=nn.Linear(512, 128),
        tail_from=len(stages) - _TAIL_STAGES,
        mean=_MEAN,
        std=_STD,
    )
    for layer in backbone.stages.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return backbone


def _original_layers() -> Iterator[tuple[str, str]]:
    """Names of (convolution, batch norm) in the published weights, from input to output."""
    yield "conv1.0", "conv1.1"
    yield "dw_conv.depthwise", "dw_conv.bn1"
    yield "dw_conv.pointwise", "dw_conv.bn2"
    for block in range(sum(blocks for _, _, blocks, _ in _SETTINGS)):
        for conv, norm in (("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")):
            yield f"features.{block}.conv.{conv}", f"features.{block}.conv.{norm}"
    yield "conv2.0", "conv2.1"
    yield "gdconv.depthwise", "gdconv.bn"
    yield "conv3", "bn"


def folded_state(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the state of our network from published weights, batch norms folded in.

    A state that is folded already is returned as it is. A missing, unknown, misshapen or
    non-finite tensor is a WeightsError naming it.
    """
    network = mobilefacenet()
    if set(state) == set(network.state_dict()):
        return dict(state)
    ours = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    left = {name for name in state if not name.endswith("num_batches_tracked")}
    take = _Taker(state, source, left)
    folded: dict[str, Tensor] = {}
    for (target, layer), (conv, norm) in zip(ours, _original_layers(), strict=True):
        shape = layer.weight.shape
        channels = shape[:1]
        # The published network ends in a 1x1 convolution with a bias, ours in a linear layer.
        last = isinstance(layer, nn.Linear)
        weight = take(f"{conv}.weight", (*shape, 1, 1) if last else shape).view(shape)
        shift = take(f"{conv}.bias", channels) if last else torch.zeros(channels)
        variance = take(f"{norm}.running_var", channels)
        if (variance < 0).any():
            raise WeightsError(f"{source}: {norm}.running_var is negative")
        scale = take(f"{norm}.weight", channels) / torch.sqrt(variance + _EPSILON)
        shift = take(f"{norm}.bias", channels) + scale * (
            shift - take(f"{norm}.running_mean", channels)
        )
        weight = weight * scale.view(-1, *([1] * (weight.dim() - 1)))
        folded[f"{target}.weight"], folded[f"{target}.bias"] = weight.float(), shift.float()
    if left:
        raise WeightsError(f"{source} has the unknown tensor {sorted(left)[0]!r}")
    return folded


class _Taker:
    """Hands out the tensors of a state in float64, checked, and strikes their names from `left`."""

    def __init__(self, state: Mapping[str, Tensor], source: str, left: set[str]) -> None:
        self.state, self.source, self.left = state, source, left

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.state:
            raise WeightsError(
                f"{self.source} misses tensor {name!r}", hint="is it a MobileFaceNet state dict?"
            )
        self.left.discard(name)
        found = self.state[name].detach()
        if found.shape != shape:
            raise WeightsError(
                f"{self.source}: {name} has shape {list(found.shape)}, expected {list(shape)}"
            )
        value = found.to(torch.float64)
        if not torch.isfinite(value).all():
            raise WeightsError(f"{self.source}: {name} holds a NaN or an infinity")
        return value
