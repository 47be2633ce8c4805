"""A network as one ONNX file: uint8 chips in, unit-norm embeddings out."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from common.backbones.base import Backbone
from common.backbones.statistics import FixedHead, StatisticsHead
from common.errors import InputError
from common.storage import write_private

OPSET: Final = 18


class _FromChips(nn.Module):
    def __init__(self, backbone: Backbone, network: nn.Module) -> None:
        super().__init__()
        self.backbone, self.network = backbone, network

    def forward(self, chips: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found: Tensor | tuple[Tensor, Tensor] = self.network(self.backbone.preprocess(chips))
        return found


def _fixed(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return the network as it can be exported, and the names of what it puts out."""
    if isinstance(network, nn.Sequential) and isinstance(network[-1], StatisticsHead):
        return nn.Sequential(*network[:-1], FixedHead(network[-1])), ["embeddings", "probes"]
    return network, ["embeddings"]


def export_onnx(network: nn.Module, backbone: Backbone, path: Path) -> None:
    """Write `network` (pixels -> embeddings [B, D]) with the backbone's preprocessing to `path`.

    Input `chips` is uint8 [B, S, S, 3] with any B, output `embeddings` float32 [B, D], opset 18.
    A network of statistics also puts out `probes` [B, D]: the score of two images is the inner
    product of one's embedding and the other's probe. For all others it is that of embeddings.
    The file is written whole or not at all. Needs the packages onnx and onnxscript.
    """
    try:
        import onnx  # noqa: F401 - torch needs both, and says so less clearly
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            "exporting needs the packages onnx and onnxscript",
            hint="pip install 'veilface[server]'",
        ) from error
    side = backbone.chip.size
    fixed, outputs = _fixed(network)
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
        target = Path(folder) / "model.onnx"
        torch.onnx.export(
            _FromChips(backbone, fixed).eval(),
            (example,),
            str(target),
            input_names=["chips"],
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes={"chips": {0: torch.export.Dim("batch", min=1, max=4096)}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        write_private(path, target.read_bytes())
