"""ONNX Runtime gives the embeddings that torch gives, from uint8 chips and for any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from common.backbones.onnx_export import export_onnx
from common.backbones.registry import create
from common.backbones.split import rejoin, split
from tests.test_backbones import public


@pytest.mark.parametrize("name", ["dlib-resnet", "mobilefacenet", "lenet"])
def test_onnx_runtime_gives_the_same_embedding(name: str, tmp_path: Path) -> None:
    backbone = create(name)
    parts = split(backbone, "adapter", public(backbone))
    with torch.no_grad():
        parts.trainable.adapter.weight.normal_(std=0.05)  # type: ignore[union-attr, operator]
    network = rejoin(parts)
    path = tmp_path / "model.onnx"
    export_onnx(network, backbone, path)
    session = onnxruntime.InferenceSession(str(path))
    side = backbone.chip.size
    for batch in (1, 3):
        chips = np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), np.uint8)
        (theirs,) = session.run(None, {"chips": chips})
        with torch.no_grad():
            ours = network(backbone.preprocess(torch.from_numpy(chips))).numpy()
        assert len({tuple(row.round(4)) for row in ours}) == batch
        np.testing.assert_allclose(np.asarray(theirs), ours, atol=1e-4)
